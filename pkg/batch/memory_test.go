//go:build unix

package batch

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
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

// runWithLeastMemory compacts the blocks of a folder, as if they were in an object store, and returns the peak of the heap.
func runWithLeastMemory(t *testing.T, dir string, metas []block.Meta) (s Summary, peak uint64) {
	t.Helper()
	folder, err := block.NewDirBucket(dir)
	require.NoError(t, err)
	w := newWorld(t, remote{folder}, time.UnixMilli(metas[len(metas)-1].MaxTime).Add(hour))
	r := w.runner(func(o *Options) {
		o.Cache = block.NewCache(0, nil)
		o.Config.MemoryLimit = minMemory
	})
	u := startUsage()
	s = w.run(r, false)
	_, _, peak = u.end()
	return s, peak
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
		var s Summary
		s, peaks[series] = runWithLeastMemory(t, dir, metas)
		require.Equal(t, 1, s.Jobs)
	}
	t.Logf("peaks %v of blocks of %v bytes", peaks, sizes)
	require.Less(t, peaks[4000], uint64(minMemory)*3/2, "the limit holds, but for what has not been collected yet")
	require.Less(t, peaks[4000], 3*peaks[500], "eight times the input")
}

// TestMemoryIsBoundedWithManyLabels compacts blocks in which each series has a label value of its own: what is held of their indexes
// together is far beyond the limit.
func TestMemoryIsBoundedWithManyLabels(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	dir := fastDir(t)
	var metas []block.Meta
	var headers int64
	for i := range 12 {
		from := time.UnixMilli(0).Add(1000*day + time.Duration(i)*2*hour)
		m := testMeta(fmt.Sprint(i), 1, uint64(i), uint64(i), from, from, from.Add(2*hour))
		in := fleet{series: 22_000, mint: m.MinTime, interval: 15_000, samples: 2, own: strings.Repeat("long", 30)}
		m, err := block.Write(context.Background(), dir, m, []block.Input{in}, block.WriteOptions{SegmentSize: 64 << 20})
		require.NoError(t, err)
		require.Greater(t, m.HeaderSize(), int64(22_000*2*120), "symbols and postings table have each value")
		headers += m.HeaderSize()
		metas = append(metas, m)
	}
	require.Greater(t, headers, int64(minMemory*3/4), "more than the half that inputs may take")
	s, peak := runWithLeastMemory(t, dir, metas)
	t.Logf("peak %d with %d bytes of headers; %s", peak, headers, s)
	require.Greater(t, s.Jobs, 1, "in several steps")
	require.Less(t, peak, uint64(minMemory)*3/2)
}
