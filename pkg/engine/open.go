package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/batch"
	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/claim"
	"github.com/millrace/millrace/pkg/wal"
)

// Names below the data path.
const (
	lockFile   = "lock"
	walDir     = "wal"
	blocksDir  = "blocks"
	bucketDir  = "bucket"
	scratchDir = "scratch"
	indexesDir = "indexes"
	lostDir    = "quarantine"
)

// staleGeneration is the age from which a generation found at the start is sealed instead of continued: its idea of what is recent is old.
const staleGeneration = 2 * time.Hour

// maxRecordSize is above every limit of a request's size that can be set, and never changes: replay counts larger records as lost.
const maxRecordSize = 1<<30 + 1<<26

// dataPath is what opening makes of a folder.
type dataPath struct {
	path       string
	lock       *fileLock
	walOptions wal.Options
	bucket     objstore.Bucket
	folder     *bucketFolder // where the bucket is one; else nil
	lister     *block.Lister
	cache      *block.Cache
	indexes    *block.IndexStore // nil where the bucket is a folder, or where the user wants none
	indexable  chan struct{}     // a token: there are new blocks in the bucket
	runner     *batch.Runner
	full       chan struct{} // a token: the active generation is full, or sealNow is set
	sealNow    atomic.Bool   // the log cannot be trusted with what it holds, or there is no room for more, or a seal failed
	synced     *bucketState
	deletions  *deletions
	begun      map[uint64]bool // generations that have a log and already some blocks
	claim      *claim.Claimant
	cutOff     atomic.Bool // an upload was given up half-way by a stop

	numbering sync.Mutex
	numbered  uint64 // the claim for which numbers were compared with the bucket's; guarded by numbering
	reserved  uint64 // generations to come have numbers above; guarded by Engine.rotating
}

// open tries until it succeeds, then starts the background work.
func (e *Engine) open(ctx context.Context) {
	for {
		err := e.tryOpen(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		e.setPhase(Failed, "")
		e.report("open", err)
		sleep(ctx, time.Second)
	}
	e.report("open", nil)
	e.setPhase(Ready, "")
	close(e.opened)
	GiveBack() // what opening took: a replay leaves as much garbage as it read
	e.logger.Info("ready", "path", e.data.path)
	e.loop("seal", e.sealOnSchedule)
	e.loop("flush", func(ctx context.Context) { every(ctx, 10*time.Second, e.sealed, e.flushOnSchedule) })
	e.loop("upload", func(ctx context.Context) { every(ctx, uploadInterval, e.uploadable, e.uploadAll) })
	e.loop("bucket", func(ctx context.Context) { every(ctx, e.cfg.Bucket.SyncInterval, nil, e.syncOnSchedule) })
	e.loop("writer", e.claimOnSchedule)
	if e.data.indexes != nil {
		e.loop("indexes", func(ctx context.Context) { every(ctx, e.cfg.Bucket.SyncInterval, e.data.indexable, e.copyIndexes) })
	}
	e.loop("disk", func(ctx context.Context) {
		every(ctx, time.Second, nil, func(context.Context) { e.measureDisk() })
	})
	if e.cfg.Batch.Interval > 0 {
		e.loop("batch", e.runBatchOnSchedule)
	}
	if e.cfg.SelfScrape > 0 {
		e.loop("self-scrape", e.scrapeSelf)
	}
}

// tryOpen takes the data path. When it fails it has let go of everything.
func (e *Engine) tryOpen(ctx context.Context) (err error) {
	d := e.prepared.data
	e.prepared.data = nil
	if d == nil {
		if d, err = e.openPath(); err != nil {
			return err
		}
	}
	e.data = d
	opened := false
	defer func() { // After a panic, too: the lock must not outlive the attempt.
		if !opened {
			e.dropAll()
			e.close()
		}
	}()
	if err := wal.RemoveTemporary(filepath.Join(d.path, walDir)); err != nil {
		return err
	}
	// Before anything that they hide can be seen.
	if err := d.deletions.load(); err != nil {
		return err
	}
	logs, err := readLogs(d.path)
	if err != nil {
		return err
	}
	if err := e.openLocalBlocks(logs); err != nil {
		return err
	}
	e.measureDisk()
	e.setProgress("listing the bucket")
	highest := e.firstSync(ctx)
	if e.data.synced.wasListed() { // Before the first write is accepted.
		e.setProgress("claiming the external labels in the bucket")
		if err := e.stepClaim(ctx); err != nil {
			e.logger.Warn("whether another writer has the same external labels is not known yet", "err", err)
		}
	}
	e.loadExemplars()
	err = e.recover(ctx, logs, highest)
	opened = err == nil
	return err
}

// takePath makes the data path's folders and locks other processes out.
func (e *Engine) takePath() (path string, lock *fileLock, err error) {
	if path, err = filepath.Abs(e.cfg.Storage.Path); err != nil {
		return "", nil, err
	}
	for _, dir := range []string{walDir, blocksDir, scratchDir} {
		if err := os.MkdirAll(filepath.Join(path, dir), 0o750); err != nil {
			return "", nil, err
		}
	}
	lock, err = lockPath(filepath.Join(path, lockFile))
	return path, lock, err
}

// openPath takes the data path and opens the bucket, which is not asked for anything yet unless its kind wants that.
func (e *Engine) openPath() (*dataPath, error) {
	e.setPhase(Starting, "taking the data path")
	path, lock, err := e.takePath()
	if err != nil {
		return nil, fmt.Errorf("--storage.path=%s: %w", e.cfg.Storage.Path, err)
	}
	d := &dataPath{path: path, lock: lock, full: make(chan struct{}, 1), indexable: make(chan struct{}, 1), synced: newBucketState(), begun: map[uint64]bool{}}
	every, interval, err := e.cfg.Storage.walSync()
	if err == nil {
		err = e.openBucket(d)
	}
	if err != nil {
		lock.release()
		return nil, settingsError{err}
	}
	if d.claim, err = e.newClaimant(d); err != nil {
		lock.release()
		return nil, errors.Join(err, d.bucket.Close())
	}
	d.walOptions = wal.Options{
		SyncEvery: every, SyncInterval: interval, Metrics: e.metrics.wal, Logger: e.logger, MaxRecordSize: maxRecordSize,
		OnSyncFailure: e.syncFailed,
	}
	if err := e.metadata.load(path); err != nil {
		e.logger.Warn("metadata of metrics is lost but for what is in blocks", "err", err)
	}
	return d, nil
}

// outage tells whether an error is one of the network, which may pass: some kinds of bucket are asked for something as soon as they are opened.
func outage(err error) bool {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Op != "parse"
	}
	_, ok := errors.AsType[*net.OpError](err)
	return ok
}

// syncFailed hears that the disk refused to sync the log. What it put at risk is safe again as soon as it is in a block.
func (e *Engine) syncFailed(err *wal.SyncError) {
	if err.Rewritten {
		e.logger.Warn("a sync of the log failed; what it was to cover was written again", "err", err)
		return
	}
	e.report("log sync", err)
	e.mu.Lock()
	if n := len(e.generations); n > 0 {
		e.atRisk = e.generations[n-1].Number
	}
	e.mu.Unlock()
	e.data.sealNow.Store(true)
	signal(e.data.full)
}

// readLogs lists the generations that have a log, in order.
func readLogs(path string) ([]uint64, error) {
	entries, err := os.ReadDir(filepath.Join(path, walDir))
	if err != nil {
		return nil, fmt.Errorf("read logs: %w", err)
	}
	var numbers []uint64
	for _, entry := range entries {
		n, err := strconv.ParseUint(entry.Name(), 10, 64)
		if err == nil && entry.IsDir() && len(entry.Name()) == 20 {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// recover replays the logs, oldest first. The newest generation goes on unless it is old; the others wait to be written to blocks.
func (e *Engine) recover(ctx context.Context, logs []uint64, highest uint64) error {
	began := time.Now()
	defer collector.spend()()
	for i, number := range logs {
		e.setPhase(Starting, fmt.Sprintf("replaying log %d of %d", i+1, len(logs)))
		g, err := e.replay(ctx, number)
		if err != nil {
			return err
		}
		highest = max(highest, number)
		if g == nil {
			continue
		}
		stats := g.mem.Stats()
		e.logger.Info("replayed a log", "generation", g.Number, "series", stats.Series, "samples", stats.Samples, "took", time.Since(began))
		if i == len(logs)-1 && e.mayContinue(g) {
			return e.continueGeneration(g)
		}
		g.mem.Seal()
		g.sealed = true
		e.publish(g)
	}
	// What comes now must not be taken for what was deleted.
	highest = max(highest, e.data.deletions.highest(e.cfg.Storage.externalLabels()))
	signal(e.sealed)
	next, err := e.newGeneration(highest+1, nil)
	if err != nil {
		return err
	}
	e.publish(next)
	return e.activate(next)
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
	var err error
	if g.log, err = wal.Open(g.dir, o); err != nil {
		return fmt.Errorf("go on with log of generation %d: %w", g.Number, err)
	}
	e.publish(g)
	signal(e.sealed)
	return e.activate(g)
}

func (e *Engine) activate(g *generation) error {
	e.accept.Lock()
	defer e.accept.Unlock()
	if e.ctx.Err() != nil {
		return errStopping
	}
	e.active = g
	return nil
}

func (e *Engine) quarantine(dir string, cause error) error {
	aside, err := e.moveAside(dir)
	if err != nil {
		return errors.Join(cause, err)
	}
	e.logger.Error("what cannot be read was moved aside", "from", dir, "to", aside, "err", cause)
	e.report("log replay", fmt.Errorf("log %s was moved to %s: %w", filepath.Base(dir), aside, cause))
	return nil
}

// moveAside moves a file or folder to the one for what cannot be read, which it returns.
func (e *Engine) moveAside(name string) (aside string, err error) {
	aside = filepath.Join(e.data.path, lostDir)
	if err := os.MkdirAll(aside, 0o750); err != nil {
		return "", err
	}
	target := filepath.Join(aside, filepath.Base(name))
	if _, err := os.Lstat(target); err == nil {
		target += "." + ulid.Make().String() // one of that name came before it
	}
	return aside, os.Rename(name, target)
}

// close lets go of the data path.
func (e *Engine) close() {
	if e.data == nil {
		return
	}
	e.closeLogs()
	if err := e.data.bucket.Close(); err != nil {
		e.logger.Warn("closing the bucket failed", "err", err)
	}
	e.data.lock.release()
}

// dropAll forgets what a failed attempt to open had found.
func (e *Engine) dropAll() {
	e.mu.Lock()
	generations := e.generations
	e.generations, e.local = nil, nil
	e.mu.Unlock()
	for _, g := range generations {
		if g.log != nil {
			_ = g.log.Close()
		}
	}
	e.set.Replace(e.set.Sources(), nil)
}
