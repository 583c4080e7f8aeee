package batch

import (
	"context"
	"io"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

// spans notes between which of a bucket's reads each kept level-0 block was in use.
type spans struct {
	objstore.Bucket
	mu    sync.Mutex
	reads int
	use   map[ulid.ULID][2]int // the first and the last one
}

func (s *spans) GetRange(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if name, kept := strings.CutPrefix(name, block.MastersPrefix+"/"); kept {
		id := ulid.MustParseStrict(name[:ulid.EncodedSize])
		first := s.reads
		if use, ok := s.use[id]; ok {
			first = use[0]
		}
		s.use[id] = [2]int{first, s.reads}
	}
	return s.Bucket.GetRange(ctx, name, off, n)
}

// atOnce is the largest number of blocks that were in use at one time.
func (s *spans) atOnce() (most int) {
	for at := range s.reads + 1 {
		n := 0
		for _, use := range s.use {
			if use[0] <= at && at <= use[1] {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// TestRecomputeInParts builds blocks of 40 level-0 blocks again with different limits of how many may be open: what comes out is the same.
func TestRecomputeInParts(t *testing.T) {
	origin := newWorld(t, objstore.NewInMemBucket(), time.Now().UTC().Truncate(day).Add(day+9*hour))
	const generations = 40
	for i := range generations {
		series := [][]string{{"a", "b", "h"}, {"a", "b"}, {"a", "h"}, {"b"}, {"h"}}[i/8]
		origin.generation(series, 10*minute, 11*minute, 12*minute+time.Duration(i)*time.Second)
	}
	origin.run(origin.runner(keeping(Forever)), true)
	origin.advance(2 * hour)
	origin.run(origin.runner(keeping(Forever)), true)
	require.Len(t, origin.masters(), generations)
	require.Len(t, origin.visible(), 1)
	lost := memInput{}
	lost.add("z", origin.victim().MinTime, -1)
	origin.forge(origin.victim(), lost)
	// The last generations hold nothing but series h: without it, runs of them give no part.
	deletions := map[string]func(*world){
		"nothing deleted": func(*world) {},
		"deletions":       func(w *world) { w.delete("a", 11*minute+2*hour, 2*hour); w.delete("h", 1000*hour, 0) },
		"all deleted":     func(w *world) { w.delete(".+", 1000*hour, 0) },
	}
	for name, del := range deletions {
		for _, limit := range []int{2, 3, 4, 7, 39, 40, 64} {
			bkt := copyBucket(t, origin.bucket.(*objstore.InMemBucket))
			w := newWorld(t, bkt, origin.clock())
			w.gen = generations
			maps.Copy(w.expected, origin.expected)
			del(w)
			s := &spans{Bucket: bkt, use: map[ulid.ULID][2]int{}}
			scratch := fastDir(t)
			r := w.runner(keeping(Forever), func(o *Options) {
				o.Bucket, o.Lister, o.ScratchDir, o.Cache, o.Config.MaxInputs = s, block.NewLister(s), scratch, block.NewCache(0, nil), limit
			})
			require.Equal(t, map[Outcome]int{Swapped: 1}, outcomes(w.recompute(r, false)), "%s, %d", name, limit)
			require.Len(t, s.use, generations, "%s, %d: all are read", name, limit)
			require.Equal(t, min(limit, generations), s.atOnce(), "%s, %d", name, limit)
			left, err := os.ReadDir(scratch)
			require.NoError(t, err)
			require.Empty(t, left, "%s, %d", name, limit)
			if len(w.expected) == 0 {
				continue // and there is no block
			}
			w.check()
			w.checkErased()
			w.verify()
			require.Equal(t, map[Outcome]int{Same: 1}, outcomes(w.recompute(w.runner(keeping(Forever)), true)), "%s, %d: as when all are open", name, limit)
		}
	}
}

// TestRecomputeInPartsFails fails each of the bucket's calls in turn: nothing stays in the scratch folder, nor open.
func TestRecomputeInPartsFails(t *testing.T) {
	first := objstore.NewInMemBucket()
	origin := newWorld(t, first, time.Now().UTC().Truncate(day).Add(day+9*hour))
	for range 5 {
		origin.generation([]string{"a", "h"}, 0, minute)
		origin.advance(time.Minute)
	}
	origin.run(origin.runner(keeping(Forever)), true)
	for k := int64(1); ; k++ {
		bkt := &faultBucket{Bucket: copyBucket(t, first), at: k, fault: func() error { return errInjected }}
		w := newWorld(t, bkt, origin.clock())
		scratch := fastDir(t)
		r := w.runner(func(o *Options) { o.ScratchDir, o.Config.MaxInputs, o.Config.KeepLevel0 = scratch, 2, Forever })
		_, err := r.RecomputeRange(context.Background(), 0, 1<<60, false)
		left, readErr := os.ReadDir(scratch)
		if readErr == nil { // else it failed before there was one
			require.Empty(t, left, "call %d", k)
		}
		if bkt.calls.Load() < k {
			require.NoError(t, err)
			break
		}
		require.ErrorIs(t, err, errInjected)
	}
}
