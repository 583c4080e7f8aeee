package block

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
)

func TestMetaRoundTrip(t *testing.T) {
	m := testMeta(t, 1000, 2000, 2, 5, 9)
	m.Version = MetaVersion
	m.Thanos.Extensions.Millrace.Replaces = []ulid.ULID{newID(t), newID(t)}
	m.Thanos.Files = []File{{RelPath: "chunks/000001", SizeBytes: 10}, {RelPath: "index", SizeBytes: 20}, {RelPath: "meta.json"}}
	m.Thanos.SegmentFiles = []string{"000001"}
	b, err := m.Marshal()
	require.NoError(t, err)
	got, err := ParseMeta(b)
	require.NoError(t, err)
	require.Equal(t, m, got)
	require.Equal(t, 2, got.Level())
	require.Equal(t, 3, got.Compaction.Level)
	lo, hi := got.Generations()
	require.Equal(t, []uint64{5, 9}, []uint64{lo, hi})
	require.Equal(t, `{writer="test"}`, got.ExternalLabels().String())
	require.Equal(t, int64(30), got.Size())
	require.True(t, got.Own())
	for _, field := range []string{`"downsample"`, `"resolution": 0`, `"source": "millrace"`, `"segment_files"`, `"rel_path"`} {
		require.Contains(t, string(b), field)
	}
}

func TestMetaOfOthers(t *testing.T) {
	for name, extensions := range map[string]string{
		"none": ``, "text": `,"extensions":"x"`, "null": `,"extensions":null`, "other": `,"extensions":{"parquet_migrated":true}`,
		"ours is null": `,"extensions":{"millrace":null}`,
	} {
		t.Run(name, func(t *testing.T) {
			m, err := ParseMeta([]byte(`{"version":1,"ulid":"01ARZ3NDEKTSV4RRFFQ69G5FAV","minTime":0,"maxTime":10,
				"compaction":{"level":3},"thanos":{"labels":{"a":"b"},"downsample":{"resolution":0},"source":"sidecar"` + extensions + `}}`))
			require.NoError(t, err)
			require.False(t, m.Own())
			require.Equal(t, 2, m.Level())
			require.Empty(t, m.Replaces())
			lo, hi := m.Generations()
			require.Zero(t, lo+hi)
		})
	}
}

func TestParseMetaRefuses(t *testing.T) {
	valid := func(change func(m map[string]any)) string {
		m := map[string]any{
			"version": 1, "ulid": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "minTime": 0, "maxTime": 10,
			"thanos": map[string]any{"labels": map[string]any{"a": "b"}},
		}
		change(m)
		b, err := json.Marshal(m)
		require.NoError(t, err)
		return string(b)
	}
	thanos := func(key string, v any) string {
		return valid(func(m map[string]any) { m["thanos"].(map[string]any)[key] = v })
	}
	ours := func(v any) string { return thanos("extensions", map[string]any{"millrace": v}) }
	_, err := ParseMeta([]byte(valid(func(map[string]any) {})))
	require.NoError(t, err)
	for _, c := range []struct{ name, json, want string }{
		{"nothing", ``, "unexpected end"},
		{"cut off", `{"version":1,`, "unexpected end"},
		{"other version", valid(func(m map[string]any) { m["version"] = 2 }), "unexpected version 2"},
		{"no ulid", valid(func(m map[string]any) { delete(m, "ulid") }), "no ulid"},
		{"bad ulid", valid(func(m map[string]any) { m["ulid"] = "x" }), "ulid"},
		{"times", valid(func(m map[string]any) { m["minTime"] = 11 }), "after maxTime"},
		{"thanos version", thanos("version", 2), "thanos section"},
		{"file outside", thanos("files", []any{map[string]any{"rel_path": "../x"}}), "not inside"},
		{"absolute file", thanos("files", []any{map[string]any{"rel_path": "/etc/passwd"}}), "not inside"},
		{"backslash", thanos("files", []any{map[string]any{"rel_path": `chunks\1`}}), "not inside"},
		{"file of negative size", thanos("files", []any{map[string]any{"rel_path": "index", "size_bytes": -1}}), "size of -1"},
		{"segment outside", thanos("segment_files", []any{"../1"}), "not a file name"},
		{"newer extension", ours(map[string]any{"version": 2}), "version 2"},
		{"older extension", ours(map[string]any{"version": 0}), "version 0"},
		{"level", ours(map[string]any{"version": 1, "level": -1}), "level -1"},
		{"generations", ours(map[string]any{"version": 1, "generations": map[string]any{"min": 2, "max": 1}}), "generations 2 to 1"},
		{"replaces itself", ours(map[string]any{"version": 1, "replaces": []any{"01ARZ3NDEKTSV4RRFFQ69G5FAV"}}), "replaces itself"},
		{"wrong type", ours("text"), "millrace"},
		{"too large", strings.Repeat(" ", maxMetaSize+1), "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseMeta([]byte(c.json))
			require.ErrorIs(t, err, ErrUnusable)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestReadMetaNamesTheFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "some-block")
	require.NoError(t, os.Mkdir(dir, 0o777))
	_, err := ReadMeta(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(filepath.Join(dir, MetaFilename), []byte("{"), 0o666))
	_, err = ReadMeta(dir)
	require.ErrorContains(t, err, "some-block")
}

func metaWith(id byte, minGen, maxGen uint64, replaces ...byte) Meta {
	var m Meta
	m.ULID = ulid.ULID{id}
	m.SetExtension(0, minGen, maxGen)
	for _, r := range replaces {
		m.Thanos.Extensions.Millrace.Replaces = append(m.Thanos.Extensions.Millrace.Replaces, ulid.ULID{r})
	}
	return m
}

func TestCompare(t *testing.T) {
	order := []Meta{
		{}, // foreign
		metaWith(1, 1, 1), metaWith(9, 1, 2), metaWith(2, 2, 2), metaWith(3, 2, 2), metaWith(1, 1, 3),
	}
	higher := metaWith(0, 1, 3)
	higher.SetExtension(1, 1, 3)
	order = append(order, higher, metaWith(1, 3, 3))
	for i := range order {
		for j := range order {
			require.Equal(t, sign(i-j), Compare(order[i], order[j]), "%d, %d", i, j)
		}
	}
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func TestVisible(t *testing.T) {
	for _, c := range []struct {
		name  string
		metas []Meta
		want  []byte
	}{
		{"none", nil, nil},
		{"all", []Meta{metaWith(1, 1, 1), metaWith(2, 2, 2)}, []byte{1, 2}},
		{"replaced", []Meta{metaWith(1, 1, 1), metaWith(2, 2, 2), metaWith(3, 1, 2, 1, 2)}, []byte{3}},
		{"first output of a job that is not committed", []Meta{metaWith(1, 1, 1), metaWith(3, 1, 1)}, []byte{1, 3}},
		{"replaced by what is replaced", []Meta{metaWith(1, 1, 1), metaWith(2, 1, 1, 1), metaWith(3, 1, 1, 2)}, []byte{3}},
		{"what is replaced is not there", []Meta{metaWith(2, 1, 1, 1)}, []byte{2}},
		{"a circle", []Meta{metaWith(1, 1, 1, 2), metaWith(2, 1, 1, 1), metaWith(3, 1, 1)}, []byte{1, 2, 3}},
		{"a circle that is replaced", []Meta{metaWith(1, 1, 1, 2), metaWith(2, 1, 1, 1), metaWith(3, 1, 1, 1)}, []byte{3}},
		{"itself", []Meta{metaWith(1, 1, 1, 1)}, []byte{1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []byte
			for _, m := range Visible(c.metas) {
				got = append(got, m.ULID[0])
			}
			require.Equal(t, c.want, got)
		})
	}
}

// TestVisibleCoversEverything runs random jobs: whatever of the replaced blocks is still there, the visible ones hold what
// every block ever held.
func TestVisibleCoversEverything(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		content := map[byte][]byte{} // what has gone into a block
		var metas []Meta
		for id := byte(1); id < 40; id++ {
			m := metaWith(id, uint64(id), uint64(id))
			content[id] = []byte{id}
			if vis := Visible(metas); len(vis) > 1 && rnd.IntN(3) == 0 {
				n := 1 + rnd.IntN(len(vis)-1)
				for _, in := range vis[:n] {
					m.Thanos.Extensions.Millrace.Replaces = append(m.Thanos.Extensions.Millrace.Replaces, in.ULID)
					content[id] = append(content[id], content[in.ULID[0]]...)
				}
			}
			metas = append(metas, m)
			// Replaced blocks go at any time after that, in any order.
			vis := Visible(metas)
			metas = slices.DeleteFunc(metas, func(m Meta) bool {
				replaced := !slices.ContainsFunc(vis, func(v Meta) bool { return v.ULID == m.ULID })
				return replaced && rnd.IntN(4) == 0
			})
			got := map[byte]bool{}
			for _, v := range Visible(metas) {
				for _, c := range content[v.ULID[0]] {
					got[c] = true
				}
			}
			require.Len(t, got, int(id), "seed %d", seed)
		}
	}
}

func FuzzParseMeta(f *testing.F) {
	m := metaWith(1, 2, 3, 4)
	m.Version = MetaVersion
	b, err := m.Marshal()
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte(`{"version":1,"ulid":"01ARZ3NDEKTSV4RRFFQ69G5FAV","thanos":{"extensions":[]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMeta(b)
		if err != nil {
			return
		}
		again, err := m.Marshal()
		require.NoError(t, err)
		back, err := ParseMeta(again)
		require.NoError(t, err)
		require.Zero(t, Compare(m, back))
		require.Len(t, Visible([]Meta{m, back}), 2)
	})
}
