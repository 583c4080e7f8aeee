package merge

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/stretchr/testify/require"
)

// joined makes one chunk of some; ok is false if they have to be merged.
func joined(j *floatJoiner, chks ...chunkenc.Chunk) (m chunks.Meta, ok bool) {
	c := &cluster{}
	for i, chk := range chks {
		c.members = append(c.members, member{meta: chunks.Meta{Chunk: chk, MinTime: int64(i), MaxTime: int64(i)}}) // not looked at for more than overlaps
	}
	return j.join(c, minTime, maxTime, 0)
}

// requireHolds checks that a chunk has samples, as Prometheus and as we read it.
func requireHolds(t testing.TB, want []decoded, m chunks.Meta) {
	t.Helper()
	for _, it := range []chunkenc.Iterator{m.Chunk.Iterator(nil), Samples(m.Chunk, nil)} {
		got, failed := decode(it)
		require.False(t, failed)
		require.Equal(t, want, got)
	}
	require.Equal(t, len(want), m.Chunk.NumSamples())
	require.Equal(t, want[0].t, m.MinTime)
	require.Equal(t, want[len(want)-1].t, m.MaxTime)
}

// values are ways for a series to go on.
var values = []func(r *rand.Rand, v float64) float64{
	func(_ *rand.Rand, v float64) float64 { return v },
	func(r *rand.Rand, v float64) float64 { return v + float64(r.IntN(100)) },
	func(r *rand.Rand, _ float64) float64 { return math.Round(r.NormFloat64()*1000) / 10 },
	func(r *rand.Rand, _ float64) float64 { return r.NormFloat64() },
	func(r *rand.Rand, _ float64) float64 { return math.Float64frombits(r.Uint64()) },
	func(r *rand.Rand, v float64) float64 {
		return []float64{v, v, v, 0, math.Copysign(0, -1), math.Inf(1), math.NaN(), math.Float64frombits(value.StaleNaN)}[r.IntN(8)]
	},
}

func TestJoinedChunksHoldTheSamplesOfAll(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	var j floatJoiner // used again for all
	for range 3000 {
		next := values[r.IntN(len(values))]
		regular, at, v := r.IntN(2) == 0, r.Int64N(1<<42)-1<<41, 1000.0
		var all []decoded
		var chks []chunkenc.Chunk
		most := 1 + r.IntN(40)
		for range 1 + r.IntN(5) {
			begin := len(all)
			for range min(1+r.IntN(most), MaxFloats-begin) {
				all = append(all, decoded{at, math.Float64bits(v)})
				v = next(r, v)
				at += 15_000
				if !regular {
					at += 1 - 15_000 + []int64{15_000, r.Int64N(1 << 13), r.Int64N(1 << 17), r.Int64N(1 << 20), r.Int64N(1 << 40)}[r.IntN(5)]
				}
			}
			if len(all) > begin {
				chks = append(chks, xorChunk(t, all[begin:]...))
			}
		}
		m, ok := joined(&j, chks...)
		require.True(t, ok)
		requireHolds(t, all, m)

		j.begin() // What the writer knows at the end is what it would know if it had encoded every sample.
		for _, c := range chks {
			require.True(t, j.add(c.Bytes()))
		}
		for range 5 {
			v = next(r, v)
			all = append(all, decoded{at, math.Float64bits(v)})
			j.out.append(at, math.Float64bits(v))
			at += 1 + r.Int64N(30_000)
		}
		chk, err := chunkenc.FromData(chunkenc.EncXOR, j.out.chunk())
		require.NoError(t, err)
		requireHolds(t, all, chunks.Meta{Chunk: chk, MinTime: all[0].t, MaxTime: all[len(all)-1].t})
	}
}

// A chunk may use a window that it did not write, of all bits, as chunkenc's does when a chunk of equal values is continued by a new appender.
func withoutWindow() chunkenc.Chunk {
	var w xorWriter
	w.reset()
	w.leading, w.trailing = 0, 0
	for i := range int64(2 * minCopied) {
		w.append(200_000+i, uint64(i/4)<<33)
	}
	c, _ := chunkenc.FromData(chunkenc.EncXOR, w.chunk())
	return c
}

func TestChunksThatAreNotJoinedAreMerged(t *testing.T) {
	line := func(from int64, n int) chunkenc.Chunk {
		var s []decoded
		for i := range int64(n) {
			s = append(s, decoded{from + i, math.Float64bits(float64(i % 7))})
		}
		return xorChunk(t, s...)
	}
	first, overlapping := line(0, 30), line(29, 30)
	for name, tc := range map[string]struct {
		in         []chunkenc.Chunk
		mint, maxt int64
		window     int64
	}{
		"overlap":                       {in: []chunkenc.Chunk{first, overlapping}, maxt: maxTime},
		"one inside the other":          {in: []chunkenc.Chunk{line(0, 40), line(7, 3)}, maxt: maxTime},
		"begins too early":              {in: []chunkenc.Chunk{first, line(100, 30)}, mint: 3, maxt: maxTime},
		"ends too late":                 {in: []chunkenc.Chunk{first, line(100, 30)}, maxt: 120},
		"more than a chunk holds":       {in: []chunkenc.Chunk{line(0, 100), line(99, 1), line(100, 80)}, maxt: maxTime},
		"several windows":               {in: []chunkenc.Chunk{first, line(29, 1), line(30, 30)}, maxt: maxTime, window: 20},
		"goes back in time":             {in: []chunkenc.Chunk{first, xorChunk(t, decoded{40, 1}, decoded{50, 2}, decoded{45, 3}, decoded{60, 4})}, maxt: maxTime},
		"a window that was not written": {in: []chunkenc.Chunk{first, withoutWindow()}, maxt: maxTime},
	} {
		t.Run(name, func(t *testing.T) {
			c := &cluster{}
			var series []storage.ChunkSeries
			var raw [][]sample
			for _, chk := range tc.in {
				it := chk.Iterator(nil)
				all := read(t, it, it.Next())
				m := chunks.Meta{Chunk: chk, MinTime: all[0].t, MaxTime: all[len(all)-1].t}
				c.members = append(c.members, member{meta: m})
				series = append(series, listSeries(m))
				last := int64(minTime)
				raw = append(raw, slices.DeleteFunc(all, func(s sample) bool {
					back := s.t <= last
					last = max(last, s.t)
					return back
				}))
			}
			_, ok := new(floatJoiner).join(c, tc.mint, tc.maxt, tc.window)
			require.False(t, ok)
			o := EncodeOptions{JoinBelow: 200, Window: tc.window}
			metas, got := readChunks(t, Chunks(series, tc.mint, tc.maxt, o), tc.mint, tc.maxt)
			requireEqual(t, model(tc.mint, tc.maxt, raw...), got, false)
			if name != "goes back in time" {
				require.NoError(t, new(Comparer).Compare(series, tc.mint, tc.maxt, metas, o))
			}
		})
	}
}

// TestCompareFindsWhatAJoinedChunkHasWrong compares chunks that follow one another with one that has nearly the same samples.
func TestCompareFindsWhatAJoinedChunkHasWrong(t *testing.T) {
	meta := func(first, last int64, s ...decoded) chunks.Meta {
		return chunks.Meta{Chunk: xorChunk(t, s...), MinTime: first, MaxTime: last}
	}
	negative := math.Float64bits(math.Copysign(0, -1))
	in := listSeries(meta(1, 2, decoded{1, 10}, decoded{2, 20}), meta(5, 8, decoded{5, negative}, decoded{8, 40}))
	for name, out := range map[string]chunks.Meta{
		"":                   meta(1, 8, decoded{1, 10}, decoded{2, 20}, decoded{5, negative}, decoded{8, 40}),
		"another bit":        meta(1, 8, decoded{1, 10}, decoded{2, 20}, decoded{5, 0}, decoded{8, 40}),
		"another time":       meta(1, 8, decoded{1, 10}, decoded{2, 20}, decoded{6, negative}, decoded{8, 40}),
		"one less":           meta(1, 8, decoded{1, 10}, decoded{2, 20}, decoded{8, 40}),
		"the last is gone":   meta(1, 8, decoded{1, 10}, decoded{2, 20}, decoded{5, negative}),
		"one more":           meta(1, 8, decoded{1, 10}, decoded{2, 20}, decoded{5, negative}, decoded{8, 40}, decoded{9, 50}),
		"begins earlier":     meta(0, 8, decoded{1, 10}, decoded{2, 20}, decoded{5, negative}, decoded{8, 40}),
		"ends earlier":       meta(1, 5, decoded{1, 10}, decoded{2, 20}, decoded{5, negative}, decoded{8, 40}),
		"in another's place": meta(1, 8, decoded{1, 20}, decoded{2, 10}, decoded{5, negative}, decoded{8, 40}),
	} {
		err := new(Comparer).Compare([]storage.ChunkSeries{in}, 0, 10, []chunks.Meta{out}, EncodeOptions{})
		if name == "" {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, ErrDiffers, name)
		}
	}
}

// Samples of chunks that follow one another are those of the output only where none is hidden by another and none is out of range.
func TestCompareDoesNotTakeWhatFollowsForWhatIsMerged(t *testing.T) {
	chunk := func(s ...decoded) chunks.Meta {
		return chunks.Meta{Chunk: xorChunk(t, s...), MinTime: s[0].t, MaxTime: s[len(s)-1].t}
	}
	for name, c := range map[string]struct {
		in  []chunks.Meta
		out chunks.Meta
	}{
		"the same time in two": {
			in:  []chunks.Meta{chunk(decoded{1, 10}, decoded{5, 20}), chunk(decoded{5, 30}, decoded{8, 40})},
			out: chunk(decoded{1, 10}, decoded{5, 20}, decoded{5, 30}, decoded{8, 40}),
		},
		"behind the range": {
			in:  []chunks.Meta{chunk(decoded{1, 10}, decoded{2, 20}), chunk(decoded{5, 30}, decoded{12, 40})},
			out: chunk(decoded{1, 10}, decoded{2, 20}, decoded{5, 30}, decoded{12, 40}),
		},
		"before the range": {
			in:  []chunks.Meta{chunk(decoded{-1, 10}, decoded{2, 20}), chunk(decoded{5, 30}, decoded{8, 40})},
			out: chunk(decoded{-1, 10}, decoded{2, 20}, decoded{5, 30}, decoded{8, 40}),
		},
	} {
		err := new(Comparer).Compare([]storage.ChunkSeries{listSeries(c.in...)}, 0, 10, []chunks.Meta{c.out}, EncodeOptions{})
		require.ErrorIs(t, err, ErrDiffers, name)
	}
}

// FuzzJoin joins anything that may be a chunk: what is joined is what Prometheus reads in each of them.
func FuzzJoin(f *testing.F) {
	r := rand.New(rand.NewPCG(9, 10))
	for _, n := range []int{1, 2, 3, 30} {
		f.Add(randomXOR(f, r, 30).Bytes(), xorChunk(f, decoded{1 << 42, 1}).Bytes(), withoutWindow().Bytes())
		f.Add(xorChunk(f, decoded{-1 << 50, 7}).Bytes(), randomXOR(f, r, n).Bytes(), randomXOR(f, r, 40).Bytes())
	}
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		var chks []chunkenc.Chunk
		var want []decoded
		for _, raw := range [][]byte{a, b, c} {
			if len(raw) < xorHeader {
				return // No chunk at all.
			}
			chk, err := chunkenc.FromData(chunkenc.EncXOR, raw)
			require.NoError(t, err)
			all, _ := decode(chk.Iterator(nil))
			chks, want = append(chks, chk), append(want, all...)
		}
		if m, ok := joined(new(floatJoiner), chks...); ok {
			requireHolds(t, want, m)
		}
	})
}
