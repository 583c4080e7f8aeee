package batch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/tombstone"
)

// Deleted samples are erased by whatever job reads the block that has them: each input is read through the filter of the tombstones that concern
// it, and the output says which were applied. Where no job is due for a block, one of the kind Erase writes it anew. So it is with series that
// retention rules drop.

// setTombstones tells a job what was deleted of its writer's samples. Times do not matter: an output's range may be wider than that of its inputs.
func (j *Job) setTombstones(all []*tombstone.Tombstone) {
	for _, t := range all {
		if maps.Equal(t.Writer, j.Inputs[0].Thanos.Labels) {
			j.Tombstones = append(j.Tombstones, t)
		}
	}
	j.setID()
}

// applied returns the tombstones of which nothing is left in an output for w: all that is older has been filtered, now or before. It is sorted.
func (j *Job) applied(w window, contributors []block.Meta) []ulid.ULID {
	var ids []ulid.ULID
	for _, t := range j.Tombstones {
		older := func(m block.Meta) bool {
			lo, _ := m.Generations()
			return lo <= t.Generation || t.On(m.Stored()) == tombstone.Whole
		}
		mixed := func(m block.Meta) bool { return t.On(m.Stored()) == tombstone.Mixed }
		if t.Interval().Overlaps(w.min, w.max-1) && slices.ContainsFunc(contributors, older) && !slices.ContainsFunc(contributors, mixed) {
			ids = append(ids, t.ID)
		}
	}
	slices.SortFunc(ids, ulid.ULID.Compare)
	return ids
}

// erases returns the tombstones whose samples are taken out of an input.
func (j *Job) erases(m *block.Meta) []*tombstone.Tombstone {
	return slices.DeleteFunc(slices.Clone(j.Tombstones), func(t *tombstone.Tombstone) bool { return t.On(m.Stored()) != tombstone.Whole })
}

// filteredInput is an input without the samples that were deleted. It has no method Meta: of its symbols, too, only those go into the output that
// are left.
type filteredInput struct {
	in     countedInput
	filter *tombstone.Filter
}

// ChunkQuerier counts what is read of the input once: to find out which labels are left, the filter reads samples, too.
func (f filteredInput) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	counted, err := f.in.ChunkQuerier(mint, maxt)
	if err != nil {
		return nil, err
	}
	labelsOnly, err := f.in.Block.ChunkQuerier(mint, maxt)
	if err != nil {
		return nil, errors.Join(err, counted.Close())
	}
	return filteredQuerier{f.filter.Querier(counted, mint, maxt), f.filter.Querier(labelsOnly, mint, maxt)}, nil
}

type filteredQuerier struct {
	storage.ChunkQuerier
	labelsOnly storage.ChunkQuerier
}

func (q filteredQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	if hints != nil && hints.Func == "series" {
		return q.labelsOnly.Select(ctx, sorted, hints, ms...)
	}
	return q.ChunkQuerier.Select(ctx, sorted, hints, ms...)
}

func (q filteredQuerier) Close() error {
	return errors.Join(q.ChunkQuerier.Close(), q.labelsOnly.Close())
}

func (f filteredInput) Symbols() index.StringIter { return f.in.Symbols() }

func (f filteredInput) Families(ctx context.Context) (block.Families, error) {
	return f.in.Families(ctx)
}

// filtered returns an input as the job is to read it for an output.
func (j *Job) filtered(in countedInput, m *block.Meta, w window) block.Input {
	if f := tombstone.FilterOf(j.takes(m, w)); f != nil {
		return filteredInput{in, f}
	}
	return in
}

// erase plans the erasure of what was deleted from compacted blocks, or is no longer kept; those of level 0 will be compacted anyway.
func (p *planner) erase(settled []block.Meta) []Job {
	var jobs []Job
	for _, m := range settled {
		if m.Level() > 0 && (p.outlived(&m) || slices.ContainsFunc(p.tombstones, func(t *tombstone.Tombstone) bool {
			return (p.force || t.Created <= p.now-p.config.EraseDelay.Milliseconds()) &&
				t.On(m.Stored()) == tombstone.Whole && !p.void[pair{t.ID, m.ULID}]
		})) {
			t := tier{kind: Erase, level: m.Level(), width: m.MaxTime - m.MinTime}
			jobs = append(jobs, newJob(t, []block.Meta{m}, p.config))
		}
	}
	return jobs
}

// pair is a tombstone, or a retention rule, and a block that holds nothing for it to erase.
type pair struct{ tombstone, block ulid.ULID }

// findings is what a runner has found out about tombstones and retention rules, by id. It belongs to whoever has the turn.
type findings map[ulid.ULID]*tombstone.State

// state returns what is known of a tombstone, as found by runs before this one.
func (r *Runner) state(ctx context.Context, id ulid.ULID) (*tombstone.State, error) {
	if s := r.found[id]; s != nil {
		return s, nil
	}
	s, err := r.tombstones.State(ctx, id)
	if err != nil {
		return nil, err
	}
	r.found[id] = &s
	return &s, nil
}

// void returns which blocks hold nothing for which tombstones and retention rules.
func (r *Runner) void(ctx context.Context, all []*tombstone.Tombstone) (map[pair]bool, error) {
	ids := make([]ulid.ULID, 0, len(all)+len(r.config.Rules))
	for _, t := range all {
		ids = append(ids, t.ID)
	}
	for i := range r.config.Rules {
		ids = append(ids, r.config.Rules[i].ID)
	}
	void := map[pair]bool{}
	for _, id := range ids {
		s, err := r.state(ctx, id)
		if err != nil {
			return nil, err
		}
		for _, b := range s.Void {
			void[pair{id, b}] = true
		}
	}
	return void, nil
}

// worthwhile says whether a job has something to do: an erasure may not, which the index of its block tells. That is remembered.
func (u *run) worthwhile(ctx context.Context, j *Job, l *listing) bool {
	if j.Kind != Erase || ctx.Err() != nil {
		return true
	}
	m := &j.Inputs[0]
	void, err := u.untouched(ctx, j)
	if err != nil {
		// Whatever it is, the job will find out.
		u.log.Warn("cannot find out whether a block holds series to erase", "block", m.ULID, "err", err)
		return true
	}
	for _, id := range void {
		l.void[pair{id, m.ULID}] = true
		u.found[id].Void = append(u.found[id].Void, m.ULID)
		u.changed[id] = true
	}
	return len(void) < len(j.takes(m, j.whole()))
}

// saveFindings writes what was found out since it was called last.
func (u *run) saveFindings(ctx context.Context, l *listing) {
	for id := range u.changed {
		u.saveState(ctx, id, l)
	}
	clear(u.changed)
}

// whole is the window of an erasure.
func (j *Job) whole() window { return window{j.Inputs[0].MinTime, j.Inputs[0].MaxTime} }

// untouched returns which of the tombstones and retention rules that concern an erasure's input match no series of it.
func (u *run) untouched(ctx context.Context, j *Job) (void []ulid.ULID, err error) {
	m := j.Inputs[0]
	b, err := block.OpenBucketMeta(ctx, u.o.Bucket, m, u.o.Cache)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	q, err := b.ChunkQuerier(m.MinTime, m.MaxTime-1)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	for _, t := range j.takes(&m, j.whole()) {
		touches, err := tombstone.FilterOf([]*tombstone.Tombstone{t}).Touches(ctx, q)
		if err != nil {
			return nil, err
		}
		if !touches {
			void = append(void, t.ID)
		}
	}
	return void, nil
}

// saveState writes what is known of a tombstone or retention rule, without blocks that are gone. To lose it costs work, nothing else.
func (u *run) saveState(ctx context.Context, id ulid.ULID, l *listing) {
	s := u.found[id]
	s.Void = slices.DeleteFunc(s.Void, func(b ulid.ULID) bool { return !l.there[b] })
	if err := u.tombstones.PutState(ctx, id, *s); err != nil {
		u.log.Warn("what was found out about a deletion or a retention rule is not kept", "id", id, "err", err)
	}
}

// settle takes tombstones out of the bucket of which nothing is left, after the time that an upload may take: a job that was begun before
// the tombstone was there must not bring anything back.
func (u *run) settle(ctx context.Context, l *listing) error {
	if len(l.tombstones) == 0 {
		return nil
	}
	// After the blocks, as that is the way that they go.
	kept, err := u.masters.List(ctx)
	if err != nil {
		return fmt.Errorf("list %s: %w", block.MastersPrefix, err)
	}
	for _, b := range kept {
		l.all = append(l.all, b.Meta)
	}
	l.unreadable = l.unreadable || anyUnreadable(u.masters.Bad())
	var errs []error
	for _, t := range l.tombstones {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s, err := u.state(ctx, t.ID)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		now := l.at.UnixMilli()
		switch settled := l.uploadedAfter(t) && !l.left(t); {
		case !settled && s.Settled != 0:
			s.Settled = 0
			u.saveState(ctx, t.ID, l)
		case settled && s.Settled == 0:
			s.Settled = now
			u.saveState(ctx, t.ID, l)
		case settled && now-s.Settled >= u.config.PartialAge.Milliseconds():
			if err := u.tombstones.Delete(ctx, t.ID); err != nil {
				errs = append(errs, err)
				continue
			}
			delete(u.found, t.ID)
			u.metrics.tombstones.Inc()
			u.log.Info("removed a tombstone, as all that it deletes is erased", "tombstone", t.ID)
		}
	}
	return errors.Join(errs...)
}

// left says whether the bucket may hold something that a tombstone deletes. Blocks that were replaced, are marked, are kept as master data, or
// cannot be read count.
func (l *listing) left(t *tombstone.Tombstone) bool {
	return l.unreadable || slices.ContainsFunc(l.all, func(m block.Meta) bool {
		return t.On(m.Stored()) != tombstone.None && !l.void[pair{t.ID, m.ULID}]
	})
}

// uploadedAfter says whether all generations that a tombstone concerns are in the bucket: because its writer says so, or because it shows a
// later one, as they come in order.
func (l *listing) uploadedAfter(t *tombstone.Tombstone) bool {
	for _, w := range l.writers {
		if maps.Equal(w.labels, t.Writer) {
			return w.known && w.uploaded >= t.Generation || w.newest > t.Generation
		}
	}
	return false
}

// listTombstones fills in what was deleted. It comes after the blocks: see package tombstone.
func (r *Runner) listTombstones(ctx context.Context, l *listing) (err error) {
	all, err := r.tombstones.List(ctx)
	if err != nil {
		return fmt.Errorf("list the bucket: %w", err)
	}
	for _, t := range all {
		if r.o.Labels == nil || maps.Equal(r.o.Labels, t.Writer) {
			l.tombstones = append(l.tombstones, t)
		}
	}
	if l.void, err = r.void(ctx, l.tombstones); err != nil {
		return err
	}
	l.there = ids(l.all)
	return nil
}

func anyUnreadable(bad map[ulid.ULID]error) bool {
	for _, err := range bad {
		if !errors.Is(err, block.ErrDownsampled) {
			return true
		}
	}
	return false
}

// tombstoneKey is what ids of outputs depend on beside the inputs: which deletions were applied to them.
func (j *Job) tombstoneKey(w window, contributors []block.Meta) []byte {
	var erased []ulid.ULID
	for _, m := range contributors {
		for _, t := range j.erases(&m) {
			erased = append(erased, t.ID)
		}
	}
	slices.SortFunc(erased, ulid.ULID.Compare)
	erased = slices.Compact(erased)
	applied := j.applied(w, contributors)
	if cmp.Or(len(erased), len(applied)) == 0 {
		return nil // as it was before there were tombstones
	}
	key := []byte("tombstones\x00")
	for _, set := range [][]ulid.ULID{erased, applied} {
		for _, id := range set {
			key = append(key, id[:]...)
		}
		key = append(key, 0)
	}
	return key
}
