//go:build unix

package batch

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
)

// shapes are kinds of blocks that are compacted.
var shapes = []struct {
	name   string
	tier   tier
	blocks func(b *testing.B, dir string) []block.Meta
}{
	// Twelve blocks of 2 h with the same series, as those of machines that stay.
	{"same series", days, func(b *testing.B, dir string) []block.Meta { return dayOfBlocks(b, dir, 20_000) }},
	// Four series of five are in one of the blocks only, as those of pods that come and go.
	{"churn", days, func(b *testing.B, dir string) []block.Meta {
		return blocksOf(b, dir, 12, 1, 2*hour, func(i int) fleet {
			return fleet{series: 20_000, interval: 15_000, samples: 480, pods: fmt.Sprintf("pod-%02d", i)}
		})
	}},
	// The level-0 blocks of half hours, scraped every 15 s: a chunk for each series.
	{"level 0", level0, func(b *testing.B, dir string) []block.Meta {
		return blocksOf(b, dir, 4, 0, 30*time.Minute, func(int) fleet { return fleet{series: 50_000, interval: 15_000, samples: 120} })
	}},
	// 48 of them, as after an outage of the bucket.
	{"many blocks", days, func(b *testing.B, dir string) []block.Meta {
		return blocksOf(b, dir, 48, 1, 30*time.Minute, func(int) fleet { return fleet{series: 10_000, interval: 15_000, samples: 120} })
	}},
	// Beside those of the day, one block of late samples of every twentieth series, between those that are there.
	{"late", days, func(b *testing.B, dir string) []block.Meta {
		metas := dayOfBlocks(b, dir, 20_000)
		m := testMeta("late", 1, 12, 12, time.UnixMilli(metas[11].MaxTime), time.UnixMilli(metas[0].MinTime), time.UnixMilli(metas[11].MaxTime))
		return append(metas, writeFleet(b, dir, m, fleet{series: 20_000, mint: 7_000, interval: 15_000, samples: 5700, every: 20}))
	}},
	{"histograms", days, func(b *testing.B, dir string) []block.Meta {
		return blocksOf(b, dir, 12, 1, 2*hour, func(int) fleet { return fleet{series: 1_000, interval: 60_000, samples: 120, histograms: true} })
	}},
	// Scraped once a minute, chunks of half hours are small: they are joined, which Prometheus does not do.
	{"small chunks", level0, func(b *testing.B, dir string) []block.Meta {
		return blocksOf(b, dir, 4, 0, 30*time.Minute, func(int) fleet { return fleet{series: 50_000, interval: 60_000, samples: 30} })
	}},
}

// BenchmarkCompact makes one block of many, in turn with this package's way of writing it, comparison included, with that and reading back
// what was written, and with Prometheus's compactor. The ratios are of this package to Prometheus's compactor: the more the better, but for
// the one of the heap's peaks; those that end in "back" count reading back, too.
func BenchmarkCompact(b *testing.B) {
	for _, s := range shapes {
		b.Run(s.name, func(b *testing.B) {
			dir := b.TempDir()
			metas := s.blocks(b, dir)
			var samples float64
			for _, m := range metas {
				samples += float64(m.Stats.NumSamples) / 1e6
			}
			var own, back, theirs cost
			b.ResetTimer()
			for range b.N {
				made := &block.Digest{}
				var m block.Meta
				out := scratch(b)
				own.of(func() { m = compact(b, dir, out, s.tier, metas, made) })
				back.of(func() { readBack(b, out, m, made) })
				scratch(b)
				theirs.of(func() { compactAsPrometheus(b, dir, b.TempDir(), metas) })
			}
			n := float64(b.N)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(n*samples/own.cpu.Seconds(), "Msamples/cpu-s")
			b.ReportMetric(n*samples/theirs.cpu.Seconds(), "theirs/cpu-s")
			b.ReportMetric(theirs.cpu.Seconds()/own.cpu.Seconds(), "x-cpu")
			b.ReportMetric(theirs.wall.Seconds()/own.wall.Seconds(), "x-wall")
			b.ReportMetric(theirs.cpu.Seconds()/(own.cpu+back.cpu).Seconds(), "x-cpu-back")
			b.ReportMetric(theirs.wall.Seconds()/(own.wall+back.wall).Seconds(), "x-wall-back")
			b.ReportMetric(float64(max(own.peak, back.peak))/float64(theirs.peak), "x-heap")
			b.ReportMetric(float64(max(own.peak, back.peak))/(1<<20), "peak-MiB")
		})
	}
}

// scratch returns an empty folder, after what was written before has reached the disk.
func scratch(b *testing.B) string {
	b.Helper()
	syscall.Sync()
	return b.TempDir()
}

func compact(b *testing.B, dir, out string, t tier, metas []block.Meta, d *block.Digest) block.Meta {
	b.Helper()
	bkt, err := block.NewDirBucket(dir)
	require.NoError(b, err)
	j := newJob(t, metas, DefaultConfig())
	w := windowAt(metas[0].MinTime, t.width)
	r := &Runner{o: Options{Bucket: bkt, ScratchDir: out}, config: DefaultConfig()}
	e := &execution{run: &run{Runner: r}, job: &j, tracker: &tracker{}, open: map[ulid.ULID]*block.Block{}}
	m, err := e.write(context.Background(), j.outputMeta(w, nil), w, d)
	require.NoError(b, err)
	for id := range e.open {
		require.NoError(b, e.close(id))
	}
	return m
}

func readBack(b *testing.B, out string, m block.Meta, d *block.Digest) {
	b.Helper()
	bkt, err := block.NewDirBucket(out)
	require.NoError(b, err)
	require.NoError(b, block.ReadBack(context.Background(), bkt, m, d))
}

func compactAsPrometheus(b *testing.B, dir, out string, metas []block.Meta) {
	b.Helper()
	c, err := tsdb.NewLeveledCompactor(context.Background(), nil, slog.New(slog.DiscardHandler), []int64{windowMillis, dayMillis}, chunkenc.NewPool(), nil)
	require.NoError(b, err)
	var dirs []string
	for _, m := range metas {
		dirs = append(dirs, filepath.Join(dir, m.ULID.String()))
	}
	_, err = c.Compact(out, dirs, nil)
	require.NoError(b, err)
}

// cost is what something has taken so far: processor time in all, and the time by the clock of the fastest run, which others on the machine
// have disturbed least.
type cost struct {
	cpu, wall time.Duration
	peak      uint64
}

func (c *cost) of(do func()) {
	u := startUsage()
	do()
	cpu, wall, peak := u.end()
	if c.cpu += cpu; c.wall == 0 || wall < c.wall {
		c.wall = wall
	}
	c.peak = max(c.peak, peak)
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
