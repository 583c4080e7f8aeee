package engine

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
)

func newestSamples(e *Engine) [3]*int64 {
	w := e.Layers().Watermarks
	return [3]*int64{w.NewestSample, w.NewestSpeedSample, w.NewestBatchSample}
}

func TestTheNewestSampleOfEachLayer(t *testing.T) {
	path := t.TempDir()
	e := startEngine(t, testConfig(t, path))
	require.Equal(t, [3]*int64{}, newestSamples(e), "there are none")

	first := time.Now().UnixMilli() - 5000
	write(t, e, "a", point{first - 1000, 1}, point{first, 2}, point{first - 10*dayMillis, 3})
	require.Equal(t, [3]*int64{&first, &first, nil}, newestSamples(e))
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
	require.Equal(t, &first, e.Layers().Watermarks.NewestSample, "in a local block or, by now, in the bucket")

	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, [3]*int64{&first, nil, &first}, newestSamples(e), "all is in the bucket")

	older := first - 2000
	write(t, e, "a", point{older, 4})
	require.Equal(t, [3]*int64{&first, &older, &first}, newestSamples(e))
	require.NoError(t, e.RunBatch(t.Context()))
	newest := e.Layers().Watermarks.NewestSample
	require.NotNil(t, newest)
	stopEngine(t, e)

	e = startEngine(t, testConfig(t, path))
	require.NotNil(t, e.Layers().Watermarks.NewestBatchSample, "after a restart, too")
	require.Nil(t, e.Layers().Watermarks.NewestSpeedSample)
	raw, err := json.Marshal(e.Layers().Watermarks)
	require.NoError(t, err)
	require.Contains(t, string(raw), `"newestSpeedSample":null`)
}

func TestTheNewestSampleOfABlock(t *testing.T) {
	const hour = int64(60 * 60 * 1000)
	now := time.UnixMilli(1001 * hour)
	made := func(level int, from, to int64, parents ...tsdb.BlockDesc) block.Meta {
		var m block.Meta
		m.MinTime, m.MaxTime = from, to
		m.Compaction.Parents = parents
		m.SetExtension(level, 1, 1)
		return m
	}
	of := func(from, to int64) tsdb.BlockDesc { return tsdb.BlockDesc{MinTime: from, MaxTime: to} }
	for _, row := range []struct {
		name string
		meta block.Meta
		want int64
	}{
		{"level 0 ends with its newest sample", made(0, 1000*hour, 1000*hour+7), 1000*hour + 6},
		{"even in the future", made(0, 1000*hour, 1001*hour+7), 1001*hour + 6},
		{"compacted from level 0", made(1, 1000*hour, 1002*hour, of(1000*hour, 1000*hour+7), of(1000*hour, 1000*hour+9)), 1000*hour + 8},
		{"a part of a longer one", made(1, 998*hour, 1000*hour, of(900*hour, 1000*hour+9)), 1000*hour - 1},
		{"compacted twice", made(2, 960*hour, 984*hour, of(960*hour, 962*hour), of(962*hour, 964*hour)), 964*hour - 1},
		{"compacted twice, in a window that is not over", made(1, 1000*hour, 1002*hour, of(1000*hour, 1002*hour), of(1000*hour, 1000*hour+9)), 1001 * hour},
		{"a foreign one", block.Meta{BlockMeta: tsdb.BlockMeta{MinTime: 998 * hour, MaxTime: 1000 * hour}}, 1000*hour - 1},
		{"a window that has not begun", made(1, 1002*hour, 1004*hour), 1002 * hour},
	} {
		t.Run(row.name, func(t *testing.T) {
			require.Equal(t, row.want, newestIn(row.meta, now))
			require.Equal(t, row.want, newestBatch([]block.Meta{made(0, math.MinInt64/2, 5), row.meta}, now))
		})
	}
	require.Equal(t, int64(minTime), newestBatch(nil, now))
}
