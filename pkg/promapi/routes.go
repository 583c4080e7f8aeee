package promapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/util/httputil"

	"github.com/millrace/millrace/pkg/serving"
)

// endpoint is what one path answers.
type endpoint struct {
	methods []string
	serve   http.Handler
	always  bool // also while the engine is not ready
	form    bool // parameters come as a form: bounded, checked, compressed, with CORS headers
	whole   bool // only when it can be answered in full; has a form
	layered bool // asks for the samples of one layer: that one has to be whole
}

const (
	labelPrefix = prefix + "/label/"
	labelSuffix = "/values"
	// labelValues is the key of all paths from labelPrefix to labelSuffix.
	labelValues = labelPrefix + "*" + labelSuffix
)

var getOrPost = []string{http.MethodGet, http.MethodPost}

// newRoutes lists every path that exists. Nothing else reaches Prometheus's handlers.
func (a *api) newRoutes() map[string]endpoint {
	routes := map[string]endpoint{
		"/-/healthy":          {methods: []string{http.MethodGet, http.MethodHead}, serve: http.HandlerFunc(a.healthy), always: true},
		"/-/ready":            {methods: []string{http.MethodGet, http.MethodHead}, serve: http.HandlerFunc(a.ready), always: true},
		prefix + "/layers":    {methods: []string{http.MethodGet}, serve: http.HandlerFunc(a.layers), always: true, form: true},
		prefix + "/batch/run": {methods: []string{http.MethodPost}, serve: http.HandlerFunc(a.batchRun), form: true},
	}
	for path, serve := range map[string]http.HandlerFunc{"delete_series": a.deleteSeries, "clean_tombstones": a.cleanTombstones} {
		routes[prefix+"/admin/tsdb/"+path] = endpoint{methods: []string{http.MethodPost, http.MethodPut}, serve: serve, form: true, whole: true}
	}
	if a.o.Metrics != nil {
		routes["/metrics"] = endpoint{methods: []string{http.MethodGet, http.MethodHead}, serve: a.o.Metrics, always: true}
	}
	if a.o.Write != nil {
		for _, path := range []string{"/write", "/push"} {
			routes[prefix+path] = endpoint{methods: []string{http.MethodPost}, serve: a.o.Write}
		}
	}
	own := map[string]http.HandlerFunc{"/metadata": a.metadata, "/status/tsdb": a.tsdbStatus}
	for path, serve := range own {
		routes[prefix+path] = endpoint{methods: getOrPost, serve: serve, form: true, whole: true}
	}
	for _, path := range []string{prefix + "/query", prefix + "/query_range", prefix + "/series", prefix + "/labels", labelValues} {
		routes[path] = endpoint{methods: getOrPost, serve: a.upstream, form: true, whole: true, layered: true}
	}
	for path, whole := range map[string]bool{
		"/query_exemplars": true, "/format_query": false, "/parse_query": false, "/rules": false, "/status/buildinfo": false,
	} {
		routes[prefix+path] = endpoint{methods: getOrPost, serve: a.upstream, form: true, whole: whole}
	}
	return routes
}

// find returns the route of a path.
func (a *api) find(path string) (endpoint, bool) {
	if name, ok := strings.CutPrefix(path, labelPrefix); ok {
		if name, ok = strings.CutSuffix(name, labelSuffix); ok && name != "" && !strings.Contains(name, "/") {
			path = labelValues
		}
	} else if strings.Contains(path, "*") {
		return endpoint{}, false
	}
	r, ok := a.routes[path]
	return r, ok
}

// ServeHTTP answers a request; its panic is a 500.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tracked := &trackedWriter{ResponseWriter: w}
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		a.o.Logger.Error("a request panicked", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
		if !tracked.written {
			w.Header().Del("Content-Encoding")
			a.fail(w, internalError, fmt.Errorf("panic: %v", p))
		}
	}()
	a.serve(tracked, r)
}

func (a *api) serve(w http.ResponseWriter, r *http.Request) {
	found, ok := a.find(r.URL.Path)
	if !ok {
		a.fail(w, notFound, fmt.Errorf("there is no %s", r.URL.Path))
		return
	}
	if found.form && r.Method == http.MethodOptions {
		httputil.SetCORS(w, a.o.CORSOrigin, r)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if !slices.Contains(found.methods, r.Method) {
		w.Header().Set("Allow", strings.Join(found.methods, ", "))
		a.fail(w, methodNotAllowed, fmt.Errorf("method %s is not allowed for %s, which takes %s", r.Method, r.URL.Path, strings.Join(found.methods, " or ")))
		return
	}
	if found.always || !a.refuse(w) {
		if found.form {
			a.serveForm(w, r, found)
			return
		}
		found.serve.ServeHTTP(w, r)
	}
}

// refuse answers that the engine is not ready, if it is not.
func (a *api) refuse(w http.ResponseWriter) bool {
	if a.o.Ready == nil {
		return false
	}
	err := a.o.Ready()
	if err == nil {
		return false
	}
	w.Header().Set("Retry-After", retryAfter)
	a.fail(w, unavailable, err)
	return true
}

// retryAfter is in how many seconds a client should come again.
const retryAfter = "5"

// serveForm reads and checks the parameters, and waits if need be, before it hands the request on.
func (a *api) serveForm(w http.ResponseWriter, r *http.Request, found endpoint) {
	next := found.serve
	if next == a.upstream {
		next = uncompressed(next)
	} else {
		httputil.SetCORS(w, a.o.CORSOrigin, r) // Prometheus's handlers do it themselves.
	}
	r.Body = http.MaxBytesReader(w, r.Body, a.o.MaxForm)
	if err := parseForm(r); err != nil {
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			a.fail(w, tooLargeForm, fmt.Errorf("the form has more than %d bytes", tooLarge.Limit))
			return
		}
		a.fail(w, badData, fmt.Errorf("error parsing form values: %w", err))
		return
	}
	ctx, err := a.checkParams(r)
	if err != nil {
		a.fail(w, badData, err)
		return
	}
	if found.whole && a.o.Await != nil {
		needs := ctx
		if !found.layered {
			needs = serving.WithLayer(ctx, serving.Merged)
		}
		if err := a.await(needs, r.Form.Get("timeout")); err != nil {
			a.failLater(w, err)
			return
		}
	}
	a.compress(next).ServeHTTP(w, asGet(r.WithContext(ctx)))
}

// await waits no longer than the request wants. What is no timeout is told by who needs it.
func (a *api) await(ctx context.Context, timeout string) error {
	d, err := model.ParseDuration(timeout)
	if seconds, notNumber := strconv.ParseFloat(timeout, 64); notNumber == nil {
		d, err = model.Duration(seconds*float64(time.Second)), nil
	}
	if err == nil && d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(d))
		defer cancel()
	}
	return a.o.Await(ctx)
}

// trackedWriter knows whether an answer has begun.
type trackedWriter struct {
	http.ResponseWriter
	written bool
}

func (t *trackedWriter) WriteHeader(code int) {
	t.written = true
	t.ResponseWriter.WriteHeader(code)
}

func (t *trackedWriter) Write(b []byte) (int, error) {
	t.written = true
	return t.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController find what the writer below can do.
func (t *trackedWriter) Unwrap() http.ResponseWriter { return t.ResponseWriter }
