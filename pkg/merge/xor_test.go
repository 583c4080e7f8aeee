package merge

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"
)

type decoded struct {
	t int64
	v uint64
}

func decode(it chunkenc.Iterator) (out []decoded, failed bool) {
	out = []decoded{}
	for it.Next() == chunkenc.ValFloat {
		t, v := it.At()
		out = append(out, decoded{t, math.Float64bits(v)})
	}
	return out, it.Err() != nil
}

func xorChunk(t testing.TB, samples ...decoded) chunkenc.Chunk {
	t.Helper()
	c := chunkenc.NewXORChunk()
	app, err := c.Appender()
	require.NoError(t, err)
	for _, s := range samples {
		app.Append(0, s.t, math.Float64frombits(s.v))
	}
	return c
}

// randomXOR is a chunk with all widths of times and values.
func randomXOR(t testing.TB, r *rand.Rand, n int) *chunkenc.XORChunk {
	c := chunkenc.NewXORChunk()
	app, err := c.Appender()
	require.NoError(t, err)
	at, v := r.Int64N(1<<42)-1<<41, 0.0
	for range n {
		app.Append(0, at, v)
		at += 1 + []int64{15000, 15000, 15000, r.Int64N(1 << 13), r.Int64N(1 << 17), r.Int64N(1 << 20), r.Int64N(1 << 40)}[r.IntN(7)]
		v = []float64{v, v + 1, v + 0.1, r.NormFloat64(), math.Float64frombits(r.Uint64()), math.Float64frombits(value.StaleNaN)}[r.IntN(6)]
	}
	return c
}

func TestXORChunksAreReadAsByPrometheus(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var it chunkenc.Iterator // Used again for all.
	for range 500 {
		c := randomXOR(t, r, 1+r.IntN(200))
		want, _ := decode(c.Iterator(nil))
		it = Samples(c, it)
		got, failed := decode(it)
		require.False(t, failed)
		require.Equal(t, want, got)
		require.Equal(t, chunkenc.ValNone, it.Next())

		at := want[r.IntN(len(want))].t - r.Int64N(3) + 1
		theirs, ours := c.Iterator(nil), Samples(c, it)
		for range 3 {
			vt := theirs.Seek(at)
			require.Equal(t, vt, ours.Seek(at))
			require.Equal(t, theirs.AtT(), ours.AtT())
			require.Equal(t, theirs.Next(), ours.Next())
			at += r.Int64N(100_000)
		}
	}
}

// Prometheus's iterator makes numbers of what is behind the end of a chunk that was cut off; ours says that it ended.
func TestDamagedXORChunksAreReadUpToTheDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		raw := append([]byte(nil), randomXOR(t, r, 1+r.IntN(30)).Bytes()...)
		if r.IntN(2) == 0 {
			raw = raw[:2+r.IntN(len(raw)-1)]
		} else {
			raw[r.IntN(len(raw))] ^= 1 << r.IntN(8)
		}
		requireReadUpToDamage(t, raw)
	}
}

func requireReadUpToDamage(t *testing.T, raw []byte) {
	t.Helper()
	c, err := chunkenc.FromData(chunkenc.EncXOR, raw)
	require.NoError(t, err)
	want, _ := decode(c.Iterator(nil))
	got, failed := decode(Samples(c, nil))
	require.LessOrEqual(t, len(got), len(want))
	require.Equal(t, want[:len(got)], got)
	require.Equal(t, len(got) < c.NumSamples(), failed)
}

func FuzzXORChunk(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, n := range []int{1, 2, 3, 30} {
		f.Add(randomXOR(f, r, n).Bytes())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) < xorHeader {
			return // No chunk at all.
		}
		requireReadUpToDamage(t, raw)
	})
}

func TestOtherEncodingsAreReadByTheirOwn(t *testing.T) {
	c := chunkenc.NewHistogramChunk()
	it := Samples(c, &xorIterator{})
	require.NotNil(t, it)
	require.Equal(t, chunkenc.ValNone, it.Next())
}

func BenchmarkXORIterator(b *testing.B) {
	c := chunkenc.NewXORChunk()
	app, err := c.Appender()
	require.NoError(b, err)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range int64(120) {
		app.Append(0, i*15_000, math.Round(r.Float64()*1000)/10)
	}
	for name, open := range map[string]func(chunkenc.Iterator) chunkenc.Iterator{
		"ours":       func(it chunkenc.Iterator) chunkenc.Iterator { return Samples(c, it) },
		"prometheus": c.Iterator,
	} {
		b.Run(name, func(b *testing.B) {
			var it chunkenc.Iterator
			for b.Loop() {
				n := 0
				for it = open(it); it.Next() == chunkenc.ValFloat; {
					n++
				}
				require.Equal(b, c.NumSamples(), n)
			}
		})
	}
}
