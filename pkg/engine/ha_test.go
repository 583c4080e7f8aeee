package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
)

// scrape is what one replica sends of a scrape: a request of floats, one with a histogram and an exemplar, and one of version 2.0.
func scrape(t *testing.T, e *Engine, replica string, at int64, v float64) {
	t.Helper()
	labels := func(name string) []prompb.Label {
		return []prompb.Label{{Name: "__name__", Value: name}, {Name: "__replica__", Value: replica}, {Name: "cluster", Value: "one"}}
	}
	send := func(p ingest.Protocol, req interface{ Marshal() ([]byte, error) }, want ingest.Written) {
		raw, err := req.Marshal()
		require.NoError(t, err)
		w, err := e.receiver.Ingest(t.Context(), p, snappy.Encode(nil, raw))
		require.NoError(t, err)
		require.Equal(t, want, w, "whether it is stored or not")
	}
	send(ingest.V1, &prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{
		Labels: labels("floats"), Samples: []prompb.Sample{{Timestamp: at, Value: v}},
	}}}, ingest.Written{Samples: 1})
	send(ingest.V1, &prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{
		Labels: labels("mixed"), Samples: []prompb.Sample{{Timestamp: at, Value: v}},
	}, {
		Labels: labels("histograms"), Histograms: []prompb.Histogram{prompb.FromIntHistogram(at, tsdbutil.GenerateTestHistogram(int64(v)))},
		Exemplars: []prompb.Exemplar{{Labels: []prompb.Label{{Name: "trace", Value: replica}}, Timestamp: at, Value: v}},
	}}}, ingest.Written{Samples: 1, Histograms: 1, Exemplars: 1})
	send(ingest.V2, &writev2.Request{
		Symbols: []string{"", "__name__", "second", "__replica__", replica, "cluster", "one"},
		Timeseries: []writev2.TimeSeries{{
			LabelsRefs: []uint32{1, 2, 3, 4, 5, 6}, Samples: []writev2.Sample{{Timestamp: at, Value: v}},
			Histograms: []writev2.Histogram{writev2.FromIntHistogram(0, at+1, tsdbutil.GenerateTestHistogram(int64(v)))},
		}},
	}, ingest.Written{Samples: 1, Histograms: 1})
}

// everything is all that the newest generations hold of cluster one.
func everything(t *testing.T, e *Engine, at int64) string {
	t.Helper()
	ctx := serving.WithLayer(context.Background(), serving.Speed)
	q, err := e.queries.NewInstantQuery(ctx, e.queryable, nil, `{cluster="one"}[2h]`, time.UnixMilli(at))
	require.NoError(t, err)
	defer q.Close()
	res := q.Exec(ctx)
	require.NoError(t, res.Err)
	return res.String()
}

func TestAPairOfReplicas(t *testing.T) {
	path := t.TempDir()
	now := time.Now().Truncate(time.Second)
	pairs := func() Config {
		cfg := testConfig(t, path, "--ingest.ha-replica-label=__replica__", "--ingest.ha-cluster-label=cluster", "--ingest.ha-failover=30s")
		cfg.Ingest.HA.Now = func() time.Time { return now }
		return cfg
	}
	at := now.Add(-time.Hour).UnixMilli()
	end := at + time.Hour.Milliseconds()
	e := startEngine(t, pairs())
	// Both replicas scrape, at slightly different times; their values say who and when.
	round := 0
	both := func(replicas ...string) {
		for i, r := range replicas {
			scrape(t, e, r, at+int64(round)*15_000+int64(i)*7, float64(100*len(r)+round))
		}
		now = now.Add(15 * time.Second)
		round++
	}
	const a, b = "a", "bb"
	both(a, b)
	both(b, a)
	both(a, b)
	// a fails: what b sends is dropped until nothing has come from a for 30 s.
	both(b)
	both(b)
	both(b, a)

	want := everything(t, e, end)
	require.NotContains(t, want, "__replica__")
	values := func(name string) (out []float64) {
		q, err := e.queries.NewInstantQuery(t.Context(), e.queryable, nil, name+"[2h]", time.UnixMilli(end))
		require.NoError(t, err)
		defer q.Close()
		m, err := q.Exec(t.Context()).Matrix()
		require.NoError(t, err)
		require.Len(t, m, 1, "the cluster is one series")
		for _, p := range m[0].Floats {
			out = append(out, p.F)
		}
		for _, p := range m[0].Histograms {
			out = append(out, p.H.Count)
		}
		return out
	}
	for _, name := range []string{"floats", "mixed", "second"} {
		require.Equal(t, []float64{100, 101, 102, 204, 205}, values(name)[:5], name)
	}
	require.Len(t, values("histograms"), 5)
	clusters := e.Layers().HAClusters
	require.Len(t, clusters, 1)
	require.Equal(t, ingest.HACluster{
		Cluster: "one", Replica: b, Since: now.Add(-30 * time.Second).UnixMilli(), LastStored: now.Add(-15 * time.Second).UnixMilli(),
		Elections: 2, Dropped: 5 * 5,
	}, clusters[0])
	raw, err := json.Marshal(e.Layers())
	require.NoError(t, err)
	require.Contains(t, string(raw), `"haClusters":[{"cluster":"one","replica":"bb",`)

	// What the log says depends on nothing but the log.
	for name, cfg := range map[string]func() Config{
		"the same flags": pairs,
		"no flags":       func() Config { return testConfig(t, path) },
		"other labels": func() Config {
			return testConfig(t, path, "--ingest.ha-replica-label=cluster", "--ingest.ha-cluster-label=other")
		},
		"any clock": func() Config {
			c := pairs()
			c.Ingest.HA.Now = func() time.Time { return time.Time{} }
			return c
		},
	} {
		stopEngine(t, e)
		e = startEngine(t, cfg())
		require.Equal(t, want, everything(t, e, end), name)
		require.Empty(t, e.Layers().HAClusters, "elections are not kept")
		require.EqualValues(t, 4, e.activeGeneration().mem.Stats().Series, name)
		require.Empty(t, e.Layers().Problems)
	}

	// After a restart the first that comes is elected.
	stopEngine(t, e)
	e = startEngine(t, pairs())
	require.Equal(t, want, everything(t, e, end))
	both(a, b)
	require.Equal(t, []float64{100, 101, 102, 204, 205, 106}, values("floats"))
	require.Equal(t, a, e.Layers().HAClusters[0].Replica)
	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, []float64{100, 101, 102, 204, 205, 106}, values("floats"))
	require.Equal(t, []float64{100, 101, 102, 204, 205, 106}, values("second")[:6])
}

// A series that was stored with the label before the feature was switched on is known by it; that must not let it through.
func TestSwitchingPairsOn(t *testing.T) {
	path := t.TempDir()
	at := time.Now().Add(-time.Minute).UnixMilli()
	e := startEngine(t, testConfig(t, path))
	for i, r := range []string{"a", "b"} {
		scrape(t, e, r, at+int64(i), 1)
	}
	require.EqualValues(t, 8, e.activeGeneration().mem.Stats().Series)
	require.Contains(t, everything(t, e, at+1000), "__replica__")
	stopEngine(t, e)

	e = startEngine(t, testConfig(t, path, "--ingest.ha-replica-label=__replica__", "--ingest.ha-cluster-label=cluster"))
	before := e.activeGeneration().mem.Stats()
	for i, r := range []string{"a", "b"} {
		scrape(t, e, r, at+100+int64(i), 1)
	}
	after := e.activeGeneration().mem.Stats()
	require.EqualValues(t, 12, after.Series)
	require.Equal(t, before.Samples+5, after.Samples)
	want := everything(t, e, at+1000)
	require.Contains(t, want, fmt.Sprintf("{__name__=\"floats\", cluster=\"one\"} =>\n1 @[%d]\n{", at+100))
	stopEngine(t, e)
	e = startEngine(t, testConfig(t, path))
	require.Equal(t, want, everything(t, e, at+1000))
}
