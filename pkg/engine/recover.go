package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/speed"
	"github.com/millrace/millrace/pkg/tombstone"
	"github.com/millrace/millrace/pkg/wal"
)

// A start does not wait for its logs to take writes. The newest one is read back first: if that is done within a moment its generation goes on; else what arrives goes to
// a new one, above all that are read back in the background. Since nobody can tell what is in a log before it has been read, down to samples of any age, queries of the speed
// layer wait for all of them; so do flushes, uploads and batch jobs, which keep the order of generations, and deletions.
//
// A process that is killed again and again while it reads does not leave ever more behind: with a young log that is short the next start goes on, and what logs will take counts
// for the limits of memory and disk before they are read.

// newestLog says when the generation of the newest log goes on.
type newestLog struct {
	wait  time.Duration // for its replay; senders are used to come again later than that
	small int64         // a log up to this size, in bytes, is waited for in any case
}

func defaultNewestLog() newestLog { return newestLog{wait: 3 * time.Second, small: 64 << 10} }

// unreadLog stands for a generation whose log was not read back yet: queries that may need it fail, rather than be answered without it.
type unreadLog struct {
	number uint64
	size   int64 // bytes
	stored tombstone.Stored
	read   atomic.Int64                     // bytes
	mem    atomic.Pointer[speed.Generation] // what was read of it
}

var _ serving.Source = (*unreadLog)(nil)

func (*unreadLog) Layer() serving.Layer            { return serving.Speed }
func (l *unreadLog) Generations() (uint64, uint64) { return l.number, l.number }
func (*unreadLog) MinTime() int64                  { return minTime }
func (*unreadLog) MaxTime() int64                  { return maxTime }

// DeletedBy implements serving.Source: what fails needs no filter.
func (*unreadLog) DeletedBy(*tombstone.Tombstone) tombstone.Effect { return tombstone.None }

func (l *unreadLog) ChunkQuerier(int64, int64) (storage.ChunkQuerier, error) {
	return nil, fmt.Errorf("the log of generation %d is not replayed yet, so the answer could be incomplete (layer=batch answers without it)", l.number)
}

// bytes is the memory that holds what was read so far.
func (l *unreadLog) bytes() int64 {
	if mem := l.mem.Load(); mem != nil {
		return mem.Stats().Bytes
	}
	return 0
}

// settled is how long after a start its garbage is collected, and what took long to be replayed written to blocks: not while the first queries are answered,
// which have waited.
const settled = 10 * time.Second

// recovery is one start's way from its logs to an engine that has everything.
type recovery struct {
	highest   uint64 // of the numbers of generations that are known
	newest    *unreadLog
	offers    chan *generation // the newest log's, if it can go on
	decided   chan struct{}    // closed when nobody waits for an offer any more
	decide    func()
	accepting chan struct{} // closed when writes are taken
}

// findLogs makes queries know of the logs that are there.
func (e *Engine) findLogs(numbers []uint64, highest uint64) *recovery {
	r := &recovery{highest: highest, offers: make(chan *generation), decided: make(chan struct{}), accepting: make(chan struct{})}
	r.decide = sync.OnceFunc(func() { close(r.decided) })
	var unread []*unreadLog
	var sources []serving.Entry
	for _, number := range numbers {
		r.highest = max(r.highest, number)
		r.newest = e.unreadLog(number)
		unread, sources = append(unread, r.newest), append(sources, serving.Entry{Source: r.newest})
	}
	e.set.Replace(nil, sources)
	e.exemplars.keepApart(r.highest)
	e.metadata.noteGenerations()
	e.mu.Lock()
	e.unread, e.replaying = unread, time.Now()
	e.mu.Unlock()
	e.measureDisk() // before the first write is accepted
	return r
}

func (e *Engine) unreadLog(number uint64) *unreadLog {
	return &unreadLog{number: number, size: dirSize(e.logDir(number)), stored: e.storedGeneration(number)}
}

// offer hands the newest log's generation, or nil for none, to whoever begins to take writes. It says whether that goes on with it.
func (r *recovery) offer(g *generation) bool {
	select {
	case r.offers <- g:
		return g != nil
	case <-r.decided:
		return false
	}
}

// goesOn returns the generation that is to take writes, nil if that is a new one.
func (r *recovery) goesOn(ctx context.Context, newest newestLog) *generation {
	defer r.decide()
	var late <-chan time.Time
	if r.newest != nil && r.newest.size > newest.small {
		t := time.NewTimer(newest.wait)
		defer t.Stop()
		late = t.C
	}
	select {
	case g := <-r.offers:
		return g
	case <-r.decided: // after a panic
	case <-late:
	case <-ctx.Done():
	}
	return nil
}

// acceptWrites begins to take writes, and starts the background work that need not wait for the logs. After a panic it begins anew without the generation that may
// have caused it.
func (e *Engine) acceptWrites(ctx context.Context, r *recovery) {
	newest := e.cfg.newestLog
	if newest == (newestLog{}) {
		newest = defaultNewestLog()
	}
	g := r.goesOn(ctx, newest)
	defer func() {
		if g != nil && e.activeGeneration() == nil {
			e.sealRead(g) // or it would never become blocks
		}
	}()
	for ctx.Err() == nil {
		err := e.acceptInto(g, r.highest)
		if ctx.Err() != nil {
			return
		}
		e.report("open", err)
		if err == nil {
			break
		}
		e.setPhase(Failed, "")
		g = nil
		sleep(ctx, time.Second)
	}
	e.setPhase(Replaying, e.State().Progress)
	close(r.accepting)
	e.loop("seal", e.sealOnSchedule)
	e.loop("bucket", func(ctx context.Context) { every(ctx, e.cfg.Bucket.SyncInterval, nil, e.syncOnSchedule) })
	e.loop("writer", e.claimOnSchedule)
	if e.data.indexes != nil {
		e.loop("indexes", func(ctx context.Context) { every(ctx, e.cfg.Bucket.SyncInterval, e.data.indexable, e.copyIndexes) })
	}
	e.loop("disk", func(ctx context.Context) {
		every(ctx, time.Second, nil, func(context.Context) { e.measureDisk() })
	})
	if e.cfg.SelfScrape > 0 {
		e.loop("self-scrape", e.scrapeSelf)
	}
}

// acceptInto makes a generation the active one: g, which was read back, or a new one where that is nil or its log does not open.
func (e *Engine) acceptInto(g *generation, highest uint64) error {
	if g != nil {
		err := e.continueGeneration(g)
		if err == nil || e.ctx.Err() != nil {
			return err
		}
		e.logger.Warn("a log cannot be continued; its generation is sealed", "generation", g.Number, "err", err)
		e.sealRead(g)
	}
	// What comes now must not be taken for what was deleted.
	highest = max(highest, e.data.deletions.highest(e.cfg.Storage.externalLabels()))
	next, err := e.newGeneration(highest+1, nil)
	if err != nil {
		return err
	}
	e.publish(next)
	return e.activate(next)
}

// replayLogs reads the logs back, newest first, and again each second what fails, then lets everything else begin.
func (e *Engine) replayLogs(ctx context.Context, r *recovery) {
	endSpending := sync.OnceFunc(collector.spend())
	done := false
	defer func() { // After a panic, too: nobody waits for a log that causes one.
		if !done {
			endSpending()
			r.offer(nil)
		}
	}()
	if !e.replayAll(ctx, r) {
		return
	}
	select {
	case <-r.accepting:
	case <-ctx.Done():
		return
	}
	done = true
	e.mu.Lock()
	long := time.Since(e.replaying) > time.Second
	e.mu.Unlock()
	e.exemplars.join()
	e.metadata.allTold()
	e.setPhase(Ready, "")
	close(e.opened)
	e.logger.Info("ready", "path", e.data.path)
	e.loop("memory", func(ctx context.Context) {
		if long {
			sleep(ctx, settled)
		}
		endSpending()
		GiveBack() // a replay leaves as much garbage as it read
	})
	e.loop("flush", func(ctx context.Context) {
		if long {
			e.settle(ctx)
		}
		every(ctx, 10*time.Second, e.sealed, e.flushOnSchedule)
	})
	e.loop("upload", func(ctx context.Context) { every(ctx, uploadInterval, e.uploadable, e.uploadAll) })
	if e.cfg.Batch.Interval > 0 {
		e.loop("batch", e.runBatchOnSchedule)
	}
}

// settle lets a start settle, unless there is no memory for that.
func (e *Engine) settle(ctx context.Context) {
	for end := time.Now().Add(settled); ctx.Err() == nil && time.Now().Before(end) && e.memoryRefusal() == nil; {
		sleep(ctx, time.Second)
	}
}

// replayAll says whether it came to its end.
func (e *Engine) replayAll(ctx context.Context, r *recovery) bool {
	for l := e.nextUnread(); l != nil; l = e.nextUnread() {
		err := e.readBack(ctx, l, r)
		if ctx.Err() != nil {
			return false
		}
		e.report("replay", err)
		if err != nil {
			r.offer(nil)
			sleep(ctx, time.Second)
		}
	}
	r.offer(nil)
	return true
}

// readBack replays a log. The newest one's generation may go on; others wait to be written to blocks.
func (e *Engine) readBack(ctx context.Context, l *unreadLog, r *recovery) error {
	began := time.Now()
	e.showReplay(l, 0)
	g, err := e.replay(ctx, l)
	if err != nil {
		return err
	}
	if g == nil {
		e.found(l, nil)
		r.offer(nil)
		return nil
	}
	e.exemplars.wasRead(l.number)
	stats := g.mem.Stats()
	e.logger.Info("replayed a log", "generation", g.Number, "series", stats.Series, "samples", stats.Samples, "took", time.Since(began))
	if l != r.newest || !e.mayContinue(g) {
		e.sealRead(g)
		e.found(l, g)
		r.offer(nil) // nobody waits for the others
		return nil
	}
	e.found(l, g)
	if !r.offer(g) {
		e.sealRead(g)
	}
	return nil
}

// sealRead seals a generation that was read back, and takes no writes.
func (e *Engine) sealRead(g *generation) {
	g.mem.Seal()
	e.mu.Lock()
	g.sealed = true
	e.mu.Unlock()
	signal(e.sealed)
}

// found lets a generation that was read back take the place of its log, in one step.
func (e *Engine) found(l *unreadLog, g *generation) {
	var add []serving.Entry
	if g != nil {
		add = append(add, serving.Entry{Source: g.source})
	}
	e.set.Replace([]serving.Source{l}, add)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unread, e.read = without(e.unread, l), e.read+l.size
	if g != nil {
		e.insert(g)
	}
}

func (e *Engine) nextUnread() *unreadLog {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := len(e.unread); n > 0 {
		return e.unread[n-1]
	}
	return nil
}

// mayContinue tells whether a replayed generation can take further requests: its log must be whole and of the present format, its idea of what is recent not old, none of its blocks
// written yet, and none of its samples deleted.
func (e *Engine) mayContinue(g *generation) bool {
	return !g.damaged && g.Version == headerVersion && !e.data.begun[g.Number] &&
		g.Number > e.data.deletions.highest(e.cfg.Storage.externalLabels()) && time.Since(time.UnixMilli(g.Created)) < staleGeneration
}

func (e *Engine) continueGeneration(g *generation) error {
	o := e.data.walOptions
	o.FirstIndex = g.replayed
	log, err := wal.Open(g.dir, o)
	if err != nil {
		return fmt.Errorf("go on with log of generation %d: %w", g.Number, err)
	}
	e.mu.Lock()
	g.log = log
	e.mu.Unlock()
	return e.activate(g)
}

// activate lets a generation take writes. Its log is closed if it is too late for that.
func (e *Engine) activate(g *generation) error {
	e.accept.Lock()
	defer e.accept.Unlock()
	if e.ctx.Err() != nil {
		return errors.Join(errStopping, g.log.Close())
	}
	e.active = g
	return nil
}

// maxAwait is how long a query waits for the logs: less than the 30 s that Grafana gives an alert rule, so that it hears why there is no answer yet.
const maxAwait = 25 * time.Second

// Await returns when the context's layer can be answered in full: at once, but while logs are being replayed. Then all layers but the batch layer have to wait for
// that, within the time that a query may take. Where that is not enough, or seems not to be, the error says how far it is.
func (e *Engine) Await(ctx context.Context) error {
	if serving.LayerOf(ctx) == serving.Batch {
		return nil
	}
	patience := min(maxAwait, e.cfg.Query.Timeout)
	end := time.Now().Add(patience)
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-e.opened:
			return nil
		default:
		}
		if left, failed := e.replayLeft(); failed || left > time.Until(end) {
			return e.incomplete(left)
		}
		select {
		case <-e.opened:
			return nil
		case <-t.C:
		case <-ctx.Done():
			left, _ := e.replayLeft()
			return e.incomplete(left)
		case <-e.ctx.Done():
			return unavailable(errStopping.Error(), time.Second)
		}
	}
}

// incomplete is why there is no answer.
func (e *Engine) incomplete(left time.Duration) error {
	s := e.State()
	text := s.Progress
	if s.Err != nil {
		text += ": " + s.Err.Error()
	}
	return unavailable(fmt.Sprintf("%s: %s; until that is done the answer could be incomplete (writes are taken, and layer=batch answers)", s.Phase, text),
		min(max(left, time.Second), time.Minute))
}

// replayLeft estimates how long the replay will take; failed says that it does not go on by itself.
func (e *Engine) replayLeft() (left time.Duration, failed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	read, size := e.read, e.read
	for _, l := range e.unread {
		read, size = read+min(l.read.Load(), l.size), size+l.size
	}
	took := time.Since(e.replaying)
	if read == 0 || took < time.Second {
		return 0, e.problems["replay"] != nil
	}
	return time.Duration(float64(took) * float64(size-read) / float64(read)), e.problems["replay"] != nil
}

// complete waits until all logs are replayed, for work that needs what is in them.
func (e *Engine) complete(ctx context.Context) error {
	select {
	case <-e.opened:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for logs to be replayed: %w", ctx.Err())
	case <-e.ctx.Done():
		return errStopping
	}
}
