package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// sender is a Prometheus that scrapes the node exporter and itself and writes to Millrace. Its job names end in its own name, so that several of
// them can write to one Millrace.
type sender struct {
	*server
	name string
}

func startSender(t *testing.T, name, program, message, exporter, millrace string) *sender {
	t.Helper()
	address := freeAddress(t)
	dir := t.TempDir()
	protocol := ""
	if message != "" {
		protocol = "\n    protobuf_message: " + message
	}
	native := ""
	if message != "" {
		native = "\n  scrape_native_histograms: true"
	}
	config := fmt.Sprintf(`
global:
  scrape_interval: 1s%s
scrape_configs:
  - job_name: node-%[2]s
    static_configs: [{targets: ['%[3]s'], labels: {region: eu-1}}]
  - job_name: self-%[2]s
    static_configs: [{targets: ['%[4]s']}]
  - job_name: gone-%[2]s
    static_configs: [{targets: ['127.0.0.1:1']}]
remote_write:
  - url: %[5]s/api/v1/write%[6]s
    send_exemplars: true
    send_native_histograms: true
    queue_config: {batch_send_deadline: 200ms, max_shards: 4}
    metadata_config: {send_interval: 2s}
`, native, name, exporter, address, millrace, protocol)
	file := filepath.Join(dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	args := []string{"--config.file=" + file, "--storage.tsdb.path=" + filepath.Join(dir, "data"), "--web.listen-address=" + address}
	args = append(args, "--enable-feature=exemplar-storage")
	s := &sender{&server{start(t, program, args...), "http://" + address}, name}
	s.awaitReady()
	return s
}

// dashboard are queries as dashboards and alert rules have them; $job selects the sender's jobs.
var dashboard = []string{
	`up{job=~".+-$s"}`,
	`node_load1{job="node-$s"}`,
	`rate(node_cpu_seconds_total{job="node-$s"}[15s])`,
	`sum by (mode) (rate(node_cpu_seconds_total{job="node-$s"}[20s]))`,
	`100 - avg by (instance) (irate(node_cpu_seconds_total{job="node-$s",mode="idle"}[10s])) * 100`,
	`node_memory_MemAvailable_bytes{job="node-$s"} / node_memory_MemTotal_bytes{job="node-$s"}`,
	`topk(3, node_filesystem_avail_bytes{job="node-$s"})`,
	`count by (__name__) ({job="node-$s"})`,
	`count({job=~".+-$s"})`,
	`count_over_time(go_memstats_alloc_bytes{job="self-$s"}[10s])`,
	`increase(node_network_receive_bytes_total{job="node-$s"}[30s])`,
	`max_over_time(node_load1{job="node-$s"}[20s])`,
	`min_over_time(go_goroutines{job="self-$s"}[20s])`,
	`avg_over_time(go_memstats_alloc_bytes{job="self-$s"}[10s])`,
	`stddev_over_time(go_memstats_alloc_bytes{job="self-$s"}[15s])`,
	`quantile_over_time(0.9, go_memstats_alloc_bytes{job="self-$s"}[15s])`,
	`last_over_time(process_cpu_seconds_total{job="self-$s"}[5s])`,
	`deriv(process_resident_memory_bytes{job="self-$s"}[20s])`,
	`predict_linear(process_resident_memory_bytes{job="self-$s"}[20s], 3600)`,
	`changes(node_load1{job="node-$s"}[30s])`,
	`resets(process_cpu_seconds_total{job="self-$s"}[30s])`,
	`delta(go_goroutines{job="self-$s"}[20s])`,
	`absent(node_no_such_metric{job="node-$s"})`,
	`absent_over_time(up{job="self-$s"}[10s])`,
	`histogram_quantile(0.95, sum by (le, handler) (rate(prometheus_http_request_duration_seconds_bucket{job="self-$s"}[20s])))`,
	`histogram_quantile(0.9, sum(rate(prometheus_http_request_duration_seconds{job="self-$s"}[20s])))`,
	`histogram_count(rate(prometheus_http_request_duration_seconds{job="self-$s"}[20s]))`,
	`histogram_avg(prometheus_http_request_duration_seconds{job="self-$s"})`,
	`prometheus_http_request_duration_seconds{job="self-$s"}`,
	`label_replace(up{job=~".+-$s"}, "kind", "$1", "job", "(.+)-.+")`,
	`sum(node_filesystem_size_bytes{job="node-$s"}) by (fstype) > 0`,
	`node_load1{job="node-$s"} offset 10s`,
	`max_over_time(rate(process_cpu_seconds_total{job="self-$s"}[10s])[20s:2s])`,
	`rate(prometheus_tsdb_head_samples_appended_total{job="self-$s"}[10s])`,
	`node_uname_info{job="node-$s"} * on (instance) group_left () node_load1{job="node-$s"}`,
	`timestamp(up{job=~".+-$s"})`,
	`count_values("value", up{job=~".+-$s"})`,
	`quantile(0.5, scrape_duration_seconds{job=~".+-$s"})`,
	`sort_desc(sum by (job) (scrape_samples_scraped{job=~".+-$s"}))`,
	`up{job="gone-$s"} == 0`,
	`clamp_max(node_load1{job="node-$s"}, 0.5) and on() vector(1)`,
	`bottomk(2, go_gc_duration_seconds{job="self-$s"})`,
	`group by (region) ({job="node-$s",region!=""})`,
	`{__name__="up",job!~"node-.+",job=~".+-$s"}`,
}

func (s *sender) queries() []string {
	var out []string
	for _, q := range dashboard {
		out = append(out, strings.ReplaceAll(q, "$s", s.name))
	}
	return out
}

// span is the time that a comparison asks about.
type span struct{ from, to time.Time }

func (s span) form(query string) url.Values {
	return url.Values{
		"query": {query}, "start": {seconds(s.from)}, "end": {seconds(s.to)}, "step": {"3"},
	}
}

func seconds(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }

// mustAgree compares every query, as an instant and as a range, and the label and series queries.
func mustAgree(t *testing.T, s *sender, m *server, over span) {
	t.Helper()
	withData := 0
	for _, q := range s.queries() {
		instant := url.Values{"query": {q}, "time": {seconds(over.to)}}
		if compare(t, s.server, m, "/api/v1/query", instant) {
			withData++
		}
		compare(t, s.server, m, "/api/v1/query_range", over.form(q))
	}
	require.Greater(t, withData, 30, "most queries must find data, or their agreement shows nothing")
	for _, selector := range []string{`{job="node-%s"}`, `up{job=~".+-%s"}`} {
		form := url.Values{"match[]": {fmt.Sprintf(selector, s.name)}, "start": {seconds(over.from)}, "end": {seconds(over.to)}}
		compare(t, s.server, m, "/api/v1/series", form)
		compare(t, s.server, m, "/api/v1/labels", form)
	}
}

// compare fails the test where the answers differ, and tells whether they hold any data.
func compare(t *testing.T, prometheus, m *server, path string, form url.Values) bool {
	t.Helper()
	want, err := prometheus.ask(path, form)
	require.NoError(t, err)
	got, err := m.ask(path, form)
	require.NoError(t, err, "%s %v", path, form)
	wantFlat, gotFlat := flatten(t, want), flatten(t, got)
	require.Len(t, gotFlat, len(wantFlat), "%s %v\nPrometheus %s\nMillrace   %s", path, form, short(want), short(got))
	for i := range wantFlat {
		require.True(t, same(wantFlat[i], gotFlat[i]), "%s %v\nPrometheus %s\nMillrace   %s", path, form, wantFlat[i], gotFlat[i])
	}
	return len(wantFlat) > 0
}

func short(raw []byte) string {
	if len(raw) > 1500 {
		return string(raw[:1500]) + "…"
	}
	return string(raw)
}

// flatten turns an answer into strings, one for each leaf, sorted by series: neither server promises an order of series.
func flatten(t *testing.T, raw json.RawMessage) []string {
	t.Helper()
	var v any
	require.NoError(t, json.Unmarshal(raw, &v))
	if m, ok := v.(map[string]any); ok {
		v = m["result"]
	}
	items, ok := v.([]any)
	require.True(t, ok, string(raw))
	lines := make([]string, 0, len(items))
	for _, item := range items {
		b, err := json.Marshal(item)
		require.NoError(t, err)
		lines = append(lines, string(b))
	}
	slices.Sort(lines)
	return lines
}

// same compares two series. Sums depend on the order of addition, which no storage promises, so numbers may differ in their last bits.
func same(a, b string) bool {
	if a == b {
		return true
	}
	x, y := strings.Split(a, `"`), strings.Split(b, `"`)
	if len(x) != len(y) {
		return false
	}
	for i := range x {
		if x[i] == y[i] {
			continue
		}
		f, err1 := strconv.ParseFloat(x[i], 64)
		g, err2 := strconv.ParseFloat(y[i], 64)
		if err1 != nil || err2 != nil || math.Abs(f-g) > 1e-12*math.Max(math.Abs(f), math.Abs(g)) {
			return false
		}
	}
	return true
}

// awaitDelivery waits until everything that the sender scraped up to at has reached Millrace.
func awaitDelivery(t *testing.T, s *sender, m *server, at time.Time) {
	t.Helper()
	time.Sleep(time.Until(at.Add(1200 * time.Millisecond)))
	raw := url.Values{"query": {fmt.Sprintf(`{job=~".+-%s"}[10m]`, s.name)}, "time": {seconds(at)}}
	eventually(t, time.Minute, func() error {
		want, err := countSamples(s.server, raw)
		if err != nil {
			return err
		}
		got, err := countSamples(m, raw)
		if err != nil {
			return err
		}
		if want != got {
			return fmt.Errorf("Prometheus has %d samples, Millrace %d", want, got)
		}
		return nil
	})
}

// countSamples counts all samples that a range selector finds.
func countSamples(s *server, form url.Values) (int, error) {
	raw, err := s.ask("/api/v1/query", form)
	if err != nil {
		return 0, err
	}
	var data struct {
		Result []struct {
			Values     []json.RawMessage `json:"values"`
			Histograms []json.RawMessage `json:"histograms"`
		} `json:"result"`
	}
	if err := json.Unmarshal(raw, &data); err != nil {
		return 0, err
	}
	n := 0
	for _, series := range data.Result {
		n += len(series.Values) + len(series.Histograms)
	}
	return n, nil
}

// obstruct puts a file where the program expects a folder, so that nothing can be written there; the returned function undoes it.
func obstruct(t *testing.T, dir string) (undo func()) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o750))
	require.NoError(t, os.Rename(dir, dir+".away"))
	require.NoError(t, os.WriteFile(dir, nil, 0o600))
	return func() {
		require.NoError(t, os.Remove(dir))
		require.NoError(t, os.Rename(dir+".away", dir))
	}
}

func TestPrometheusAndMillraceGiveTheSameAnswersWhicheverLayerHoldsTheData(t *testing.T) {
	path, address := t.TempDir(), freeAddress(t)
	m := startMillrace(t, path, address)
	exporter := freeAddress(t)
	start(t, "prometheus-node-exporter", "--web.listen-address="+exporter)
	senders := []*sender{
		startSender(t, "v1", binaries.prometheus, "prometheus.WriteRequest", exporter, m.base),
		startSender(t, "v2", binaries.prometheus, "io.prometheus.write.v2.Request", exporter, m.base),
	}
	began := time.Now().Add(3 * time.Second)
	agree := func(t *testing.T, to time.Time) {
		t.Helper()
		for _, s := range senders {
			mustAgree(t, s, m, span{began, to})
		}
	}
	deliver := func(seconds int) time.Time {
		at := time.Now().Add(time.Duration(seconds) * time.Second)
		for _, s := range senders {
			awaitDelivery(t, s, m, at)
		}
		return at
	}
	blocks, bucket := filepath.Join(path, "blocks"), filepath.Join(path, "bucket")

	first := deliver(60)
	t.Run("all in the active generation", func(t *testing.T) {
		require.Equal(t, []string{"active"}, holders(m))
		agree(t, first)
	})

	clearBlocks := obstruct(t, blocks)
	code, raw := m.runBatch()
	require.Equal(t, http.StatusInternalServerError, code, raw)
	t.Run("sealed", func(t *testing.T) {
		require.Contains(t, holders(m), "sealed")
		require.NotContains(t, holders(m), "level0")
		agree(t, first)
	})

	clearBucket := obstruct(t, bucket)
	clearBlocks()
	eventually(t, time.Minute, func() error { return holds(m, "level0") })
	t.Run("in local blocks", func(t *testing.T) {
		require.NotContains(t, holders(m), "sealed")
		agree(t, first)
	})

	clearBucket()
	code, raw = m.runBatch()
	require.Equal(t, http.StatusOK, code, raw)
	t.Run("compacted", func(t *testing.T) {
		require.NotContains(t, holders(m), "level0")
		require.Contains(t, holders(m), "compacted")
		agree(t, first)
	})

	deliver(10)
	clearBucket = obstruct(t, bucket)
	code, raw = m.runBatch()
	require.Equal(t, http.StatusServiceUnavailable, code, raw)
	require.NoError(t, holds(m, "level0"))
	clearBucket()
	clearBlocks = obstruct(t, blocks)
	deliver(10)
	code, raw = m.runBatch()
	require.Equal(t, http.StatusInternalServerError, code, raw)
	split := deliver(10)
	t.Run("split over all layers", func(t *testing.T) {
		for _, where := range []string{"active", "sealed", "level0", "compacted"} {
			require.NoError(t, holds(m, where))
		}
		agree(t, split)
	})
	clearBlocks()

	code, raw = m.runBatch()
	require.Equal(t, http.StatusOK, code, raw)
	t.Run("from the bucket alone after a restart", func(t *testing.T) {
		m.signal(syscall.SIGTERM)
		require.NoError(t, os.RemoveAll(filepath.Join(path, "wal")))
		require.NoError(t, os.RemoveAll(blocks))
		restarted := startMillrace(t, path, freeAddress(t))
		require.Equal(t, []string{"compacted"}, holders(restarted))
		for _, s := range senders {
			mustAgree(t, s, restarted, span{began, split})
		}
		promtoolReads(t, path)
	})
}

// holders are the places that hold samples.
func holders(m *server) []string {
	var out []string
	for where, n := range m.layers().counts() {
		if n > 0 {
			out = append(out, where)
		}
	}
	slices.Sort(out)
	return out
}

func holds(m *server, where string) error {
	if h := holders(m); !slices.Contains(h, where) {
		return fmt.Errorf("samples are in %v, not in %s", h, where)
	}
	return nil
}

// TestAnOldPrometheusWrites lets Debian's Prometheus, which knows remote write 1.0 only and has other range semantics, write, and compares raw samples.
func TestAnOldPrometheusWrites(t *testing.T) {
	m := startMillrace(t, t.TempDir(), freeAddress(t))
	exporter := freeAddress(t)
	start(t, "prometheus-node-exporter", "--web.listen-address="+exporter)
	s := startSender(t, "old", "/usr/bin/prometheus", "", exporter, m.base)
	// The older Prometheus includes a sample at the very beginning of a range, so the range begins before the first scrape.
	at := time.Now().Add(15 * time.Second)
	awaitDelivery(t, s, m, at)
	for _, selector := range []string{`{job="node-old"}[10m]`, `{job="self-old"}[10m]`, `up{job="gone-old"}[10m]`} {
		require.True(t, compare(t, s.server, m, "/api/v1/query", url.Values{"query": {selector}, "time": {seconds(at)}}), selector)
	}
}
