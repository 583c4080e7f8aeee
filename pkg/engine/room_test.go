package engine

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/batch"
	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/serving"
)

// otherDisk gives the data path a disk of 100 GB with as much free as is stored in what it returns.
func otherDisk(t *testing.T) *atomic.Int64 {
	var free atomic.Int64
	free.Store(50 << 30)
	t.Cleanup(func() { diskSpace = freeBytes })
	diskSpace = func(string) (int64, int64, error) { return free.Load(), 100 << 30, nil }
	return &free
}

func TestACompactionNeedsRoomOnTheDisk(t *testing.T) {
	free := otherDisk(t)
	now := time.Now().UnixMilli()
	cfg := testConfig(t, t.TempDir())
	e := startEngine(t, cfg)
	write(t, e, "a", point{now, 1})
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
	require.NoError(t, e.uploadOnce(t.Context()))

	free.Store(reserveBytes + 100)
	require.ErrorContains(t, e.RunBatch(t.Context()), "too little room")
	require.Equal(t, batch.Failed, e.Layers().Jobs[0].State)
	require.Contains(t, e.Layers().Jobs[0].Error, "which has 100 to give")
	require.Equal(t, http.StatusNoContent, post(t, e.receiver, "b", 1, now).Code, "there still is room for samples")
	require.Equal(t, []point{{now, 1}}, read(t, e, serving.Merged, "a", now, time.Minute))

	// The command is as careful as the engine.
	bkt := e.data.bucket
	o := batch.Options{Bucket: bkt, Lister: block.NewLister(bkt), ScratchDir: t.TempDir()}
	_, err := RunJobs(t.Context(), o, true)
	require.ErrorContains(t, err, "too little room")

	free.Store(50 << 30)
	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, batch.Done, e.Layers().Jobs[0].State)
	require.Equal(t, []point{{now, 1}}, read(t, e, serving.Batch, "a", now, time.Minute))
}

func littleMemory(t *testing.T, path string, limit int64) Config {
	cfg := testConfig(t, path)
	cfg.Speed.MemoryLimit = limit
	return cfg
}

func TestTheLimitOfMemory(t *testing.T) {
	now := time.Now().UnixMilli()
	e := startEngine(t, littleMemory(t, t.TempDir(), 32<<20))
	e.flushing.Lock() // blocks cannot be written as fast as samples arrive
	w := fill(t, e, now)
	inMemory := func() (held, most int64, sealed int) {
		for _, g := range e.Layers().Generations {
			held, most = held+g.Bytes, max(most, g.Bytes)
			if g.State == "sealed" {
				sealed++
			}
		}
		return held, most, sealed
	}
	held, most, sealed := inMemory()
	e.flushing.Unlock()
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.NotEmpty(t, w.Header().Get("Retry-After"))
	require.Contains(t, w.Body.String(), "--speed.memory-limit")
	require.Positive(t, counted(t, e, "millrace_writes_refused_total", "memory"))
	require.Positive(t, sealed)
	require.Greater(t, held, int64(32<<20))
	require.Less(t, held, int64(40<<20), "one request too many, not more")
	require.Less(t, most, held, "what is refused was spread over several generations")

	eventually(t, "writes are accepted again", func() bool { return post(t, e.receiver, "again", 1, now).Code == http.StatusNoContent })
	require.Len(t, read(t, e, serving.Merged, "fill-0-0", now, time.Minute), 1)
	require.Len(t, read(t, e, serving.Merged, "again-0", now, time.Minute), 1)
	eventually(t, "health is well again", func() bool { return problem(e, "memory") == "" })
}

func TestWhatIsInheritedGoesBeforeWritesAreRefused(t *testing.T) {
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, t.TempDir()))
	require.Equal(t, http.StatusNoContent, post(t, e.receiver, "before", 500, now).Code)
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
	require.Equal(t, http.StatusNoContent, post(t, e.receiver, "after", 1, now).Code)
	stats := e.activeGeneration().mem.Stats()
	require.Positive(t, stats.Inherited)

	e.cfg.Speed.MemoryLimit = stats.Bytes + stats.Inherited
	require.NoError(t, e.memoryRefusal())
	require.Equal(t, stats.Inherited, e.activeGeneration().mem.Stats().Inherited)
	e.cfg.Speed.MemoryLimit--
	require.NoError(t, e.memoryRefusal())
	require.Zero(t, e.activeGeneration().mem.Stats().Inherited)
}

// TestAGenerationFoundTooLargeIsSealed starts with less memory than what the log holds takes: no write is accepted that would notice it.
func TestAGenerationFoundTooLargeIsSealed(t *testing.T) {
	now := time.Now().UnixMilli()
	path := t.TempDir()
	e := startEngine(t, testConfig(t, path))
	for i := range 40 {
		require.Equal(t, http.StatusNoContent, post(t, e.receiver, strconv.Itoa(i), 500, now).Code)
	}
	number, held := e.activeGeneration().Number, e.activeGeneration().mem.Stats().Bytes
	stopEngine(t, e)

	e = startEngine(t, littleMemory(t, path, held/2))
	require.Equal(t, number, e.Layers().Generations[0].Number)
	require.Equal(t, http.StatusServiceUnavailable, post(t, e.receiver, "refused", 1, now).Code)
	eventually(t, "it is sealed", func() bool { return post(t, e.receiver, "again", 1, now).Code == http.StatusNoContent })
	require.Greater(t, e.activeGeneration().Number, number)
}
