package batch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/millrace/millrace/pkg/block"
)

// Recompute is the kind of a job that builds a compacted block again from level-0 blocks.
const Recompute Kind = "recompute"

// Outcome says what became of a compacted block in a recomputation.
type Outcome string

const (
	// Same blocks hold exactly what their level-0 blocks give.
	Same Outcome = "same"
	// Swapped blocks were replaced; in a dry run they would be.
	Swapped Outcome = "swapped"
	// Impossible is what cannot be built again, because level-0 blocks are not kept any more or not known.
	Impossible Outcome = "impossible"
	// Overtaken blocks were replaced by others while they were built again.
	Overtaken Outcome = "overtaken"
)

// Recomputed is what became of one compacted block.
type Recomputed struct {
	Block   block.Meta
	Outcome Outcome
	// Replacement is the block that took its place, if it was swapped; the zero ULID if nothing was left for one.
	Replacement ulid.ULID
	// Reason says why it is impossible, or how the old block cannot be read.
	Reason string
	// Difference of the samples, old to new.
	Difference Difference
}

// RecomputeRange builds all compacted blocks that hold samples with mint ≤ t < maxt (ms) again from the level-0 blocks that went into
// them, and puts those that differ in the place of the old ones. With dry, it only says which these are.
//
// What it cannot build is in the result. A failure does not end it; the error names all that failed. Blocks are replaced one by one, as
// compactions do it: after an error each block is the old or the new one, and the call can be repeated. It takes turns with Run.
func (r *Runner) RecomputeRange(ctx context.Context, mint, maxt int64, dry bool) ([]Recomputed, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := cleanScratch(r.o.ScratchDir); err != nil {
		return nil, err
	}
	u := r.newRun(true)
	defer u.dropLeases()
	if u.keepsClock() {
		if err := u.readClock(ctx, dry); err != nil {
			return nil, err
		}
	}
	l, err := u.list(ctx, nil)
	if err != nil {
		return nil, err
	}
	if !dry {
		if l, err = u.leaseRange(ctx, l, mint, maxt); err != nil {
			return nil, err
		}
	}
	stock, err := u.stock(ctx, l)
	if err != nil {
		return nil, err
	}
	var (
		out  []Recomputed
		errs []error
	)
	for _, m := range visible(l.blocks) {
		if m.Level() == 0 || !m.Overlaps(mint, maxt-1) {
			continue
		}
		res, err := u.recompute(ctx, m, l, stock, dry)
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("recompute block %s: %w", m.ULID, err))
			continue
		}
		out = append(out, res)
	}
	if !dry {
		errs = append(errs, u.markReplaced(ctx))
	}
	return out, errors.Join(errs...)
}

// leaseRange takes the leases of all writers that have blocks in a range. It returns a listing from after that.
func (u *run) leaseRange(ctx context.Context, l *listing, mint, maxt int64) (*listing, error) {
	var found []*block.Meta
	for _, m := range visible(l.blocks) {
		if m.Level() > 0 && m.Overlaps(mint, maxt-1) {
			found = append(found, &m)
		}
	}
	if !u.ensure(ctx, found) {
		return l, ctx.Err()
	}
	return u.list(ctx, nil)
}

// markReplaced marks what was swapped, so that nobody has to wait for the next run.
func (u *run) markReplaced(ctx context.Context) error {
	l, err := u.list(ctx, nil)
	if err != nil {
		return err
	}
	return u.mark(ctx, l)
}

// stored is a level-0 block and whether it is among the kept ones.
type stored struct {
	meta block.Meta
	kept bool
}

// stock finds all level-0 blocks that are still there.
func (u *run) stock(ctx context.Context, l *listing) (map[ulid.ULID]stored, error) {
	kept, err := u.masters.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", block.MastersPrefix, err)
	}
	all := make(map[ulid.ULID]stored, len(kept))
	for id, b := range kept {
		all[id] = stored{meta: b.Meta, kept: true}
	}
	for _, b := range l.blocks {
		if b.Meta.Level() == 0 {
			all[b.Meta.ULID] = stored{meta: b.Meta}
		}
	}
	return all, nil
}

// recompute builds one block again.
func (u *run) recompute(ctx context.Context, old block.Meta, l *listing, stock map[ulid.ULID]stored, dry bool) (Recomputed, error) {
	res := Recomputed{Block: old}
	inputs, missing := mastersOf(&old, stock)
	if missing != "" {
		res.Outcome, res.Reason = Impossible, missing
		return res, nil
	}
	j := &Job{Kind: Recompute, Inputs: inputs, Level: old.Level(), Width: old.MaxTime - old.MinTime, StartTimestamps: u.config.StartTimestamps}
	j.setTombstones(l.tombstones)
	err := j.dropAgain(&old)
	if err != nil {
		return res, err
	}
	j.setDrops(u.config.Rules, u.sure)
	m := j.rebuiltMeta(&old, u.config)
	j.ID = m.ULID.String()
	t := u.begin(j)
	t.windows.Store(1)
	about := hull(inputs)
	u.log.Info("builds a block again", "block", old.ULID, "inputs", len(inputs), "from", about.from(), "to", about.to())
	e := &execution{run: u, job: j, listed: l, tracker: t}
	err = e.rebuild(ctx, m, &res, stock, dry)
	state := Done
	switch {
	case errors.Is(err, errAbandoned):
		state, res.Outcome, err = Abandoned, Overtaken, nil
	case err != nil:
		state = Failed
	}
	u.end(t, state, err)
	return res, err
}

// mastersOf returns the level-0 blocks of which m is made, in order of precedence, or says why they cannot be had.
func mastersOf(m *block.Meta, stock map[ulid.ULID]stored) (inputs []block.Meta, missing string) {
	ids, known := m.Masters()
	if !known {
		return nil, "it does not say which level-0 blocks went into it"
	}
	var gone []string
	for _, id := range ids {
		s, ok := stock[id]
		if !ok {
			gone = append(gone, id.String())
			continue
		}
		inputs = append(inputs, s.meta)
	}
	if len(gone) > 0 {
		return nil, fmt.Sprintf("%d of its %d level-0 blocks are not kept any more: %s", len(gone), len(ids), strings.Join(shortened(gone), ", "))
	}
	slices.SortFunc(inputs, block.Compare)
	return inputs, ""
}

// shortened leaves out what nobody would read.
func shortened(names []string) []string {
	const enough = 3
	if len(names) <= enough {
		return names
	}
	return append(slices.Clone(names[:enough]), "…")
}

// rebuiltMeta is that of the block which takes the place of old: same window, level and generations.
func (j *Job) rebuiltMeta(old *block.Meta, c Config) block.Meta {
	var m block.Meta
	m.Version = block.MetaVersion
	m.MinTime, m.MaxTime = old.MinTime, old.MaxTime
	m.Thanos.Labels = maps.Clone(old.Thanos.Labels)
	m.ULID = j.rebuiltID(old, c)
	for _, in := range j.Inputs {
		m.Compaction.Parents = append(m.Compaction.Parents, tsdb.BlockDesc{ULID: in.ULID, MinTime: in.MinTime, MaxTime: in.MaxTime})
	}
	m.Compaction.Sources = append([]ulid.ULID{m.ULID, old.ULID}, old.Compaction.Sources...)
	slices.SortFunc(m.Compaction.Sources, ulid.ULID.Compare)
	m.Compaction.Sources = slices.Compact(m.Compaction.Sources)
	minGen, maxGen := old.Generations()
	m.SetExtension(j.Level, minGen, maxGen, old.ULID)
	m.Thanos.Extensions.Millrace.Masters = masters(j.Inputs)
	m.Thanos.Extensions.Millrace.Applied = j.applied(window{old.MinTime, old.MaxTime}, j.Inputs)
	m.Thanos.Extensions.Millrace.Dropped = j.dropped(window{old.MinTime, old.MaxTime}, j.Inputs)
	return m
}

func (j *Job) rebuiltID(old *block.Meta, c Config) ulid.ULID {
	buf := []byte("millrace rebuilt block\x00")
	if j.StartTimestamps {
		buf = append(buf, "start timestamps\x00"...)
	}
	buf = binary.BigEndian.AppendUint64(buf, codeVersion)
	buf = append(buf, old.ULID[:]...)
	for _, in := range j.Inputs {
		buf = append(buf, in.ULID[:]...)
	}
	w := window{old.MinTime, old.MaxTime}
	buf = append(buf, j.tombstoneKey(w, j.Inputs)...)
	buf = append(buf, j.dropKey(w, j.Inputs)...)
	if c.inParts(j, w) { // whose ends are those of chunks, too
		buf = append(buf, "parts\x00"...)
		buf = binary.BigEndian.AppendUint64(buf, uint64(c.MaxInputs))
		buf = binary.BigEndian.AppendUint64(buf, uint64(c.MemoryLimit))
	}
	return derivedID(old.ULID.Time(), buf)
}

// rebuild writes the block m, compares it with the old one and, where they differ, uploads it, which is the commit.
func (e *execution) rebuild(ctx context.Context, m block.Meta, res *Recomputed, stock map[ulid.ULID]stored, dry bool) (err error) {
	if err := e.checkRoom(); err != nil {
		return err
	}
	var digest block.Digest
	p := &parts{execution: e, output: m, stock: stock, made: map[ulid.ULID]string{}}
	m, err = p.write(ctx, &digest)
	switch {
	case errors.Is(err, block.ErrEmpty):
		return e.removeEmpty(ctx, res, dry)
	case err != nil:
		return e.noteMismatch(err)
	}
	dir := filepath.Join(e.o.ScratchDir, m.ULID.String())
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := e.differ(ctx, dir, res); err != nil {
		return err
	}
	if res.Outcome == Same || dry {
		return nil
	}
	if err := e.swap(ctx, dir, m, res.Block.ULID, &digest); err != nil {
		return err
	}
	res.Replacement = m.ULID
	e.addOutput(e.tracker, m.ULID)
	return nil
}

// swap brings the block in dir into the bucket in the place of old. Whoever has compacted old meanwhile has won, before the commit or after it: a block made of old covers
// more generations than its replacement, which so is taken back.
func (e *execution) swap(ctx context.Context, dir string, m block.Meta, old ulid.ULID, digest *block.Digest) error {
	err := e.noteMismatch(block.UploadChecked(ctx, e.o.Bucket, dir, func(ctx context.Context, m block.Meta) error {
		if err := block.ReadBack(ctx, e.o.Bucket, m, digest); err != nil {
			return err
		}
		return e.stillThere(ctx, old)
	}))
	if err != nil {
		return err
	}
	l, err := e.list(ctx, nil)
	if err != nil {
		return err
	}
	for _, b := range l.blocks {
		if b.Meta.ULID != m.ULID && slices.Contains(b.Meta.Replaces(), old) {
			err := block.MarkForDeletion(ctx, e.o.Bucket, m.ULID, "the block whose place it takes was compacted meanwhile")
			return errors.Join(fmt.Errorf("%w: block %s was replaced by %s", errAbandoned, old, b.Meta.ULID), err)
		}
	}
	return nil
}

// removeEmpty ends the recomputation of a block of which nothing is left, because all of it was deleted.
func (e *execution) removeEmpty(ctx context.Context, res *Recomputed, dry bool) error {
	res.Outcome, res.Reason = Swapped, "its level-0 blocks have no samples that count"
	if dry {
		return nil
	}
	if err := e.stillThere(ctx, res.Block.ULID); err != nil {
		return err
	}
	return block.MarkForDeletion(ctx, e.o.Bucket, res.Block.ULID, res.Reason)
}

// differ compares the block in dir with the one whose place it takes. An old block that cannot be read differs.
func (e *execution) differ(ctx context.Context, dir string, res *Recomputed) error {
	rebuilt, err := block.OpenLocal(dir)
	if err != nil {
		return err
	}
	defer rebuilt.Close()
	old, err := block.OpenBucketMeta(ctx, e.o.Bucket, res.Block, e.o.Cache)
	if err == nil {
		defer old.Close()
		res.Difference, err = compareBlocks(block.WithReadAhead(ctx, e.config.readAhead(2)), old, rebuilt)
	}
	res.Outcome = Swapped
	switch {
	case errors.Is(err, block.ErrCorrupt), errors.Is(err, block.ErrGone):
		res.Reason = fmt.Sprintf("the old block cannot be read: %s", err)
	case err != nil:
		return err
	case res.Difference == Difference{}:
		res.Outcome = Same
	}
	return nil
}

// stillThere fails if the block is not visible any more: what was made of it meanwhile would win over what takes its place.
func (e *execution) stillThere(ctx context.Context, id ulid.ULID) error {
	l, err := e.list(ctx, nil)
	if err != nil {
		return err
	}
	if !ids(visible(l.blocks))[id] {
		return fmt.Errorf("%w: block %s was replaced or marked for deletion", errAbandoned, id)
	}
	return nil
}
