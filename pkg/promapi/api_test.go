package promapi

import (
	"bytes"
	"compress/gzip"
	"context"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/common/route"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/prometheus/prometheus/util/teststorage"
	v1 "github.com/prometheus/prometheus/web/api/v1"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/engine"
	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/tombstone"
)

// TestMain ignores what libraries of the buckets start when they are loaded.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

// dbSource shows a TSDB as a source.
type dbSource struct {
	*tsdb.DB
	layer serving.Layer
}

func (s *dbSource) Layer() serving.Layer          { return s.layer }
func (s *dbSource) Generations() (uint64, uint64) { return uint64(s.layer), uint64(s.layer) }

// DeletedBy implements serving.Source.
func (*dbSource) DeletedBy(*tombstone.Tombstone) tombstone.Effect { return tombstone.None }

func (s *dbSource) MinTime() int64 { return math.MinInt64 }
func (s *dbSource) MaxTime() int64 { return math.MaxInt64 }

var known = map[string]metadata.Metadata{
	"up":      {Type: model.MetricTypeGauge, Help: "is it", Unit: ""},
	"bytes":   {Type: model.MetricTypeCounter, Help: "how many", Unit: "bytes"},
	"unknown": {Type: model.MetricTypeUnknown},
}

// fixture is an API over a batch and a speed source, with the storage that has the samples of both.
type fixture struct {
	http.Handler
	o    Options
	both *teststorage.TestStorage
}

func newStorage(t testing.TB) *teststorage.TestStorage {
	return teststorage.New(t, func(o *tsdb.Options) { o.WALSegmentSize = -1 })
}

func newFixture(t testing.TB, change func(*Options)) *fixture {
	t.Helper()
	both, speed, batch := newStorage(t), newStorage(t), newStorage(t)
	for i := range int64(100) {
		half := batch
		if i >= 50 {
			half = speed
		}
		for _, to := range []*teststorage.TestStorage{both, half} {
			app := to.AppenderV2(t.Context())
			for _, job := range []string{"a", "b"} {
				_, err := app.Append(0, labels.FromStrings(model.MetricNameLabel, "up", "job", job), 0, i*15_000, float64(i%3), nil, nil, storage.AOptions{})
				require.NoError(t, err)
			}
			_, err := app.Append(0, labels.FromStrings(model.MetricNameLabel, "native"), 0, i*15_000, 0, tsdbutil.GenerateTestHistogram(i), nil, storage.AOptions{
				Exemplars: []exemplar.Exemplar{{Labels: labels.FromStrings("trace", fmt.Sprint(i)), Value: 1, Ts: i * 15_000, HasTs: true}},
			})
			require.NoError(t, err)
			require.NoError(t, app.Commit())
		}
	}
	set := serving.NewSet()
	set.Replace(nil, []serving.Entry{{Source: &dbSource{speed.DB, serving.Speed}}, {Source: &dbSource{batch.DB, serving.Batch}}})
	features, err := serving.ParseFeatures(nil)
	require.NoError(t, err)
	pool := serving.NewMemoryPool(1 << 30)
	opts := promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute}
	features.Apply(&opts)
	o := Options{
		QueryEngine: serving.NewEngine(serving.EngineOptions{PromQL: opts, Memory: pool}),
		Queryable:   serving.NewQueryable(set, serving.Options{Memory: pool}),
		Exemplars:   both,
		Features:    features,
		Write:       http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }),
		Metrics:     http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics") }),
		Metadata:    func() map[string]metadata.Metadata { return known },
		Head:        func() v1.HeadStats { return v1.HeadStats{ChunkCount: 7, MinTime: 1, MaxTime: 2} },
		Layers:      func() any { return map[string]string{"state": "fine"} },
		BatchRun:    func(_ context.Context, wait bool) (any, error) { return map[string]bool{"waited": wait}, nil },
		Build:       v1.PrometheusVersion{Version: "1.2.3"},
	}
	if change != nil {
		change(&o)
	}
	return &fixture{Handler: New(o), o: o, both: both}
}

// do sends a request; params go to the URL of a GET and to the form of a POST.
func do(h http.Handler, method, path, params string) *httptest.ResponseRecorder {
	var r *http.Request
	if method == http.MethodPost {
		r = httptest.NewRequest(method, path, strings.NewReader(params))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else {
		r = httptest.NewRequest(method, strings.TrimSuffix(path+"?"+params, "?"), nil)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

type envelope struct {
	Status, ErrorType, Error string
	Data                     stdjson.RawMessage
	Warnings                 []string
}

func decode(t *testing.T, w *httptest.ResponseRecorder) (e envelope) {
	t.Helper()
	require.Equal(t, "application/json", w.Header().Get("Content-Type"), w.Body.String())
	require.NoError(t, stdjson.Unmarshal(w.Body.Bytes(), &e), w.Body.String())
	return e
}

// reference is Prometheus's API as it is, over one TSDB.
func reference(db *teststorage.TestStorage) http.Handler {
	p := parser.NewParser(parser.Options{})
	engine := promql.NewEngine(promql.EngineOpts{
		MaxSamples: 1e6, Timeout: time.Minute, EnableAtModifier: true, EnableNegativeOffset: true, Parser: p,
		NoStepSubqueryIntervalFn: func(int64) int64 { return 60_000 },
	})
	a := &api{o: Options{QueryEngine: engine, Queryable: db, Exemplars: db, Build: v1.PrometheusVersion{Version: "1.2.3"}}, parser: p}
	a.o.Logger, a.o.CORSOrigin = New(Options{}).(*api).o.Logger, New(Options{}).(*api).o.CORSOrigin
	return a.newUpstream().(*route.Router)
}

var timings = regexp.MustCompile(`"timings":{[^}]*},`)

// Answers are, byte for byte, those of Prometheus's own API.
func TestAnswersAreThoseOfPrometheus(t *testing.T) {
	f := newFixture(t, nil)
	prom := reference(f.both)
	const span = "start=0&end=1500&step=15"
	q := url.QueryEscape
	for _, c := range [][2]string{
		{"query", "query=" + q(`sort(up)`) + "&time=1485"},
		{"query", "query=" + q(`sum(up)`) + "&time=700"},
		{"query", "query=1&time=1"},
		{"query", "query=" + q(`"text"`) + "&time=1"},
		{"query", "query=" + q(`native`) + "&time=800"},
		{"query", "query=" + q(`sort(up)`) + "&time=1485&limit=1"},
		{"query", "query=" + q(`up{job="a"}[5m]`) + "&time=900"},
		{"query", "query=" + q(`rate(up[5m])`) + "&time=900"},
		{"query", "query=" + q(`nothing`)},
		{"query", "query=" + q(`up{`)},
		{"query", ""},
		{"query", "query=up&time=x"},
		{"query", "query=up&timeout=x"},
		{"query", "query=up&limit=x"},
		{"query", "query=" + q(`up{job="a"}`) + "&time=1500&lookback_delta=1"},
		{"query", "query=" + q(`up{job="a"}`) + "&time=1500&lookback_delta=1m"},
		{"query", "query=" + q(`up{job="a"}`) + "&time=1&stats=no"},
		{"query_range", "query=up&" + span},
		{"query_range", "query=" + q(`sum(rate(up[2m]))`) + "&" + span},
		{"query_range", "query=native&" + span},
		{"query_range", "query=" + q(`up[5m]`) + "&" + span},
		{"query_range", "query=up&start=2&end=1&step=1"},
		{"query_range", "query=up&start=0&end=1e6&step=1"},
		{"query_range", "query=up&start=0&end=1&step=0"},
		{"query_range", ""},
		{"query_range", "query=up&" + span + "&limit=1"},
		{"series", "match[]=up"},
		{"series", "match[]=up&match[]=native"},
		{"series", ""},
		{"series", "match[]=up&limit=1"},
		{"series", "match[]=up{"},
		{"series", "match[]=up&start=x"},
		{"series", "match[]=" + q(`{job=~".*"}`)},
		{"labels", ""},
		{"labels", "match[]=up"},
		{"labels", "match[]=up&match[]=native"},
		{"labels", "limit=1"},
		{"labels", "limit=-1"},
		{"label/job/values", ""},
		{"label/__name__/values", ""},
		{"label/job/values", "match[]=" + q(`up{job="a"}`)},
		{"label/job/values", "limit=1"},
		{"label/nothing/values", ""},
		{"label/U__job/values", ""},
		{"label/job/values", "match[]="},
		{"query_exemplars", "query=native&start=0&end=1e6"},
		{"query_exemplars", "query=1"},
		{"query_exemplars", "query=" + q(`native{`)},
		{"query_exemplars", "query=native&start=9&end=1"},
		{"format_query", "query=" + q(`sum(up)by(job)/2`)},
		{"format_query", "query=" + q(`sum(`)},
		{"format_query", ""},
		{"parse_query", "query=" + q(`sum(up)by(job)/2`)},
		{"parse_query", "query=" + q(`sum(`)},
		{"rules", ""},
		{"rules", "type=alert"},
		{"rules", "type=x"},
		{"rules", "match[]={"},
		{"status/buildinfo", ""},
	} {
		path := prefix + "/" + c[0]
		want := do(prom, http.MethodGet, path, c[1])
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			got := do(f, method, path, c[1])
			require.Equal(t, want.Code, got.Code, "%s %s?%s", method, path, c[1])
			require.Equal(t, timings.ReplaceAllString(want.Body.String(), ""), timings.ReplaceAllString(got.Body.String(), ""), "%s %s?%s", method, path, c[1])
			require.Equal(t, want.Header(), got.Header(), "%s %s?%s", method, path, c[1])
		}
	}
}

// Whatever is sent to a path that is registered, it answers in JSON and does not panic.
func TestEveryPathWithAnything(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"all parts": nil,
		"only what is needed": func(o *Options) {
			*o = Options{QueryEngine: o.QueryEngine, Queryable: o.Queryable}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, change)
			for path := range f.Handler.(*api).routes {
				path = strings.Replace(path, "*", "job", 1)
				for _, method := range []string{"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"} {
					for _, params := range []string{
						"", "query=up", "query=up&start=0&end=100&step=10", "match[]=up", "match[]={", "limit=0", "limit=-5", "limit=x", "start=x&end=y", "time=x",
						"query=%ff%fe", "query=up%00", "stats=all&query=up", "wait=x", "group_limit=x", "group_limit=1&group_next_token=z", "exclude_alerts=x", "%zz",
						"start=-1e300&end=1e300&step=1e300&query=up", "start=NaN&end=NaN&step=NaN&query=up", "time=Inf&query=up", "timeout=-1&query=up", "query=up&time=1e18",
					} {
						w := do(f, method, path, params)
						require.NotEqual(t, http.StatusInternalServerError, w.Code, "%s %s?%s: %s", method, path, params, w.Body)
						if strings.HasPrefix(path, prefix) && w.Body.Len() > 0 {
							decode(t, w)
						}
					}
				}
			}
		})
	}
}

func TestOtherPathsAndMethods(t *testing.T) {
	f := newFixture(t, nil)
	for _, path := range []string{
		"/", "/api/v1", "/api/v1/", "/api/v1/targets", "/api/v1/read", "/api/v1/admin/tsdb/snapshot", "/api/v1/status/config", "/api/v1/query/", "/api/v1//query",
		"/api/v1/label//values", "/api/v1/label/a/b/values", "/api/v1/label/*/values/x", "/api/v1/label/values", "/api/v1/notifications/live", "/metrics/", "/api/v1/*",
	} {
		w := do(f, http.MethodGet, path, "")
		require.Equal(t, http.StatusNotFound, w.Code, path)
		require.Equal(t, "not_found", decode(t, w).ErrorType)
	}
	for path, allow := range map[string]string{
		"/api/v1/query": "GET, POST", "/api/v1/write": "POST", "/api/v1/push": "POST", "/api/v1/batch/run": "POST", "/api/v1/layers": "GET", "/-/healthy": "GET, HEAD",
	} {
		w := do(f, http.MethodDelete, path, "")
		require.Equal(t, http.StatusMethodNotAllowed, w.Code)
		require.Equal(t, allow, w.Header().Get("Allow"), path)
		require.Equal(t, "error", decode(t, w).Status)
	}
	for _, path := range []string{"/api/v1/write", "/api/v1/push"} {
		w := do(f, http.MethodGet, path, "")
		require.Equal(t, http.StatusMethodNotAllowed, w.Code)
		require.Equal(t, "POST", w.Header().Get("Allow"))
		require.Equal(t, "method GET is not allowed for "+path+", which takes POST", decode(t, w).Error)
	}
	require.Equal(t, http.StatusNoContent, do(f, http.MethodPost, "/api/v1/push", "").Code)
	require.Equal(t, "metrics", do(f, http.MethodGet, "/metrics", "").Body.String())
	require.Equal(t, http.StatusOK, do(f, http.MethodHead, "/-/healthy", "").Code)
	require.Contains(t, do(f, http.MethodGet, "/-/ready", "").Body.String(), "Ready")
}

func TestLayerAndViews(t *testing.T) {
	f := newFixture(t, nil)
	count := func(params string) string {
		var data struct{ Result []struct{ Value []any } }
		e := decode(t, do(f, http.MethodPost, "/api/v1/query", "time=1485&query="+url.QueryEscape(`sum(count_over_time(up[1h]))`)+params))
		require.NoError(t, stdjson.Unmarshal(e.Data, &data))
		return fmt.Sprint(data.Result[0].Value[1])
	}
	require.Equal(t, "200", count(""))
	require.Equal(t, "200", count("&layer=merged&views=auto"))
	require.Equal(t, "100", count("&layer=speed&views=off"))
	require.Equal(t, "100", count("&layer=batch"))
	for params, want := range map[string]string{
		"layer=all": "must be merged, speed or batch", "views=only": "there are no views", "views=x": "must be auto, off or only",
	} {
		for _, path := range []string{"/api/v1/query", "/api/v1/query_range"} {
			w := do(f, http.MethodGet, path, "query=up&start=0&end=1&step=1&"+params)
			require.Equal(t, http.StatusBadRequest, w.Code)
			require.Equal(t, "bad_data", decode(t, w).ErrorType)
			require.Contains(t, decode(t, w).Error, want)
		}
	}
}

func TestNotReady(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Ready = func() error { return errors.New("starting: replaying the log") } })
	for _, path := range []string{"/api/v1/query", "/api/v1/write", "/api/v1/batch/run", "/api/v1/metadata"} {
		w := do(f, http.MethodPost, path, "query=up")
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.NotEmpty(t, w.Header().Get("Retry-After"))
		require.Equal(t, "unavailable", decode(t, w).ErrorType)
		require.Contains(t, decode(t, w).Error, "replaying")
	}
	require.Equal(t, http.StatusServiceUnavailable, do(f, http.MethodGet, "/-/ready", "").Code)
	require.Equal(t, http.StatusOK, do(f, http.MethodGet, "/-/healthy", "").Code)
	require.Equal(t, http.StatusOK, do(f, http.MethodGet, "/metrics", "").Code)
	require.Equal(t, http.StatusOK, do(f, http.MethodGet, "/api/v1/layers", "").Code)
}

func TestMetadata(t *testing.T) {
	f := newFixture(t, nil)
	get := func(params string) string {
		return string(decode(t, do(f, http.MethodGet, "/api/v1/metadata", params)).Data)
	}
	require.JSONEq(t, `{"up":[{"type":"gauge","unit":"","help":"is it"}],"bytes":[{"type":"counter","unit":"bytes","help":"how many"}],"unknown":[{"type":"unknown","unit":"","help":""}]}`, get(""))
	require.JSONEq(t, `{"bytes":[{"type":"counter","unit":"bytes","help":"how many"}]}`, get("limit=1&limit_per_metric=1"))
	require.JSONEq(t, `{"up":[{"type":"gauge","unit":"","help":"is it"}]}`, get("metric=up"))
	require.JSONEq(t, `{}`, get("metric=nothing"))
	require.JSONEq(t, `{}`, get("limit=0"))
	require.Equal(t, "limit must be a number", decode(t, do(f, http.MethodGet, "/api/v1/metadata", "limit=x")).Error)
	require.Equal(t, "limit_per_metric must be a number", decode(t, do(f, http.MethodGet, "/api/v1/metadata", "limit_per_metric=x")).Error)
}

func TestStatusAndJobs(t *testing.T) {
	f := newFixture(t, nil)
	var status v1.TSDBStatus
	require.NoError(t, stdjson.Unmarshal(decode(t, do(f, http.MethodGet, "/api/v1/status/tsdb", "limit=2")).Data, &status))
	require.Equal(t, v1.TSDBStatus{
		HeadStats:                   v1.HeadStats{NumSeries: 3, NumLabelPairs: 4, ChunkCount: 7, MinTime: 1, MaxTime: 2},
		SeriesCountByMetricName:     []v1.TSDBStat{{Name: "up", Value: 2}, {Name: "native", Value: 1}},
		LabelValueCountByLabelName:  []v1.TSDBStat{{Name: "__name__", Value: 2}, {Name: "job", Value: 2}},
		MemoryInBytesByLabelName:    []v1.TSDBStat{{Name: "__name__", Value: 10}, {Name: "job", Value: 2}},
		SeriesCountByLabelValuePair: []v1.TSDBStat{{Name: "__name__=up", Value: 2}, {Name: "__name__=native", Value: 1}},
	}, status)
	for _, limit := range []string{"0", "x", "10001"} {
		require.Equal(t, http.StatusBadRequest, do(f, http.MethodGet, "/api/v1/status/tsdb", "limit="+limit).Code)
	}
	require.JSONEq(t, `{"state":"fine"}`, string(decode(t, do(f, http.MethodGet, "/api/v1/layers", "")).Data))
	require.JSONEq(t, `{"waited":true}`, string(decode(t, do(f, http.MethodPost, "/api/v1/batch/run", "")).Data))
	require.JSONEq(t, `{"waited":false}`, string(decode(t, do(f, http.MethodPost, "/api/v1/batch/run?wait=false", "")).Data))
	require.Equal(t, http.StatusBadRequest, do(f, http.MethodPost, "/api/v1/batch/run", "wait=perhaps").Code)
	failing := newFixture(t, func(o *Options) {
		o.BatchRun = func(context.Context, bool) (any, error) { return nil, errors.New("a block is damaged") }
	})
	w := do(failing, http.MethodPost, "/api/v1/batch/run", "")
	require.Equal(t, http.StatusInternalServerError, w.Code)
	require.Equal(t, "a block is damaged", decode(t, w).Error)
	away := newFixture(t, func(o *Options) {
		o.DeleteSeries = func(context.Context, engine.Deletion) error { return nil }
		o.BatchRun = func(context.Context, bool) (any, error) {
			return nil, &ingest.Unavailable{RetryAfter: 10 * time.Second, Reason: "the bucket is unavailable"}
		}
	})
	for _, path := range []string{"/api/v1/batch/run", "/api/v1/admin/tsdb/clean_tombstones"} {
		w := do(away, http.MethodPost, path, "")
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.Equal(t, "10", w.Header().Get("Retry-After"))
		require.Equal(t, "the bucket is unavailable", decode(t, w).Error)
	}
}

func TestLimitsOfRequests(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxForm = 50_000 })
	long := strings.Repeat("x", 60_000)
	for _, path := range []string{"/api/v1/query", "/api/v1/series", "/api/v1/label/job/values"} {
		w := do(f, http.MethodPost, path, "query="+long)
		require.Equal(t, http.StatusRequestEntityTooLarge, w.Code)
		require.Contains(t, decode(t, w).Error, "50000 bytes")
	}
	for _, path := range []string{"format_query", "parse_query", "query_exemplars", "query", "query_range"} {
		for _, query := range []string{strings.Repeat("(", 20_000) + "up" + strings.Repeat(")", 20_000), strings.Repeat("-", 4000) + "up"} {
			w := do(f, http.MethodPost, "/api/v1/"+path, "start=0&end=1&step=1&query="+query)
			require.Contains(t, []int{http.StatusBadRequest, http.StatusUnprocessableEntity}, w.Code, path)
			require.Less(t, w.Body.Len(), 1000)
		}
	}
	require.Equal(t, http.StatusBadRequest, do(f, http.MethodPost, "/api/v1/series", "match[]="+strings.Repeat("(", 20_000)).Code)

	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	require.NoError(t, form.WriteField("query", "1"))
	require.NoError(t, form.Close())
	r := httptest.NewRequest(http.MethodPost, "/api/v1/query", &body)
	r.Header.Set("Content-Type", form.FormDataContentType())
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	require.Equal(t, http.StatusOK, w.Code, "as in Prometheus: %s", w.Body)
}

func TestTooMuchIsAnExecutionError(t *testing.T) {
	f := newFixture(t, nil)
	w := do(f, http.MethodGet, "/api/v1/query", "query="+url.QueryEscape(`count_over_time(vector(1)[200y:1ms])`))
	require.Equal(t, http.StatusUnprocessableEntity, w.Code)
	require.Equal(t, "execution", decode(t, w).ErrorType)
	require.Contains(t, decode(t, w).Error, "--query.max-samples")

	// What other queries take is a reason to come again.
	pool := serving.NewMemoryPool(1000)
	busy := newFixture(t, func(o *Options) {
		opts := promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute}
		o.Features.Apply(&opts)
		o.QueryEngine = serving.NewEngine(serving.EngineOptions{PromQL: opts, Memory: pool})
	})
	b := pool.NewBudget()
	require.NoError(t, b.Add(700))
	defer b.Close()
	w = do(busy, http.MethodGet, "/api/v1/query", "time=1&query=up")
	require.Equal(t, http.StatusServiceUnavailable, w.Code, w.Body)
	require.Contains(t, decode(t, w).Error, "try again later")
}

func TestCORSAndCompression(t *testing.T) {
	f := newFixture(t, func(o *Options) {
		o.Layers = func() any { return map[string]string{"state": strings.Repeat("fine ", minCompressed)} }
	})
	for target, compressed := range map[string]bool{
		"/api/v1/query?query=1&time=1":                                   false, // shorter than it is worth
		"/api/v1/query?query=up&time=1":                                  false,
		"/api/v1/metadata?query=1":                                       false,
		"/api/v1/layers":                                                 true,
		"/api/v1/query_range?query=up&start=0&end=1000&step=1":           true,
		"/api/v1/query_range?query=nothing+and+else&start=0&end=1&step=": false, // an error
	} {
		for _, method := range []string{http.MethodGet, http.MethodOptions} {
			r := httptest.NewRequest(method, target, nil)
			r.Header.Set("Origin", "http://elsewhere")
			r.Header.Set("Accept-Encoding", "gzip")
			w := httptest.NewRecorder()
			f.ServeHTTP(w, r)
			require.Equal(t, "*", w.Header().Get("Access-Control-Allow-Origin"))
			require.Equal(t, "GET, POST, OPTIONS", w.Header().Get("Access-Control-Allow-Methods"))
			if method == http.MethodOptions {
				require.Equal(t, http.StatusNoContent, w.Code)
				continue
			}
			require.ElementsMatch(t, []string{"Origin", "Accept-Encoding"}, w.Header().Values("Vary"))
			plain := do(f, method, target, "")
			require.Empty(t, plain.Header().Get("Content-Encoding"))
			if !compressed {
				require.Empty(t, w.Header().Get("Content-Encoding"))
				require.Equal(t, plain.Body.String(), w.Body.String())
				continue
			}
			require.Equal(t, "gzip", w.Header().Get("Content-Encoding"))
			z, err := gzip.NewReader(w.Body)
			require.NoError(t, err)
			text, err := io.ReadAll(z)
			require.NoError(t, err)
			require.Equal(t, plain.Body.String(), string(text))
			require.Contains(t, string(text), `"status":"success"`)
		}
	}
}

func TestAPanicIsThatRequestsError(t *testing.T) {
	f := newFixture(t, func(o *Options) {
		o.Metadata = func() map[string]metadata.Metadata { panic("oh no") }
		o.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "half an ")
			panic("answer")
		})
	})
	r := httptest.NewRequest(http.MethodGet, "/api/v1/metadata", nil)
	r.Header.Set("Accept-Encoding", "gzip")
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	require.Equal(t, http.StatusInternalServerError, w.Code)
	require.Equal(t, "internal", decode(t, w).ErrorType)
	require.Equal(t, "half an ", do(f, http.MethodGet, "/metrics", "").Body.String())
}

// While the engine reads its logs, writes and what needs no samples are answered, and the rest is not answered in part.
func TestWhileLogsAreReplayed(t *testing.T) {
	f := newFixture(t, func(o *Options) {
		o.Ready = func() error { return nil }
		o.Loading = func() string { return "the log: 40 %" }
		o.Await = func(ctx context.Context) error {
			if serving.LayerOf(ctx) == serving.Batch {
				return nil
			}
			return &ingest.Unavailable{Status: http.StatusServiceUnavailable, RetryAfter: 7 * time.Second, Reason: "the log: 40 %"}
		}
		o.Write = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	})
	for _, path := range []string{
		"/api/v1/query?query=up", "/api/v1/query?query=up&layer=speed", "/api/v1/query_range?query=up&start=0&end=100&step=15", "/api/v1/series?match[]=up", "/api/v1/labels",
		"/api/v1/label/job/values", "/api/v1/metadata", "/api/v1/query_exemplars?query=up&start=0&end=100", "/api/v1/status/tsdb",
		// What is not of one layer needs all of them.
		"/api/v1/metadata?layer=batch", "/api/v1/query_exemplars?query=up&start=0&end=100&layer=batch", "/api/v1/status/tsdb?layer=batch",
	} {
		w := httptest.NewRecorder()
		f.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, http.NoBody))
		require.Equal(t, http.StatusServiceUnavailable, w.Code, path)
		require.Equal(t, "7", w.Header().Get("Retry-After"), path)
		require.Contains(t, w.Body.String(), "the log: 40 %", path)
	}
	for path, text := range map[string]string{
		"/api/v1/query?query=up&time=300&layer=batch": `"success"`, "/api/v1/format_query?query=up": `"success"`, "/api/v1/status/buildinfo": `"success"`, "/api/v1/layers": `"success"`,
		"/-/ready": "Millrace is Ready.\nIt takes writes and answers layer=batch; what else is asked waits for this: the log: 40 %.\n",
	} {
		w := httptest.NewRecorder()
		f.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, http.NoBody))
		require.Equal(t, http.StatusOK, w.Code, path)
		require.Contains(t, w.Body.String(), text, path)
	}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/api/v1/write", http.NoBody))
	require.Equal(t, http.StatusNoContent, w.Code)
}

// An engine that is ready, so that its queries are answered, says where it takes no writes.
func TestReadySaysWhyNoWritesAreTaken(t *testing.T) {
	loading := ""
	f := newFixture(t, func(o *Options) {
		o.Refusing = func() error { return errors.New("another writer has these labels") }
		o.Loading = func() string { return loading }
	})
	const refused = "Millrace is Ready.\nIt takes no writes: another writer has these labels.\n"
	w := do(f, http.MethodGet, "/-/ready", "")
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, refused, w.Body.String())
	loading = "the log: 40 %"
	require.Equal(t, refused+"It answers layer=batch; what else is asked waits for this: the log: 40 %.\n", do(f, http.MethodGet, "/-/ready", "").Body.String())
}

// A request that says how long it may take does not wait longer for logs to be replayed.
func TestTheTimeoutOfAWaitForLogs(t *testing.T) {
	for timeout, bounded := range map[string]bool{"": false, "20ms": true, "0.02": true, "0": false, "soon": false} {
		var seen bool
		f := newFixture(t, func(o *Options) {
			o.Await = func(ctx context.Context) error {
				if _, seen = ctx.Deadline(); seen {
					<-ctx.Done()
				}
				return &ingest.Unavailable{Status: http.StatusServiceUnavailable, RetryAfter: time.Second, Reason: "the log: 40 %"}
			}
		})
		w := do(f, http.MethodGet, "/api/v1/query?query=up&timeout="+timeout, "")
		require.Equal(t, http.StatusServiceUnavailable, w.Code, timeout)
		require.Equal(t, bounded, seen, timeout)
	}
}
