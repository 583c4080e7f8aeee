package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/ingest"
)

// The shape of a benchmark's load: hosts with a node exporter each.
const (
	benchSeries  = 100_000
	benchBatch   = 2_000 // Series of a request.
	benchScrapes = 12    // Of different content.
)

func benchLabels(i int) [][2]string {
	host, m := i/500, i%500
	return [][2]string{
		{"__name__", fmt.Sprintf("node_subsystem%d_measure%d_total", m/25, m%25)},
		{"cpu", fmt.Sprint(m % 16)},
		{"env", "production"},
		{"instance", fmt.Sprintf("host-%05d.eu-west-1.example.internal:9100", host)},
		{"job", "node-exporter"},
		{"mode", [...]string{"idle", "user", "system", "iowait"}[m%4]},
		{"region", [...]string{"eu-west-1", "eu-central-1", "us-east-1"}[host%3]},
	}
}

// benchBodies makes the requests of a scrape.
func benchBodies(b *testing.B, p ingest.Protocol, scrape int, at int64) [][]byte {
	b.Helper()
	var out [][]byte
	for from := 0; from < benchSeries; from += benchBatch {
		var raw []byte
		var err error
		if p == ingest.V1 {
			raw, err = benchV1(from, scrape, at).Marshal()
		} else {
			raw, err = benchV2(from, scrape, at).Marshal()
		}
		require.NoError(b, err)
		out = append(out, snappy.Encode(nil, raw))
	}
	return out
}

func benchValue(i, scrape int) float64 {
	r := rand.New(rand.NewPCG(uint64(i), uint64(scrape)))
	return float64(scrape*(1+i%97)) + float64(r.IntN(1+i%97))
}

func benchV1(from, scrape int, at int64) *prompb.WriteRequest {
	var req prompb.WriteRequest
	for i := from; i < from+benchBatch; i++ {
		ts := prompb.TimeSeries{Samples: []prompb.Sample{{Timestamp: at, Value: benchValue(i, scrape)}}}
		for _, l := range benchLabels(i) {
			ts.Labels = append(ts.Labels, prompb.Label{Name: l[0], Value: l[1]})
		}
		req.Timeseries = append(req.Timeseries, ts)
	}
	return &req
}

func benchV2(from, scrape int, at int64) *writev2.Request {
	symbols := writev2.NewSymbolTable()
	var req writev2.Request
	for i := from; i < from+benchBatch; i++ {
		ts := writev2.TimeSeries{
			Samples:  []writev2.Sample{{Timestamp: at, Value: benchValue(i, scrape)}},
			Metadata: writev2.Metadata{Type: writev2.Metadata_METRIC_TYPE_COUNTER},
		}
		for _, l := range benchLabels(i) {
			ts.LabelsRefs = append(ts.LabelsRefs, symbols.Symbolize(l[0]), symbols.Symbolize(l[1]))
		}
		req.Timeseries = append(req.Timeseries, ts)
	}
	req.Symbols = symbols.Symbols()
	return &req
}

// BenchmarkIngest takes requests of 2,000 series, which are known after the first scrape, without HTTP.
func BenchmarkIngest(b *testing.B) {
	for _, p := range []ingest.Protocol{ingest.V1, ingest.V2} {
		b.Run(p.String(), func(b *testing.B) {
			e := benchEngine(b)
			at := time.Now().Add(-time.Hour).UnixMilli()
			var bodies [][][]byte
			for scrape := range benchScrapes {
				bodies = append(bodies, benchBodies(b, p, scrape, at+int64(scrape)*15_000))
			}
			for _, body := range bodies[0] {
				_, err := e.receiver.Ingest(b.Context(), p, body)
				require.NoError(b, err)
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				scrape := bodies[1+n/len(bodies[0])%(benchScrapes-1)] // Later rounds are late.
				_, err := e.receiver.Ingest(b.Context(), p, scrape[n%len(scrape)])
				require.NoError(b, err)
				n++
				if n%((benchScrapes-1)*len(bodies[0])) == 0 {
					b.StopTimer()
					require.NoError(b, e.rotate()) // So that nothing is late in the next round.
					for _, body := range bodies[0] {
						_, err := e.receiver.Ingest(b.Context(), p, body)
						require.NoError(b, err)
					}
					b.StartTimer()
				}
			}
			b.ReportMetric(float64(n)*benchBatch/b.Elapsed().Seconds(), "samples/s")
		})
	}
}

// BenchmarkBacklog takes two weeks of one device, which has sent its newest samples already: all of them are late, and in order.
// Beside BenchmarkIngest it says what such a delivery costs.
func BenchmarkBacklog(b *testing.B) {
	const (
		sensors   = 8
		interval  = 15_000
		fortnight = 14 * 24 * 3600_000 / interval
		perBody   = benchBatch / sensors
	)
	e := benchEngine(b)
	now := time.Now().UnixMilli()
	body := func(from, n int) []byte {
		var req prompb.WriteRequest
		for i := range sensors {
			ts := prompb.TimeSeries{Samples: make([]prompb.Sample, n)}
			for _, l := range benchLabels(i) {
				ts.Labels = append(ts.Labels, prompb.Label{Name: l[0], Value: l[1]})
			}
			for k := range ts.Samples {
				ts.Samples[k] = prompb.Sample{Timestamp: now - int64(fortnight-from-k)*interval, Value: benchValue(i, from+k)}
			}
			req.Timeseries = append(req.Timeseries, ts)
		}
		raw, err := req.Marshal()
		require.NoError(b, err)
		return snappy.Encode(nil, raw)
	}
	newest := body(fortnight-1, 1)
	var bodies [][]byte
	for from := 0; from+perBody < fortnight; from += perBody {
		bodies = append(bodies, body(from, perBody))
	}
	take := func(body []byte) {
		_, err := e.receiver.Ingest(b.Context(), ingest.V1, body)
		require.NoError(b, err)
	}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		if n%len(bodies) == 0 {
			b.StopTimer()
			require.NoError(b, e.rotate())
			take(newest)
			b.StartTimer()
		}
		take(bodies[n%len(bodies)])
		n++
	}
	b.ReportMetric(float64(n)*benchBatch/b.Elapsed().Seconds(), "samples/s")
}

// BenchmarkReplay reads back a log of 30 scrapes.
func BenchmarkReplay(b *testing.B) {
	e := benchEngine(b)
	at := time.Now().Add(-time.Hour).UnixMilli()
	samples := 0
	for scrape := range 30 {
		for _, body := range benchBodies(b, ingest.V1, scrape, at+int64(scrape)*15_000) {
			_, err := e.receiver.Ingest(b.Context(), ingest.V1, body)
			require.NoError(b, err)
			samples += benchBatch
		}
	}
	g := e.activeGeneration()
	require.NoError(b, g.log.Sync())
	for b.Loop() {
		r, err := e.replay(b.Context(), e.unreadLog(g.Number))
		require.NoError(b, err)
		require.EqualValues(b, samples, r.mem.Stats().Samples)
	}
	b.ReportMetric(float64(samples)*float64(b.N)/b.Elapsed().Seconds(), "samples/s")
}

func benchEngine(b *testing.B) *Engine {
	b.Helper()
	e := newEngine(b, testConfig(b, b.TempDir()))
	e.Start(http.NotFoundHandler())
	b.Cleanup(func() { e.Stop(context.Background()) })
	<-e.Opened()
	require.NotNil(b, e.activeGeneration(), "%+v", e.State())
	return e
}
