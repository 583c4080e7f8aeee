//go:build unix

package batch

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
)

// fleet is the metrics of many machines in one window: series with the usual labels, counters and gauges, or histograms.
type fleet struct {
	series         int
	mint, interval int64
	samples        int
	own            string // not empty: each series has a label value of its own that begins so
	pods           string // not empty: four series of five have a label value of their own that begins so
	every          int    // not 0: only one of so many series is there
	histograms     bool
}

func (f fleet) labels(i int) labels.Labels {
	if f.own != "" {
		return labels.FromStrings("__name__", "m", "own", fmt.Sprint(f.own, i))
	}
	instance := fmt.Sprintf("10.0.%03d.%02d:9100", i/20000, i%100)
	if f.pods != "" && i%5 > 0 {
		instance = fmt.Sprintf("%s-%05d:9100", f.pods, i)
	}
	return labels.FromStrings("__name__", fmt.Sprintf("node_metric_%03d_total", i/100%200), "cluster", "eu-1", "instance", instance,
		"job", "node", "mode", fmt.Sprintf("m%02d", i/20000%8))
}

func (f fleet) sorted() (all []labels.Labels) {
	for i := 0; i < f.series; i += max(1, f.every) {
		all = append(all, f.labels(i))
	}
	slices.SortFunc(all, labels.Compare)
	return all
}

func (f fleet) Symbols() index.StringIter {
	seen := map[string]struct{}{}
	for i := range f.series {
		f.labels(i).Range(func(l labels.Label) { seen[l.Name], seen[l.Value] = struct{}{}, struct{}{} })
	}
	return index.NewStringListIter(slices.Sorted(maps.Keys(seen)))
}

func (f fleet) ChunkQuerier(int64, int64) (storage.ChunkQuerier, error) {
	return fleetQuerier{ChunkQuerier: storage.NoopChunkedQuerier(), fleet: f}, nil
}

type fleetQuerier struct {
	storage.ChunkQuerier
	fleet
}

func (q fleetQuerier) Select(context.Context, bool, *storage.SelectHints, ...*labels.Matcher) storage.ChunkSeriesSet {
	return &fleetSet{fleet: q.fleet, all: q.sorted(), i: -1}
}

type fleetSet struct {
	storage.ChunkSeriesSet
	fleet
	all []labels.Labels
	i   int
}

func (s *fleetSet) Next() bool { s.i++; return s.i < len(s.all) }
func (*fleetSet) Err() error   { return nil }

func (s *fleetSet) At() storage.ChunkSeries {
	i := s.i
	return &storage.ChunkSeriesEntry{
		Lset: s.all[i],
		ChunkIteratorFn: func(chunks.Iterator) chunks.Iterator {
			return storage.NewListChunkSeriesIterator(s.chunks(i%2 == 0, rand.New(rand.NewPCG(uint64(s.mint), uint64(i))))...)
		},
	}
}

// chunks are those of a counter or of a gauge that does not change.
func (f fleet) chunks(counter bool, r *rand.Rand) (chks []chunks.Meta) {
	value := float64(r.IntN(1000))
	for n := 0; n < f.samples; {
		m := chunks.Meta{Chunk: chunkenc.NewXORChunk(), MinTime: f.mint + int64(n)*f.interval}
		if f.histograms {
			m.Chunk = chunkenc.NewHistogramChunk()
		}
		app, _ := m.Chunk.Appender()
		for range min(120, f.samples-n) {
			m.MaxTime = f.mint + int64(n)*f.interval
			if counter {
				value += float64(r.IntN(100))
			}
			if f.histograms {
				_, _, _, _ = app.AppendHistogram(nil, 0, m.MaxTime, tsdbutil.GenerateTestHistogram(int64(value)), false)
			} else {
				app.Append(0, m.MaxTime, value)
			}
			n++
		}
		chks = append(chks, m)
	}
	return chks
}

// dayOfBlocks writes the twelve blocks of a day.
func dayOfBlocks(tb testing.TB, dir string, series int) (metas []block.Meta) {
	return blocksOf(tb, dir, 12, 1, 2*hour, func(int) fleet { return fleet{series: series, interval: 15_000, samples: 480} })
}

// blocksOf writes blocks of a level that follow one another, each one so long.
func blocksOf(tb testing.TB, dir string, n, level int, width time.Duration, input func(i int) fleet) (metas []block.Meta) {
	tb.Helper()
	for i := range n {
		from := time.UnixMilli(0).Add(1000*day + time.Duration(i)*width)
		metas = append(metas, writeFleet(tb, dir, testMeta(fmt.Sprint(strings.Repeat("0", i), i), level, uint64(i), uint64(i), from, from, from.Add(width)), input(i)))
	}
	return metas
}

// writeFleet writes a block in whose window a fleet begins.
func writeFleet(tb testing.TB, dir string, m block.Meta, f fleet) block.Meta {
	tb.Helper()
	f.mint += m.MinTime
	m, err := block.Write(context.Background(), dir, m, []block.Input{f}, block.WriteOptions{SegmentSize: 64 << 20})
	require.NoError(tb, err)
	return m
}
