package ingest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"
)

// TestPartialWrites: what is valid is stored, what is not is named and counted,
// and the log gives back exactly what was stored.
func TestPartialWrites(t *testing.T) {
	g := newGenerator(7)
	good, bad := g.intHistogram(), g.intHistogram()
	bad.Count++
	late, soon := int64(1000), testNow+time.Hour.Milliseconds()
	pairs := func(name, value string) []string { return []string{"__name__", "m", name, value} }

	t.Run("v1", func(t *testing.T) {
		var req message
		h := func(h *histogram.Histogram) message {
			p := prompb.FromIntHistogram(testNow, h)
			return message{}.bytes(4, marshal(t, &p))
		}
		exemplar := func(l string) message {
			return message{}.bytes(3, message{}.bytes(1, label("trace_id", l)).double(2, 1).varint(3, uint64(testNow)))
		}
		req = req.bytes(1, seriesV1(pairs("a", "1"), append(append(
			message{}.bytes(2, sample(late, 1)).bytes(2, sample(soon, 2)).bytes(2, sample(testNow, 3)),
			append(h(bad), h(good)...)...),
			append(exemplar(strings.Repeat("x", 150)), exemplar("ok")...)...)))
		req = req.bytes(1, seriesV1([]string{"a", "1"}, append(upFloat, exemplar("lost")...)))
		req = req.bytes(3, message{}.str(2, "").str(4, "help without a family"))
		req = req.bytes(3, message{}.varint(1, 1).str(2, "m").str(4, "help"))
		req = req.bytes(1, seriesV1(pairs("b", "2"), message{}.bytes(2, sample(soon, 2))))
		req = req.bytes(1, seriesV1(pairs("c", "3"), exemplar("alone")))

		app := &recorder{}
		reg := prometheus.NewPedanticRegistry()
		r := NewReceiver(app, DefaultLimits(), reg, nil)
		r.now = func() time.Time { return time.UnixMilli(testNow) }
		w := post(r, typeV1, pack(req))
		require.Equal(t, 400, w.Code)
		require.Empty(t, w.Header().Get(headerSamples))
		lines := strings.Split(strings.TrimSpace(w.Body.String()), "\n")
		require.Len(t, lines, 4, w.Body.String())
		require.Contains(t, lines[0], `series m{a="1"}, timestamp 1700003600000: timestamp is 1h0m0s in the future`)
		require.Contains(t, lines[1], `series m{a="1"}, timestamp 1700000000000: invalid native histogram`)
		require.Contains(t, lines[2], `series {a="1"}: no metric name`)
		require.Contains(t, lines[3], `series m{b="2"}, timestamp 1700003600000`)

		require.Len(t, app.batches, 1)
		got := app.batches[0]
		require.Len(t, got.Series, 2)
		require.Equal(t, "\"{__name__=\\\"m\\\", a=\\\"1\\\"}\"\n"+floatText(late, 0, 1)+floatText(testNow, 0, 3)+
			histogramText(testNow, 0, good, nil), withoutExemplars(got.Series[0]))
		require.Contains(t, got.Series[0], `trace_id=\"ok\"`)
		require.NotContains(t, got.Series[0], "xxx")
		require.Contains(t, got.Series[1], "alone")
		require.Len(t, got.Metadata, 1)
		require.Equal(t, got, replayed(t, app.records[0]))

		require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP millrace_ingest_samples_total Items that were accepted and stored, by type.
# TYPE millrace_ingest_samples_total counter
millrace_ingest_samples_total{type="exemplar"} 2
millrace_ingest_samples_total{type="float"} 2
millrace_ingest_samples_total{type="histogram"} 1
millrace_ingest_samples_total{type="metadata"} 1
# HELP millrace_ingest_requests_total Remote write requests that were answered, by protocol and HTTP status.
# TYPE millrace_ingest_requests_total counter
millrace_ingest_requests_total{code="400",protocol="v1"} 1
# HELP millrace_ingest_rejected_metadata_total Metadata entries that were dropped because they are not valid.
# TYPE millrace_ingest_rejected_metadata_total counter
millrace_ingest_rejected_metadata_total 1
`), "millrace_ingest_samples_total", "millrace_ingest_requests_total", "millrace_ingest_rejected_metadata_total"))
		require.Equal(t, 2.0, testutil.ToFloat64(r.metrics.rejectedSamples[reasonFuture]))
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.rejectedSamples[reasonHistogram]))
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.rejectedSamples[reasonNoMetricName]))
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.rejectedSeries[reasonNoMetricName]))
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.rejectedExemplars[reasonNoMetricName]))
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.rejectedExemplars[reasonExemplarLength]))
	})

	t.Run("v2", func(t *testing.T) {
		syms := writev2.NewSymbolTable()
		refs := func(pairs ...string) (out []uint32) {
			for _, s := range pairs {
				out = append(out, syms.Symbolize(s))
			}
			return out
		}
		req := &writev2.Request{Timeseries: []writev2.TimeSeries{
			{
				LabelsRefs: refs("__name__", "m_bucket", "le", "1"),
				Samples:    []writev2.Sample{{Timestamp: soon, Value: 1}, {Timestamp: late, Value: 2, StartTimestamp: 5}},
				Metadata:   writev2.Metadata{Type: writev2.Metadata_METRIC_TYPE_HISTOGRAM, HelpRef: syms.Symbolize("help"), UnitRef: syms.Symbolize("s")},
			},
			{LabelsRefs: refs("le", "1"), Samples: []writev2.Sample{{Timestamp: late}}},
			{
				LabelsRefs: refs("__name__", "m_sum"), Histograms: []writev2.Histogram{
					writev2.FromIntHistogram(3, testNow, good), writev2.FromFloatHistogram(0, soon, good.ToFloat(nil)),
					writev2.FromIntHistogram(3, testNow, bad),
				},
				Exemplars: []writev2.Exemplar{{LabelsRefs: refs("trace_id", strings.Repeat("x", 150))}, {Value: 4, Timestamp: late}},
				Metadata:  writev2.Metadata{Type: writev2.Metadata_METRIC_TYPE_HISTOGRAM, HelpRef: syms.Symbolize("help"), UnitRef: syms.Symbolize("s")},
			},
		}}
		req.Symbols = syms.Symbols()
		app := &recorder{}
		r := newTestReceiver(t, app, nil)
		w := post(r, typeV2, pack(marshal(t, req)))
		require.Equal(t, 400, w.Code)
		require.Equal(t, "1", w.Header().Get(headerSamples))
		require.Equal(t, "1", w.Header().Get(headerHistograms))
		require.Equal(t, "1", w.Header().Get(headerExemplars))
		require.Len(t, strings.Split(strings.TrimSpace(w.Body.String()), "\n"), 4, w.Body.String())
		got := app.batches[0]
		require.Len(t, got.Series, 2)
		require.Contains(t, got.Series[0], floatText(late, 5, 2))
		require.Contains(t, got.Series[1], histogramText(testNow, 3, good, nil))
		require.Equal(t, []string{fmt.Sprintf("%q", Metadata{Family: "m", Type: "histogram", Help: "help", Unit: "s"})}, got.Metadata)
		require.Equal(t, got, replayed(t, app.records[0]))
	})
}

func withoutExemplars(s string) string {
	lines := strings.SplitAfter(s, "\n")
	out := ""
	for _, l := range lines {
		if !strings.HasPrefix(l, "  exemplar") {
			out += l
		}
	}
	return out
}
