package engine

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/golang/snappy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/promql"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/baidubce/bce-sdk-go/util/log.NewLogger.func1"), // started by its import
	)
}

// testConfig are the defaults, with nothing that happens by itself.
func testConfig(t testing.TB, path string, args ...string) Config {
	t.Helper()
	var cfg Config
	app := kingpin.New("test", "").Terminate(nil)
	cfg.Flags(app)
	_, err := app.Parse(append([]string{
		"--storage.path=" + path, "--web.listen-address=", "--self.scrape-interval=0s", "--batch.interval=0s", "--memory.limit=2GB",
	}, args...))
	require.NoError(t, err)
	require.NoError(t, cfg.Validate())
	return cfg
}

func newEngine(t testing.TB, cfg Config) *Engine {
	t.Helper()
	reg := prometheus.NewRegistry()
	e, err := New(cfg, reg, reg, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	require.NoError(t, err)
	return e
}

func startEngine(t *testing.T, cfg Config) *Engine {
	t.Helper()
	return started(t, newEngine(t, cfg))
}

// started starts an engine and waits until it is open.
func started(t *testing.T, e *Engine) *Engine {
	t.Helper()
	e.Start(http.NotFoundHandler())
	t.Cleanup(func() { stopEngine(t, e) })
	select {
	case <-e.Opened():
	case <-time.After(30 * time.Second):
		require.Fail(t, "engine did not open", "%+v", e.State())
	}
	return e
}

func stopEngine(t *testing.T, e *Engine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	e.Stop(ctx)
	require.NoError(t, ctx.Err(), "the engine did not stop")
}

type point struct {
	t int64
	v float64
}

// write sends points of one series as a remote write 1.0 request through the receiver.
func write(t *testing.T, e *Engine, series string, points ...point) {
	t.Helper()
	require.NoError(t, tryWrite(t.Context(), e, series, points...))
}

// tryWrite is write for goroutines.
func tryWrite(ctx context.Context, e *Engine, series string, points ...point) error {
	ts := prompb.TimeSeries{Labels: []prompb.Label{{Name: "__name__", Value: "m"}, {Name: "series", Value: series}}}
	for _, p := range points {
		ts.Samples = append(ts.Samples, prompb.Sample{Timestamp: p.t, Value: p.v})
	}
	raw, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{ts}}).Marshal()
	if err != nil {
		return err
	}
	_, err = e.receiver.Ingest(ctx, ingest.V1, snappy.Encode(nil, raw))
	return err
}

// read returns all samples of a series that a layer has up to at.
func read(t *testing.T, e *Engine, layer serving.Layer, series string, at int64, span time.Duration) []point {
	t.Helper()
	ctx := serving.WithLayer(t.Context(), layer)
	text := `m{series="` + series + `"}[` + strconv.FormatInt(span.Milliseconds(), 10) + `ms]`
	q, err := e.queries.NewInstantQuery(ctx, e.queryable, nil, text, time.UnixMilli(at))
	require.NoError(t, err)
	defer q.Close()
	res := q.Exec(ctx)
	require.NoError(t, res.Err)
	m, err := res.Matrix()
	require.NoError(t, err)
	require.LessOrEqual(t, len(m), 1)
	var out []point
	for _, s := range m {
		for _, f := range s.Floats {
			out = append(out, point{f.T, f.F})
		}
	}
	return out
}

var _ promql.QueryEngine = (*serving.Engine)(nil)

func TestSamplesOfAnyAgePassThroughAllLayersAndTheLastAcceptedWins(t *testing.T) {
	path := t.TempDir()
	e := startEngine(t, testConfig(t, path))
	now := time.Now().UnixMilli()
	const day = 24 * 60 * 60 * 1000
	want := []point{{now - 40*day, 1}, {now - 3*day, 2}, {now - 3*day + 1000, 3}, {now - 2000, 4}, {now - 1000, 5}}

	write(t, e, "a", point{now - 2000, 4}, point{now - 1000, 0})
	write(t, e, "a", point{now - 3*day, 7}, point{now - 40*day, 1}, point{now - 1000, 5})
	require.NoError(t, e.RunBatch(t.Context()))
	write(t, e, "a", point{now - 3*day + 1000, 3}, point{now - 3*day, 2})

	require.Equal(t, want, read(t, e, serving.Merged, "a", now, 50*24*time.Hour))
	require.Equal(t, want[1:3], read(t, e, serving.Speed, "a", now, 50*24*time.Hour), "speed is what no block in the bucket holds")
	require.Equal(t, []point{want[0], {now - 3*day, 7}, want[3], want[4]}, read(t, e, serving.Batch, "a", now, 50*24*time.Hour))

	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, want, read(t, e, serving.Batch, "a", now, 50*24*time.Hour))
	require.Empty(t, read(t, e, serving.Speed, "a", now, 50*24*time.Hour))

	stopEngine(t, e)
	require.NoError(t, os.RemoveAll(filepath.Join(path, "wal")))
	e = startEngine(t, testConfig(t, path))
	require.Equal(t, want, read(t, e, serving.Merged, "a", now, 50*24*time.Hour))
}

func TestARestartReplaysWhatWasAccepted(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	write(t, e, "a", point{now - 2000, 1}, point{now - 1000, 2})
	write(t, e, "a", point{now - 2000, 3})
	stopEngine(t, e)

	e = startEngine(t, testConfig(t, path))
	write(t, e, "a", point{now, 4})
	want := []point{{now - 2000, 3}, {now - 1000, 2}, {now, 4}}
	require.Equal(t, want, read(t, e, serving.Merged, "a", now, time.Hour))
	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, want, read(t, e, serving.Batch, "a", now, time.Hour))
}

// A generation that goes on after a restart goes on in its log, and series have the names there that they had.
func TestRestartsGoOnInTheSameLog(t *testing.T) {
	dir := t.TempDir()
	now := time.Now().UnixMilli()
	want := map[string][]point{}
	for round := range 4 {
		e := newEngine(t, testConfig(t, dir))
		e.Start(http.NotFoundHandler())
		<-e.Opened()
		for series, points := range want {
			require.Equal(t, points, read(t, e, serving.Speed, series, now+1000, time.Hour), "round %d, series %s", round, series)
		}
		for i := range 5 {
			// One of them is new.
			series, p := strconv.Itoa(round+i), point{now + int64(10*round+i), float64(100*round + i)}
			write(t, e, series, p)
			want[series] = append(want[series], p)
		}
		require.EqualValues(t, len(want), e.activeGeneration().mem.Stats().Series)
		stopEngine(t, e)
		logs, err := os.ReadDir(filepath.Join(dir, walDir))
		require.NoError(t, err)
		require.Len(t, logs, 1)
	}
}
