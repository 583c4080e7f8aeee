package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/batch"
	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/tombstone"
)

const (
	listTimeout = 10 * time.Second
	// listingFile keeps the last listing of the bucket, so that a start without the bucket knows what is in it.
	listingFile = "bucket.json"
)

// bucketState is what is known of the blocks in the bucket. Under its lock no I/O is done and nothing is taken but the set's own.
type bucketState struct {
	mu      sync.Mutex
	blocks  map[ulid.ULID]*blockSource
	changes uint64 // counts uploads, so that a listing that began before one does not take its block away again
	since   map[ulid.ULID]uint64
	listed  time.Time                 // of the last listing that succeeded
	err     error                     // why the bucket cannot be reached: of the latest listing, or of an upload since one that succeeded
	upload  bool                      // err is an upload's
	unknown []serving.Source          // in the set for what the latest listing could not open, or a start without the bucket
	there   map[ulid.ULID]listedBlock // what the bucket holds that counts, whether it can be opened or not; nil while that is not known

	saving sync.Mutex    // held while that is written to a file
	turn   chan struct{} // held by the one that lists, so that an older listing never replaces a newer one
}

// listedBlock is a block of the bucket. since is the change with which it came there; 0 if a listing showed it.
type listedBlock struct {
	meta  block.Meta
	since uint64
}

func newBucketState() *bucketState {
	return &bucketState{blocks: map[ulid.ULID]*blockSource{}, since: map[ulid.ULID]uint64{}, turn: make(chan struct{}, 1)}
}

// lock takes the lock for a change of set, and returns what gives it back. What the change lets go of, it only lets go of then: to
// unmap a block and to remove its folder take time. The pin does that, as all that is removed is in the set before.
func (s *bucketState) lock(set *serving.Set) (unlock func()) {
	s.mu.Lock()
	before := set.Pin()
	return func() {
		s.mu.Unlock()
		before.Release()
	}
}

// uploaded puts the bucket's copy of a block in the place of the local one.
func (s *bucketState) uploaded(set *serving.Set, b *blockSource, local serving.Source) {
	defer s.lock(set)()
	if _, known := s.blocks[b.meta.ULID]; known {
		set.Replace([]serving.Source{local}, nil)
		return
	}
	s.changes++
	s.blocks[b.meta.ULID], s.since[b.meta.ULID] = b, s.changes
	set.Replace([]serving.Source{local}, []serving.Entry{{Source: b, Release: func() { _ = b.Close() }}})
}

// uploadTried hears how an upload ended, which between two listings tells whether the bucket can be reached.
func (s *bucketState) uploadTried(err error) {
	if !away(err) {
		err = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.upload || s.err == nil {
		s.err, s.upload = err, err != nil
	}
}

// away tells whether an error says that the bucket cannot be reached.
func away(err error) bool { return outage(err) || errors.Is(err, block.ErrUnavailable) }

func (s *bucketState) listingFailed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.upload = err, false
}

func (s *bucketState) mark() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changes
}

// missing returns those of metas that are not known yet.
func (s *bucketState) missing(metas []block.Meta) []block.Meta {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []block.Meta
	for _, m := range metas {
		if _, ok := s.blocks[m.ULID]; !ok {
			out = append(out, m)
		}
	}
	return out
}

// listing makes the visible blocks of a listing, begun at mark, those that queries see, in one step.
func (s *bucketState) listing(set *serving.Set, mark uint64, visible []block.Meta, opened []*blockSource, unknown []serving.Source, local map[ulid.ULID]bool) {
	var unused []*blockSource
	defer func() { closeSources(unused) }()
	defer s.lock(set)()
	keep := map[ulid.ULID]bool{}
	for _, m := range visible {
		keep[m.ULID] = true
	}
	var remove []serving.Source
	for id, b := range s.blocks {
		if !keep[id] && s.since[id] <= mark {
			remove = append(remove, b)
			delete(s.blocks, id)
			delete(s.since, id)
		}
	}
	var add []serving.Entry
	for _, b := range opened {
		// A block that also stands on local disk comes in when its upload is confirmed.
		if _, known := s.blocks[b.meta.ULID]; known || local[b.meta.ULID] {
			unused = append(unused, b)
			continue
		}
		s.blocks[b.meta.ULID], s.since[b.meta.ULID] = b, 0
		add = append(add, serving.Entry{Source: b, Release: func() { _ = b.Close() }})
	}
	remove = append(remove, s.unknown...)
	s.unknown = unknown
	for _, u := range unknown {
		add = append(add, serving.Entry{Source: u})
	}
	set.Replace(remove, add)
	s.listed, s.err, s.upload = time.Now(), nil, false
}

// assume lets queries see what was in the bucket once, before the first listing; where they need what is unknown they meet an error.
func (s *bucketState) assume(set *serving.Set, opened []*blockSource, unknown []serving.Source) {
	defer s.lock(set)()
	var add []serving.Entry
	for _, b := range opened {
		s.blocks[b.meta.ULID], s.since[b.meta.ULID] = b, 0
		add = append(add, serving.Entry{Source: b, Release: func() { _ = b.Close() }})
	}
	for _, u := range unknown {
		add = append(add, serving.Entry{Source: u})
	}
	s.unknown = unknown
	set.Replace(nil, add)
}

// found notes what a listing, begun at mark, shows. What came to the bucket since then is there, too.
func (s *bucketState) found(mark uint64, metas []block.Meta) {
	s.mu.Lock()
	defer s.mu.Unlock()
	there := make(map[ulid.ULID]listedBlock, len(metas))
	for id, b := range s.there {
		if b.since > mark {
			there[id] = b
		}
	}
	for _, m := range metas {
		there[m.ULID] = listedBlock{meta: m}
	}
	s.there = there
}

// came notes a block that was uploaded. Where it is not known what else is in the bucket, so it stays.
func (s *bucketState) came(m block.Meta) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.there != nil {
		s.changes++
		s.there[m.ULID] = listedBlock{meta: m, since: s.changes}
	}
}

// content is what the bucket holds that counts, whether it can be opened or not; known is false while that is not known.
func (s *bucketState) content() (metas []block.Meta, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.there {
		metas = append(metas, b.meta)
	}
	slices.SortFunc(metas, block.Compare)
	return metas, s.there != nil
}

func closeSources(blocks []*blockSource) {
	for _, b := range blocks {
		_ = b.Close()
	}
}

func (s *bucketState) wasListed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.listed.IsZero()
}

func (s *bucketState) metas() []block.Meta {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []block.Meta
	for _, b := range s.blocks {
		out = append(out, b.meta)
	}
	slices.SortFunc(out, block.Compare)
	return out
}

// unknownBlock stands for a block that cannot be opened, as when the bucket is away: an answer that needs it is an error, not silently incomplete.
type unknownBlock struct {
	meta block.Meta
	err  error
}

func (*unknownBlock) Layer() serving.Layer            { return serving.Batch }
func (u *unknownBlock) Generations() (uint64, uint64) { return u.meta.Generations() }

// DeletedBy implements serving.Source: what fails needs no filter.
func (*unknownBlock) DeletedBy(*tombstone.Tombstone) tombstone.Effect { return tombstone.None }
func (u *unknownBlock) MinTime() int64                                { return u.meta.MinTime }
func (u *unknownBlock) MaxTime() int64                                { return u.meta.MaxTime - 1 }

func (u *unknownBlock) ChunkQuerier(int64, int64) (storage.ChunkQuerier, error) {
	return nil, fmt.Errorf("the answer needs a block of the bucket that cannot be opened (layer=speed answers without it): %w", u.err)
}

// unknownBlocks stands for a bucket of which nothing is known.
type unknownBlocks struct{ err error }

func (*unknownBlocks) Layer() serving.Layer          { return serving.Batch }
func (*unknownBlocks) Generations() (uint64, uint64) { return 0, 0 }

// DeletedBy implements serving.Source: what fails needs no filter.
func (*unknownBlocks) DeletedBy(*tombstone.Tombstone) tombstone.Effect { return tombstone.None }
func (*unknownBlocks) MinTime() int64                                  { return minTime }
func (*unknownBlocks) MaxTime() int64                                  { return maxTime }

func (u *unknownBlocks) ChunkQuerier(int64, int64) (storage.ChunkQuerier, error) {
	return nil, fmt.Errorf("the bucket has not been reached since the start, so the answer could be incomplete (layer=speed answers without it): %w", u.err)
}

func (e *Engine) openBucket(d *dataPath) error {
	config, from, err := e.cfg.Bucket.Read(d.path)
	if err == nil {
		d.bucket, err = makeBucket(config)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	d.folder = newBucketFolder(d.path, d.bucket, e.logger)
	if e.wrapBucket != nil {
		d.bucket = e.wrapBucket(d.bucket)
	}
	d.lister = block.NewLister(d.bucket)
	d.deletions = newDeletions(d.path, tombstone.NewStore(d.bucket), e.set, e.metrics.tombstones)
	d.cache = e.cache
	if err := e.openIndexes(d); err != nil {
		return errors.Join(err, d.bucket.Close())
	}
	return nil
}

// openRunner makes the runner of batch jobs, whose leases are taken in the name of the claimant.
func (e *Engine) openRunner(d *dataPath) (err error) {
	d.runner, err = batch.NewRunner(batch.Options{
		Bucket: d.bucket, Lister: d.lister, ScratchDir: filepath.Join(d.path, scratchDir),
		Config: e.cfg.batchConfig(), Labels: e.cfg.Storage.externalLabels(), Uploaded: e.uploadedUpTo, Uploading: e.uploading,
		Room: e.scratchRoom, Lease: &batch.Lease{Identity: d.identity, Times: e.cfg.leases}, Metrics: e.batchMetrics, Logger: e.logger, Now: e.now,
	})
	return err
}

// uploadedUpTo tells batch jobs up to which generation everything is in the bucket.
func (e *Engine) uploadedUpTo(map[string]string) (uint64, bool) {
	if _, err := e.data.claim.Held(); err != nil {
		return 0, false // another writer may be uploading
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.unread) > 0 {
		return 0, false // what is in these is not
	}
	lowest := uint64(0)
	if len(e.generations) > 0 {
		lowest = e.generations[0].Number
	}
	if b := e.nextLocal(); b != nil {
		from, _ := b.meta.Generations()
		lowest = min(lowest, from)
	}
	return lowest - 1, lowest > 0
}

// uploading tells batch jobs not to take a block for abandoned.
func (e *Engine) uploading(id ulid.ULID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.local, func(b *localBlock) bool { return b.meta.ULID == id })
}

// firstSync finds out what is in the bucket, from an older listing if the bucket is away, and returns the highest generation known.
func (e *Engine) firstSync(ctx context.Context) uint64 {
	err := e.syncBucket(ctx)
	e.report("bucket", err)
	if err != nil && !e.data.synced.wasListed() {
		if lost := e.useOldListing(ctx, err); lost != nil {
			e.logger.Warn("starting without the bucket", "err", lost)
		}
	}
	metas, _ := e.data.synced.content()
	highest := uint64(0)
	for _, m := range metas {
		_, number := m.Generations()
		highest = max(highest, number)
	}
	for _, b := range e.local {
		_, number := b.meta.Generations()
		highest = max(highest, number)
	}
	if highest == 0 && err != nil {
		// Neither disk nor bucket tells which numbers were given out; the clock is above any counter.
		highest = uint64(time.Now().UnixMilli())
	}
	return highest
}

func (e *Engine) syncOnSchedule(ctx context.Context) {
	err := e.syncBucket(ctx)
	if ctx.Err() != nil {
		return
	}
	e.report("bucket", err)
	err = e.restoreMetadata(ctx)
	if ctx.Err() == nil {
		e.report("metadata in blocks", err)
	}
}

// syncBucket lists the bucket and lets queries see what is in it.
func (e *Engine) syncBucket(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, listTimeout*6)
	defer cancel()
	select {
	case e.data.synced.turn <- struct{}{}:
		defer func() { <-e.data.synced.turn }()
	case <-ctx.Done():
		return fmt.Errorf("wait for another listing of the bucket: %w", ctx.Err())
	}
	mark, tombstones := e.data.synced.mark(), e.data.deletions.uploaded()
	listed, deleted, err := e.listBucket(ctx)
	if err != nil {
		e.metrics.bucketUp.Set(0)
		e.data.synced.listingFailed(err)
		return fmt.Errorf("list the bucket: %w", err)
	}
	e.metrics.bucketUp.Set(1)
	// Before the blocks that they hide can be seen.
	e.report("tombstones", e.takeTombstones(deleted, tombstones, listed))
	metas := make([]block.Meta, 0, len(listed))
	for _, l := range listed {
		metas = append(metas, l.Meta)
	}
	bad := e.data.lister.Bad()
	local := e.localIDs()
	visible, left := quarantined(metas, listed, local)
	e.data.synced.found(mark, slices.Concat(visible, left))
	e.report("bucket listing", e.saveListing())
	without := inQuarantine(left, listed)
	e.report("bucket blocks", errors.Join(unusable(bad), leftOut(without)))
	return e.show(ctx, mark, visible, append(brokenBlocks(bad, listed, local), without...), local)
}

// listBucket lists blocks, and then tombstones: so it knows each that concerns some of the generations in a block but not all of them.
func (e *Engine) listBucket(ctx context.Context) (map[ulid.ULID]block.Listed, []*tombstone.Tombstone, error) {
	if err := e.data.folder.prepare(ctx); err != nil {
		return nil, nil, err
	}
	listed, err := e.data.lister.List(ctx)
	if err != nil {
		return nil, nil, err
	}
	deleted, err := e.data.deletions.store.List(ctx)
	return listed, deleted, err
}

func (e *Engine) show(ctx context.Context, mark uint64, visible []block.Meta, broken []*brokenBlock, local map[ulid.ULID]bool) error {
	var (
		errs []error
		gaps []serving.Source
	)
	opened, unknown := e.openBucketBlocks(ctx, e.data.synced.missing(visible), local)
	for _, u := range unknown {
		errs = append(errs, u.err)
		gaps = append(gaps, u)
	}
	for _, b := range broken {
		gaps = append(gaps, b)
	}
	e.data.synced.listing(e.set, mark, visible, opened, gaps, local)
	if len(opened) > 0 {
		signal(e.data.indexable)
	}
	return errors.Join(errs...)
}

// openBucketBlocks makes sources of blocks. One that cannot be opened does not keep the others from being seen.
func (e *Engine) openBucketBlocks(ctx context.Context, metas []block.Meta, local map[ulid.ULID]bool) (opened []*blockSource, unknown []*unknownBlock) {
	for _, m := range metas {
		// A block that also stands on local disk comes in when its upload is confirmed.
		if local[m.ULID] {
			continue
		}
		b, err := e.openBucketBlock(ctx, m)
		if err != nil {
			unknown = append(unknown, &unknownBlock{meta: m, err: fmt.Errorf("open block %s: %w", m.ULID, err)})
			continue
		}
		opened = append(opened, b)
	}
	return opened, unknown
}

func (e *Engine) localIDs() map[ulid.ULID]bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	ids := map[ulid.ULID]bool{}
	for _, b := range e.local {
		ids[b.meta.ULID] = true
	}
	return ids
}

// openBucketBlock makes a source of a block in the bucket; nothing is read before the first query.
func (e *Engine) openBucketBlock(ctx context.Context, m block.Meta) (*blockSource, error) {
	b, err := block.OpenBucketMeta(ctx, e.data.bucket, m, e.data.cache)
	if err != nil {
		return nil, err
	}
	s := &blockSource{Block: b, meta: m, layer: serving.Batch}
	if e.cfg.Storage.foreign(m.Thanos.Labels) {
		s.ofAnother(m.ExternalLabels(), e.cfg.Storage.StartTimestamps)
	}
	return s, nil
}

// saveListing writes down what is in the bucket for a start without it. While that is not known, what an earlier process wrote stays.
func (e *Engine) saveListing() error {
	e.data.synced.saving.Lock() // the file is written beside its place under one name, and never with what is older
	defer e.data.synced.saving.Unlock()
	metas, known := e.data.synced.content()
	if !known {
		return nil
	}
	raw, err := json.Marshal(metas)
	if err != nil {
		return fmt.Errorf("encode listing: %w", err)
	}
	return writeFile(filepath.Join(e.data.path, listingFile), raw)
}

// useOldListing lets queries see what was in the bucket when it was last reached. Queries that need a block which cannot be
// opened without the bucket fail; so do all that need the bucket if there is no such listing.
func (e *Engine) useOldListing(ctx context.Context, cause error) error {
	var metas []block.Meta
	raw, err := os.ReadFile(filepath.Join(e.data.path, listingFile))
	if err == nil {
		err = json.Unmarshal(raw, &metas)
	}
	if err != nil {
		e.data.synced.assume(e.set, nil, []serving.Source{&unknownBlocks{err: cause}})
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("read the last listing of the bucket: %w", err)
	}
	opened, unknown := e.openBucketBlocks(ctx, e.data.synced.missing(metas), e.localIDs())
	var sources []serving.Source
	for _, u := range unknown {
		sources = append(sources, u)
	}
	e.data.synced.found(0, metas)
	e.data.synced.assume(e.set, opened, sources)
	return nil
}

// writeFile replaces a file in one step.
func writeFile(name string, raw []byte) error {
	return writeFileBy(name, func(w io.Writer) error {
		_, err := w.Write(raw)
		return err
	})
}

// writeFileBy replaces a file, in one step, by what write gives.
func writeFileBy(name string, write func(io.Writer) error) error {
	tmp := name + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(tmp) // the disk may be full
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}
