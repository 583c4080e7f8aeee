package merge

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

func isGone(gone []Interval, t int64) bool {
	for _, i := range gone {
		if i.Overlaps(t, t) {
			return true
		}
	}
	return false
}

func TestWithoutLeavesTheOtherSamples(t *testing.T) {
	eachRandom(t, 150, func(t *testing.T, g *generator, raw [][]sample, series []storage.ChunkSeries) {
		var asked []Interval
		for range g.Intn(4) {
			from := g.Int63n(500) - 20
			asked = append(asked, Interval{from, from + g.Int63n(200)})
		}
		gone := Union(append([]Interval(nil), asked...))
		for i := range series {
			var want []sample
			for _, s := range model(minTime, maxTime, raw[i]) {
				if !isGone(asked, s.t) {
					want = append(want, s)
				}
			}
			metas, got := readChunks(t, Without(series[i].Iterator(nil), gone), minTime, maxTime)
			requireEqual(t, want, got, g.withST)
			it := Series(listSeries(metas...)).Iterator(nil)
			requireTruthfulHints(t, read(t, it, it.Next()))
		}
	})
}

// What is not cut keeps its bytes: nothing is decoded for the sake of it.
func TestWithoutPassesOnWhatIsNotCut(t *testing.T) {
	var metas []chunks.Meta
	for i := range int64(4) {
		chk := chunkenc.NewXORChunk()
		app, err := chk.Appender()
		require.NoError(t, err)
		for k := range int64(10) {
			app.Append(0, i*100+k, float64(k))
		}
		metas = append(metas, chunks.Meta{Ref: chunks.ChunkRef(i), Chunk: chk, MinTime: i * 100, MaxTime: i*100 + 9})
	}
	unread := chunks.Meta{MinTime: 100, MaxTime: 109} // left out whole, so that its data is not missed
	src := storage.NewListChunkSeriesIterator(metas[0], unread, metas[2], metas[3])
	it := Without(src, []Interval{{100, 150}, {205, 205}})
	require.True(t, it.Next())
	require.Same(t, metas[0].Chunk, it.At().Chunk)
	require.True(t, it.Next())
	require.Equal(t, 9, it.At().Chunk.NumSamples())
	require.True(t, it.Next())
	require.Same(t, metas[3].Chunk, it.At().Chunk)
	require.False(t, it.Next())
	require.NoError(t, it.Err())

	it = Without(storage.NewListChunkSeriesIterator(unread), []Interval{{105, 150}})
	require.False(t, it.Next())
	require.ErrorIs(t, it.Err(), errNoData)
}

func TestUnionJoinsWhatTouches(t *testing.T) {
	for _, tc := range []struct{ in, want []Interval }{
		{nil, nil},
		{[]Interval{{5, 7}, {1, 4}}, []Interval{{1, 7}}},
		{[]Interval{{6, 7}, {1, 4}}, []Interval{{1, 4}, {6, 7}}},
		{[]Interval{{minTime, maxTime}, {3, 4}, {maxTime, maxTime}}, []Interval{{minTime, maxTime}}},
		{[]Interval{{1, 10}, {2, 3}, {11, 11}}, []Interval{{1, 11}}},
	} {
		require.Equal(t, tc.want, Union(append([]Interval(nil), tc.in...)))
	}
}

func TestWithAllTakesNewestBack(t *testing.T) {
	ctx := WithNewest(context.Background())
	require.True(t, NewestOnly(ctx))
	require.False(t, NewestOnly(WithAll(ctx)))
	require.False(t, NewestOnly(WithAll(context.Background())))
}
