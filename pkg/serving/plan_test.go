package serving

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"
)

func planOf(t *testing.T, qs string, end, step time.Duration) (*plan, error) {
	t.Helper()
	expr, err := testOptions(1).PromQL.Parser.ParseExpr(qs)
	require.NoError(t, err, qs)
	from, to := time.UnixMilli(0), time.UnixMilli(end.Milliseconds())
	expr, err = promql.PreprocessExpr(expr, from, to, step)
	require.NoError(t, err)
	return newPlan(&parser.EvalStmt{Expr: expr, Start: from, End: to, Interval: step, LookbackDelta: 5 * time.Minute}, 1e6, func(int64) int64 { return 60_000 })
}

// What the engine holds for one series of each selector, over 101 steps.
func TestDemands(t *testing.T) {
	for _, c := range []struct {
		query string
		want  []int64
	}{
		{`a`, []int64{101}},
		{`-a`, []int64{101}},
		{`sum(a)`, []int64{101}},
		{`abs(a)`, []int64{202}},
		{`sum(abs(a))`, []int64{202}},
		{`abs(sum(a))`, []int64{101}},
		{`a + b`, []int64{202, 202}},
		{`sum(a) / sum(b)`, []int64{101, 101}},
		{`a > 5`, []int64{202}},
		{`rate(a[5m])`, []int64{101}},
		{`topk(5, rate(a[5m]))`, []int64{101}},
		{`rate(a[5m]) * 8`, []int64{202}},
		{`timestamp(a)`, []int64{101}},
		{`label_replace(a, "x", "$1", "y", "(.*)")`, []int64{101}},
		{`count_values("v", a)`, []int64{202}},
		{`absent(a)`, []int64{202}},
		{`scalar(a) + vector(1)`, []int64{202}},
		{`a @ 0`, []int64{102}},
		{`sum(a @ 0)`, []int64{1}},
		{`max_over_time(a[10m:1m])`, []int64{111 + 101}},
		{`max_over_time(rate(a[5m])[10m:])`, []int64{111 + 101}},
		{`max_over_time(sum(a)[10m:1m])`, []int64{111}},
		{`sum(max_over_time((a + b)[10m:1m]))`, []int64{222, 222}},
		{`max_over_time(min_over_time(a[10m:1m])[30m:1m])`, []int64{141 + 131}},
	} {
		p, err := planOf(t, c.query, 100*time.Minute, time.Minute)
		require.NoError(t, err)
		var got []int64
		for m, d := range p.demands {
			require.NotEmpty(t, m.Value)
			got = append(got, d.points+d.room)
		}
		slices.Sort(got)
		require.Equal(t, c.want, got, c.query)
	}
}

func TestInstantDemands(t *testing.T) {
	p, err := planOf(t, `a[5m]`, 0, 0)
	require.NoError(t, err)
	for _, d := range p.demands {
		require.True(t, d.raw, "the samples are the answer")
	}
	p, err = planOf(t, `sum_over_time(vector(1)[1h:1s])`, 0, 0)
	require.NoError(t, err)
	require.Greater(t, p.static, int64(3600*(pointSize+stepBookkeeping)))
	require.Less(t, p.static, int64(3600*3*(pointSize+stepBookkeeping)))
	_, err = planOf(t, `vector(1)`, time.Hour, time.Millisecond)
	require.ErrorContains(t, err, "the query has 3600001 steps of 1ms")
	require.ErrorAs(t, err, new(promql.ErrTooManySamples))
}

// No plan may refuse what Prometheus's engine is asked for every day.
func TestEverydayQueriesAreNotRefused(t *testing.T) {
	for _, qs := range append(modelQueries, promqlBuiltins(t)...) {
		_, err := planOf(t, qs, 24*time.Hour, 30*time.Second)
		require.NoError(t, err, qs)
	}
}

func promqlBuiltins(t *testing.T) []string {
	var out []string
	for _, f := range []string{"rate", "increase", "avg_over_time", "stddev_over_time"} {
		for _, window := range []string{"5m", "1h", "30d"} {
			out = append(out, fmt.Sprintf(`sum by (job) (%s(a[%s]))`, f, window), fmt.Sprintf(`max_over_time(%s(a[%s])[1d:1m])`, f, window))
		}
	}
	require.NotEmpty(t, out)
	return out
}

func TestHistogramsCostWhatTheyTake(t *testing.T) {
	c := chunkenc.NewHistogramChunk()
	app, err := c.Appender()
	require.NoError(t, err)
	h := tsdbutil.GenerateTestHistogram(1)
	_, _, _, err = app.AppendHistogram(nil, 0, 0, h, true)
	require.NoError(t, err)
	n, err := extraSize(chunks.Meta{Chunk: c})
	require.NoError(t, err)
	require.EqualValues(t, h.ToFloat(nil).Size(), n)
}

func TestEstimateFollowsTheTimeThatASeriesCovers(t *testing.T) {
	part := func(s *storage.SeriesEntry) storage.ChunkSeries { return storage.NewSeriesToChunkEncoder(s) }
	e := estimator{demand: demand{points: 1000, window: 0}, start: 0, end: 999_000}
	for _, c := range []struct {
		from, n int
		want    int64
	}{
		{0, 1000, 1000}, {0, 500, 500}, {250, 500, 500}, {-500, 1000, 500}, {-500, 100, 0}, {2000, 5, 0},
	} {
		points, more, err := e.measure([]storage.ChunkSeries{part(entry(metric("m"), int64(c.from)*1000, make([]float64, c.n)...))})
		require.NoError(t, err)
		require.Zero(t, more)
		require.InDelta(t, c.want, points, 2, "%+v", c)
	}
	e.window = 100_000
	points, _, err := e.measure([]storage.ChunkSeries{part(entry(metric("m"), 0, 1))})
	require.NoError(t, err)
	require.InDelta(t, 100, points, 2, "a sample counts for the lookback delta")
	e.room = 70
	points, _, err = e.measure([]storage.ChunkSeries{part(entry(metric("m"), 0, 1))})
	require.NoError(t, err)
	require.InDelta(t, 170, points, 2, "room is made even for points that are not there")
	e.raw = true
	points, _, err = e.measure([]storage.ChunkSeries{part(entry(metric("m"), 0, 1, 2, 3)), part(entry(metric("m"), 0, 1))})
	require.NoError(t, err)
	require.EqualValues(t, 4, points)
}
