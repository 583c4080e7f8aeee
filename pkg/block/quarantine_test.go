package block

import (
	"slices"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"
)

// mergedOf is metaWith of a block that was merged from others.
func mergedOf(m Meta, parents ...byte) Meta {
	for _, p := range parents {
		m.Compaction.Parents = append(m.Compaction.Parents, tsdb.BlockDesc{ULID: ulid.ULID{p}})
	}
	return m
}

func TestAnswering(t *testing.T) {
	a, b := metaWith(1, 1, 1), metaWith(2, 2, 2)
	merged := mergedOf(metaWith(3, 1, 2, 1, 2), 1, 2)
	first, commit := mergedOf(metaWith(4, 1, 2), 1, 2), mergedOf(metaWith(5, 1, 2, 1, 2), 2)
	day := mergedOf(metaWith(6, 1, 2, 4, 5), 4, 5)
	for _, c := range []struct {
		name       string
		metas      []Meta
		out        []byte
		want, left []byte
	}{
		{"nothing is out", []Meta{a, b, merged}, nil, []byte{3}, nil},
		{"what was replaced answers", []Meta{a, b, merged}, []byte{3}, []byte{1, 2}, []byte{3}},
		{"as far as it is there", []Meta{b, merged}, []byte{3}, []byte{2}, []byte{3}},
		{"and is not out as well", []Meta{a, b, merged}, []byte{1, 3}, []byte{2}, []byte{3, 1}},
		{"replaced by what answers", []Meta{a, b, first, commit, day}, []byte{4, 5}, []byte{6}, nil},
		{"over two levels", []Meta{a, b, first, commit, day}, []byte{5, 6}, []byte{1, 2, 4}, []byte{6, 5}},
		{"an output that replaces nothing", []Meta{a, b, first, commit}, []byte{4}, []byte{1, 2, 5}, []byte{4}},
		{"a circle", []Meta{metaWith(1, 1, 1, 2), metaWith(2, 1, 1, 1)}, []byte{1}, []byte{2}, []byte{1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			metas := slices.Clone(c.metas)
			answering, left := Answering(metas, func(id ulid.ULID) bool { return slices.Contains(c.out, id[0]) })
			require.Equal(t, c.want, firstBytes(answering))
			require.Equal(t, c.left, firstBytes(left))
			require.Equal(t, c.metas, metas)
		})
	}
}

func firstBytes(metas []Meta) (out []byte) {
	for _, m := range metas {
		out = append(out, m.ULID[0])
	}
	return out
}
