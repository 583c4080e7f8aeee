package engine

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/serving"
)

// tryRead returns a series' samples in a layer.
func tryRead(ctx context.Context, e *Engine, layer serving.Layer, series string, at int64) ([]point, error) {
	ctx = serving.WithLayer(ctx, layer)
	q, err := e.queries.NewInstantQuery(ctx, e.queryable, nil, "m{series=\""+series+"\"}[1h]", time.UnixMilli(at))
	if err != nil {
		return nil, err
	}
	defer q.Close()
	m, err := q.Exec(ctx).Matrix()
	if err != nil {
		return nil, err
	}
	var out []point
	for _, s := range m {
		for _, f := range s.Floats {
			out = append(out, point{f.T, f.F})
		}
	}
	return out, nil
}

// TestRotationUnderWrites writes, rotates, moves blocks and reads at the same time. Each writer repeats a timestamp with a higher value, so that any
// order but that of acceptance would show; each reader expects every sample whose write had ended before it began.
func TestRotationUnderWrites(t *testing.T) {
	const writers, rounds = 4, 1000
	e := startEngine(t, testConfig(t, t.TempDir()))
	base := time.Now().Add(-30 * time.Minute).UnixMilli()
	end := base + rounds*1000
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	errs := make(chan error, 3*writers)
	var work, around sync.WaitGroup
	var done [writers]struct {
		sync.Mutex

		n int
	}
	for w := range writers {
		series := strconv.Itoa(w)
		work.Go(func() {
			for i := range rounds {
				at := base + int64(i)*1000
				for _, p := range []point{{at, float64(2 * i)}, {at, float64(2*i + 1)}} {
					if err := tryWrite(ctx, e, series, p); err != nil {
						errs <- err
						return
					}
				}
				done[w].Lock()
				done[w].n = i + 1
				done[w].Unlock()
			}
		})
		around.Go(func() {
			for ctx.Err() == nil {
				done[w].Lock()
				n := done[w].n
				done[w].Unlock()
				got, err := tryRead(ctx, e, serving.Merged, series, end)
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					errs <- err
					return
				}
				if len(got) < n {
					t.Errorf("series %s has %d samples, %d were acknowledged", series, len(got), n)
					return
				}
				for i, p := range got[:n] {
					if (point{base + int64(i)*1000, float64(2*i + 1)}) != p {
						t.Errorf("series %s, sample %d: %v", series, i, p)
						return
					}
				}
			}
		})
	}
	around.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			var err error
			switch {
			case i%8 == 7:
				err = e.RunBatch(ctx)
			case i%2 == 0:
				err = e.rotate()
			default:
				err = e.flushSealed(ctx)
			}
			if err != nil && ctx.Err() == nil {
				errs <- err
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	work.Wait()
	cancel()
	around.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	require.NoError(t, e.RunBatch(t.Context()))
	for w := range writers {
		got := read(t, e, serving.Batch, strconv.Itoa(w), end, time.Hour)
		require.Len(t, got, rounds)
		for i, p := range got {
			require.Equal(t, point{base + int64(i)*1000, float64(2*i + 1)}, p)
		}
	}
}

func TestWindows(t *testing.T) {
	created := time.Date(2026, 1, 2, 13, 20, 0, 0, time.UTC)
	at := func(day, hour, minute int) int64 {
		return time.Date(2026, 1, day, hour, minute, 0, 0, time.UTC).UnixMilli()
	}
	h, err := newHeader(7, created)
	require.NoError(t, err)
	for _, row := range []struct {
		name     string
		min, max int64
		want     []window
	}{
		{"this window only", at(2, 12, 0), at(2, 13, 0), []window{{h.blockID(2), at(2, 12, 0), at(2, 14, 0)}}},
		{"the one before too", at(2, 11, 59), at(2, 12, 0), []window{{h.blockID(1), at(2, 10, 0), at(2, 12, 0)}, {h.blockID(2), at(2, 12, 0), at(2, 14, 0)}}},
		{"one for all that is older", at(1, 1, 0), at(2, 9, 59), []window{{h.blockID(0), at(1, 1, 0), at(2, 10, 0)}}},
		{"all of them, and what is to come", at(1, 1, 0), at(2, 14, 0), []window{
			{h.blockID(0), at(1, 1, 0), at(2, 10, 0)},
			{h.blockID(1), at(2, 10, 0), at(2, 12, 0)},
			{h.blockID(2), at(2, 12, 0), at(2, 14, 0)},
			{h.blockID(3), at(2, 14, 0), at(2, 16, 0)},
		}},
		{"before 1970", -1, -1, []window{{h.blockID(0), -1, at(2, 10, 0)}}},
		{"the border", at(2, 9, 59) + 59_999, at(2, 10, 0) - 1, []window{{h.blockID(0), at(2, 9, 59) + 59_999, at(2, 10, 0)}}},
	} {
		t.Run(row.name, func(t *testing.T) { require.Equal(t, row.want, h.windows(row.min, row.max)) })
	}
	ws := h.windows(at(2, 12, 0), maxTime-1)
	require.Less(t, len(ws), 1<<16, "a clock gone wrong must not make blocks without end")
	require.Equal(t, int64(maxTime), ws[len(ws)-1].to)
}

// blockFolders are the blocks on local disk.
func blockFolders(t *testing.T, path string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(path, blocksDir))
	require.NoError(t, err)
	var names []string
	for _, entry := range entries {
		if _, err := ulid.ParseStrict(entry.Name()); err == nil {
			names = append(names, entry.Name())
		}
	}
	slices.Sort(names)
	return names
}

func TestSealingAgainAfterACrashWritesTheSameBlocks(t *testing.T) {
	b := newMovableBucket(t)
	b.away() // so that blocks stay where they are
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, b.config(path))
	want := []point{{now - 3*dayMillis, 1}, {now - 1000, 2}}
	write(t, e, "a", want...)
	g := e.activeGeneration()
	e.flushing.Lock()
	require.NoError(t, e.rotate())
	log := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.CopyFS(log, os.DirFS(g.dir)))
	e.flushing.Unlock()
	require.NoError(t, e.flushSealed(t.Context()))
	first := blockFolders(t, path)
	require.Len(t, first, 2)
	stopEngine(t, e)
	// The crash came when the blocks were written and the log had not gone.
	require.NoError(t, os.CopyFS(g.dir, os.DirFS(log)))
	// One of the blocks is not what it should be.
	require.NoError(t, os.Truncate(filepath.Join(path, blocksDir, first[1], "index"), 10))

	e = startEngine(t, b.config(path))
	require.NoError(t, e.flushSealed(t.Context()))
	require.Equal(t, first, blockFolders(t, path))
	require.Equal(t, want, read(t, e, serving.Speed, "a", now, 96*time.Hour))
	b.back()
	eventually(t, "the bucket is back", func() bool { return problem(e, "bucket") == "" })
	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, want, read(t, e, serving.Batch, "a", now, 96*time.Hour))
}

func TestStopDoesNotWaitForWork(t *testing.T) {
	path := t.TempDir()
	cfg := testConfig(t, path)
	e := startEngine(t, cfg)
	now := time.Now().UnixMilli()
	for i := range 20 {
		post(t, e.receiver, "s"+strconv.Itoa(i), 2000, now)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	acknowledged := make([]int64, 2)
	for w := range acknowledged {
		work.Go(func() {
			for i := int64(0); ctx.Err() == nil; i++ {
				if tryWrite(ctx, e, "w"+strconv.Itoa(w), point{now - 1_000_000 + i, 1}) != nil {
					return
				}
				acknowledged[w] = i + 1
			}
		})
	}
	work.Go(func() {
		for ctx.Err() == nil {
			if e.RunBatch(ctx) != nil {
				return
			}
		}
	})
	work.Go(func() {
		for ctx.Err() == nil {
			_, _ = tryRead(ctx, e, serving.Merged, "w0", now)
			time.Sleep(time.Millisecond)
		}
	})
	time.Sleep(300 * time.Millisecond)
	// What Grafana grants is two seconds, of which the engine takes one; a loaded machine gets some more here, but a batch run, or a
	// block of everything, would take part of it in any case.
	grace, done := context.WithTimeout(context.Background(), 10*time.Second)
	began := time.Now()
	e.Stop(grace)
	t.Log("stopped after", time.Since(began))
	require.NoError(t, grace.Err(), "the engine waited for something")
	done()
	cancel()
	work.Wait()

	e = startEngine(t, cfg)
	for w, n := range acknowledged {
		got := read(t, e, serving.Merged, "w"+strconv.Itoa(w), now, time.Hour)
		require.GreaterOrEqual(t, int64(len(got)), n, "an acknowledged sample is missing")
		require.LessOrEqual(t, int64(len(got)), n+1)
	}
}
