package speed

import (
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/millrace/millrace/pkg/ingest"
)

// A request that panics in one shard must not keep those behind it waiting in the others.
func TestAppendGoesOnAfterAPanic(t *testing.T) {
	g := NewGeneration(Options{Shards: 4})
	broken := batch(in(lset("__name__", "m"), sample{t: 1, v: 1}))
	broken.Series[0].Histograms = []ingest.Histogram{{T: 2}} // Neither of the two.
	require.Panics(t, func() { g.Append(0, broken) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 8 {
			g.Append(uint64(i+1), batch(in(lset("__name__", "m", "i", strconv.Itoa(i)), sample{t: 3, v: 1})))
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		require.Fail(t, "a later request waits")
	}
}

// TestReadersSeeWholeSamplesOfThePast appends in order, late and of all types while readers query. A sample's value follows
// from its time, and every series gets a sample for every index: a reader must find all indexes that were applied before it
// began, and no value that is not right.
func TestReadersSeeWholeSamplesOfThePast(t *testing.T) {
	const (
		series   = 20
		requests = 200
		writers  = 4
	)
	sets := make([]labels.Labels, series)
	for i := range sets {
		sets[i] = lset("__name__", "m", "i", fmt.Sprint(i))
	}
	at := func(i int, index uint64) sample {
		x := int64(index) * 1000
		if index%5 == 4 {
			x -= 4500 // Late.
		}
		s := sample{t: x, v: float64(x)}
		if i%2 == 1 && index%16 > 8 {
			s.h = counterOf(index)
		}
		return s
	}
	g := NewGeneration(Options{Shards: 4})
	var (
		next    atomic.Uint64
		applied [requests]atomic.Bool
		wg      sync.WaitGroup
	)
	for range writers {
		wg.Go(func() {
			for index := next.Add(1) - 1; index < requests; index = next.Add(1) - 1 {
				var b ingest.Batch
				for i, ls := range sets {
					b.Series = append(b.Series, in(ls, at(i, index)))
				}
				b.Series = append(b.Series, in(lset("new", fmt.Sprint(index)), sample{t: int64(index)}))
				g.Append(index, &b)
				applied[index].Store(true)
			}
		})
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		wg.Wait()
	}()
	var readers sync.WaitGroup
	for range 2 { // These are there for the race detector, and to be in the way.
		readers.Go(func() {
			for !isClosed(finished) {
				readAll(g)
			}
		})
	}
	byName := labels.MustNewMatcher(labels.MatchEqual, "__name__", "m")
	not := labels.MustNewMatcher(labels.MatchNotRegexp, "i", "x.*")
	for last := false; !last; {
		last = isClosed(finished)
		known := map[int64]uint64{}
		for index := range uint64(requests) {
			if applied[index].Load() {
				known[at(0, index).t] = index
			}
		}
		got := query(t, g, minTime, maxTime, byName, not)
		if len(known) > 0 {
			require.Len(t, got, series)
		}
		for i, ls := range sets {
			found := map[int64]bool{}
			for _, s := range got[ls.String()] {
				found[s.t] = true
				if s.h == nil && s.v != float64(s.t) {
					require.InDelta(t, s.t, s.v, 0)
				}
			}
			for x, index := range known {
				if !found[x] {
					require.Fail(t, "a sample is missing", "series %d lacks index %d", i, index)
				}
			}
		}
		q, err := g.ChunkQuerier(minTime, maxTime)
		require.NoError(t, err)
		values, _, err := q.LabelValues(ctx, "new", nil, labels.MustNewMatcher(labels.MatchNotEqual, "new", ""))
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(values), len(known))
	}
	readers.Wait()
	require.EqualValues(t, requests+series, g.Stats().Series)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// readAll reads everything that a generation can be asked for and returns the number of things that there were.
func readAll(g *Generation) (n int) {
	q, _ := g.ChunkQuerier(minTime, maxTime)
	for set := q.Select(ctx, true, nil, all()); set.Next(); {
		for it := set.At().Iterator(nil); it.Next(); {
			cit := it.At().Chunk.Iterator(nil)
			for vt := cit.Next(); vt != chunkenc.ValNone; vt = cit.Next() {
				n++
			}
		}
	}
	names, _, _ := q.LabelNames(ctx, nil, all())
	for it := g.Symbols(); it.Next(); {
		n++
	}
	return n + len(names) + int(g.Stats().Samples)
}

// TestGenerationsOverlap writes to a generation and to its successor at once, as between a switch and a seal.
func TestGenerationsOverlap(t *testing.T) {
	old := NewGeneration(Options{Number: 1})
	g := NewGeneration(Options{Number: 2, Previous: old})
	var wg sync.WaitGroup
	for _, gen := range []*Generation{old, g} {
		for index := range uint64(100) {
			wg.Go(func() {
				var b ingest.Batch
				for i := range 50 {
					b.Series = append(b.Series, in(lset("i", fmt.Sprint(i+int(index)/2)), sample{t: int64(index), v: 1}))
				}
				gen.Append(index, &b)
			})
		}
	}
	wg.Wait()
	require.Equal(t, old.Stats().Series, g.Stats().Series)
	require.Len(t, query(t, g, minTime, maxTime, all()), int(old.Stats().Series))
}
