package speed

import (
	"fmt"
	"math/rand"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/ingest"
)

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
		stop    = make(chan struct{})
	)
	for range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for index := next.Add(1) - 1; index < requests; index = next.Add(1) - 1 {
				var b ingest.Batch
				for i, ls := range sets {
					b.Series = append(b.Series, in(ls, at(i, index)))
				}
				b.Series = append(b.Series, in(lset("new", fmt.Sprint(index)), sample{t: int64(index)}))
				g.Append(index, &b)
				applied[index].Store(true)
			}
		}()
	}
	var readers sync.WaitGroup
	for n := range 3 {
		readers.Add(1)
		go func() {
			defer readers.Done()
			r := rand.New(rand.NewSource(int64(n)))
			for round := 0; ; round++ {
				select {
				case <-stop:
					if round > 0 {
						return
					}
				default:
				}
				known := map[int64]uint64{}
				for index := range uint64(requests) {
					if applied[index].Load() {
						known[at(0, index).t] = index
					}
				}
				ms := []*labels.Matcher{
					labels.MustNewMatcher(labels.MatchEqual, "__name__", "m"),
					labels.MustNewMatcher(labels.MatchNotRegexp, "i", "x.*"),
				}
				got := query(t, g, minTime, maxTime, ms[:1+r.Intn(2)]...)
				if len(known) > 0 {
					require.Len(t, got, series) //nolint:testifylint // The test ends here, whoever notices.
				}
				for i, ls := range sets {
					found := map[int64]bool{}
					for _, s := range got[ls.String()] {
						found[s.t] = true
						if s.h == nil && s.v != float64(s.t) {
							assert.InDelta(t, s.t, s.v, 0)
						}
					}
					for x, index := range known {
						if !found[x] {
							assert.Fail(t, "a sample is missing", "series %d lacks index %d", i, index)
						}
					}
				}
				q, err := g.ChunkQuerier(minTime, maxTime)
				assert.NoError(t, err)
				values, _, err := q.LabelValues(ctx, "new", nil, labels.MustNewMatcher(labels.MatchNotEqual, "new", ""))
				assert.NoError(t, err)
				assert.GreaterOrEqual(t, len(values), len(known))
				for it := g.Symbols(); it.Next(); {
				}
			}
		}()
	}
	wg.Wait()
	close(stop)
	readers.Wait()
	require.EqualValues(t, requests+series, g.Stats().Series)
}

// TestGenerationsOverlap writes to a generation and to its successor at once, as between a switch and a seal.
func TestGenerationsOverlap(t *testing.T) {
	old := NewGeneration(Options{Number: 1})
	g := NewGeneration(Options{Number: 2, Previous: old})
	var wg sync.WaitGroup
	for _, gen := range []*Generation{old, g} {
		for index := range uint64(100) {
			wg.Add(1)
			go func() {
				defer wg.Done()
				var b ingest.Batch
				for i := range 50 {
					b.Series = append(b.Series, in(lset("i", fmt.Sprint(i+int(index)/2)), sample{t: int64(index), v: 1}))
				}
				gen.Append(index, &b)
			}()
		}
	}
	wg.Wait()
	require.Equal(t, old.Stats().Series, g.Stats().Series)
	require.Len(t, query(t, g, minTime, maxTime, all()), int(old.Stats().Series))
}
