package engine_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/golang/snappy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/engine"
	"github.com/millrace/millrace/pkg/promapi"
)

// server is an engine behind its whole HTTP API.
func server(t *testing.T) (*engine.Engine, *httptest.Server) {
	t.Helper()
	var cfg engine.Config
	app := kingpin.New("test", "").Terminate(nil)
	cfg.Flags(app)
	_, err := app.Parse([]string{
		"--storage.path=" + t.TempDir(), "--web.listen-address=", "--self.scrape-interval=0s", "--batch.interval=0s", "--memory.limit=2GB",
		"--ingest.max-body-size=1MB", "--ingest.max-decompressed-size=2MB", "--ingest.max-labels=10", "--ingest.max-label-value-length=100",
	})
	require.NoError(t, err)
	require.NoError(t, cfg.Validate())
	reg := prometheus.NewRegistry()
	e, err := engine.New(cfg, reg, reg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	e.Start(nil)
	<-e.Opened()
	s := httptest.NewServer(promapi.ForEngine(e))
	t.Cleanup(func() {
		s.Close()
		e.Stop(context.Background()) // the test's own context has ended
	})
	return e, s
}

func v1(t *testing.T, series ...prompb.TimeSeries) string {
	t.Helper()
	raw, err := (&prompb.WriteRequest{Timeseries: series}).Marshal()
	require.NoError(t, err)
	return string(snappy.Encode(nil, raw))
}

func oneSeries(at int64, pairs ...string) prompb.TimeSeries {
	ts := prompb.TimeSeries{Samples: []prompb.Sample{{Timestamp: at, Value: 1}}}
	for i := 0; i < len(pairs); i += 2 {
		ts.Labels = append(ts.Labels, prompb.Label{Name: pairs[i], Value: pairs[i+1]})
	}
	return ts
}

type hostile struct {
	name         string
	method, path string
	header       map[string]string
	body         string
	status       int
	text         string
}

func hostileRequests(t *testing.T) []hostile {
	now := time.Now().UnixMilli()
	valid := v1(t, oneSeries(now, "__name__", "m"))
	many := []string{"__name__", "m"}
	for i := range 20 {
		many = append(many, "l"+strconv.Itoa(10+i), "x")
	}
	const v2 = "application/x-protobuf;proto=io.prometheus.write.v2.Request"
	write := func(name, body string, status int, text string) hostile {
		return hostile{name: name, method: http.MethodPost, path: "/api/v1/write", body: body, status: status, text: text}
	}
	rows := []hostile{
		write("no body", "", http.StatusBadRequest, "snappy"),
		write("no snappy", "hello, world", http.StatusBadRequest, "snappy"),
		write("a bomb", string(snappy.Encode(nil, make([]byte, 16<<20))), http.StatusRequestEntityTooLarge, "--ingest.max-decompressed-size"),
		write("a length that is a lie", "\xff\xff\xff\xff\x0f\x00", http.StatusRequestEntityTooLarge, "--ingest.max-decompressed-size"),
		write("a body beyond the limit", strings.Repeat("x", 2<<20), http.StatusRequestEntityTooLarge, "--ingest.max-body-size"),
		write("no protobuf", string(snappy.Encode(nil, []byte(strings.Repeat("\xff", 100)))), http.StatusBadRequest, ""),
		write("cut off", valid[:len(valid)-3], http.StatusBadRequest, ""),
		write("no name", v1(t, oneSeries(now, "job", "x")), http.StatusBadRequest, "metric name"),
		write("too many labels", v1(t, oneSeries(now, many...)), http.StatusBadRequest, "--ingest.max-labels"),
		write("a long value", v1(t, oneSeries(now, "__name__", "m", "x", strings.Repeat("v", 101))), http.StatusBadRequest, "--ingest.max-label-value-length"),
		write("no UTF-8", v1(t, oneSeries(now, "__name__", "m", "x", "\xff\xfe")), http.StatusBadRequest, ""),
		write("twice the same label", v1(t, oneSeries(now, "__name__", "m", "x", "1", "x", "2")), http.StatusBadRequest, "more than once"),
		write("the future", v1(t, oneSeries(now+3_600_000, "__name__", "m")), http.StatusBadRequest, "--ingest.max-future"),
		write("seconds times a million", v1(t, oneSeries(now*1_000_000, "__name__", "m")), http.StatusBadRequest, ""),
		{name: "another encoding", method: http.MethodPost, path: "/api/v1/write", header: map[string]string{"Content-Encoding": "gzip"}, body: valid, status: http.StatusUnsupportedMediaType},
		{name: "another type", method: http.MethodPost, path: "/api/v1/write", header: map[string]string{"Content-Type": "application/json"}, body: valid, status: http.StatusUnsupportedMediaType},
		{name: "v1 said to be v2", method: http.MethodPost, path: "/api/v1/write", header: map[string]string{"Content-Type": v2}, body: valid, status: http.StatusBadRequest},
		{name: "not a write", method: http.MethodGet, path: "/api/v1/write", status: http.StatusMethodNotAllowed},
		{name: "a path out of the API", method: http.MethodPost, path: "/api/v1/../../etc/write", body: valid, status: http.StatusNotFound},
		{name: "an administrator's path of Prometheus", method: http.MethodPost, path: "/api/v1/admin/tsdb/delete_series?match[]=m", status: http.StatusServiceUnavailable},
		{name: "a batch run by a link", method: http.MethodGet, path: "/api/v1/batch/run", status: http.StatusMethodNotAllowed},
	}
	for name, query := range map[string]string{
		"steps without end":     "count_over_time(vector(1)[200y:1ms])",
		"nested without end":    strings.Repeat("(", 20_000) + "1" + strings.Repeat(")", 20_000),
		"an expression cut off": "sum(",
		"a regular expression":  `{__name__=~"` + strings.Repeat("(a*)*", 2000) + `["}`,
		"every series there is": `{__name__=~".*"}`,
	} {
		status := http.StatusBadRequest
		if strings.HasPrefix(query, "count_over_time") {
			status = http.StatusUnprocessableEntity
		}
		rows = append(rows, hostile{
			name: "query: " + name, method: http.MethodPost, path: "/api/v1/query", header: map[string]string{"Content-Type": "application/x-www-form-urlencoded", "Content-Encoding": ""},
			body: url.Values{"query": {query}}.Encode(), status: status,
		})
	}
	return rows
}

func send(t *testing.T, s *httptest.Server, r hostile) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), r.method, s.URL+r.path, strings.NewReader(r.body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Content-Encoding", "snappy")
	for k, v := range r.header {
		req.Header.Set(k, v)
		if v == "" {
			req.Header.Del(k)
		}
	}
	res, err := s.Client().Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(text)
}

func TestHostileRequestsLeaveTheServerHealthyAndEmpty(t *testing.T) {
	e, s := server(t)
	for _, r := range hostileRequests(t) {
		t.Run(r.name, func(t *testing.T) {
			began := time.Now()
			status, text := send(t, s, r)
			require.Equal(t, r.status, status, text)
			require.Contains(t, text, r.text)
			require.NotEmpty(t, text, "whoever meets it has to know why")
			require.Less(t, time.Since(began), 30*time.Second)

			status, _ = send(t, s, hostile{method: http.MethodGet, path: "/-/ready"})
			require.Equal(t, http.StatusOK, status)
			require.NoError(t, e.State().Err)
			for _, g := range e.Layers().Generations {
				require.Zero(t, g.Series, "something was stored")
				require.Zero(t, g.Samples, "something was stored")
			}
			status, text = send(t, s, hostile{method: http.MethodGet, path: "/api/v1/labels"})
			require.Equal(t, http.StatusOK, status)
			var answer struct{ Data []string }
			require.NoError(t, json.Unmarshal([]byte(text), &answer))
			require.Empty(t, answer.Data)
		})
	}
	status, text := send(t, s, hostile{method: http.MethodPost, path: "/api/v1/write", body: v1(t, oneSeries(time.Now().UnixMilli(), "__name__", "m"))})
	require.Equal(t, http.StatusNoContent, status, text)
	status, text = send(t, s, hostile{method: http.MethodGet, path: "/api/v1/query?query=m"})
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, text, `"__name__":"m"`)
}
