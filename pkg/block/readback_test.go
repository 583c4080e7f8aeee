package block

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

func TestReadBackComparesTheDigest(t *testing.T) {
	ctx := context.Background()
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
		for _, other := range []Digest{
			{index: d.index + 1, chunks: d.chunks, series: d.series},
			{index: d.index, chunks: []uint64{1}, series: d.series},
			{index: d.index, chunks: nil, series: d.series},
			{index: d.index, chunks: append(d.chunks, 1), series: d.series},
			{index: d.index, chunks: d.chunks, series: d.series + 1},
		} {
			require.ErrorIs(t, ReadBack(ctx, bkt, m, &other), ErrMismatch)
		}
		return ReadBack(ctx, bkt, m, &d)
	}))
	require.True(t, called)
	require.NoError(t, UploadChecked(ctx, bkt, folder, func(context.Context, Meta) error {
		t.Error("there is nothing to upload")
		return nil
	}))
}
