package engine

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/batch"
	"github.com/millrace/millrace/pkg/claim"
)

// compactor is another process that holds the lease of an engine's batch jobs until it is stopped.
func compactor(t *testing.T, e *Engine, times claim.Times) (stop func()) {
	t.Helper()
	c := claim.New(claim.Options{
		Bucket: e.data.bucket, Labels: e.cfg.Storage.externalLabels(), Folder: batch.LeaseFolder, Times: times,
		Identity: claim.Identity{Instance: "x", Host: "elsewhere", PID: 7},
	})
	require.NoError(t, c.Step(t.Context()))
	_, err := c.Held()
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var renewing sync.WaitGroup
	renewing.Go(func() {
		for ; ctx.Err() == nil; sleep(ctx, times.Renew) {
			_ = c.Step(ctx) // fails when it is stopped
		}
	})
	return func() { cancel(); renewing.Wait() }
}

func jobsDone(e *Engine) (kinds []batch.Kind) {
	for _, j := range e.Layers().Jobs {
		if j.State == batch.Done {
			kinds = append(kinds, j.Kind)
		}
	}
	return kinds
}

// While another process runs batch jobs, rounds are left out; who asks for the work gets it when that process has ended, even without a word.
func TestBatchJobsAreLeftToWhoeverHoldsTheLease(t *testing.T) {
	cfg := testConfig(t, t.TempDir(), "--batch.erase-delay=1ms")
	cfg.leases = claim.Times{Renew: 20 * time.Millisecond, Valid: time.Second, Inherit: 2 * time.Second, Expire: 2 * time.Second, Ask: time.Second, Poll: time.Second}
	e := startEngine(t, cfg)
	write(t, e, "a", point{time.Now().Add(-72 * time.Hour).UnixMilli(), 1})
	require.NoError(t, e.RunBatch(t.Context()))
	require.Empty(t, e.Layers().Leases)
	deleteAll(t, e, series("a"))
	require.NoError(t, e.uploadOnce(t.Context()))

	stop := compactor(t, e, cfg.leases)
	require.NoError(t, e.runJobs(t.Context(), false))
	leases := e.Layers().Leases
	require.Len(t, leases, 1)
	require.Equal(t, claim.Refused, leases[0].State)
	require.Equal(t, "elsewhere", leases[0].Holder.Host)
	require.NotContains(t, jobsDone(e), batch.Erase)

	asked := make(chan error, 1)
	go func() { asked <- e.RunBatch(t.Context()) }()
	require.Never(t, func() bool { return len(asked) > 0 }, 100*time.Millisecond, 10*time.Millisecond)
	stop()
	require.NoError(t, <-asked)
	require.Contains(t, jobsDone(e), batch.Erase)
	require.Empty(t, e.Layers().Leases)
}
