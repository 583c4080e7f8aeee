package serving

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync/atomic"
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

// northern is a Queryable under site="north" over a source of the batch layer, with a pool of so many bytes. It counts the series that are read.
func northern(limit int64, all ...*storage.SeriesEntry) (engine *Engine, qb *Queryable, pool *MemoryPool, met *atomic.Int64) {
	met = new(atomic.Int64)
	s := memory(Batch, 1, all...)
	s.open = func(int64, int64) (storage.ChunkQuerier, error) {
		return &countingQuerier{memoryQuerier{all: all}, met}, nil
	}
	pool = NewMemoryPool(limit)
	o := testOptions(50_000_000)
	o.Memory = pool
	set := NewSet()
	set.Replace(nil, []Entry{{Source: s}})
	return NewEngine(o), NewQueryable(set, Options{Memory: pool, ExternalLabels: labels.FromStrings("site", "north")}), pool, met
}

func numbered(n int, more ...string) (all []*storage.SeriesEntry) {
	for i := range n {
		all = append(all, entry(labels.FromStrings(append([]string{"__name__", "m", "i", fmt.Sprintf("%05d", i)}, more...)...), 0, 1))
	}
	return all
}

// Under external labels all series are gathered first, whatever they are gathered for: that is limited.
func TestSeriesUnderExternalLabelsAreChargedAsTheyAreGathered(t *testing.T) {
	named := labels.MustNewMatcher(labels.MatchEqual, "__name__", "m")
	north := labels.MustNewMatcher(labels.MatchEqual, "site", "north")
	for name, ask := range map[string]func(*Engine, *Queryable, storage.Querier) error{
		"a query": func(engine *Engine, qb *Queryable, _ storage.Querier) error {
			_, err := run(t, engine, qb, `m`, 0, 0)
			return err
		},
		"names of labels": func(_ *Engine, _ *Queryable, q storage.Querier) error {
			_, _, err := q.LabelNames(t.Context(), nil, named, north)
			return err
		},
		"values of a label": func(_ *Engine, _ *Queryable, q storage.Querier) error {
			_, _, err := q.LabelValues(t.Context(), "site", nil, named, north)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			engine, qb, pool, met := northern(100<<10, numbered(2_000)...)
			q, err := qb.Querier(0, 1000)
			require.NoError(t, err)
			require.ErrorIs(t, ask(engine, qb, q), ErrMemory)
			require.Less(t, met.Load(), int64(1_500), "it is not read to its end")
			require.NoError(t, q.Close())
			require.Zero(t, pool.Used())
		})
	}
}

// What matchers leave out or a limit cuts off does not count.
func TestSeriesThatAreNotAnsweredAreNotCharged(t *testing.T) {
	engine, qb, _, _ := northern(2<<20, numbered(20_000)...)
	_, err := run(t, engine, qb, `m{site="north",i=~"0000."}`, 0, 0)
	require.NoError(t, err)

	q, err := qb.Querier(0, 1000)
	require.NoError(t, err)
	defer q.Close()
	found := q.Select(t.Context(), true, &storage.SelectHints{Start: 0, End: 1000, Func: seriesOnly, Limit: 3}, labels.MustNewMatcher(labels.MatchEqual, "__name__", "m"))
	var got []string
	for found.Next() {
		got = append(got, found.At().Labels().Get("i"))
	}
	require.NoError(t, found.Err())
	require.Equal(t, []string{"00000", "00001", "00002"}, got)
}

// A series that was stored both with an external label and without it is one in the answer, and charged once.
func TestSeriesThatAreOneInTheAnswerAreChargedOnce(t *testing.T) {
	charged := func(all ...*storage.SeriesEntry) int64 {
		_, qb, pool, _ := northern(1<<30, all...)
		q, err := qb.Querier(0, 100_000)
		require.NoError(t, err)
		defer q.Close()
		set := q.Select(t.Context(), true, &storage.SelectHints{Start: 0, End: 100_000, Step: 1000, Func: "rate"}, labels.MustNewMatcher(labels.MatchEqual, "__name__", "m"))
		n := 0
		for set.Next() {
			n++
		}
		require.NoError(t, set.Err())
		require.Equal(t, 100, n)
		return pool.Used()
	}
	both := append(numbered(100), numbered(100, "site", "north")...)
	slices.SortFunc(both, func(a, b *storage.SeriesEntry) int { return labels.Compare(a.Labels(), b.Labels()) })
	require.Less(t, charged(both...), charged(numbered(100)...)*3/2)
}

// countingQuerier counts the series that are read.
type countingQuerier struct {
	memoryQuerier
	met *atomic.Int64 // as sources are read ahead
}

func (q *countingQuerier) Select(_ context.Context, _ bool, _ *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	return &memorySet{all: q.matching(ms), i: -1, onNext: func(int) { q.met.Add(1) }}
}
