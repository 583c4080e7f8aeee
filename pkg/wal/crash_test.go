package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// history is what one run did to a log and what it was told.
type history struct {
	records []string // in the order in which they were enqueued, of all lives of the log
	state   map[string]outcome
	script  []string // what was done, for the one who has to find out why
}

type outcome int

const (
	unanswered     outcome = iota // the machine died first
	acknowledged                  // written
	synced                        // acknowledged, and a Sync or SyncEvery confirmed it
	refused                       // an error was returned
	refusedForGood                // refused, and something behind it in the log was synced
)

func (h *history) say(format string, args ...any) {
	h.script = append(h.script, fmt.Sprintf(format, args...))
}

// run appends to l until ops are done or the file system dies.
func (h *history) run(l *Log, rng *rand.Rand, ops int) {
	for range ops {
		if l.o.FS.(*memFS).gone() {
			return
		}
		switch rng.IntN(10) {
		case 0:
			err := l.Sync()
			h.say("sync: %v", err)
			if err == nil {
				h.confirm()
			}
		case 1:
			if !l.o.SyncEvery {
				h.say("background sync: %t", l.syncCurrent())
			}
		default:
			h.group(l, rng)
		}
	}
}

// group enqueues some records and waits for them in any order.
func (h *history) group(l *Log, rng *rand.Rand) {
	first := len(h.records)
	var tickets []Ticket
	for range 1 + rng.IntN(4) {
		r := fmt.Sprintf("%d:%s", len(h.records), strings.Repeat("x", rng.IntN(60)))
		h.records = append(h.records, r)
		h.state[r] = unanswered
		tickets = append(tickets, l.Enqueue([]byte(r)))
	}
	ok := false
	for _, i := range rng.Perm(len(tickets)) {
		r, err := h.records[first+i], tickets[i].Wait()
		switch {
		case err == nil:
			ok = true
			h.state[r] = acknowledged
		case errors.Is(err, errDead):
			// Nobody heard that answer.
		default:
			h.state[r] = refused
		}
		h.say("append %s: %v", r, err)
	}
	if ok && l.o.SyncEvery {
		h.confirm()
	}
}

// confirm notes that what was acknowledged is durable, and that what was refused before it can not come back.
func (h *history) confirm() {
	behind := false
	for _, r := range slices.Backward(h.records) {
		switch h.state[r] {
		case acknowledged, synced:
			h.state[r] = synced
			behind = true
		case refused:
			if behind {
				h.state[r] = refusedForGood
			}
		}
	}
}

// check compares with what replay found. atLeast is the outcome from which on a record must be there.
func (h *history) check(t *testing.T, got []string, atLeast outcome) {
	t.Helper()
	at := -1
	for _, r := range got {
		i := slices.Index(h.records, r)
		if i <= at {
			h.fail(t, "%q is not in order or not from here", r)
		}
		if h.state[r] == refusedForGood {
			h.fail(t, "%q was refused", r)
		}
		at = i
	}
	for _, r := range h.records {
		must := h.state[r] == synced || h.state[r] == acknowledged && atLeast == acknowledged
		if must && !slices.Contains(got, r) {
			h.fail(t, "%q is missing", r)
		}
	}
}

func (h *history) fail(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Log(strings.Join(h.script, "\n"))
	t.Fatalf(format, args...)
}

// settle forgets what the last life left open: what is there now stays there.
func (h *history) settle(got []string) {
	for _, r := range h.records {
		if !slices.Contains(got, r) {
			h.state[r] = refusedForGood
		} else if h.state[r] != synced {
			h.state[r] = acknowledged
		}
	}
}

// faults makes a disk that fails now and then.
func faults(rng *rand.Rand, h *history, failing bool) func(op, name string) error {
	return func(op, name string) error {
		if !failing || rng.IntN(8) > 0 || !strings.Contains(name, segmentSuffix) && op != "syncdir" {
			return nil
		}
		switch op {
		case "write":
			h.say("  fault: short write to %s", name)
			return shortWrite(rng.IntN(200))
		case "sync", "syncdir", "truncate", "create", "rename", "remove":
			h.say("  fault: %s %s", op, name)
			return syscall.EIO
		}
		return nil
	}
}

// Whatever was acknowledged is there after the crash, in order and once.
func TestCrashes(t *testing.T) {
	for _, model := range []struct {
		name       string
		syncEvery  bool
		failing    bool
		powerCut   bool
		mustRemain outcome
	}{
		{name: "power cut with SyncEvery", syncEvery: true, powerCut: true, mustRemain: acknowledged},
		{name: "power cut with SyncEvery and a failing disk", syncEvery: true, failing: true, powerCut: true, mustRemain: acknowledged},
		{name: "kill with SyncEvery and a failing disk", syncEvery: true, failing: true, mustRemain: acknowledged},
		{name: "kill", mustRemain: acknowledged},
		{name: "kill on a failing disk", failing: true, mustRemain: acknowledged},
		{name: "power cut", powerCut: true, mustRemain: synced},
		{name: "power cut on a failing disk", failing: true, powerCut: true, mustRemain: synced},
	} {
		t.Run(model.name, func(t *testing.T) {
			runs := 150
			if testing.Short() {
				runs = 20
			}
			for seed := range runs {
				rng := rand.New(rand.NewPCG(uint64(seed), 1))
				h := &history{state: map[string]outcome{}}
				h.say("seed %d", seed)
				fsys := newMemFS()
				// A kernel that drops what it could not write takes acknowledged records with it, unless they were to be synced.
				fsys.forgetful = model.failing && (model.syncEvery || model.powerCut) && seed%2 == 0
				o := Options{
					FS: fsys, SyncEvery: model.syncEvery, SyncInterval: time.Hour, // the history calls the background
					SegmentSize: int64(100 + rng.IntN(1000)), Metrics: NewMetrics(nil), id: testID,
				}
				l, err := Create(testDir, []byte("header"), o)
				require.NoError(t, err)
				for life := range 4 {
					fsys.setFault(faults(rng, h, model.failing))
					fsys.dieAfter(rng.IntN(150))
					h.run(l, rng, 30)
					old := l
					if model.powerCut {
						fsys = fsys.crash(rng)
					} else {
						fsys = fsys.kill()
					}
					_ = old.Close() // ends its goroutine; its file system is dead
					o.FS = fsys
					got, stats := replayAll(t, o)
					h.say("life %d ends, %d records are there: %+v", life, len(got), stats)
					h.check(t, got, model.mustRemain)
					if !model.powerCut && stats.Lost.Regions > 0 {
						h.fail(t, "kill loses nothing, but %+v", stats)
					}
					h.settle(got)
					l, err = Open(testDir, o)
					require.NoError(t, err)
				}
				require.NoError(t, l.Close())
			}
		})
	}
}

// A crash at any point of Create leaves a whole log, or nothing that anybody would take for one.
func TestCrashDuringCreate(t *testing.T) {
	whole, nothing := 0, 0
	for at := range 12 {
		for seed := range 20 {
			rng := rand.New(rand.NewPCG(uint64(seed), uint64(at)))
			fsys := newMemFS()
			require.NoError(t, fsys.Mkdir("/wal"))
			require.NoError(t, fsys.SyncDir("/"))
			fsys.dieAfter(at)
			l, cerr := Create("/wal/7", []byte("header"), testOptions(fsys))
			fsys = fsys.crash(rng)
			if cerr == nil {
				_ = l.Close()
			}
			require.NoError(t, removeTemporary(fsys, "/wal"))
			_, err := Replay("/wal/7", testOptions(fsys), func(h []byte) error {
				require.Equal(t, "header", string(h))
				return nil
			}, nil)
			if errors.Is(err, fs.ErrNotExist) {
				require.Error(t, cerr, "Create said that the log is there")
				require.Empty(t, fsys.names(t, "/wal"))
				nothing++
				continue
			}
			require.NoError(t, err)
			whole++
		}
	}
	require.Positive(t, whole)
	require.Positive(t, nothing)
}

// A crash at any point of Remove leaves a whole log, or nothing that anybody would take for one.
func TestCrashDuringRemove(t *testing.T) {
	whole, nothing := 0, 0
	for at := range 12 {
		for seed := range 20 {
			rng := rand.New(rand.NewPCG(uint64(seed), uint64(at)))
			fsys, o := corruptibleLog(t)
			require.NoError(t, fsys.SyncDir("/"))
			fsys.dieAfter(at)
			rerr := remove(fsys, testDir)
			fsys = fsys.crash(rng)
			require.NoError(t, removeTemporary(fsys, "/"))
			o.FS = fsys
			if _, err := fsys.Stat(testDir); errors.Is(err, fs.ErrNotExist) {
				require.Empty(t, fsys.names(t, "/"))
				nothing++
				continue
			}
			require.Error(t, rerr, "Remove said that the log is gone")
			records, stats := replayAll(t, o)
			require.Equal(t, survivors(), records)
			require.Zero(t, stats.Lost)
			whole++
		}
	}
	require.Positive(t, whole)
	require.Positive(t, nothing)
}
