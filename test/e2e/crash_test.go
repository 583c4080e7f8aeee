package e2e

import (
	"math/rand/v2"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	crashes      = 15
	crashWriters = 4
)

// TestNoAcknowledgedSampleIsLostByKill9 kills a server in the middle of writes, again and again, while generations are sealed, uploaded and compacted.
func TestNoAcknowledgedSampleIsLostByKill9(t *testing.T) {
	path, address := t.TempDir(), freeAddress(t)
	start := time.Now().Add(-3 * time.Hour).UnixMilli()
	var journals []*journal
	for w := range crashWriters {
		journals = append(journals, newJournal(w))
	}
	next := start
	for round := range crashes {
		m := startMillrace(t, path, address, "--speed.seal-interval=700ms")
		stop := make(chan struct{})
		var wg sync.WaitGroup
		var high [crashWriters]int64
		for w, j := range journals {
			wg.Go(func() { high[w] = j.write(m, next, stop) })
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
	for _, j := range journals {
		require.NotEmpty(t, j.acknowledged)
		j.check(t, m, "merged", start, next)
		total += len(j.acknowledged) * seriesPerWriter
	}
	t.Logf("%d crashes, %d acknowledged samples, none lost, none twice", crashes, total)
	code, raw := m.runBatch()
	require.Equal(t, http.StatusOK, code, raw)
	for _, j := range journals {
		j.check(t, m, "merged", start, next)
	}
}

// write sends one sample a series and request until stop is closed, some of them out of order, and returns the highest time it used.
func (j *journal) write(m *server, from int64, stop <-chan struct{}) int64 {
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
		j.send(m, sample, rand.Float64())
	}
}
