package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/backend/log"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"
	v1 "github.com/prometheus/prometheus/web/api/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// TestMain also is the plugin's process in tests of the process: the test's own executable, started again.
func TestMain(m *testing.M) {
	if os.Getenv(actAsPlugin) != "" {
		os.Exit(pluginMain())
	}
	goleak.VerifyTestMain(m)
}

// fakeEngine is PromQL over a storage, with a phase that tests set.
type fakeEngine struct {
	state      atomic.Pointer[State]
	queries    promql.QueryEngine
	store      storage.SampleAndChunkQueryable
	exemplars  storage.ExemplarQueryable
	handler    http.Handler
	layers     []string
	incomplete error // of all layers but batch
	onStop     func(context.Context)
}

type layerKey struct{}

func (e *fakeEngine) Start()                                       {}
func (e *fakeEngine) State() State                                 { return *e.state.Load() }
func (e *fakeEngine) Handler() http.Handler                        { return e.handler }
func (e *fakeEngine) QueryEngine() promql.QueryEngine              { return e.queries }
func (e *fakeEngine) Queryable() storage.SampleAndChunkQueryable   { return e.store }
func (e *fakeEngine) ExemplarQueryable() storage.ExemplarQueryable { return e.exemplars }

func (e *fakeEngine) Await(ctx context.Context) error {
	if ctx.Value(layerKey{}) == "batch" {
		return nil
	}
	return e.incomplete
}

func (e *fakeEngine) Stop(ctx context.Context) {
	if e.onStop != nil {
		e.onStop(ctx)
	}
}

func (e *fakeEngine) WithLayer(ctx context.Context, layer string) (context.Context, error) {
	e.layers = append(e.layers, layer)
	return context.WithValue(ctx, layerKey{}, layer), nil
}

// newEngine returns a ready engine with the series of a promqltest load command, which begin at time 0.
func newEngine(t *testing.T, load string) *fakeEngine {
	t.Helper()
	store := promqltest.LoadedStorage(t, load)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	e := &fakeEngine{
		store: store, exemplars: store,
		queries: promqltest.NewTestEngine(t, false, 5*time.Minute, 100000),
	}
	e.handler = promAPI(e)
	e.state.Store(&State{Phase: PhaseReady})
	return e
}

// promAPI serves the queries of the Prometheus HTTP API over an engine, in Prometheus's own JSON.
func promAPI(e *fakeEngine) http.Handler {
	reply := func(w http.ResponseWriter, resp *v1.Response, status int) {
		body, err := v1.JSONCodec{}.Encode(resp)
		if err != nil {
			status, body = http.StatusInternalServerError, []byte(err.Error())
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write(body)
	}
	eval := func(w http.ResponseWriter, q promql.Query, err error) {
		if err != nil {
			reply(w, &v1.Response{Status: "error", ErrorType: "bad_data", Error: err.Error()}, http.StatusBadRequest)
			return
		}
		defer q.Close()
		res := q.Exec(context.Background())
		if res.Err != nil {
			reply(w, &v1.Response{Status: "error", ErrorType: "execution", Error: res.Err.Error()}, http.StatusUnprocessableEntity)
			return
		}
		warnings, infos := res.Warnings.AsStrings(q.String(), 10, 10)
		reply(w, &v1.Response{Status: "success", Data: &v1.QueryData{ResultType: res.Value.Type(), Result: res.Value}, Warnings: warnings, Infos: infos}, http.StatusOK)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/api/v1/query", func(w http.ResponseWriter, r *http.Request) {
		q, err := e.queries.NewInstantQuery(r.Context(), e.store, nil, r.FormValue("query"), formTime(r, "time"))
		eval(w, q, err)
	})
	mux.HandleFunc("/api/v1/query_range", func(w http.ResponseWriter, r *http.Request) {
		step := time.Duration(formSeconds(r, "step") * float64(time.Second))
		q, err := e.queries.NewRangeQuery(r.Context(), e.store, nil, r.FormValue("query"), formTime(r, "start"), formTime(r, "end"), step)
		eval(w, q, err)
	})
	mux.HandleFunc("/api/v1/query_exemplars", func(w http.ResponseWriter, r *http.Request) {
		expr, err := promParser.ParseExpr(r.FormValue("query"))
		if err != nil {
			reply(w, &v1.Response{Status: "error", ErrorType: "bad_data", Error: err.Error()}, http.StatusBadRequest)
			return
		}
		q, _ := e.exemplars.ExemplarQuerier(r.Context())
		found, _ := q.Select(formTime(r, "start").UnixMilli(), formTime(r, "end").UnixMilli(), parser.ExtractSelectors(expr)...)
		reply(w, &v1.Response{Status: "success", Data: found}, http.StatusOK)
	})
	return mux
}

func formSeconds(r *http.Request, name string) float64 {
	v, _ := strconv.ParseFloat(r.FormValue(name), 64)
	return v
}

func formTime(r *http.Request, name string) time.Time {
	return time.UnixMilli(int64(formSeconds(r, name) * 1000))
}

// newDatasource makes a datasource over e; with a URL in ds, in remote mode.
func newDatasource(t *testing.T, e Engine, ds backend.DataSourceInstanceSettings) *datasource {
	t.Helper()
	orgs, err := ParseOrgs("1")
	require.NoError(t, err)
	ds.Name, ds.UID, ds.Type = "Millrace", "millrace", ID
	instance, err := newFactory(Options{Engine: e, Orgs: orgs, MaxBody: 1 << 20, Logger: log.NewNullLogger()})(t.Context(), ds)
	require.NoError(t, err)
	d := instance.(*datasource)
	t.Cleanup(d.Dispose)
	return d
}

// both runs a test in embedded mode and, over HTTP, in remote mode: they must not differ.
func both(t *testing.T, e *fakeEngine, jsonData string, test func(*testing.T, *datasource)) {
	t.Run("embedded", func(t *testing.T) {
		test(t, newDatasource(t, e, backend.DataSourceInstanceSettings{JSONData: []byte(jsonData)}))
	})
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		t.Run("remote "+method, func(t *testing.T) {
			server := httptest.NewServer(http.StripPrefix("/prom", e.handler))
			t.Cleanup(server.Close)
			var fields map[string]any
			require.NoError(t, json.Unmarshal([]byte(jsonData), &fields))
			fields["httpMethod"] = method
			body, err := json.Marshal(fields)
			require.NoError(t, err)
			test(t, newDatasource(t, e, backend.DataSourceInstanceSettings{URL: server.URL + "/prom/", JSONData: body}))
		})
	}
}

func inOrg(id int64) backend.PluginContext {
	return backend.PluginContext{OrgID: id} //nolint:staticcheck // as in orgOf
}

// ask sends queries, given as JSON models by refId, over the first ten minutes.
func ask(t *testing.T, d *datasource, headers map[string]string, models map[string]string) backend.Responses {
	t.Helper()
	req := &backend.QueryDataRequest{PluginContext: inOrg(1), Headers: headers}
	for ref, m := range models {
		req.Queries = append(req.Queries, backend.DataQuery{
			RefID: ref, JSON: []byte(m), MaxDataPoints: 100, Interval: time.Minute,
			TimeRange: backend.TimeRange{From: time.Unix(0, 0), To: time.Unix(600, 0)},
		})
	}
	resp, err := d.QueryData(t.Context(), req)
	require.NoError(t, err)
	return resp.Responses
}

var errBroken = errors.New("broken on purpose")

// fakeExemplars returns the same exemplars for every question, or an error.
type fakeExemplars struct {
	found []exemplar.QueryResult
	err   error
}

func (f fakeExemplars) ExemplarQuerier(context.Context) (storage.ExemplarQuerier, error) {
	return f, f.err
}

func (f fakeExemplars) Select(_, _ int64, _ ...[]*labels.Matcher) ([]exemplar.QueryResult, error) {
	return f.found, f.err
}
