package wal

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// failing lets operations on names that end in suffix fail, the n-th to the last of them (counted from 1).
func failing(op, suffix string, from, to int, err error) func(string, string) error {
	n := 0
	return func(o, name string) error {
		if o != op || !strings.HasSuffix(name, suffix) {
			return nil
		}
		if n++; n >= from && n <= to {
			return err
		}
		return nil
	}
}

func both(a, b func(string, string) error) func(string, string) error {
	return func(op, name string) error { return errors.Join(a(op, name), b(op, name)) }
}

// The disk fills up, or fails, while a log is written, and has room again later.
func TestFullDisk(t *testing.T) {
	const always = 1000
	for _, row := range []struct {
		name string
		// room is what the disk has beyond what is used, in bytes; 0 is no limit.
		room  int64
		fault func() func(op, name string) error
		// refused of "1" to "5", which are written in this state behind "0"; "6" is written when it is over.
		refused  []string
		segments int
	}{
		{name: "not a byte left", room: 1, refused: []string{"1", "2", "3", "4", "5"}, segments: 1},
		{name: "in the middle of a frame", room: frameHeaderSize + 1 + 10, refused: []string{"2", "3", "4", "5"}, segments: 1},
		{
			name: "and what was written cannot be cut off", room: 10, fault: func() func(string, string) error { return failing("truncate", "", 1, always, syscall.EIO) },
			refused: []string{"1", "2", "3", "4", "5"}, segments: 2,
		},
		{
			name: "a short write that cannot be cut off, once",
			fault: func() func(string, string) error {
				return both(failing("write", "", 2, 2, shortWrite(20)), failing("truncate", "", 1, always, syscall.EIO))
			}, refused: []string{"2"}, segments: 2,
		},
		{
			// What is behind the good end then looks like a record that was acknowledged.
			name: "a whole write that is said to have failed and cannot be cut off",
			fault: func() func(string, string) error {
				return both(failing("write", "", 2, 2, shortWrite(1000)), failing("truncate", "", 1, always, syscall.EIO))
			}, refused: []string{"2"}, segments: 2,
		},
		{name: "a whole write that is said to have failed", fault: func() func(string, string) error { return failing("write", "", 2, 2, shortWrite(1000)) }, refused: []string{"2"}, segments: 1},
		{name: "an error without a byte written", fault: func() func(string, string) error { return failing("write", "", 2, 3, syscall.ENOSPC) }, refused: []string{"2", "3"}, segments: 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, every := range []bool{true, false} {
				fsys := newMemFS()
				o := testOptions(fsys)
				o.SyncEvery, o.SyncInterval = every, time.Hour
				o.Metrics = NewMetrics(nil)
				l := mustCreate(t, o)
				mustAppend(t, l, "0")
				want := []string{"0"}

				if row.room > 0 {
					fsys.setCapacity(fsys.used() + row.room)
				}
				if row.fault != nil {
					fsys.setFault(row.fault())
				}
				var refused []string
				for i := 1; i <= 5; i++ {
					r := fmt.Sprint(i)
					index, err := l.Append([]byte(r))
					require.Equal(t, uint64(i), index, "a record that fails uses up its index")
					if err != nil {
						refused = append(refused, r)
						continue
					}
					want = append(want, r)
				}
				require.Equal(t, row.refused, refused)
				require.Equal(t, float64(len(refused)), testutil.ToFloat64(o.Metrics.writeFailures))

				fsys.setCapacity(0)
				fsys.setFault(nil)
				mustAppend(t, l, "6")
				want = append(want, "6")
				fsys = fsys.kill()
				o.FS = fsys
				records, stats := replayAll(t, o)
				require.Equal(t, want, records)
				require.Zero(t, stats.Lost)
				require.Equal(t, row.segments, stats.Segments)
			}
		})
	}
}

func TestEveryTicketOfAGroupGetsItsError(t *testing.T) {
	fsys := newMemFS()
	o := testOptions(fsys)
	l := mustCreate(t, o)
	mustAppend(t, l, "before")
	fsys.setFault(failing("write", "", 1, 1, syscall.ENOSPC))
	var tickets []Ticket
	for range 5 {
		tickets = append(tickets, l.Enqueue([]byte("x")))
	}
	for _, ticket := range tickets {
		require.ErrorIs(t, ticket.Wait(), syscall.ENOSPC)
	}
	mustAppend(t, l, "after")
	require.NoError(t, l.Close())
	records, stats := replayAll(t, o)
	require.Equal(t, []string{"before", "after"}, records)
	require.Zero(t, stats.Lost)
}

func TestANewSegmentThatCannotBeBegun(t *testing.T) {
	for _, row := range []struct {
		name    string
		fault   func(op, name string) error
		refused int
	}{
		{name: "no file: the full one is used", fault: failing("create", segmentSuffix, 1, 3, syscall.EMFILE)},
		{name: "no room for its header", fault: failing("write", "00000002.wal", 1, 1, syscall.ENOSPC), refused: 1},
		{
			name:  "no room for its header, and it cannot be deleted",
			fault: both(failing("write", "00000002.wal", 1, 1, shortWrite(1000)), failing("remove", "", 1, 1, syscall.EIO)), refused: 1,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			fsys := newMemFS()
			o := testOptions(fsys)
			o.SegmentSize = 1
			l := mustCreate(t, o)
			mustAppend(t, l, "0")
			fsys.setFault(row.fault)
			want, refused := []string{"0"}, 0
			for i := 1; i < 8; i++ {
				r := fmt.Sprint(i)
				if _, err := l.Append([]byte(r)); err != nil {
					refused++
					continue
				}
				want = append(want, r)
			}
			require.Equal(t, row.refused, refused)
			require.NoError(t, l.Close())
			records, stats := replayAll(t, o)
			require.Equal(t, want, records)
			require.Zero(t, stats.Lost)
		})
	}
}

func TestAFailedFsync(t *testing.T) {
	const always = 1000
	seg := failing("sync", seg1, 1, always, syscall.EIO)
	for _, row := range []struct {
		name      string
		every     bool
		forgetful bool
		fault     func() func(op, name string) error
		// of "1" and "2", which are written behind "0", which is synced
		refused   bool
		rewritten bool
		// after a power cut
		want []string
	}{
		{name: "SyncEvery: rewritten", every: true, fault: func() func(string, string) error { return seg }, rewritten: true, want: []string{"0", "1", "2", "3"}},
		{name: "rewritten", fault: func() func(string, string) error { return seg }, rewritten: true, want: []string{"0", "1", "2", "3"}},
		{
			name: "SyncEvery: cannot be rewritten", every: true, refused: true, want: []string{"0", "3"},
			fault: func() func(string, string) error {
				return both(seg, failing("create", tmpSuffix, 1, always, syscall.ENOSPC))
			},
		},
		{
			name: "cannot be rewritten", want: []string{"0", "3"},
			fault: func() func(string, string) error {
				return both(seg, failing("create", tmpSuffix, 1, always, syscall.ENOSPC))
			},
		},
		{
			name: "the copy cannot be synced", want: []string{"0", "3"},
			fault: func() func(string, string) error {
				return both(seg, failing("sync", tmpSuffix, 1, always, syscall.EIO))
			},
		},
		{
			name: "the copy cannot be renamed", want: []string{"0", "3"},
			fault: func() func(string, string) error { return both(seg, failing("rename", "", 1, always, syscall.EIO)) },
		},
		{
			name: "the copy cannot be written", want: []string{"0", "3"},
			fault: func() func(string, string) error {
				return both(seg, failing("write", tmpSuffix, 2, always, syscall.ENOSPC))
			},
		},
		{name: "the kernel dropped the pages", forgetful: true, fault: func() func(string, string) error { return seg }, want: []string{"0", "3"}},
		{name: "SyncEvery: the kernel dropped the pages", every: true, forgetful: true, refused: true, fault: func() func(string, string) error { return seg }, want: []string{"0", "3"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			fsys := newMemFS()
			fsys.forgetful = row.forgetful
			o := testOptions(fsys)
			o.SyncEvery, o.SyncInterval = row.every, time.Hour
			o.Metrics = NewMetrics(nil)
			var failures []*SyncError
			o.OnSyncFailure = func(e *SyncError) { failures = append(failures, e) }
			var logged bytes.Buffer
			o.Logger = slog.New(slog.NewTextHandler(&logged, nil))
			l := mustCreate(t, o)
			mustAppend(t, l, "0")
			require.NoError(t, l.Sync())

			fsys.setFault(row.fault())
			tickets := []Ticket{l.Enqueue([]byte("1")), l.Enqueue([]byte("2"))}
			for _, ticket := range tickets {
				if row.refused {
					require.ErrorIs(t, ticket.Wait(), syscall.EIO)
				} else {
					require.NoError(t, ticket.Wait())
				}
			}
			serr := l.Sync()
			require.Len(t, failures, 1, "it is heard of once")
			require.Equal(t, SyncError{
				Dir: testDir, Segment: seg1, Records: 2, Bytes: 2 * (frameHeaderSize + 1),
				Rewritten: row.rewritten, Err: failures[0].Err,
			}, *failures[0])
			require.ErrorIs(t, failures[0], syscall.EIO)
			require.Equal(t, 1, strings.Count(logged.String(), "fsync"), logged.String())

			// The log goes on.
			fsys.setFault(nil)
			mustAppend(t, l, "3")
			atRisk := !row.rewritten && !row.refused
			if atRisk {
				require.ErrorIs(t, serr, syscall.EIO)
				require.ErrorIs(t, l.Sync(), syscall.EIO, "what was acknowledged is still at risk")
				require.Equal(t, 2.0, testutil.ToFloat64(o.Metrics.atRisk))
			} else {
				require.NoError(t, serr)
				require.NoError(t, l.Sync())
				require.Zero(t, testutil.ToFloat64(o.Metrics.atRisk))
			}
			_ = l.Close()

			if atRisk && !row.forgetful {
				records, stats := replayAll(t, o)
				require.Equal(t, []string{"0", "1", "2", "3"}, records, "as long as the machine lives nothing is lost")
				require.Zero(t, stats.Lost)
			}
			o.FS = powerCut(fsys)
			records, stats := replayAll(t, o)
			require.Equal(t, row.want, records)
			if atRisk {
				require.Equal(t, Lost{1, 2, 2 * (frameHeaderSize + 1)}, stats.Lost, "replay knows what is missing")
			} else {
				require.Zero(t, stats.Lost)
			}
		})
	}
}

// powerCut leaves what is durable and nothing else.
func powerCut(m *memFS) *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	return &memFS{root: m.root.durable()}
}

func (n *memNode) durable() *memNode {
	if !n.dir {
		return &memNode{data: bytes.Clone(n.disk), disk: bytes.Clone(n.disk)}
	}
	c := newMemDir()
	for name, child := range n.diskChildren {
		c.children[name] = child.durable()
		c.diskChildren[name] = c.children[name]
	}
	return c
}

func TestAFsyncThatKeepsFailingDoesNotFillTheFolder(t *testing.T) {
	fsys := newMemFS()
	o := testOptions(fsys)
	l := mustCreate(t, o)
	fsys.setFault(failing("sync", "", 1, 1000, syscall.EIO))
	for range 20 {
		_, err := l.Append([]byte("x"))
		require.ErrorIs(t, err, syscall.EIO)
	}
	require.Equal(t, []string{headerName}, fsys.names(t, testDir))
	fsys.setFault(nil)
	mustAppend(t, l, "y")
	require.NoError(t, l.Close())
	records, stats := replayAll(t, o)
	require.Equal(t, []string{"y"}, records)
	require.Zero(t, stats.Lost)
}

func TestOpenSyncsWhatAnEarlierProcessWrote(t *testing.T) {
	fsys := newMemFS()
	o := testOptions(fsys)
	o.SyncEvery, o.SyncInterval = false, time.Hour
	l := mustCreate(t, o)
	mustAppend(t, l, "a")
	fsys = fsys.kill()
	require.Error(t, l.Close())
	o.FS = fsys
	l = mustOpen(t, o)
	mustAppend(t, l, "b")
	o.FS = powerCut(fsys.kill())
	records, stats := replayAll(t, o)
	require.Equal(t, []string{"a"}, records)
	require.Zero(t, stats.Lost)
}

// Trying again would be told that all is well.
func TestOpenRewritesWhatItCannotSync(t *testing.T) {
	for _, every := range []bool{true, false} {
		fsys := newMemFS()
		o := testOptions(fsys)
		o.SyncEvery, o.SyncInterval = false, time.Hour
		l := mustCreate(t, o)
		mustAppend(t, l, "a", "b")
		fsys = fsys.kill()
		require.Error(t, l.Close())

		o.FS, o.SyncEvery = fsys, every
		fsys.setFault(failing("sync", seg1, 1, 1, syscall.EIO))
		l = mustOpen(t, o)
		fsys = powerCut(fsys)
		_ = l.Close()
		o.FS = fsys
		records, stats := replayAll(t, o)
		require.Equal(t, []string{"a", "b"}, records)
		require.Zero(t, stats.Lost)

		// Where the copy fails, too, its owner hears of it.
		fsys.setFault(both(failing("sync", "00000002.wal", 1, 1, syscall.EIO), failing("create", tmpSuffix, 1, 1, syscall.ENOSPC)))
		var failure *SyncError
		o.OnSyncFailure = func(e *SyncError) { failure = e }
		l = mustOpen(t, o)
		require.ErrorIs(t, failure, syscall.EIO)
		require.Equal(t, uint64(2), failure.Records)
		mustAppend(t, l, "c")
		require.ErrorIs(t, l.Sync(), syscall.EIO)
		require.ErrorIs(t, l.Close(), syscall.EIO)
		records, _ = replayAll(t, o)
		require.Equal(t, []string{"a", "b", "c"}, records)
	}
}

func TestFailuresOfCreateLeaveNothing(t *testing.T) {
	for op, suffix := range map[string]string{"mkdir": "", "create": headerName, "write": headerName, "sync": headerName, "syncdir": "", "rename": ""} {
		t.Run(op, func(t *testing.T) {
			for nth := 1; nth <= 2; nth++ {
				fsys := newMemFS()
				fsys.setFault(failing(op, suffix, nth, nth, syscall.EIO))
				l, err := Create(testDir, []byte("header"), testOptions(fsys))
				if err == nil { // it needs this only once
					require.Equal(t, 2, nth)
					require.NoError(t, l.Close())
					continue
				}
				require.ErrorIs(t, err, syscall.EIO)
				require.Empty(t, fsys.names(t, "/"))
				mustCreate(t, testOptions(fsys))
			}
		})
	}
}

func TestTemporaryFoldersAreRemoved(t *testing.T) {
	dir := t.TempDir()
	keep := filepath.Join(dir, "00000000000000000007")
	l, err := Create(keep, nil, Options{})
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.NoError(t, OS.Mkdir(filepath.Join(dir, createPrefix+"8")))
	require.NoError(t, writeSynced(OS, filepath.Join(dir, createPrefix+"8", headerName), nil))
	require.NoError(t, OS.Mkdir(filepath.Join(dir, removePrefix+"6")))
	require.NoError(t, RemoveTemporary(dir))
	entries, err := OS.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	_, err = Replay(keep, Options{}, nil, nil)
	require.NoError(t, err)
	require.Error(t, RemoveTemporary(filepath.Join(dir, "missing")))
}
