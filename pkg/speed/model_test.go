package speed

import (
	"fmt"
	"maps"
	"math"
	"math/rand"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/pkg/ingest"
)

// generator makes random requests: rising times most of the time, else late, repeated and conflicting samples of all types.
type generator struct {
	*rand.Rand
	series  []labels.Labels
	last    map[int][]sample // What was sent, by series.
	count   int64
	lateOf  int // One in lateOf samples is not newer.
	floats  bool
	withST  bool
	spacing int64
}

func newGenerator(seed int64) *generator {
	g := &generator{Rand: rand.New(rand.NewSource(seed)), last: map[int][]sample{}}
	for i := range 1 + g.Intn(40) {
		g.series = append(g.series, lset("__name__", "m", "i", fmt.Sprint(i)))
	}
	g.lateOf = 1 + g.Intn(10)
	g.floats = g.Intn(2) == 0
	g.withST = g.Intn(3) == 0
	g.spacing = []int64{1000, 15000, 600_000}[g.Intn(3)]
	return g
}

func (g *generator) sample(i int) sample {
	sent := g.last[i]
	s := g.value()
	switch {
	case len(sent) == 0:
		s.t = 1_700_000_000_000 + g.Int63n(g.spacing)
	case g.Intn(g.lateOf) > 0:
		s.t = newest(sent) + 1 + g.Int63n(g.spacing)
	case g.Intn(3) == 0: // A repetition.
		s = sent[g.Intn(len(sent))]
		if g.Intn(2) == 0 {
			s = sent[len(sent)-1]
		}
	case g.Intn(2) == 0: // A conflict.
		s.t = sent[g.Intn(len(sent))].t
		if g.Intn(2) == 0 {
			s.t = newest(sent)
		}
	default: // Late.
		s.t = newest(sent) - g.Int63n(100*g.spacing)
	}
	if g.withST && g.Intn(2) == 0 {
		s.st = s.t - 1 - g.Int63n(2)
	}
	g.last[i] = append(sent, s)
	return s
}

func newest(s []sample) int64 {
	return slices.MaxFunc(s, func(a, b sample) int { return int(a.t - b.t) }).t
}

func (g *generator) value() sample {
	if g.floats || g.Intn(2) == 0 {
		return sample{v: []float64{
			float64(g.Intn(2)), g.NormFloat64(), math.NaN(), math.Float64frombits(value.StaleNaN),
			math.Float64frombits(0x7ff0000000000bad), math.Inf(-1), math.Copysign(0, -1),
		}[g.Intn(7)]}
	}
	g.count += g.Int63n(5)
	h := &histogram.Histogram{Schema: 1, Count: uint64(g.count), Sum: float64(g.Intn(3)), PositiveSpans: []histogram.Span{{Offset: int32(g.Intn(2)), Length: 1}}, PositiveBuckets: []int64{g.count}}
	switch g.Intn(12) {
	case 0:
		h = &histogram.Histogram{Sum: math.Float64frombits(value.StaleNaN)}
	case 1:
		h.CounterResetHint = histogram.GaugeType
	case 2:
		h.CounterResetHint = histogram.CounterReset
	case 3:
		g.count, h.Count, h.PositiveBuckets[0] = 0, 0, 0
	}
	if g.Intn(3) > 0 {
		return sample{h: h}
	}
	if value.IsStaleNaN(h.Sum) {
		return sample{fh: &histogram.FloatHistogram{Sum: h.Sum}}
	}
	return sample{fh: h.ToFloat(nil)}
}

func (g *generator) request() *ingest.Batch {
	b := &ingest.Batch{}
	for range g.Intn(2 * len(g.series)) { // A series may be there twice.
		i := g.Intn(len(g.series))
		var s []sample
		for range g.Intn(4) {
			s = append(s, g.sample(i))
		}
		b.Series = append(b.Series, in(g.series[i], s...))
	}
	return b
}

// model applies requests one after another.
type model map[string]map[int64]sample

func (m model) apply(b *ingest.Batch, withST bool) {
	put := func(key string, s sample) {
		if !withST {
			s.st = 0
		}
		if m[key] == nil {
			m[key] = map[int64]sample{}
		}
		m[key][s.t] = s
	}
	for _, s := range b.Series {
		key := ingest.KeyLabels(s.Key).String()
		for _, f := range s.Floats {
			put(key, sample{t: f.T, st: f.ST, v: f.V})
		}
		for _, h := range s.Histograms {
			put(key, sample{t: h.T, st: h.ST, h: h.H, fh: h.FH})
		}
	}
}

func (m model) series(key string, mint, maxt int64) []sample {
	out := []sample{}
	for _, t := range slices.Sorted(maps.Keys(m[key])) {
		if t >= mint && t <= maxt {
			out = append(out, m[key][t])
		}
	}
	return out
}

func requireModel(t testing.TB, m model, g *Generation, mint, maxt int64) {
	t.Helper()
	requireSampled(t, g, mint, maxt)
	got := query(t, g, mint, maxt, all())
	for key := range m {
		requireSamples(t, m.series(key, mint, maxt), got[key])
		delete(got, key)
	}
	for key, s := range got {
		require.Empty(t, s, key)
	}
}

func TestRandomRequestsConcurrently(t *testing.T) {
	for seed := range int64(60) {
		gen := newGenerator(seed)
		withST := gen.withST && gen.Intn(4) > 0
		m := model{}
		g := NewGeneration(Options{Shards: 1 << gen.Intn(5), StartTimestamps: withST, FirstIndex: uint64(gen.Intn(3))})
		first := g.shards[0].turn.next
		var (
			requests []*ingest.Batch
			stats    AppendStats
			mu       sync.Mutex
			wg       sync.WaitGroup
		)
		for range 1 + gen.Intn(60) {
			b := gen.request()
			if gen.Intn(10) == 0 {
				b = nil // Its log write failed.
			} else {
				m.apply(b, withST)
			}
			requests = append(requests, b)
		}
		for _, i := range gen.Perm(len(requests)) {
			wg.Go(func() {
				if requests[i] == nil {
					g.Skip(first + uint64(i))
					return
				}
				s := g.Append(first+uint64(i), requests[i])
				mu.Lock()
				defer mu.Unlock()
				stats.Samples += s.Samples
				stats.Late += s.Late
				stats.Duplicates += s.Duplicates
				stats.Created += s.Created
				assert.Zero(t, s.Failed)
			})
		}
		wg.Wait()
		g.Seal()
		requireModel(t, m, g, minTime, maxTime)
		mid := int64(1_700_000_000_000) + gen.Int63n(20*gen.spacing)
		requireModel(t, m, g, mid, mid+gen.Int63n(20*gen.spacing))

		got := g.Stats()
		sent := 0
		for _, b := range requests {
			if b != nil {
				for _, s := range b.Series {
					sent += len(s.Floats) + len(s.Histograms)
				}
			}
		}
		require.Equal(t, sent, stats.Samples+stats.Duplicates)
		require.Equal(t, Stats{
			Series: int64(len(m)), Samples: int64(stats.Samples), Late: int64(stats.Late), Duplicates: int64(stats.Duplicates),
			Bytes: got.Bytes, MinTime: got.MinTime, MaxTime: got.MaxTime,
		}, got)
		lo, hi := int64(maxTime), int64(minTime)
		for _, s := range m {
			for at := range s {
				lo, hi = min(lo, at), max(hi, at)
			}
		}
		require.Equal(t, []int64{lo, hi}, []int64{got.MinTime, got.MaxTime})
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
