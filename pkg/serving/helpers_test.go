package serving

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/prometheus/prometheus/util/teststorage"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/tombstone"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeSource is a source over any chunk querier.
type fakeSource struct {
	layer      Layer
	gens       [2]uint64
	mint, maxt int64
	open       func(mint, maxt int64) (storage.ChunkQuerier, error)
}

func (s *fakeSource) Layer() Layer                  { return s.layer }
func (s *fakeSource) Generations() (uint64, uint64) { return s.gens[0], s.gens[1] }
func (s *fakeSource) DeletedBy(t *tombstone.Tombstone) tombstone.Effect {
	return t.On(tombstone.Stored{Writer: writer, MinTime: s.mint, MaxTime: s.maxt, MinGeneration: s.gens[0], MaxGeneration: s.gens[1]})
}

func (s *fakeSource) MinTime() int64 { return s.mint }
func (s *fakeSource) MaxTime() int64 { return s.maxt }

func (s *fakeSource) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return s.open(mint, maxt)
}

// writer is whose samples fake sources hold.
var writer = map[string]string{"millrace": "test"}

// memory is a source of what is in memory, with floats only.
func memory(layer Layer, gen uint64, all ...*storage.SeriesEntry) *fakeSource {
	s := &fakeSource{layer: layer, gens: [2]uint64{gen, gen}, mint: math.MinInt64, maxt: math.MaxInt64}
	s.open = func(int64, int64) (storage.ChunkQuerier, error) { return &memoryQuerier{all: all}, nil }
	return s
}

type memoryQuerier struct {
	all    []*storage.SeriesEntry // sorted
	closed int
}

func (q *memoryQuerier) Close() error {
	q.closed++
	return nil
}

func (q *memoryQuerier) matching(ms []*labels.Matcher) (out []storage.Series) {
	for _, s := range q.all {
		ok := true
		for _, m := range ms {
			ok = ok && m.Matches(s.Labels().Get(m.Name))
		}
		if ok {
			out = append(out, s)
		}
	}
	return out
}

func (q *memoryQuerier) Select(_ context.Context, _ bool, _ *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	return &memorySet{all: q.matching(ms), i: -1}
}

func (q *memoryQuerier) LabelValues(_ context.Context, name string, _ *storage.LabelHints, ms ...*labels.Matcher) (out []string, _ annotations.Annotations, _ error) {
	for _, s := range q.matching(ms) {
		if v := s.Labels().Get(name); v != "" {
			out = append(out, v)
		}
	}
	return sortUnique(out), nil, nil
}

func (q *memoryQuerier) LabelNames(_ context.Context, _ *storage.LabelHints, ms ...*labels.Matcher) (out []string, _ annotations.Annotations, _ error) {
	for _, s := range q.matching(ms) {
		s.Labels().Range(func(l labels.Label) { out = append(out, l.Name) })
	}
	return sortUnique(out), nil, nil
}

type memorySet struct {
	all      []storage.Series
	i        int
	err      error
	warnings annotations.Annotations
	onNext   func(i int)
}

func (s *memorySet) Next() bool {
	s.i++
	if s.onNext != nil {
		s.onNext(s.i)
	}
	return s.i < len(s.all)
}

func (s *memorySet) At() storage.ChunkSeries {
	one := s.all[s.i]
	return &storage.ChunkSeriesEntry{Lset: one.Labels(), ChunkIteratorFn: func(it chunks.Iterator) chunks.Iterator {
		return storage.NewSeriesToChunkEncoder(one).Iterator(it)
	}}
}

func (s *memorySet) Err() error                        { return s.err }
func (s *memorySet) Warnings() annotations.Annotations { return s.warnings }

// entry is a series with a float every second from start on.
func entry(lset labels.Labels, start int64, values ...float64) *storage.SeriesEntry {
	var samples []chunks.Sample
	for i, v := range values {
		samples = append(samples, floatSample{t: start + int64(i)*1000, v: v})
	}
	return storage.NewListSeries(lset, samples)
}

type floatSample struct {
	t int64
	v float64
}

func (s floatSample) ST() int64                     { return 0 }
func (s floatSample) T() int64                      { return s.t }
func (s floatSample) F() float64                    { return s.v }
func (s floatSample) H() *histogram.Histogram       { return nil }
func (s floatSample) FH() *histogram.FloatHistogram { return nil }
func (s floatSample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s floatSample) Copy() chunks.Sample           { return s }

// splitStorage is a storage.Storage that spreads what is appended over several TSDBs, which are a Queryable's sources.
type splitStorage struct {
	storage.SampleAndChunkQueryable
	dbs  []*teststorage.TestStorage
	seed uint64
	// lies is how often a source of lower precedence also gets the timestamp, with another value.
	lies float64
}

func newSplitStorage(t testing.TB, n int, seed uint64, o Options) *splitStorage {
	s := &splitStorage{seed: seed}
	set := NewSet()
	var add []Entry
	for i := range n {
		db := teststorage.New(t, func(opt *tsdb.Options) {
			opt.WALSegmentSize = -1 // no log
			opt.EnableSTStorage = true
			opt.FloatChunkEncoding = chunkenc.EncXOR2
			opt.EnableHistogramSTEncoding = true
		})
		s.dbs = append(s.dbs, db)
		src := &fakeSource{layer: Speed, gens: [2]uint64{uint64(i), uint64(i)}, mint: math.MinInt64, maxt: math.MaxInt64, open: db.ChunkQuerier}
		if i%2 == 0 {
			src.layer, src.open = Batch, func(mint, maxt int64) (storage.ChunkQuerier, error) {
				q, err := db.ChunkQuerier(mint, maxt)
				return &copyingQuerier{ChunkQuerier: q}, err
			}
		}
		add = append(add, Entry{Source: src})
	}
	set.Replace(nil, add)
	s.SampleAndChunkQueryable = NewQueryable(set, o)
	return s
}

// copyingQuerier makes what a TSDB finds safe for several goroutines, which a block is and a head is not.
type copyingQuerier struct {
	storage.ChunkQuerier
	mu sync.Mutex
}

func (q *copyingQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	q.mu.Lock()
	defer q.mu.Unlock()
	set := q.ChunkQuerier.Select(ctx, sorted, hints, ms...)
	out := &copiedSet{i: -1}
	for set.Next() {
		e := &storage.ChunkSeriesEntry{Lset: set.At().Labels()}
		var metas []chunks.Meta
		it := set.At().Iterator(nil)
		for it.Next() {
			meta := it.At()
			c, err := chunkenc.FromData(meta.Chunk.Encoding(), slices.Clone(meta.Chunk.Bytes()))
			if err != nil {
				return storage.ErrChunkSeriesSet(err)
			}
			meta.Chunk = c
			metas = append(metas, meta)
		}
		if it.Err() != nil {
			return storage.ErrChunkSeriesSet(it.Err())
		}
		e.ChunkIteratorFn = func(chunks.Iterator) chunks.Iterator { return storage.NewListChunkSeriesIterator(metas...) }
		out.all = append(out.all, e)
	}
	out.err, out.warnings = set.Err(), set.Warnings()
	return out
}

type copiedSet struct {
	all      []storage.ChunkSeries
	i        int
	err      error
	warnings annotations.Annotations
}

func (s *copiedSet) Next() bool {
	s.i++
	return s.i < len(s.all)
}

func (s *copiedSet) At() storage.ChunkSeries           { return s.all[s.i] }
func (s *copiedSet) Err() error                        { return s.err }
func (s *copiedSet) Warnings() annotations.Annotations { return s.warnings }

func (s *splitStorage) StartTime() (int64, error) { return 0, nil }
func (s *splitStorage) Close() error {
	var errs []error
	for _, db := range s.dbs {
		errs = append(errs, db.Close())
	}
	return errors.Join(errs...)
}

func (s *splitStorage) Appender(context.Context) storage.Appender { panic("not used") }

func (s *splitStorage) AppenderV2(ctx context.Context) storage.AppenderV2 {
	a := &splitAppender{s: s}
	for _, db := range s.dbs {
		a.apps = append(a.apps, db.AppenderV2(ctx))
	}
	return a
}

type splitAppender struct {
	s    *splitStorage
	apps []storage.AppenderV2
}

func (a *splitAppender) Append(_ storage.SeriesRef, ls labels.Labels, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram, o storage.AppendV2Options) (storage.SeriesRef, error) {
	// By what the sample is, not by the order in which samples come, which is random in scripts.
	rnd := rand.New(rand.NewPCG(a.s.seed^ls.Hash(), uint64(t)))
	at := rnd.IntN(len(a.apps))
	if at > 0 && rnd.Float64() < a.s.lies {
		if _, err := a.apps[rnd.IntN(at)].Append(0, ls, 0, t, 1e9, nil, nil, o); err != nil {
			return 0, err
		}
	}
	return a.apps[at].Append(0, ls, st, t, v, h, fh, o)
}

func (a *splitAppender) Commit() error {
	var errs []error
	for _, app := range a.apps {
		errs = append(errs, app.Commit())
	}
	return errors.Join(errs...)
}

func (a *splitAppender) Rollback() error {
	var errs []error
	for _, app := range a.apps {
		errs = append(errs, app.Rollback())
	}
	return errors.Join(errs...)
}

// testOptions is an engine's with everything that is experimental on.
func testOptions(maxSamples int) EngineOptions {
	return EngineOptions{PromQL: promql.EngineOpts{
		MaxSamples: maxSamples, Timeout: time.Minute, LookbackDelta: 5 * time.Minute,
		EnableDelayedNameRemoval: true, UseStartTimestamps: true, EnablePerStepStats: true,
		Parser: parser.NewParser(parser.Options{
			EnableExperimentalFunctions: true, EnableBinopFillModifiers: true, EnableUnquotedUTF8Names: true,
		}),
	}}
}

// run evaluates a range query from 0 on and closes it.
func run(t testing.TB, e promql.QueryEngine, q storage.Queryable, qs string, end, step time.Duration) (string, error) {
	t.Helper()
	ctx := context.Background()
	var (
		qry promql.Query
		err error
	)
	if step == 0 {
		qry, err = e.NewInstantQuery(ctx, q, nil, qs, time.UnixMilli(end.Milliseconds()))
	} else {
		qry, err = e.NewRangeQuery(ctx, q, nil, qs, time.UnixMilli(0), time.UnixMilli(end.Milliseconds()), step)
	}
	require.NoError(t, err, qs)
	defer qry.Close()
	res := qry.Exec(ctx)
	if res.Err != nil {
		return "", res.Err
	}
	lines := strings.Split(res.String(), "\n")
	if !strings.HasPrefix(qs, "sort") {
		slices.Sort(lines) // an instant query's order means nothing
	}
	return strings.Join(lines, "\n"), nil
}

// metric names a series; kv are its other labels and their values.
func metric(name string, kv ...string) labels.Labels {
	return labels.FromStrings(append([]string{model.MetricNameLabel, name}, kv...)...)
}

func many(n int, name string, samples int) (out []*storage.SeriesEntry) {
	values := make([]float64, samples)
	for i := range n {
		out = append(out, entry(metric(name, "i", fmt.Sprintf("%08d", i)), 0, values...))
	}
	return out
}

// spread makes series with two samples, one at 0 and one at end.
func spread(n int, name string, end time.Duration) (out []*storage.SeriesEntry) {
	for i := range n {
		lset := metric(name, "i", fmt.Sprintf("%08d", i))
		out = append(out, storage.NewListSeries(lset, []chunks.Sample{floatSample{}, floatSample{t: end.Milliseconds()}}))
	}
	return out
}
