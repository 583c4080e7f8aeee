package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/millrace/millrace/pkg/batch"
	"github.com/millrace/millrace/pkg/claim"
)

// runBatchOnSchedule looks for due jobs at each interval.
func (e *Engine) runBatchOnSchedule(ctx context.Context) {
	t := time.NewTicker(e.cfg.Batch.Interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if !e.mayCompact() {
			continue // health says why
		}
		err := e.runJobs(ctx, false)
		if ctx.Err() == nil {
			e.report("batch", err)
		}
	}
}

func (e *Engine) runJobs(ctx context.Context, force bool) error {
	defer collector.save()()
	done, err := e.data.runner.Run(ctx, force)
	if done.Jobs > 0 {
		defer GiveBack()
	}
	if errors.Is(err, batch.ErrElsewhere) { // layers say so
		e.logger.Info("a round of batch jobs is left out", "reason", err)
		err = nil
	}
	if err != nil {
		return fmt.Errorf("run batch jobs: %w", err)
	}
	return e.syncBucket(ctx)
}

// RunBatch seals the active generation, brings it to the bucket, and runs all jobs that this makes due. It returns when that is done.
func (e *Engine) RunBatch(ctx context.Context) error {
	return e.runBatch(ctx, func(string) {})
}

// runBatch is RunBatch, which tells what it does just now.
func (e *Engine) runBatch(ctx context.Context, detail func(string)) error {
	if err := e.enter(); err != nil {
		return err
	}
	defer e.wg.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	detail("waiting for logs to be replayed")
	if err := e.complete(ctx); err != nil {
		return err
	}
	detail("sealing the active generation")
	if g := e.activeGeneration(); g != nil && g.mem.Stats().Samples > 0 {
		if err := e.rotate(); err != nil {
			return fmt.Errorf("seal: %w", err)
		}
	}
	detail("writing local blocks")
	if err := e.flushSealed(ctx); err != nil {
		return err
	}
	e.report("flush", nil) // here and below: a loop that failed may be waiting for its next try
	detail("uploading")
	if err := e.uploadOnce(ctx); err != nil {
		return err
	}
	e.report("upload", nil)
	detail("running jobs")
	if err := e.runJobs(ctx, true); err != nil {
		return err
	}
	e.report("batch", nil)
	return nil
}

// Job is one call for batch work.
type Job struct {
	ID    string `json:"job"`
	State string `json:"state"` // running or done
}

// RunBatchJob is RunBatch for callers that may not want to wait: then it returns while the work goes on, and what goes wrong with it shows in health and layers.
// Two calls may then be answered with the same job, which began after both. Who waits hears by an *ingest.Unavailable that the work may be done later.
func (e *Engine) RunBatchJob(ctx context.Context, wait bool) (Job, error) {
	if err := e.enter(); err != nil {
		return Job{}, err
	}
	defer e.wg.Done()
	if wait {
		c := e.calls.begin(time.Now())
		return Job{ID: c.ID, State: string(batch.Done)}, later(e.call(ctx, c))
	}
	c, start := e.calls.join(time.Now())
	if start {
		e.loop("batch", e.workOnCalls)
	}
	return Job{ID: c.ID, State: string(batch.Running)}, nil
}

// later says when to come again, where an error of batch work is one of a bucket that is away, or that another writer holds.
func later(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNotHeld):
		return unavailable(err.Error(), refusedFor)
	case away(err):
		return unavailable(err.Error(), uploadInterval)
	}
	return err
}

// workOnCalls works on the calls that nobody waits for until there are none. After a panic it goes on with the next one.
func (e *Engine) workOnCalls(ctx context.Context) {
	for c := e.calls.take(); c != nil; c = e.calls.take() {
		if err := e.call(ctx, c); ctx.Err() == nil {
			e.report("batch", err)
		}
	}
}

func (e *Engine) call(ctx context.Context, c *batch.JobStatus) error {
	err := errPanic
	defer func() { e.calls.end(c, time.Now(), err) }()
	err = e.runBatch(ctx, func(text string) { e.calls.detail(c, text) })
	return err
}

// errPanic is how a call ended that did not come to its end.
var errPanic = errors.New("it panicked; the log says where")

func (c *Config) batchConfig() batch.Config {
	b := c.Batch.Jobs()
	b.Retention, b.RetentionSize, b.StartTimestamps = c.Storage.Retention, c.Storage.RetentionSize, c.Storage.StartTimestamps
	b.Rules = c.Storage.RetentionRules
	b.SyncInterval, b.QueryTimeout = c.Bucket.SyncInterval, c.Query.Timeout
	return b
}

// RunJobs runs due jobs against a bucket without an engine: what 'millrace batch run' does. Those of writers on whose blocks another process is at
// work are left to it, and the error is batch.ErrElsewhere; with force, its end is waited for.
func RunJobs(ctx context.Context, o batch.Options, force bool) (batch.Summary, error) {
	r, err := newRunner(o)
	if err != nil {
		return batch.Summary{}, err
	}
	s, err := r.Run(ctx, force)
	return s, interrupted(err)
}

func newRunner(o batch.Options) (*batch.Runner, error) {
	if o.Room == nil {
		o.Room = func() (int64, bool) { return roomBelow(o.ScratchDir) }
	}
	host, err := os.Hostname()
	if err != nil && o.Logger != nil {
		o.Logger.Warn("the host's name is not known; leases in the bucket do not tell it", "err", err)
	}
	o.Lease = &batch.Lease{Identity: claim.Identity{Instance: ulid.Make().String(), Host: host, PID: os.Getpid()}}
	return batch.NewRunner(o)
}

// interrupted reassures whoever ended a job.
func interrupted(err error) error {
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("interrupted; what is in the bucket is consistent: %w", err)
	}
	return err
}

// Recompute builds compacted blocks again from level-0 blocks, without an engine: what 'millrace batch recompute' does. See
// batch.Runner.RecomputeRange.
func Recompute(ctx context.Context, o batch.Options, mint, maxt int64, dry bool) ([]batch.Recomputed, error) {
	r, err := newRunner(o)
	if err != nil {
		return nil, err
	}
	found, err := r.RecomputeRange(ctx, mint, maxt, dry)
	return found, interrupted(err)
}
