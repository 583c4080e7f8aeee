package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// outage is a server whose bucket goes away. The history of one writer is in the bucket alone; another goes on writing, whatever happens.
type outage struct {
	t       *testing.T
	s3      *s3Server
	path    string
	config  string
	d       *dice
	history *journal
	live    *journal
	from    int64
	now     int64
}

func newOutage(t *testing.T) *outage {
	s3 := startS3(t)
	s3.watchBlocks()
	now := time.Now().UnixMilli()
	return &outage{
		t: t, s3: s3, path: t.TempDir(), config: s3.config(s3.address), d: newDice(t),
		history: newJournal(1), live: newJournal(2), from: now - 4*dayMillis, now: now,
	}
}

func (o *outage) start() *server {
	return o.s3.startMillrace(o.path, o.config, "--speed.seal-interval=1s")
}

func (o *outage) historyError(m *server, layer string) error {
	return o.history.complete(m, layer, o.from, o.now-2*dayMillis)
}

// write sends a request every few milliseconds, which must all be acknowledged, until stop is closed. Meanwhile all there is is compacted again and again, which
// may fail.
func (o *outage) write(m *server, stop <-chan struct{}) (wait func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for ended := false; !ended; {
			at := o.now - o.d.n(dayMillis)
			if code := o.live.send(m, at, o.d.float()); code != http.StatusNoContent {
				o.t.Errorf("a write got status %d", code)
				return
			}
			ended = closedWithin(stop, 20*time.Millisecond)
		}
	})
	wg.Go(func() {
		for ended := false; !ended; {
			_, _, _ = m.do(http.MethodPost, "/api/v1/batch/run", nil)
			ended = closedWithin(stop, 300*time.Millisecond)
		}
	})
	return wg.Wait
}

func closedWithin(c <-chan struct{}, d time.Duration) bool {
	select {
	case <-c:
		return true
	case <-time.After(d):
		return false
	}
}

// watch asks for the history again and again until stop is closed: the answer is complete or an error.
func (o *outage) watch(m *server, stop <-chan struct{}) (failed *atomic.Int64, wait func()) {
	failed = new(atomic.Int64)
	var wg sync.WaitGroup
	wg.Go(func() {
		for ended := false; !ended; {
			err := o.historyError(m, "merged")
			if errors.As(err, &incompleteError{}) {
				o.t.Errorf("an answer is incomplete and says nothing of it: %v", err)
				return
			}
			if err != nil {
				failed.Add(1)
			}
			ended = closedWithin(stop, 50*time.Millisecond)
		}
	})
	return failed, wg.Wait
}

// requireBucketError asks for what only the bucket holds.
func (o *outage) requireBucketError(m *server, layer string) {
	o.t.Helper()
	code, raw, err := m.do(http.MethodPost, "/api/v1/query", url.Values{
		"query": {fmt.Sprintf(`crash{writer="%d"}[2d]`, o.history.writer)}, "time": {seconds(time.UnixMilli(o.now - 2*dayMillis))}, "layer": {layer},
	})
	require.NoError(o.t, err)
	require.Equal(o.t, http.StatusUnprocessableEntity, code, raw)
	require.Contains(o.t, raw, `"errorType":"execution"`)
	require.Contains(o.t, raw, "bucket")
	require.Contains(o.t, raw, "connection refused")
}

func (o *outage) requireSpeed(m *server) {
	o.t.Helper()
	raw, err := m.ask("/api/v1/query", url.Values{"query": {"count(count_over_time(crash[2d]))"}, "time": {seconds(time.UnixMilli(o.now))}, "layer": {"speed"}})
	require.NoError(o.t, err)
	require.Contains(o.t, string(raw), fmt.Sprintf(`"%d"`, seriesPerWriter), "what is not in the bucket yet answers")
}

// recovered waits until nothing is left on local disk alone, and compares all there is.
func (o *outage) recovered(m *server) {
	o.t.Helper()
	eventually(o.t, time.Minute, func() error { return o.historyError(m, "merged") })
	eventually(o.t, time.Minute, func() error {
		if l := m.layers(); !l.Bucket.Reachable {
			return errors.New("the bucket is not reachable")
		}
		code, raw := m.runBatch()
		if code != http.StatusOK {
			return fmt.Errorf("%d %s", code, raw)
		}
		return nil
	})
	m.requireAllInBucket()
	require.NoError(o.t, o.historyError(m, "batch"))
	o.live.check(o.t, m, "batch", o.from, o.now)
	o.live.check(o.t, m, "merged", o.from, o.now)
	require.Contains(o.t, o.s3.verify(), " 0 bad")
}

// The S3 server is killed while samples arrive and blocks are compacted, once under a server that goes on and once under one that is killed, too, and starts
// without it.
func TestTheS3ServerIsAwayForAWhile(t *testing.T) {
	t.Parallel()
	o := newOutage(t)
	away := time.Duration(12*scale(t)) * time.Second
	m := o.start()
	o.history.scatter(t, m, o.d, 200, o.from, o.now-2*dayMillis)
	code, raw := m.runBatch()
	require.Equal(t, http.StatusOK, code, raw)
	m.signal(syscall.SIGTERM)
	m = o.start() // it has read nothing of the history

	stop := make(chan struct{})
	wait := o.write(m, stop)
	time.Sleep(3 * time.Second)
	o.s3.kill()
	began := time.Now()
	eventually(t, 30*time.Second, func() error {
		if m.layers().Bucket.Reachable {
			return errors.New("the outage does not show")
		}
		return nil
	})
	failed, waitForAnswers := o.watch(m, stop)
	o.requireBucketError(m, "merged")
	o.requireBucketError(m, "batch")
	o.requireSpeed(m)
	time.Sleep(away - time.Since(began))
	require.Positive(t, failed.Load())
	o.s3.start()
	eventually(t, time.Minute, func() error { return o.historyError(m, "merged") })
	close(stop)
	wait()
	waitForAnswers()
	o.recovered(m)

	o.s3.kill()
	m.signal(syscall.SIGKILL)
	m = o.start()
	o.requireBucketError(m, "merged")
	stop = make(chan struct{})
	wait = o.write(m, stop)
	_, waitForAnswers = o.watch(m, stop)
	time.Sleep(away / 2)
	o.requireSpeed(m)
	o.s3.start()
	eventually(t, time.Minute, func() error { return o.historyError(m, "merged") })
	close(stop)
	wait()
	waitForAnswers()
	o.recovered(m)
}
