package engine

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/batch"
)

// jobOf is what the layers show of a job.
func jobOf(e *Engine, id string) (batch.JobStatus, bool) {
	jobs := e.Layers().Jobs
	i := slices.IndexFunc(jobs, func(s batch.JobStatus) bool { return s.ID == id })
	if i < 0 {
		return batch.JobStatus{}, false
	}
	return jobs[i], true
}

// Who asked for batch work without waiting finds it among the jobs, with its end.
func TestACallForBatchWorkIsAmongTheJobs(t *testing.T) {
	b := newMovableBucket(t)
	e := startEngine(t, b.config(t.TempDir()))
	write(t, e, "a", point{time.Now().UnixMilli(), 1})
	e.flushing.Lock()
	job, err := e.RunBatchJob(t.Context(), false)
	require.NoError(t, err)
	require.Equal(t, "running", job.State)
	eventually(t, "the call is at work", func() bool {
		s, found := jobOf(e, job.ID)
		require.True(t, found)
		require.Equal(t, batch.Running, s.State)
		return s.Detail == "writing local blocks"
	})
	e.flushing.Unlock()
	eventually(t, "the call ends", func() bool { s, _ := jobOf(e, job.ID); return s.State == batch.Done })
	s, _ := jobOf(e, job.ID)
	require.InDelta(t, 1, s.Progress, 0)
	require.False(t, s.Finished.IsZero())
	require.GreaterOrEqual(t, len(e.Layers().Jobs), 2, "what it did in the bucket is there, too")
	for _, s := range e.Layers().Jobs {
		if s.Kind == batch.CompactLevel0 {
			require.EqualValues(t, 1, s.WindowsDone)
			require.EqualValues(t, 1, s.SeriesDone)
			require.Positive(t, s.Rate)
			require.Nil(t, s.Remaining)
		}
	}

	b.away()
	write(t, e, "a", point{time.Now().UnixMilli(), 2})
	_, err = e.RunBatchJob(t.Context(), true)
	require.Error(t, err)
	require.Equal(t, batch.Failed, e.Layers().Jobs[0].State)
	require.Equal(t, err.Error(), e.Layers().Jobs[0].Error)
}

func TestCallsAreForgottenOnlyAfterTheirEnd(t *testing.T) {
	var c calls
	first := c.begin(time.Now())
	for range 3 * callsKept {
		c.end(c.begin(time.Now()), time.Now(), errors.New("no"))
	}
	all := c.status()
	require.Len(t, all, callsKept)
	require.Equal(t, first.ID, all[len(all)-1].ID)
}

// However often batch work is asked for, one call is at work and one waits.
func TestCallsThatNobodyWaitsForAreJoined(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir()))
	write(t, e, "a", point{time.Now().UnixMilli(), 1})
	e.flushing.Lock()
	first, err := e.RunBatchJob(t.Context(), false)
	require.NoError(t, err)
	eventually(t, "the first is at work", func() bool { s, _ := jobOf(e, first.ID); return s.Detail != "" })
	second, err := e.RunBatchJob(t.Context(), false)
	require.NoError(t, err)
	require.NotEqual(t, first.ID, second.ID, "the first does not bring what was written since to the bucket")
	for range 3 * callsKept {
		again, err := e.RunBatchJob(t.Context(), false)
		require.NoError(t, err)
		require.Equal(t, second, again)
	}
	e.flushing.Unlock()
	eventually(t, "both end", func() bool {
		a, _ := jobOf(e, first.ID)
		b, _ := jobOf(e, second.ID)
		return a.State == batch.Done && b.State == batch.Done
	})
	third, err := e.RunBatchJob(t.Context(), false)
	require.NoError(t, err)
	eventually(t, "a later one begins anew", func() bool { s, _ := jobOf(e, third.ID); return s.State == batch.Done })
}

// A panic ends a call; it is not repeated, and the next one is worked on.
func TestACallThatPanics(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir()))
	runner := e.data.runner
	e.data.runner = nil
	job, err := e.RunBatchJob(t.Context(), false)
	require.NoError(t, err)
	eventually(t, "the call ends", func() bool {
		all := e.calls.status()
		return all[0].ID == job.ID && all[0].State == batch.Failed && all[0].Error == errPanic.Error()
	})
	e.data.runner = runner
	next, start := e.calls.join(time.Now())
	require.False(t, start, "there is a goroutine, which sleeps after a panic")
	eventually(t, "the next one is worked on", func() bool { s, _ := jobOf(e, next.ID); return s.State == batch.Done })
	s, _ := jobOf(e, job.ID)
	require.Equal(t, batch.Failed, s.State)
}
