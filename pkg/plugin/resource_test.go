package plugin

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/stretchr/testify/require"
)

// call makes a resource call as Grafana does, which gives the path decoded.
func call(t *testing.T, d *datasource, role string, req backend.CallResourceRequest) *backend.CallResourceResponse {
	t.Helper()
	if orgOf(req.PluginContext) == 0 {
		req.PluginContext = inOrg(1)
	}
	if role != "" {
		req.PluginContext.User = &backend.User{Role: role}
	}
	var got *backend.CallResourceResponse
	err := d.CallResource(t.Context(), &req, backend.CallResourceResponseSenderFunc(func(r *backend.CallResourceResponse) error {
		require.Nil(t, got, "one message")
		got = r
		return nil
	}))
	require.NoError(t, err)
	require.NotNil(t, got)
	return got
}

// echo answers with what reached it.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Retry-After", "7")
	w.Header().Set("X-Prometheus-Remote-Write-Samples-Written", "3")
	w.Header().Set("Set-Cookie", "a=b")
	_ = json.NewEncoder(w).Encode(map[string]any{"method": r.Method, "path": r.URL.Path, "query": r.URL.RawQuery, "body": string(body), "header": r.Header})
}

type echoed struct {
	Method, Path, Query, Body string
	Header                    http.Header
}

func readEcho(t *testing.T, resp *backend.CallResourceResponse) echoed {
	t.Helper()
	require.Equal(t, 200, resp.Status, "%s", resp.Body)
	var e echoed
	require.NoError(t, json.Unmarshal(resp.Body, &e))
	return e
}

// bothEcho runs a test over an engine, and over a server, that answer with what reached them.
func bothEcho(t *testing.T, jsonData string, test func(*testing.T, *datasource)) {
	t.Run("embedded", func(t *testing.T) {
		e := newEngine(t, "load 1m\n  x 1")
		e.handler = http.HandlerFunc(echo)
		test(t, newDatasource(t, e, backend.DataSourceInstanceSettings{JSONData: []byte(jsonData)}))
	})
	t.Run("remote", func(t *testing.T) {
		server := httptest.NewServer(http.HandlerFunc(echo))
		t.Cleanup(server.Close)
		test(t, newDatasource(t, NoEngine(errBroken), backend.DataSourceInstanceSettings{URL: server.URL, JSONData: []byte(jsonData)}))
	})
}

func TestRoles(t *testing.T) {
	all := []string{"", "None", "Viewer", "Editor", "Admin", "editor", "ADMIN"}
	bothEcho(t, `{}`, func(t *testing.T, d *datasource) {
		for _, tc := range []struct {
			method, path string
			allowed      []string
		}{
			{"GET", "api/v1/query", all},
			{"POST", "api/v1/query_range", all},
			{"POST", "api/v1/labels", all},
			{"GET", "api/v1/label/job/values", all},
			{"GET", "api/v1/layers", all},
			{"GET", "api/v1/rules", all},
			{"POST", "api/v1/write", []string{"Editor", "Admin"}},
			{"POST", "api/v1/push", []string{"Editor", "Admin"}},
			{"POST", "api/v1/batch/run", []string{"Admin"}},
			{"POST", "api/v1/batch/run/", []string{"Admin"}},
			{"POST", "api/v1/admin/tsdb/delete_series", []string{"Admin"}},
			{"PUT", "api/v1/admin/tsdb/delete_series", []string{"Admin"}},
			{"POST", "api/v1/admin/tsdb/clean_tombstones", []string{"Admin"}},
			{"POST", "//api/v1//write", []string{"Editor", "Admin"}},
			{"POST", "api/v1/query/../write", []string{"Editor", "Admin"}},
		} {
			for _, role := range all {
				t.Run(fmt.Sprintf("%s %s as %q", tc.method, tc.path, role), func(t *testing.T) {
					resp := call(t, d, role, backend.CallResourceRequest{Method: tc.method, Path: tc.path, URL: tc.path})
					if strings.Contains(" "+strings.Join(tc.allowed, " ")+" ", " "+role+" ") || len(tc.allowed) == len(all) {
						require.Equal(t, 200, resp.Status)
						return
					}
					require.Equal(t, 403, resp.Status)
					require.Contains(t, string(resp.Body), "needs the role")
					require.JSONEq(t, `"forbidden"`, string(field(t, resp.Body, "errorType")))
				})
			}
		}
	})
}

func field(t *testing.T, body []byte, name string) json.RawMessage {
	t.Helper()
	var fields map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(body, &fields))
	return fields[name]
}

// Whatever the spelling of a path, what was decided on is what is passed on.
func TestPaths(t *testing.T) {
	bothEcho(t, `{}`, func(t *testing.T, d *datasource) {
		for given, want := range map[string]string{
			"api/v1/query":                 "/api/v1/query",
			"/api/v1/query":                "/api/v1/query",
			"//api//v1/query":              "/api/v1/query",
			"api/v1/query/":                "/api/v1/query",
			"api/v1/./query":               "/api/v1/query",
			"../../api/v1/query":           "/api/v1/query",
			"api/v1/write/../query":        "/api/v1/query",
			"api/v1/label/job/values":      "/api/v1/label/job/values",
			"api/v1/label/__name__/values": "/api/v1/label/__name__/values",
			"api/v1/label/größe/values":    "/api/v1/label/größe/values",
			"api/v1/label/a b.c/values":    "/api/v1/label/a b.c/values",
		} {
			t.Run(given, func(t *testing.T) {
				resp := call(t, d, "Viewer", backend.CallResourceRequest{Method: "GET", Path: given, URL: "ignored?a=1&a=2"})
				e := readEcho(t, resp)
				require.Equal(t, want, e.Path)
				require.Equal(t, "a=1&a=2", e.Query)
			})
		}
	})
	for _, given := range []string{
		"", "/", ".", "..", "api", "api/v1", "api/v2/query", "API/v1/query", "api/v1/Query", "api/v1/query ", "api/v1/query%2f", "api%2fv1%2fquery",
		"api/v1/query/%2e%2e/write", "api/v1/query\\..\\write", "api/v1/query;/write", "api/v1/query\x00", "api/v1/query?x", "api/v1/query#",
		"api/v1/label//values", "api/v1/label/a/b/values", "api/v1/label/../values", "api/v1/label/a%2fb/values", "api/v1/label/a/values/x", "api/v1/label/a",
		"api/v1/label/a\\b/values", "api/v1/label/a?b/values", "api/v1/label/a\nb/values", "api/v1/label/values",
		"metrics", "-/ready", "-/healthy", "debug/pprof/heap", "api/v1/admin/tsdb/snapshot", "api/v1/status/config", "federate", "http://other/api/v1/query",
	} {
		t.Run("no path "+given, func(t *testing.T) {
			_, _, ok := findRoute(given)
			require.False(t, ok)
		})
	}
}

func TestMethods(t *testing.T) {
	bothEcho(t, `{}`, func(t *testing.T, d *datasource) {
		for _, tc := range [][2]string{
			{"GET", "api/v1/write"},
			{"PUT", "api/v1/write"},
			{"DELETE", "api/v1/series"},
			{"GET", "api/v1/batch/run"},
			{"POST", "api/v1/layers"},
			{"GET", "api/v1/admin/tsdb/delete_series"},
			{"DELETE", "api/v1/admin/tsdb/delete_series"},
			{"OPTIONS", "api/v1/query"},
			{"get", "api/v1/query"},
			{"GET", "suggestions"},
			{"", "api/v1/query"},
		} {
			resp := call(t, d, "Admin", backend.CallResourceRequest{Method: tc[0], Path: tc[1]})
			require.Equal(t, 405, resp.Status, "%v", tc)
			require.NotEmpty(t, http.Header(resp.Headers).Get("Allow"))
		}
		for _, path := range []string{"api/v1/write", "api/v1/push"} {
			resp := call(t, d, "Viewer", backend.CallResourceRequest{Method: "GET", Path: path})
			require.Equal(t, 405, resp.Status)
			require.Equal(t, "POST", http.Header(resp.Headers).Get("Allow"))
			require.Contains(t, string(resp.Body), "the path "+path+" takes POST only")
		}
		require.Equal(t, 404, call(t, d, "Admin", backend.CallResourceRequest{Method: "GET", Path: "api/v1/admin/tsdb/snapshot"}).Status)
	})
}

func TestOrgs(t *testing.T) {
	e := newEngine(t, goldenLoad)
	e.handler = http.HandlerFunc(echo)
	d := newDatasource(t, e, backend.DataSourceInstanceSettings{})
	other := inOrg(2)
	other.User = &backend.User{Role: "Admin"}

	resp := call(t, d, "", backend.CallResourceRequest{PluginContext: other, Method: "GET", Path: "api/v1/query"})
	require.Equal(t, 403, resp.Status)
	require.Contains(t, string(resp.Body), "allowed_org_ids")

	health, err := d.CheckHealth(t.Context(), &backend.CheckHealthRequest{PluginContext: other})
	require.NoError(t, err)
	require.Equal(t, backend.HealthStatusError, health.Status)
	require.Contains(t, health.Message, "allowed_org_ids")

	data, err := d.QueryData(t.Context(), &backend.QueryDataRequest{PluginContext: other, Queries: []backend.DataQuery{{RefID: "A"}, {RefID: "B"}}})
	require.NoError(t, err)
	require.Len(t, data.Responses, 2)
	for _, r := range data.Responses {
		require.ErrorContains(t, r.Error, "allowed_org_ids")
		require.Equal(t, backend.StatusForbidden, r.Status)
	}

	for setting, allowed := range map[string][]int64{"": {1}, "1": {1}, "2, 5": {2, 5}, "2 5": {2, 5}, "*": {1, 2, 3, 4, 5}} {
		orgs, err := ParseOrgs(setting)
		require.NoError(t, err)
		var got []int64
		for id := range int64(6) {
			if id > 0 && orgs.check(id) == nil {
				got = append(got, id)
			}
		}
		require.Equal(t, allowed, got, "%q", setting)
	}
	for _, bad := range []string{"one", "0", "-1", "1,x"} {
		_, err := ParseOrgs(bad)
		require.ErrorContains(t, err, "allowed_org_ids")
	}
}

func TestWritePassesUnchanged(t *testing.T) {
	body := []byte("\xff\x00snappy")
	bothEcho(t, `{"httpMethod":"GET"}`, func(t *testing.T, d *datasource) {
		resp := call(t, d, "Editor", backend.CallResourceRequest{
			Method: "POST", Path: "api/v1/write", URL: "api/v1/write", Body: body,
			Headers: map[string][]string{
				"Content-Type": {"application/x-protobuf;proto=io.prometheus.write.v2.Request"}, "Content-Encoding": {"snappy"},
				"X-Prometheus-Remote-Write-Version": {"2.0.0"}, "Cookie": {"session=1"}, "Authorization": {"Bearer x"}, "X-Forwarded-For": {"1.2.3.4"},
			},
		})
		e := readEcho(t, resp)
		require.Equal(t, "POST", e.Method, "only questions are turned into GET")
		require.Equal(t, "snappy", e.Header.Get("Content-Encoding"))
		require.Equal(t, "application/x-protobuf;proto=io.prometheus.write.v2.Request", e.Header.Get("Content-Type"))
		require.Equal(t, "2.0.0", e.Header.Get("X-Prometheus-Remote-Write-Version"))
		for _, name := range []string{"Cookie", "Authorization", "X-Forwarded-For"} {
			require.Empty(t, e.Header.Get(name))
		}
		require.Equal(t, "7", http.Header(resp.Headers).Get("Retry-After"))
		require.Equal(t, "3", http.Header(resp.Headers).Get("X-Prometheus-Remote-Write-Samples-Written"))
	})
}

func TestFormBecomesQueryWhereOnlyGetIsSpoken(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(echo))
	t.Cleanup(server.Close)
	d := newDatasource(t, NoEngine(errBroken), backend.DataSourceInstanceSettings{URL: server.URL, JSONData: []byte(`{"httpMethod":"GET","customQueryParameters":"tenant=a"}`)})
	e := readEcho(t, call(t, d, "", backend.CallResourceRequest{
		Method: "POST", Path: "api/v1/labels", URL: "api/v1/labels?start=1", Body: []byte("match[]=up&match[]=x"),
		Headers: map[string][]string{"Content-Type": {"application/x-www-form-urlencoded"}},
	}))
	require.Equal(t, "GET", e.Method)
	require.Equal(t, "match%5B%5D=up&match%5B%5D=x&start=1&tenant=a", e.Query)
	require.Empty(t, e.Body)
}

func TestBodyLimit(t *testing.T) {
	bothEcho(t, `{}`, func(t *testing.T, d *datasource) {
		resp := call(t, d, "Editor", backend.CallResourceRequest{Method: "POST", Path: "api/v1/write", Body: make([]byte, d.maxBody+1)})
		require.Equal(t, 413, resp.Status)
		require.Contains(t, string(resp.Body), "--ingest.max-body-size=1MB")
		require.Equal(t, 200, call(t, d, "Editor", backend.CallResourceRequest{Method: "POST", Path: "api/v1/write", Body: bytes.Repeat([]byte("a"), int(d.maxBody))}).Status)
	})
}

func TestBrowserCache(t *testing.T) {
	bothEcho(t, `{}`, func(t *testing.T, d *datasource) {
		header := map[string][]string{"X-Grafana-Cache": {"private, max-age=60"}}
		ok := call(t, d, "", backend.CallResourceRequest{Method: "GET", Path: "api/v1/labels", Headers: header})
		require.Equal(t, "private, max-age=60", http.Header(ok.Headers).Get("Cache-Control"))
		refused := call(t, d, "", backend.CallResourceRequest{Method: "POST", Path: "api/v1/write", Headers: header})
		require.Empty(t, http.Header(refused.Headers).Get("Cache-Control"), "errors are not kept")
	})
}

func TestRemoteAnswers(t *testing.T) {
	for _, tc := range []struct {
		name    string
		handler http.HandlerFunc
		status  int
		text    string
	}{
		{"compressed", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write([]byte(`{"status":"success","data":["job"]}`))
			_ = z.Close()
		}, 200, `["job"]`},
		{"redirect", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://elsewhere/")
			w.WriteHeader(http.StatusMovedPermanently)
		}, 502, "http://elsewhere/"},
		{"busy", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "5")
			w.WriteHeader(http.StatusServiceUnavailable)
		}, 503, ""},
		{"gone", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 502, "ask the server"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server := httptest.NewServer(tc.handler)
			t.Cleanup(server.Close)
			d := newDatasource(t, NoEngine(errBroken), backend.DataSourceInstanceSettings{URL: server.URL})
			resp := call(t, d, "", backend.CallResourceRequest{Method: "GET", Path: "api/v1/labels", Headers: map[string][]string{"Accept-Encoding": {"br"}}})
			require.Equal(t, tc.status, resp.Status)
			require.Contains(t, string(resp.Body), tc.text)
			require.Empty(t, http.Header(resp.Headers).Get("Content-Encoding"))
		})
	}
}

func TestRemoteCredentials(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" || r.Header.Get("X-Scope") != "one" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		echo(w, r)
	}))
	t.Cleanup(server.Close)
	good := backend.DataSourceInstanceSettings{
		URL: server.URL, BasicAuthEnabled: true, BasicAuthUser: "me", JSONData: []byte(`{"httpHeaderName1":"X-Scope"}`),
		DecryptedSecureJSONData: map[string]string{"basicAuthPassword": "secret", "httpHeaderValue1": "one"},
	}
	require.Equal(t, 200, call(t, newDatasource(t, NoEngine(errBroken), good), "", backend.CallResourceRequest{Method: "GET", Path: "api/v1/labels"}).Status)

	bad := good
	bad.DecryptedSecureJSONData = nil
	d := newDatasource(t, NoEngine(errBroken), bad)
	a := ask(t, d, nil, map[string]string{"A": `{"expr":"up"}`})["A"]
	require.Equal(t, backend.StatusUnauthorized, a.Status)
	require.Equal(t, backend.ErrorSourceDownstream, a.ErrorSource)
}

func TestSuggestions(t *testing.T) {
	bothEcho(t, `{}`, func(t *testing.T, d *datasource) {
		for _, tc := range []struct{ name, body, path, query string }{
			{
				"names", `{"queries":["rate(b[$__rate_interval])","sum(a) / b", "not { promql"],"start":"1","end":"2","limit":10}`, "/api/v1/labels",
				`end=2&limit=10&match%5B%5D=%7B__name__%3D%22a%22%7D&match%5B%5D=%7B__name__%3D%22b%22%7D&start=1`,
			},
			{
				"values within filters", `{"labelName":"job","queries":["up"],"scopes":[{"key":"env","operator":"equals","value":"x"}]}`, "/api/v1/label/job/values",
				`match%5B%5D=%7B__name__%3D%22up%22%2Cenv%3D%22x%22%7D`,
			},
			{"filters alone", `{"adhocFilters":[{"key":"env","operator":"equals","value":"x"}]}`, "/api/v1/labels", `match%5B%5D=%7Benv%3D%22x%22%7D`},
			{"nothing", `{}`, "/api/v1/labels", ``},
		} {
			t.Run(tc.name, func(t *testing.T) {
				e := readEcho(t, call(t, d, "Viewer", backend.CallResourceRequest{Method: "POST", Path: "suggestions", Body: []byte(tc.body)}))
				require.Equal(t, "GET", e.Method)
				require.Equal(t, tc.path, e.Path)
				require.Equal(t, tc.query, e.Query)
			})
		}
		for _, bad := range []string{``, `[]`, `{"labelName":"../../write"}`, `{"labelName":"a/../b"}`, `{"labelName":"."}`, `{"scopes":[{"key":"a","operator":"?"}]}`} {
			require.Equal(t, 400, call(t, d, "Viewer", backend.CallResourceRequest{Method: "POST", Path: "suggestions", Body: []byte(bad)}).Status, bad)
		}
	})
}

func TestPanics(t *testing.T) {
	e := newEngine(t, goldenLoad)
	e.exemplars = panickingExemplars{}
	e.handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("half an ans"))
		panic("on purpose")
	})
	d := newDatasource(t, e, backend.DataSourceInstanceSettings{})
	responses := ask(t, d, nil, map[string]string{"A": `{"expr":"requests","exemplar":true,"range":true}`, "B": `{"expr":"sum(requests)"}`})
	require.ErrorContains(t, responses["A"].Error, "unexpectedly")
	require.Equal(t, backend.ErrorSourcePlugin, responses["A"].ErrorSource)
	require.Equal(t, 500, int(responses["A"].Status))
	require.NoError(t, responses["B"].Error)

	resp := call(t, d, "", backend.CallResourceRequest{Method: "GET", Path: "api/v1/labels"})
	require.Equal(t, 500, resp.Status)
	require.Contains(t, string(resp.Body), "unexpectedly")
	require.NotContains(t, string(resp.Body), "half")
}

func TestMisconfigured(t *testing.T) {
	e := newEngine(t, goldenLoad)
	for jsonData, text := range map[string]string{
		`{"mode":"sideways"}`:                  "mode",
		`{"mode":"remote"}`:                    "no URL",
		`{"httpMethod":"PUT"}`:                 "GET or POST",
		`{"timeInterval":"soon"}`:              "scrape interval",
		`{"queryTimeout":"-1s"}`:               "query timeout",
		`{"customQueryParameters":"%zz"}`:      "custom query parameters",
		`{"mode":1}`:                           "settings",
		`{"mode":"embedded","timeInterval":1}`: "settings",
	} {
		t.Run(jsonData, func(t *testing.T) {
			d := newDatasource(t, e, backend.DataSourceInstanceSettings{JSONData: []byte(jsonData)})
			for _, a := range ask(t, d, nil, map[string]string{"A": `{"expr":"up"}`, "B": `{"expr":"up"}`}) {
				require.ErrorContains(t, a.Error, text)
				require.Equal(t, 400, int(a.Status))
			}
			require.Equal(t, 400, call(t, d, "", backend.CallResourceRequest{Method: "GET", Path: "api/v1/labels"}).Status)
			health, err := d.CheckHealth(t.Context(), &backend.CheckHealthRequest{PluginContext: inOrg(1)})
			require.NoError(t, err)
			require.Equal(t, backend.HealthStatusError, health.Status)
			require.Contains(t, health.Message, text)
		})
	}
	for _, address := range []string{"ftp://host", "host:9090", "http://", "http://[::1"} {
		_, err := parseSettings(backend.DataSourceInstanceSettings{URL: address})
		require.Error(t, err, address)
	}
	s, err := parseSettings(backend.DataSourceInstanceSettings{URL: " http://host/ ", JSONData: []byte(`{"mode":"embedded"}`)})
	require.NoError(t, err)
	require.Equal(t, modeEmbedded, s.Mode, "the choice counts, not a URL that was left over")
}
