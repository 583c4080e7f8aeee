package serving

import (
	"context"
	"fmt"
	"iter"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"
)

// gatheredSet counts whether anybody has its series sorted.
type gatheredSet struct {
	memorySet
	sorted *int
}

func (s *gatheredSet) Found() iter.Seq[storage.ChunkSeries] {
	return func(yield func(storage.ChunkSeries) bool) {
		for i := range s.all {
			if !yield((&memorySet{all: s.all, i: i}).At()) {
				return
			}
		}
	}
}

func (s *gatheredSet) Next() bool {
	if s.i < 0 {
		*s.sorted++
	}
	return s.memorySet.Next()
}

type gatheringQuerier struct {
	memoryQuerier
	sorted *int
}

func (q *gatheringQuerier) Select(_ context.Context, _ bool, _ *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	return &gatheredSet{memorySet: memorySet{all: q.matching(ms), i: -1}, sorted: q.sorted}
}

// gathering is a source that has found all series before it yields one.
func gathering(gen uint64, sorted *int, all ...*storage.SeriesEntry) *fakeSource {
	s := memory(Speed, gen, all...)
	s.open = func(int64, int64) (storage.ChunkQuerier, error) {
		return &gatheringQuerier{memoryQuerier: memoryQuerier{all: all}, sorted: sorted}, nil
	}
	return s
}

// What is too large is refused before it is sorted; what fits only together with other sources' parts of the same series is not.
func TestSeriesAreChargedBeforeTheyAreSorted(t *testing.T) {
	sorted := 0
	engine, q, pool := limited(16<<20, gathering(1, &sorted, spread(1_000, "m", time.Hour)...), gathering(2, &sorted, spread(10_000, "n", time.Hour)...))
	_, err := run(t, engine, q, `{__name__=~".+"}`, time.Hour, 10*time.Second)
	require.ErrorContains(t, err, "query would need more than 12MB of memory")
	require.LessOrEqual(t, sorted, 1, "the smaller one, which comes first")
	require.Zero(t, pool.Used())

	sorted = 0
	engine, q, pool = limited(16<<20, gathering(1, &sorted, spread(1_000, "m", time.Hour)...), gathering(2, &sorted, spread(1_000, "m", time.Hour)...))
	_, err = run(t, engine, q, `m`, time.Hour, 10*time.Second)
	require.NoError(t, err)
	require.Equal(t, 2, sorted)
	require.Zero(t, pool.Used())
}

// Under external labels all series are gathered first, and charged meanwhile; but what matchers leave out or a limit cuts off is not.
func TestSeriesUnderExternalLabelsAreChargedAsTheyAreGathered(t *testing.T) {
	var all []*storage.SeriesEntry
	for i := range 2_000 {
		all = append(all, entry(labels.FromStrings("__name__", "m", "i", fmt.Sprintf("%04d", i)), 0, 1))
	}
	met := 0
	s := memory(Batch, 1, all...)
	s.open = func(int64, int64) (storage.ChunkQuerier, error) {
		return &countingQuerier{memoryQuerier{all: all}, &met}, nil
	}
	pool := NewMemoryPool(100 << 10)
	o := testOptions(50_000_000)
	o.Memory = pool
	set := NewSet()
	set.Replace(nil, []Entry{{Source: s}})
	qb := NewQueryable(set, Options{Memory: pool, ExternalLabels: labels.FromStrings("site", "north")})
	engine := NewEngine(o)

	_, err := run(t, engine, qb, `m`, 0, 0)
	require.ErrorIs(t, err, ErrMemory)
	require.Less(t, met, 1_500, "it is not read to its end")
	_, err = run(t, engine, qb, `m{site="north",i=~"000."}`, 0, 0)
	require.NoError(t, err)

	sq, err := qb.Querier(0, 1000)
	require.NoError(t, err)
	defer sq.Close()
	found := sq.Select(t.Context(), true, &storage.SelectHints{Start: 0, End: 1000, Func: seriesOnly, Limit: 3}, labels.MustNewMatcher(labels.MatchEqual, "__name__", "m"))
	n := 0
	for found.Next() {
		n++
	}
	require.NoError(t, found.Err())
	require.Equal(t, 3, n)
}

// countingQuerier counts the series that are read.
type countingQuerier struct {
	memoryQuerier
	met *int
}

func (q *countingQuerier) Select(_ context.Context, _ bool, _ *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	return &memorySet{all: q.matching(ms), i: -1, onNext: func(int) { *q.met++ }}
}
