//go:build !windows

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/plugin"
	"github.com/millrace/millrace/pkg/plugin/plugintest"
)

// folder is where the executable under test is built, once.
var folder string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if folder, err = os.MkdirTemp("", "gpx_millrace"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(folder)
	return m.Run()
}

// start runs the built plugin over a data path, as Grafana does.
func start(t *testing.T, path, dataPath string, o plugintest.Options) *plugintest.Plugin {
	t.Helper()
	o.Path = path
	o.Env = append(o.Env, "GF_PLUGIN_STORAGE_PATH="+dataPath, "GF_PLUGIN_WEB_LISTEN_ADDRESS=127.0.0.1:0", "GF_PLUGIN_SELF_SCRAPE_INTERVAL=0s", "TMPDIR="+os.TempDir())
	return plugintest.Start(t, o)
}

func grafana(role string) backend.PluginContext {
	return plugintest.Context(plugin.ID, 1, role, backend.DataSourceInstanceSettings{ID: 1, UID: "millrace", Name: "Millrace"})
}

func waitReady(t *testing.T, p *plugintest.Plugin) {
	t.Helper()
	waitReadyWithin(t, p, time.Minute)
}

func waitReadyWithin(t *testing.T, p *plugintest.Plugin, atMost time.Duration) {
	t.Helper()
	var last string
	ok := func() bool {
		health, err := p.Health(t.Context(), grafana("Viewer"))
		if err != nil {
			last = err.Error()
			return false
		}
		last = health.Message
		return strings.Contains(health.Message, "engine is ready")
	}
	for start := time.Now(); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > atMost {
			t.Fatalf("the engine is not ready: %s\n%s", last, p.Log())
		}
	}
}

// write sends one sample through Grafana's door and returns the status.
func write(ctx context.Context, p *plugintest.Plugin, role string, ts int64, v float64) (int, error) {
	return send(ctx, p, role, prompb.TimeSeries{
		Labels:  []prompb.Label{{Name: "__name__", Value: "acked"}, {Name: "job", Value: "test"}},
		Samples: []prompb.Sample{{Timestamp: ts, Value: v}},
	})
}

// send writes what there is of one series through Grafana's door and returns the status.
func send(ctx context.Context, p *plugintest.Plugin, role string, series prompb.TimeSeries) (int, error) {
	raw, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{series}}).Marshal()
	if err != nil {
		return 0, err
	}
	resp, err := p.Resource(ctx, &backend.CallResourceRequest{
		PluginContext: grafana(role), Method: http.MethodPost, Path: "api/v1/write", URL: "api/v1/write", Body: snappy.Encode(nil, raw),
		Headers: map[string][]string{"Content-Encoding": {"snappy"}, "Content-Type": {"application/x-protobuf"}, "X-Prometheus-Remote-Write-Version": {"0.1.0"}},
	})
	if err != nil {
		return 0, err
	}
	return resp.Status, nil
}

// flood writes one sample after the other until that fails, and returns what was acknowledged: values by time.
func flood(t *testing.T, p *plugintest.Plugin, stop <-chan struct{}) map[int64]float64 {
	acked := map[int64]float64{}
	base := time.Now().Add(-30 * time.Minute).UnixMilli()
	for i := int64(0); ; i++ {
		select {
		case <-stop:
			return acked
		default:
		}
		status, err := write(t.Context(), p, "Editor", base+i, float64(i))
		switch {
		case err != nil, status == http.StatusServiceUnavailable:
			return acked // the process is on its way out; this one was not acknowledged
		case status/100 != 2:
			t.Errorf("write %d: status %d", i, status)
			return acked
		}
		acked[base+i] = float64(i)
	}
}

// query asks for an instant vector or matrix of at most one series, and decodes that.
func query(t *testing.T, p *plugintest.Plugin, expr string, series any) {
	t.Helper()
	form := url.Values{"query": {expr}}
	resp, err := p.Resource(t.Context(), &backend.CallResourceRequest{PluginContext: grafana("Viewer"), Method: http.MethodGet, Path: "api/v1/query", URL: "api/v1/query?" + form.Encode()})
	require.NoError(t, err)
	require.Equal(t, 200, resp.Status, "%s", resp.Body)
	var body struct {
		Data struct {
			Result []json.RawMessage `json:"result"`
		} `json:"data"`
	}
	require.NoError(t, json.Unmarshal(resp.Body, &body))
	require.LessOrEqual(t, len(body.Data.Result), 1)
	for _, raw := range body.Data.Result {
		require.NoError(t, json.Unmarshal(raw, series))
	}
}

// pair is a sample as the API writes it.
type pair [2]json.RawMessage

func (s pair) decode(t *testing.T) (ms int64, v float64) {
	t.Helper()
	var at float64
	require.NoError(t, json.Unmarshal(s[0], &at))
	_, err := fmt.Sscanf(string(s[1]), `"%g"`, &v)
	require.NoError(t, err)
	return int64(at*1000 + 0.5), v
}

// stored reads every sample of the series back, raw.
func stored(t *testing.T, p *plugintest.Plugin) map[int64]float64 {
	t.Helper()
	var series struct {
		Values []pair `json:"values"`
	}
	query(t, p, "acked[2h]", &series)
	out := map[int64]float64{}
	for _, s := range series.Values {
		ms, v := s.decode(t)
		require.NotContains(t, out, ms, "a sample appears twice")
		out[ms] = v
	}
	return out
}

// However the process ends, in the middle of writes, what it acknowledged is there when it comes back.
func TestNothingAcknowledgedIsLost(t *testing.T) {
	path := build(t)
	for _, tc := range []struct {
		name  string
		under bool
		end   func(*plugintest.Plugin)
	}{
		{"shutdown", false, func(p *plugintest.Plugin) { require.Less(t, p.Shutdown(), 2*time.Second, "the plugin was killed") }},
		{"SIGTERM", false, func(p *plugintest.Plugin) { p.Signal(syscall.SIGTERM) }},
		{"SIGKILL", false, func(p *plugintest.Plugin) { p.Signal(syscall.SIGKILL) }},
		{"death of the parent", true, (*plugintest.Plugin).KillParent},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dataPath := filepath.Join(t.TempDir(), "millrace")
			p := start(t, path, dataPath, plugintest.Options{UnderShell: tc.under})
			waitReady(t, p)

			acked := make(chan map[int64]float64)
			go func() { acked <- flood(t, p, nil) }()
			time.Sleep(300 * time.Millisecond) // so that there is something to lose
			tc.end(p)
			p.WaitGone(10 * time.Second)
			want := <-acked
			require.NotEmpty(t, want)

			p = start(t, path, dataPath, plugintest.Options{})
			waitReady(t, p)
			got := stored(t, p)
			for _, ts := range slices.Sorted(maps.Keys(want)) {
				v, ok := got[ts]
				require.True(t, ok && v == want[ts], "sample %d of %d at %d is missing or differs", int(want[ts]), len(want), ts)
			}
			require.LessOrEqual(t, len(got), len(want)+1, "only the last write was in doubt")
		})
	}
}

func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(folder, "gpx_millrace")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		require.NoError(t, os.Rename(plugintest.Build(t, "./cmd/gpx_millrace"), path))
	}
	return path
}

// Health, queries and resources of the built plugin with data in it.
func TestAnswers(t *testing.T) {
	p := start(t, build(t), filepath.Join(t.TempDir(), "millrace"), plugintest.Options{Env: []string{"GF_PLUGIN_VERSION=1", "GF_PLUGIN_NONSENSE=1"}})
	waitReady(t, p)
	now := time.Now()
	status, err := write(t.Context(), p, "Viewer", now.UnixMilli(), 42)
	require.NoError(t, err)
	require.Equal(t, 403, status)
	status, err = write(t.Context(), p, "Editor", now.UnixMilli(), 42)
	require.NoError(t, err)
	require.Equal(t, 204, status)

	ask := func(model string) backend.Responses {
		resp, err := p.Query(t.Context(), &backend.QueryDataRequest{PluginContext: grafana("Viewer"), Queries: []backend.DataQuery{{
			RefID: "A", JSON: []byte(model), MaxDataPoints: 100, TimeRange: backend.TimeRange{From: now.Add(-time.Minute), To: now.Add(time.Second)},
		}}})
		require.NoError(t, err)
		return resp.Responses
	}
	for _, layer := range []string{"", "merged", "speed"} {
		got := ask(`{"refId":"A","expr":"acked","instant":true,"range":true,"layer":"` + layer + `"}`)
		require.Len(t, got, 2)
		require.NoError(t, got["A"].Error)
		require.Equal(t, "acked", got["A-Instant"].Frames[0].Fields[1].Name)
		require.InDelta(t, 42.0, got["A-Instant"].Frames[0].Fields[1].At(0), 0)
	}
	require.Empty(t, ask(`{"refId":"A","expr":"acked","instant":true,"layer":"batch"}`)["A"].Frames[0].Fields)
	require.Equal(t, backend.StatusBadRequest, ask(`{"refId":"A","expr":"acked{"}`)["A"].Status)

	for path, want := range map[string]int{
		"api/v1/labels": 200, "api/v1/label/job/values": 200, "api/v1/layers": 200, "api/v1/status/buildinfo": 200, "api/v1/rules": 200, "api/v1/metadata": 200,
		"api/v1/status/config": 404,
	} {
		resp, err := p.Resource(t.Context(), &backend.CallResourceRequest{PluginContext: grafana(""), Method: http.MethodGet, Path: path, URL: path})
		require.NoError(t, err)
		require.Equal(t, want, resp.Status, "%s: %s", path, resp.Body)
	}
	health, err := p.Health(t.Context(), grafana("Viewer"))
	require.NoError(t, err)
	require.Contains(t, health.Message, "at least 1 series")
	require.Contains(t, health.Message, "newest sample")

	metrics, err := p.Metrics(t.Context())
	require.NoError(t, err)
	require.Contains(t, metrics, "\nmillrace_")
	require.Eventually(t, func() bool { return strings.Contains(p.Log(), `"setting":"nonsense"`) }, 5*time.Second, 10*time.Millisecond)
	require.NotContains(t, p.Log(), `"setting":"version"`)
}

// Settings that are wrong do not end the process, which would only be started again; they are what the health check says.
func TestWrongSettings(t *testing.T) {
	for _, tc := range []struct{ name, env, text string }{
		{"organisations", "GF_PLUGIN_ALLOWED_ORG_IDS=first", "allowed_org_ids"},
		{"a duration", "GF_PLUGIN_QUERY_TIMEOUT=soon", "soon"},
		{"a relative path", "GF_PLUGIN_STORAGE_PATH=data", "must be absolute"},
		{"a path that cannot be written", "GF_PLUGIN_STORAGE_PATH=/dev/null/millrace", "/dev/null"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			env := []string{"GF_PLUGIN_WEB_LISTEN_ADDRESS=127.0.0.1:0", "TMPDIR=" + os.TempDir(), tc.env}
			if !strings.HasPrefix(tc.env, "GF_PLUGIN_STORAGE_PATH") {
				env = append(env, "GF_PLUGIN_STORAGE_PATH="+t.TempDir())
			}
			p := plugintest.Start(t, plugintest.Options{Path: build(t), Env: env})
			require.EventuallyWithT(t, func(c *assert.CollectT) {
				health, err := p.Health(t.Context(), grafana("Viewer"))
				if assert.NoError(c, err) {
					assert.Equal(c, backend.HealthStatusError, health.Status)
					assert.Contains(c, health.Message, tc.text)
				}
			}, 30*time.Second, 50*time.Millisecond)
		})
	}
}
