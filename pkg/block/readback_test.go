package block

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

func TestReadBackComparesTheDigest(t *testing.T) {
	ctx := context.Background()
	app := func(c chunkenc.Chunk, v float64) chunks.Meta {
		a, err := c.Appender()
		require.NoError(t, err)
		a.Append(0, 1000, v)
		return chunks.Meta{Chunk: c, MinTime: 1000, MaxTime: 1000}
	}
	one, other := app(chunkenc.NewXORChunk(), 1), app(chunkenc.NewXORChunk(), 2)
	sum := func(lset labels.Labels, chks ...chunks.Meta) uint64 {
		var d Digest
		d.add(lset, chks)
		return d.Sum()
	}
	a, b := labels.FromStrings("a", "b"), labels.FromStrings("a", "c")
	later := one
	later.MaxTime++
	sums := map[uint64]bool{
		0: true, sum(a, one): true, sum(b, one): true, sum(a, other): true, sum(a, later): true, sum(a, one, other): true, sum(a, other, one): true,
	}
	require.Len(t, sums, 7, "all differ")

	var d Digest
	dir := t.TempDir()
	in := randomInput(rand.New(rand.NewPCG(1, 1)), 300, 10*hour, 12*hour)
	m, err := Write(ctx, dir, testMeta(t, 10*hour, 12*hour, 1, 1, 1), []Input{in}, WriteOptions{Check: true, Digest: &d})
	require.NoError(t, err)
	bkt := objstore.NewInMemBucket()
	called := false
	folder := filepath.Join(dir, m.ULID.String())
	require.NoError(t, UploadChecked(ctx, bkt, folder, func(ctx context.Context, m Meta) error {
		called = true
		there, err := bkt.Exists(ctx, m.ULID.String()+"/"+MetaFilename)
		require.NoError(t, err)
		require.False(t, there, "what is not checked is no block")
		require.ErrorIs(t, ReadBack(ctx, bkt, m, d.Sum()+1), ErrMismatch)
		return ReadBack(ctx, bkt, m, d.Sum())
	}))
	require.True(t, called)
	require.NoError(t, UploadChecked(ctx, bkt, folder, func(context.Context, Meta) error {
		t.Error("there is nothing to upload")
		return nil
	}))
}
