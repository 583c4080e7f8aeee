package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whatever a share of the requests meets, an answer is an error or complete, and nothing is lost.
func TestAnUnreliableS3ServerLosesNothing(t *testing.T) {
	t.Parallel()
	s3, d, j := startS3(t), newDice(t), newJournal(0)
	s3.watchBlocks()
	p := startProxy(t, s3.address, d)
	config, path := s3.config(p.address), t.TempDir()
	now := time.Now().UnixMilli()
	from := now - 2*dayMillis
	var answered, unanswered, ran, failed int
	var m *server
	for range 3 * scale(t) {
		m = s3.startMillrace(path, config, "--speed.seal-interval=1s")
		p.delay.Store(int64(5 * time.Millisecond))
		for range 3 { // at first, its cache is empty
			p.share.Store(400)
			for range 2 {
				err := j.complete(m, "merged", from, now)
				require.NotErrorAs(t, err, &incompleteError{})
				if err == nil {
					answered++
				} else {
					unanswered++
				}
			}
			p.share.Store(50)
			j.scatter(t, m, d, 20, from, now)
			if code, _ := m.runBatch(); code == http.StatusOK {
				ran++
			} else {
				failed++
			}
		}
		p.share.Store(0)
		m.signal(syscall.SIGKILL)
	}
	p.delay.Store(0)
	m = s3.startMillrace(path, config)
	j.check(t, m, "merged", from, now)
	code, raw := m.runBatch()
	require.Equal(t, http.StatusOK, code, raw)
	m.requireAllInBucket()
	j.check(t, m, "batch", from, now)
	require.Contains(t, s3.verify(), " 0 bad")
	for f := range p.done {
		require.Positive(t, p.done[f].Load(), "fault %d never happened", f)
	}
	t.Logf("%d queries were answered and %d failed, %d batch runs ended and %d failed", answered, unanswered, ran, failed)
}

// A query that is given up, by its asker or for its time, leaves no request behind.
func TestQueriesThatAreGivenUpStopTheirRequests(t *testing.T) {
	t.Parallel()
	s3, d, j := startS3(t), newDice(t), newJournal(0)
	p := startProxy(t, s3.address, d)
	now := time.Now().UnixMilli()
	from := now - 2*dayMillis
	path := t.TempDir()
	m := s3.startMillrace(path, s3.config(p.address))
	j.scatter(t, m, d, 100, from, now)
	code, raw := m.runBatch()
	require.Equal(t, http.StatusOK, code, raw)
	m.signal(syscall.SIGTERM)

	// Nothing but queries makes requests: copies of indexes would.
	m = startMillrace(t, path, freeAddress(t), "--objstore.config-file="+s3.config(p.address), "--objstore.sync-interval=10m", "--batch.deletion-delay=1h",
		"--objstore.index-cache-size=0B")
	p.delay.Store(int64(time.Minute))
	form := url.Values{"query": {"count_over_time(crash[3d])"}, "time": {seconds(time.UnixMilli(now))}}
	busy := func() error {
		if len(p.underWay()) == 0 {
			return errors.New("no request is open")
		}
		return nil
	}
	idle := func() error {
		if open := p.underWay(); len(open) > 0 {
			return fmt.Errorf("these requests are open: %s", open)
		}
		return nil
	}
	eventually(t, 10*time.Second, idle)

	ctx, giveUp := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, m.base+"/api/v1/query", strings.NewReader(form.Encode()))
		if err == nil {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			var resp *http.Response
			if resp, err = http.DefaultClient.Do(r); err == nil {
				resp.Body.Close()
			}
		}
		ended <- err
	}()
	eventually(t, 10*time.Second, busy)
	giveUp()
	require.ErrorIs(t, <-ended, context.Canceled)
	eventually(t, 5*time.Second, idle)

	form.Set("timeout", "2s")
	_, raw, err := m.do(http.MethodPost, "/api/v1/query", form)
	require.NoError(t, err)
	require.Contains(t, raw, `"errorType":"timeout"`)
	eventually(t, 5*time.Second, idle)

	p.delay.Store(0)
	j.check(t, m, "merged", from, now)
}
