package block

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"
)

// benchInput makes series with one full chunk each, as a generation has them after half an hour.
func benchInput(n int) memInput {
	rnd := rand.New(rand.NewPCG(71, 1))
	in := make(memInput, 0, n)
	for i := range n {
		s := memSeries{labels: labels.FromStrings("__name__", fmt.Sprintf("metric_%02d", i%100), "instance",
			fmt.Sprintf("host-%04d:9100", i/100), "job", "node", "region", "eu-west-1", "zone", fmt.Sprint(i%3))}
		v := rnd.Float64() * 1e6
		for j := range int64(120) {
			v += float64(rnd.IntN(100))
			s.samples = append(s.samples, sample{t: j*15_000 + rnd.Int64N(20), v: v})
		}
		in = append(in, s)
	}
	sortSeries(in)
	return in
}

func benchBlock(b *testing.B, n int) (string, Meta) {
	b.Helper()
	dir, m := writeBlock(b, benchInput(n))
	b.ReportMetric(float64(m.Size())/float64(m.Stats.NumSamples), "B/sample")
	return dir, m
}

// BenchmarkCompact writes a block of the samples of another one, chunks being copied.
func BenchmarkCompact(b *testing.B) {
	dir, m := benchBlock(b, 20_000)
	in, err := OpenLocal(dir)
	require.NoError(b, err)
	defer in.Close()
	b.ReportAllocs()
	for b.Loop() {
		out := testMeta(b, 0, hour, 1, 1, 1)
		_, err := Write(b.Context(), b.TempDir(), out, []Input{in}, WriteOptions{SegmentSize: 64 << 20})
		require.NoError(b, err)
	}
	b.ReportMetric(float64(m.Stats.NumSamples)*float64(b.N)/b.Elapsed().Seconds(), "samples/s")
}

// BenchmarkSelect reads all samples of 1 % of the series.
func BenchmarkSelect(b *testing.B) {
	dir, m := benchBlock(b, 20_000)
	local, err := OpenLocal(dir)
	require.NoError(b, err)
	defer local.Close()
	cache := NewCache(1<<30, nil)
	defer cache.Close()
	warm, err := OpenBucket(b.Context(), uploaded(b, dir), m.ULID, cache)
	require.NoError(b, err)
	for name, block := range map[string]*Block{"local": local, "warm": warm} {
		b.Run(filepath.Base(name), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				require.Equal(b, 200*120, countSamples(b, block, eq("__name__", "metric_42")))
			}
		})
	}
}

func countSamples(b *testing.B, block *Block, ms ...*labels.Matcher) (n int) {
	b.Helper()
	q, err := block.ChunkQuerier(0, hour)
	require.NoError(b, err)
	defer q.Close()
	set := q.Select(b.Context(), true, &storage.SelectHints{End: hour}, ms...)
	var it chunkenc.Iterator
	for set.Next() {
		for chks := set.At().Iterator(nil); chks.Next(); {
			it = chks.At().Chunk.Iterator(it)
			for it.Next() != chunkenc.ValNone {
				n++
			}
		}
	}
	require.NoError(b, set.Err())
	return n
}
