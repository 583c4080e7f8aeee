//go:build !windows

package main

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/pkg/plugin/plugintest"
	"github.com/millrace/millrace/pkg/wal"
)

var startDelay = flag.Duration("start-delay", 70*time.Second, "how long the replay of TestStartDelayedByReplay takes at least; Grafana waits 60s for the handshake")

// An engine that has to wait before it opens, here as another process holds the data path, is waited for.
func TestDataPathHeld(t *testing.T) {
	path, dataPath := build(t), filepath.Join(t.TempDir(), "millrace")
	require.NoError(t, os.MkdirAll(dataPath, 0o750))
	lock, err := os.OpenFile(filepath.Join(dataPath, "lock"), os.O_RDWR|os.O_CREATE, 0o640)
	require.NoError(t, err)
	t.Cleanup(func() { _ = lock.Close() })
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB))

	p := start(t, path, dataPath, plugintest.Options{})
	for range 10 {
		require.True(t, starting(t, p, "data path is in use by another process"))
		time.Sleep(100 * time.Millisecond)
	}
	require.NoError(t, lock.Close())
	waitReady(t, p)
	takesWrites(t, p)
}

// A replay that takes longer than Grafana waits for a plugin does not cost the plugin its start: it is called at once, says what it is doing, refuses
// writes so that they are repeated, and has everything when it is ready.
func TestStartDelayedByReplay(t *testing.T) {
	path, dataPath := build(t), filepath.Join(t.TempDir(), "millrace")
	p := start(t, path, dataPath, plugintest.Options{})
	waitReady(t, p)
	status, err := write(t.Context(), p, "Editor", time.Now().UnixMilli(), 42)
	require.NoError(t, err)
	require.Equal(t, 204, status)
	want := stored(t, p)
	const samples = 100
	sendSlowToReplay(t, p, samples)
	kill(p)

	// The log is made longer with copies of its last request. How many it takes is found by doubling, from a replay that is a good deal longer than
	// the rest of a start.
	var copies int
	var took time.Duration
	for took < *startDelay/20 {
		lengthen(t, dataPath, max(copies, 16))
		copies += max(copies, 16)
		begin := time.Now()
		p = start(t, path, dataPath, plugintest.Options{})
		waitReadyWithin(t, p, 10*time.Minute)
		took = time.Since(begin)
		kill(p)
	}
	for aim := *startDelay * 5 / 4; took < *startDelay; aim += aim / 2 { // again if the machine has become faster
		more := int(float64(copies)*float64(aim)/float64(took)) - copies
		lengthen(t, dataPath, more)
		copies += more
		begin := time.Now()
		p = start(t, path, dataPath, plugintest.Options{})
		require.Less(t, p.Handshake, time.Minute)
		for time.Since(begin) < *startDelay && starting(t, p, "replaying the log of generation 1: ") {
			time.Sleep(*startDelay / 50)
		}
		if took = time.Since(begin); took < *startDelay {
			kill(p)
		}
	}
	waitReadyWithin(t, p, 10*time.Minute)
	require.Equal(t, want, stored(t, p))
	var count struct {
		Value pair `json:"value"`
	}
	query(t, p, "count_over_time(slow_to_replay[2h])", &count)
	_, n := count.Value.decode(t)
	require.InDelta(t, samples, n, 0)
	takesWrites(t, p)
}

// starting tells whether the engine is not ready yet. While it is not, its health is bad and tells how far it has come, and writes are refused for the time
// being.
func starting(t *testing.T, p *plugintest.Plugin, progress string) bool {
	t.Helper()
	status, err := write(t.Context(), p, "Editor", time.Now().Add(-time.Hour).UnixMilli(), 1)
	require.NoError(t, err)
	health, err := p.Health(t.Context(), grafana("Viewer"))
	require.NoError(t, err)
	if strings.Contains(health.Message, "engine is ready") {
		return false
	}
	require.Equal(t, backend.HealthStatusError, health.Status)
	require.Equal(t, 503, status)
	require.Contains(t, health.Message, progress)
	return true
}

// sendSlowToReplay writes histograms, one after the other, and then the last of them once more, many times in one request: to see that it says nothing new
// costs as much as all that came before it, while the log is short and memory does not grow.
func sendSlowToReplay(t *testing.T, p *plugintest.Plugin, samples int) {
	t.Helper()
	const repetitions = 2000
	base := time.Now().Add(-time.Hour).UnixMilli()
	series := prompb.TimeSeries{Labels: []prompb.Label{{Name: "__name__", Value: "slow_to_replay"}}}
	for i, h := range tsdbutil.GenerateTestHistograms(samples) {
		series.Histograms = append(series.Histograms, prompb.FromIntHistogram(base+int64(i), h))
	}
	for _, histograms := range [][]prompb.Histogram{series.Histograms, slices.Repeat(series.Histograms[samples-1:], repetitions)} {
		series.Histograms = histograms
		status, err := send(t.Context(), p, "Editor", series)
		require.NoError(t, err)
		require.Equal(t, 204, status)
	}
}

// lengthen appends copies of its last record to the only log below a data path that no process holds.
func lengthen(t *testing.T, dataPath string, copies int) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(dataPath, "wal", "*"))
	require.NoError(t, err)
	require.Len(t, logs, 1)
	var last []byte
	var records uint64
	_, err = wal.Replay(logs[0], wal.Options{}, nil, func(record []byte) error {
		last = append(last[:0], record...)
		records++
		return nil
	})
	require.NoError(t, err)
	log, err := wal.Open(logs[0], wal.Options{FirstIndex: records})
	require.NoError(t, err)
	for range copies {
		_, err := log.Append(last)
		require.NoError(t, err)
	}
	require.NoError(t, log.Close())
}

// kill ends the plugin as a crash would.
func kill(p *plugintest.Plugin) {
	p.Signal(syscall.SIGKILL)
	p.WaitGone(10 * time.Second)
}

// takesWrites sees that what is written is there.
func takesWrites(t *testing.T, p *plugintest.Plugin) {
	t.Helper()
	before := len(stored(t, p))
	stop := make(chan struct{})
	time.AfterFunc(200*time.Millisecond, func() { close(stop) })
	want := flood(t, p, stop)
	require.NotEmpty(t, want)
	got := stored(t, p)
	require.Len(t, got, before+len(want))
	for ts, v := range want {
		require.Equal(t, v, got[ts])
	}
}
