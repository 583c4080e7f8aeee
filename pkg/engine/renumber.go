package engine

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/oklog/ulid/v2"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/tombstone"
)

// Numbers of generations are given out before the bucket has to be asked. So when the claim has become ours, blocks of another writer may be there whose
// numbers are as high as those of generations that wait: because the bucket was away when these began, or because another data path
// had the claim in between. What waits was not accepted before what is in the bucket was uploaded, as far as anybody can tell; it gets numbers above, in
// the order that it has.

// numberAbove makes the numbers of all that waits higher than those in the bucket, once for each time that the claim has become ours.
func (e *Engine) numberAbove(ctx context.Context, claimed uint64) error {
	e.data.numbering.Lock()
	defer e.data.numbering.Unlock()
	if e.data.numbered == claimed {
		return nil
	}
	listed, deleted, err := e.listBucket(ctx)
	if err != nil {
		return fmt.Errorf("compare the numbers of generations with the bucket's: %w", err)
	}
	if err := e.dropUploaded(ctx, listed); err != nil {
		return fmt.Errorf("let go of local blocks that are in the bucket: %w", err)
	}
	highest, ids := e.highestOf(listed)
	others, all := e.highestDeleted(deleted)
	if e.collides(highest, others, ids) {
		highest = max(highest, all)
		if err := e.renumber(ctx, highest); err != nil {
			return fmt.Errorf("give generations numbers above %d, which is in the bucket: %w", highest, err)
		}
	}
	e.data.numbered = claimed
	return nil
}

// highestOf returns the highest number of a generation with our labels in the bucket, and the blocks of level 0 that have it.
func (e *Engine) highestOf(listed map[ulid.ULID]block.Listed) (highest uint64, ids []ulid.ULID) {
	own := e.cfg.Storage.externalLabels()
	for id, l := range listed {
		if !maps.Equal(l.Meta.Thanos.Labels, own) {
			continue
		}
		_, number := l.Meta.Generations()
		if number > highest {
			highest, ids = number, nil
		}
		if number == highest && l.Meta.Level() == 0 {
			ids = append(ids, id)
		}
	}
	return highest, ids
}

// highestDeleted returns the highest number of a generation with our labels that a tombstone concerns, of those that others asked for and of all.
// A writer may end between the upload of a tombstone and that of the blocks which are older.
func (e *Engine) highestDeleted(inBucket []*tombstone.Tombstone) (others, all uint64) {
	own, instance := e.cfg.Storage.externalLabels(), e.instance()
	for _, t := range slices.Concat(inBucket, e.data.deletions.all()) {
		if !maps.Equal(t.Writer, own) {
			continue
		}
		all = max(all, t.Generation)
		if t.Elsewhere(instance) {
			others = max(others, t.Generation)
		}
	}
	return others, all
}

// dropUploaded lets go of local blocks that the bucket has, as itself or in what was made of it: a process that was killed before its queries had
// ended has left them. They are not what waits.
func (e *Engine) dropUploaded(ctx context.Context, listed map[ulid.ULID]block.Listed) error {
	replaced := map[ulid.ULID]bool{}
	for _, l := range listed {
		for _, id := range l.Meta.Replaces() {
			replaced[id] = true
		}
		if l.Meta.Level() > 0 {
			masters, _ := l.Meta.Masters()
			for _, id := range masters {
				replaced[id] = true
			}
		}
	}
	if !slices.ContainsFunc(slices.Collect(maps.Keys(e.localIDs())), func(id ulid.ULID) bool {
		_, there := listed[id]
		return there || replaced[id]
	}) {
		return nil
	}
	e.uploads.Lock()
	defer e.uploads.Unlock()
	e.mu.Lock()
	local := slices.Clone(e.local)
	e.mu.Unlock()
	var gone []*localBlock
	for _, b := range local {
		_, there := listed[b.meta.ULID]
		switch {
		case replaced[b.meta.ULID]:
			gone = append(gone, b)
		case there:
			if err := e.moveToBucket(ctx, b); err != nil {
				return err
			}
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if err := e.syncBucket(ctx); err != nil { // what was made of them must be seen before
		return err
	}
	for _, b := range gone {
		if err := b.markUploaded(); err != nil {
			return fmt.Errorf("block %s: %w", b.meta.ULID, err)
		}
		e.set.Replace([]serving.Source{b.source}, nil)
		e.mu.Lock()
		e.local = without(e.local, b)
		e.mu.Unlock()
	}
	e.report("external labels", e.heldBack())
	e.measureDisk()
	return nil
}

// numberHeld is numberAbove where the claim is ours, the number of which it returns. While it is not, what is accepted is not compared yet.
func (e *Engine) numberHeld(ctx context.Context) (claimed uint64, err error) {
	claimed, notHeld := e.data.claim.Held()
	if notHeld != nil {
		return claimed, nil
	}
	return claimed, e.numberAbove(ctx, claimed)
}

// collides tells whether the oldest of what waits has a number that is not above the highest one in the bucket, or of others' deletions. Only where a part
// of that generation was uploaded before is it the same.
func (e *Engine) collides(highest, deleted uint64, inBucket []ulid.ULID) bool {
	lowest, id := e.oldestWaiting()
	if lowest == 0 || highest < lowest && deleted < lowest {
		return false
	}
	if highest > lowest || deleted >= lowest || len(inBucket) == 0 {
		return true
	}
	return slices.ContainsFunc(inBucket, func(other ulid.ULID) bool { return !sameGeneration(id, other) })
}

// sameGeneration tells whether two blocks have ids of the same header.
func sameGeneration(a, b ulid.ULID) bool { return [14]byte(a[:14]) == [14]byte(b[:14]) }

// oldestWaiting returns the lowest number of a generation that is not in the bucket, 0 if there is none, and the id of one of its blocks.
func (e *Engine) oldestWaiting() (number uint64, id ulid.ULID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if b := e.nextLocal(); b != nil {
		_, number = b.meta.Generations()
		return number, b.meta.ULID
	}
	if len(e.generations) > 0 {
		return e.generations[0].Number, e.generations[0].blockID(0)
	}
	return 0, id
}

// renumber seals what is in memory, so that all that waits is blocks on local disk, and gives these numbers from highest+1 on. The generation that
// is begun by that has a number above them.
func (e *Engine) renumber(ctx context.Context, highest uint64) error {
	e.deleting.Lock() // or a deletion would be of numbers that are none any more
	defer e.deleting.Unlock()
	// Or one of our own deletions would concern what was accepted after it.
	highest = max(highest, e.data.deletions.highest(e.cfg.Storage.externalLabels()))
	e.rotating.Lock()
	last := e.reserveNumbers(highest)
	e.rotating.Unlock()
	if err := e.rotate(); err != nil {
		return err
	}
	if err := e.flushSealed(ctx); err != nil {
		return err
	}
	e.uploads.Lock()
	defer e.uploads.Unlock()
	e.mu.Lock()
	local := slices.DeleteFunc(slices.Clone(e.local), func(b *localBlock) bool {
		_, number := b.meta.Generations()
		return number > last || !e.mayUpload(b)
	})
	e.mu.Unlock()
	var numbers []uint64
	for _, b := range local {
		_, number := b.meta.Generations()
		numbers = append(numbers, number)
	}
	numbers = slices.Compact(numbers) // they are in order
	// From the newest to the oldest: should this be cut short, the order is still the same.
	for _, b := range slices.Backward(local) {
		_, was := b.meta.Generations()
		place, _ := slices.BinarySearch(numbers, was)
		if err := e.renumberBlock(b, highest+1+uint64(place)); err != nil {
			return err
		}
	}
	e.logger.Warn("generations that wait for the bucket got new numbers, as it holds blocks of another writer with these labels",
		"generations", len(numbers), "from", highest+1)
	return nil
}

// reserveNumbers keeps generations to come away from the numbers of those that wait and of those that these will get, the highest of which it
// returns. It is called with rotating.
func (e *Engine) reserveNumbers(highest uint64) (last uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	last = highest + uint64(len(e.generations)+len(e.local))
	for _, g := range e.generations {
		last = max(last, g.Number)
	}
	for _, b := range e.local {
		_, number := b.meta.Generations()
		last = max(last, number)
	}
	e.data.reserved = last
	return last
}

// nextNumber is that of the generation after one. It is called with rotating.
func (d *dataPath) nextNumber(after uint64) uint64 { return max(after, d.reserved) + 1 }

// renumberBlock writes a local block's meta.json anew and lets queries see it so. What was deleted of it stays deleted.
func (e *Engine) renumberBlock(b *localBlock, number uint64) error {
	m := b.meta
	extension := *m.Thanos.Extensions.Millrace
	extension.Generations = block.Generations{Min: number, Max: number}
	for _, t := range e.data.deletions.all() {
		if t.On(b.source.stored()) == tombstone.Whole && t.Generation < number {
			extension.Deleted = append(extension.Deleted, t.ID)
		}
	}
	m.Thanos.Extensions.Millrace = &extension
	raw, err := m.Marshal()
	if err != nil {
		return fmt.Errorf("block %s: %w", m.ULID, err)
	}
	if err := writeFile(filepath.Join(b.dir, block.MetaFilename), raw); err != nil {
		return fmt.Errorf("block %s: %w", m.ULID, err)
	}
	again, err := e.openLocalBlock(b.dir)
	if err != nil {
		return err
	}
	e.set.Replace([]serving.Source{b.source}, []serving.Entry{again.entry()})
	e.mu.Lock()
	defer e.mu.Unlock()
	e.local = slices.Clone(e.local)
	e.local[slices.Index(e.local, b)] = again
	return nil
}
