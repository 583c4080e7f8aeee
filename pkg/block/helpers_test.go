package block

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/merge"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// sample is one sample of the model: a float or one of the two histograms.
type sample struct {
	t  int64
	v  float64
	h  *histogram.Histogram
	fh *histogram.FloatHistogram
}

func (s sample) String() string {
	switch {
	case s.h != nil:
		return fmt.Sprintf("%d:%s", s.t, s.h)
	case s.fh != nil:
		return fmt.Sprintf("%d:%s", s.t, s.fh)
	}
	return strconv.FormatInt(s.t, 10) + ":" + strconv.FormatUint(math.Float64bits(s.v), 16)
}

// line writes a series on one line.
func line(ls labels.Labels, chunks ...[]sample) string {
	var b strings.Builder
	b.WriteString(ls.String())
	for _, samples := range chunks {
		for _, p := range samples {
			b.WriteByte(' ')
			b.WriteString(p.String())
		}
	}
	return b.String()
}

// memSeries is a series of the model.
type memSeries struct {
	labels  labels.Labels
	samples []sample
}

// memInput is an Input in memory, sorted by labels.
type memInput []memSeries

func (in memInput) Symbols() index.StringIter {
	set := map[string]struct{}{}
	for _, s := range in {
		s.labels.Range(func(l labels.Label) { set[l.Name], set[l.Value] = struct{}{}, struct{}{} })
	}
	return index.NewStringListIter(sortedKeys(set))
}

func (in memInput) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return &memQuerier{in: in, mint: mint, maxt: maxt}, nil
}

type memQuerier struct {
	storage.MockQuerier
	in         memInput
	mint, maxt int64
}

func (q *memQuerier) Select(_ context.Context, _ bool, _ *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	set := &memSet{i: -1}
	for _, s := range q.in {
		if slices.ContainsFunc(ms, func(m *labels.Matcher) bool { return !m.Matches(s.labels.Get(m.Name)) }) {
			continue
		}
		it := merge.Encode(s.iterator(), merge.EncodeOptions{})
		var chks []chunks.Meta
		for it.Next() {
			if m := it.At(); m.OverlapsClosedInterval(q.mint, q.maxt) {
				chks = append(chks, m)
			}
		}
		if it.Err() != nil {
			return storage.ErrChunkSeriesSet(it.Err())
		}
		if len(chks) > 0 {
			set.series = append(set.series, &chunkSeries{labels: s.labels, chks: chks})
		}
	}
	return set
}

type memSet struct {
	series []storage.ChunkSeries
	i      int
}

func (s *memSet) Next() bool                        { s.i++; return s.i < len(s.series) }
func (s *memSet) At() storage.ChunkSeries           { return s.series[s.i] }
func (s *memSet) Err() error                        { return nil }
func (s *memSet) Warnings() annotations.Annotations { return nil }

func (s memSeries) iterator() chunkenc.Iterator {
	return storage.NewListSeriesIterator(samplesOf(s.samples))
}

type samplesOf []sample

func (s samplesOf) Len() int                { return len(s) }
func (s samplesOf) Get(i int) chunks.Sample { return modelSample{s[i]} }

type modelSample struct{ s sample }

func (m modelSample) ST() int64                     { return 0 }
func (m modelSample) T() int64                      { return m.s.t }
func (m modelSample) F() float64                    { return m.s.v }
func (m modelSample) H() *histogram.Histogram       { return m.s.h }
func (m modelSample) FH() *histogram.FloatHistogram { return m.s.fh }
func (m modelSample) Copy() chunks.Sample           { return m }

func (m modelSample) Type() chunkenc.ValueType {
	switch {
	case m.s.h != nil:
		return chunkenc.ValHistogram
	case m.s.fh != nil:
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValFloat
}

// randomInput makes n series with labels that select well, a third of them with histograms, within [mint, maxt).
func randomInput(rnd *rand.Rand, n int, mint, maxt int64) memInput {
	var in memInput
	for i := range n {
		s := memSeries{labels: labels.FromStrings(
			"__name__", fmt.Sprintf("metric_%d", i%7),
			"instance", fmt.Sprintf("host-%03d:9100", i/7%40),
			"job", fmt.Sprintf("job%d", i%3),
			"series", fmt.Sprintf("%06d", i),
		)}
		if i%5 == 0 {
			s.labels = labels.NewBuilder(s.labels).Set("extra", "yes").Labels()
		}
		count := 1 + rnd.IntN(30)
		if i%10 == 0 {
			count *= 10
		}
		step := (maxt - mint) / int64(count)
		t := mint + rnd.Int64N(max(1, step))
		for ; t < maxt; t += max(1, step/2+rnd.Int64N(max(1, step))) {
			s.samples = append(s.samples, randomSample(rnd, i, t))
		}
		if len(s.samples) > 0 {
			in = append(in, s)
		}
	}
	slices.SortFunc(in, func(a, b memSeries) int { return labels.Compare(a.labels, b.labels) })
	return in
}

func randomSample(rnd *rand.Rand, kind int, t int64) sample {
	switch kind % 6 {
	case 4:
		return sample{t: t, h: &histogram.Histogram{
			Schema: 1, ZeroThreshold: 0.001, ZeroCount: 2, Count: 2 + 3, Sum: rnd.Float64() * 100,
			PositiveSpans: []histogram.Span{{Offset: int32(rnd.IntN(3)), Length: 2}}, PositiveBuckets: []int64{1, 1},
		}}
	case 5:
		return sample{t: t, fh: &histogram.FloatHistogram{
			Schema: 0, ZeroThreshold: 0.001, ZeroCount: 1, Count: 4.5, Sum: rnd.Float64() * 100,
			PositiveSpans: []histogram.Span{{Offset: 1, Length: 2}}, PositiveBuckets: []float64{1.5, 2},
		}}
	}
	if rnd.IntN(20) == 0 {
		return sample{t: t, v: math.Float64frombits(0x7ff0000000000002)} // stale
	}
	return sample{t: t, v: math.Round(rnd.NormFloat64() * 1000)}
}

// limit returns the part of in with mint ≤ t < maxt.
func (in memInput) limit(mint, maxt int64) memInput {
	var out memInput
	for _, s := range in {
		n := memSeries{labels: s.labels}
		for _, p := range s.samples {
			if p.t >= mint && p.t < maxt {
				n.samples = append(n.samples, p)
			}
		}
		if len(n.samples) > 0 {
			out = append(out, n)
		}
	}
	return out
}

// dump writes series one per line, all samples included, so that two answers can be compared.
func dump(t testing.TB, set storage.ChunkSeriesSet) []string {
	t.Helper()
	out, err := tryDump(set)
	require.NoError(t, err)
	return out
}

func tryDump(set storage.ChunkSeriesSet) ([]string, error) {
	var out []string
	for set.Next() {
		s := set.At()
		var samples [][]sample
		last := int64(math.MinInt64)
		it := s.Iterator(nil)
		for it.Next() {
			c := it.At()
			if c.MinTime <= last {
				return out, fmt.Errorf("chunk at %d overlaps the one before, which ends at %d", c.MinTime, last)
			}
			last = c.MaxTime
			samples = append(samples, chunkSamples(c.Chunk))
		}
		if it.Err() != nil {
			return out, it.Err()
		}
		out = append(out, line(s.Labels(), samples...))
	}
	return out, set.Err()
}

func chunkSamples(c chunkenc.Chunk) []sample {
	var out []sample
	it := c.Iterator(nil)
	for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
		var p sample
		switch vt {
		case chunkenc.ValFloat:
			p.t, p.v = it.At()
		case chunkenc.ValHistogram:
			p.t, p.h = it.AtHistogram(nil)
			p.h.CounterResetHint = histogram.UnknownCounterReset
		case chunkenc.ValFloatHistogram:
			p.t, p.fh = it.AtFloatHistogram(nil)
			p.fh.CounterResetHint = histogram.UnknownCounterReset
		}
		out = append(out, p)
	}
	return out
}

func (in memInput) dump() []string {
	var out []string
	for _, s := range in {
		out = append(out, line(s.labels, s.samples))
	}
	return out
}

var everything = labels.MustNewMatcher(labels.MatchEqual, "", "")

func dumpAll(t testing.TB, b storage.ChunkQueryable) []string {
	t.Helper()
	q, err := b.ChunkQuerier(math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	defer func() { require.NoError(t, q.Close()) }()
	return dump(t, q.Select(context.Background(), true, nil, everything))
}

var idEntropy = rand.NewChaCha8([32]byte{1})

func newID(t testing.TB) ulid.ULID {
	t.Helper()
	id, err := ulid.New(1_700_000_000_000, idEntropy)
	require.NoError(t, err)
	return id
}

func testMeta(t testing.TB, mint, maxt int64, level int, minGen, maxGen uint64) Meta {
	t.Helper()
	m := Meta{}
	m.ULID, m.MinTime, m.MaxTime = newID(t), mint, maxt
	m.Thanos.Labels = map[string]string{"writer": "test"}
	m.SetExtension(level, minGen, maxGen)
	return m
}

// writeBlock writes a level-0 block of everything in an input and returns its folder.
func writeBlock(t testing.TB, in Input) (dir string, m Meta) {
	t.Helper()
	parent := t.TempDir()
	m, err := Write(context.Background(), parent, testMeta(t, math.MinInt64, math.MaxInt64, 0, 1, 1), []Input{in}, WriteOptions{})
	require.NoError(t, err)
	return filepath.Join(parent, m.ULID.String()), m
}

func openLocal(t testing.TB, dir string) *Block {
	t.Helper()
	b, err := OpenLocal(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// uploaded puts the block in dir into a bucket in memory.
func uploaded(t testing.TB, dir string) *objstore.InMemBucket {
	t.Helper()
	bkt := objstore.NewInMemBucket()
	require.NoError(t, Upload(context.Background(), bkt, dir))
	return bkt
}

func sortSamples(s []sample) {
	slices.SortFunc(s, func(a, b sample) int { return cmp.Compare(a.t, b.t) })
}

func sortSeries(in memInput) {
	slices.SortFunc(in, func(a, b memSeries) int { return labels.Compare(a.labels, b.labels) })
}

// unionOf returns what symbolUnion makes of lists.
func unionOf(lists ...[]string) (out []string) {
	u := &symbolUnion{}
	for _, l := range lists {
		u.its = append(u.its, index.NewStringListIter(l))
	}
	for u.next() {
		out = append(out, u.cur)
	}
	return out
}
