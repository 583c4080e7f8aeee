package engine

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
)

// layout says where a script's samples go.
type layout struct {
	name  string
	part  func(i, n int) int           // which part of a commit the i-th of n samples of a series belongs to
	place []func(*scriptStorage) error // where each part goes, in order of acceptance
}

func layouts() []layout {
	all := []func(*scriptStorage) error{(*scriptStorage).compact, (*scriptStorage).upload, (*scriptStorage).flush, (*scriptStorage).stay}
	return []layout{
		// Each sample's neighbours are in other layers.
		{"split, interleaved", func(i, _ int) int { return i % 4 }, all},
		{"active generation", whole, all[3:]},
		{"local blocks", whole, all[2:3]},
		{"bucket", whole, all[1:2]},
		{"compacted", whole, all[:1]},
		// The newest samples are in the oldest layer; all that comes later is late.
		{"split, late", func(i, n int) int { return 3 - 4*i/n }, all},
	}
}

// TestPrometheusScriptsInEveryLayer runs Prometheus's own PromQL scripts over engines of ours, once for each place where the data can be. With the
// race detector it takes the layout that touches all of them; what the others are for is the answers.
func TestPrometheusScriptsInEveryLayer(t *testing.T) {
	scripts := readScripts(t)
	where := layouts()
	if raceDetector {
		where = where[:1]
	}
	for _, l := range where {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			for name, text := range scripts {
				t.Run(name, func(t *testing.T) {
					if len(l.place) > 1 {
						text = withoutNeighbours(t, name, text)
					}
					promqltest.RunTestWithStorage(t, text, scriptEngine(), func(t testing.TB) storage.Storage { return newScriptStorage(t, l) })
				})
			}
		})
	}
}

// readScripts finds the scripts in the source of the module that the tests are built with.
func readScripts(t *testing.T) map[string]string {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-f", "{{.Dir}}", "github.com/prometheus/prometheus/promql/promqltest").Output()
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "testdata", "*.test"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), 20)
	scripts := map[string]string{}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		scripts[filepath.Base(file)] = string(raw)
	}
	return scripts
}

// withoutNeighbours takes out of a script what only holds if all samples of a series come from one place. A histogram's hint that no counter was
// reset before it speaks of its predecessor. When the two come from different sources, the merge says, as Prometheus's own between blocks
// does, that it is not known: the answer's numbers are the same, its hint is not. A script compares a hint only where one is written down.
func withoutNeighbours(t *testing.T, name, script string) string {
	t.Helper()
	const hint = " counter_reset_hint:not_reset"
	lines := strings.Split(script, "\n")
	expected := false
	for i, line := range lines {
		switch first, _, _ := strings.Cut(line, " "); first {
		case "eval":
			expected = true
		case "load", "load_with_nhcb", "clear":
			expected = false
		}
		if expected {
			lines[i] = strings.ReplaceAll(line, hint, "")
		}
	}
	script = strings.Join(lines, "\n")
	if name != "native_histograms.test" {
		return script
	}
	// The same with a warning: it says that the hints not_reset and reset meet, and here the first is not known.
	for _, f := range []string{"sum", "avg"} {
		eval := "eval instant at 11m histogram_count(" + f + "_over_time(mixed[2m]))\n"
		warning := "  expect warn msg: PromQL warning: conflicting counter resets during histogram aggregation (1:31)\n"
		require.Contains(t, script, eval+warning)
		script = strings.Replace(script, eval+warning, eval, 1)
	}
	return script
}

func whole(int, int) int { return 0 }

// scriptEngine is ours, with the options that the scripts are written for.
func scriptEngine() promql.QueryEngine {
	return serving.NewEngine(serving.EngineOptions{PromQL: promql.EngineOpts{
		MaxSamples: promqltest.DefaultMaxSamplesPerQuery, Timeout: 100 * time.Second, EnableDelayedNameRemoval: true, UseStartTimestamps: true,
		Parser: parser.NewParser(promqltest.TestParserOpts),
	}})
}

// scriptStorage is an engine as the scripts see it. What a script commits goes through the receiver as remote write requests, part by part, and
// after each part the data is brought to where the part is to be.
type scriptStorage struct {
	storage.SampleAndChunkQueryable
	t    testing.TB
	e    *Engine
	held bool // uploads wait
	layout
}

var _ storage.Storage = (*scriptStorage)(nil)

func newScriptStorage(t testing.TB, l layout) *scriptStorage {
	reg := prometheus.NewRegistry()
	e, err := New(testConfig(t, memoryDir(t), "--storage.start-timestamps", "--objstore.cache-size=4MB"), reg, reg,
		slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	require.NoError(t, err)
	e.Start(nil)
	<-e.Opened()
	return &scriptStorage{SampleAndChunkQueryable: e.Queryable(), t: t, e: e, layout: l}
}

// memoryDir is a temporary folder in memory, where there is such a thing: hundreds of engines would wait for the disk most of the time.
func memoryDir(t testing.TB) string {
	t.Helper()
	const shm = "/dev/shm"
	// Space for chunk files is taken before they are written, for the memory of a small container too much.
	if free, _, err := freeBytes(shm); err != nil || free < 4<<30 {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(shm, "millrace-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func (s *scriptStorage) StartTime() (int64, error) { return math.MinInt64, nil }

func (s *scriptStorage) Close() error {
	s.letUpload()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s.e.Stop(ctx)
	return ctx.Err()
}

func (s *scriptStorage) Appender(context.Context) storage.Appender {
	panic("the scripts use AppenderV2")
}

func (s *scriptStorage) AppenderV2(context.Context) storage.AppenderV2 {
	return &scriptAppender{s: s, index: map[string]int{}}
}

// stay leaves data in the active generation.
func (s *scriptStorage) stay() error { return nil }

// flush brings data to blocks on local disk, and keeps it there.
func (s *scriptStorage) flush() error {
	if !s.held {
		s.e.uploads.Lock()
		s.held = true
	}
	if err := s.e.rotate(); err != nil {
		return err
	}
	return s.e.flushSealed(s.t.Context())
}

// upload brings data to level-0 blocks in the bucket.
func (s *scriptStorage) upload() error {
	if err := s.flush(); err != nil {
		return err
	}
	s.letUpload()
	return s.e.uploadOnce(s.t.Context())
}

func (s *scriptStorage) letUpload() {
	if s.held {
		s.e.uploads.Unlock()
		s.held = false
	}
}

// compact brings data to blocks of higher levels.
func (s *scriptStorage) compact() error {
	s.letUpload()
	return s.e.RunBatch(s.t.Context())
}

// scriptAppender collects a commit.
type scriptAppender struct {
	s      *scriptStorage
	index  map[string]int
	series []scriptSeries
}

type scriptSeries struct {
	labels  labels.Labels
	samples []scriptSample
}

type scriptSample struct {
	st, t int64
	v     float64
	fh    *histogram.FloatHistogram
}

func (a *scriptAppender) Append(_ storage.SeriesRef, l labels.Labels, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram, _ storage.AppendV2Options) (storage.SeriesRef, error) {
	if h != nil {
		return 0, fmt.Errorf("integer histogram of %s: the scripts have float histograms only", l)
	}
	i, known := a.index[l.String()]
	if !known {
		i = len(a.series)
		a.index[l.String()] = i
		a.series = append(a.series, scriptSeries{labels: l})
	}
	a.series[i].samples = append(a.series[i].samples, scriptSample{st, t, v, fh})
	return 0, nil
}

func (a *scriptAppender) Rollback() error { return nil }

func (a *scriptAppender) Commit() error {
	for part, place := range a.s.place {
		if err := a.write(part); err != nil {
			return err
		}
		if err := place(a.s); err != nil {
			return err
		}
	}
	return nil
}

// write sends one part of what was collected as a remote write 2.0 request.
func (a *scriptAppender) write(part int) error {
	symbols := writev2.NewSymbolTable()
	var all []byte
	for _, s := range a.series {
		ts := writev2.TimeSeries{LabelsRefs: symbols.SymbolizeLabels(s.labels, nil)}
		var floats []byte
		for i, p := range s.samples {
			switch {
			case a.s.part(i, len(s.samples)) != part:
			case p.fh != nil:
				ts.Histograms = append(ts.Histograms, writev2.FromFloatHistogram(p.st, p.t, p.fh))
			default:
				floats = p.append(floats)
			}
		}
		if len(floats)+len(ts.Histograms) == 0 {
			continue
		}
		raw, err := ts.Marshal()
		if err != nil {
			return err
		}
		all = protowire.AppendBytes(protowire.AppendTag(all, 5, protowire.BytesType), append(raw, floats...))
	}
	req := writev2.Request{Symbols: symbols.Symbols()}
	raw, err := req.Marshal()
	if err != nil {
		return err
	}
	raw = append(raw, all...)
	_, err = a.s.e.receiver.Ingest(a.s.t.Context(), ingest.V2, snappy.Encode(nil, raw))
	return err
}

// append adds a sample to an encoded series. Generated code would leave out a value of -0, as if it were the default.
func (p scriptSample) append(series []byte) []byte {
	var s []byte
	s = protowire.AppendFixed64(protowire.AppendTag(s, 1, protowire.Fixed64Type), math.Float64bits(p.v))
	s = protowire.AppendVarint(protowire.AppendTag(s, 2, protowire.VarintType), uint64(p.t))
	s = protowire.AppendVarint(protowire.AppendTag(s, 3, protowire.VarintType), uint64(p.st))
	return protowire.AppendBytes(protowire.AppendTag(series, 2, protowire.BytesType), s)
}
