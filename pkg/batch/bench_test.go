//go:build unix

package batch

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
)

// fleet is the metrics of many machines in one window: series with the usual labels, counters and gauges.
type fleet struct {
	series         int
	mint, interval int64
	samples        int
	own            string // not empty: each series has a label value of its own that begins so
}

func (f fleet) labels(i int) labels.Labels {
	if f.own != "" {
		return labels.FromStrings("__name__", "m", "own", fmt.Sprint(f.own, i))
	}
	return labels.FromStrings("__name__", fmt.Sprintf("node_metric_%03d_total", i/100%200), "cluster", "eu-1", "instance", fmt.Sprintf("10.0.%03d.%02d:9100", i/20000, i%100),
		"job", "node", "mode", fmt.Sprintf("m%02d", i/20000%8))
}

func (f fleet) sorted() []labels.Labels {
	all := make([]labels.Labels, f.series)
	for i := range all {
		all[i] = f.labels(i)
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
	return &fleetSet{fleet: q.fleet, all: q.sorted(), i: -1, rand: rand.New(rand.NewSource(q.mint))}
}

type fleetSet struct {
	storage.ChunkSeriesSet
	fleet
	all  []labels.Labels
	i    int
	rand *rand.Rand
}

func (s *fleetSet) Next() bool { s.i++; return s.i < len(s.all) }
func (*fleetSet) Err() error   { return nil }

func (s *fleetSet) At() storage.ChunkSeries {
	i, seed := s.i, s.rand.Int63()
	return &storage.ChunkSeriesEntry{
		Lset: s.all[i],
		ChunkIteratorFn: func(chunks.Iterator) chunks.Iterator {
			return storage.NewListChunkSeriesIterator(s.chunks(i%2 == 0, rand.New(rand.NewSource(seed)))...)
		},
	}
}

// chunks are those of a counter or of a gauge that does not change.
func (f fleet) chunks(counter bool, r *rand.Rand) (chks []chunks.Meta) {
	value := float64(r.Intn(1000))
	for n := 0; n < f.samples; {
		c := chunkenc.NewXORChunk()
		app, _ := c.Appender()
		m := chunks.Meta{Chunk: c, MinTime: f.mint + int64(n)*f.interval}
		for range min(120, f.samples-n) {
			m.MaxTime = f.mint + int64(n)*f.interval
			if counter {
				value += float64(r.Intn(100))
			}
			app.Append(0, m.MaxTime, value)
			n++
		}
		chks = append(chks, m)
	}
	return chks
}

// dayOfBlocks writes the twelve blocks of a day.
func dayOfBlocks(tb testing.TB, dir string, series int) (metas []block.Meta) {
	at := time.UnixMilli(0).Add(1000 * day)
	for i := range 12 {
		from := at.Add(time.Duration(i) * 2 * hour)
		m := testMeta(fmt.Sprint(i), 1, uint64(i), uint64(i), from, from, from.Add(2*hour))
		f := fleet{series: series, mint: m.MinTime, interval: 15_000, samples: 480}
		m, err := block.Write(context.Background(), dir, m, []block.Input{f}, block.WriteOptions{SegmentSize: 64 << 20})
		require.NoError(tb, err)
		metas = append(metas, m)
	}
	return metas
}

// BenchmarkCompactDay makes the block of a day from those of its windows: with this package's way of writing it, comparison included, and
// with Prometheus's compactor on the same blocks. What reading back costs is measured on one of the twelve blocks.
func BenchmarkCompactDay(b *testing.B) {
	dir := b.TempDir()
	metas := dayOfBlocks(b, dir, 20_000)
	var samples uint64
	for _, m := range metas {
		samples += m.Stats.NumSamples
	}
	bkt, err := block.NewDirBucket(dir)
	require.NoError(b, err)
	measure := func(name string, samples uint64, do func(b *testing.B, out string)) {
		b.Run(name, func(b *testing.B) {
			u := startUsage()
			for range b.N {
				do(b, b.TempDir())
			}
			u.report(b, samples*uint64(b.N))
		})
	}
	measure("write", samples, func(b *testing.B, out string) {
		j := newJob(days, metas, DefaultConfig())
		w := windowAt(metas[0].MinTime, dayMillis)
		r := &Runner{o: Options{Bucket: bkt, ScratchDir: out}, config: DefaultConfig()}
		e := &execution{run: &run{Runner: r}, job: &j, tracker: &tracker{}, open: map[ulid.ULID]*block.Block{}}
		var d block.Digest
		m, err := e.write(context.Background(), j.outputMeta(w, nil), w, &d)
		require.NoError(b, err)
		if true {
			return
		}
		made, err := block.NewDirBucket(out)
		require.NoError(b, err)
		require.NoError(b, block.ReadBack(context.Background(), made, m, &d))
	})
	measure("prometheus", samples, func(b *testing.B, out string) {
		c, err := tsdb.NewLeveledCompactor(context.Background(), nil, slog.New(slog.DiscardHandler), []int64{windowMillis, dayMillis}, chunkenc.NewPool(), nil)
		require.NoError(b, err)
		var dirs []string
		for _, m := range metas {
			dirs = append(dirs, filepath.Join(dir, m.ULID.String()))
		}
		_, err = c.Compact(out, dirs, nil)
		require.NoError(b, err)
	})
}

// usage measures processor time and the peak of the heap.
type usage struct {
	cpu  time.Duration
	wall time.Time
	stop chan struct{}
	done sync.WaitGroup
	base uint64
	peak uint64
}

func cpuTime() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func heapBytes() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

func startUsage() *usage {
	runtime.GC()
	u := &usage{stop: make(chan struct{}), base: heapBytes()}
	u.done.Go(func() {
		for {
			u.peak = max(u.peak, heapBytes())
			select {
			case <-u.stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
	u.cpu, u.wall = cpuTime(), time.Now()
	return u
}

// end returns the peak of the heap above what it was before.
func (u *usage) end() (cpu, wall time.Duration, peak uint64) {
	cpu, wall = cpuTime()-u.cpu, time.Since(u.wall)
	close(u.stop)
	u.done.Wait()
	return cpu, wall, u.peak - min(u.peak, u.base)
}

func (u *usage) report(b *testing.B, samples uint64) {
	cpu, wall, peak := u.end()
	b.ReportMetric(float64(samples)/1e6/cpu.Seconds(), "Msamples/cpu-s")
	b.ReportMetric(float64(samples)/1e6/wall.Seconds(), "Msamples/s")
	b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
}
