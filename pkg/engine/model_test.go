package engine

import (
	"flag"
	"fmt"
	"maps"
	"math/rand"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/tombstone"
)

var histories = flag.Int("histories", 3, "how many random histories TestHistoriesOfAnEngine goes through")

// history makes random requests to an engine and does to it what happens to engines. What was accepted is told apart by its values.
type history struct {
	*rand.Rand
	t    *testing.T
	path string
	e    *Engine
	now  int64
	args []string // of its configuration
	next int      // value
	last map[string]int64
	want map[string]map[int64]int
}

// histogramOf is told apart from the float of the same number by its sign.
func histogramOf(v int) *histogram.Histogram {
	return &histogram.Histogram{Count: uint64(v), Sum: float64(v), PositiveSpans: []histogram.Span{{Length: 1}}, PositiveBuckets: []int64{int64(v)}}
}

// at is the time of a sample: mostly newer than all of its series, else late, by up to days, or one that is taken.
func (h *history) at(series string) int64 {
	last, met := h.last[series]
	switch {
	case !met:
		last = h.now - h.Int63n(3*windowMillis)
	case h.Intn(4) > 0:
		last += 1 + h.Int63n(60_000)
	case h.Intn(2) == 0 && len(h.want[series]) > 0:
		taken := slices.Sorted(maps.Keys(h.want[series]))
		return taken[h.Intn(len(taken))]
	default:
		return h.now - h.Int63n(30*windowMillis)
	}
	h.last[series] = min(last, h.now)
	return h.last[series]
}

// write sends a request in either protocol. A series may be there more than once.
func (h *history) write() {
	var v1 prompb.WriteRequest
	var v2 writev2.Request
	symbols := writev2.NewSymbolTable()
	refused, hidden := false, h.expired()
	v2.Symbols = []string{""}
	for range 1 + h.Intn(8) {
		series := strconv.Itoa(h.Intn(12))
		ts := prompb.TimeSeries{Labels: []prompb.Label{{Name: "__name__", Value: "m"}, {Name: "series", Value: series}}}
		for range 1 + h.Intn(4) {
			at := h.at(series)
			h.next++
			v := h.next
			gone := hidden.Deletes(labels.FromStrings("__name__", "m", "series", series), at)
			refused = refused || gone
			if h.want[series] == nil {
				h.want[series] = map[int64]int{}
			}
			// Of one series in one request, histograms come after floats.
			if len(ts.Histograms) > 0 || h.Intn(10) == 0 {
				ts.Histograms = append(ts.Histograms, prompb.FromIntHistogram(at, histogramOf(v)))
				v = -v
			} else {
				ts.Samples = append(ts.Samples, prompb.Sample{Timestamp: at, Value: float64(v)})
			}
			if !gone {
				h.want[series][at] = v
			}
		}
		v1.Timeseries = append(v1.Timeseries, ts)
		other := writev2.TimeSeries{LabelsRefs: []uint32{symbols.Symbolize("__name__"), symbols.Symbolize("m"), symbols.Symbolize("series"), symbols.Symbolize(series)}}
		for _, s := range ts.Samples {
			other.Samples = append(other.Samples, writev2.Sample{Timestamp: s.Timestamp, Value: s.Value})
		}
		for _, x := range ts.Histograms {
			other.Histograms = append(other.Histograms, writev2.FromIntHistogram(0, x.Timestamp, x.ToIntHistogram()))
		}
		v2.Timeseries = append(v2.Timeseries, other)
	}
	v2.Symbols = symbols.Symbols()
	raw, err := v1.Marshal()
	p := ingest.V1
	if h.Intn(2) == 0 {
		raw, err = v2.Marshal()
		p = ingest.V2
	}
	require.NoError(h.t, err)
	_, err = h.e.receiver.Ingest(h.t.Context(), p, snappy.Encode(nil, raw))
	if !refused {
		require.NoError(h.t, err)
	} else {
		require.ErrorContains(h.t, err, "the retention rule {")
	}
}

// expired is what the rules do not keep at the history's time.
func (h *history) expired() *tombstone.Filter {
	return h.e.cfg.Storage.RetentionRules.Expired(h.now)
}

// config has the history's rules and its clock.
func (h *history) config() Config {
	cfg := testConfig(h.t, h.path, h.args...)
	now := time.UnixMilli(h.now)
	cfg.now = func() time.Time { return now }
	return cfg
}

// wait lets time go by for retention, which the engine learns with a restart.
func (h *history) wait() {
	h.now += h.Int63n(3 * windowMillis)
	h.confirmClock()
	h.restart()
}

// confirmClock has batch jobs be sure of the clock at once, so that they drop what rules hide.
func (h *history) confirmClock() {
	folder := filepath.Join(h.path, "bucket", "millrace")
	require.NoError(h.t, os.MkdirAll(folder, 0o750))
	object := fmt.Appendf(nil, `{"version":1,"sure":%d,"readings":[%[1]d]}`, h.now)
	require.NoError(h.t, os.WriteFile(filepath.Join(folder, "clock.json"), object, 0o600))
}

// delete deletes what was accepted of some series: all of it, or what lies in a range of time, if need be to the millisecond.
func (h *history) delete() {
	var d Deletion
	doomed := map[string]bool{}
	for range 1 + h.Intn(2) {
		s := tombstone.Selector{labels.MustNewMatcher(labels.MatchEqual, "series", strconv.Itoa(h.Intn(12)))}
		if h.Intn(4) == 0 {
			s = tombstone.Selector{
				labels.MustNewMatcher(labels.MatchEqual, "__name__", "m"), labels.MustNewMatcher(labels.MatchRegexp, "series", strconv.Itoa(h.Intn(10))+".*"),
			}
		}
		d.Selectors = append(d.Selectors, s)
		for i := range 12 {
			if name := strconv.Itoa(i); s[len(s)-1].Matches(name) {
				doomed[name] = true
			}
		}
	}
	if d.MinTime, d.MaxTime = minTime, maxTime; h.Intn(2) == 0 {
		d.MinTime = h.now - h.Int63n(30*windowMillis)
		d.MaxTime = d.MinTime + h.Int63n(20*windowMillis)
	}
	require.NoError(h.t, h.e.DeleteSeries(h.t.Context(), d))
	for name := range doomed {
		maps.DeleteFunc(h.want[name], func(at int64, _ int) bool { return at >= d.MinTime && at <= d.MaxTime })
		if len(h.want[name]) == 0 {
			delete(h.want, name)
		}
	}
}

// check compares all samples of all series, and the values of labels.
func (h *history) check() {
	for series, samples := range h.want {
		maps.DeleteFunc(samples, func(at int64, _ int) bool {
			return h.expired().Deletes(labels.FromStrings("__name__", "m", "series", series), at)
		})
		if len(samples) == 0 {
			delete(h.want, series)
		}
	}
	got, err := h.samples()
	require.NoError(h.t, err)
	require.Equal(h.t, h.want, got)
	h.checkLabels()
}

// samples are all that a query sees, by series and time.
func (h *history) samples() (map[string]map[int64]int, error) {
	got := map[string]map[int64]int{}
	q, err := h.e.queries.NewInstantQuery(h.t.Context(), h.e.queryable, nil, "m[6d]", time.UnixMilli(h.now))
	require.NoError(h.t, err)
	defer q.Close()
	m, err := q.Exec(serving.WithLayer(h.t.Context(), serving.Merged)).Matrix()
	if err != nil {
		return nil, err
	}
	for _, s := range m {
		samples := map[int64]int{}
		got[s.Metric.Get("series")] = samples
		for _, f := range s.Floats {
			samples[f.T] = int(f.F)
		}
		for _, x := range s.Histograms {
			require.NotContains(h.t, samples, x.T)
			samples[x.T] = -int(x.H.Count)
		}
	}
	return got, nil
}

// checkLabels compares the values of labels.
func (h *history) checkLabels() {
	lq, err := h.e.queryable.Querier(minTime, maxTime)
	require.NoError(h.t, err)
	defer lq.Close()
	values, _, err := lq.LabelValues(h.t.Context(), "series", nil)
	require.NoError(h.t, err)
	require.ElementsMatch(h.t, slices.Collect(maps.Keys(h.want)), values)
	hints := &storage.SelectHints{Start: minTime, End: maxTime, Func: "series"}
	set := lq.Select(h.t.Context(), false, hints, labels.MustNewMatcher(labels.MatchEqual, "__name__", "m"))
	var series []string
	for set.Next() {
		series = append(series, set.At().Labels().Get("series"))
	}
	require.NoError(h.t, set.Err())
	require.ElementsMatch(h.t, slices.Collect(maps.Keys(h.want)), series)
}

// checkErased compares what the bucket's blocks hold, deleted or not, once all is in the bucket and compacted. Blocks of which nothing was left are
// on their way out.
func (h *history) checkErased() {
	listed, err := h.e.data.lister.List(h.t.Context())
	require.NoError(h.t, err)
	h.e.set.Replace(slices.DeleteFunc(h.e.set.Sources(), func(s serving.Source) bool {
		b, ok := s.(*blockSource)
		return !ok || listed[b.meta.ULID].DeletionMark == nil
	}), nil)
	h.e.set.Delete(nil)
	h.check()
}

// crash goes on with a copy of the files as they are, when none is being made: what a process that was killed leaves. (How it is in the middle of
// that, processes that are killed show in the end-to-end tests.)
func (h *history) crash() {
	eventually(h.t, "what was sealed is in the bucket", func() bool {
		h.e.mu.Lock()
		defer h.e.mu.Unlock()
		return len(h.e.generations) == 1 && len(h.e.local) == 0
	})
	path := h.filesNow()
	stopEngine(h.t, h.e)
	h.path = path
	h.e = startEngine(h.t, h.config())
}

// filesNow copies the files as they are. Where one goes while it is copied, as the listing of the bucket does when it is written anew, that is done again.
func (h *history) filesNow() string {
	for {
		path := filepath.Join(h.t.TempDir(), "copy")
		err := os.CopyFS(path, os.DirFS(h.path))
		if err == nil {
			return path
		}
		require.ErrorIs(h.t, err, os.ErrNotExist)
	}
}

func (h *history) restart() {
	stopEngine(h.t, h.e)
	h.e = startEngine(h.t, h.config())
}

// crashReplaying starts again while there is much to be replayed: requests are taken meanwhile, and it may be killed once more before it is through.
func (h *history) crashReplaying() {
	kills := h.Intn(3)
	for {
		stopEngine(h.t, h.e)
		h.path = h.filesNow()
		cfg := h.config()
		disk := newSlowDisk(all)
		cfg.logFS, cfg.newestLog = disk, newestLog{wait: time.Millisecond, small: -1}
		h.e = newEngine(h.t, cfg)
		h.e.Start(http.NotFoundHandler())
		begun := h.e
		h.t.Cleanup(func() {
			disk.goOn()
			stopEngine(h.t, begun)
		})
		eventually(h.t, "writes are taken", func() bool { return h.e.State().Phase == Replaying || h.e.State().Phase == Ready })
		for range h.Intn(8) {
			if h.Intn(4) == 0 {
				require.NoError(h.t, h.e.rotate())
			}
			h.write()
		}
		replaying := h.e.State().Phase == Replaying // else there was nothing in the logs
		if kills--; kills < 0 || !replaying {
			if replaying {
				_, err := h.samples()
				require.Error(h.t, err)
			}
			disk.goOn()
			waitOpened(h.t, h.e)
			return
		}
		killed := h.filesNow() // no block is made or uploaded while logs are replayed
		disk.goOn()
		stopEngine(h.t, h.e)
		h.path = killed
	}
}

// Whatever comes, in whatever order, and whatever happens meanwhile: what a query sees is, for each time of a series, what was accepted last.
func TestHistoriesOfAnEngine(t *testing.T) {
	for seed := range int64(*histories) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			h := &history{
				Rand: rand.New(rand.NewSource(seed)), t: t, path: t.TempDir(), now: time.Now().UnixMilli(),
				last: map[string]int64{}, want: map[string]map[int64]int{},
			}
			if seed%3 > 0 {
				h.args = []string{`--storage.retention.rule={series="3"}: 2h, {series=~"1.*",__name__="m"}: 20h`, `--storage.retention.rule={series=~"5|1|7"}: 40h`}
			}
			h.e = startEngine(t, h.config())
			h.confirmClock()
			for range 40 {
				switch h.Intn(26) {
				case 0, 1:
					require.NoError(t, h.e.rotate())
				case 2:
					require.NoError(t, h.e.RunBatch(t.Context()))
				case 3:
					h.restart()
				case 4:
					h.crash()
				case 5, 6, 7:
					h.delete()
				case 8:
					h.crashReplaying()
				case 9, 10:
					h.wait()
				default:
					h.write()
				}
				if h.Intn(4) == 0 {
					h.check()
				}
			}
			require.NoError(t, h.e.RunBatch(t.Context()))
			h.check()
			h.checkErased()
		})
	}
}
