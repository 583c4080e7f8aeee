package e2e

import (
	"bytes"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/require"
)

// regularQuestions are asked of what sendRegularly sent, beside the other questions.
var regularQuestions = []string{
	`rate(requests_total[20m])`,
	`sum(increase(requests_total[1d]))`,
	`latency`,
	`histogram_quantile(0.9, sum(rate(latency[30m])))`,
	`histogram_count(increase(latency{series="1"}[1h]))`,
	`histogram_avg(latency)`,
}

// sendRegularly sends two series of native histograms and a counter, a sample each every five minutes.
func sendRegularly(t *testing.T, m *server, from, to int64) {
	t.Helper()
	var req prompb.WriteRequest
	for _, series := range []string{"0", "1"} {
		ts := prompb.TimeSeries{Labels: []prompb.Label{{Name: "__name__", Value: "latency"}, {Name: "series", Value: series}}}
		for at := from; at < to; at += 5 * 60_000 {
			n := uint64(at-from)/60_000 + 1
			ts.Histograms = append(ts.Histograms, prompb.FromIntHistogram(at, &histogram.Histogram{
				Schema: 1, Count: 3 * n, Sum: float64(n) * 1.5, ZeroThreshold: 0.001,
				PositiveSpans: []histogram.Span{{Offset: 0, Length: 2}}, PositiveBuckets: []int64{int64(n), int64(n)},
			}))
		}
		req.Timeseries = append(req.Timeseries, ts)
	}
	counter := prompb.TimeSeries{Labels: []prompb.Label{{Name: "__name__", Value: "requests_total"}}}
	for at := from; at < to; at += 5 * 60_000 {
		counter.Samples = append(counter.Samples, prompb.Sample{Timestamp: at, Value: 1e6 + float64((at-from)/1000)})
	}
	req.Timeseries = append(req.Timeseries, counter)
	raw, err := req.Marshal()
	require.NoError(t, err)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.base+"/api/v1/write", bytes.NewReader(snappy.Encode(nil, raw)))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("Content-Encoding", "snappy")
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusNoContent, resp.StatusCode)
}

// history is a server with all it has in compacted blocks of its bucket. It is fed in several rounds, between which it compacts, so that there are late samples,
// and some that replace others.
type history struct {
	*server
	s3       *s3Server
	from, to int64
}

func newHistory(t *testing.T, args ...string) *history {
	t.Helper()
	h := &history{s3: startS3(t), to: time.Now().UnixMilli()}
	h.from = h.to - 2*dayMillis
	h.server = h.s3.startMillrace(t.TempDir(), h.s3.config(h.s3.address), args...)
	d, j := newDice(t), newJournal(0)
	sendRegularly(t, h.server, h.from, h.to)
	for range 3 {
		j.scatter(t, h.server, d, 150, h.from, h.to)
		code, raw := h.runBatch()
		require.Equal(t, http.StatusOK, code, raw)
	}
	h.requireAllInBucket()
	j.check(t, h.server, "batch", h.from, h.to)
	return h
}

// mustAgree compares the answers of another server with ours.
func (h *history) mustAgree(other *server, questions ...string) {
	h.t.Helper()
	for _, q := range []string{`crash[2d]`, `latency[2d]`, `requests_total[2d]`} {
		require.True(h.t, compare(h.t, other, h.server, "/api/v1/query", url.Values{"query": {q}, "time": {seconds(time.UnixMilli(h.to))}}))
	}
	for _, q := range append(questions, regularQuestions...) {
		require.True(h.t, compare(h.t, other, h.server, "/api/v1/query_range", rangeForm(q, h.from, h.to)), "%s finds nothing", q)
		for at := h.from; at < h.to; at += dayMillis / 3 {
			compare(h.t, other, h.server, "/api/v1/query", url.Values{"query": {q}, "time": {seconds(time.UnixMilli(at))}})
		}
	}
	form := url.Values{"match[]": {`crash`, `latency`}, "start": {seconds(time.UnixMilli(h.from))}, "end": {seconds(time.UnixMilli(h.to))}}
	require.True(h.t, compare(h.t, other, h.server, "/api/v1/series", form))
	require.True(h.t, compare(h.t, other, h.server, "/api/v1/labels", form))
}

// copyBlocks makes the folder of a Prometheus from the bucket's blocks that are not superseded.
func (h *history) copyBlocks() (dir string) {
	h.t.Helper()
	dir = h.t.TempDir()
	found, err := filepath.Glob(filepath.Join(h.s3.folder(), "*", "meta.json"))
	require.NoError(h.t, err)
	for _, meta := range found {
		block := filepath.Dir(meta)
		if _, err := os.Stat(filepath.Join(block, "deletion-mark.json")); err == nil {
			continue
		}
		require.NoError(h.t, os.CopyFS(filepath.Join(dir, filepath.Base(block)), os.DirFS(block)))
	}
	return dir
}

func TestAStockPrometheusServesTheBlocks(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	dir := h.copyBlocks()
	config := filepath.Join(t.TempDir(), "prometheus.yml")
	require.NoError(t, os.WriteFile(config, []byte("{}\n"), 0o600))
	address := freeAddress(t)
	p := &server{start(t, binaries.prometheus,
		"--config.file="+config, "--storage.tsdb.path="+dir, "--storage.tsdb.retention.time=10y", "--web.listen-address="+address), "http://" + address}
	p.awaitReady()
	h.mustAgree(p, append(questions, resetQuestions...)...)
	p.signal(syscall.SIGTERM)

	blocks, err := filepath.Glob(filepath.Join(h.copyBlocks(), "*"))
	require.NoError(t, err)
	require.NotEmpty(t, blocks)
	for _, b := range blocks {
		out, err := exec.Command(binaries.promtool, "tsdb", "analyze", filepath.Dir(b), filepath.Base(b)).CombinedOutput()
		require.NoError(t, err, string(out))
		require.Contains(t, string(out), "Block ID: "+filepath.Base(b))
		require.Contains(t, string(out), "crash")
	}
}
