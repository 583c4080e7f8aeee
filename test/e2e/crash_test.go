package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/require"
)

const (
	crashes         = 15
	crashWriters    = 4
	seriesPerWriter = 20
)

// journal is what one writer knows of its samples: those that were acknowledged, and those of which it does not know.
type journal struct {
	acknowledged map[int64]float64
	uncertain    map[int64]float64
}

// TestNoAcknowledgedSampleIsLostByKill9 kills a server in the middle of writes, again and again, while generations are sealed, uploaded and compacted.
func TestNoAcknowledgedSampleIsLostByKill9(t *testing.T) {
	path, address := t.TempDir(), freeAddress(t)
	start := time.Now().Add(-3 * time.Hour).UnixMilli()
	journals := make([]*journal, crashWriters)
	for i := range journals {
		journals[i] = &journal{acknowledged: map[int64]float64{}, uncertain: map[int64]float64{}}
	}
	next := start
	for round := range crashes {
		m := startMillrace(t, path, address, "--speed.seal-interval=700ms")
		stop := make(chan struct{})
		var wg sync.WaitGroup
		var high [crashWriters]int64
		for w, j := range journals {
			wg.Go(func() { high[w] = j.write(m, w, next, stop) })
		}
		if round%3 == 1 {
			wg.Go(func() { _, _, _ = m.do(http.MethodPost, "/api/v1/batch/run", nil) })
		}
		time.Sleep(time.Duration(200+rand.IntN(1500)) * time.Millisecond)
		m.signal(syscall.SIGKILL)
		close(stop)
		wg.Wait()
		for _, h := range high {
			next = max(next, h+1000)
		}
	}
	m := startMillrace(t, path, address)
	total := 0
	for w, j := range journals {
		require.NotEmpty(t, j.acknowledged)
		for s := range seriesPerWriter {
			j.check(t, m, w, s, start, next)
		}
		total += len(j.acknowledged) * seriesPerWriter
	}
	t.Logf("%d crashes, %d acknowledged samples, none lost, none twice", crashes, total)
	code, raw := m.runBatch()
	require.Equal(t, http.StatusOK, code, raw)
	for w, j := range journals {
		j.check(t, m, w, 0, start, next)
	}
}

// write sends one sample a series and request until stop is closed, some of them out of order, and returns the highest time it used.
func (j *journal) write(m *server, writer int, from int64, stop <-chan struct{}) int64 {
	at := from
	for {
		select {
		case <-stop:
			return at
		default:
		}
		at += 1000
		sample := at
		if rand.IntN(5) == 0 {
			sample = at - 500 - int64(rand.IntN(100)) // late, and new
		}
		v := rand.Float64()
		j.uncertain[sample] = v
		if post(m, writer, sample, v) == http.StatusNoContent {
			delete(j.uncertain, sample)
			j.acknowledged[sample] = v
		}
	}
}

func post(m *server, writer int, at int64, v float64) int {
	var req prompb.WriteRequest
	for s := range seriesPerWriter {
		req.Timeseries = append(req.Timeseries, prompb.TimeSeries{
			Labels: []prompb.Label{
				{Name: "__name__", Value: "crash"}, {Name: "series", Value: strconv.Itoa(s)}, {Name: "writer", Value: strconv.Itoa(writer)},
			},
			Samples: []prompb.Sample{{Timestamp: at, Value: v + float64(s)}},
		})
	}
	raw, err := req.Marshal()
	if err != nil {
		return 0
	}
	r, err := http.NewRequest(http.MethodPost, m.base+"/api/v1/write", bytes.NewReader(snappy.Encode(nil, raw)))
	if err != nil {
		return 0
	}
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("Content-Encoding", "snappy")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// check compares what the server has of one series with the journal.
func (j *journal) check(t *testing.T, m *server, writer, series int, from, to int64) {
	t.Helper()
	query := fmt.Sprintf(`crash{writer="%d",series="%d"}[%dms]`, writer, series, to-from+10_000)
	raw, err := m.ask("/api/v1/query", url.Values{"query": {query}, "time": {strconv.FormatFloat(float64(to+5000)/1000, 'f', 3, 64)}})
	require.NoError(t, err)
	var data struct {
		Result []struct {
			Values [][2]any `json:"values"`
		} `json:"result"`
	}
	require.NoError(t, json.Unmarshal(raw, &data))
	require.Len(t, data.Result, 1)
	got := map[int64]float64{}
	for _, pair := range data.Result[0].Values {
		at := int64(pair[0].(float64)*1000 + 0.5)
		v, err := strconv.ParseFloat(pair[1].(string), 64)
		require.NoError(t, err)
		_, twice := got[at]
		require.False(t, twice, "the sample at %d is there twice", at)
		got[at] = v - float64(series)
	}
	for at, v := range j.acknowledged {
		stored, ok := got[at]
		require.True(t, ok, "writer %d series %d: the acknowledged sample at %d is lost", writer, series, at)
		require.InDelta(t, v, stored, 1e-9)
		delete(got, at)
	}
	for at, v := range got {
		sent, ok := j.uncertain[at]
		require.True(t, ok, "nobody sent the sample at %d", at)
		require.InDelta(t, sent, v, 1e-9)
	}
}
