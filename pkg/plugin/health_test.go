package plugin

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/backend/log"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"
)

type panickingExemplars struct{ storage.ExemplarQueryable }

func answering(status int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/v1/layers":
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		case "/api/v1/status/buildinfo":
			_, _ = w.Write([]byte(`{"status":"success","data":{"version":"3.15.0"}}`))
		case "/api/v1/query":
			_, _ = w.Write([]byte(`{"status":"success","data":{"resultType":"scalar","result":[1,"2"]}}`))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
}

const someLayers = `{"generations":[{"state":"active","series":12,"samples":30,"minTime":1000,"maxTime":60000},{"state":"sealed","series":3,"samples":0,"minTime":0,"maxTime":0}],
	"blocks":[{"level":0,"series":40,"minTime":0,"maxTime":50000},{"level":2,"series":7,"minTime":0,"maxTime":40000},{"level":2,"minTime":0,"maxTime":1}],
	"bucket":{"reachable":true}}`

func TestHealth(t *testing.T) {
	ready := State{Phase: PhaseReady}
	for _, tc := range []struct {
		name    string
		state   State
		status  int
		layers  string
		ok      bool
		message []string
	}{
		{"ready", ready, 200, someLayers, true, []string{"engine is ready", "2 generations", "3 blocks (1 of level 0, 2 of level 2)", "at least 40 series", "newest sample", "old", "bucket reachable"}},
		{"wrapped", ready, 200, `{"status":"success","data":` + someLayers + `}`, true, []string{"at least 40 series"}},
		{"empty", ready, 200, `{"generations":[{"state":"active"}],"blocks":[]}`, true, []string{"1 generation;", "no blocks", "no samples yet"}},
		{"blocks alone", ready, 200, `{"generations":[{"state":"active","minTime":null}],"blocks":[{"level":0,"maxTime":1000}]}`, true, []string{"newest sample at least"}},
		{"blocks alone, a server that knows its newest sample", ready, 200, `{"generations":[],"blocks":[{"level":1,"maxTime":99999999999999}],"watermarks":{"newestSample":1000}}`, true, []string{"newest sample", "old"}},
		{"bucket not asked yet", ready, 200, `{"generations":[],"blocks":[],"bucket":{"reachable":false}}`, true, []string{"no blocks"}},
		{"a problem of a component", ready, 200, `{"generations":[],"blocks":[],"problems":{"listener":"port taken"}}`, false, []string{"But: listener: port taken"}},
		{"bucket away", ready, 200, `{"generations":[],"blocks":[],"bucket":{"reachable":false,"error":"connection refused"}}`, false, []string{"bucket cannot be reached: connection refused"}},
		{"a component has a problem", State{Phase: PhaseReady, Err: errBroken}, 200, someLayers, false, []string{"engine is ready", "But: broken on purpose"}},
		{"starting", State{Phase: PhaseStarting, Progress: "replaying the log: 40 %"}, 200, someLayers, false, []string{"starting: replaying the log: 40 %"}},
		{
			"replaying",
			State{Phase: PhaseReplaying, Progress: "40 %"},
			200, `{"generations":[{"state":"replaying"},{"state":"active"}],"blocks":[],"replay":{"progress":"the log: 40 %"}}`, true,
			[]string{"engine is replaying; writes are taken and the batch layer answers, other queries wait for this: the log: 40 %;", "2 generations"},
		},
		{"replaying fails", State{Phase: PhaseReplaying, Err: errBroken}, 200, someLayers, false, []string{"engine is replaying", "But: broken on purpose"}},
		{"failed", State{Phase: PhaseFailed, Err: errBroken}, 200, someLayers, false, []string{"broken on purpose"}},
		{"stopping", State{Phase: PhaseStopping}, 200, someLayers, false, []string{"stopping"}},
		{"layers failing", ready, 500, `{"errorType":"internal","error":"no layers today"}`, false, []string{"no layers today"}},
		{"layers not JSON", ready, 200, `<html>`, false, []string{"Read the layers"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEngine(t, "load 1m\n  x 1")
			e.handler = answering(tc.status, tc.layers)
			e.state.Store(&tc.state)
			health := checkHealth(t, newDatasource(t, e, backend.DataSourceInstanceSettings{}))
			for _, text := range tc.message {
				require.Contains(t, health.Message, text)
			}
			require.Equal(t, tc.ok, health.Status == backend.HealthStatusOk, health.Message)
			require.JSONEq(t, `"`+tc.state.Phase+`"`, string(field(t, health.JSONDetails, "phase")))
		})
	}
}

func TestHealthOfAServer(t *testing.T) {
	for _, tc := range []struct {
		name    string
		handler http.Handler
		ok      bool
		message string
	}{
		{"a Millrace", answering(200, someLayers), true, "The server answers: 3.15.0; speed layer"},
		{"a Prometheus", answering(404, "404 page not found"), true, "not a Millrace"},
		{"starting", answering(503, `{"errorType":"unavailable","error":"starting: replaying"}`), false, "starting: replaying"},
		{"not a Prometheus", http.NotFoundHandler(), false, "404"},
		{"down", nil, false, "ask the server"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := httptest.NewServer(tc.handler)
			if tc.handler == nil {
				server.Close()
			}
			t.Cleanup(server.Close)
			health := checkHealth(t, newDatasource(t, NoEngine(errBroken), backend.DataSourceInstanceSettings{URL: server.URL}))
			require.Contains(t, strings.ToLower(health.Message), strings.ToLower(tc.message))
			require.Equal(t, tc.ok, health.Status == backend.HealthStatusOk)
		})
	}
}

func checkHealth(t *testing.T, d *datasource) *backend.CheckHealthResult {
	t.Helper()
	health, err := d.CheckHealth(t.Context(), &backend.CheckHealthRequest{PluginContext: inOrg(1)})
	require.NoError(t, err)
	return health
}

func TestNoEngine(t *testing.T) {
	d := newDatasource(t, NoEngine(errBroken), backend.DataSourceInstanceSettings{})
	require.Contains(t, checkHealth(t, d).Message, "broken on purpose")
	require.ErrorContains(t, ask(t, d, nil, map[string]string{"A": `{"expr":"up"}`})["A"].Error, "broken on purpose")
	resp := call(t, d, "Editor", backend.CallResourceRequest{Method: "POST", Path: "api/v1/write"})
	require.Equal(t, 503, resp.Status)
	require.NotEmpty(t, http.Header(resp.Headers).Get("Retry-After"))
}

func TestAgeText(t *testing.T) {
	require.Equal(t, "1m30s old", ageText(90*time.Second))
	require.Equal(t, "5s ahead of the clock", ageText(-5*time.Second))
}

// recordingLogger keeps what it is told, as level, message and arguments in JSON.
type recordingLogger struct {
	log.Logger
	with  []any
	lines *[]string
}

func (l recordingLogger) add(level, msg string, args []any) {
	b, err := json.Marshal(append(append([]any{level, msg}, l.with...), args...))
	if err != nil {
		b = []byte(err.Error())
	}
	*l.lines = append(*l.lines, string(b))
}

func (l recordingLogger) Debug(msg string, args ...any) { l.add("debug", msg, args) }
func (l recordingLogger) Info(msg string, args ...any)  { l.add("info", msg, args) }
func (l recordingLogger) Warn(msg string, args ...any)  { l.add("warn", msg, args) }
func (l recordingLogger) Error(msg string, args ...any) { l.add("error", msg, args) }

func (l recordingLogger) With(args ...any) log.Logger {
	l.with = append(append([]any{}, l.with...), args...)
	return l
}

func TestSlog(t *testing.T) {
	var lines []string
	logger := NewSlog(recordingLogger{Logger: log.NewNullLogger(), lines: &lines}, ParseLevel("debug"))
	logger.Debug("one", "a", 1)
	logger.With("b", 2).WithGroup("g").With("c", 3).Info("two", "d", 4, slog.Group("h", "e", 5))
	logger.Warn("three", "err", errBroken, "took", 1500*time.Millisecond)
	logger.Error("four", slog.Group("", "f", 6))
	NewSlog(recordingLogger{Logger: log.NewNullLogger(), lines: &lines}, ParseLevel("nonsense")).Debug("not at info")
	require.Equal(t, []string{
		`["debug","one","a",1]`,
		`["info","two","b",2,"g.c",3,"g.d",4,"g.h.e",5]`,
		`["warn","three","err","broken on purpose","took","1.5s"]`,
		`["error","four","f",6]`,
	}, lines)
}
