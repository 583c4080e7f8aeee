//go:build linux

package main

import (
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/prometheus/procfs"
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
	var said string
	for range 10 {
		said += starting(t, p)
		time.Sleep(100 * time.Millisecond)
	}
	require.Contains(t, said, "data path is in use by another process")
	require.NoError(t, lock.Close())
	waitReady(t, p)
	takesWrites(t, p)
}

// A replay that takes longer than Grafana waits for a plugin does not cost the plugin its start: it is called at once, says what it is doing, takes
// writes within seconds, gives no answer that is incomplete meanwhile, and has everything when it is ready.
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
	slow := lastRecord(t, dataPath)

	// The log is made longer with copies of that request. How many it takes is found by doubling, from a replay that is a good deal longer than
	// the rest of a start. Processor time counts: it does not depend on what else the machine is doing, and with one processor it cannot take less time than
	// that.
	one := plugintest.Options{Env: []string{"GOMAXPROCS=1"}}
	var copies int
	var took time.Duration
	for took < *startDelay/20 {
		lengthen(t, dataPath, slow, max(copies, 16))
		copies += max(copies, 16)
		trial := filepath.Join(t.TempDir(), "millrace") // as what is ready begins to give its logs up
		require.NoError(t, os.CopyFS(trial, os.DirFS(dataPath)))
		p = start(t, path, trial, one)
		waitReadyWithin(t, p, 10*time.Minute)
		took = cpuTime(t, p)
		kill(p)
	}
	lengthen(t, dataPath, slow, int(float64(copies)*float64(*startDelay*5/4)/float64(took))-copies)
	begin := time.Now()
	p = start(t, path, dataPath, one)
	require.Less(t, p.Handshake, time.Minute)
	require.Eventually(t, func() bool { return health(t, p).Status == backend.HealthStatusOk }, time.Minute, 100*time.Millisecond, "writes are to be taken")
	var said string
	for time.Since(begin) < *startDelay {
		h := health(t, p)
		require.Equal(t, backend.HealthStatusOk, h.Status, h.Message)
		said += h.Message + "\n"
		at := time.Now().UnixMilli()
		status, err := write(t.Context(), p, "Editor", at, 43)
		require.NoError(t, err)
		require.Equal(t, 204, status)
		want[at] = 43
		countSlow(t, p, samples)
		time.Sleep(*startDelay / 50)
	}
	require.Contains(t, said, "replaying the log of generation 1: ")
	waitReadyWithin(t, p, 10*time.Minute)
	require.Equal(t, want, stored(t, p))
	require.True(t, countSlow(t, p, samples))
	takesWrites(t, p)
}

// starting sees that the engine is not ready yet: its health is bad, and writes are refused for the time being. It returns what health says.
func starting(t *testing.T, p *plugintest.Plugin) string {
	t.Helper()
	status, err := send(t.Context(), p, "Editor", prompb.TimeSeries{
		Labels:  []prompb.Label{{Name: "__name__", Value: "refused"}},
		Samples: []prompb.Sample{{Timestamp: time.Now().UnixMilli(), Value: 1}},
	})
	require.NoError(t, err)
	h := health(t, p)
	require.Equal(t, backend.HealthStatusError, h.Status, h.Message)
	require.Equal(t, 503, status)
	return h.Message + "\n"
}

func health(t *testing.T, p *plugintest.Plugin) *backend.CheckHealthResult {
	t.Helper()
	h, err := p.Health(t.Context(), grafana("Viewer"))
	require.NoError(t, err)
	return h
}

// countSlow sees that the answer to a query is all of it, or else that the engine is still replaying.
func countSlow(t *testing.T, p *plugintest.Plugin, samples int) (answered bool) {
	t.Helper()
	url := "api/v1/query?query=count_over_time(slow_to_replay[2h])"
	resp, err := p.Resource(t.Context(), &backend.CallResourceRequest{PluginContext: grafana("Viewer"), Method: http.MethodGet, Path: "api/v1/query", URL: url})
	require.NoError(t, err)
	if resp.Status == http.StatusServiceUnavailable {
		require.Contains(t, string(resp.Body), "replaying the log of generation 1: ")
		return false
	}
	require.Equal(t, http.StatusOK, resp.Status, "%s", resp.Body)
	var count struct {
		Value pair `json:"value"`
	}
	query(t, p, "count_over_time(slow_to_replay[2h])", &count)
	_, n := count.Value.decode(t)
	require.InDelta(t, samples, n, 0)
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

// theLog is the only log below a data path.
func theLog(t *testing.T, dataPath string) string {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(dataPath, "wal", "*"))
	require.NoError(t, err)
	require.Len(t, logs, 1)
	return logs[0]
}

// eachRecord reads the log of a data path that no process holds and returns the number of its records.
func eachRecord(t *testing.T, dataPath string, f func([]byte)) (records uint64) {
	t.Helper()
	_, err := wal.Replay(theLog(t, dataPath), wal.Options{}, nil, func(record []byte) error {
		f(record)
		records++
		return nil
	})
	require.NoError(t, err)
	return records
}

func lastRecord(t *testing.T, dataPath string) []byte {
	t.Helper()
	var last []byte
	eachRecord(t, dataPath, func(record []byte) { last = append(last[:0], record...) })
	return last
}

// lengthen appends copies of a record to the log of a data path that no process holds.
func lengthen(t *testing.T, dataPath string, record []byte, copies int) {
	t.Helper()
	log, err := wal.Open(theLog(t, dataPath), wal.Options{FirstIndex: eachRecord(t, dataPath, func([]byte) {})})
	require.NoError(t, err)
	for range copies {
		_, err := log.Append(record)
		require.NoError(t, err)
	}
	require.NoError(t, log.Close())
}

// cpuTime is the processor time that a plugin has taken.
func cpuTime(t *testing.T, p *plugintest.Plugin) time.Duration {
	t.Helper()
	proc, err := procfs.NewProc(p.PID())
	require.NoError(t, err)
	stat, err := proc.Stat()
	require.NoError(t, err)
	return time.Duration(stat.CPUTime() * float64(time.Second))
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
