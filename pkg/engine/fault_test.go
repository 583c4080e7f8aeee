package engine

import (
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/speed"
	"github.com/millrace/millrace/pkg/wal"
)

// badDisk is a file system whose writes or syncs fail on demand.
type badDisk struct {
	wal.FS

	full, broken atomic.Bool
	unreadable   atomic.Bool // the second page of each segment
}

type badFile struct {
	wal.File

	disk *badDisk
}

func (d *badDisk) OpenFile(name string, flag int) (wal.File, error) {
	if d.full.Load() && flag&os.O_CREATE != 0 {
		return nil, syscall.ENOSPC
	}
	f, err := d.FS.OpenFile(name, flag)
	if err != nil {
		return nil, err
	}
	return &badFile{f, d}, nil
}

func (f *badFile) WriteAt(b []byte, off int64) (int, error) {
	if f.disk.full.Load() {
		n, _ := f.File.WriteAt(b[:len(b)/2], off)
		return n, syscall.ENOSPC
	}
	return f.File.WriteAt(b, off)
}

func (f *badFile) ReadAt(b []byte, off int64) (int, error) {
	if f.disk.unreadable.Load() && off < 8192 && off+int64(len(b)) > 4096 {
		return 0, &fs.PathError{Op: "read", Path: "a segment", Err: syscall.EIO}
	}
	return f.File.ReadAt(b, off)
}

func (f *badFile) Sync() error {
	if f.disk.broken.Load() {
		return syscall.EIO
	}
	return f.File.Sync()
}

// onBadDisk starts an engine whose active generation has its log on d.
func onBadDisk(t *testing.T, path string, d *badDisk) *Engine {
	t.Helper()
	e := startEngine(t, testConfig(t, path, "--storage.wal-sync=interval:10ms"))
	e.rotating.Lock()
	e.data.walOptions.FS = d
	e.rotating.Unlock()
	require.NoError(t, e.rotate())
	return e
}

func TestAFullDiskRefusesWritesUntilThereIsRoom(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	d := &badDisk{FS: wal.OS}
	e := onBadDisk(t, path, d)
	require.Equal(t, http.StatusNoContent, post(t, e.receiver, "before", 1, now).Code)

	d.full.Store(true)
	w := post(t, e.receiver, "refused", 1, now)
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.NotEmpty(t, w.Header().Get("Retry-After"))
	require.Contains(t, w.Body.String(), "write-ahead log")
	require.Contains(t, problem(e, "log"), syscall.ENOSPC.Error())
	require.Error(t, e.rotate(), "a new log cannot be made either")

	d.full.Store(false)
	require.Equal(t, http.StatusNoContent, post(t, e.receiver, "after", 1, now).Code)
	require.Empty(t, problem(e, "log"))
	stopEngine(t, e)

	e = startEngine(t, testConfig(t, path))
	require.NoError(t, e.State().Err)
	for series, n := range map[string]int{"before-0": 1, "refused-0": 0, "after-0": 1} {
		require.Len(t, read(t, e, serving.Merged, series, now, time.Minute), n, series)
	}
}

func TestWhatAFailedSyncPutAtRiskIsSealed(t *testing.T) {
	now := time.Now().UnixMilli()
	d := &badDisk{FS: wal.OS}
	e := onBadDisk(t, t.TempDir(), d)
	number := e.activeGeneration().Number
	d.broken.Store(true)
	write(t, e, "a", point{now, 1})
	eventually(t, "health says it", func() bool { return problem(e, "log sync") != "" })
	d.broken.Store(false)
	eventually(t, "the generation becomes blocks", func() bool { return problem(e, "log sync") == "" })
	require.Greater(t, e.activeGeneration().Number, number)
	require.Equal(t, []point{{now, 1}}, read(t, e, serving.Merged, "a", now, time.Minute))
}

// A log that the disk cannot read is tried again, since that may pass; in the end what can be read of it is, and it is kept aside.
func TestAPageThatCannotBeReadIsGivenUpInTheEnd(t *testing.T) {
	now := time.Now().UnixMilli()
	d := &badDisk{FS: wal.OS}
	e := onBadDisk(t, t.TempDir(), d)
	const series = 200
	for i := range series {
		write(t, e, strconv.Itoa(i), point{now, float64(i)})
	}
	g := e.activeGeneration()
	require.Greater(t, g.log.Size(), int64(3*4096))
	require.NoError(t, g.log.Sync())
	d.unreadable.Store(true)
	for range patience {
		_, err := e.replay(t.Context(), e.unreadLog(g.Number))
		require.ErrorIs(t, err, syscall.EIO)
	}
	again, err := e.replay(t.Context(), e.unreadLog(g.Number))
	require.NoError(t, err)
	require.True(t, again.damaged)
	kept := again.mem.Stats().Series
	require.Greater(t, kept, int64(series/3))
	require.Less(t, kept, int64(series))
	require.Contains(t, problem(e, "log replay"), "1 damaged regions")
}

// A record whose application panics is counted like one that cannot be decoded.
func TestARecordThatPanicsIsGivenUp(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir()))
	r := e.newReplayer(t.Context(), e.unreadLog(7), e.wireGeneration(header{Number: 7}, nil))
	r.work <- work{} // it has no record
	require.EqualValues(t, 1, r.wait())

	r = e.newReplayer(t.Context(), e.unreadLog(7), e.wireGeneration(header{Number: 8}, nil))
	r.g.mem = nil
	r.work <- work{floats: make([]speed.Floats, 3)}
	require.EqualValues(t, 3, r.wait())
}

// walFile is the one file of a kind in the newest log below path.
func walFile(t *testing.T, path, pattern string) string {
	t.Helper()
	logs, err := readLogs(path)
	require.NoError(t, err)
	require.NotEmpty(t, logs)
	g := &generation{header: header{Number: logs[len(logs)-1]}}
	files, err := filepath.Glob(filepath.Join(path, walDir, g.name(), pattern))
	require.NoError(t, err)
	require.Len(t, files, 1)
	return files[0]
}

func TestADamagedRecordIsSkippedAndItsLogKept(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	var ends []int64
	for i := range 3 {
		write(t, e, strconv.Itoa(i), point{now, float64(i)})
		ends = append(ends, e.activeGeneration().log.Size())
	}
	number := e.activeGeneration().name()
	stopEngine(t, e)

	name := walFile(t, path, "*.wal")
	raw, err := os.ReadFile(name)
	require.NoError(t, err)
	at := (ends[0] + ends[1]) / 2 // in the middle of the second
	if size := int64(len(raw)); at >= size {
		at = size / 2
	}
	raw[at] ^= 0xff
	require.NoError(t, os.WriteFile(name, raw, 0o600))

	e = startEngine(t, testConfig(t, path))
	require.ErrorContains(t, e.State().Err, "1 damaged regions")
	found := 0
	for i := range 3 {
		found += len(read(t, e, serving.Merged, strconv.Itoa(i), now, time.Minute))
	}
	require.Equal(t, 2, found)
	require.NoError(t, e.RunBatch(t.Context()))
	require.DirExists(t, filepath.Join(path, lostDir, number))
	require.NoDirExists(t, filepath.Join(path, walDir, number))
	require.ErrorContains(t, e.State().Err, lostDir, "the user has to hear of it")
}

func TestALogWithoutAHeaderIsReadAllTheSameAndKeptAside(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	var numbers []string
	for range 2 {
		e := startEngine(t, testConfig(t, path))
		write(t, e, "a", point{now - int64(len(numbers)), 1})
		numbers = append(numbers, e.activeGeneration().name())
		stopEngine(t, e)
		require.NoError(t, os.WriteFile(walFile(t, path, "header"), []byte("nonsense"), 0o600))
	}
	require.Less(t, numbers[0], numbers[1], "a number is never given out twice")
	// A folder of that name there already, as an older version may have left it, does no harm.
	require.NoError(t, os.MkdirAll(filepath.Join(path, lostDir, numbers[1], "x"), 0o750))
	e := startEngine(t, testConfig(t, path))
	write(t, e, "b", point{now, 2})
	both := []point{{now - 1, 1}, {now, 1}}
	require.Equal(t, both, read(t, e, serving.Merged, "a", now, time.Minute))
	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, both, read(t, e, serving.Batch, "a", now, time.Minute))
	require.ErrorContains(t, e.State().Err, lostDir)
	require.DirExists(t, filepath.Join(path, lostDir, numbers[0]))
	require.Equal(t, []point{{now, 2}}, read(t, e, serving.Merged, "b", now, time.Minute))
}

func TestADataPathThatCannotBeMadeIsTriedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	e := newEngine(t, testConfig(t, path))
	e.Start(http.NotFoundHandler())
	t.Cleanup(func() { stopEngine(t, e) })
	eventually(t, "health says it", func() bool { return e.State().Phase == Failed && e.State().Err != nil })
	require.ErrorContains(t, e.State().Err, path)
	require.NoError(t, os.Remove(path))
	eventually(t, "it opens by itself", func() bool { return e.State().Phase == Ready })
	require.NoError(t, e.State().Err)
}

func TestADataPathInUseIsTakenWhenItIsFree(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	first := startEngine(t, testConfig(t, path))
	write(t, first, "a", point{now, 1})

	second := newEngine(t, testConfig(t, path))
	second.Start(http.NotFoundHandler())
	t.Cleanup(func() { stopEngine(t, second) })
	eventually(t, "the second says why", func() bool { return second.State().Phase == Failed && second.State().Err != nil })
	require.ErrorContains(t, second.State().Err, "in use by another process")
	require.Equal(t, http.StatusServiceUnavailable, post(t, second.receiver, "b", 1, now).Code)
	write(t, first, "a", point{now + 1, 2})

	stopEngine(t, first)
	eventually(t, "the second opens by itself", func() bool { return second.State().Phase == Ready })
	require.Equal(t, []point{{now, 1}, {now + 1, 2}}, read(t, second, serving.Merged, "a", now+1, time.Minute))
}
