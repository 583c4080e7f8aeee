package plugin

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
)

// access is who may use a path of the HTTP API.
type access int

const (
	readers access = iota // everyone, also no user: alert rules have none
	writers               // Editor and Admin
	admins                // Admin
)

func (a access) allows(role string) bool {
	switch a {
	case writers:
		return role == "Editor" || role == "Admin"
	case admins:
		return role == "Admin"
	}
	return true
}

func (a access) String() string {
	return map[access]string{readers: "Viewer", writers: "Editor or Admin", admins: "Admin"}[a]
}

// route is one path of the contract with who may use it how.
type route struct {
	methods []string
	access  access
}

var (
	get     = []string{http.MethodGet}
	post    = []string{http.MethodPost}
	getPost = []string{http.MethodGet, http.MethodPost}
	postPut = []string{http.MethodPost, http.MethodPut}
)

// routes are all paths that Grafana's users reach. What is not here is not passed on, whatever the engine or a server behind the
// datasource would make of it.
var routes = map[string]route{
	"api/v1/query":            {getPost, readers},
	"api/v1/query_range":      {getPost, readers},
	"api/v1/query_exemplars":  {getPost, readers},
	"api/v1/series":           {getPost, readers},
	"api/v1/labels":           {getPost, readers},
	"api/v1/metadata":         {getPost, readers},
	"api/v1/format_query":     {getPost, readers},
	"api/v1/rules":            {getPost, readers},
	"api/v1/status/buildinfo": {getPost, readers},
	"api/v1/status/tsdb":      {getPost, readers},
	"api/v1/layers":           {get, readers},
	"api/v1/write":            {post, writers},
	"api/v1/push":             {post, writers},
	"api/v1/batch/run":        {post, admins},
	pathSuggestions:           {post, readers},

	"api/v1/admin/tsdb/delete_series":    {postPut, admins},
	"api/v1/admin/tsdb/clean_tombstones": {postPut, admins},
}

// labelValues is the one path with a name in it: api/v1/label/NAME/values.
var labelValues = route{getPost, readers}

// findRoute returns the route of a path as Grafana gives it, relative and decoded, with the cleaned path that alone may be passed on. The
// decision and what comes after it see the same path, so that no spelling of a path gets past the one and means something else to the
// other. ok is false when there is no such path.
func findRoute(given string) (cleaned string, r route, ok bool) {
	cleaned = strings.TrimPrefix(path.Clean("/"+given), "/")
	if r, ok = routes[cleaned]; ok {
		return cleaned, r, true
	}
	name, found := strings.CutPrefix(cleaned, "api/v1/label/")
	if !found {
		return "", route{}, false
	}
	name, found = strings.CutSuffix(name, "/values")
	if !found || name == "" || strings.ContainsFunc(name, unsafeInName) {
		return "", route{}, false
	}
	return cleaned, labelValues, true
}

// takesGet tells whether a path only reads, so that a server may be asked by GET.
func takesGet(path string) bool {
	_, r, ok := findRoute(path)
	return ok && slices.Contains(r.methods, http.MethodGet)
}

// unsafeInName tells whether a character in a label's name could mean something to whoever reads the path next. Labels whose names hold one
// are asked for in Prometheus's own escaping (U__…).
func unsafeInName(r rune) bool {
	return r < ' ' || r == 0x7f || strings.ContainsRune(`/\%?#;`, r)
}

// forwardedRequestHeaders are the headers of a resource call that reach the engine or the server.
var forwardedRequestHeaders = []string{"Accept", "Content-Type", "Content-Encoding", "X-Prometheus-Remote-Write-Version"}

func forwardsResponseHeader(name string) bool {
	switch name {
	case "Content-Type", "Retry-After", "Allow", "Warning":
		return true
	}
	return strings.HasPrefix(name, "X-Prometheus-")
}

// cacheHeader asks that an answer may be kept by the browser for so long.
const cacheHeader = "X-Grafana-Cache"

// CallResource implements backend.CallResourceHandler: the HTTP API of the contract, for whom it is meant.
func (d *datasource) CallResource(ctx context.Context, req *backend.CallResourceRequest, sender backend.CallResourceResponseSender) error {
	rec := d.recordResource(ctx, req)
	if keep := http.Header(req.Headers).Get(cacheHeader); keep != "" && rec.status/100 == 2 {
		rec.header.Set(cacheHeader, "y")
		rec.header.Set("Cache-Control", keep)
	}
	return sender.Send(&backend.CallResourceResponse{Status: rec.status, Headers: rec.header, Body: rec.body.Bytes()})
}

// recordResource answers one resource call, and survives it.
func (d *datasource) recordResource(ctx context.Context, req *backend.CallResourceRequest) (rec *recorder) {
	rec = newRecorder()
	defer func() {
		if v := recover(); v != nil {
			d.logger.FromContext(ctx).Error("a resource call panicked", "path", req.Path, "panic", v, "stack", string(debug.Stack()))
			rec = newRecorder() // without the half of an answer
			writeAPIError(rec, http.StatusInternalServerError, "internal", "the call failed unexpectedly")
		}
	}()
	r, err := newResourceRequest(ctx, req)
	if err != nil {
		writeAPIError(rec, http.StatusBadRequest, "bad_data", err.Error())
		return rec
	}
	d.serveResource(rec, r, req)
	return rec
}

// newResourceRequest makes the HTTP request that Grafana got, as far as it passes it on.
func newResourceRequest(ctx context.Context, req *backend.CallResourceRequest) (*http.Request, error) {
	u, err := url.Parse(req.URL)
	if err != nil {
		return nil, fmt.Errorf("read the request's URL: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, req.Method, "/", bytes.NewReader(req.Body))
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	r.URL.RawQuery = u.RawQuery
	for _, name := range forwardedRequestHeaders {
		if v := http.Header(req.Headers).Values(name); len(v) > 0 {
			r.Header[name] = v
		}
	}
	return r, nil
}

// recorder is a response that is kept in memory: Grafana wants to be told status and headers with the first piece of it.
type recorder struct {
	status int
	wrote  bool
	header http.Header
	body   bytes.Buffer
}

func newRecorder() *recorder { return &recorder{status: http.StatusOK, header: http.Header{}} }

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) {
	if !r.wrote && status >= http.StatusOK { // informational ones are none yet
		r.status, r.wrote = status, true
	}
}

func (r *recorder) Write(p []byte) (int, error) {
	r.wrote = true
	return r.body.Write(p)
}

// serveResource answers one resource call on w. Its refusals are JSON as Prometheus's errors are.
func (d *datasource) serveResource(w http.ResponseWriter, r *http.Request, req *backend.CallResourceRequest) {
	if err := d.orgs.check(orgOf(req.PluginContext)); err != nil {
		writeAPIError(w, http.StatusForbidden, "forbidden", err.Error())
		return
	}
	cleaned, rt, ok := findRoute(req.Path)
	if !ok {
		writeAPIError(w, http.StatusNotFound, "not_found", "there is no such path")
		return
	}
	if !slices.Contains(rt.methods, req.Method) {
		w.Header().Set("Allow", strings.Join(rt.methods, ", "))
		writeAPIError(w, http.StatusMethodNotAllowed, "bad_data", "the path "+cleaned+" takes "+strings.Join(rt.methods, " and ")+" only")
		return
	}
	if role := userRole(req.PluginContext.User); !rt.access.allows(role) {
		writeAPIError(w, http.StatusForbidden, "forbidden",
			"the path "+cleaned+" needs the role "+rt.access.String()+" in this organisation; the role of the caller is "+orNone(role))
		return
	}
	if int64(len(req.Body)) > d.maxBody {
		writeAPIError(w, http.StatusRequestEntityTooLarge, "bad_data", "the body is larger than --ingest.max-body-size="+sizeText(d.maxBody))
		return
	}
	if cleaned == pathSuggestions {
		d.serveSuggestions(w, r, req.Body)
		return
	}
	r.URL.Path = "/" + cleaned
	r.RequestURI = r.URL.RequestURI()
	d.api.ServeHTTP(w, r)
}

func userRole(u *backend.User) string {
	if u == nil {
		return ""
	}
	return u.Role
}

// sizeText writes a size as the flags have it: in the largest unit, a power of 1,024, that it is a multiple of.
func sizeText(n int64) string {
	units := []string{"B", "KB", "MB", "GB"}
	i := 0
	for i < len(units)-1 && n != 0 && n%1024 == 0 {
		n, i = n/1024, i+1
	}
	return fmt.Sprintf("%d%s", n, units[i])
}

func orNone(role string) string {
	if role == "" {
		return "none"
	}
	return role
}
