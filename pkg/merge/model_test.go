package merge

import (
	"maps"
	"math"
	"math/rand"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// sample is a float unless h or fh is set.
type sample struct {
	st, t int64
	v     float64
	h     *histogram.Histogram
	fh    *histogram.FloatHistogram
}

func (s sample) vt() chunkenc.ValueType {
	switch {
	case s.h != nil:
		return chunkenc.ValHistogram
	case s.fh != nil:
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValFloat
}

// read returns what an iterator yields; with reuse it asks for histograms in memory of its own.
func read(t testing.TB, it chunkenc.Iterator, vt chunkenc.ValueType) []sample {
	t.Helper()
	var out []sample
	for ; vt != chunkenc.ValNone; vt = it.Next() {
		out = append(out, at(it, vt))
	}
	require.NoError(t, it.Err())
	return out
}

func at(it chunkenc.Iterator, vt chunkenc.ValueType) sample {
	s := sample{st: it.AtST(), t: it.AtT()}
	switch vt {
	case chunkenc.ValFloat:
		_, s.v = it.At()
	case chunkenc.ValHistogram:
		_, h := it.AtHistogram(nil)
		s.h = h.Copy()
	case chunkenc.ValFloatHistogram:
		_, fh := it.AtFloatHistogram(nil)
		s.fh = fh.Copy()
	}
	return s
}

// requireEqual compares samples bit by bit, histograms in their compact form and apart from reset hints, in which only
// gauges differ from counters.
func requireEqual(t testing.TB, want, got []sample, withST bool) {
	t.Helper()
	require.Equal(t, times(want), times(got))
	for i := range want {
		w, g := want[i], got[i]
		if !withST {
			w.st = 0
		}
		// The plain comparisons are for speed: this runs a million times.
		if w.vt() != g.vt() || w.st != g.st {
			require.Equal(t, w, g)
		}
		switch w.vt() {
		case chunkenc.ValFloat:
			if math.Float64bits(w.v) != math.Float64bits(g.v) {
				require.Equal(t, math.Float64bits(w.v), math.Float64bits(g.v), "value at %d", w.t)
			}
		case chunkenc.ValHistogram:
			require.True(t, normal(w.h).Equals(normal(g.h)), "histogram at %d: %s, want %s", w.t, g.h, w.h)
			require.Equal(t, gauge(w.h.CounterResetHint, w.h.Sum), gauge(g.h.CounterResetHint, g.h.Sum), "gauge at %d", w.t)
		case chunkenc.ValFloatHistogram:
			require.True(t, normalFloat(w.fh).Equals(normalFloat(g.fh)), "histogram at %d: %s, want %s", w.t, g.fh, w.fh)
			require.Equal(t, gauge(w.fh.CounterResetHint, w.fh.Sum), gauge(g.fh.CounterResetHint, g.fh.Sum), "gauge at %d", w.t)
		}
	}
}

func times(s []sample) []int64 {
	out := make([]int64, len(s))
	for i := range s {
		out[i] = s[i].t
	}
	return out
}

func gauge(h histogram.CounterResetHint, sum float64) bool {
	return h == histogram.GaugeType && !value.IsStaleNaN(sum)
}

func normal(h *histogram.Histogram) *histogram.Histogram {
	if value.IsStaleNaN(h.Sum) {
		return &histogram.Histogram{Sum: h.Sum}
	}
	return h.Copy().Compact(0)
}

func normalFloat(h *histogram.FloatHistogram) *histogram.FloatHistogram {
	if value.IsStaleNaN(h.Sum) {
		return &histogram.FloatHistogram{Sum: h.Sum}
	}
	return h.Copy().Compact(0)
}

// requireTruthfulHints checks that a hint never says something else than a comparison with the sample before.
func requireTruthfulHints(t testing.TB, s []sample) {
	t.Helper()
	for i := range s {
		fh := floatOf(s[i])
		if fh == nil || fh.CounterResetHint == histogram.GaugeType || fh.CounterResetHint == histogram.UnknownCounterReset {
			continue
		}
		require.Positive(t, i, "first sample claims %v", fh.CounterResetHint)
		prev := floatOf(s[i-1])
		require.NotNil(t, prev, "sample after a float at %d claims %v", s[i].t, fh.CounterResetHint)
		free := fh.Copy()
		free.CounterResetHint = histogram.UnknownCounterReset
		require.Equal(t, free.DetectReset(prev), fh.DetectReset(prev), "hint at %d", s[i].t)
	}
}

func floatOf(s sample) *histogram.FloatHistogram {
	if s.h != nil {
		return s.h.ToFloat(nil)
	}
	return s.fh
}

// generator makes random samples whose histograms behave like counters most of the time.
type generator struct {
	*rand.Rand
	counts [6]int64
	kinds  []chunkenc.ValueType
	withST bool
}

var staleNaN = math.Float64frombits(value.StaleNaN)

func (g *generator) sample(t int64) sample {
	s := sample{t: t}
	if g.withST && g.Intn(3) > 0 {
		s.st = t - 1 - g.Int63n(3)*1000
	}
	switch g.kinds[g.Intn(len(g.kinds))] {
	case chunkenc.ValHistogram:
		s.h = g.histogram()
	case chunkenc.ValFloatHistogram:
		if h := g.histogram(); value.IsStaleNaN(h.Sum) {
			s.fh = &histogram.FloatHistogram{Sum: h.Sum}
		} else {
			s.fh = h.ToFloat(nil)
		}
	default:
		s.v = []float64{float64(g.Intn(3)), g.NormFloat64(), staleNaN, math.NaN(), math.Inf(1), math.Copysign(0, -1)}[g.Intn(6)]
	}
	return s
}

func (g *generator) histogram() *histogram.Histogram {
	switch g.Intn(20) {
	case 0:
		return &histogram.Histogram{Sum: staleNaN}
	case 1: // A counter reset.
		g.counts = [6]int64{}
	}
	for i := range g.counts {
		if g.Intn(3) == 0 {
			g.counts[i] += g.Int63n(5)
		}
	}
	h := &histogram.Histogram{Schema: 1, ZeroThreshold: 0.001, ZeroCount: uint64(g.counts[0]), Count: uint64(g.counts[0]), Sum: float64(g.Intn(1000))}
	if g.Intn(15) == 0 {
		h.Schema = 2
	}
	last := int64(0)
	for i, c := range g.counts[1:] { // Only used buckets are listed, so that layouts change all the time.
		if c == 0 {
			continue
		}
		h.Count += uint64(c)
		h.PositiveBuckets = append(h.PositiveBuckets, c-last)
		last = c
		offset := int32(i)
		for _, sp := range h.PositiveSpans {
			offset -= sp.Offset + int32(sp.Length)
		}
		if n := len(h.PositiveSpans); n > 0 && offset == 0 {
			h.PositiveSpans[n-1].Length++
		} else {
			h.PositiveSpans = append(h.PositiveSpans, histogram.Span{Offset: offset, Length: 1})
		}
	}
	switch g.Intn(12) {
	case 0:
		h.CounterResetHint = histogram.GaugeType
	case 1:
		h.CounterResetHint = histogram.CounterReset
	}
	return h
}

// series returns n or fewer samples with distinct rising timestamps from [0, span).
func (g *generator) series(n int, span int64) []sample {
	at := map[int64]bool{}
	for range n {
		at[g.Int63n(span)] = true
	}
	var out []sample
	for _, t := range slices.Sorted(maps.Keys(at)) {
		out = append(out, g.sample(t))
	}
	return out
}

// chunked encodes samples to a series of chunks of random lengths.
func chunked(t testing.TB, r *rand.Rand, s []sample, withST bool) storage.ChunkSeries {
	t.Helper()
	var metas []chunks.Meta
	o := EncodeOptions{StartTimestamps: withST}
	for len(s) > 0 {
		n := 1 + r.Intn(len(s))
		e := NewEncoder(o)
		for _, x := range s[:n] {
			meta, ok, err := encode(e, x)
			require.NoError(t, err)
			if ok {
				metas = append(metas, meta)
			}
		}
		meta, ok := e.Flush()
		require.True(t, ok)
		metas, s = append(metas, meta), s[n:]
	}
	return listSeries(metas...)
}

func encode(e *Encoder, x sample) (chunks.Meta, bool, error) {
	switch x.vt() {
	case chunkenc.ValHistogram:
		return e.Histogram(x.st, x.t, x.h)
	case chunkenc.ValFloatHistogram:
		return e.FloatHistogram(x.st, x.t, x.fh)
	}
	return e.Float(x.st, x.t, x.v)
}

func listSeries(metas ...chunks.Meta) storage.ChunkSeries {
	return &storage.ChunkSeriesEntry{
		Lset:            labels.FromStrings("a", "b"),
		ChunkIteratorFn: func(chunks.Iterator) chunks.Iterator { return storage.NewListChunkSeriesIterator(metas...) },
	}
}

// model is what a merge must give: the samples of all inputs by timestamp, later ones replacing earlier ones.
func model(mint, maxt int64, inputs ...[]sample) []sample {
	m := map[int64]sample{}
	for _, in := range inputs {
		for _, s := range in {
			if s.t >= mint && s.t <= maxt {
				m[s.t] = s
			}
		}
	}
	var out []sample
	for _, t := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[t])
	}
	return out
}

var kindTable = map[string][]chunkenc.ValueType{
	"floats":           {chunkenc.ValFloat},
	"histograms":       {chunkenc.ValHistogram},
	"float histograms": {chunkenc.ValFloatHistogram},
	"mixed":            {chunkenc.ValFloat, chunkenc.ValHistogram, chunkenc.ValFloatHistogram},
}

// eachRandom runs f with random inputs of all kinds, seeded by their number.
func eachRandom(t *testing.T, rounds int, f func(t *testing.T, g *generator, raw [][]sample, series []storage.ChunkSeries)) {
	for name, kinds := range kindTable {
		t.Run(name, func(t *testing.T) {
			for seed := range rounds {
				g := &generator{Rand: rand.New(rand.NewSource(int64(seed))), kinds: kinds, withST: seed%2 == 1}
				var (
					raw    [][]sample
					series []storage.ChunkSeries
				)
				span := int64(20 + g.Intn(600))
				for range 1 + g.Intn(6) {
					s := g.series(1+g.Intn(300), span)
					raw = append(raw, s)
					series = append(series, chunked(t, g.Rand, s, g.withST))
				}
				f(t, g, raw, series)
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}
