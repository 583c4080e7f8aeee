package engine

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// heldMemory is what generations hold, whether or not their logs were read to the end.
func heldMemory(e *Engine) (held int64) {
	for _, g := range e.Layers().Generations {
		held += g.Bytes
	}
	return held
}

// What logs will take counts before they are read: each process that is killed while it reads would leave as much as the limit once more.
func TestLogsThatAreNotReplayedCountForTheLimitOfMemory(t *testing.T) {
	const limit = 16 << 20
	now := time.Now().UnixMilli()
	path := t.TempDir()
	e := startEngine(t, littleMemory(t, path, limit))
	e.flushing.Lock() // nothing becomes blocks
	fill(t, e, now)
	e.flushing.Unlock()
	killed := func() string { return copyOf(t, path) }
	slow := newSlowDisk(all)
	for range 4 {
		path = killed()
		e = startReplaying(t, path, slow, "--speed.memory-limit=16MB")
		w := fill(t, e, now)
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.NotEmpty(t, w.Header().Get("Retry-After"))
		require.Contains(t, w.Body.String(), "in logs that are not replayed yet")
		require.Contains(t, w.Body.String(), "--speed.memory-limit")
	}

	path = killed()
	disk := newSlowDisk(all)
	e = startReplaying(t, path, disk, "--speed.memory-limit=16MB")
	e.flushing.Lock()
	disk.goOn()
	waitOpened(t, e)
	held := heldMemory(e)
	e.flushing.Unlock()
	require.Greater(t, held, int64(limit))
	require.Less(t, held, int64(2*limit), "not a limit more for each start")
	eventually(t, "writes are taken when the logs are blocks", func() bool { return post(t, e.receiver, "again", 1, now).Code == http.StatusNoContent })
	eventually(t, "health is well again", func() bool { return problem(e, "memory") == "" })
}

// A log with what a generation may hold keeps no writes waiting while it is replayed.
func TestOneFullLogLeavesMemoryForWrites(t *testing.T) {
	now := time.Now().UnixMilli()
	path := t.TempDir()
	e := startEngine(t, littleMemory(t, path, 32<<20))
	for i := 0; e.activeGeneration().mem.Stats().Bytes < 7<<20; i++ {
		require.Equal(t, http.StatusNoContent, post(t, e.receiver, fmt.Sprint("many", i), 500, now).Code)
	}
	path = copyOf(t, path)
	disk := newSlowDisk(all)
	e = startReplaying(t, path, disk, "--speed.memory-limit=32MB")
	for i := range 40 {
		require.Equal(t, http.StatusNoContent, post(t, e.receiver, fmt.Sprint("more", i), 500, now).Code)
	}
	disk.goOn()
	waitOpened(t, e)
	require.NoError(t, e.RefusesWrites())
}

// The room for the blocks of logs is kept free before they are read.
func TestLogsThatAreNotReplayedCountForTheDisk(t *testing.T) {
	free := otherDisk(t)
	now := time.Now().UnixMilli()
	path := t.TempDir()
	e := startEngine(t, testConfig(t, path))
	for i := range 20 {
		require.Equal(t, http.StatusNoContent, post(t, e.receiver, fmt.Sprint("many", i), 2000, now).Code)
	}
	e.measureDisk()
	free.Store(reserveBytes + e.disk.Load().pending/2)

	path = copyOf(t, path)
	disk := newSlowDisk(all)
	e = startReplaying(t, path, disk)
	w := post(t, e.receiver, "refused", 1, now)
	require.Equal(t, http.StatusServiceUnavailable, w.Code, "by the first write already")
	require.NotEmpty(t, w.Header().Get("Retry-After"))
	require.Contains(t, w.Body.String(), "are kept free")
	disk.goOn()
	waitOpened(t, e)
	e.measureDisk()
	require.Equal(t, http.StatusServiceUnavailable, post(t, e.receiver, "refused", 1, now).Code)
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
	eventually(t, "writes are taken when the logs are blocks", func() bool { return post(t, e.receiver, "again", 1, now).Code == http.StatusNoContent })
}

func TestWhatALogIsExpectedToTake(t *testing.T) {
	const mb = 1 << 20
	for _, tt := range []struct {
		name       string
		size, read int64
		ratio      float64
		want       int64
	}{
		{name: "nothing read", size: 10 * mb, ratio: 2, want: 20 * mb},
		{name: "half of it read, into nothing yet", size: 10 * mb, read: 5 * mb, ratio: 2, want: 10 * mb},
		{name: "no more than a generation that is full", size: 1000 * mb, ratio: 2, want: 100 * mb},
		{name: "read", size: 10 * mb, read: 10 * mb, ratio: 2},
		{name: "more read than it seemed", size: 10 * mb, read: 11 * mb, ratio: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &unreadLog{size: tt.size}
			l.read.Store(tt.read)
			require.Equal(t, tt.want, l.expected(tt.ratio, 100*mb))
		})
	}
}

// The guess gives way to what logs were measured to take, those that were read to the end included.
func TestWhatLogsTakeIsMeasured(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir()))
	largeLog(t, e, time.Now().UnixMilli())
	mem := e.activeGeneration().mem
	was := mem.Stats().Bytes
	e.mu.Lock()
	defer e.mu.Unlock()
	require.InDelta(t, guessedRatio, e.memoryRatio(), 0, "what was not read back tells nothing")

	half := &unreadLog{number: 2, size: 2 * guessedWeight}
	half.read.Store(guessedWeight)
	half.mem.Store(mem)
	e.unread = []*unreadLog{{number: 1, size: guessedWeight}, half}
	one := float64(guessedRatio*guessedWeight+was) / (2 * guessedWeight)
	require.InDelta(t, one, e.memoryRatio(), 1e-9)
	takes := e.expectedMemory()
	require.InDelta(t, float64(was)+2*one*guessedWeight, takes, 2)

	e.generations = append(e.generations, &generation{mem: mem, replayed: 1, replayedSize: guessedWeight})
	two := float64(guessedRatio*guessedWeight+2*was) / (3 * guessedWeight)
	require.InDelta(t, two, e.memoryRatio(), 1e-9)
	e.unread, e.generations = nil, e.generations[:1]
	require.Zero(t, e.expectedMemory())
}
