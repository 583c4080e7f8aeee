package speed

import (
	"context"
	"math"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/merge"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	minTime = math.MinInt64
	maxTime = math.MaxInt64
)

var ctx = context.Background()

// sample is a float unless h or fh is set.
type sample struct {
	t, st int64
	v     float64
	h     *histogram.Histogram
	fh    *histogram.FloatHistogram
}

// in makes a series of a request. As in a request, histograms come after floats.
func in(ls labels.Labels, samples ...sample) ingest.Series {
	s := ingest.Series{Key: ingest.LabelsKey(nil, ls)}
	s.Hash = xxhash.Sum64(s.Key)
	for _, x := range samples {
		if x.h != nil || x.fh != nil {
			s.Histograms = append(s.Histograms, ingest.Histogram{T: x.t, ST: x.st, H: x.h, FH: x.fh})
		} else {
			s.Floats = append(s.Floats, ingest.Float{T: x.t, ST: x.st, V: x.v})
		}
	}
	return s
}

func batch(series ...ingest.Series) *ingest.Batch { return &ingest.Batch{Series: series} }

func lset(kv ...string) labels.Labels { return labels.FromStrings(kv...) }

func all() *labels.Matcher { return labels.MustNewMatcher(labels.MatchEqual, "", "") }

// query returns the samples of all series that match, by labels, after checking the form of the chunks.
func query(t testing.TB, g *Generation, mint, maxt int64, ms ...*labels.Matcher) map[string][]sample {
	t.Helper()
	q, err := g.ChunkQuerier(mint, maxt)
	require.NoError(t, err)
	set := q.Select(ctx, true, nil, ms...)
	out := map[string][]sample{}
	last := labels.EmptyLabels()
	for set.Next() {
		s := set.At()
		if len(out) > 0 {
			require.Negative(t, labels.Compare(last, s.Labels()), "order of series")
		}
		last = s.Labels()
		out[s.Labels().String()] = samplesOf(t, s.Iterator(nil), mint, maxt)
	}
	require.NoError(t, set.Err())
	require.NoError(t, q.Close())
	return out
}

// samplesOf reads chunks and returns what lies in the range.
func samplesOf(t testing.TB, it chunks.Iterator, mint, maxt int64) []sample {
	t.Helper()
	out := []sample{}
	last, first := int64(0), true
	for it.Next() {
		meta := it.At()
		require.True(t, meta.OverlapsClosedInterval(mint, maxt), "chunk [%d, %d] for [%d, %d]", meta.MinTime, meta.MaxTime, mint, maxt)
		n := 0
		cit := meta.Chunk.Iterator(nil)
		for vt := cit.Next(); vt != chunkenc.ValNone; vt = cit.Next() {
			s := sample{t: cit.AtT(), st: cit.AtST()}
			if !first && s.t <= last {
				require.Greater(t, s.t, last, "order of samples")
			}
			if n == 0 {
				require.Equal(t, meta.MinTime, s.t)
			}
			last, first = s.t, false
			n++
			s.read(cit, vt)
			if s.t >= mint && s.t <= maxt {
				out = append(out, s)
			}
		}
		require.NoError(t, cit.Err())
		require.Equal(t, meta.Chunk.NumSamples(), n)
		require.Equal(t, meta.MaxTime, last)
		require.LessOrEqual(t, n, 240)
	}
	require.NoError(t, it.Err())
	return out
}

// read takes over the value at which an iterator stands.
func (s *sample) read(it chunkenc.Iterator, vt chunkenc.ValueType) {
	switch vt {
	case chunkenc.ValFloat:
		_, s.v = it.At()
	case chunkenc.ValHistogram:
		_, s.h = it.AtHistogram(nil)
	case chunkenc.ValFloatHistogram:
		_, s.fh = it.AtFloatHistogram(nil)
	}
}

func iterated(t testing.TB, it chunkenc.Iterator) []sample {
	t.Helper()
	out := []sample{}
	for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
		s := sample{t: it.AtT(), st: it.AtST()}
		s.read(it, vt)
		out = append(out, s)
	}
	require.NoError(t, it.Err())
	return out
}

// requireSampled compares the samples of those series that have late ones with what their chunks hold, while nothing is appended.
func requireSampled(t testing.TB, g *Generation, mint, maxt int64) {
	t.Helper()
	q, err := g.ChunkQuerier(mint, maxt)
	require.NoError(t, err)
	for set := q.Select(ctx, true, nil, all()); set.Next(); {
		s := set.At()
		want := samplesOf(t, s.Iterator(nil), mint, maxt)
		it, ok := s.(merge.Sampled).Samples()
		if !ok {
			continue
		}
		requireSamples(t, want, iterated(t, it))
		it, _ = s.(merge.Sampled).Samples()
		requireSeeks(t, want, it)
	}
}

// requireSeeks goes through the samples in steps of three, once to a time just before a sample's.
func requireSeeks(t testing.TB, want []sample, it chunkenc.Iterator) {
	t.Helper()
	for i := 0; i < len(want); i += 3 {
		at := want[i].t
		if i > 0 && want[i-1].t < at-1 {
			at--
		}
		require.NotEqual(t, chunkenc.ValNone, it.Seek(at))
		require.Equal(t, want[i].t, it.AtT())
		require.NotEqual(t, chunkenc.ValNone, it.Seek(at), "it does not go back")
		require.Equal(t, want[i].t, it.AtT())
	}
	if len(want) > 0 && want[len(want)-1].t < maxTime {
		require.Equal(t, chunkenc.ValNone, it.Seek(want[len(want)-1].t+1))
	}
}

// requireSamples compares to the bit; of histograms, in their compact form.
func requireSamples(t testing.TB, want, got []sample) {
	t.Helper()
	require.Len(t, got, len(want))
	for i, w := range want {
		g := got[i]
		// The plain comparisons are for speed: this runs a million times.
		if w.t != g.t || w.st != g.st || (w.h == nil) != (g.h == nil) || (w.fh == nil) != (g.fh == nil) {
			require.Equal(t, w, g)
		}
		switch {
		case w.h != nil:
			require.True(t, compact(w.h).Equals(compact(g.h)), "at %d: %s, want %s", w.t, g.h, w.h)
			require.Equal(t, isGauge(w.h.CounterResetHint) && !value.IsStaleNaN(w.h.Sum), isGauge(g.h.CounterResetHint))
		case w.fh != nil:
			require.True(t, compactFloat(w.fh).Equals(compactFloat(g.fh)), "at %d: %s, want %s", w.t, g.fh, w.fh)
			require.Equal(t, isGauge(w.fh.CounterResetHint) && !value.IsStaleNaN(w.fh.Sum), isGauge(g.fh.CounterResetHint))
		case math.Float64bits(w.v) != math.Float64bits(g.v):
			require.Equal(t, math.Float64bits(w.v), math.Float64bits(g.v), "value at %d", w.t)
		}
	}
}

func compact(h *histogram.Histogram) *histogram.Histogram {
	if value.IsStaleNaN(h.Sum) {
		return &histogram.Histogram{Sum: h.Sum}
	}
	return h.Copy().Compact(0)
}

func compactFloat(h *histogram.FloatHistogram) *histogram.FloatHistogram {
	if value.IsStaleNaN(h.Sum) {
		return &histogram.FloatHistogram{Sum: h.Sum}
	}
	return h.Copy().Compact(0)
}

func selectNames(t testing.TB, q storage.ChunkQuerier, hints *storage.SelectHints, ms ...*labels.Matcher) []string {
	t.Helper()
	set := q.Select(ctx, true, hints, ms...)
	out := []string{}
	for set.Next() {
		out = append(out, set.At().Labels().String())
	}
	require.NoError(t, set.Err())
	return out
}
