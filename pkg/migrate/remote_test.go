package migrate

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/common/config"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

// promServer answers remote reads as a Prometheus server does.
type promServer struct {
	sampleLimit int
	frame       int // bytes
	external    labels.Labels
	wrap        func(http.Handler) http.Handler
}

func (s promServer) start(t *testing.T, db *tsdb.DB) string {
	t.Helper()
	if s.frame == 0 {
		s.frame = 1 << 20
	}
	h := remote.NewReadHandler(slog.New(slog.DiscardHandler), nil, db, func() promconfig.Config {
		return promconfig.Config{GlobalConfig: promconfig.GlobalConfig{ExternalLabels: s.external}}
	}, s.sampleLimit, 10, s.frame)
	if s.wrap != nil {
		h = s.wrap(h)
	}
	mux := http.NewServeMux()
	mux.Handle("/prefix"+readPath, h)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL + "/prefix/"
}

// withoutStreams makes a server one that does not know streamed answers.
func withoutStreams(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		packed, _ := io.ReadAll(r.Body)
		raw, err := snappy.Decode(nil, packed)
		var req prompb.ReadRequest
		if err != nil || req.Unmarshal(raw) != nil {
			http.Error(w, "cannot decode", http.StatusBadRequest)
			return
		}
		req.AcceptedResponseTypes = nil
		raw, _ = req.Marshal()
		r.Body = io.NopCloser(bytes.NewReader(snappy.Encode(nil, raw)))
		next.ServeHTTP(w, r)
	})
}

// cutting ends every third answer in its midst.
func cutting(next http.Handler) http.Handler {
	var n atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1)%3 == 1 {
			w = &cutWriter{ResponseWriter: w}
		}
		next.ServeHTTP(w, r)
	})
}

type cutWriter struct {
	http.ResponseWriter
	n int
}

func (c *cutWriter) Flush() { c.ResponseWriter.(http.Flusher).Flush() }

func (c *cutWriter) Write(b []byte) (int, error) {
	if c.n += len(b); c.n > 3000 {
		panic(http.ErrAbortHandler)
	}
	return c.ResponseWriter.Write(b)
}

func between(from, to int64) func(*Options) {
	return func(o *Options) {
		last := to - 1
		o.MinTime, o.MaxTime = &from, &last
	}
}

func readFrom(r RemoteRead) func(context.Context, *Importer) error {
	r.retryAfter = time.Millisecond
	return func(ctx context.Context, im *Importer) error { return im.RemoteRead(ctx, r) }
}

func TestRemoteReadAnswersAsItsServer(t *testing.T) {
	db := newDB(t)
	from, to := begin-5*hour, begin+30*hour
	fill(t, db, from, to)
	want := answers(t, db, from, to)
	region := map[string]string{"region": "north"}
	for _, row := range []struct {
		name   string
		server promServer
		labels map[string]string
		fine   bool
	}{
		{name: "streamed"},
		{name: "streamed in small frames", server: promServer{frame: 300}},
		{name: "streamed, in windows of 2h", fine: true},
		{name: "samples", server: promServer{wrap: withoutStreams}},
		{name: "samples, few at once", server: promServer{wrap: withoutStreams, sampleLimit: 500}},
		{name: "over a bad connection", server: promServer{wrap: cutting, frame: 300}},
		{name: "with external labels", server: promServer{external: labels.FromMap(region)}, labels: region},
	} {
		t.Run(row.name, func(t *testing.T) {
			source := RemoteRead{URL: row.server.start(t, db), ExternalLabels: row.labels}
			change := func(o *Options) {
				between(from, to)(o)
				if row.fine {
					o.daySamples = 1000
				}
			}
			bkt := objstore.NewInMemBucket()
			_, err := importInto(t, bkt, change, readFrom(source))
			require.NoError(t, err)
			requireVerified(t, bkt)
			requireSame(t, want, answers(t, served(t, bkt), from, to))
			before := content(bkt)
			again, err := importInto(t, bkt, change, readFrom(source))
			require.NoError(t, err)
			require.Zero(t, again.Blocks)
			requireSame(t, before, content(bkt))
		})
	}
}

// Labels that a server adds can put series into another order than it sends them in.
func TestRemoteReadSortsWhatTheServerDoesNot(t *testing.T) {
	db := newDB(t)
	app := db.Appender(t.Context())
	for _, lset := range []labels.Labels{labels.FromStrings("__name__", "m"), labels.FromStrings("__name__", "m", "a", "1"), labels.FromStrings("__name__", "m", "z", "1")} {
		_, err := app.Append(0, lset, begin, 1)
		require.NoError(t, err)
	}
	require.NoError(t, app.Commit())
	source := RemoteRead{URL: promServer{external: labels.FromStrings("k", "v")}.start(t, db)}
	bkt := objstore.NewInMemBucket()
	_, err := importInto(t, bkt, between(begin, begin+hour), readFrom(source))
	require.NoError(t, err)
	requireVerified(t, bkt)
	require.Equal(t, []string{
		`{__name__="m", a="1", k="v"} 0h=1`, `{__name__="m", k="v"} 0h=1`, `{__name__="m", k="v", z="1"} 0h=1`,
	}, byHour(t, querier(t, served(t, bkt), begin, begin+hour)))
}

func TestRemoteReadOfSomeSeries(t *testing.T) {
	db := newDB(t)
	fill(t, db, begin, begin+hour)
	bkt := objstore.NewInMemBucket()
	source := RemoteRead{URL: promServer{}.start(t, db), Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "job", "a")}}
	s, err := importInto(t, bkt, between(begin, begin+hour), readFrom(source))
	require.NoError(t, err)
	require.EqualValues(t, 1, s.Series)
	source.Matchers[0] = labels.MustNewMatcher(labels.MatchEqual, "job", "b")
	s, err = importInto(t, bkt, between(begin, begin+hour), readFrom(source))
	require.NoError(t, err)
	require.EqualValues(t, 1, s.Series, "another selection is another import")
}

func TestRemoteReadThatCannotBe(t *testing.T) {
	var asked atomic.Int64
	db := newDB(t)
	fill(t, db, begin, begin+hour)
	guarded := promServer{wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			if user, password, _ := r.BasicAuth(); user != "u" || password != "p" {
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}}.start(t, db)
	bkt := objstore.NewInMemBucket()
	bounded := between(begin, begin+hour)

	_, err := importInto(t, bkt, bounded, readFrom(RemoteRead{URL: guarded}))
	require.ErrorContains(t, err, "who are you?")
	require.EqualValues(t, 1, asked.Load(), "that is not asked again")
	var log bytes.Buffer
	logged := func(o *Options) {
		bounded(o)
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	}
	_, err = importInto(t, bkt, logged, readFrom(RemoteRead{URL: "http://127.0.0.1:1"}))
	require.ErrorContains(t, err, "the server cannot be reached")
	require.ErrorContains(t, err, "connection refused")
	require.NotContains(t, log.String(), "shorter", "to ask for less is of no use")
	require.Equal(t, dials-1, strings.Count(log.String(), "is tried again"))
	_, err = importInto(t, bkt, bounded, readFrom(RemoteRead{URL: "prometheus:9090"}))
	require.ErrorContains(t, err, "is not like http://")
	_, err = importInto(t, bkt, nil, readFrom(RemoteRead{URL: guarded}))
	require.ErrorContains(t, err, "--min-time")
	future := time.Now().Add(time.Hour).UnixMilli()
	_, err = importInto(t, bkt, func(o *Options) { o.MinTime = &future }, readFrom(RemoteRead{URL: guarded}))
	require.ErrorContains(t, err, "there is no time between")
	few := func(o *Options) { bounded(o); o.Limits.MaxLabels = 1 }
	known := RemoteRead{URL: guarded, HTTP: config.HTTPClientConfig{BasicAuth: &config.BasicAuth{Username: "u", Password: "p"}}}
	_, err = importInto(t, bkt, few, readFrom(known))
	require.ErrorContains(t, err, "--ingest.max-labels=1")
	require.Empty(t, bkt.Objects())

	s, err := importInto(t, bkt, func(o *Options) { few(o); o.SkipInvalid = true }, readFrom(known))
	require.NoError(t, err)
	require.Equal(t, 3, s.InvalidSeries)
	_, err = importInto(t, bkt, bounded, readFrom(known))
	require.NoError(t, err)
}

func TestRemoteReadKilledAnywhere(t *testing.T) {
	db := newDB(t)
	fill(t, db, begin+21*hour, begin+25*hour)
	source := RemoteRead{URL: promServer{}.start(t, db)}
	killEverywhere(t, func(o *Options) { between(begin+21*hour, begin+25*hour)(o); o.daySamples = 200 }, readFrom(source))
}

func TestRemoteReadStopsWithItsContext(t *testing.T) {
	db := newDB(t)
	fill(t, db, begin, begin+hour)
	ctx, cancel := context.WithCancel(t.Context())
	hanging := promServer{wrap: func(http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // or the server does not notice that nobody waits any more
			cancel()
			<-r.Context().Done()
		})
	}}.start(t, db)
	bkt := objstore.NewInMemBucket()
	_, err := importWith(ctx, t, bkt, between(begin, begin+hour), readFrom(RemoteRead{URL: hanging}))
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, bkt.Objects())
}
