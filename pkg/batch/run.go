package batch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/claim"
	"github.com/millrace/millrace/pkg/tombstone"
)

const (
	// quarantineTime is how long an unreadable block is left alone before it is tried again.
	quarantineTime = 6 * time.Hour
	// assumedUploaded is the age from which all blocks of a generation are taken to be in the bucket, where neither its writer
	// nor a block of the next generation says so. Generations are sealed after 2 h at most.
	assumedUploaded = 3 * time.Hour
	// staleAfter is how old a listing may be when something is uploaded on its strength.
	staleAfter = time.Minute
	// privateCache is the size in bytes of the cache of a runner that is given none: enough for an index that is read once per
	// window.
	privateCache = 64 << 20
)

// Lister lists the blocks of the bucket; *block.Lister is one.
type Lister interface {
	List(ctx context.Context) (map[ulid.ULID]block.Listed, error)
	// Partial returns the folders without meta.json that the latest List found.
	Partial() []ulid.ULID
}

// Options are what a runner needs. Bucket, Lister and ScratchDir must be given.
type Options struct {
	Bucket objstore.Bucket
	// Lister of the same bucket.
	Lister Lister
	// Cache for reading blocks; a small one of the runner's own if nil.
	Cache *block.Cache
	// ScratchDir is where blocks are made. Blocks in it are removed when a run begins, so that no two runners may share it.
	ScratchDir string
	Config     Config
	// Labels restricts the runner to blocks with exactly these external labels; nil does not.
	Labels map[string]string
	// Uploaded returns up to which generation all blocks of the writer with these external labels are in the bucket, if that is
	// known. It is asked before the bucket is listed. nil knows of none.
	Uploaded func(labels map[string]string) (generation uint64, known bool)
	// Room returns how many bytes jobs may write below ScratchDir, if that is known; a job that may need more fails before it
	// begins. nil knows of no limit.
	Room func() (bytes int64, known bool)
	// Uploading says whether a block is being uploaded by this process just now; nil says no.
	Uploading func(ulid.ULID) bool
	// Lease keeps others with a lease from doing the same work at the same time; nil lets them.
	Lease   *Lease
	Metrics *Metrics
	Logger  *slog.Logger
	// Now is the clock, time.Now if nil.
	Now func() time.Time
}

// Runner runs jobs on a bucket. See the package's comment for what may be done concurrently.
type Runner struct {
	o       Options
	config  Config
	metrics *Metrics
	log     *slog.Logger
	now     func() time.Time
	turn    chan struct{}          // holds a token while a run is under way
	before  map[string]writerState // by whoever has the turn; of the latest listing
	masters *block.Lister          // by whoever has the turn; of the kept level-0 blocks
	found   findings

	tombstones *tombstone.Store

	mu         sync.Mutex
	running    *tracker
	planned    []JobStatus
	history    []JobStatus
	quarantine map[ulid.ULID]QuarantinedBlock
	failures   map[string]int // by id of the job, how often since it was last done
	claimants  []*claim.Claimant
}

// NewRunner checks the options. It makes no request.
func NewRunner(o Options) (*Runner, error) {
	if o.Bucket == nil || o.Lister == nil || o.ScratchDir == "" {
		return nil, errors.New("batch: bucket, lister and scratch folder must be given")
	}
	c := o.Config.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("batch: %w", err)
	}
	if o.Cache == nil {
		o.Cache = block.NewCache(privateCache, nil)
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Uploading == nil {
		o.Uploading = func(ulid.ULID) bool { return false }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Lease != nil && o.Lease.Times == (claim.Times{}) {
		o.Lease = &Lease{Identity: o.Lease.Identity, Times: DefaultLeaseTimes()}
	}
	r := &Runner{
		o: o, config: c, metrics: o.Metrics, log: o.Logger, now: o.Now,
		found: findings{}, tombstones: tombstone.NewStore(o.Bucket),
		turn: make(chan struct{}, 1), masters: block.NewLister(block.Masters(o.Bucket)), quarantine: map[ulid.ULID]QuarantinedBlock{}, failures: map[string]int{},
	}
	o.Metrics.runner.Store(r)
	return r, nil
}

// Summary says what a run did.
type Summary struct {
	// Jobs that were done, that failed, and that were given up because others had done their work.
	Jobs, Failed, Abandoned int
	// Elsewhere is how many that were due are left to another process.
	Elsewhere int
	// Written blocks and the samples in them.
	Written int
	Samples uint64
	// Marked for deletion and deleted blocks, superseded level-0 blocks that are kept elsewhere, abandoned uploads that were removed.
	Marked, Deleted, Kept, Partial int
	// Quarantined blocks at the end of the run, by what jobs found or by marks in the bucket.
	Quarantined int
	Took        time.Duration
}

// String is one line for people.
func (s Summary) String() string {
	out := fmt.Sprintf("%d jobs done, %d failed, %d abandoned; %d blocks with %d samples written; %d blocks marked for deletion, %d deleted, %d partial uploads removed",
		s.Jobs, s.Failed, s.Abandoned, s.Written, s.Samples, s.Marked, s.Deleted, s.Partial)
	if s.Elsewhere > 0 {
		out += fmt.Sprintf("; %d jobs left to another process", s.Elsewhere)
	}
	if s.Kept > 0 {
		out += fmt.Sprintf("; %d superseded level-0 blocks kept", s.Kept)
	}
	if s.Quarantined > 0 {
		out += fmt.Sprintf("; %d blocks are in quarantine", s.Quarantined)
	}
	return out + fmt.Sprintf("; took %s", s.Took.Round(time.Millisecond))
}

// Run runs jobs until none is due, then marks what was replaced or is beyond retention and deletes what was marked long
// enough ago. With force, windows need not be over (see Plan), and the newest generation that the bucket shows is taken to
// be complete, unless Options.Uploaded knows better.
//
// A job that fails does not stop the others; the error names all that failed. After an error, also of ctx, the bucket holds
// all samples as before, and the next run takes up what was left. Calls take turns.
//
// Jobs of a writer on whose blocks another process is at work are left to it: then the error is ErrElsewhere, unless something failed. With force, the run
// waits for that process instead and does what that has left.
func (r *Runner) Run(ctx context.Context, force bool) (Summary, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return Summary{}, ctx.Err()
	}
	began := r.now()
	u := r.newRun(force)
	err := u.work(ctx)
	r.setPlanned(nil)
	u.summary.Took = r.now().Sub(began)
	r.metrics.runs.Inc()
	r.metrics.runSeconds.Observe(u.summary.Took.Seconds())
	if err != nil {
		r.metrics.runFailures.Inc()
		return u.summary, err
	}
	if left := u.elsewhere(); left != nil {
		r.metrics.elsewhere.Inc()
		return u.summary, left
	}
	r.metrics.lastSuccess.Set(float64(r.now().UnixMilli()) / 1e3)
	return u.summary, nil
}

// work is all, after which no lease is held. Others would wait without end for one that is still renewed after a panic.
func (u *run) work(ctx context.Context) error {
	defer u.dropLeases()
	return u.all(ctx)
}

// newRun is called by whoever has the turn.
func (r *Runner) newRun(force bool) *run {
	r.mu.Lock()
	r.claimants = nil
	r.mu.Unlock()
	return &run{
		Runner: r, force: force, failed: map[ulid.ULID]bool{}, attempts: map[string]int{}, changed: map[ulid.ULID]bool{},
		leases: leases{held: map[string]*lease{}, elsewhere: map[string]error{}},
	}
}

// run is one call of Run.
type run struct {
	*Runner
	force   bool
	summary Summary
	// failed are inputs of jobs that failed in this run; they are left for the next.
	failed map[ulid.ULID]bool
	// quarantined are the blocks that the latest listing showed in quarantine.
	quarantined map[ulid.ULID]bool
	// attempts counts how often a job, by id, was begun.
	attempts map[string]int
	leases   leases
	// sure is up to which time the clock is sure, in milliseconds; see clock.
	sure int64
	// changed are the tombstones and retention rules of which something new was found out.
	changed map[ulid.ULID]bool
}

// maxAttempts is how often one run begins the same job. The first attempt may find its inputs gone because the listing was
// old; a job that is still due after a second one will be so after a third.
const maxAttempts = 2

func (u *run) all(ctx context.Context) error {
	if err := cleanScratch(u.o.ScratchDir); err != nil {
		return err
	}
	u.endQuarantines()
	var clockErr error
	if u.keepsClock() {
		clockErr = u.readClock(ctx, false)
	}
	latest, err := u.jobs(ctx)
	err = errors.Join(clockErr, err)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case latest == nil:
		return err
	}
	return errors.Join(err, u.tidy(ctx, latest))
}

// jobs plans and runs until nothing is due. It returns the listing that shows so, nil if the bucket cannot be listed.
func (u *run) jobs(ctx context.Context) (latest *listing, err error) {
	before, err := u.earlier(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for {
		now, err := u.list(ctx, before)
		if err != nil {
			return nil, errors.Join(append(errs, err)...)
		}
		u.before, u.quarantined = now.writers, now.quarantined()
		u.countQuarantined(now)
		if err := u.unmark(ctx, now); err != nil {
			errs = append(errs, err)
		}
		if now.inTheWay != nil {
			return now, errors.Join(append(errs, now.inTheWay)...)
		}
		jobs, fresh := u.lease(ctx, u.plan(before, now))
		if fresh {
			before = now.writers
			continue
		}
		u.setPlanned(jobs)
		for i := range jobs {
			if u.now().Sub(now.at) > staleAfter || !u.leased(&jobs[i]) {
				break
			}
			if !u.worthwhile(ctx, &jobs[i], now) {
				continue
			}
			if err := u.job(ctx, &jobs[i], now); err != nil {
				errs = append(errs, err)
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
		}
		u.saveFindings(ctx, now)
		if len(jobs) == 0 {
			return now, errors.Join(errs...)
		}
		before = now.writers
	}
}

// earlier returns what a listing before the next one showed of writers: that of the run before, if the writer itself says
// what is complete, so that nothing has to wait for another listing to see it twice.
func (u *run) earlier(ctx context.Context) (map[string]writerState, error) {
	if !u.force && u.before != nil && u.o.Uploaded != nil {
		return u.before, nil
	}
	l, err := u.list(ctx, nil)
	if err != nil {
		return nil, err
	}
	return l.writers, nil
}

// listing is what the bucket showed of the blocks that this runner may touch.
type listing struct {
	at      time.Time // when it was asked
	blocks  []block.Listed
	writers map[string]writerState
	// tombstones are the deletions that concern these blocks; void is what they have no effect on.
	tombstones []*tombstone.Tombstone
	void       map[pair]bool
	// all are the blocks of all writers, and there their ids; unreadable says that there are others, which cannot be read.
	all        []block.Meta
	there      map[ulid.ULID]bool
	unreadable bool
	// inTheWay says why no job can be planned.
	inTheWay error
}

// noteUnreadable looks for blocks whose meta.json cannot be read and that no other block has replaced. Where they belong in the order of precedence nobody knows; a merge of
// blocks before and after one would let the older ones win over it, for good.
func (l *listing) noteUnreadable(lister Lister) {
	b, ok := lister.(interface{ Bad() map[ulid.ULID]error })
	if !ok {
		return
	}
	bad := b.Bad()
	l.unreadable = anyUnreadable(bad)
	for _, m := range l.all {
		for _, id := range m.Replaces() {
			delete(bad, id)
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(bad), ulid.ULID.Compare) {
		if !errors.Is(bad[id], block.ErrDownsampled) {
			l.inTheWay = fmt.Errorf("no blocks are merged while it is not known what block %s holds: mend its %s, or take its folder out of the bucket: %w", id, block.MetaFilename, bad[id])
			return
		}
	}
}

// quarantined returns the blocks with a mark that takes them out of jobs.
func (l *listing) quarantined() map[ulid.ULID]bool {
	ids := map[ulid.ULID]bool{}
	for _, b := range l.blocks {
		if b.QuarantineMark != nil {
			ids[b.Meta.ULID] = true
		}
	}
	return ids
}

// writerState is what is known of the generations of one writer.
type writerState struct {
	labels map[string]string
	// newest is the highest generation in the bucket.
	newest uint64
	// uploaded is up to which generation all blocks were in the bucket before it was listed, if the writer says so.
	uploaded uint64
	known    bool
}

// list asks the bucket. before are the writers that a listing before has shown; they are asked first how far they have
// uploaded.
func (r *Runner) list(ctx context.Context, before map[string]writerState) (*listing, error) {
	l := &listing{at: r.now(), writers: map[string]writerState{}}
	if r.o.Uploaded != nil {
		for key, w := range before {
			s := writerState{labels: w.labels}
			s.uploaded, s.known = r.o.Uploaded(w.labels)
			l.writers[key] = s
		}
	}
	all, err := r.o.Lister.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the bucket: %w", err)
	}
	for _, id := range slices.SortedFunc(maps.Keys(all), ulid.ULID.Compare) {
		b := all[id]
		l.all = append(l.all, b.Meta)
		if !r.mine(&b.Meta) {
			continue
		}
		l.blocks = append(l.blocks, b)
		key := writer(&b.Meta)
		s := l.writers[key]
		_, gen := b.Meta.Generations()
		s.labels, s.newest = b.Meta.Thanos.Labels, max(s.newest, gen)
		l.writers[key] = s
	}
	l.noteUnreadable(r.o.Lister)
	return l, r.listTombstones(ctx, l)
}

// plan plans on the later one of two listings. Generations are uploaded in order, so that it shows all blocks of those below
// the newest one of the listing before; whether it shows all of that one is for the writer to say.
func (u *run) plan(before map[string]writerState, now *listing) []Job {
	return plan(now.blocks, now.at, u.config, u.force, limits{
		held: u.held, tombstones: now.tombstones, void: now.void, sure: u.sure,
		incomplete: func(m *block.Meta) bool {
			key := writer(m)
			earlier, w := before[key], now.writers[key]
			_, gen := m.Generations()
			switch {
			case gen < earlier.newest || w.known && gen <= w.uploaded:
				return false
			case w.known || gen > earlier.newest:
				return true
			}
			return !u.force && now.at.Sub(m.ULID.Timestamp()) < assumedUploaded
		},
	})
}

func (u *run) held(m *block.Meta) bool {
	if u.failed[m.ULID] || u.quarantined[m.ULID] {
		return true
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	_, ok := u.quarantine[m.ULID]
	return ok
}

// job runs one job and files how it ended. The error is that of a job that failed.
func (u *run) job(ctx context.Context, j *Job, l *listing) error {
	t := u.begin(j)
	u.log.Info("batch job begins", "kind", j.Kind, "job", j.ID, "inputs", len(j.Inputs), "from", hull(j.Inputs).from(), "to", hull(j.Inputs).to())
	e := &execution{run: u, job: j, listed: l, tracker: t, open: map[ulid.ULID]*block.Block{}}
	var err error
	if u.attempts[j.ID]++; u.attempts[j.ID] > maxAttempts {
		err = errNoEffect
	} else {
		err = e.do(ctx)
	}
	if err != nil && ctx.Err() == nil {
		err = u.blame(ctx, e, err)
	}
	took := u.now().Sub(t.status.Started)
	u.metrics.jobSeconds.WithLabelValues(string(j.Kind)).Observe(took.Seconds())
	state, outcome := Done, outcomeDone
	switch {
	case errors.Is(err, errAbandoned):
		state, outcome, err = Abandoned, outcomeAbandoned, nil
		u.summary.Abandoned++
	case err != nil:
		state, outcome = Failed, outcomeFailed
		err = fmt.Errorf("%s of %d blocks, %s: %w", j.Kind, len(j.Inputs), t.status.Detail, err)
		u.summary.Failed++
	default:
		u.summary.Jobs++
	}
	u.metrics.jobs.WithLabelValues(string(j.Kind), outcome).Inc()
	u.end(t, state, err)
	if err != nil {
		u.log.Warn("batch job failed", "job", j.ID, "took", took, "err", err)
	} else {
		u.log.Info("batch job ended", "kind", j.Kind, "job", j.ID, "outcome", outcome, "outputs", len(t.status.Outputs), "took", took)
	}
	return err
}

// blame finds out what a job's failure means for the next plan: inputs that are bad are quarantined, those that are gone
// are gone, and otherwise all are left for the next run.
func (u *run) blame(ctx context.Context, e *execution, cause error) error {
	if errors.Is(cause, errAbandoned) {
		return cause
	}
	if errors.Is(cause, block.ErrGone) && u.attempts[e.job.ID] < maxAttempts {
		return fmt.Errorf("%w: %w", errAbandoned, cause)
	}
	found := false
	if u.suspicious(e.job.ID, cause) {
		for _, m := range e.job.Inputs {
			findings, err := block.Verify(ctx, u.o.Bucket, m.ULID)
			switch {
			case ctx.Err() != nil:
				return cause
			case len(findings) > 0:
				u.quarantineBlock(m.ULID, fmt.Errorf("%w: %s", block.ErrCorrupt, findings[0]))
				found = true
				if u.config.Quarantine {
					cause = errors.Join(cause, u.markDamaged(ctx, m.ULID))
				}
			case errors.Is(err, block.ErrGone):
				u.quarantineBlock(m.ULID, err)
				found = true
			}
		}
	}
	if !found {
		for _, m := range e.job.Inputs {
			u.failed[m.ULID] = true
		}
	}
	return cause
}

// markDamaged puts a block in quarantine, if it is still damaged on a second look and still there: somebody may just have deleted it.
func (u *run) markDamaged(ctx context.Context, id ulid.ULID) error {
	findings, err := block.Verify(ctx, u.o.Bucket, id)
	if err != nil || len(findings) == 0 {
		return err
	}
	there, err := u.o.Bucket.Exists(ctx, path.Join(id.String(), block.MetaFilename))
	if err != nil || !there {
		return err
	}
	return block.Quarantine(ctx, u.o.Bucket, id, findings[0].String())
}

// suspicious says whether a failure calls for reading the job's inputs whole: it says itself that a block is to blame, or the
// job has failed twice in a row.
func (r *Runner) suspicious(job string, cause error) bool {
	if errors.Is(cause, errNoRoom) {
		return false // nothing was read
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures[job]++
	return errors.Is(cause, block.ErrCorrupt) || errors.Is(cause, block.ErrGone) || r.failures[job]%2 == 0
}

func (r *Runner) quarantineBlock(id ulid.ULID, err error) {
	r.log.Error("a block cannot be read and takes part in no job", "block", id, "err", err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.quarantine[id] = QuarantinedBlock{ID: id, Until: r.now().Add(quarantineTime), Error: err.Error()}
}

// countQuarantined counts the blocks that take part in no job because they are damaged: by what the runner has found, and by their marks in the bucket. Those that
// have been replaced do no harm any more.
func (u *run) countQuarantined(l *listing) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := 0
	for _, m := range visible(l.blocks) {
		if _, found := u.quarantine[m.ULID]; found || u.quarantined[m.ULID] {
			n++
		}
	}
	u.summary.Quarantined = n
	u.metrics.quarantined.Set(float64(n))
}

// endQuarantines lets blocks be tried again after some time.
func (r *Runner) endQuarantines() {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.quarantine, func(_ ulid.ULID, q QuarantinedBlock) bool { return !r.now().Before(q.Until) })
}

// cleanScratch removes what a run before has left: folders that are named as blocks are, and nothing else.
func cleanScratch(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("make scratch folder: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read scratch folder: %w", err)
	}
	for _, e := range entries {
		name, _, _ := strings.Cut(e.Name(), ".")
		if _, err := ulid.ParseStrict(name); err != nil || !e.IsDir() {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("clean scratch folder: %w", err)
		}
	}
	return nil
}
