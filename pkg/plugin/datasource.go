package plugin

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	sdk "github.com/grafana/grafana-plugin-sdk-go/backend/datasource"
	"github.com/grafana/grafana-plugin-sdk-go/backend/instancemgmt"
	"github.com/grafana/grafana-plugin-sdk-go/backend/log"
	"github.com/grafana/grafana-plugin-sdk-go/config"
	"github.com/grafana/grafana-plugin-sdk-go/data"
	"github.com/prometheus/prometheus/model/exemplar"
	"golang.org/x/sync/errgroup"
)

// datasource is one instance of the datasource's settings. It implements the SDK's handlers.
type datasource struct {
	api      backendAPI
	settings settings
	orgs     Orgs
	maxBody  int64
	logger   log.Logger
}

var (
	_ backend.QueryDataHandler      = (*datasource)(nil)
	_ backend.CheckHealthHandler    = (*datasource)(nil)
	_ backend.CallResourceHandler   = (*datasource)(nil)
	_ instancemgmt.InstanceDisposer = (*datasource)(nil)
)

// newFactory returns what makes a datasource from its settings. Settings that are wrong make a datasource that says so in every answer:
// of none, Grafana would tell one query only, and answer the rest with 500.
func newFactory(o Options) sdk.InstanceFactoryFunc {
	return func(ctx context.Context, ds backend.DataSourceInstanceSettings) (instancemgmt.Instance, error) {
		d := &datasource{api: embedded{o.Engine}, orgs: o.Orgs, maxBody: o.MaxBody, logger: o.Logger}
		var err error
		if d.settings, err = parseSettings(ds); err == nil && d.settings.Mode == modeRemote {
			d.api, err = newRemote(ctx, ds, d.settings)
		}
		if err != nil {
			d.settings = settings{}
			d.api = misconfigured{badRequest("the datasource's settings: %w", err)}
		}
		return d, nil
	}
}

// misconfigured is the backend of a datasource whose settings are wrong.
type misconfigured struct{ err error }

func (m misconfigured) evaluate(context.Context, query) (answer, error) { return answer{}, m.err }

func (m misconfigured) findExemplars(context.Context, query) ([]exemplar.QueryResult, error) {
	return nil, m.err
}

func (m misconfigured) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	writeAPIError(w, http.StatusBadRequest, "bad_data", m.err.Error())
}

func (m misconfigured) health(context.Context) (healthReport, error) { return healthReport{}, m.err }
func (misconfigured) close()                                         {}

// Dispose implements instancemgmt.InstanceDisposer. The engine is not an instance's to close.
func (d *datasource) Dispose() { d.api.close() }

// defaultConcurrency is how many queries of one request run at once, where Grafana does not say.
const defaultConcurrency = 10

// QueryData implements backend.QueryDataHandler. Every query gets an answer under its refId; one that wants a range and an instant gets a
// second one under its refId with the suffix -Instant.
func (d *datasource) QueryData(ctx context.Context, req *backend.QueryDataRequest) (*backend.QueryDataResponse, error) {
	resp := backend.NewQueryDataResponse()
	if err := d.orgs.check(orgOf(req.PluginContext)); err != nil {
		for _, q := range req.Queries {
			resp.Responses[q.RefID] = errorResponse(err)
		}
		return resp, nil
	}
	alert := isFromAlert(req)
	var (
		mu sync.Mutex
		g  errgroup.Group
	)
	g.SetLimit(concurrency(req.PluginContext.GrafanaConfig))
	asked := map[string]bool{}
	for _, q := range req.Queries {
		asked[q.RefID] = true
	}
	for _, dq := range req.Queries {
		parsed, err := parseQuery(dq, d.settings.TimeInterval, alert)
		if err != nil {
			mu.Lock()
			resp.Responses[dq.RefID] = errorResponse(err)
			mu.Unlock()
			continue
		}
		for _, q := range parsed {
			if q.refID != dq.RefID && asked[q.refID] {
				continue // somebody's own query has that name
			}
			g.Go(func() error {
				answered := d.answer(ctx, q, alert)
				mu.Lock()
				defer mu.Unlock()
				resp.Responses[q.refID] = answered
				return nil
			})
		}
	}
	return resp, g.Wait()
}

// answer evaluates one query, and survives it.
func (d *datasource) answer(ctx context.Context, q query, alert bool) (resp backend.DataResponse) {
	defer func() {
		if v := recover(); v != nil {
			d.logger.FromContext(ctx).Error("a query panicked", "expr", q.expr, "panic", v, "stack", string(debug.Stack()))
			resp = errorResponse(errPanic(v))
		}
	}()
	a, err := d.api.evaluate(ctx, q)
	if err != nil {
		return errorResponse(err)
	}
	frames, err := q.frames(a, alert)
	if err != nil {
		return errorResponse(err)
	}
	if q.exemplars {
		frames = d.addExemplars(ctx, q, frames)
	}
	return backend.DataResponse{Frames: frames, Status: backend.StatusOK}
}

// addExemplars appends the frame of exemplars. That they cannot be had is a notice: the query itself was answered.
func (d *datasource) addExemplars(ctx context.Context, q query, frames data.Frames) data.Frames {
	found, err := d.api.findExemplars(ctx, q)
	if err != nil {
		d.logger.FromContext(ctx).Warn("reading exemplars failed", "expr", q.expr, "error", err)
		frames[0].AppendNotices(data.Notice{Severity: data.NoticeSeverityWarning, Text: fmt.Sprintf("exemplars could not be read: %s", err)})
		return frames
	}
	f := q.exemplarFrame(found)
	if f == nil {
		return frames
	}
	if len(frames) == 1 && len(frames[0].Fields) == 0 { // an empty frame stands alone or not at all
		f.Meta.ExecutedQueryString, f.Meta.Notices = frames[0].Meta.ExecutedQueryString, frames[0].Meta.Notices
		return data.Frames{f}
	}
	return append(frames, f)
}

// isFromAlert tells whether the rule evaluator asks.
func isFromAlert(req *backend.QueryDataRequest) bool {
	return req.Headers[backend.FromAlertHeaderName] == "true" || req.GetHTTPHeader(backend.FromAlertHeaderName) == "true"
}

func concurrency(cfg *config.GrafanaCfg) int {
	if cfg == nil {
		return defaultConcurrency
	}
	n, err := cfg.ConcurrentQueryCount()
	if err != nil || n < 1 {
		return defaultConcurrency
	}
	return n
}
