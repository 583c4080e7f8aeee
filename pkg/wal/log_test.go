package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

const createFlags = os.O_RDWR | os.O_CREATE | os.O_EXCL

func TestReplayGivesBackWhatWasAppended(t *testing.T) {
	for _, every := range []bool{true, false} {
		t.Run(fmt.Sprintf("SyncEvery=%t", every), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "log")
			o := Options{SyncEvery: every, SegmentSize: 200}
			l, err := Create(dir, []byte("the header"), o)
			require.NoError(t, err)
			var want []string
			for i := range 50 {
				index, err := l.Append([]byte("record "), nil, fmt.Appendf(nil, "%d", i))
				require.NoError(t, err)
				require.Equal(t, uint64(i), index)
				want = append(want, fmt.Sprintf("record %d", i))
			}
			_, err = l.Append() // empty records are records
			require.NoError(t, err)
			want = append(want, "")
			require.NoError(t, l.Sync())
			require.NoError(t, l.Close())
			require.NoError(t, l.Close())

			var header string
			var got []string
			stats, err := Replay(dir, o, func(h []byte) error { header = string(h); return nil },
				func(r []byte) error { got = append(got, string(r)); return nil })
			require.NoError(t, err)
			require.Equal(t, "the header", header)
			require.Equal(t, want, got)
			require.Equal(t, int64(len(want)), stats.Records)
			require.Equal(t, int64(len(strings.Join(want, ""))), stats.Bytes)
			require.Greater(t, stats.Segments, 5)
			require.Zero(t, stats.Lost)
			require.False(t, stats.TornTail)

			require.NoError(t, Remove(dir))
			require.NoError(t, Remove(dir))
			left, err := os.ReadDir(filepath.Dir(dir))
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

func TestOpenGoesOnBehindTheLastRecord(t *testing.T) {
	fsys := newMemFS()
	o := testOptions(fsys)
	l := mustCreate(t, o)
	mustAppend(t, l, "a", "b")
	size := l.Size()
	require.NoError(t, l.Close())

	o.FirstIndex = 2
	l = mustOpen(t, o)
	require.Equal(t, size, l.Size())
	index, err := l.Append([]byte("c"))
	require.NoError(t, err)
	require.Equal(t, uint64(2), index)
	require.NoError(t, l.Close())

	// Opened and closed without a record in between.
	require.NoError(t, mustOpen(t, o).Close())

	records, stats := replayAll(t, o)
	require.Equal(t, []string{"a", "b", "c"}, records)
	require.Equal(t, Stats{Segments: 2, Records: 3, Bytes: 3}, stats)
}

func TestOpenCutsATornTail(t *testing.T) {
	fsys := newMemFS()
	o := testOptions(fsys)
	l := mustCreate(t, o)
	mustAppend(t, l, "first", "second")
	require.NoError(t, l.Close())
	fsys.edit(t, "00000001.wal", func(b []byte) []byte { return b[:len(b)-2] })
	_, stats := replayAll(t, o)
	require.True(t, stats.TornTail)
	require.Equal(t, int64(frameHeaderSize+len("second")-2), stats.TornBytes)

	l = mustOpen(t, o)
	mustAppend(t, l, "third")
	require.NoError(t, l.Close())
	records, stats := replayAll(t, o)
	require.Equal(t, []string{"first", "third"}, records)
	require.Equal(t, Stats{Segments: 2, Records: 2, Bytes: 10}, stats, "the torn record was never acknowledged: not lost")
}

func TestOpenKeepsCountingWhatWasLost(t *testing.T) {
	fsys := newMemFS()
	o := testOptions(fsys)
	l := mustCreate(t, o)
	mustAppend(t, l, "first", "second")
	require.NoError(t, l.Close())
	fsys.edit(t, "00000001.wal", func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	_, before := replayAll(t, o)
	require.Equal(t, Lost{Regions: 1, Records: 1, Bytes: frameHeaderSize + 6}, before.Lost)

	l = mustOpen(t, o)
	mustAppend(t, l, "third")
	require.NoError(t, l.Close())
	records, after := replayAll(t, o)
	require.Equal(t, []string{"first", "third"}, records)
	require.Equal(t, before.Lost, after.Lost)
}

func TestIndexesOfFailedRecordsAreUsedUp(t *testing.T) {
	o := testOptions(newMemFS())
	o.MaxRecordSize = 10
	l := mustCreate(t, o)
	mustAppend(t, l, "0123456789")

	index, err := l.Append([]byte("01234"), []byte("567890"))
	var tooLarge *RecordTooLargeError
	require.ErrorAs(t, err, &tooLarge)
	require.Equal(t, RecordTooLargeError{Size: 11, Max: 10}, *tooLarge)
	require.Equal(t, uint64(1), index)

	ticket := l.Enqueue([]byte("x"))
	require.Equal(t, uint64(2), ticket.Index())
	require.NoError(t, l.Close(), "Close writes what nobody waited for")
	require.NoError(t, ticket.Wait())

	index, err = l.Append([]byte("y"))
	require.ErrorIs(t, err, ErrClosed)
	require.Equal(t, uint64(3), index)
	records, stats := replayAll(t, o)
	require.Equal(t, []string{"0123456789", "x"}, records)
	require.Zero(t, stats.Lost)
}

func TestEnqueueCopiesTheRecord(t *testing.T) {
	o := testOptions(newMemFS())
	l := mustCreate(t, o)
	b := []byte("before")
	ticket := l.Enqueue(b)
	copy(b, "after!")
	require.NoError(t, ticket.Wait())
	require.NoError(t, ticket.Wait(), "it may be asked again")
	require.NoError(t, l.Close())
	records, _ := replayAll(t, o)
	require.Equal(t, []string{"before"}, records)
}

func TestOneWaiterWritesTheGroup(t *testing.T) {
	fsys := newMemFS()
	writes, syncs := 0, 0
	fsys.fault = func(op, name string) error {
		if strings.HasSuffix(name, segmentSuffix) {
			switch op {
			case "write":
				writes++
			case "sync":
				syncs++
			}
		}
		return nil
	}
	l := mustCreate(t, testOptions(fsys))
	mustAppend(t, l, "opens the segment")
	writes, syncs = 0, 0
	var tickets []Ticket
	for i := range 10 {
		tickets = append(tickets, l.Enqueue(fmt.Appendf(nil, "%d", i)))
	}
	require.NoError(t, tickets[7].Wait())
	require.Equal(t, 1, writes)
	require.Equal(t, 1, syncs)
	for _, ticket := range tickets {
		require.NoError(t, ticket.Wait())
	}
	require.Equal(t, 1, writes)
}

func TestConcurrentAppendersAreEachWrittenOnceInOrderOfTheirIndexes(t *testing.T) {
	for _, every := range []bool{true, false} {
		t.Run(fmt.Sprintf("SyncEvery=%t", every), func(t *testing.T) {
			o := testOptions(newMemFS())
			o.SyncEvery, o.SyncInterval, o.SegmentSize = every, time.Millisecond, 4000
			l := mustCreate(t, o)
			const goroutines, each = 8, 300
			byIndex := make([]string, goroutines*each)
			var accept sync.Mutex // as the engine's
			var wg sync.WaitGroup
			for g := range goroutines {
				wg.Go(func() {
					for i := range each {
						r := fmt.Sprintf("%d/%d", g, i)
						accept.Lock()
						ticket := l.Enqueue([]byte(r))
						byIndex[ticket.Index()] = r
						accept.Unlock()
						if err := ticket.Wait(); err != nil {
							t.Error(err)
						}
						if i%100 == 0 {
							if err := l.Sync(); err != nil {
								t.Error(err)
							}
						}
					}
				})
			}
			wg.Wait()
			require.NoError(t, l.Close())
			records, stats := replayAll(t, o)
			require.Equal(t, byIndex, records)
			require.Zero(t, stats.Lost)
			require.Greater(t, stats.Segments, 5)
		})
	}
}

func TestCloseServesTicketsThatAreWaitedForMeanwhile(t *testing.T) {
	o := testOptions(newMemFS())
	l := mustCreate(t, o)
	var wg sync.WaitGroup
	var mu sync.Mutex
	acknowledged := 0
	for range 4 {
		wg.Go(func() {
			for {
				_, err := l.Append([]byte("x"))
				if errors.Is(err, ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				acknowledged++
				mu.Unlock()
			}
		})
	}
	require.Eventually(t, func() bool { return l.Size() > 1000 }, 10*time.Second, time.Millisecond)
	require.NoError(t, l.Close())
	wg.Wait()
	records, _ := replayAll(t, o)
	require.Len(t, records, acknowledged)
}

func TestTheBackgroundSyncsWithoutBeingAsked(t *testing.T) {
	fsys := newMemFS()
	o := testOptions(fsys)
	o.SyncEvery, o.SyncInterval = false, time.Millisecond
	reg := prometheus.NewRegistry()
	o.Metrics = NewMetrics(reg)
	l := mustCreate(t, o)
	mustAppend(t, l, "a")
	synced := func() bool {
		fsys.mu.Lock()
		defer fsys.mu.Unlock()
		node, _, _, err := fsys.existing(testDir + "/00000001.wal")
		return err == nil && len(node.writes) == 0
	}
	require.Eventually(t, synced, 10*time.Second, time.Millisecond)
}

func TestCreateRefusesAFolderThatExists(t *testing.T) {
	fsys := newMemFS()
	require.NoError(t, fsys.Mkdir(testDir))
	_, err := Create(testDir, nil, testOptions(fsys))
	require.ErrorIs(t, err, fs.ErrExist)
	_, err = Create("/other", make([]byte, MaxHeaderSize+1), testOptions(fsys))
	require.ErrorContains(t, err, "header of 1048577 bytes")
}

func TestALogThatDoesNotExist(t *testing.T) {
	o := testOptions(newMemFS())
	_, err := Open(testDir, o)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = Replay(testDir, o, nil, nil)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, remove(o.FS, testDir))
}

func TestReplayEndsWithTheErrorOfItsFunctions(t *testing.T) {
	o := testOptions(newMemFS())
	l := mustCreate(t, o)
	mustAppend(t, l, "a", "b")
	require.NoError(t, l.Close())
	mine := errors.New("mine")
	fail := func([]byte) error { return mine }
	stats, err := Replay(testDir, o, nil, fail)
	require.ErrorIs(t, err, mine)
	require.Equal(t, int64(1), stats.Records)
	_, err = Replay(testDir, o, fail, nil)
	require.ErrorIs(t, err, mine)
	_, err = Replay(testDir, o, nil, nil)
	require.NoError(t, err)
}

func TestMetrics(t *testing.T) {
	fsys := newMemFS()
	o := testOptions(fsys)
	reg := prometheus.NewRegistry()
	o.Metrics = NewMetrics(reg)
	l := mustCreate(t, o)
	mustAppend(t, l, "abc", "d")
	require.Equal(t, 1.0, testutil.ToFloat64(o.Metrics.segments))
	require.NoError(t, l.Close())
	require.Equal(t, 0.0, testutil.ToFloat64(o.Metrics.segments))
	fsys.edit(t, "00000001.wal", func(b []byte) []byte { b[segmentHeaderSize+frameHeaderSize] ^= 1; return b })
	replayAll(t, o)
	require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP millrace_wal_bytes_appended_total Bytes written to a write-ahead log, frames included.
# TYPE millrace_wal_bytes_appended_total counter
millrace_wal_bytes_appended_total 52
# HELP millrace_wal_records_appended_total Records written to a write-ahead log.
# TYPE millrace_wal_records_appended_total counter
millrace_wal_records_appended_total 2
# HELP millrace_wal_replay_lost_bytes_total Bytes of regions that replay skipped.
# TYPE millrace_wal_replay_lost_bytes_total counter
millrace_wal_replay_lost_bytes_total 27
# HELP millrace_wal_replay_lost_records_total Records known to be lost in regions that replay skipped.
# TYPE millrace_wal_replay_lost_records_total counter
millrace_wal_replay_lost_records_total 1
# HELP millrace_wal_replay_records_total Records read back by replay.
# TYPE millrace_wal_replay_records_total counter
millrace_wal_replay_records_total 1
`), "millrace_wal_bytes_appended_total", "millrace_wal_records_appended_total", "millrace_wal_replay_records_total",
		"millrace_wal_replay_lost_records_total", "millrace_wal_replay_lost_bytes_total"))
	NewMetrics(prometheus.NewRegistry()) // a second engine in the same process
}
