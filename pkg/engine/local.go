package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/tombstone"
)

const (
	// goneSuffix marks folders that are being written or removed; a start clears them.
	goneSuffix = ".tmp"
	// uploadedFile in a block's folder says that the block is in the bucket, and the folder only there for its last readers. After a crash it must not be
	// taken for one that waits: it would get a number above what was accepted later.
	uploadedFile   = "uploaded"
	uploadInterval = 10 * time.Second
	maxBackoff     = time.Minute
)

// localBlock is a level-0 block on local disk, on its way to the bucket.
type localBlock struct {
	*block.Block
	meta     block.Meta
	dir      string
	size     int64
	source   *blockSource
	uploaded atomic.Bool // the folder goes with the last reader
}

func (e *Engine) openLocalBlock(dir string) (*localBlock, error) {
	b, err := block.OpenLocal(dir)
	if err != nil {
		return nil, err
	}
	m := b.Meta()
	if err := complete(dir, m); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	s := &blockSource{Block: b, meta: m, layer: serving.Speed, instance: e.instance()}
	return &localBlock{Block: b, meta: m, dir: dir, size: dirSize(dir), source: s}, nil
}

// instance names the data path.
func (e *Engine) instance() string { return e.data.claim.Status().Instance }

func (b *localBlock) entry() serving.Entry {
	return serving.Entry{Source: b.source, Release: b.release}
}

// release unmaps the block when the last query that pinned it has ended.
func (b *localBlock) release() {
	_ = b.Close()
	if !b.uploaded.Load() {
		return
	}
	// What stays of it, the next start removes.
	_ = removeBlock(b.dir)
}

// removeBlock removes a block's folder. It goes in one step, as half a block would be found at the next start.
func removeBlock(dir string) error {
	gone := dir + goneSuffix
	if err := os.Rename(dir, gone); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// complete checks that a block has all its files, whole.
func complete(dir string, m block.Meta) error {
	for _, f := range m.Thanos.Files {
		info, err := os.Stat(filepath.Join(dir, filepath.FromSlash(f.RelPath)))
		if err != nil {
			return fmt.Errorf("block %s: %w", m.ULID, err)
		}
		if f.SizeBytes > 0 && info.Size() != f.SizeBytes {
			return fmt.Errorf("block %s: %s has %d bytes, not %d", m.ULID, f.RelPath, info.Size(), f.SizeBytes)
		}
	}
	return nil
}

// blockSource shows a block to queries.
type blockSource struct {
	*block.Block
	meta  block.Meta
	layer serving.Layer
	// instance is the data path in which the block waits for its upload, empty for one in the bucket.
	instance string
	// foreign shows the block of another writer under that one's external labels, or the same series of both would be taken for one. It is nil for one's own.
	foreign *serving.Queryable
}

func (s *blockSource) Layer() serving.Layer          { return s.layer }
func (s *blockSource) Generations() (uint64, uint64) { return s.meta.Generations() }
func (s *blockSource) MinTime() int64                { return s.meta.MinTime }
func (s *blockSource) MaxTime() int64                { return s.meta.MaxTime - 1 }

// DeletedBy implements serving.Source.
func (s *blockSource) DeletedBy(t *tombstone.Tombstone) tombstone.Effect {
	return t.On(s.stored())
}

func (s *blockSource) stored() tombstone.Stored {
	stored := s.meta.Stored()
	stored.Instance = s.instance
	return stored
}

func (s *blockSource) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	if s.foreign != nil {
		return s.foreign.ChunkQuerier(mint, maxt)
	}
	return s.Block.ChunkQuerier(mint, maxt)
}

// ofAnother makes the source one of another writer, with its external labels. Its Queryable holds the source as it was, whose life the caller rules.
func (s *blockSource) ofAnother(lset labels.Labels, startTimestamps bool) {
	stored := *s
	set := serving.NewSet()
	set.Replace(nil, []serving.Entry{{Source: &stored}})
	s.foreign = serving.NewQueryable(set, serving.Options{ExternalLabels: lset, StartTimestamps: startTimestamps})
}

// openLocalBlocks finds the blocks that an earlier process left. Those of a generation that still has its log may not be all of its blocks: the log is
// replayed, and the missing ones are written.
func (e *Engine) openLocalBlocks(logs []uint64) error {
	dir := filepath.Join(e.data.path, blocksDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read local blocks: %w", err)
	}
	var blocks []*localBlock
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if _, err := ulid.ParseStrict(entry.Name()); err != nil {
			if strings.HasSuffix(entry.Name(), goneSuffix) {
				_ = os.RemoveAll(path)
			}
			continue
		}
		if _, err := os.Stat(filepath.Join(path, uploadedFile)); err == nil {
			if err := removeBlock(path); err != nil {
				e.logger.Warn("a local block that is in the bucket cannot be removed", "block", entry.Name(), "err", err)
			}
			continue
		}
		b, err := e.openLocalBlock(path)
		if err != nil {
			e.logger.Error("a local block cannot be opened and is moved aside", "block", entry.Name(), "err", err)
			if err := e.quarantine(path, err); err != nil {
				return err
			}
			continue
		}
		if _, number := b.meta.Generations(); slices.Contains(logs, number) {
			_ = b.Close()
			e.data.begun[number] = true
			continue
		}
		blocks = append(blocks, b)
	}
	slices.SortFunc(blocks, func(a, b *localBlock) int { return uploadOrder(a.meta, b.meta) })
	var added []serving.Entry
	for _, b := range blocks {
		added = append(added, b.entry())
	}
	e.set.Replace(nil, added)
	e.mu.Lock()
	e.local = blocks
	e.mu.Unlock()
	e.report("external labels", e.heldBack())
	return nil
}

// uploadOrder is the order of generations, and in one the order of time.
func uploadOrder(a, b block.Meta) int {
	_, x := a.Generations()
	_, y := b.Generations()
	return cmp.Or(cmp.Compare(x, y), a.ULID.Compare(b.ULID))
}

// uploadAll brings local blocks to the bucket, in order, until none is left or the context ends. While the bucket is away it tries again, less and
// less often.
func (e *Engine) uploadAll(ctx context.Context) {
	backoff := time.Second
	for ctx.Err() == nil {
		err := e.uploadOnce(ctx)
		if err == nil || errors.Is(err, errNotHeld) { // of which the claim's own loop tells
			e.report("upload", nil)
			return
		}
		if ctx.Err() != nil {
			return
		}
		e.metrics.uploadFailures.Inc()
		e.report("upload", err)
		sleep(ctx, backoff)
		backoff = min(2*backoff, maxBackoff)
	}
}

// uploadOnce uploads what waits, tombstones first, and stops at the first failure: generations reach the bucket in order. It fails without the claim of the
// external labels, and gives up when that is lost.
func (e *Engine) uploadOnce(ctx context.Context) error {
	held, done, number, err := e.holdClaim(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := e.numberAbove(held, number); err != nil {
		if held.Err() == nil {
			e.data.synced.uploadTried(err)
		}
		return err
	}
	e.uploads.Lock()
	defer e.uploads.Unlock()
	for {
		if err := e.stillHeld(number); err != nil {
			return err
		}
		// Before each block: nothing that is later than a tombstone may be in the bucket before it.
		if err := e.data.deletions.upload(held); err != nil {
			if held.Err() == nil {
				e.data.synced.uploadTried(err)
			}
			return err
		}
		b := e.firstLocal()
		if b == nil {
			if e.data.cutOff.Load() && ctx.Err() == nil {
				e.data.cutOff.Store(false) // all of it has arrived since
			}
			return nil
		}
		if err := e.uploadBlock(held, b); err != nil {
			if ctx.Err() != nil {
				e.data.cutOff.Store(true)
			} else if held.Err() != nil {
				return fmt.Errorf("upload block %s: %w", b.meta.ULID, context.Cause(held))
			}
			return err // names the block
		}
	}
}

func (e *Engine) uploadBlock(ctx context.Context, b *localBlock) error {
	began := time.Now()
	err := block.Upload(ctx, e.data.bucket, b.dir)
	if ctx.Err() == nil {
		e.data.synced.uploadTried(err)
	}
	if err != nil {
		return err
	}
	if err := e.moveToBucket(ctx, b); err != nil {
		return err
	}
	e.metrics.uploads.Inc()
	e.logger.Info("uploaded a block", "block", b.meta.ULID, "bytes", b.size, "took", time.Since(began))
	return nil
}

func (e *Engine) firstLocal() *localBlock {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.nextLocal()
}

// nextLocal returns the block that is to be uploaded next, nil if there is none. The caller holds mu.
func (e *Engine) nextLocal() *localBlock {
	for _, b := range e.local {
		if e.mayUpload(b) {
			return b
		}
	}
	return nil
}

// mayUpload tells whether a block has the external labels that are claimed. One that was accepted before these were changed has not: under its own ones
// another writer may have taken this one's place.
func (e *Engine) mayUpload(b *localBlock) bool {
	return maps.Equal(b.meta.Thanos.Labels, e.cfg.Storage.externalLabels())
}

// heldBack is the problem of blocks that may not be uploaded.
func (e *Engine) heldBack() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, external := 0, map[string]string(nil)
	for _, b := range e.local {
		if !e.mayUpload(b) {
			n, external = n+1, b.meta.Thanos.Labels
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%d blocks that were accepted under other external labels wait for their upload, which is only possible under these: start with those of %s until they are in the bucket",
		n, labels.FromMap(external))
}

// moveToBucket lets the bucket's copy take the place of the local one in one step; the folder goes when its last reader has left. What the block is the
// bucket tells, in which it may have been before.
func (e *Engine) moveToBucket(ctx context.Context, b *localBlock) error {
	e.adoptIndex(b)
	src, err := e.openUploaded(ctx, b.meta.ULID)
	if err != nil {
		return fmt.Errorf("open uploaded block %s: %w", b.meta.ULID, err)
	}
	e.data.synced.came(src.meta)
	err = e.saveListing()
	if err == nil {
		err = b.markUploaded()
	}
	if err != nil {
		_ = src.Close()
		return fmt.Errorf("remember uploaded block %s: %w", b.meta.ULID, err)
	}
	e.data.synced.uploaded(e.set, src, b.source)
	e.mu.Lock()
	e.local = without(e.local, b)
	e.mu.Unlock()
	e.measureDisk()
	return nil
}

// openUploaded makes a source of a block of the bucket, with its meta.json as it is there.
func (e *Engine) openUploaded(ctx context.Context, id ulid.ULID) (*blockSource, error) {
	b, err := block.OpenBucket(ctx, e.data.bucket, id, nil)
	if err != nil {
		return nil, err
	}
	src, err := e.openBucketBlock(ctx, b.Meta())
	return src, errors.Join(err, b.Close())
}

// markUploaded makes the folder one that goes with the block's last reader, or at the next start.
func (b *localBlock) markUploaded() error {
	if err := writeFile(filepath.Join(b.dir, uploadedFile), nil); err != nil {
		return err
	}
	b.uploaded.Store(true)
	return nil
}
