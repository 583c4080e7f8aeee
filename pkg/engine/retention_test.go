package engine

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/serving"
)

// counted sums the values of a counter whose label has the value.
func counted(t *testing.T, e *Engine, name, value string) (sum float64) {
	t.Helper()
	families, err := e.gatherer.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == name && l.GetValue() == value {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

func TestRetention(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	old, older, recent := point{now - 20*dayMillis, 1}, point{now - 40*dayMillis, 2}, point{now, 3}
	e := startEngine(t, testConfig(t, path))
	write(t, e, "a", old, older, recent)
	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, []point{older, old, recent}, read(t, e, serving.Merged, "a", now, 1000*time.Hour))
	stopEngine(t, e)

	cfg := testConfig(t, path, "--storage.retention.time=10d")
	cfg.Bucket.SyncInterval, cfg.Query.Timeout = 50*time.Millisecond, time.Second
	cfg.Batch.DeletionDelay = 2*cfg.Bucket.SyncInterval + cfg.Query.Timeout
	e = startEngine(t, cfg)
	w := post(t, e.receiver, "b", 2, older.t)
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Contains(t, w.Body.String(), "retention")
	require.Zero(t, samplesInMemory(e))
	require.Equal(t, 2.0, counted(t, e, "millrace_ingest_rejected_samples_total", "beyond_retention"))
	require.Equal(t, []point{recent}, read(t, e, serving.Merged, "a", now, 1000*time.Hour), "queries end at the horizon")
	require.NotNil(t, e.Layers().Watermarks.Horizon)
	require.NoError(t, e.RunBatch(t.Context()))
	listed, err := block.List(t.Context(), e.data.bucket)
	require.NoError(t, err)
	for _, l := range listed {
		if l.DeletionMark != nil && strings.HasPrefix(l.DeletionMark.Details, "replaced") {
			continue
		}
		require.Equal(t, l.Meta.MaxTime <= now-10*dayMillis, l.DeletionMark != nil && strings.HasPrefix(l.DeletionMark.Details, "all samples are older"))
	}
	require.Equal(t, []point{recent}, read(t, e, serving.Merged, "a", now, 1000*time.Hour))
}

// Wherever a sample is, it is seen as long as its series' rule says, and no longer.
func TestRetentionRules(t *testing.T) {
	path := t.TempDir()
	var later atomic.Int64 // ns
	cfg := testConfig(t, path, `--storage.retention.time=30d`, `--storage.retention.rule={series=~"a.*"}: 2d`)
	cfg.now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	e := startEngine(t, cfg)
	now := time.Now().UnixMilli()
	const hour = windowMillis / 2
	points := []point{{now - 47*hour, 1}, {now - 30*hour, 2}, {now - hour, 3}}
	write(t, e, "a", points...)
	write(t, e, "b", points...)
	w := post(t, e.receiver, "a", 2, now-49*hour)
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Contains(t, w.Body.String(), `the retention rule {series=~"a.*"}: 2d keeps`)
	require.Equal(t, 2.0, counted(t, e, "millrace_ingest_rejected_samples_total", "beyond_retention_rule"))
	require.Equal(t, http.StatusNoContent, post(t, e.receiver, "c", 2, now-49*hour).Code)

	rules := e.Layers().Watermarks.Rules
	require.Len(t, rules, 1)
	require.Equal(t, `{series=~"a.*"}`, rules[0].Match)
	require.Greater(t, rules[0].Horizon, now-49*hour)

	check := func(where string, left []point) {
		t.Helper()
		for _, row := range []struct {
			later time.Duration
			from  int64
		}{{0, now - 48*hour}, {2 * time.Hour, now - 46*hour}, {20 * time.Hour, now - 28*hour}, {50 * time.Hour, now + 2*hour}} {
			later.Store(int64(row.later))
			var want []point
			for _, p := range left {
				if p.t >= row.from {
					want = append(want, p)
				}
			}
			require.Equal(t, want, read(t, e, serving.Merged, "a", now, 1000*time.Hour), "%s, %s later", where, row.later)
			require.Equal(t, points, read(t, e, serving.Merged, "b", now, 1000*time.Hour), "%s, %s later", where, row.later)
		}
		later.Store(0)
	}
	check("in memory", points)
	stopEngine(t, e)
	e = startEngine(t, cfg)
	check("from the log", points)
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
	check("in local blocks", points)
	require.NoError(t, e.uploadOnce(t.Context()))
	check("in the bucket", points)
	require.NoError(t, e.RunBatch(t.Context()))
	check("compacted", points)

	for range 4 { // a day, by a clock that may be wrong
		later.Add(int64(6 * time.Hour))
		require.NoError(t, e.RunBatch(t.Context()))
	}
	later.Store(0)
	check("waiting", points)
	for hours := range 8 {
		later.Store(int64(80+6*hours) * int64(time.Hour))
		require.NoError(t, e.RunBatch(t.Context()))
	}
	check("dropped", nil)
	stopEngine(t, e)
	e = startEngine(t, testConfig(t, path)) // without the rule
	require.Empty(t, read(t, e, serving.Merged, "a", now, 1000*time.Hour))
	require.Equal(t, points, read(t, e, serving.Merged, "b", now, 1000*time.Hour))
	require.NoError(t, e.RunBatch(t.Context()))
	require.Empty(t, read(t, e, serving.Merged, "a", now, 1000*time.Hour))
}

// value asks for a series' current value.
func value(t *testing.T, e *Engine, query string, at time.Time) float64 {
	t.Helper()
	q, err := e.queries.NewInstantQuery(t.Context(), e.queryable, nil, query, at)
	require.NoError(t, err)
	defer q.Close()
	v, err := q.Exec(t.Context()).Vector()
	require.NoError(t, err)
	require.Len(t, v, 1, query)
	return v[0].F
}

func TestTheEngineScrapesItself(t *testing.T) {
	path := t.TempDir()
	e := startEngine(t, testConfig(t, path))
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "test_seconds", Help: "A histogram.", Buckets: []float64{0.5, 1}})
	s := prometheus.NewSummary(prometheus.SummaryOpts{Name: "test_size", Help: "A summary.", Objectives: map[float64]float64{0.5: 0.1}})
	e.reg.MustRegister(h, s)
	for _, v := range []float64{0.1, 0.7, 3} {
		h.Observe(v)
		s.Observe(v)
	}
	now := time.Now()
	require.NoError(t, e.scrapeOnce(t.Context(), now))

	check := func() {
		t.Helper()
		for query, want := range map[string]float64{
			`up{job="millrace",instance="embedded"}`: 1,
			`test_seconds_bucket{le="0.5"}`:          1, `test_seconds_bucket{le="1"}`: 2, `test_seconds_bucket{le="+Inf"}`: 3,
			`test_seconds_count`: 3, `test_seconds_sum`: 3.8, `test_size{quantile="0.5"}`: 0.7, `test_size_count`: 3, `test_size_sum`: 3.8,
			`sum(scrape_samples_scraped) == bool count({job="millrace",__name__!~"up|scrape_.*"})`: 1,
		} {
			require.InDelta(t, want, value(t, e, query, now), 1e-9, query)
		}
		known := e.Metadata()
		require.Equal(t, metadata.Metadata{Type: model.MetricTypeHistogram, Help: "A histogram."}, known["test_seconds"])
		require.Equal(t, metadata.Metadata{Type: model.MetricTypeSummary, Help: "A summary."}, known["test_size"])
		require.Equal(t, model.MetricTypeGauge, known["up"].Type)
	}
	check()
	stopEngine(t, e)
	e = startEngine(t, testConfig(t, path)) // from the log
	check()
	require.NoError(t, e.RunBatch(t.Context()))
	stopEngine(t, e)
	e = startEngine(t, testConfig(t, path)) // from blocks and the saved metadata
	check()
}
