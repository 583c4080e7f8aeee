package promapi

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/golang/snappy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/engine"
)

// BenchmarkQueryRange asks a whole engine for 200 series of 60 points over HTTP's handler, without a network.
func BenchmarkQueryRange(b *testing.B) {
	var cfg engine.Config
	app := kingpin.New("bench", "").Terminate(nil)
	cfg.Flags(app)
	_, err := app.Parse([]string{"--storage.path=" + b.TempDir(), "--web.listen-address=", "--self.scrape-interval=0s", "--batch.interval=0s"})
	require.NoError(b, err)
	reg := prometheus.NewRegistry()
	e, err := engine.New(cfg, reg, reg, slog.New(slog.DiscardHandler))
	require.NoError(b, err)
	e.Start(http.NotFoundHandler())
	b.Cleanup(func() { e.Stop(context.Background()) })
	<-e.Opened()
	h := ForEngine(e)

	end := time.Now().Add(-time.Minute)
	for i := range 60 {
		var req prompb.WriteRequest
		for s := range 200 {
			req.Timeseries = append(req.Timeseries, prompb.TimeSeries{
				Labels: []prompb.Label{
					{Name: "__name__", Value: "node_cpu_seconds_total"},
					{Name: "cpu", Value: "3"},
					{Name: "env", Value: "production"},
					{Name: "instance", Value: fmt.Sprintf("host-%05d.eu-west-1.example.internal:9100", s)},
					{Name: "job", Value: "node"},
				},
				Samples: []prompb.Sample{{Timestamp: end.UnixMilli() - int64(59-i)*15_000, Value: float64(i*s) * 1.37}},
			})
		}
		raw, err := req.Marshal()
		require.NoError(b, err)
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/api/v1/write", bytes.NewReader(snappy.Encode(nil, raw)))
		r.Header.Set("Content-Encoding", "snappy")
		r.Header.Set("Content-Type", "application/x-protobuf")
		h.ServeHTTP(w, r)
		require.Equal(b, http.StatusNoContent, w.Code, w.Body.String())
	}
	for _, query := range []string{"node_cpu_seconds_total", "rate(node_cpu_seconds_total[5m])", "count(node_cpu_seconds_total)"} {
		b.Run(query, func(b *testing.B) {
			values := url.Values{
				"query": {query}, "step": {"15"},
				"start": {fmt.Sprint(end.Add(-15 * time.Minute).Unix())}, "end": {fmt.Sprint(end.Unix())},
			}
			b.ReportAllocs()
			for b.Loop() {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/v1/query_range?"+values.Encode(), nil))
				require.Equal(b, http.StatusOK, w.Code, w.Body.String())
				b.SetBytes(int64(w.Body.Len()))
			}
		})
	}
}
