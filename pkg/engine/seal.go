package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/merge"
	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/wal"
)

// sealOnSchedule rotates the active generation at multiples of the seal interval and when it is full.
func (e *Engine) sealOnSchedule(ctx context.Context) {
	for {
		now := time.Now()
		t := time.NewTimer(now.Truncate(e.cfg.Speed.SealInterval).Add(e.cfg.Speed.SealInterval).Sub(now))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		case <-e.data.full:
			t.Stop()
			if g := e.activeGeneration(); g == nil || !e.data.sealNow.Load() && !e.full(g) {
				continue // an older token
			}
		}
		e.data.sealNow.Store(false)
		err := e.rotate()
		e.report("seal", err)
		if err != nil {
			sleep(ctx, time.Second)
			e.data.sealNow.Store(true)
			signal(e.data.full)
		}
	}
}

// rotate seals the active generation and puts an empty one in its place. Writes wait only for the swap of a pointer.
func (e *Engine) rotate() error {
	e.rotating.Lock()
	defer e.rotating.Unlock()
	old := e.activeGeneration()
	if old == nil {
		return errStopping
	}
	next, err := e.newGeneration(e.data.nextNumber(old.Number), old.mem)
	if err != nil {
		return err
	}
	e.publish(next)
	e.accept.Lock()
	stopped := e.active == nil
	if !stopped {
		e.active = next
	}
	e.accept.Unlock()
	if stopped {
		return errors.Join(errStopping, next.log.Close())
	}
	old.inflight.Wait()
	old.mem.Seal()
	if err := old.log.Close(); err != nil {
		e.logger.Warn("closing the log of a sealed generation failed", "generation", old.Number, "err", err)
	}
	e.mu.Lock()
	old.sealed = true // from here on a flush may remove the log
	e.mu.Unlock()
	e.logger.Info("sealed a generation", "generation", old.Number, "series", old.mem.Stats().Series, "samples", old.mem.Stats().Samples)
	signal(e.sealed)
	return nil
}

// publish makes a generation visible to queries.
func (e *Engine) publish(g *generation) {
	e.set.Replace(nil, []serving.Entry{{Source: g.source}})
	e.mu.Lock()
	e.insert(g)
	e.mu.Unlock()
}

// insert puts a generation in its place in the order. The caller holds mu.
func (e *Engine) insert(g *generation) {
	at, _ := slices.BinarySearchFunc(e.generations, g.Number, func(g *generation, number uint64) int { return cmp.Compare(g.Number, number) })
	e.generations = slices.Insert(slices.Clone(e.generations), at, g)
}

func (e *Engine) activeGeneration() *generation {
	e.accept.Lock()
	defer e.accept.Unlock()
	return e.active
}

// flushOnSchedule writes what is sealed; what fails is tried again at the next tick, as log and memory stay.
func (e *Engine) flushOnSchedule(ctx context.Context) {
	err := e.flushSealed(ctx)
	if ctx.Err() == nil {
		e.report("flush", err)
	}
}

// flushSealed writes sealed generations to local blocks, oldest first, until none is left or one fails.
func (e *Engine) flushSealed(ctx context.Context) error {
	e.flushing.Lock()
	defer e.flushing.Unlock()
	for g := e.oldestSealed(); g != nil; g = e.oldestSealed() {
		began := time.Now()
		blocks, err := e.flush(ctx, g)
		if err != nil {
			e.metrics.flushFailures.Inc()
			return fmt.Errorf("write generation %d to blocks: %w", g.Number, err)
		}
		e.metrics.flushSeconds.Observe(time.Since(began).Seconds())
		e.logger.Info("wrote a generation to local blocks", "generation", g.Number, "blocks", len(blocks), "took", time.Since(began))
		signal(e.uploadable)
		GiveBack() // its memory goes at once, not as the collector gets round to it
	}
	return nil
}

func (e *Engine) oldestSealed() *generation {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, g := range e.generations {
		if g.sealed {
			return g
		}
	}
	return nil
}

// flush writes a sealed generation's blocks, lets them take its place in one step, and only then gives up log and memory.
func (e *Engine) flush(ctx context.Context, g *generation) ([]*localBlock, error) {
	defer collector.save()()
	// Of less worth than room for samples.
	e.report("metadata", e.metadata.save(e.data.path))
	e.report("exemplars", e.exemplars.save(e.data.path))
	blocks, err := e.writeBlocks(ctx, g)
	if err != nil {
		return nil, err
	}
	if err := e.dropLog(g); err != nil {
		closeAll(blocks)
		return nil, fmt.Errorf("remove log: %w", err)
	}
	var added []serving.Entry
	for _, b := range blocks {
		added = append(added, b.entry())
	}
	e.set.Replace([]serving.Source{g.source}, added)
	e.mu.Lock()
	e.generations = without(e.generations, g)
	e.local = append(e.local, blocks...)
	atRisk := e.atRisk
	if g.Number >= atRisk {
		e.atRisk = 0
	}
	e.mu.Unlock()
	if atRisk > 0 && g.Number >= atRisk {
		e.report("log sync", nil)
	}
	e.measureDisk()
	return blocks, nil
}

// dropLog removes a log that is no longer needed. One that was damaged is kept aside: what could not be read may be worth a look.
func (e *Engine) dropLog(g *generation) error {
	if g.damaged {
		return e.quarantine(g.dir, errDamaged)
	}
	return wal.Remove(g.dir)
}

var errDamaged = errors.New("parts of the log were damaged; what could be read is in blocks")

func (e *Engine) writeBlocks(ctx context.Context, g *generation) ([]*localBlock, error) {
	stats := g.mem.Stats()
	if stats.Samples == 0 {
		return nil, nil
	}
	windows, err := g.occupied(ctx, g.windows(stats.MinTime, stats.MaxTime))
	if err != nil {
		return nil, fmt.Errorf("look for windows with samples: %w", err)
	}
	var blocks []*localBlock
	for _, w := range windows {
		b, err := e.writeBlock(ctx, g, w)
		if errors.Is(err, block.ErrEmpty) {
			continue
		}
		if err != nil {
			closeAll(blocks)
			return nil, fmt.Errorf("window from %d: %w", w.from, err)
		}
		blocks = append(blocks, b)
	}
	return blocks, nil
}

func (e *Engine) writeBlock(ctx context.Context, g *generation, w window) (*localBlock, error) {
	dir := filepath.Join(e.data.path, blocksDir)
	path := filepath.Join(dir, w.id.String())
	// An attempt before this one, or before a crash, may have written the block: a sealed generation always becomes the same.
	if b, err := e.openLocalBlock(path); err == nil {
		if e.mayUpload(b) {
			return b, nil
		}
		_ = b.Close() // written before the external labels were changed, and not seen by a query yet
	}
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	var m block.Meta
	m.ULID, m.MinTime, m.MaxTime = w.id, w.from, w.to
	m.Thanos.Labels = e.cfg.Storage.externalLabels()
	m.SetExtension(0, g.Number, g.Number)
	if _, err := block.Write(ctx, dir, m, []block.Input{describedGeneration{g.mem, e.metadata}}, block.WriteOptions{Encode: merge.EncodeOptions{StartTimestamps: e.cfg.Storage.StartTimestamps}}); err != nil {
		return nil, err
	}
	return e.openLocalBlock(path)
}

func closeAll(blocks []*localBlock) {
	for _, b := range blocks {
		_ = b.Close()
	}
}

func without[T comparable](in []T, gone T) []T {
	out := make([]T, 0, len(in))
	for _, v := range in {
		if v != gone {
			out = append(out, v)
		}
	}
	return out
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
