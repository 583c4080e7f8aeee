package promapi

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/prometheus/prometheus/util/stats"
	v1 "github.com/prometheus/prometheus/web/api/v1"
	"github.com/stretchr/testify/require"
)

// requirePrometheus checks that an answer is encoded as Prometheus encodes it.
func requirePrometheus(t *testing.T, resp *v1.Response) {
	t.Helper()
	want, err := v1.JSONCodec{}.Encode(resp)
	require.NoError(t, err)
	got, err := encoder{}.Encode(resp)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

func TestAnswersAreEncodedAsByPrometheus(t *testing.T) {
	odd := labels.FromStrings("__name__", "up", "a", "\"quoted\" back\\slash", "b", "<tab>\t&\x01\x7f", "c", "größe", "d", "\xff\u2028", "résultat", `"result":[`)
	points := []promql.FPoint{
		{T: 0, F: 0},
		{T: 1, F: math.Copysign(0, -1)},
		{T: -1, F: -1},
		{T: -1500, F: 1.5},
		{T: 1435781451781, F: math.NaN()},
		{T: 10, F: math.Inf(1)},
		{T: 100, F: math.Inf(-1)},
		{T: 1e12, F: 1e-7},
		{T: 1e12 + 20, F: 1e-6},
		{T: 5, F: 1e21},
		{T: 5, F: 123456789012345678},
		{T: 5, F: maxWhole},
		{T: 5, F: maxWhole - 1},
		{T: 5, F: -maxWhole + 1},
		{T: 5, F: math.MaxFloat64},
		{T: 5, F: math.SmallestNonzeroFloat64},
		{T: 5, F: 0.1 + 0.2},
	}
	histogram := promql.HPoint{T: 7, H: tsdbutil.GenerateTestFloatHistogram(3)}
	var vector promql.Vector
	for _, p := range points {
		vector = append(vector, promql.Sample{Metric: odd, T: p.T, F: p.F})
	}
	for name, result := range map[string]parser.Value{
		"no matrix":                 promql.Matrix(nil),
		"matrix":                    promql.Matrix{{Metric: odd, Floats: points}, {Metric: labels.EmptyLabels(), Floats: points[:1]}, {Metric: odd}},
		"matrix with histograms":    promql.Matrix{{Metric: odd, Floats: points, Histograms: []promql.HPoint{histogram}}},
		"no vector":                 promql.Vector{},
		"vector":                    vector,
		"vector without labels":     promql.Vector{{T: 1, F: 2}},
		"vector with histograms":    append(vector[:3:3], promql.Sample{Metric: odd, T: histogram.T, H: histogram.H}),
		"scalar":                    promql.Scalar{T: 1, V: 2},
		"string":                    promql.String{T: 1, V: "\"result\":["},
		"nothing of what we expect": nil,
	} {
		t.Run(name, func(t *testing.T) {
			data := &v1.QueryData{ResultType: parser.ValueTypeMatrix, Result: result}
			resp := &v1.Response{Status: "success", Data: data}
			requirePrometheus(t, resp)
			resp.Warnings, resp.Infos = []string{`"result":[]`}, []string{"info"}
			data.Stats = stats.NewQueryStats(&stats.Statistics{Timers: stats.NewQueryTimers(), Samples: stats.NewQuerySamples(false)})
			requirePrometheus(t, resp)
		})
	}
	requirePrometheus(t, &v1.Response{Status: "success", Data: []string{"job", "instance"}})
	requirePrometheus(t, &v1.Response{Status: "error", ErrorType: "execution", Error: "no"})
}

func TestRandomPointsAreEncodedAsByPrometheus(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var points []promql.FPoint
	for range 20_000 {
		t := r.Int64() >> r.IntN(64)
		points = append(
			points,
			promql.FPoint{T: t, F: math.Float64frombits(r.Uint64())},
			promql.FPoint{T: -t, F: float64(r.Int64() >> r.IntN(64))},
			promql.FPoint{T: t, F: r.NormFloat64()},
		)
	}
	requirePrometheus(t, &v1.Response{Data: &v1.QueryData{Result: promql.Matrix{{Floats: points}}}})
}
