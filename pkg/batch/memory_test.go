//go:build unix

package batch

import (
	"context"
	"io"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

// remote hides that a bucket is a folder, so that blocks are not mapped but read by requests.
type remote struct{ objstore.Bucket }

func (r remote) GetRange(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	return r.Bucket.GetRange(ctx, name, off, n)
}

// TestMemoryIsBounded compacts a day, and then one of eight times as many series, and expects about the same memory: what a job
// holds does not grow as the blocks do. It counts the heap above what was there before, with a garbage
// collector that is told to be thorough.
func TestMemoryIsBounded(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	peaks, sizes := map[int]uint64{}, map[int]int64{}
	for _, series := range []int{500, 4000} {
		dir := fastDir(t)
		metas := dayOfBlocks(t, dir, series)
		for _, m := range metas {
			sizes[series] += m.Size()
		}
		folder, err := block.NewDirBucket(dir)
		require.NoError(t, err)
		w := newWorld(t, remote{folder}, time.UnixMilli(metas[11].MaxTime).Add(hour))
		r := w.runner(func(o *Options) {
			o.Cache = block.NewCache(0, nil)
			o.Config.MemoryLimit = minMemory
		})
		u := startUsage()
		s := w.run(r, false)
		_, _, peaks[series] = u.end()
		require.Equal(t, 1, s.Jobs)
	}
	t.Logf("peaks %v of blocks of %v bytes", peaks, sizes)
	require.Less(t, peaks[4000], uint64(minMemory)*3/2, "the limit holds, but for what has not been collected yet")
	require.Less(t, peaks[4000], 3*peaks[500], "eight times the input")
}
