package merge

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/stretchr/testify/require"
)

// TestCompareAgrees runs Compare beside Chunks: what is right passes, and what is changed in any way does not.
func TestCompareAgrees(t *testing.T) {
	var c Comparer
	eachRandom(t, 60, func(t *testing.T, g *generator, _ [][]sample, series []storage.ChunkSeries) {
		mint, maxt := int64(minTime), int64(maxTime)
		if g.Intn(2) == 0 {
			mint, maxt = g.Int63n(100), 50+g.Int63n(300)
		}
		o := EncodeOptions{StartTimestamps: g.Intn(2) == 0, JoinBelow: []int{0, 50}[g.Intn(2)]}
		metas, got := readChunks(t, Chunks(series, mint, maxt, o), mint, maxt)
		require.NoError(t, c.Compare(series, mint, maxt, metas, o))
		if len(metas) == 0 {
			return
		}
		differs := func(what string, changed []chunks.Meta) {
			t.Helper()
			require.ErrorIs(t, c.Compare(series, mint, maxt, changed, o), ErrDiffers, what)
		}
		i := g.Intn(len(metas))
		differs("a chunk is missing", slices.Delete(slices.Clone(metas), i, i+1))
		differs("a chunk is there twice", slices.Insert(slices.Clone(metas), i, metas[i]))
		differs("everything is missing", nil)

		n := g.Intn(len(got))
		differs("a sample is missing", encodeAll(t, slices.Delete(slices.Clone(got), n, n+1), o))
		changed := slices.Clone(got)
		changed[n] = g.other(changed[n])
		differs("a sample is another", encodeAll(t, changed, o))
		changed = slices.Clone(got)
		if n+1 == len(got) || got[n+1].t > got[n].t+1 {
			changed[n].t++
			differs("a sample is at another time", encodeAll(t, changed, o))
		}
		wrong := slices.Clone(metas)
		wrong[i].MaxTime++
		differs("a chunk ends later", wrong)
	})
}

// other returns a sample of the same time that is not s.
func (g *generator) other(s sample) sample {
	if s.vt() != chunkenc.ValFloat {
		return sample{st: s.st, t: s.t, v: 1}
	}
	v := s.v + 1
	if math.IsNaN(v) || math.IsInf(v, 0) {
		v = 1
	}
	return sample{st: s.st, t: s.t, v: v}
}

func encodeAll(t *testing.T, samples []sample, o EncodeOptions) (metas []chunks.Meta) {
	e := NewEncoder(o)
	for _, s := range samples {
		meta, ok, err := encode(e, s)
		require.NoError(t, err)
		if ok {
			metas = append(metas, meta)
		}
	}
	if meta, ok := e.Flush(); ok {
		metas = append(metas, meta)
	}
	return metas
}

func TestComparePassesErrorsOn(t *testing.T) {
	var c Comparer
	broken := errors.New("broken")
	series := &storage.ChunkSeriesEntry{ChunkIteratorFn: func(chunks.Iterator) chunks.Iterator { return failing{broken} }}
	require.ErrorIs(t, c.Compare([]storage.ChunkSeries{series}, 0, 1, nil, EncodeOptions{}), broken)
}

type failing struct{ err error }

func (failing) At() chunks.Meta { return chunks.Meta{} }
func (failing) Next() bool      { return false }
func (f failing) Err() error    { return f.err }

// counters makes one chunk of histograms that rise, with a header.
func counters(t *testing.T, header chunkenc.CounterResetHeader, from int64, n int) chunks.Meta {
	e := NewEncoder(EncodeOptions{})
	for i := range int64(n) {
		h := &histogram.Histogram{Schema: 1, Count: uint64(i + 1), ZeroCount: uint64(i + 1), Sum: float64(i)}
		_, done, err := e.Histogram(0, from+i, h)
		require.NoError(t, err)
		require.False(t, done)
	}
	meta, _ := e.Flush()
	meta.Chunk.Bytes()[2] = meta.Chunk.Bytes()[2]&^chunkenc.CounterResetHeaderMask | byte(header)
	return meta
}

// TestResetHeaders says when a chunk may keep what it says of the chunk before it.
func TestResetHeaders(t *testing.T) {
	const not, reset, unknown, gauge = chunkenc.NotCounterReset, chunkenc.CounterReset, chunkenc.UnknownCounterReset, chunkenc.GaugeType
	type list = []chunks.Meta
	for _, tc := range []struct {
		name   string
		inputs []list
		want   []chunkenc.CounterResetHeader
	}{
		{"the first of an input says nothing of what is before the input", []list{{counters(t, not, 0, 150), counters(t, not, 200, 150)}}, []chunkenc.CounterResetHeader{unknown, not}},
		{"nor of the other input's", []list{{counters(t, not, 0, 150)}, {counters(t, reset, 200, 150), counters(t, reset, 400, 150)}}, []chunkenc.CounterResetHeader{unknown, unknown, reset}},
		{"a chunk of another input comes between", []list{{counters(t, not, 0, 150), counters(t, not, 400, 150)}, {counters(t, not, 200, 150)}}, []chunkenc.CounterResetHeader{unknown, unknown, unknown}},
		{"the one before is encoded anew", []list{{counters(t, not, 0, 150), counters(t, not, 400, 150)}, {counters(t, not, 149, 1)}}, []chunkenc.CounterResetHeader{unknown, reset, unknown}},
		{"gauges know of no resets", []list{{counters(t, gauge, 0, 150)}, {counters(t, gauge, 200, 150)}}, []chunkenc.CounterResetHeader{gauge, gauge}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var (
				series []storage.ChunkSeries
				before [][]byte
				got    []chunkenc.CounterResetHeader
				c      Comparer
			)
			for _, in := range tc.inputs {
				series = append(series, listSeries(in...))
				for _, m := range in {
					before = append(before, bytes.Clone(m.Chunk.Bytes()))
				}
			}
			metas, _ := readChunks(t, Chunks(series, minTime, maxTime, EncodeOptions{}), minTime, maxTime)
			for _, m := range metas {
				got = append(got, m.Chunk.(*chunkenc.HistogramChunk).GetCounterResetHeader())
			}
			require.Equal(t, tc.want, got)
			require.NoError(t, c.Compare(series, minTime, maxTime, metas, EncodeOptions{}))
			i := 0
			for _, in := range tc.inputs {
				for _, m := range in {
					require.Equal(t, before[i], m.Chunk.Bytes(), "inputs are not written to")
					i++
				}
			}
		})
	}
}
