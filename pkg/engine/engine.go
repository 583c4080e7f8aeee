// Package engine wires Millrace's parts and owns their life: the receiver, the log, generations, local blocks, the bucket, batch
// jobs, the merge and the HTTP listener.
//
// An engine belongs to a process. Start returns at once; opening (taking the lock of the data path, opening local blocks, looking into the bucket)
// happens in the background and is tried again every second when it fails, so that no error of the engine ends its process. Until that
// is done every handler answers that it is starting. Then the engine is replaying: it takes writes, answers from the batch layer, and reads its logs back; each
// log that was not read yet is a source that fails, so that no answer is incomplete, and Await is for waiting until there is none. When it is ready, flushes, uploads and
// jobs begin, which keep the order of generations. A process that is better ended than left with settings that cannot work calls
// Prepare first, which takes address, data path and bucket at once or says why they cannot be had.
//
// # Concurrency
//
// Locks are taken in this order, and none is held during I/O except where it says so:
//
//	numbering the comparison of waiting generations' numbers with the bucket's; held while it is listed and while generations are renumbered
//	deleting one deletion of series at a time; held while its tombstone is written, and while generations are renumbered
//	rotate   one rotation of the active generation at a time; held while the next log is created
//	accept   choice of the generation that takes a request; its place in the order of acceptance is its position in that generation's log, which
//	         stays open until all who have chosen it are through
//	flushing one pass over sealed generations at a time; held while blocks are written
//	uploads  one pass over local blocks at a time; held while the bucket is written
//	publishing what the claim's state is for writes, health and metrics
//	mu       phase, problems, and the lists of generations and blocks; never held during I/O
//
// Each background loop runs in a goroutine started by Engine.loop, hears the engine's context, and reports what fails to the problems
// that health and /api/v1/layers show. Stop cancels them and waits.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/batch"
	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/claim"
	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/speed"
	"github.com/millrace/millrace/pkg/tombstone"
)

// Phase is where an engine stands in its life.
type Phase string

// The phases of an engine. A failed engine goes on trying to open. One that is replaying takes writes and answers from the batch layer; what else is asked waits.
const (
	Starting  Phase = "starting"
	Replaying Phase = "replaying"
	Ready     Phase = "ready"
	Failed    Phase = "failed"
	Stopping  Phase = "stopping"
)

// State is an engine's phase with what there is to say about it.
type State struct {
	Phase    Phase
	Progress string // what a starting or replaying engine is doing
	Err      error  // why a failed engine does not open, or what is wrong with a ready one
}

// Engine is one Millrace: all layers over one data path and one bucket.
type Engine struct {
	cfg      Config
	logger   *slog.Logger
	reg      prometheus.Registerer
	gatherer prometheus.Gatherer
	metrics  *metrics

	set       *serving.Set
	queryable storage.SampleAndChunkQueryable
	queries   promql.QueryEngine
	features  serving.Features
	receiver  *ingest.Receiver
	speedM    *speed.Metrics
	exemplars *exemplars
	metadata  *metadataStore

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	cache        *block.Cache
	batchMetrics *batch.Metrics
	indexMetrics *block.IndexMetrics
	listening    atomic.Value // net.Addr

	// unreadable counts, by generation, failed replays that the disk is to blame for; of the goroutine that opens the engine.
	unreadable map[uint64]int

	wrapBucket func(objstore.Bucket) objstore.Bucket // of tests; nil leaves the bucket as it is

	prepared prepared  // what Prepare took, for the first attempts of the background work
	data     *dataPath // what opening made; nil before; written before the phase becomes Ready

	deleting sync.Mutex
	rotating sync.Mutex
	accept   sync.Mutex
	active   *generation // guarded by accept

	flushing sync.Mutex
	uploads  sync.Mutex
	disk     atomic.Pointer[diskUsage]
	calls    calls
	refusal  atomic.Pointer[error] // why writes are refused while another writer has the external labels

	publishing sync.Mutex
	published  claim.State // what was made known of the claim; guarded by publishing

	mu          sync.Mutex
	phase       Phase
	progress    string
	problems    map[string]error // by component
	generations []*generation    // in number order, the active one last
	unread      []*unreadLog     // in number order; those of which queries do not see the generation yet
	replaying   time.Time        // when the replay of logs began
	read        int64            // bytes of the logs that were read back since
	local       []*localBlock    // in order of upload
	atRisk      uint64           // the newest generation that a failed sync of the log put at risk; 0 is none
	sealed      chan struct{}    // a token: generations wait to be written
	uploadable  chan struct{}    // a token: local blocks wait to be uploaded
	opened      chan struct{}    // closed when the engine is ready, with all that the logs held
}

// New wires an engine; nothing is opened and nothing is read before Start. Metrics go to reg, the engine's own metrics are gathered from gatherer.
func New(cfg Config, reg prometheus.Registerer, gatherer prometheus.Gatherer, logger *slog.Logger) (*Engine, error) {
	ctx, cancel := context.WithCancel(context.Background())
	e := &Engine{
		cfg: cfg, logger: logger, reg: reg, gatherer: gatherer, metrics: newMetrics(reg),
		set: serving.NewSet(), speedM: speed.NewMetrics(reg), metadata: newMetadataStore(),
		ctx: ctx, cancel: cancel,
		phase: Starting, progress: "waiting to open", problems: map[string]error{},
		sealed: make(chan struct{}, 1), uploadable: make(chan struct{}, 1), opened: make(chan struct{}),
		unreadable: map[uint64]int{}, published: claim.Unknown,
	}
	collector.setUsual()
	memory := setMemoryLimit(cfg.MemoryLimit)
	if cfg.Speed.MemoryLimit == 0 {
		e.cfg.Speed.MemoryLimit = memory / 2
	}
	var err error
	if e.exemplars, err = newExemplars(cfg.Speed.Exemplars, reg); err != nil {
		cancel()
		return nil, err
	}
	limits := cfg.Ingest
	limits.Horizon, limits.Rules, limits.Now = e.horizon, cfg.Storage.RetentionRules, e.now
	e.receiver = ingest.NewReceiver(appender{e}, limits, reg, logger)
	if err := e.openQueries(memory); err != nil {
		cancel()
		return nil, err
	}
	return e, nil
}

// prepared is what was taken before the start. Each part has one goroutine that takes it over.
type prepared struct {
	listener net.Listener
	data     *dataPath
}

// Prepare takes what the settings name: the listener's address, the data path, the bucket. Its error is one that only the user mends, and then
// nothing is held any more; an outage of the bucket is none. Start must follow. Without Prepare, Start's background work tries until it gets them.
func (e *Engine) Prepare() error {
	if e.cfg.Web.ListenAddress != "" {
		l, err := e.bind()
		if err != nil {
			return err
		}
		e.prepared.listener = l
	}
	d, err := e.openPath()
	if err != nil && !outage(err) {
		if l := e.prepared.listener; l != nil {
			_ = l.Close()
		}
		return err
	}
	e.prepared.data = d
	return nil
}

// Start opens the engine in the background, and serves api on its listener.
func (e *Engine) Start(api http.Handler) {
	e.loop("open", e.open)
	if e.cfg.Web.ListenAddress != "" {
		e.loop("listener", func(ctx context.Context) { e.listen(ctx, api) })
	}
}

// Opened is closed when the engine has become ready, and all logs are replayed.
func (e *Engine) Opened() <-chan struct{} { return e.opened }

// State tells the engine's phase.
func (e *Engine) State() State {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for name, err := range e.problems {
		errs = append(errs, fmt.Errorf("%s: %w", name, err))
	}
	return State{Phase: e.phase, Progress: e.progress, Err: errors.Join(errs...)}
}

// Receiver takes remote write requests. It refuses them, for the sender to come again, until the engine has its data path.
func (e *Engine) Receiver() *ingest.Receiver { return e.receiver }

// AdminAPI tells whether the HTTP API may delete series.
func (e *Engine) AdminAPI() bool { return e.cfg.Web.EnableAdminAPI }

// Features are the optional parts of PromQL that are switched on.
func (e *Engine) Features() serving.Features { return e.features }

// Gatherer gathers the engine's own metrics.
func (e *Engine) Gatherer() prometheus.Gatherer { return e.gatherer }

// Logger is where the engine logs.
func (e *Engine) Logger() *slog.Logger { return e.logger }

// Metadata returns what senders have told of their metric families.
func (e *Engine) Metadata() map[string]metadata.Metadata { return e.metadata.families() }

// QueryEngine evaluates PromQL within the engine's limits.
func (e *Engine) QueryEngine() promql.QueryEngine { return e.queries }

// Queryable is the merge of all layers; serving.WithLayer narrows it.
func (e *Engine) Queryable() storage.SampleAndChunkQueryable { return e.queryable }

// ExemplarQueryable finds the newest exemplars.
func (e *Engine) ExemplarQueryable() storage.ExemplarQueryable { return e.exemplars }

// Stop is a crash with a warning: writes are no longer accepted, the log is synced, and that is all. It returns when ctx ends at the latest.
func (e *Engine) Stop(ctx context.Context) {
	e.setPhase(Stopping, "stopping")
	e.cancel()
	done := make(chan struct{})
	go func() {
		e.closeLogs()
		e.wg.Wait()
		e.releaseClaim()
		e.close()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// loop runs fn in a goroutine that Stop waits for. A panic in it is a problem of the engine, not the end of the process.
func (e *Engine) loop(name string, fn func(context.Context)) {
	e.wg.Go(func() {
		for !e.run(name, fn) && e.ctx.Err() == nil {
			sleep(e.ctx, time.Second)
		}
	})
}

// run tells whether fn came to its end.
func (e *Engine) run(name string, fn func(context.Context)) (ended bool) {
	defer func() {
		if r := recover(); r != nil {
			e.logger.Error("background work panicked and begins anew", "component", name, "panic", r, "stack", string(debug.Stack()))
			e.report(name, fmt.Errorf("panic: %v", r))
		}
	}()
	fn(e.ctx)
	return true
}

// enter lets Stop wait for work that a caller does. It fails when the engine takes no writes.
func (e *Engine) enter() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.phase != Ready && e.phase != Replaying {
		return fmt.Errorf("the engine is %s", e.phase)
	}
	e.wg.Add(1)
	return nil
}

// report records what is wrong with a component, or with nil that nothing is any more.
func (e *Engine) report(component string, err error) {
	e.mu.Lock()
	was := e.problems[component]
	if err == nil {
		delete(e.problems, component)
	} else {
		e.problems[component] = err
	}
	e.mu.Unlock()
	switch {
	case err != nil && (was == nil || was.Error() != err.Error()):
		e.logger.Error("a component has a problem", "component", component, "err", err)
	case err == nil && was != nil:
		e.logger.Info("a component has recovered", "component", component)
	}
}

func (e *Engine) setPhase(p Phase, progress string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.phase == Stopping {
		return
	}
	e.phase, e.progress = p, progress
}

func (e *Engine) setProgress(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.progress = fmt.Sprintf(format, args...)
}

// horizon is the oldest time, in milliseconds, that retention keeps; the lowest number when it keeps everything.
func (e *Engine) horizon() int64 {
	if e.cfg.Storage.Retention == 0 {
		return minTime
	}
	return e.now().Add(-e.cfg.Storage.Retention).UnixMilli()
}

// expired is what retention rules do not keep.
func (e *Engine) expired() *tombstone.Filter {
	return e.cfg.Storage.RetentionRules.Expired(e.now().UnixMilli())
}

// now is the time by which retention goes.
func (e *Engine) now() time.Time {
	if e.cfg.now != nil {
		return e.cfg.now()
	}
	return time.Now()
}

// signal puts a token into a channel of capacity one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// every calls fn at once, then at each tick and token, until ctx ends.
func every(ctx context.Context, interval time.Duration, token <-chan struct{}, fn func(context.Context)) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		fn(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-token:
		}
	}
}
