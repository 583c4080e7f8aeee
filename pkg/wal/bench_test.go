package wal

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

// BenchmarkAppend writes records of 20 kB, about what 500 samples of remote write take.
func BenchmarkAppend(b *testing.B) {
	record := make([]byte, 20_000)
	for i := range record {
		record[i] = byte(i * 7)
	}
	for _, every := range []bool{false, true} {
		for _, goroutines := range []int{1, 4, 16} {
			b.Run(fmt.Sprintf("SyncEvery=%t/goroutines=%d", every, goroutines), func(b *testing.B) {
				m := NewMetrics(nil)
				l, err := Create(filepath.Join(b.TempDir(), "log"), nil, Options{SyncEvery: every, Metrics: m})
				require.NoError(b, err)
				b.SetBytes(int64(len(record)))
				b.ReportAllocs()
				b.ResetTimer()
				var n atomic.Int64
				var wg sync.WaitGroup
				for range goroutines {
					wg.Go(func() {
						for n.Add(1) <= int64(b.N) {
							if _, err := l.Append(record[:30], record[30:]); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(testutil.ToFloat64(m.records)/testutil.ToFloat64(m.writes), "records/write")
				require.NoError(b, l.Close())
			})
		}
	}
}

func BenchmarkReplay(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "log")
	l, err := Create(dir, nil, Options{})
	require.NoError(b, err)
	record := make([]byte, 20_000)
	const records = 2000
	for range records {
		_, err := l.Append(record)
		require.NoError(b, err)
	}
	require.NoError(b, l.Close())
	b.SetBytes(records * int64(len(record)))
	b.ReportAllocs()
	for b.Loop() {
		stats, err := Replay(dir, Options{}, nil, func([]byte) error { return nil })
		require.NoError(b, err)
		require.Equal(b, int64(records), stats.Records)
	}
}
