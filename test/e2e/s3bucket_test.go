package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const dayMillis = 24 * 60 * 60 * 1000

// scatter sends n requests with samples of any time in [from, to], some of them of a time that was sent before.
func (j *journal) scatter(t *testing.T, m *server, d *dice, n int, from, to int64) {
	t.Helper()
	for range n {
		at := from + d.n(to-from)/60_000*60_000
		require.Equal(t, http.StatusNoContent, j.send(m, at, d.float()))
	}
}

// questions are asked of the journals' samples, each as a range of times.
var questions = []string{
	`crash`,
	`crash{series=~"1.",writer="0"}`,
	`sum by (writer) (crash)`,
	`count_over_time(crash{series="3"}[6h])`,
	`max by (series) (max_over_time(crash[2h]))`,
	`quantile_over_time(0.9, crash{series="5"}[12h])`,
	`avg_over_time(crash{series="2"}[1h]) - crash{series="2"} offset 1h`,
	`topk(3, changes(crash[1d]))`,
	`count(count_over_time(crash[30m]))`,
	`absent(crash{series="99"})`,
}

// resetQuestions take what is random for counters. Thanos takes the resets out before PromQL sees them, which moves the point at which a counter may have begun.
var resetQuestions = []string{
	`rate(crash{series=~"[0-4]"}[3h])`,
	`increase(crash{series="7"}[1d])`,
}

// answers are what a server says to all questions, by question.
func (s *server) answers(from, to int64) map[string][]string {
	s.t.Helper()
	out := map[string][]string{}
	for _, q := range append(questions, resetQuestions...) {
		raw, err := s.ask("/api/v1/query_range", rangeForm(q, from, to))
		require.NoError(s.t, err, q)
		out[q] = flatten(s.t, raw)
		require.NotEmpty(s.t, out[q], q)
	}
	return out
}

func rangeForm(q string, from, to int64) url.Values {
	return url.Values{"query": {q}, "start": {seconds(time.UnixMilli(from))}, "end": {seconds(time.UnixMilli(to))}, "step": {"611"}}
}

func requireSameAnswers(t *testing.T, want, got map[string][]string) {
	t.Helper()
	for q, lines := range want {
		require.Len(t, got[q], len(lines), q)
		for i := range lines {
			require.True(t, same(lines[i], got[q][i]), "%s\nwant %s\ngot  %s", q, lines[i], got[q][i])
		}
	}
}

// requireAllInBucket fails the test unless nothing is in memory or on local disk alone.
func (s *server) requireAllInBucket() {
	s.t.Helper()
	l := s.layers()
	for _, g := range l.Generations {
		require.Zero(s.t, g.Samples)
	}
	require.NotEmpty(s.t, l.Blocks)
	for _, b := range l.Blocks {
		require.Equal(s.t, "bucket", b.Location)
	}
}

func TestAnS3BucketAloneGivesTheSameAnswers(t *testing.T) {
	t.Parallel()
	s3, d, j := startS3(t), newDice(t), newJournal(0)
	s3.watchBlocks()
	config, path := s3.config(s3.address), t.TempDir()
	now := time.Now().UnixMilli()
	from := now - 2*dayMillis
	m := s3.startMillrace(path, config)
	for range 3 {
		j.scatter(t, m, d, 200, from, now)
		j.scatter(t, m, d, 50, now-dayMillis/8, now)
		code, raw := m.runBatch()
		require.Equal(t, http.StatusOK, code, raw)
	}
	j.scatter(t, m, d, 100, from, now)
	j.check(t, m, "merged", from, now)
	before := m.answers(from, now)

	code, raw := m.runBatch()
	require.Equal(t, http.StatusOK, code, raw)
	requireSameAnswers(t, before, m.answers(from, now))
	m.signal(syscall.SIGTERM)
	require.NoError(t, os.RemoveAll(path))

	m = s3.startMillrace(path, config)
	m.requireAllInBucket()
	j.check(t, m, "batch", from, now)
	j.check(t, m, "merged", from, now)
	requireSameAnswers(t, before, m.answers(from, now))
	require.Contains(t, s3.verify(), " 0 bad")
}

// Servers that share a bucket see each other's samples, under each other's external labels, and compact their own.
func TestTwoServersShareAnS3Bucket(t *testing.T) {
	t.Parallel()
	s3, d := startS3(t), newDice(t)
	s3.watchBlocks()
	config := s3.config(s3.address)
	now := time.Now().UnixMilli()
	from := now - 2*dayMillis
	sites := []string{"north", "south"}
	var servers []*server
	var journals []*journal
	for i, site := range sites {
		servers = append(servers, s3.startMillrace(t.TempDir(), config, "--external-label=site="+site))
		journals = append(journals, newJournal(i))
	}
	for range 3 {
		for i, j := range journals {
			j.scatter(t, servers[i], d, 100, from, now)
		}
		done := make(chan string, len(servers))
		for _, m := range servers {
			go func() {
				code, raw, err := m.do(http.MethodPost, "/api/v1/batch/run", nil)
				if err == nil && code == http.StatusOK {
					raw = ""
				}
				done <- raw
			}()
		}
		for range servers {
			require.Empty(t, <-done)
		}
	}
	for i, j := range journals {
		j.check(t, servers[i], "batch", from, now)
		other := servers[1-i]
		eventually(t, 20*time.Second, func() error { return j.complete(other, "batch", from, now) })
		raw, err := other.ask("/api/v1/query", url.Values{
			"query": {fmt.Sprintf(`count by (site) (count_over_time(crash{writer="%d"}[3d]))`, i)}, "time": {seconds(time.UnixMilli(now))},
		})
		require.NoError(t, err)
		require.Len(t, flatten(t, raw), 1)
		require.Contains(t, string(raw), `"site":"`+sites[i]+`"`)
	}
	require.Contains(t, s3.verify(), " 0 bad")
}

// One-shot jobs are killed at any moment while a server writes to the same bucket and compacts it, too.
func TestOneShotJobsAreKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	s3, d, j := startS3(t), newDice(t), newJournal(0)
	s3.watchBlocks()
	config := s3.config(s3.address)
	now := time.Now().UnixMilli()
	from := now - 2*dayMillis
	m := s3.startMillrace(t.TempDir(), config, "--speed.seal-interval=1s")
	killed := 0
	for round := range 25 * scale(t) {
		j.scatter(t, m, d, 30, from, now)
		args := []string{"batch", "run", "--objstore.config-file=" + config, "--batch.scratch-path=" + t.TempDir()}
		if d.n(3) == 0 {
			args = append(args, "--force")
		}
		job := exec.Command(binaries.millrace, args...)
		var out strings.Builder
		job.Stdout, job.Stderr = &out, &out
		require.NoError(t, job.Start())
		ended := make(chan error, 1)
		go func() { ended <- job.Wait() }()
		select {
		case err := <-ended:
			require.NoError(t, err, out.String())
		case <-time.After(time.Duration(20+d.n(700)) * time.Millisecond):
			_ = job.Process.Kill() // It may just have ended by itself.
			if <-ended != nil {
				killed++
			}
			s3.dropLeases()
		}
		if round%6 == 5 {
			code, raw := m.runBatch()
			require.Equal(t, http.StatusOK, code, raw)
		}
		require.NoError(t, j.complete(m, "merged", from, now))
	}
	require.Positive(t, killed)
	before := m.answers(from, now)
	code, raw := m.runBatch()
	require.Equal(t, http.StatusOK, code, raw)
	j.check(t, m, "batch", from, now)
	requireSameAnswers(t, before, m.answers(from, now))
	m.signal(syscall.SIGTERM)
	out, err := exec.Command(binaries.millrace, "batch", "run", "--force", "--objstore.config-file="+config).CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, s3.verify(), " 0 bad")
	t.Logf("%d jobs were killed", killed)
}
