package engine

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/tombstone"
	"github.com/millrace/millrace/pkg/wal"
)

// slowDisk is a file system on which reading the logs of some generations takes until it is told to go on.
type slowDisk struct {
	wal.FS

	slow func(generation uint64) bool
	on   chan struct{}
	goOn func()
}

func newSlowDisk(slow func(uint64) bool) *slowDisk {
	d := &slowDisk{FS: wal.OS, slow: slow, on: make(chan struct{})}
	d.goOn = sync.OnceFunc(func() { close(d.on) })
	return d
}

func (d *slowDisk) OpenFile(name string, flag int) (wal.File, error) {
	n, err := strconv.ParseUint(filepath.Base(filepath.Dir(name)), 10, 64)
	if err == nil && flag == os.O_RDONLY && filepath.Ext(name) == ".wal" && d.slow(n) {
		<-d.on
	}
	return d.FS.OpenFile(name, flag)
}

func all(uint64) bool { return true }

// startReplaying starts an engine that waits a moment for a newest log of some size, and returns when it takes writes.
func startReplaying(t *testing.T, path string, disk wal.FS, args ...string) *Engine {
	t.Helper()
	cfg := testConfig(t, path, args...)
	cfg.logFS, cfg.newestLog = disk, newestLog{wait: 10 * time.Millisecond, small: 16 << 10}
	e := newEngine(t, cfg)
	e.Start(http.NotFoundHandler())
	t.Cleanup(func() { stopEngine(t, e) })
	if d, ok := disk.(*slowDisk); ok {
		t.Cleanup(d.goOn)
	}
	eventually(t, "writes are taken", func() bool { return e.activeGeneration() != nil && e.State().Phase == Replaying })
	return e
}

// waitOpened waits until an engine has all that its logs hold.
func waitOpened(t *testing.T, e *Engine) {
	t.Helper()
	select {
	case <-e.Opened():
	case <-time.After(30 * time.Second):
		require.Fail(t, "engine did not get ready", "%+v", e.State())
	}
}

// largeLog writes so much that a start does not wait for the log.
func largeLog(t *testing.T, e *Engine, at int64) {
	t.Helper()
	require.Equal(t, http.StatusNoContent, post(t, e.receiver, "many", 500, at).Code)
}

// requireLargeLog finds what largeLog wrote, and one series more.
func requireLargeLog(t *testing.T, e *Engine, at int64) {
	t.Helper()
	v, err := tryQuery(t, e, serving.Merged, "count(m)", at)
	require.NoError(t, err)
	require.InDelta(t, 501, v[0].F, 0)
}

func tryQuery(t *testing.T, e *Engine, layer serving.Layer, text string, at int64) (promql.Vector, error) {
	t.Helper()
	ctx := serving.WithLayer(t.Context(), layer)
	q, err := e.queries.NewInstantQuery(ctx, e.queryable, nil, text, time.UnixMilli(at))
	require.NoError(t, err)
	defer q.Close()
	return q.Exec(ctx).Vector()
}

// While logs are replayed, writes are taken, the batch layer answers, and no other answer is incomplete; then everything is there, in the order of acceptance.
func TestWritesAreTakenWhileLogsAreReplayed(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	ring := "--speed.max-exemplars=2"
	e := startEngine(t, testConfig(t, path, ring))
	write(t, e, "in the bucket", point{now, 1})
	require.NoError(t, e.RunBatch(t.Context()))
	largeLog(t, e, now)
	write(t, e, "a", point{now - 2, 1}, point{now - 1, 1}, point{now, 1})
	writeDescribed(t, e, "described", "old", now)
	for i := range int64(3) {
		writeExemplars(t, e, ingest.V1, "x", someExemplar(now-10+i, float64(i), "old"))
	}
	old := e.activeGeneration().Number
	stopEngine(t, e)

	disk := newSlowDisk(all)
	e = startReplaying(t, path, disk, ring)
	require.Greater(t, e.activeGeneration().Number, old)
	write(t, e, "a", point{now - 1, 2})
	require.NoError(t, e.rotate())
	write(t, e, "a", point{now, 3})
	write(t, e, "b", point{now, 3})
	writeDescribed(t, e, "described", "new", now)
	writeExemplars(t, e, ingest.V1, "x", someExemplar(now, 9, "new"))

	for _, layer := range []serving.Layer{serving.Merged, serving.Speed} {
		_, err := tryQuery(t, e, layer, "m", now)
		require.ErrorContains(t, err, "is not replayed yet")
		ctx, cancel := context.WithTimeout(serving.WithLayer(t.Context(), layer), time.Millisecond)
		err = e.Await(ctx)
		cancel()
		var later *ingest.Unavailable
		require.ErrorAs(t, err, &later)
		require.Positive(t, later.RetryAfter)
	}
	require.NoError(t, e.Await(serving.WithLayer(t.Context(), serving.Batch)))
	v, err := tryQuery(t, e, serving.Batch, "m", now)
	require.NoError(t, err)
	require.Len(t, v, 1)
	_, err = e.ExemplarQueryable().ExemplarQuerier(t.Context())
	require.ErrorIs(t, err, errApart)
	l := e.Layers()
	require.Equal(t, Replaying, l.Phase)
	require.Equal(t, 1, l.Replay.Logs)
	require.Positive(t, l.Replay.Bytes)
	var states []string
	for _, g := range l.Generations {
		states = append(states, g.State)
	}
	require.Equal(t, []string{"replaying", "sealed", "active"}, states)
	deleted := make(chan error)
	go func() {
		deleted <- e.DeleteSeries(t.Context(), Deletion{
			Selectors: []tombstone.Selector{{labels.MustNewMatcher(labels.MatchEqual, "series", "many-0")}}, MinTime: minTime, MaxTime: maxTime,
		})
	}()
	require.Empty(t, blockFolders(t, path), "nothing later becomes a block first")

	disk.goOn()
	require.NoError(t, e.Await(t.Context()))
	require.NoError(t, <-deleted)
	check := func() {
		t.Helper()
		require.Equal(t, []point{{now - 2, 1}, {now - 1, 2}, {now, 3}}, read(t, e, serving.Merged, "a", now, time.Minute))
		require.Equal(t, []point{{now, 3}}, read(t, e, serving.Merged, "b", now, time.Minute))
		require.Equal(t, []point{{now, 1}}, read(t, e, serving.Merged, "many-1", now, time.Minute))
		require.Empty(t, read(t, e, serving.Merged, "many-0", now, time.Minute))
		require.Equal(t, counter("new"), e.Metadata()["described"])
		require.Equal(t, "new", readExemplars(t, e)["x"][1].Labels.Get("trace_id"))
	}
	check()
	require.Nil(t, e.Layers().Replay)
	require.NoError(t, e.RunBatch(t.Context()))
	check()
	require.Empty(t, e.Layers().Problems)
}

// Who is killed again and again before the logs are read leaves no more of them behind, and nothing is lost or there twice.
func TestKilledWhileReplaying(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	largeLog(t, e, now)
	first := e.activeGeneration().Number
	const kills = 4
	for i := range kills {
		path = copyOf(t, path)
		e = startReplaying(t, path, newSlowDisk(func(number uint64) bool { return number == first }))
		write(t, e, "a", point{now - kills + int64(i), float64(i)})
	}
	logs, err := readLogs(path)
	require.NoError(t, err)
	require.Equal(t, []uint64{first, first + 1}, logs)
	killed := copyOf(t, path)
	e = startEngine(t, testConfig(t, killed))
	require.Equal(t, []point{{now - 4, 0}, {now - 3, 1}, {now - 2, 2}, {now - 1, 3}}, read(t, e, serving.Merged, "a", now, time.Minute))
	requireLargeLog(t, e, now)
}

// A log that cannot be read is tried again, without those who ask waiting for it; writes are taken.
func TestALogThatCannotBeReadStopsNoWrites(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	largeLog(t, e, now)
	stopEngine(t, e)

	disk := &badDisk{FS: wal.OS}
	disk.unreadable.Store(true)
	e = startReplaying(t, path, disk)
	write(t, e, "a", point{now, 1})
	eventually(t, "health says it", func() bool { return problem(e, "replay") != "" })
	require.ErrorContains(t, e.Await(t.Context()), "input/output error")
	disk.unreadable.Store(false)
	waitOpened(t, e)
	require.Empty(t, problem(e, "replay"))
	requireLargeLog(t, e, now)
}

// A stop ends a replay, and whoever waits for it.
func TestStopWhileReplaying(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	largeLog(t, e, now)
	stopEngine(t, e)

	disk := newSlowDisk(all)
	e = startReplaying(t, path, disk)
	write(t, e, "a", point{now, 1})
	waits := make(chan error)
	go func() { waits <- e.Await(t.Context()) }()
	go func() { waits <- e.RunBatch(t.Context()) }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	e.Stop(ctx)
	require.Error(t, <-waits)
	require.Error(t, <-waits)
	require.Error(t, tryWrite(t.Context(), e, "a", point{now, 2}))
	disk.goOn()
	stopEngine(t, e)

	e = startEngine(t, testConfig(t, path))
	require.Equal(t, []point{{now, 1}}, read(t, e, serving.Merged, "a", now, time.Minute))
}

// A newest log that cannot go on is not waited for, however small it is: reading the others may take long.
func TestANewestLogThatDoesNotGoOnKeepsNoWritesWaiting(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	largeLog(t, e, now)
	first := e.activeGeneration().Number
	require.NoError(t, e.rotate())
	newest := e.activeGeneration()
	path = copyOf(t, path)
	require.NoError(t, os.WriteFile(filepath.Join(path, walDir, newest.name(), "header"), []byte("nonsense"), 0o600))

	disk := newSlowDisk(func(number uint64) bool { return number == first })
	e = startReplaying(t, path, disk)
	require.Greater(t, e.activeGeneration().Number, newest.Number)
	write(t, e, "a", point{now, 1})
	disk.goOn()
	waitOpened(t, e)
	requireLargeLog(t, e, now)
}

// How long a replay will take is told by all that was read since it began, not by the log alone that is just being read.
func TestLogsThatWereReadCountForTheTimeThatIsLeft(t *testing.T) {
	e := newEngine(t, testConfig(t, t.TempDir()))
	logs := []*unreadLog{{number: 1, size: 1000}, {number: 2, size: 1000}}
	e.unread, e.replaying = logs, time.Now().Add(-10*time.Second)
	logs[1].read.Store(990)
	e.found(logs[1], nil)
	logs[0].read.Store(100)
	left, failed := e.replayLeft()
	require.False(t, failed)
	require.InDelta(t, 10*900/1100., left.Seconds(), 1)
}

// panickingDisk is a file system on which reading a log panics until it is mended.
type panickingDisk struct {
	wal.FS

	mended   atomic.Bool
	panicked atomic.Int64
}

func (d *panickingDisk) OpenFile(name string, flag int) (wal.File, error) {
	if flag == os.O_RDONLY && filepath.Ext(name) == ".wal" && !d.mended.Load() {
		d.panicked.Add(1)
		panic("on purpose")
	}
	return d.FS.OpenFile(name, flag)
}

// A replay that panics begins anew, keeps no writes waiting, and does not leave the collector lavish.
func TestAReplayThatPanics(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	write(t, e, "a", point{now - 1, 1})
	stopEngine(t, e)

	disk := &panickingDisk{FS: wal.OS}
	e = startReplaying(t, path, disk)
	write(t, e, "a", point{now, 2})
	eventually(t, "it is tried again", func() bool { return disk.panicked.Load() > 1 })
	collector.mu.Lock()
	lavish := collector.lavish
	collector.mu.Unlock()
	require.LessOrEqual(t, lavish, 1)
	disk.mended.Store(true)
	waitOpened(t, e)
	require.Equal(t, []point{{now - 1, 1}, {now, 2}}, read(t, e, serving.Merged, "a", now, time.Minute))
}

// brittleDisk is a file system on which a log that was read back panics, once, when it is opened to go on.
type brittleDisk struct {
	wal.FS

	headers atomic.Int64 // that were read
}

func (d *brittleDisk) OpenFile(name string, flag int) (wal.File, error) {
	if filepath.Base(name) == "header" && flag == os.O_RDONLY && d.headers.Add(1) == 2 {
		panic("on purpose")
	}
	return d.FS.OpenFile(name, flag)
}

// A log whose opening panics is not gone on with: writes are taken by a new generation, and what was read of the old one becomes blocks.
func TestALogThatPanicsIsNotGoneOnWith(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	write(t, e, "a", point{now - 1, 1})
	old := e.activeGeneration().Number
	stopEngine(t, e)

	disk := &brittleDisk{FS: wal.OS}
	cfg := testConfig(t, path)
	cfg.logFS = disk
	e = startEngine(t, cfg)
	require.Greater(t, e.activeGeneration().Number, old)
	write(t, e, "a", point{now, 2})
	require.Equal(t, []point{{now - 1, 1}, {now, 2}}, read(t, e, serving.Merged, "a", now, time.Minute))
	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, []point{{now - 1, 1}, {now, 2}}, read(t, e, serving.Batch, "a", now, time.Minute))
	require.Len(t, e.Layers().Generations, 1, "the active one")
}
