package batch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/tombstone"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// writerA is the writer of testMeta's blocks.
var writerA = map[string]string{"writer": "a"}

// points are the samples of a bucket or block: "series at time" → value.
type points map[string]string

func pointKey(l labels.Labels, t int64) string { return fmt.Sprintf("%s at %d", l, t) }

type sample struct {
	t int64
	f float64
	h *histogram.Histogram
}

func (s sample) T() int64                    { return s.t }
func (sample) ST() int64                     { return 0 }
func (s sample) F() float64                  { return s.f }
func (s sample) H() *histogram.Histogram     { return s.h }
func (sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Copy() chunks.Sample         { return s }
func (s sample) Type() chunkenc.ValueType {
	if s.h != nil {
		return chunkenc.ValHistogram
	}
	return chunkenc.ValFloat
}

// memInput is a block.Input in memory: the samples of a generation.
type memInput map[string][]sample // by the value of the label series

func seriesLabels(name string) labels.Labels {
	return labels.FromStrings("__name__", "m", "series", name)
}

func (in memInput) add(series string, t int64, f float64) {
	s := sample{t: t, f: f}
	if strings.HasPrefix(series, "h") {
		s.h = tsdbutil.GenerateTestHistogram(int64(f))
	}
	i, there := slices.BinarySearchFunc(in[series], t, func(s sample, t int64) int { return int(s.t - t) })
	if there {
		in[series][i] = s
		return
	}
	in[series] = slices.Insert(in[series], i, s)
}

func (in memInput) names() []string {
	var names []string
	for n := range in {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func (in memInput) Symbols() index.StringIter {
	all := append(in.names(), "__name__", "m", "series")
	slices.Sort(all)
	return index.NewStringListIter(slices.Compact(all))
}

func (in memInput) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return &memQuerier{ChunkQuerier: storage.NoopChunkedQuerier(), in: in, mint: mint, maxt: maxt}, nil
}

type memQuerier struct {
	storage.ChunkQuerier
	in         memInput
	mint, maxt int64
}

func (q *memQuerier) Select(context.Context, bool, *storage.SelectHints, ...*labels.Matcher) storage.ChunkSeriesSet {
	var series []storage.ChunkSeries
	for _, name := range q.in.names() {
		var perChunk [][]chunks.Sample
		for _, s := range q.in[name] {
			if s.t < q.mint || s.t > q.maxt {
				continue
			}
			// Some chunks of floats span several windows; a histogram may be a counter reset, and has a chunk of its own.
			if n := len(perChunk); n > 0 && s.h == nil && len(perChunk[n-1]) < 5 {
				perChunk[n-1] = append(perChunk[n-1], s)
			} else {
				perChunk = append(perChunk, []chunks.Sample{s})
			}
		}
		if len(perChunk) > 0 {
			series = append(series, storage.NewListChunkSeriesFromSamples(seriesLabels(name), perChunk...))
		}
	}
	return &memSet{series: series, i: -1}
}

type memSet struct {
	storage.ChunkSeriesSet
	series []storage.ChunkSeries
	i      int
}

func (s *memSet) Next() bool              { s.i++; return s.i < len(s.series) }
func (s *memSet) At() storage.ChunkSeries { return s.series[s.i] }
func (*memSet) Err() error                { return nil }

// world is a bucket, a writer that uploads generations, a clock, and what must be in the bucket.
type world struct {
	t        *testing.T
	bucket   objstore.Bucket
	now      atomic.Int64 // ms
	gen      uint64
	value    float64
	expected points
	deleted  []*tombstone.Tombstone
	config   Config
	sure     int64 // ms, of the clock; see confirm
}

func newWorld(t *testing.T, bkt objstore.Bucket, now time.Time) *world {
	w := &world{t: t, bucket: bkt, expected: points{}}
	w.now.Store(now.UnixMilli())
	return w
}

func (w *world) clock() time.Time { return time.UnixMilli(w.now.Load()) }

func (w *world) advance(d time.Duration) { w.now.Add(d.Milliseconds()) }

// generation uploads blocks with samples at the given ages, created now: one block a recent window and one for all that
// is older, as the engine cuts them. Every value is new, so that it is seen who wins.
func (w *world) generation(series []string, ages ...time.Duration) (ids []ulid.ULID) {
	w.gen++
	in := memInput{}
	created := w.now.Load()
	recent := windowAt(created, windowMillis).min - windowMillis
	found := map[window]bool{}
	for _, name := range series {
		for _, age := range ages {
			w.value++
			t := created - age.Milliseconds()
			in.add(name, t, w.value)
			win := windowAt(t, windowMillis)
			if t < recent {
				win = window{min: math.MinInt64, max: recent}
			}
			found[win] = true
		}
	}
	for name, samples := range in {
		for _, s := range samples {
			w.expected[pointKey(seriesLabels(name), s.t)] = describe(s)
		}
	}
	var windows []window
	for win := range found {
		windows = append(windows, win)
	}
	slices.SortFunc(windows, func(a, b window) int { return int(a.max/1000 - b.max/1000) })
	for i, win := range windows {
		m := testMeta(fmt.Sprint(w.gen, i), 0, w.gen, w.gen, time.UnixMilli(created), time.UnixMilli(0), time.UnixMilli(0))
		m.MinTime, m.MaxTime = win.min, win.max
		dir := fastDir(w.t)
		_, err := block.Write(context.Background(), dir, m, []block.Input{in}, block.WriteOptions{SegmentSize: 1 << 20})
		require.NoError(w.t, err)
		require.NoError(w.t, block.Upload(context.Background(), w.bucket, filepath.Join(dir, m.ULID.String())))
		ids = append(ids, m.ULID)
	}
	return ids
}

// delete puts a tombstone into the bucket for what has been accepted of some series.
func (w *world) delete(names string, from, to time.Duration) *tombstone.Tombstone {
	selector := tombstone.Selector{labels.MustNewMatcher(labels.MatchRegexp, "series", names)}
	now := w.now.Load()
	t, err := tombstone.New(w.gen, now-from.Milliseconds(), now-to.Milliseconds(), []tombstone.Selector{selector}, writerA, nil)
	require.NoError(w.t, err)
	t.Created = now
	require.NoError(w.t, tombstone.NewStore(w.bucket).Put(context.Background(), t))
	w.deleted = append(w.deleted, t)
	f := tombstone.FilterOf([]*tombstone.Tombstone{t})
	maps.DeleteFunc(w.expected, func(key, _ string) bool { return w.hides(f, key) })
	return t
}

// hides says whether a filter hides a point.
func (w *world) hides(f *tombstone.Filter, key string) bool {
	name, text, _ := strings.Cut(key, " at ")
	at, err := strconv.ParseInt(text, 10, 64)
	require.NoError(w.t, err)
	return slices.ContainsFunc([]string{"a", "b", "h"}, func(s string) bool {
		return seriesLabels(s).String() == name && f.Deletes(seriesLabels(s), at)
	})
}

// rules gives the store retention rules.
func (w *world) rules(text string) {
	w.config.Rules = nil
	require.NoError(w.t, w.config.Rules.Set(text))
}

// confirm leaves in the bucket what runs over the day before have read of the clock; for the next one the first of it is sure.
func (w *world) confirm() {
	c, now := clock{}, w.now.Load()
	w.sure = now - clockGrace.Milliseconds()
	for at := w.sure; at < now; at += readingGap.Milliseconds() {
		c = c.read(at)
	}
	raw, err := json.Marshal(c)
	require.NoError(w.t, err)
	require.NoError(w.t, w.bucket.Upload(context.Background(), clockObject, bytes.NewReader(raw)))
}

// kept is what is expected and not hidden by retention rules.
func (w *world) kept() points {
	hidden, out := w.config.Rules.Expired(w.now.Load()), maps.Clone(w.expected)
	maps.DeleteFunc(out, func(key, _ string) bool { return w.hides(hidden, key) })
	return out
}

// fastDir is a temporary folder in memory where there is such a thing: blocks are synced file by file, thousands of times.
func fastDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "batch-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func describe(s chunks.Sample) string {
	if h := s.H(); h != nil {
		return h.String()
	}
	return fmt.Sprint(s.F())
}

func (w *world) options() Options {
	return Options{
		Bucket: w.bucket, Lister: block.NewLister(w.bucket), ScratchDir: fastDir(w.t), Now: w.clock, Config: w.config,
		Logger: slog.New(slog.DiscardHandler),
	}
}

func (w *world) runner(change ...func(*Options)) *Runner {
	o := w.options()
	for _, c := range change {
		c(&o)
	}
	r, err := NewRunner(o)
	require.NoError(w.t, err)
	return r
}

func (w *world) run(r *Runner, force bool) Summary {
	s, err := r.Run(context.Background(), force)
	require.NoError(w.t, err)
	return s
}

func (w *world) listed() []block.Listed {
	all, err := block.List(context.Background(), w.bucket)
	require.NoError(w.t, err)
	var out []block.Listed
	for _, l := range all {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b block.Listed) int { return block.Compare(a.Meta, b.Meta) })
	return out
}

// visible are the blocks that count, in order of precedence.
func (w *world) visible() []block.Meta {
	var metas []block.Meta
	for _, l := range w.listed() {
		metas = append(metas, l.Meta)
	}
	return block.Visible(metas)
}

// shape says which visible blocks there are: level and window.
func (w *world) shape() []string {
	var out []string
	for _, m := range w.visible() {
		at := func(t int64) string { return time.UnixMilli(t).UTC().Format("02T15:04") }
		out = append(out, fmt.Sprintf("L%d %s-%s", m.Level(), at(m.MinTime), at(m.MaxTime)))
	}
	slices.Sort(out)
	return out
}

// check compares what is visible with what was accepted, and reads every block whole.
func (w *world) check() {
	w.t.Helper()
	got := points{}
	for _, m := range w.visible() {
		w.read(m.ULID, got, w.config.Rules.Expired(w.now.Load()), tombstone.NewFilter(w.deleted, m.Stored()))
	}
	require.Equal(w.t, w.kept(), got)
}

// checkErased is check without regard to tombstones: what was deleted is in no visible block any more, nor are its labels. Nor is what is too old for retention
// rules by a time that is sure, in blocks of which all is.
func (w *world) checkErased(gone ...string) {
	w.t.Helper()
	got := points{}
	for _, m := range w.visible() {
		w.read(m.ULID, got, w.config.Rules.Expired(w.now.Load()))
		for i := range w.config.Rules {
			if r := &w.config.Rules[i]; m.MaxTime <= r.Horizon(w.sure) {
				before := points{}
				w.read(m.ULID, before)
				maps.DeleteFunc(before, func(key, _ string) bool {
					return !w.hides(tombstone.FilterOf([]*tombstone.Tombstone{r.Deletes(math.MaxInt64)}), key)
				})
				require.Empty(w.t, before, "%s: %s", m.ULID, r)
			}
		}
		b, err := block.OpenBucket(context.Background(), w.bucket, m.ULID, nil)
		require.NoError(w.t, err)
		for it := b.Symbols(); it.Next(); {
			require.NotContains(w.t, gone, it.At())
		}
		require.NoError(w.t, b.Close())
	}
	require.Equal(w.t, w.kept(), got)
}

func (w *world) verify() {
	w.t.Helper()
	for _, l := range w.listed() {
		findings, err := block.Verify(context.Background(), w.bucket, l.Meta.ULID)
		require.NoError(w.t, err)
		require.Empty(w.t, findings)
	}
}

func (w *world) read(id ulid.ULID, into points, hidden ...*tombstone.Filter) {
	w.t.Helper()
	b, err := block.OpenBucket(context.Background(), w.bucket, id, nil)
	require.NoError(w.t, err)
	defer b.Close()
	q, err := b.ChunkQuerier(math.MinInt64, math.MaxInt64)
	require.NoError(w.t, err)
	defer q.Close()
	for _, f := range hidden {
		q = f.Querier(q, math.MinInt64, math.MaxInt64)
	}
	set := q.Select(context.Background(), true, nil, labels.MustNewMatcher(labels.MatchEqual, "__name__", "m"))
	for set.Next() {
		it := set.At().Iterator(nil)
		for it.Next() {
			c := it.At().Chunk.Iterator(nil)
			for vt := c.Next(); vt != chunkenc.ValNone; vt = c.Next() {
				s := sample{}
				if vt == chunkenc.ValHistogram {
					s.t, s.h = c.AtHistogram(nil)
				} else {
					s.t, s.f = c.At()
				}
				into[pointKey(set.At().Labels(), s.t)] = describe(s)
			}
			require.NoError(w.t, c.Err())
		}
		require.NoError(w.t, it.Err())
	}
	require.NoError(w.t, set.Err())
}

var errInjected = errors.New("injected")

// faultBucket does something at its k-th call: see arm.
type faultBucket struct {
	objstore.Bucket
	calls atomic.Int64
	at    int64
	// fault is called at call at and, where it returns an error, at each later one. after says that the k-th call takes
	// effect all the same.
	fault func() error
	after bool
}

func (f *faultBucket) call(do func() error) error {
	n := f.calls.Add(1)
	if f.fault == nil || n < f.at {
		return do()
	}
	if n == f.at && f.after {
		_ = do()
	}
	if err := f.fault(); err != nil {
		return err
	}
	return do()
}

func (f *faultBucket) Iter(ctx context.Context, dir string, fn func(string) error, o ...objstore.IterOption) error {
	return f.call(func() error { return f.Bucket.Iter(ctx, dir, fn, o...) })
}

func (f *faultBucket) Get(ctx context.Context, name string) (r io.ReadCloser, err error) {
	err = f.call(func() error { r, err = f.Bucket.Get(ctx, name); return err })
	return r, err
}

func (f *faultBucket) GetRange(ctx context.Context, name string, off, n int64) (r io.ReadCloser, err error) {
	err = f.call(func() error { r, err = f.Bucket.GetRange(ctx, name, off, n); return err })
	return r, err
}

func (f *faultBucket) Exists(ctx context.Context, name string) (ok bool, err error) {
	err = f.call(func() error { ok, err = f.Bucket.Exists(ctx, name); return err })
	return ok, err
}

func (f *faultBucket) Attributes(ctx context.Context, name string) (a objstore.ObjectAttributes, err error) {
	err = f.call(func() error { a, err = f.Bucket.Attributes(ctx, name); return err })
	return a, err
}

func (f *faultBucket) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	return f.call(func() error { return f.Bucket.Upload(ctx, name, r, o...) })
}

func (f *faultBucket) Delete(ctx context.Context, name string) error {
	return f.call(func() error { return f.Bucket.Delete(ctx, name) })
}
