package merge

import (
	"errors"
	"math"
	"math/rand"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	minTime = math.MinInt64
	maxTime = math.MaxInt64
)

func TestSeriesIsUnionWhereLaterInputsWin(t *testing.T) {
	var reuse chunkenc.Iterator
	eachRandom(t, 60, func(t *testing.T, g *generator, raw [][]sample, series []storage.ChunkSeries) {
		want := model(minTime, maxTime, raw...)
		reuse = Series(series...).Iterator(reuse)
		got := read(t, reuse, reuse.Next())
		requireEqual(t, want, got, g.withST)
		requireTruthfulHints(t, got)
	})
}

func TestSeriesSeek(t *testing.T) {
	eachRandom(t, 40, func(t *testing.T, g *generator, raw [][]sample, series []storage.ChunkSeries) {
		want := model(minTime, maxTime, raw...)
		it := Series(series...).Iterator(nil)
		pos, vt := -1, chunkenc.ValNone
		for pos < len(want) {
			if g.Intn(2) == 0 {
				pos++
				vt = it.Next()
			} else {
				target := g.Int63n(700) - 20
				for pos < 0 || (pos < len(want) && want[pos].t < target) {
					pos++
				}
				vt = it.Seek(target)
			}
			if pos < len(want) {
				require.NotEqual(t, chunkenc.ValNone, vt)
				requireEqual(t, want[pos:pos+1], []sample{at(it, vt)}, g.withST)
			}
		}
		require.Equal(t, chunkenc.ValNone, vt)
		require.Equal(t, chunkenc.ValNone, it.Seek(0), "seek after the end")
		require.Equal(t, chunkenc.ValNone, it.Next(), "next after the end")
		require.NoError(t, it.Err())
	})
}

// readChunks checks that chunks follow one another and say the truth about their range.
func readChunks(t testing.TB, it chunks.Iterator, mint, maxt int64) (metas []chunks.Meta, out []sample) {
	t.Helper()
	last := int64(math.MinInt64)
	for it.Next() {
		meta := it.At()
		cit := meta.Chunk.Iterator(nil)
		s := read(t, cit, cit.Next())
		require.NotEmpty(t, s)
		require.Len(t, s, meta.Chunk.NumSamples())
		require.Equal(t, meta.MinTime, s[0].t)
		require.Equal(t, meta.MaxTime, s[len(s)-1].t)
		require.GreaterOrEqual(t, meta.MinTime, mint)
		require.LessOrEqual(t, meta.MaxTime, maxt)
		if len(out) > 0 {
			require.Greater(t, meta.MinTime, last)
		}
		last = meta.MaxTime
		metas, out = append(metas, meta), append(out, s...)
	}
	require.NoError(t, it.Err())
	require.False(t, it.Next())
	return metas, out
}

func TestChunksHoldTheSameSamples(t *testing.T) {
	eachRandom(t, 60, func(t *testing.T, g *generator, raw [][]sample, series []storage.ChunkSeries) {
		mint, maxt := int64(minTime), int64(maxTime)
		if g.Intn(2) == 0 {
			mint, maxt = g.Int63n(100), 50+g.Int63n(300)
		}
		o := EncodeOptions{StartTimestamps: g.Intn(2) == 0, Window: []int64{0, 0, 100}[g.Intn(3)], JoinBelow: []int{0, 50}[g.Intn(2)]}
		metas, got := readChunks(t, Chunks(series, mint, maxt, o), mint, maxt)
		requireEqual(t, model(mint, maxt, raw...), got, g.withST && o.StartTimestamps)
		for _, meta := range metas {
			if !o.StartTimestamps {
				require.False(t, hasST(meta.Chunk.Encoding()), "%s without start timestamps", meta.Chunk.Encoding())
			}
			if valueType(meta.Chunk.Encoding()) == chunkenc.ValFloat {
				require.LessOrEqual(t, meta.Chunk.NumSamples(), MaxFloats)
			}
		}
		requireNoResetMissed(t, got)
		kept := []chunks.Meta{{MinTime: 1}}
		merged, err := new(Merger).Append(kept, series, mint, maxt, o)
		require.NoError(t, err)
		require.Equal(t, kept[0], merged[0])
		require.Equal(t, len(metas), len(merged)-1)
		for i, m := range merged[1:] {
			require.Equal(t, metas[i], m, "chunk %d", i)
		}
		it := Series(listSeries(metas...)).Iterator(nil)
		requireTruthfulHints(t, read(t, it, it.Next()))
	})
}

// requireNoResetMissed checks that no sample denies a counter reset that a comparison with the one before would find, as readers
// see it that trust what chunks say of those before them.
func requireNoResetMissed(t testing.TB, s []sample) {
	t.Helper()
	for i := range s {
		fh := floatOf(s[i])
		if fh == nil || fh.CounterResetHint != histogram.NotCounterReset {
			continue
		}
		require.Positive(t, i)
		prev := floatOf(s[i-1])
		require.NotNil(t, prev, "sample after a float at %d denies a reset", s[i].t)
		free := fh.Copy()
		free.CounterResetHint = histogram.UnknownCounterReset
		require.False(t, free.DetectReset(prev), "hint at %d", s[i].t)
	}
}

// TestMergerCopies gives a Merger chunks that it need not encode, in the order of inputs and of time.
func TestMergerCopies(t *testing.T) {
	var m Merger
	for seed := range int64(300) {
		g := &generator{Rand: rand.New(rand.NewSource(seed)), kinds: kindTable[[]string{"floats", "histograms", "mixed"}[seed%3]]}
		var (
			series []storage.ChunkSeries
			all    []sample
		)
		for i := range 1 + g.Intn(4) {
			s := g.series(1+g.Intn(400), 1000)
			for j := range s {
				s[j].t += int64(i) * 1000
			}
			series = append(series, chunked(t, g.Rand, s, false))
			all = append(all, s...)
		}
		mint, maxt := int64(minTime), int64(maxTime)
		if g.Intn(3) == 0 {
			mint, maxt = g.Int63n(1500), 500+g.Int63n(3000)
		}
		o := EncodeOptions{JoinBelow: []int{0, 5, 100}[g.Intn(3)]}
		metas, got := readChunks(t, Chunks(series, mint, maxt, o), mint, maxt)
		requireEqual(t, model(mint, maxt, all), got, false)
		merged, err := m.Append(nil, series, mint, maxt, o)
		require.NoError(t, err)
		require.Equal(t, metas, merged)
	}
}

func TestMergingIsAssociative(t *testing.T) {
	eachRandom(t, 30, func(t *testing.T, g *generator, raw [][]sample, series []storage.ChunkSeries) {
		want := model(minTime, maxTime, raw...)
		o := EncodeOptions{StartTimestamps: true, JoinBelow: g.Intn(60)}
		for len(series) > 1 { // Merge random neighbours until one is left.
			i := g.Intn(len(series) - 1)
			n := min(2+g.Intn(2), len(series)-i)
			metas, _ := readChunks(t, Chunks(series[i:i+n], minTime, maxTime, o), minTime, maxTime)
			rest := append([]storage.ChunkSeries{listSeries(metas...)}, series[i+n:]...)
			if g.Intn(3) == 0 && n == 2 { // The result may be seen together with what it was made of.
				rest = append([]storage.ChunkSeries{series[i], series[i+1]}, rest...)
				metas, _ := readChunks(t, Chunks(rest[:3], minTime, maxTime, o), minTime, maxTime)
				rest = append([]storage.ChunkSeries{listSeries(metas...)}, rest[3:]...)
			}
			series = append(series[:i:i], rest...)
		}
		it := Series(series...).Iterator(nil)
		requireEqual(t, want, read(t, it, it.Next()), g.withST)
	})
}

// floats makes one chunk.
func floats(t testing.TB, times ...int64) chunks.Meta {
	t.Helper()
	e := NewEncoder(EncodeOptions{})
	for _, x := range times {
		_, cut, err := e.Float(0, x, float64(x))
		require.NoError(t, err)
		require.False(t, cut)
	}
	meta, _ := e.Flush()
	meta.Ref = chunks.ChunkRef(times[0])
	return meta
}

func TestChunksPassThrough(t *testing.T) {
	a, b, c := floats(t, 10, 20, 30), floats(t, 40, 50), floats(t, 60, 70)
	over := floats(t, 25, 35)
	for name, tc := range map[string]struct {
		in         [][]chunks.Meta
		mint, maxt int64
		o          EncodeOptions
		passed     []chunks.ChunkRef // 0: encoded.
	}{
		"nothing overlaps":          {in: [][]chunks.Meta{{a, c}, {b}}, maxt: 100, passed: []chunks.ChunkRef{10, 40, 60}},
		"overlap is encoded":        {in: [][]chunks.Meta{{a, b}, {over, c}}, maxt: 100, passed: []chunks.ChunkRef{0, 40, 60}},
		"equal copies pass":         {in: [][]chunks.Meta{{a, b}, {a, b, c}}, maxt: 100, passed: []chunks.ChunkRef{10, 40, 60}},
		"edges are trimmed":         {in: [][]chunks.Meta{{a, b, c}}, mint: 15, maxt: 65, passed: []chunks.ChunkRef{0, 40, 0}},
		"outside is left out":       {in: [][]chunks.Meta{{a, b, c}}, mint: 31, maxt: 59, passed: []chunks.ChunkRef{40}},
		"gap inside a chunk":        {in: [][]chunks.Meta{{a, b, c}}, mint: 31, maxt: 39},
		"small neighbours join":     {in: [][]chunks.Meta{{a, b}, {c}}, maxt: 100, o: EncodeOptions{JoinBelow: 4}, passed: []chunks.ChunkRef{0}},
		"large neighbours do not":   {in: [][]chunks.Meta{{a, b}, {c}}, maxt: 100, o: EncodeOptions{JoinBelow: 3}, passed: []chunks.ChunkRef{10, 0}},
		"windows are not joined":    {in: [][]chunks.Meta{{a, b, c}}, maxt: 100, o: EncodeOptions{JoinBelow: 4, Window: 60}, passed: []chunks.ChunkRef{0, 60}},
		"a single small one passes": {in: [][]chunks.Meta{{a}}, maxt: 100, o: EncodeOptions{JoinBelow: 100}, passed: []chunks.ChunkRef{10}},
		"no inputs":                 {maxt: 100},
	} {
		t.Run(name, func(t *testing.T) {
			var series []storage.ChunkSeries
			for _, in := range tc.in {
				series = append(series, listSeries(in...))
			}
			metas, _ := readChunks(t, Chunks(series, tc.mint, tc.maxt, tc.o), tc.mint, tc.maxt)
			var passed []chunks.ChunkRef
			for _, m := range metas {
				passed = append(passed, m.Ref)
			}
			require.Equal(t, tc.passed, passed)
		})
	}
}

func TestEncoderCuts(t *testing.T) {
	small := &histogram.Histogram{Count: 1, Sum: 1, Schema: 1}
	wide := func() *histogram.Histogram {
		h := &histogram.Histogram{Count: 500, Sum: 1, Schema: 1, PositiveSpans: []histogram.Span{{Length: 2000}}}
		h.PositiveBuckets = make([]int64, 2000)
		h.PositiveBuckets[0] = 1
		return h
	}()
	stale := &histogram.Histogram{Sum: staleNaN}
	repeat := func(n int, s sample) (out []sample) {
		for i := range n {
			s.t = int64(i) * 1000
			out = append(out, s)
		}
		return out
	}
	for name, tc := range map[string]struct {
		in   []sample
		o    EncodeOptions
		lens []int
		encs []chunkenc.Encoding
	}{
		"120 floats":           {in: repeat(250, sample{}), lens: []int{120, 120, 10}},
		"windows":              {in: repeat(5, sample{}), o: EncodeOptions{Window: 2000}, lens: []int{2, 2, 1}},
		"windows before 1970":  {in: []sample{{t: -3}, {t: -1}, {t: 0}}, o: EncodeOptions{Window: 2}, lens: []int{1, 1, 1}},
		"small histograms":     {in: repeat(500, sample{h: small}), lens: []int{240, 240, 20}},
		"large histograms":     {in: repeat(25, sample{h: wide}), lens: []int{10, 10, 5}},
		"types":                {in: []sample{{t: 1}, {t: 2, h: small}, {t: 3, fh: small.ToFloat(nil)}, {t: 4}}, lens: []int{1, 1, 1, 1}, encs: []chunkenc.Encoding{chunkenc.EncXOR, chunkenc.EncHistogram, chunkenc.EncFloatHistogram, chunkenc.EncXOR}},
		"stale, then not":      {in: []sample{{t: 1, h: small}, {t: 2, h: stale}, {t: 3, h: small}}, lens: []int{2, 1}},
		"start timestamps off": {in: []sample{{t: 1}, {t: 2, st: 1}}, lens: []int{2}, encs: []chunkenc.Encoding{chunkenc.EncXOR}},
		"start timestamps on": {
			in: []sample{{t: 1}, {t: 3, st: 1}, {t: 5}, {t: 7, h: small}, {t: 9, st: 8, h: small}, {t: 11, h: small}},
			o:  EncodeOptions{StartTimestamps: true}, lens: []int{1, 2, 1, 2},
			encs: []chunkenc.Encoding{chunkenc.EncXOR, chunkenc.EncXOR2, chunkenc.EncHistogram, chunkenc.EncHistogramST},
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := NewEncoder(tc.o)
			var metas []chunks.Meta
			_, open := e.Open()
			require.False(t, open)
			for _, s := range tc.in {
				meta, ok, err := encode(e, s)
				require.NoError(t, err)
				if ok {
					metas = append(metas, meta)
				}
				cur, open := e.Open()
				require.True(t, open)
				require.Equal(t, s.t, cur.MaxTime)
			}
			meta, _ := e.Flush()
			_, got := readChunks(t, storage.NewListChunkSeriesIterator(append(metas, meta)...), minTime, maxTime)
			requireEqual(t, tc.in, got, tc.o.StartTimestamps)
			var lens []int
			for i, m := range append(metas, meta) {
				lens = append(lens, m.Chunk.NumSamples())
				if tc.encs != nil {
					require.Equal(t, tc.encs[i], m.Chunk.Encoding())
				}
			}
			require.Equal(t, tc.lens, lens)
		})
	}
}

// TestWindowsAtTheEndsOfTime cuts chunks where the last window does not end before time does, or the first one begins.
func TestWindowsAtTheEndsOfTime(t *testing.T) {
	for _, times := range [][]int64{
		{maxTime - 120, maxTime - 110, maxTime - 50, maxTime - 1, maxTime},
		{minTime, minTime + 1, minTime + 50, minTime + 90, minTime + 150},
	} {
		o := EncodeOptions{Window: 100}
		metas, got := readChunks(t, Chunks([]storage.ChunkSeries{listSeries(floats(t, times[:4]...)), listSeries(floats(t, times[2:]...))}, minTime, maxTime, o), minTime, maxTime)
		require.Len(t, got, len(times))
		var encoded []sample
		for _, x := range times {
			encoded = append(encoded, sample{t: x, v: float64(x)})
		}
		require.Equal(t, encoded, got)
		for _, all := range [][]chunks.Meta{metas, encodeAll(t, encoded, o)} {
			require.Len(t, all, 3)
			for _, m := range all {
				require.Equal(t, windowLast(m.MinTime, o.Window), windowLast(m.MaxTime, o.Window))
			}
		}
	}
}

func TestEncoderLeavesTheHistogramAlone(t *testing.T) {
	first := &histogram.Histogram{Count: 2, Schema: 1, PositiveSpans: []histogram.Span{{Length: 2}}, PositiveBuckets: []int64{2, -2}}
	second := &histogram.Histogram{Count: 3, Schema: 1, PositiveSpans: []histogram.Span{{Length: 1}}, PositiveBuckets: []int64{3}}
	before := second.Copy()
	e := NewEncoder(EncodeOptions{})
	for i, h := range []*histogram.Histogram{first, second} {
		_, _, err := e.Histogram(0, int64(i), h)
		require.NoError(t, err)
	}
	require.Equal(t, before, second)
}

func TestHintsAfterAChangeOfInput(t *testing.T) {
	list := func(start int64, hint histogram.CounterResetHint, shared *histogram.Histogram) chunkenc.Iterator {
		shared.CounterResetHint = hint
		var s []chunks.Sample
		for i := range int64(2) {
			s = append(s, listSample{t: start + i, h: shared})
		}
		return storage.NewListSeries(labels.EmptyLabels(), s).Iterator(nil)
	}
	for _, hint := range []histogram.CounterResetHint{histogram.CounterReset, histogram.NotCounterReset, histogram.GaugeType} {
		a, b := &histogram.Histogram{Count: 1}, &histogram.Histogram{Count: 1}
		it := Iterators([]chunkenc.Iterator{list(0, hint, a), list(2, hint, b)})
		var got []histogram.CounterResetHint
		for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
			_, h := it.AtHistogram(nil)
			_, fh := it.AtFloatHistogram(&histogram.FloatHistogram{})
			require.Equal(t, h.CounterResetHint, fh.CounterResetHint)
			got = append(got, h.CounterResetHint)
		}
		first := histogram.UnknownCounterReset
		if hint == histogram.GaugeType {
			first = hint
		}
		require.Equal(t, []histogram.CounterResetHint{first, hint, first, hint}, got)
		require.Equal(t, hint, a.CounterResetHint, "the input's own histogram is left alone")
	}
}

type listSample struct {
	t int64
	h *histogram.Histogram
}

func (s listSample) T() int64                      { return s.t }
func (s listSample) ST() int64                     { return 0 }
func (s listSample) F() float64                    { return 0 }
func (s listSample) H() *histogram.Histogram       { return s.h }
func (s listSample) FH() *histogram.FloatHistogram { return s.h.ToFloat(nil) }
func (s listSample) Type() chunkenc.ValueType      { return chunkenc.ValHistogram }
func (s listSample) Copy() chunks.Sample           { return s }

var errBroken = errors.New("broken")

// broken gives n samples and then fails.
type broken struct {
	chunkenc.Iterator
	n int
}

func (b *broken) Next() chunkenc.ValueType {
	if b.n--; b.n < 0 {
		return chunkenc.ValNone
	}
	return b.Iterator.Next()
}

func (b *broken) Seek(t int64) chunkenc.ValueType {
	vt := b.Next()
	for vt != chunkenc.ValNone && b.AtT() < t {
		vt = b.Next()
	}
	return vt
}

func (b *broken) Err() error { return errBroken }

// drain reads to the end and returns the number of samples.
func drain(it chunkenc.Iterator) (n int) {
	for it.Next() != chunkenc.ValNone {
		n++
	}
	return n
}

func TestErrorsEndTheMerge(t *testing.T) {
	for n := range 4 {
		for _, seek := range []bool{false, true} {
			good, bad := floats(t, 10, 20, 30), floats(t, 15, 25, 35)
			it := Iterators([]chunkenc.Iterator{good.Chunk.Iterator(nil), &broken{Iterator: bad.Chunk.Iterator(nil), n: n}})
			if seek {
				it.Seek(12)
			}
			drain(it)
			require.ErrorIs(t, it.Err(), errBroken)
			require.Equal(t, chunkenc.ValNone, it.Seek(1000))

			enc := Encode(Iterators([]chunkenc.Iterator{good.Chunk.Iterator(nil), &broken{Iterator: bad.Chunk.Iterator(nil), n: n}}), EncodeOptions{})
			for enc.Next() {
			}
			require.ErrorIs(t, enc.Err(), errBroken)
		}
	}
	truncated, err := chunkenc.FromData(chunkenc.EncXOR, floats(t, 10, 20, 30).Chunk.Bytes()[:3])
	require.NoError(t, err)
	series := listSeries(chunks.Meta{MinTime: 10, MaxTime: 30, Chunk: truncated})
	it := Series(series, listSeries(floats(t, 5, 50))).Iterator(nil)
	drain(it)
	require.Error(t, it.Err())
	cit := Chunks([]storage.ChunkSeries{series, listSeries(floats(t, 5, 50))}, 0, 100, EncodeOptions{})
	for cit.Next() {
	}
	require.Error(t, cit.Err())
	empty := listSeries(chunks.Meta{MinTime: 10, MaxTime: 30})
	it = Series(empty).Iterator(nil)
	require.Equal(t, chunkenc.ValNone, it.Next())
	require.ErrorIs(t, it.Err(), errNoData)
	cit = Chunks([]storage.ChunkSeries{empty}, 0, 100, EncodeOptions{})
	require.False(t, cit.Next())
	require.ErrorIs(t, cit.Err(), errNoData)
}

func TestLimit(t *testing.T) {
	meta := floats(t, 10, 20, 30, 40)
	for name, tc := range map[string]struct {
		mint, maxt int64
		want       []int64
	}{
		"all":     {0, 100, []int64{10, 20, 30, 40}},
		"closed":  {20, 30, []int64{20, 30}},
		"between": {21, 29, nil},
		"after":   {41, 50, nil},
		"before":  {0, 9, nil},
	} {
		t.Run(name, func(t *testing.T) {
			it := Limit(meta.Chunk.Iterator(nil), tc.mint, tc.maxt)
			require.ElementsMatch(t, tc.want, times(read(t, it, it.Next())))
			it = Limit(meta.Chunk.Iterator(nil), tc.mint, tc.maxt)
			require.ElementsMatch(t, tc.want, times(read(t, it, it.Seek(5))))
			require.Equal(t, chunkenc.ValNone, it.Seek(5))
			require.Equal(t, chunkenc.ValNone, it.Next())
		})
	}
}

// listSet is a set of given series.
type listSet struct {
	storage.ChunkSeriesSet
	series []storage.ChunkSeries
	i      int
}

func chunkSet(series ...storage.ChunkSeries) storage.ChunkSeriesSet {
	return &listSet{ChunkSeriesSet: storage.EmptyChunkSeriesSet(), series: series, i: -1}
}

func (s *listSet) Next() bool              { s.i++; return s.i < len(s.series) }
func (s *listSet) At() storage.ChunkSeries { return s.series[s.i] }

func named(name string, times ...[]chunks.Sample) storage.ChunkSeries {
	return storage.NewListChunkSeriesFromSamples(labels.FromStrings("n", name), times...)
}

func TestSets(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for range 100 {
		want := map[string][]storage.ChunkSeries{}
		var sets []storage.ChunkSeriesSet
		for range r.Intn(5) {
			var in []storage.ChunkSeries
			for _, n := range []string{"a", "b", "c", "d"} {
				if r.Intn(2) == 0 {
					s := named(n)
					in = append(in, s)
					want[n] = append(want[n], s)
				}
			}
			sets = append(sets, chunkSet(in...))
		}
		g := Sets(sets)
		last := ""
		for g.Next() {
			ls, series := g.At()
			n := ls.Get("n")
			require.Greater(t, n, last)
			require.Len(t, series, len(want[n]))
			for i := range series {
				require.Same(t, want[n][i], series[i], "order of precedence")
			}
			delete(want, n)
			last = n
		}
		require.NoError(t, g.Err())
		require.Empty(t, want)
		require.Empty(t, g.Warnings())
	}
}

func TestSetsReportErrors(t *testing.T) {
	g := Sets([]storage.ChunkSeriesSet{chunkSet(named("a")), storage.ErrChunkSeriesSet(errBroken)})
	require.False(t, g.Next())
	require.ErrorIs(t, g.Err(), errBroken)

	g = Sets([]storage.ChunkSeriesSet{chunkSet(named("b"), named("a")), chunkSet(named("c"))})
	require.True(t, g.Next())
	require.False(t, g.Next())
	require.ErrorIs(t, g.Err(), errUnsorted)
}
