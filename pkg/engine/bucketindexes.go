package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/millrace/millrace/pkg/block"
)

// idleHeader is how long what was made of a block's index to read it stays in memory after the last query, if it can be made again from local disk.
const idleHeader = 10 * time.Minute

// openIndexes opens the local copies of the indexes of blocks in the bucket. Blocks of a bucket that is a folder are mapped anyway. Where the user
// wants no copies, those of an earlier process go.
func (e *Engine) openIndexes(d *dataPath) (err error) {
	dir := filepath.Join(d.path, indexesDir)
	if d.folder != nil || e.cfg.Bucket.IndexBytes == 0 {
		e.cache.UseIndexes(nil)
		return os.RemoveAll(dir)
	}
	d.indexes, err = block.OpenIndexStore(block.IndexStoreOptions{
		Dir: dir, Limit: e.cfg.Bucket.IndexBytes, Room: e.scratchRoom, Metrics: e.indexMetrics, Logger: e.logger,
	})
	e.cache.UseIndexes(d.indexes)
	return err
}

// copyIndexes makes the copies that are missing. Queries do without them meanwhile.
func (e *Engine) copyIndexes(ctx context.Context) {
	blocks := e.data.synced.opened()
	err := e.data.indexes.Update(ctx, blocks)
	if ctx.Err() != nil {
		return
	}
	e.report("indexes", err)
	for _, b := range blocks {
		b.Trim(idleHeader)
	}
}

// adoptIndex keeps the index of a block whose local copy is about to go. Where that fails, it is fetched from the bucket when need be.
func (e *Engine) adoptIndex(b *localBlock) {
	if e.data.indexes == nil {
		return
	}
	if err := e.data.indexes.Adopt(b.dir, b.meta); err != nil && !errors.Is(err, os.ErrNotExist) {
		e.logger.Warn("the index of an uploaded block could not be kept", "err", err)
	}
}

// opened returns the blocks of the bucket. They may be closed by the time that they are used.
func (s *bucketState) opened() []*block.Block {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*block.Block, 0, len(s.blocks))
	for _, b := range s.blocks {
		out = append(out, b.Block)
	}
	return out
}
