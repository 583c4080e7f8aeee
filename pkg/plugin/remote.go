package plugin

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/backend/httpclient"
	"github.com/prometheus/prometheus/model/exemplar"
)

// maxRemoteBody is the largest answer that is read from a server, in bytes.
const maxRemoteBody = 512 << 20

// remote asks a server over the Prometheus HTTP API.
type remote struct {
	client   *http.Client
	settings settings
}

// newRemote makes the client of a datasource in remote mode: authentication, TLS, proxy and timeouts are the instance's, as for every
// datasource of Grafana.
func newRemote(ctx context.Context, ds backend.DataSourceInstanceSettings, s settings) (*remote, error) {
	opts, err := ds.HTTPClientOptions(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the HTTP settings: %w", err)
	}
	opts.ForwardHTTPHeaders = true // those that Grafana chose to pass: who asks, from which dashboard or rule
	client, err := httpclient.New(opts)
	if err != nil {
		return nil, fmt.Errorf("make the HTTP client: %w", err)
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // plain tells the user
	return &remote{client: client, settings: s}, nil
}

func (r *remote) close() { r.client.CloseIdleConnections() }

func (r *remote) evaluate(ctx context.Context, q query) (answer, error) {
	path, form := "api/v1/query_range", url.Values{"query": {q.expr}}
	if q.instant {
		path = "api/v1/query"
		form.Set("time", formatTime(q.end))
	} else {
		form.Set("start", formatTime(q.start))
		form.Set("end", formatTime(q.end))
		form.Set("step", strconv.FormatFloat(q.step.Seconds(), 'f', -1, 64))
	}
	if q.layer != "" && q.layer != "merged" { // a plain Prometheus knows no layers
		form.Set("layer", q.layer)
	}
	if r.settings.QueryTimeout != "" {
		form.Set("timeout", r.settings.QueryTimeout)
	}
	var a answer
	err := r.ask(ctx, path, form, func(body io.Reader) (err error) {
		a, err = decodeAnswer(body)
		return err
	})
	return a, err
}

func (r *remote) findExemplars(ctx context.Context, q query) ([]exemplar.QueryResult, error) {
	form := url.Values{"query": {q.expr}, "start": {formatTime(q.start)}, "end": {formatTime(q.end)}}
	var found []exemplar.QueryResult
	err := r.ask(ctx, "api/v1/query_exemplars", form, func(body io.Reader) (err error) {
		found, err = decodeExemplars(body)
		return err
	})
	return found, err
}

// ask sends form with the datasource's method and lets decode read the body of an answer.
func (r *remote) ask(ctx context.Context, path string, form url.Values, decode func(io.Reader) error) error {
	resp, err := r.send(ctx, r.settings.HTTPMethod, path, nil, form, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, maxRemoteBody)
	if resp.StatusCode/100 != 2 {
		return remoteError(resp.StatusCode, body)
	}
	if err := decode(body); err != nil {
		if ctx.Err() != nil {
			return classify(ctx.Err(), http.StatusBadGateway)
		}
		return newError(http.StatusBadGateway, backend.ErrorSourceDownstream, "read the server's answer: %w", err)
	}
	return nil
}

// send makes one request. form goes into the body of a POST without a body of its own, else into the URL.
func (r *remote) send(ctx context.Context, method, path string, header http.Header, form url.Values, body []byte) (*http.Response, error) {
	u := *r.settings.url
	u.Path = strings.TrimSuffix(u.Path, "/") + "/" + path
	u.RawPath = ""
	inURL := url.Values{}
	maps.Copy(inURL, r.settings.params)
	if header == nil {
		header = http.Header{}
	}
	if method == http.MethodPost && body == nil && len(form) > 0 {
		body = []byte(form.Encode())
		header.Set("Content-Type", "application/x-www-form-urlencoded")
		header["Idempotency-Key"] = nil // not sent; lets the transport repeat the request on a connection that has died
	} else {
		maps.Copy(inURL, form)
	}
	u.RawQuery = inURL.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, newError(http.StatusInternalServerError, backend.ErrorSourcePlugin, "make the request: %w", err)
	}
	maps.Copy(req.Header, header)
	// Said and undone here: else the transport would do it only where no middleware passes the browser's header on.
	req.Header.Set("Accept-Encoding", "gzip")
	resp, err := r.client.Do(req)
	if err == nil {
		return plain(resp)
	}
	if ctx.Err() != nil {
		return nil, classify(ctx.Err(), http.StatusBadGateway)
	}
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil, newError(http.StatusGatewayTimeout, backend.ErrorSourceDownstream, "the server did not answer in time: %w", err)
	}
	return nil, newError(http.StatusBadGateway, backend.ErrorSourceDownstream, "ask the server: %w", err)
}

// plain undoes the compression of an answer's body, and refuses redirects: credentials go to the URL that was set, and nowhere else.
func plain(resp *http.Response) (*http.Response, error) {
	if resp.StatusCode/100 == 3 {
		resp.Body.Close()
		return nil, newError(http.StatusBadGateway, backend.ErrorSourceDownstream,
			"the server answered %d and points to %q: set the datasource's URL to where the server is", resp.StatusCode, resp.Header.Get("Location"))
	}
	if resp.Header.Get("Content-Encoding") != "gzip" {
		return resp, nil
	}
	unzipped, err := gzip.NewReader(resp.Body)
	if err != nil {
		resp.Body.Close()
		return nil, newError(http.StatusBadGateway, backend.ErrorSourceDownstream, "read the server's compressed answer: %w", err)
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{unzipped, resp.Body}
	return resp, nil
}

// remoteError is what a server's refusal becomes: its own words where it speaks as Prometheus does.
func remoteError(status int, body io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(body, 64<<10))
	if err != nil {
		text = append(text, []byte(" (reading the rest: "+err.Error()+")")...)
	}
	var said struct {
		ErrorType string `json:"errorType"`
		Error     string `json:"error"`
	}
	if json.Unmarshal(text, &said) == nil && said.Error != "" {
		if status == http.StatusServiceUnavailable && said.ErrorType == "timeout" {
			status = http.StatusGatewayTimeout
		}
		return newError(status, backend.ErrorSourceFromHTTPStatus(status), "%s: %s", said.ErrorType, said.Error)
	}
	const most = 1024
	if len(text) > most {
		text = text[:most]
	}
	return newError(status, backend.ErrorSourceFromHTTPStatus(status), "the server answered %d %s: %s", status, http.StatusText(status), bytes.TrimSpace(text))
}

// ServeHTTP passes a resource call on. Only headers that say something about bodies and retries pass, in both directions: no cookies, no
// credentials of the user, nothing about the connection.
func (r *remote) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		writeAPIError(w, http.StatusBadRequest, "bad_data", "read the request: "+err.Error())
		return
	}
	method, form := req.Method, req.URL.Query()
	isForm := strings.HasPrefix(req.Header.Get("Content-Type"), "application/x-www-form-urlencoded")
	if method == http.MethodPost && r.settings.HTTPMethod == http.MethodGet && (isForm || len(body) == 0) && takesGet(req.URL.Path) {
		fields, err := url.ParseQuery(string(body))
		if err != nil {
			writeAPIError(w, http.StatusBadRequest, "bad_data", "read the form: "+err.Error())
			return
		}
		for k, vs := range fields {
			form[k] = append(form[k], vs...)
		}
		method, body = http.MethodGet, nil
	}
	header := http.Header{}
	for _, k := range forwardedRequestHeaders {
		if v := req.Header.Values(k); len(v) > 0 {
			header[k] = v
		}
	}
	if method == http.MethodGet {
		header.Del("Content-Type")
	}
	if body == nil {
		body = []byte{}
	}
	resp, err := r.send(req.Context(), method, strings.TrimPrefix(req.URL.Path, "/"), header, form, body)
	if err != nil {
		writeAPIError(w, classify(err, http.StatusBadGateway).status, "unavailable", err.Error())
		return
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		if forwardsResponseHeader(k) {
			w.Header()[k] = v
		}
	}
	w.WriteHeader(resp.StatusCode)
	// A copy that breaks off cannot be told any more: the status has gone out.
	_, _ = io.Copy(w, io.LimitReader(resp.Body, maxRemoteBody))
}

func (r *remote) health(ctx context.Context) (healthReport, error) {
	h := healthReport{Mode: modeRemote, Phase: PhaseReady}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var info struct {
		Data struct {
			Version     string `json:"version"`
			Application string `json:"application"`
		} `json:"data"`
	}
	err := r.get(ctx, "api/v1/status/buildinfo", &info)
	if err != nil && classify(err, 0).status != http.StatusNotFound {
		return h, err
	}
	h.Version, h.Application = info.Data.Version, info.Data.Application
	layers, err := readLayers(ctx, r)
	if err == nil {
		h.Layers = layers
		return h, nil
	}
	if classify(err, 0).status != http.StatusNotFound {
		return h, err
	}
	// Not a Millrace. It will do if it answers a query.
	now := time.Now()
	_, err = r.evaluate(ctx, query{expr: "1+1", instant: true, start: now, end: now})
	return h, err
}

func (r *remote) get(ctx context.Context, path string, v any) error {
	resp, err := r.send(ctx, http.MethodGet, path, nil, nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, 1<<20)
	if resp.StatusCode/100 != 2 {
		return remoteError(resp.StatusCode, body)
	}
	if err := json.NewDecoder(body).Decode(v); err != nil {
		return newError(http.StatusBadGateway, backend.ErrorSourceDownstream, "read the server's answer: %w", err)
	}
	return nil
}

func formatTime(t time.Time) string {
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', -1, 64)
}
