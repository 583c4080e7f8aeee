package batch

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/pkg/block"
)

// scenario leaves a bucket with something of everything to do. The clock is ahead of the real one, with which deletion marks
// are made, so that what is marked in one run is deleted in the next.
func scenario(w *world) {
	w.config.LateMergeShare = 1 // what comes late for a fortnight waits
	w.now.Store(windowAt(time.Now().UnixMilli(), fortnightMillis).max + (day + 9*hour).Milliseconds())
	w.generation([]string{"a", "h"}, 0, 30*minute, 3*hour, 50*hour, 55*hour, 60*hour, 100*hour) // 33 h ago a fortnight ended
	w.run(w.runner(), true)
	w.advance(2 * hour)
	w.generation([]string{"a", "b"}, 0, 30*minute, 51*hour, 75*hour)
	w.delete("a", 3*hour, 3*hour) // of which all is in compacted blocks
	w.delete("h|b", 90*hour, 60*hour)
	w.delete("none", 90*hour, 0)
	w.generation([]string{"a", "h"}, 0, 150*minute, 50*hour)
	w.delete("b", 2*hour, 0)
	w.rules(`{series="h"}: 16h, {series="none"}: 2h`) // a day more until blocks go without h
	w.advance(2 * hour)
	w.confirm()
}

func copyBucket(t *testing.T, from *objstore.InMemBucket) *objstore.InMemBucket {
	to := objstore.NewInMemBucket()
	for name, content := range from.Objects() {
		require.NoError(t, to.Upload(context.Background(), name, bytes.NewReader(content)))
	}
	return to
}

func ids2names(metas []block.Meta) (names []string) {
	for _, m := range metas {
		names = append(names, m.ULID.String())
	}
	return names
}

// TestDiesAtEveryCall fails every bucket call from the k-th on, or cancels at it, for each k, and runs again: the answer is
// right at any time, and in the end the bucket is what it is without the failure.
func TestDiesAtEveryCall(t *testing.T) {
	first := objstore.NewInMemBucket()
	origin := newWorld(t, first, testStart)
	scenario(origin)

	clean := func(bkt objstore.Bucket) *world {
		w := newWorld(t, bkt, origin.clock())
		w.expected, w.deleted, w.config, w.sure = origin.expected, origin.deleted, origin.config, origin.sure
		return w
	}
	reference := clean(copyBucket(t, first))
	reference.run(reference.runner(), true)
	reference.check()
	reference.checkErased()
	want := ids2names(reference.visible())
	require.Equal(t, 2, strings.Count(strings.Join(reference.shape(), " "), "L3"), "a fortnight and what came late for it")

	step := int64(1)
	if testing.Short() || !thorough {
		step = 7
	}
	for _, mode := range []string{"failed", "failed after it took effect", "cancelled"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			for k := int64(1); ; k += step {
				bkt := copyBucket(t, first)
				w := clean(bkt)
				ctx, cancel := context.WithCancel(context.Background())
				faulty := &faultBucket{Bucket: bkt, at: k, after: mode == "failed after it took effect"}
				faulty.fault = func() error { return errInjected }
				if mode == "cancelled" {
					faulty.fault = func() error { cancel(); return ctx.Err() }
				}
				r := w.runner(func(o *Options) { o.Bucket, o.Lister = faulty, block.NewLister(faulty) })
				_, err := r.Run(ctx, true)
				cancel()
				if faulty.calls.Load() < k {
					require.NoError(t, err)
					return
				}
				require.Error(t, err, "call %d", k)
				if mode == "cancelled" {
					require.ErrorIs(t, err, context.Canceled)
				}
				w.check()
				w.run(w.runner(), true)
				require.Equal(t, want, ids2names(w.visible()), "call %d", k)
				w.check()
			}
		})
	}
}

// TestTwoRunners runs two processes' worth of runners on one bucket at once.
func TestTwoRunners(t *testing.T) {
	for round := range 8 {
		bkt := objstore.NewInMemBucket()
		w := newWorld(t, bkt, testStart)
		scenario(w)
		var g errgroup.Group
		runners := []*Runner{w.runner(), w.runner()}
		for i, r := range runners {
			g.Go(func() error {
				time.Sleep(time.Duration(i*round) * time.Millisecond)
				_, err := r.Run(context.Background(), i == 0)
				return err
			})
		}
		done := make(chan error, 1)
		go func() { done <- g.Wait() }()
		for waiting := true; waiting; {
			select {
			case err := <-done:
				require.NoError(t, err)
				waiting = false
			case <-time.After(time.Millisecond):
				for _, r := range runners {
					_, _ = r.Status(), r.Quarantined()
				}
			}
		}
		w.check()
		w.run(w.runner(), true)
		w.check()
		w.advance(3 * hour)
		w.run(w.runner(), true)
		w.check()
		w.verify()
	}
}
