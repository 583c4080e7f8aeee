package engine

import (
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/serving"
)

// answered returns the values that an instant query has, by labels.
func answered(t *testing.T, e *Engine, query string, at int64) map[string]float64 {
	t.Helper()
	q, err := e.queries.NewInstantQuery(t.Context(), e.queryable, nil, query, time.UnixMilli(at))
	require.NoError(t, err)
	defer q.Close()
	v, err := q.Exec(serving.WithLayer(t.Context(), serving.Merged)).Vector()
	require.NoError(t, err)
	out := map[string]float64{}
	for _, s := range v {
		out[s.Metric.String()] = s.F
	}
	return out
}

// The same series of two writers that share a bucket stay two, each under the external labels of its writer.
func TestWritersThatShareABucketAreToldApart(t *testing.T) {
	bucket := newMovableBucket(t)
	now := time.Now().UnixMilli()
	writer := func(args ...string) *Engine {
		cfg := testConfig(t, t.TempDir(), append(args, "--objstore.config={type: FILESYSTEM, config: {directory: "+bucket.dir+"}}")...)
		return startEngine(t, cfg)
	}
	north, south := writer("--external-label=site=north"), writer("--external-label=site=south")
	for range 3 { // so that their generations have other numbers
		write(t, south, "a", point{now, 2})
		require.NoError(t, south.RunBatch(t.Context()))
	}
	write(t, north, "a", point{now, 1})
	require.NoError(t, north.RunBatch(t.Context()))
	require.NoError(t, south.RunBatch(t.Context()))

	northern, southern := `{__name__="m", series="a", site="north"}`, `{__name__="m", series="a", site="south"}`
	for _, e := range []*Engine{north, south, writer()} {
		require.Equal(t, map[string]float64{northern: 1, southern: 2}, answered(t, e, "m", now))
		require.Equal(t, map[string]float64{southern: 2}, answered(t, e, `m{site="south"}`, now))
		require.Equal(t, map[string]float64{northern: 1}, answered(t, e, `m{site!="south"}`, now))
		require.Empty(t, answered(t, e, `m{site=""}`, now))
		q, err := e.queryable.Querier(now-1000, now)
		require.NoError(t, err)
		values, _, err := q.LabelValues(t.Context(), "site", nil, labels.MustNewMatcher(labels.MatchEqual, "__name__", "m"))
		require.NoError(t, err)
		require.Equal(t, []string{"north", "south"}, values)
		require.NoError(t, q.Close())
	}
}

// Who sets an external label later finds what came before under it, too.
func TestBlocksFromBeforeThereWasALabelAreOnesOwn(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	write(t, e, "a", point{now, 1})
	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, map[string]float64{`{__name__="m", series="a"}`: 1}, answered(t, e, "m", now))
	stopEngine(t, e)
	e = startEngine(t, testConfig(t, path, "--external-label=site=north"))
	require.Equal(t, map[string]float64{`{__name__="m", series="a", site="north"}`: 1}, answered(t, e, `m{site="north"}`, now))
}
