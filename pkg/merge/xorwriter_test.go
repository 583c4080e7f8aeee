package merge

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"
)

func TestXORWriterWritesWhatPrometheusDoes(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	all := uint64(math.MaxUint64)
	chks := []chunkenc.Chunk{
		xorChunk(t, decoded{math.MinInt64, 0}, decoded{0, 1}, decoded{math.MaxInt64, 2}),
		xorChunk(t, decoded{1, 0}, decoded{2, all}, decoded{3, 0}, decoded{4, all}),
		xorChunk(t, decoded{0, 0}, decoded{1, 0}, decoded{2 + 8192, 0}, decoded{3 + 2*8192 - 8191, 0}, decoded{1 << 20, 1}, decoded{1 << 21, 1}, decoded{1<<22 + 524288, 1}),
	}
	for range 500 {
		chks = append(chks, randomXOR(t, r, 1+r.IntN(200)))
	}
	var w xorWriter // used again for all
	for _, chk := range chks {
		w.reset()
		samples, _ := decode(chk.Iterator(nil))
		for _, s := range samples {
			w.append(s.t, s.v)
		}
		require.Equal(t, chk.Bytes(), w.chunk())
	}
}
