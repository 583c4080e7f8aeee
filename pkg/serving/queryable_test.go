package serving

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
)

func newSet(sources ...Source) *Set {
	set := NewSet()
	var add []Entry
	for _, s := range sources {
		add = append(add, Entry{Source: s})
	}
	set.Replace(nil, add)
	return set
}

var allSeries = labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+")

// read returns everything that a querier finds, as text.
func read(ctx context.Context, t *testing.T, q storage.Queryable, mint, maxt int64, hints *storage.SelectHints, ms ...*labels.Matcher) (out []string) {
	t.Helper()
	querier, err := q.Querier(mint, maxt)
	require.NoError(t, err)
	defer querier.Close()
	if len(ms) == 0 {
		ms = []*labels.Matcher{allSeries}
	}
	set := querier.Select(ctx, false, hints, ms...)
	var it chunkenc.Iterator
	for set.Next() {
		line := set.At().Labels().String()
		for it = set.At().Iterator(it); it.Next() != chunkenc.ValNone; {
			ts, v := it.At()
			line += fmt.Sprintf(" %v@%d", v, ts/1000)
		}
		require.NoError(t, it.Err())
		out = append(out, line)
	}
	require.NoError(t, set.Err())
	return out
}

func TestLayersAndPrecedence(t *testing.T) {
	a := metric("a")
	old := memory(Batch, 1, entry(a, 0, 1, 1, 1), entry(metric("b"), 0, 7))
	newer := memory(Speed, 2, entry(a, 1000, 2, 2, 2))
	other := memory(Speed, 3, entry(metric("c"), 0, 9))
	q := NewQueryable(newSet(newer, old, other), Options{})
	at := func(l Layer) []string {
		return read(WithLayer(t.Context(), l), t, q, math.MinInt64, math.MaxInt64, nil)
	}
	require.Equal(t, []string{`{__name__="a"} 1@0 2@1 2@2 2@3`, `{__name__="b"} 7@0`, `{__name__="c"} 9@0`}, at(Merged))
	require.Equal(t, []string{`{__name__="a"} 2@1 2@2 2@3`, `{__name__="c"} 9@0`}, at(Speed))
	require.Equal(t, []string{`{__name__="a"} 1@0 1@1 1@2`, `{__name__="b"} 7@0`}, at(Batch))
	require.Equal(t, []string{`{__name__="a"} 2@2`, `{__name__="b"}`, `{__name__="c"}`}, read(t.Context(), t, q, 2000, 2000, nil), "without hints it is trimmed")
	require.Len(t, read(t.Context(), t, q, 0, 9000, &storage.SelectHints{Start: 0, End: 9000, Limit: 2}), 2)

	for _, name := range []string{"merged", "speed", "batch", ""} {
		l, err := ParseLayer(name)
		require.NoError(t, err)
		require.Contains(t, []string{name, "merged"}, l.String())
	}
	_, err := ParseLayer("all")
	require.ErrorContains(t, err, "must be merged, speed or batch")
}

func TestSourcesOutsideOfTheRangeAreNotRead(t *testing.T) {
	broken := &fakeSource{layer: Batch, mint: 0, maxt: 1000, open: func(int64, int64) (storage.ChunkQuerier, error) { return nil, errors.New("broken") }}
	empty := &fakeSource{layer: Speed, mint: math.MaxInt64, maxt: math.MinInt64, open: broken.open}
	q := NewQueryable(newSet(broken, empty), Options{})
	require.Empty(t, read(t.Context(), t, q, 1001, 2000, nil))
	querier, err := q.Querier(1000, 2000)
	require.NoError(t, err)
	defer querier.Close()
	set := querier.Select(t.Context(), false, nil, allSeries)
	require.False(t, set.Next())
	require.ErrorContains(t, set.Err(), "open source of the batch layer: broken")
	_, _, err = querier.LabelNames(t.Context(), nil)
	require.ErrorContains(t, err, "broken")
}

func TestHorizon(t *testing.T) {
	horizon := int64(2000)
	q := NewQueryable(newSet(memory(Speed, 1, entry(metric("a"), 0, 0, 1, 2, 3))), Options{Horizon: func() int64 { return horizon }})
	require.Equal(t, []string{`{__name__="a"} 2@2 3@3`}, read(t.Context(), t, q, 0, 9000, &storage.SelectHints{Start: 0, End: 9000}))
	require.Empty(t, read(t.Context(), t, q, 0, 1999, nil))
	cq, err := q.ChunkQuerier(0, 9000)
	require.NoError(t, err)
	defer cq.Close()
	set := cq.Select(t.Context(), true, nil, allSeries)
	require.True(t, set.Next())
	it := set.At().Iterator(nil)
	require.True(t, it.Next())
	require.EqualValues(t, 2000, it.At().MinTime)
	require.Equal(t, 2, it.At().Chunk.NumSamples())
	require.False(t, it.Next())
	require.False(t, set.Next())
	require.NoError(t, set.Err())
}

func TestLabels(t *testing.T) {
	q := NewQueryable(newSet(
		memory(Batch, 1, entry(metric("a", "x", "1"), 0, 1)), memory(Speed, 2, entry(metric("b", "y", "2"), 0, 1), entry(metric("b", "x", "0"), 0, 1)),
	), Options{})
	querier, err := q.Querier(0, 1000)
	require.NoError(t, err)
	defer querier.Close()
	names, _, err := querier.LabelNames(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, []string{"__name__", "x", "y"}, names)
	names, _, err = querier.LabelNames(t.Context(), &storage.LabelHints{Limit: 2})
	require.NoError(t, err)
	require.Equal(t, []string{"__name__", "x"}, names)
	values, _, err := querier.LabelValues(t.Context(), "x", nil)
	require.NoError(t, err)
	require.Equal(t, []string{"0", "1"}, values)
	values, _, err = querier.LabelValues(WithLayer(t.Context(), Batch), "x", nil)
	require.NoError(t, err)
	require.Equal(t, []string{"1"}, values)
	values, _, err = querier.LabelValues(t.Context(), "x", nil, labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, "b"))
	require.NoError(t, err)
	require.Equal(t, []string{"0"}, values)
}

// External labels are answered as if every series had them, but a series' own label of that name counts more.
func TestExternalLabels(t *testing.T) {
	own, other, none := metric("m", "site", "x", "z", "1"), metric("m", "site", "y"), metric("m", "z", "1")
	q := NewQueryable(newSet(
		memory(Batch, 1, entry(own, 0, 1, 1), entry(other, 0, 2)), memory(Speed, 2, entry(none, 1000, 3, 3)),
	), Options{ExternalLabels: labels.FromStrings("site", "x", "zone", "eu")})
	const (
		x = `{__name__="m", site="x", z="1", zone="eu"} 1@0 3@1 3@2` // two stored series with the same labels are one
		y = `{__name__="m", site="y", zone="eu"} 2@0`
	)
	match := labels.MustNewMatcher
	for _, c := range []struct {
		ms   []*labels.Matcher
		want []string
	}{
		{[]*labels.Matcher{allSeries}, []string{x, y}},
		{[]*labels.Matcher{match(labels.MatchEqual, "site", "x")}, []string{x}},
		{[]*labels.Matcher{match(labels.MatchEqual, "site", "y")}, []string{y}},
		{[]*labels.Matcher{match(labels.MatchEqual, "site", "")}, nil},
		{[]*labels.Matcher{match(labels.MatchNotEqual, "site", "")}, []string{x, y}},
		{[]*labels.Matcher{match(labels.MatchNotEqual, "site", "x")}, []string{y}},
		{[]*labels.Matcher{match(labels.MatchNotEqual, "site", "y")}, []string{x}},
		{[]*labels.Matcher{match(labels.MatchRegexp, "site", "x|y")}, []string{x, y}},
		{[]*labels.Matcher{match(labels.MatchRegexp, "site", ".*")}, []string{x, y}},
		{[]*labels.Matcher{match(labels.MatchRegexp, "site", "|q")}, nil},
		{[]*labels.Matcher{match(labels.MatchNotRegexp, "site", "|y")}, []string{x}},
		{[]*labels.Matcher{match(labels.MatchEqual, "zone", "us")}, nil},
		{[]*labels.Matcher{match(labels.MatchEqual, "zone", "eu"), match(labels.MatchEqual, "z", "1")}, []string{x}},
	} {
		require.Equal(t, c.want, read(t.Context(), t, q, 0, 9000, nil, c.ms...), "%v", c.ms)
	}
	require.Len(t, read(t.Context(), t, q, 0, 9000, &storage.SelectHints{End: 9000, Limit: 1}), 1)

	querier, err := q.Querier(0, 9000)
	require.NoError(t, err)
	defer querier.Close()
	for _, c := range []struct {
		name string
		ms   []*labels.Matcher
		want []string
	}{
		{"site", nil, []string{"x", "y"}},
		{"zone", nil, []string{"eu"}},
		{"zone", []*labels.Matcher{match(labels.MatchEqual, "z", "2")}, nil},
		{"site", []*labels.Matcher{match(labels.MatchEqual, "zone", "eu"), match(labels.MatchEqual, "z", "1")}, []string{"x"}},
		{"z", []*labels.Matcher{match(labels.MatchEqual, "site", "x")}, []string{"1"}},
		{"z", []*labels.Matcher{match(labels.MatchEqual, "site", "y")}, nil},
	} {
		values, _, err := querier.LabelValues(t.Context(), c.name, nil, c.ms...)
		require.NoError(t, err)
		require.ElementsMatch(t, c.want, values, "%s %v", c.name, c.ms)
	}
	names, _, err := querier.LabelNames(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, []string{"__name__", "site", "z", "zone"}, names)
	names, _, err = querier.LabelNames(t.Context(), nil, match(labels.MatchEqual, "site", "y"))
	require.NoError(t, err)
	require.Equal(t, []string{"__name__", "site", "zone"}, names)
}

// setSource is a source of one prepared set.
func setSource(layer Layer, set func(ctx context.Context) storage.ChunkSeriesSet) *fakeSource {
	s := &fakeSource{layer: layer, mint: math.MinInt64, maxt: math.MaxInt64}
	s.open = func(int64, int64) (storage.ChunkQuerier, error) { return &setQuerier{set: set}, nil }
	return s
}

type setQuerier struct {
	memoryQuerier
	set func(ctx context.Context) storage.ChunkSeriesSet
}

func (q *setQuerier) Select(ctx context.Context, _ bool, _ *storage.SelectHints, _ ...*labels.Matcher) storage.ChunkSeriesSet {
	return q.set(ctx)
}

func (q *setQuerier) LabelNames(ctx context.Context, _ *storage.LabelHints, _ ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return []string{"n"}, nil, q.set(ctx).Err()
}

func TestErrorsAndPanicsOfASourceFailTheQuery(t *testing.T) {
	good := memory(Speed, 9, many(600, "m", 2)...)
	var some []storage.Series
	for _, s := range many(500, "m", 1) {
		some = append(some, s)
	}
	for _, layer := range []Layer{Speed, Batch} {
		for name, c := range map[string]struct {
			set  func(context.Context) storage.ChunkSeriesSet
			want string
		}{
			"error in the middle": {func(context.Context) storage.ChunkSeriesSet {
				return &memorySet{all: some, i: -1, err: errors.New("lost")}
			}, "lost"},
			"panic": {func(context.Context) storage.ChunkSeriesSet {
				return &memorySet{all: some, i: -1, onNext: func(i int) {
					if i == 400 {
						panic(errors.New("oh no"))
					}
				}}
			}, "oh no"},
		} {
			t.Run(fmt.Sprintf("%s/%s", layer, name), func(t *testing.T) {
				engine, q, pool := limited(1<<30, good, setSource(layer, c.set))
				_, err := run(t, engine, q, `count(m)`, 0, 0)
				require.ErrorContains(t, err, c.want)
				require.Zero(t, pool.Used())
			})
		}
	}
}

func TestWarningsArePassedOn(t *testing.T) {
	for _, layer := range []Layer{Speed, Batch} {
		engine, q, _ := limited(0, setSource(layer, func(context.Context) storage.ChunkSeriesSet {
			return &memorySet{i: -1, warnings: annotations.New().Add(errors.New("beware"))}
		}), memory(Speed, 1, entry(metric("m"), 0, 1)))
		qry, err := engine.NewInstantQuery(t.Context(), q, nil, `m`, time.UnixMilli(0))
		require.NoError(t, err)
		defer qry.Close()
		res := qry.Exec(t.Context())
		require.NoError(t, res.Err)
		ws, _ := res.Warnings.AsStrings("", 10, 10)
		require.Equal(t, []string{"beware"}, ws)
	}
}

// A querier that is closed early, or whose context ends, leaves no goroutine behind, and its user hears why.
func TestClosingEarly(t *testing.T) {
	blocked := setSource(Batch, func(ctx context.Context) storage.ChunkSeriesSet {
		<-ctx.Done()
		return storage.ErrChunkSeriesSet(ctx.Err())
	})
	endless := memory(Batch, 1, many(5000, "m", 1)...)
	q := NewQueryable(newSet(blocked, endless), Options{})
	querier, err := q.Querier(0, 1000)
	require.NoError(t, err)
	querier.Select(t.Context(), false, nil, allSeries)
	require.NoError(t, querier.Close())
	require.NoError(t, querier.Close())
	set := querier.Select(t.Context(), false, nil, allSeries)
	require.False(t, set.Next())
	require.ErrorIs(t, set.Err(), errClosed)

	querier, err = q.Querier(0, 1000)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	set = querier.Select(ctx, false, nil, allSeries)
	cancel()
	require.False(t, set.Next())
	require.ErrorIs(t, set.Err(), context.Canceled)
	require.NoError(t, querier.Close())
}

// The sets of all sources are opened at the same time, or a bucket's latencies would add up.
func TestBucketsAreReadAtTheSameTime(t *testing.T) {
	const n = 8
	var begun atomic.Int64
	all := make(chan struct{})
	var sources []Source
	for range n {
		sources = append(sources, setSource(Batch, func(context.Context) storage.ChunkSeriesSet {
			if begun.Add(1) == n {
				close(all)
			}
			<-all
			return storage.EmptyChunkSeriesSet()
		}))
	}
	require.Empty(t, read(t.Context(), t, NewQueryable(newSet(sources...), Options{}), 0, 1000, nil))
}

// When a block is gone, everything is read once more from what there is then.
func TestGoneBlocksAreReadAgain(t *testing.T) {
	gone := func() (*fakeSource, *atomic.Int64) {
		var n atomic.Int64
		return setSource(Batch, func(context.Context) storage.ChunkSeriesSet {
			n.Add(1)
			return storage.ErrChunkSeriesSet(fmt.Errorf("read block: %w", block.ErrGone))
		}), &n
	}
	t.Run("replaced", func(t *testing.T) {
		old, n := gone()
		set := newSet(old)
		replace := func(context.Context) error {
			set.Replace([]Source{old}, []Entry{{Source: memory(Batch, 1, entry(metric("m"), 0, 1))}})
			return nil
		}
		o := testOptions(1000)
		o.Refresh = replace
		engine, q := NewEngine(o), NewQueryable(set, Options{Refresh: replace})
		out, err := run(t, engine, q, `m`, 0, 0)
		require.NoError(t, err)
		require.Contains(t, out, "=> 1")
		require.EqualValues(t, 1, n.Load())

		set.Replace(set.Sources(), []Entry{{Source: old}})
		require.Equal(t, []string{`{__name__="m"}`}, read(t.Context(), t, q, 0, 1000, &storage.SelectHints{End: 1000, Func: "series"}))
		set.Replace(set.Sources(), []Entry{{Source: old}})
		querier, err := q.Querier(0, 1000)
		require.NoError(t, err)
		defer querier.Close()
		names, _, err := querier.LabelNames(t.Context(), nil)
		require.NoError(t, err)
		require.Equal(t, []string{"__name__"}, names)
	})
	t.Run("still gone", func(t *testing.T) {
		old, n := gone()
		engine, q, pool := limited(1<<20, old)
		_, err := run(t, engine, q, `m`, 0, 0)
		require.ErrorIs(t, err, block.ErrGone)
		require.EqualValues(t, 2, n.Load())
		require.Zero(t, pool.Used())
	})
	t.Run("no replacement to be found", func(t *testing.T) {
		old, n := gone()
		o := testOptions(1000)
		o.Refresh = func(context.Context) error { return errors.New("bucket is away") }
		_, err := run(t, NewEngine(o), NewQueryable(newSet(old), Options{}), `m`, 0, 0)
		require.ErrorIs(t, err, block.ErrGone)
		require.ErrorContains(t, err, "bucket is away")
		require.EqualValues(t, 1, n.Load())
	})
}

// Who meets a limit learns which it is, and the API still knows the error.
func TestErrorsNameTheLimit(t *testing.T) {
	o := testOptions(100)
	q := NewQueryable(newSet(memory(Speed, 1, many(200, "m", 1)...)), Options{})
	_, err := run(t, NewEngine(o), q, `m`, 0, 0)
	require.ErrorAs(t, err, new(promql.ErrTooManySamples))
	require.EqualError(t, err, "query processing would load too many samples into memory in query execution: more than --query.max-samples=100")

	o = testOptions(50_000_000)
	qry, err := NewEngine(o).NewInstantQuery(t.Context(), q, nil, `m`, time.UnixMilli(0))
	require.NoError(t, err)
	defer qry.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	err = qry.Exec(ctx).Err
	require.ErrorAs(t, err, new(promql.ErrQueryTimeout))
	require.NotContains(t, err.Error(), "--query.timeout", "the time was the caller's")
}

// A request to the bucket that has a deadline of its own says nothing of the time that queries have.
func TestDeadlineOfARequestIsNoTimeoutOfTheQuery(t *testing.T) {
	broken := setSource(Batch, func(context.Context) storage.ChunkSeriesSet {
		return storage.ErrChunkSeriesSet(fmt.Errorf("get index: %w", context.DeadlineExceeded))
	})
	o := testOptions(1000)
	_, err := run(t, NewEngine(o), NewQueryable(newSet(broken), Options{}), `m`, 0, 0)
	require.ErrorContains(t, err, "get index: ")
	require.NotErrorAs(t, err, new(promql.ErrQueryTimeout))
	require.NotContains(t, err.Error(), "--query.timeout")
}

func TestTimeAndCancelling(t *testing.T) {
	slow := setSource(Batch, func(ctx context.Context) storage.ChunkSeriesSet {
		<-ctx.Done()
		return storage.ErrChunkSeriesSet(ctx.Err())
	})
	o := testOptions(1000)
	o.PromQL.Timeout = 10 * time.Millisecond
	engine, q := NewEngine(o), NewQueryable(newSet(slow), Options{})
	_, err := run(t, engine, q, `m`, 0, 0)
	require.ErrorAs(t, err, new(promql.ErrQueryTimeout))
	require.ErrorContains(t, err, "longer than --query.timeout=10ms")

	o.PromQL.Timeout = time.Minute
	qry, err := NewEngine(o).NewInstantQuery(t.Context(), q, nil, `m`, time.UnixMilli(0))
	require.NoError(t, err)
	defer qry.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorAs(t, qry.Exec(ctx).Err, new(promql.ErrQueryCanceled))
	require.Equal(t, "m", qry.String())
	require.NotNil(t, qry.Statement())
	require.NotNil(t, qry.Stats())
	qry.Cancel()
}
