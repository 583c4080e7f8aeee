package speed

import (
	"encoding/binary"
	"math"
	"math/rand"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

type tv struct {
	t int64
	v float64
}

// requireSameXOR checks that our writer makes the bytes of Prometheus's, after every sample.
func requireSameXOR(t testing.TB, x *xorWriter, in []tv) {
	t.Helper()
	chk := chunkenc.NewXORChunk()
	app, err := chk.Appender()
	require.NoError(t, err)
	var b blocks
	grown := 0
	for i, s := range in {
		app.Append(0, s.t, s.v)
		grown += x.append(&b, s.t, s.v)
		require.Equal(t, chk.Bytes(), x.bytes(&b, nil), "after sample %d, %v", i, s)
		require.Equal(t, len(chk.Bytes()), x.size())
		require.Equal(t, int(b.used)*blockSize, grown, "growth is reported")
	}
	single := chunkenc.NewXORChunk()
	app, err = single.Appender()
	require.NoError(t, err)
	app.Append(0, in[len(in)-1].t, in[len(in)-1].v)
	require.Equal(t, single.Bytes(), x.single())
	x.close(&b)
	used := b.used
	for range used {
		b.take()
	}
	require.Equal(t, used, b.used, "every block was given back")
}

func TestXORWriterWritesPrometheusBytes(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	var x xorWriter // Used again for all.
	for range 300 {
		at := r.Int63n(1<<42) - 1<<41
		v := 0.0
		var in []tv
		for range 1 + r.Intn(200) {
			in = append(in, tv{at, v})
			at += 1 + []int64{15000, 15000, r.Int63n(1 << 13), r.Int63n(1 << 17), r.Int63n(1 << 20), r.Int63n(1 << 40)}[r.Intn(6)]
			v = []float64{v, v + 1, r.NormFloat64(), math.Float64frombits(r.Uint64()), math.Float64frombits(value.StaleNaN)}[r.Intn(5)]
		}
		requireSameXOR(t, &x, in)
	}
}

func TestXORWriterExtremes(t *testing.T) {
	all := math.Float64frombits(math.MaxUint64)
	for name, in := range map[string][]tv{
		"whole range of time":    {{math.MinInt64, 0}, {0, 1}, {math.MaxInt64, 2}},
		"all bits change":        {{1, 0}, {2, all}, {3, 0}, {4, all}},
		"borders of delta sizes": {{0, 0}, {1, 0}, {2 + 8192, 0}, {3 + 2*8192 - 8191, 0}, {1 << 20, 1}, {1 << 21, 1}, {1<<22 + 524288, 1}},
	} {
		t.Run(name, func(t *testing.T) { requireSameXOR(t, &xorWriter{}, in) })
	}
}

func FuzzXORWriter(f *testing.F) {
	f.Add([]byte("0123456789abcdef0123456789abcdefxxxxxxxxyyyyyyyy"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var in []tv
		at := int64(math.MinInt64)
		for len(raw) >= 16 {
			delta := binary.LittleEndian.Uint64(raw) >> (raw[0] & 63)
			next := at + int64(delta)
			if next <= at && len(in) > 0 {
				break
			}
			at = next
			in = append(in, tv{at, math.Float64frombits(binary.LittleEndian.Uint64(raw[8:]))})
			raw = raw[16:]
		}
		if len(in) > 0 {
			requireSameXOR(t, &xorWriter{}, in)
		}
	})
}
