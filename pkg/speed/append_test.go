package speed

import (
	"fmt"
	"math"
	"runtime"
	"testing"
	"time"
	"unsafe"
	"weak"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/millrace/millrace/pkg/ingest"
)

var series1 = lset("__name__", "m", "a", "b")

func counterOf(n uint64) *histogram.Histogram {
	return &histogram.Histogram{Count: n, Sum: float64(n), PositiveSpans: []histogram.Span{{Length: 1}}, PositiveBuckets: []int64{int64(n)}}
}

func gaugeOf(n uint64) *histogram.Histogram {
	h := counterOf(n)
	h.CounterResetHint = histogram.GaugeType
	return h
}

func TestWhatBecomesOfASample(t *testing.T) {
	stale := math.Float64frombits(value.StaleNaN)
	for name, tc := range map[string]struct {
		st                   bool
		in                   []sample
		late, dup            int
		want                 []sample // nil: as in.
		inOrderChunks, lates int
	}{
		"in order":                      {in: []sample{{t: 1, v: 1}, {t: 2, v: 2}}},
		"before 1970":                   {in: []sample{{t: -2, v: 1}, {t: -1, v: 2}, {t: 0, v: 3}}, inOrderChunks: 1},
		"first sample at the limit":     {in: []sample{{t: minTime, v: 1}, {t: maxTime, v: 2}}, late: 1},
		"repeated":                      {in: []sample{{t: 1, v: 1}, {t: 1, v: 1}}, dup: 1, want: []sample{{t: 1, v: 1}}},
		"repeated stale marker":         {in: []sample{{t: 1, v: stale}, {t: 1, v: stale}}, dup: 1, want: []sample{{t: 1, v: stale}}},
		"other NaN":                     {in: []sample{{t: 1, v: stale}, {t: 1, v: math.NaN()}}, late: 1, want: []sample{{t: 1, v: math.NaN()}}},
		"minus zero":                    {in: []sample{{t: 1, v: 0}, {t: 1, v: math.Copysign(0, -1)}}, late: 1, want: []sample{{t: 1, v: math.Copysign(0, -1)}}},
		"conflict":                      {in: []sample{{t: 1, v: 1}, {t: 1, v: 2}}, late: 1, want: []sample{{t: 1, v: 2}}},
		"conflict taken back":           {in: []sample{{t: 1, v: 1}, {t: 1, v: 2}, {t: 1, v: 1}}, late: 2, want: []sample{{t: 1, v: 1}}},
		"repeated after a conflict":     {in: []sample{{t: 1, v: 1}, {t: 1, v: 2}, {t: 2, v: 3}, {t: 2, v: 3}}, late: 1, dup: 1, want: []sample{{t: 1, v: 2}, {t: 2, v: 3}}},
		"repetition of an older one":    {in: []sample{{t: 1, v: 1}, {t: 2, v: 2}, {t: 1, v: 1}}, late: 1, want: []sample{{t: 1, v: 1}, {t: 2, v: 2}}},
		"late":                          {in: []sample{{t: 2, v: 2}, {t: 1, v: 1}}, late: 1, want: []sample{{t: 1, v: 1}, {t: 2, v: 2}}},
		"cut at 2 h":                    {in: []sample{{t: chunkWindow - 1}, {t: chunkWindow}}, inOrderChunks: 1},
		"histogram cut at 2 h":          {in: []sample{{t: chunkWindow - 1, h: counterOf(1)}, {t: chunkWindow, h: counterOf(2)}}, inOrderChunks: 1},
		"types":                         {in: []sample{{t: 1}, {t: 2, h: counterOf(1)}, {t: 3, fh: counterOf(1).ToFloat(nil)}, {t: 4}}, inOrderChunks: 3},
		"histogram over a float":        {in: []sample{{t: 1, v: 1}, {t: 1, h: counterOf(1)}}, late: 1, want: []sample{{t: 1, h: counterOf(1)}}},
		"float over a histogram":        {in: []sample{{t: 1, h: counterOf(1)}, {t: 1, v: 1}}, late: 1, want: []sample{{t: 1, v: 1}}},
		"repeated histogram":            {in: []sample{{t: 1, h: counterOf(1)}, {t: 1, h: counterOf(1)}}, dup: 1, want: []sample{{t: 1, h: counterOf(1)}}},
		"histogram conflict":            {in: []sample{{t: 1, h: counterOf(1)}, {t: 1, h: counterOf(2)}}, late: 1, want: []sample{{t: 1, h: counterOf(2)}}},
		"counter turned gauge":          {in: []sample{{t: 1, h: counterOf(1)}, {t: 1, h: gaugeOf(1)}}, late: 1, want: []sample{{t: 1, h: gaugeOf(1)}}},
		"float histogram turned gauge":  {in: []sample{{t: 1, fh: counterOf(1).ToFloat(nil)}, {t: 1, fh: gaugeOf(1).ToFloat(nil)}}, late: 1, want: []sample{{t: 1, fh: gaugeOf(1).ToFloat(nil)}}},
		"repeated float histogram":      {in: []sample{{t: 1, fh: counterOf(1).ToFloat(nil)}, {t: 1, fh: counterOf(1).ToFloat(nil)}}, dup: 1, want: []sample{{t: 1, fh: counterOf(1).ToFloat(nil)}}},
		"counter reset":                 {in: []sample{{t: 1, h: counterOf(5)}, {t: 2, h: counterOf(1)}}, inOrderChunks: 1},
		"start timestamps are dropped":  {in: []sample{{t: 2, st: 1}, {t: 2, st: 0}}, dup: 1, want: []sample{{t: 2}}},
		"start timestamps are kept":     {st: true, in: []sample{{t: 2, st: 1}, {t: 4, st: 3}, {t: 6, st: 3, h: counterOf(1)}}, inOrderChunks: 1},
		"start timestamp repeated":      {st: true, in: []sample{{t: 2, st: 1}, {t: 2, st: 1}}, dup: 1, want: []sample{{t: 2, st: 1}}},
		"start timestamp conflict":      {st: true, in: []sample{{t: 2, st: 1}, {t: 2, st: 0}}, late: 1, want: []sample{{t: 2, st: 0}}},
		"start timestamp added":         {st: true, in: []sample{{t: 2, st: 0}, {t: 2, st: 1}}, late: 1, want: []sample{{t: 2, st: 1}}},
		"start timestamps begin":        {st: true, in: []sample{{t: 2}, {t: 4, st: 3}, {t: 6}}, inOrderChunks: 1},
		"start timestamps with 2 h cut": {st: true, in: []sample{{t: chunkWindow - 1, st: 1}, {t: chunkWindow, st: 1}}, inOrderChunks: 1},
	} {
		t.Run(name, func(t *testing.T) {
			g := NewGeneration(Options{StartTimestamps: tc.st})
			var stats AppendStats
			for i, s := range tc.in {
				got := g.Append(uint64(i), batch(in(series1, s)))
				stats.Late += got.Late
				stats.Duplicates += got.Duplicates
				stats.Samples += got.Samples
			}
			require.Equal(t, tc.late, stats.Late, "late")
			require.Equal(t, tc.dup, stats.Duplicates, "duplicates")
			require.Equal(t, len(tc.in)-tc.dup, stats.Samples)
			want := tc.want
			if want == nil {
				want = tc.in
			}
			requireSamples(t, want, query(t, g, minTime, maxTime, all())[series1.String()])
			s := g.theSeries()
			if tc.inOrderChunks > 0 {
				require.Len(t, s.rest().closed, tc.inOrderChunks)
			}
		})
	}
}

// theSeries returns the only series of a generation.
func (g *Generation) theSeries() *series {
	for i := range g.shards {
		if g.shards[i].reg.n > 0 {
			return g.shards[i].series(0)
		}
	}
	return nil
}

func TestChunksOf120Samples(t *testing.T) {
	g := NewGeneration(Options{})
	for i := range 300 {
		g.Append(uint64(i), batch(in(series1, sample{t: int64(i) * 15000, v: 1})))
	}
	require.Len(t, g.theSeries().rest().closed, 2)
	require.EqualValues(t, 60, g.theSeries().xor.n)
	require.Len(t, query(t, g, minTime, maxTime, all())[series1.String()], 300)
}

func TestLateChunksInOrderShareALayer(t *testing.T) {
	g := NewGeneration(Options{})
	g.Append(0, batch(in(series1, sample{t: 1 << 40})))
	for i := range 10 * maxLate {
		g.Append(uint64(i+1), batch(in(series1, sample{t: int64(i), v: float64(i)})))
	}
	late := g.theSeries().rest().late
	require.Len(t, late.chunks, 10)
	require.Empty(t, late.buf)
	set, err := g.ChunkQuerier(minTime, maxTime)
	require.NoError(t, err)
	found := set.Select(ctx, false, nil, all())
	require.True(t, found.Next())
	cs, _ := found.At().(*chunkSeries)
	var snap snapshot
	require.NoError(t, cs.snapshot(&snap))
	require.Len(t, snap.layers(), 2)
	require.Len(t, query(t, g, minTime, maxTime, all())[series1.String()], 10*maxLate+1)
}

func TestSeriesWithoutSamplesAreNotRegistered(t *testing.T) {
	g := NewGeneration(Options{})
	s := in(series1)
	s.Exemplars = []ingest.Exemplar{{T: 1}}
	g.Append(0, batch(s))
	require.Zero(t, g.Stats().Series)
	require.Empty(t, query(t, g, minTime, maxTime, all()))
}

func TestHashCollisions(t *testing.T) {
	g := NewGeneration(Options{})
	next := NewGeneration(Options{Previous: g})
	for round := range uint64(3) {
		var b ingest.Batch
		for i := range 200 {
			s := in(lset("i", string(rune('a'+i))), sample{t: int64(round), v: float64(i)})
			s.Hash = []uint64{7, 7 | 1<<20, 7 | 1<<40}[i%3] // Equal; equal below; equal above.
			b.Series = append(b.Series, s)
		}
		g.Append(round, &b)
		next.Append(round, &b)
	}
	for _, g := range []*Generation{g, next} {
		require.EqualValues(t, 200, g.Stats().Series)
		got := query(t, g, minTime, maxTime, all())
		for i := range 200 {
			v := float64(i)
			requireSamples(t, []sample{{t: 0, v: v}, {t: 1, v: v}, {t: 2, v: v}}, got[lset("i", string(rune('a'+i))).String()])
		}
	}
}

func stringOf(ls labels.Labels) uintptr {
	var p *byte
	ls.Range(func(l labels.Label) {
		if p == nil {
			p = unsafe.StringData(l.Value)
		}
	})
	return uintptr(unsafe.Pointer(p))
}

func find(t *testing.T, g *Generation, name, value string) labels.Labels {
	t.Helper()
	q, err := g.ChunkQuerier(minTime, maxTime)
	require.NoError(t, err)
	set := q.Select(ctx, false, nil, labels.MustNewMatcher(labels.MatchEqual, name, value))
	require.True(t, set.Next())
	return set.At().Labels()
}

func TestLabelsAreHandedOver(t *testing.T) {
	// In a function, so that the old generation is out of sight when it returns.
	g, samples, registry := func() (*Generation, weak.Pointer[Generation], weak.Pointer[registry]) {
		old := NewGeneration(Options{Number: 1, Shards: 2})
		old.Append(0, batch(in(series1, sample{t: 1}), in(lset("other", "1"), sample{t: 1})))
		old.Seal()
		g := NewGeneration(Options{Number: 2, Previous: old})
		stats := g.Append(0, batch(in(series1, sample{t: 2}), in(lset("new", "1"), sample{t: 2})))
		require.Equal(t, 2, stats.Created)
		require.Equal(t, 1, stats.HandedOver)
		require.Equal(t, stringOf(find(t, old, "a", "b")), stringOf(find(t, g, "a", "b")), "the same string")
		return g, weak.Make(old), weak.Make(old.regs.regs[0])
	}()
	require.EqualValues(t, 2, g.Number())

	// Neither the old generation's samples nor, once the new one is sealed, its registry are kept alive.
	runtime.GC()
	require.Nil(t, samples.Value())
	require.NotNil(t, registry.Value())
	g.Seal()
	runtime.GC()
	require.Nil(t, registry.Value())
	require.Equal(t, "b", find(t, g, "a", "b").Get("a"))
}

func TestAnInheritanceIsCountedUntilItIsTaken(t *testing.T) {
	var series []ingest.Series
	for i := range 1000 {
		series = append(series, in(lset("i", fmt.Sprint(i)), sample{t: 1}))
	}
	old := NewGeneration(Options{Number: 1})
	old.Append(0, batch(series...))
	require.Zero(t, old.Stats().Inherited)
	g := NewGeneration(Options{Number: 2, Previous: old})
	whole := g.Stats().Inherited
	require.Positive(t, whole)
	require.Less(t, whole, old.Stats().Bytes)

	g.Append(0, batch(in(lset("i", "0"), sample{t: 2}), in(lset("new", "1"), sample{t: 2})))
	require.Less(t, g.Stats().Inherited, whole)
	require.Greater(t, g.Stats().Inherited, whole-100, "the registry is there as before")
	g.Append(1, batch(series[:999]...))
	require.Positive(t, g.Stats().Inherited)
	g.Append(2, batch(series...))
	require.Zero(t, g.Stats().Inherited, "no series is left to be met again")

	g = NewGeneration(Options{Number: 2, Previous: old})
	g.Disinherit()
	require.Zero(t, g.Stats().Inherited)
	require.Zero(t, g.Append(0, batch(series...)).HandedOver)
}

func TestSeriesOfASkippedRequestAreInNoAnswer(t *testing.T) {
	g := NewGeneration(Options{})
	resolve := func(name string, ts int64) *ingest.Batch {
		b := batch(in(lset("__name__", "m", name, "x"), sample{t: ts}))
		g.Resolve(b)
		return b
	}
	g.Append(0, resolve("kept", 1))
	resolve("refused", 2)
	g.Skip(1)
	late := resolve("late", 3)
	requireLabels := func(want ...string) {
		t.Helper()
		q, err := g.ChunkQuerier(minTime, maxTime)
		require.NoError(t, err)
		for _, ms := range [][]*labels.Matcher{nil, {all()}} {
			got, _, err := q.LabelNames(t.Context(), nil, ms...)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		values, _, err := q.LabelValues(t.Context(), "refused", nil)
		require.NoError(t, err)
		require.Empty(t, values)
	}
	requireLabels("__name__", "kept")
	g.Append(2, late)
	requireLabels("__name__", "kept", "late")
}

func TestIndexesAreTakenInOrder(t *testing.T) {
	g := NewGeneration(Options{FirstIndex: 5})
	done := make(chan uint64, 4)
	for _, i := range []uint64{8, 6} {
		go func() {
			g.Append(i, batch(in(series1, sample{t: int64(i), v: float64(i)}), in(series1, sample{t: 100, v: float64(i)})))
			done <- i
		}()
	}
	g.Skip(7)
	select {
	case i := <-done:
		t.Fatalf("index %d did not wait for 5", i)
	case <-time.After(20 * time.Millisecond):
	}
	require.Empty(t, query(t, g, minTime, maxTime, all()))
	g.Skip(5)
	require.Equal(t, uint64(6), <-done)
	require.Equal(t, uint64(8), <-done)
	g.Skip(9)
	g.Append(10, batch())
	requireSamples(t, []sample{{t: 6, v: 6}, {t: 8, v: 8}, {t: 100, v: 8}}, query(t, g, minTime, maxTime, all())[series1.String()])
}

func TestBytesGrow(t *testing.T) {
	g := NewGeneration(Options{})
	last := g.Stats().Bytes
	require.Zero(t, last)
	grows := func(what string, s ...sample) {
		t.Helper()
		g.Append(g.shards[0].turn.next, batch(in(series1, s...)))
		require.Greater(t, g.Stats().Bytes, last, what)
		last = g.Stats().Bytes
	}
	grows("series", sample{t: 1})
	var many, late []sample
	for i := range 1000 {
		many = append(many, sample{t: int64(i) + 1000, v: float64(i)})
		late = append(late, sample{t: int64(i), v: float64(i)})
	}
	grows("chunks", many...)
	grows("late samples", late...)
	grows("histogram", sample{t: 5000, h: counterOf(1)})
	grows("late histogram", sample{t: 4000, h: counterOf(1)})
}

func TestMetricsAreSharedByGenerations(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	for i := range uint64(2) {
		g := NewGeneration(Options{Number: i, Metrics: m})
		g.Append(0, batch(in(series1, sample{t: 2}, sample{t: 2}, sample{t: 1})))
	}
	require.InDelta(t, 4, testutil.ToFloat64(m.samples), 0)
	require.InDelta(t, 2, testutil.ToFloat64(m.late), 0)
	require.InDelta(t, 2, testutil.ToFloat64(m.duplicates), 0)
	problems, err := testutil.GatherAndLint(reg)
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestChunksOutliveTheGeneration(t *testing.T) {
	metas, p := func() (metas []chunks.Meta, p weak.Pointer[Generation]) {
		g := NewGeneration(Options{})
		for i := range uint64(200) {
			g.Append(i, batch(in(series1, sample{t: int64(i), v: float64(i)})))
		}
		q, err := g.ChunkQuerier(minTime, maxTime)
		require.NoError(t, err)
		set := q.Select(ctx, true, nil, all())
		require.True(t, set.Next())
		it := set.At().Iterator(nil)
		for it.Next() {
			metas = append(metas, it.At())
		}
		for i := uint64(200); i < 400; i++ { // What was handed out does not change.
			g.Append(i, batch(in(series1, sample{t: int64(i), v: float64(i)})))
		}
		require.NoError(t, q.Close())
		return metas, weak.Make(g)
	}()
	runtime.GC()
	require.Nil(t, p.Value())
	n := 0
	for _, meta := range metas {
		cit := meta.Chunk.Iterator(nil)
		for cit.Next() != chunkenc.ValNone {
			at, v := cit.At()
			require.Equal(t, float64(at), v)
			n++
		}
	}
	require.Equal(t, 200, n)
}
