package batch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/claim"
)

// LeaseFolder is where leases are in a bucket: a folder for each writer whose blocks are worked on. Readers of blocks pass it over.
const LeaseFolder = "millrace/compactors"

// ErrElsewhere says that a run left jobs that are due to another process, which is at work on blocks of the same writer.
var ErrElsewhere = errors.New("another process runs the batch jobs")

// Lease is how a runner keeps other processes from doing its work a second time.
type Lease struct {
	Identity claim.Identity
	// Times are DefaultLeaseTimes if zero.
	Times claim.Times
}

// DefaultLeaseTimes returns how long a lease lasts. They are shorter than those of a writer's claim: two at once cost work, and lose nothing.
func DefaultLeaseTimes() claim.Times {
	return claim.Times{
		Renew: 10 * time.Second, Valid: time.Minute, Inherit: 2 * time.Minute, Expire: 2 * time.Minute, Ask: 20 * time.Second, Poll: time.Second,
	}
}

// releaseTime is short, as a process that is being stopped waits for it. A lease that is not given up lapses.
const releaseTime = 500 * time.Millisecond

// leases are those of one run, by key of the writer. Each is a claim (see package claim: nobody compares clocks, and a holder that is not heard of is
// dead) of the right to work on one writer's blocks. It is taken when a job of that writer is due, so that a run which has nothing to do waits for nobody.
//
// One goroutine uses what is in it, that of the run; claimants are also used by a goroutine each, which takes the lease, and one that renews it.
type leases struct {
	held      map[string]*lease
	elsewhere map[string]error // writers whose jobs are left to others
}

type lease struct {
	labels   map[string]string
	claimant *claim.Claimant // nil where the lease could not be looked after, and jobs are run without it
	number   uint64          // of the claim, when it was taken
	stop     context.CancelFunc
	renewing sync.WaitGroup
}

func (l *lease) valid() bool {
	if l == nil {
		return false
	}
	if l.claimant == nil {
		return true
	}
	number, err := l.claimant.Held()
	return err == nil && number == l.number // or another had it in between
}

// lease drops the jobs that are left to other processes. fresh says that a lease became the run's own just now: whoever had it may have done its jobs.
func (u *run) lease(ctx context.Context, jobs []Job) (own []Job, fresh bool) {
	due := make([]*block.Meta, 0, len(jobs))
	for i := range jobs {
		due = append(due, &jobs[i].Inputs[0])
	}
	fresh = u.ensure(ctx, due)
	own = slices.DeleteFunc(jobs, func(j Job) bool { return u.leases.elsewhere[writer(&j.Inputs[0])] != nil })
	u.summary.Elsewhere = len(jobs) - len(own)
	return own, fresh
}

// ensure takes the leases of blocks' writers that are not held, all at the same time: each of them may have to lapse first.
func (u *run) ensure(ctx context.Context, metas []*block.Meta) (fresh bool) {
	taken := map[string]*lease{}
	for _, m := range metas {
		key := writer(m)
		if u.o.Lease == nil || taken[key] != nil || u.leases.elsewhere[key] != nil || u.leases.held[key].valid() {
			continue
		}
		u.drop(key) // it was lost
		taken[key] = u.newLease(m.Thanos.Labels)
	}
	keys := slices.Collect(maps.Keys(taken))
	errs := make([]error, len(keys))
	var all sync.WaitGroup
	for i, key := range keys {
		all.Go(func() { errs[i] = u.take(ctx, taken[key]) })
	}
	all.Wait()
	for i, key := range keys {
		if errs[i] != nil {
			u.leases.elsewhere[key] = errs[i]
			continue
		}
		u.leases.held[key], fresh = taken[key], true
	}
	return fresh
}

// leased says whether a job may be begun.
func (u *run) leased(j *Job) bool {
	return u.o.Lease == nil || u.leases.held[writer(&j.Inputs[0])].valid()
}

func (u *run) newLease(writer map[string]string) *lease {
	return &lease{labels: writer, stop: func() {}, claimant: claim.New(claim.Options{
		Bucket: u.o.Bucket, Labels: writer, Folder: LeaseFolder, Identity: u.o.Lease.Identity, Times: u.o.Lease.Times,
	})}
}

// take takes a lease, unless another process has it, which is the error. Where the run is to do all that is due, it waits for that one's end.
func (u *run) take(ctx context.Context, l *lease) error {
	u.watch(l)
	holder, err := u.acquire(ctx, l.claimant)
	switch {
	case holder != nil:
		return fmt.Errorf("%w of %s: %s", ErrElsewhere, labels.FromMap(l.labels), holderText(holder))
	case err != nil:
		u.log.Warn("the lease of batch jobs cannot be looked after; they are run without it", "writer", labels.FromMap(l.labels), "err", err)
		u.unwatch(l)
		l.claimant = nil
	default:
		l.number, _ = l.claimant.Held()
		u.renew(ctx, l)
	}
	return nil
}

// acquire takes steps until the lease is held or, unless the run waits for it, is known to be another's. One that nobody renews lapses. Who has it is
// returned, or what keeps the bucket from telling, for as long as a lease lasts.
func (u *run) acquire(ctx context.Context, c *claim.Claimant) (*claim.Holder, error) {
	var failing time.Time // since when
	for told := ""; ; {
		err := c.Step(ctx)
		if _, notHeld := c.Held(); notHeld == nil || ctx.Err() != nil {
			return nil, nil
		}
		holder := c.Status().Holder
		switch {
		case err == nil:
			failing = time.Time{}
		case failing.IsZero():
			failing = time.Now()
		case time.Since(failing) >= u.o.Lease.Times.Expire:
			return nil, err
		}
		if holder != nil && holder.Alive && !u.force {
			return holder, nil
		}
		if text := holderText(holder); holder != nil && text != told {
			level := slog.LevelInfo
			if holder.Instance == "" {
				level = slog.LevelWarn
			}
			u.log.Log(ctx, level, "batch jobs wait for a lease to be given up or to lapse", "lease", text)
			told = text
		}
		pause(ctx, time.Duration((0.5+0.5*rand.Float64())*float64(u.o.Lease.Times.Renew))) // two that met do not meet again
	}
}

// renew keeps a lease until it is dropped.
func (u *run) renew(ctx context.Context, l *lease) {
	ctx, l.stop = context.WithCancel(ctx)
	l.renewing.Go(func() {
		for pause(ctx, u.o.Lease.Times.Renew); ctx.Err() == nil; pause(ctx, u.o.Lease.Times.Renew) {
			if _, err := l.claimant.Held(); err != nil && l.claimant.Status().State != claim.Lapsed {
				return // another took over; whether it is waited for is for the run to say
			}
			if err := l.claimant.Step(ctx); err != nil && ctx.Err() == nil {
				u.log.Warn("the lease of batch jobs could not be renewed", "writer", labels.FromMap(l.labels), "err", err)
			}
		}
	})
}

// drop gives up a lease, if there is one.
func (u *run) drop(key string) {
	l := u.leases.held[key]
	if l == nil {
		return
	}
	delete(u.leases.held, key)
	l.stop()
	l.renewing.Wait()
	if l.claimant == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	if err := l.claimant.Release(ctx); err != nil {
		u.log.Warn("the lease of batch jobs could not be given up; others wait for it to lapse", "writer", labels.FromMap(l.labels), "err", err)
	}
	u.unwatch(l)
}

// dropLeases gives all leases up.
func (u *run) dropLeases() {
	for _, key := range slices.Sorted(maps.Keys(u.leases.held)) {
		u.drop(key)
	}
}

// elsewhere says what was left to other processes.
func (u *run) elsewhere() error {
	var left []error
	for _, key := range slices.Sorted(maps.Keys(u.leases.elsewhere)) {
		left = append(left, u.leases.elsewhere[key])
	}
	return errors.Join(left...)
}

// watch and unwatch keep what Leases shows.
func (r *Runner) watch(l *lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claimants = append(r.claimants, l.claimant)
}

func (r *Runner) unwatch(l *lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claimants = slices.DeleteFunc(r.claimants, func(c *claim.Claimant) bool { return c == l.claimant })
}

// Leases returns how the leases stand that are held or waited for, and those of the latest run that other processes had.
func (r *Runner) Leases() []claim.Status {
	r.mu.Lock()
	claimants := slices.Clone(r.claimants)
	r.mu.Unlock()
	out := make([]claim.Status, 0, len(claimants))
	for _, c := range claimants {
		out = append(out, c.Status())
	}
	slices.SortFunc(out, func(a, b claim.Status) int { return strings.Compare(fmt.Sprint(a.Labels), fmt.Sprint(b.Labels)) })
	return out
}

// holderText says who has a lease.
func holderText(h *claim.Holder) string {
	switch {
	case h == nil:
		return ""
	case h.Instance == "":
		return "a lease that cannot be read"
	}
	return fmt.Sprintf("process %d on host %q, since %s", h.PID, h.Host, h.Since.UTC().Format(time.RFC3339))
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
