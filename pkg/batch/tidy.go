package batch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

// superseded returns the blocks of ours which a job has replaced and which are not marked for deletion yet, in the order
// of inputsFirst.
func superseded(listed []block.Listed) []ulid.ULID {
	metas := make([]block.Meta, 0, len(listed))
	hidden := make(map[ulid.ULID]bool, len(listed))
	for _, l := range listed {
		metas = append(metas, l.Meta)
		hidden[l.Meta.ULID] = ours(&l.Meta) && l.DeletionMark == nil
	}
	answer, left := answering(listed)
	for _, m := range slices.Concat(answer, left) {
		hidden[m.ULID] = false
	}
	var ids []ulid.ULID
	for _, id := range inputsFirst(metas) {
		if hidden[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// inputsFirst orders blocks so that each comes after those that it replaces. Marked and deleted in this order, a block
// never outlives the one that hides it by more than the step in which both go.
func inputsFirst(metas []block.Meta) []ulid.ULID {
	index := make(map[ulid.ULID]int, len(metas))
	for i := range metas {
		index[metas[i].ULID] = i
	}
	seen := make([]bool, len(metas))
	ids := make([]ulid.ULID, 0, len(metas))
	var visit func(i int)
	visit = func(i int) {
		seen[i] = true
		for _, id := range metas[i].Replaces() {
			if j, ok := index[id]; ok && !seen[j] {
				visit(j)
			}
		}
		ids = append(ids, metas[i].ULID)
	}
	for i := range metas {
		if !seen[i] {
			visit(i)
		}
	}
	return ids
}

// tidy marks what was replaced or is beyond retention, deletes what was marked long enough ago, and removes abandoned
// uploads, and tombstones of which nothing is left. What fails does not stop the rest.
func (u *run) tidy(ctx context.Context, l *listing) error {
	errs := []error{
		u.mark(ctx, l), u.deleteMarked(ctx, l), u.deleteMasters(ctx),
		u.deletePartials(ctx, u.o.Bucket, u.o.Lister), u.deletePartials(ctx, block.Masters(u.o.Bucket), u.masters),
		u.settle(ctx, l),
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(errs...)
}

func (u *run) mark(ctx context.Context, l *listing) error {
	var errs []error
	mark := func(id ulid.ULID, reason, details string) {
		if ctx.Err() != nil {
			return
		}
		if err := block.MarkForDeletion(ctx, u.o.Bucket, id, details); err != nil {
			errs = append(errs, err)
			return
		}
		u.summary.Marked++
		u.metrics.marked.WithLabelValues(reason).Inc()
		u.log.Info("marked a block for deletion", "block", id, "reason", reason)
	}
	for _, id := range superseded(l.blocks) {
		mark(id, reasonReplaced, replacedDetails)
	}
	kept := slices.DeleteFunc(visible(l.blocks), func(m block.Meta) bool {
		old := expired(&m, l.at.UnixMilli(), u.config.Retention)
		if old {
			mark(m.ULID, reasonRetention, fmt.Sprintf(expiredDetails+"%s", u.config.Retention))
		}
		return old
	})
	for _, m := range tooMuch(kept, u.config.RetentionSize) {
		mark(m.ULID, reasonSize, fmt.Sprintf("it is among the oldest, and all blocks together had more than the retention of %d bytes", u.config.RetentionSize))
	}
	return errors.Join(errs...)
}

// tooMuch returns the oldest blocks that have to go for the rest to have limit bytes; 0 is no limit. What came late for a window
// goes with the window's block. Those that end last stay in any case.
func tooMuch(metas []block.Meta, limit int64) []block.Meta {
	if limit == 0 {
		return nil
	}
	ends := endsOf(metas)
	metas = slices.Clone(metas)
	slices.SortStableFunc(metas, func(a, b block.Meta) int { return cmp.Compare(ends[b.ULID], ends[a.ULID]) })
	var size int64
	for i := 0; i < len(metas); {
		n := i
		for ; n < len(metas) && ends[metas[n].ULID] == ends[metas[i].ULID]; n++ {
			size += metas[n].Size()
		}
		if size > limit && i > 0 {
			return metas[i:]
		}
		i = n
	}
	return nil
}

// endsOf returns when blocks end or, where one lies in the window of a block of a higher level, that window.
func endsOf(metas []block.Meta) map[ulid.ULID]int64 {
	of := map[window]bool{}
	for _, m := range metas {
		of[window{m.MinTime, m.MaxTime}] = true
	}
	ends := make(map[ulid.ULID]int64, len(metas))
	for _, m := range metas {
		ends[m.ULID] = m.MaxTime
		for _, t := range []tier{windows, days, fortnights} {
			if w := windowAt(m.MinTime, t.width); w.holds(&m) && of[w] {
				ends[m.ULID] = w.max
			}
		}
	}
	return ends
}

// deleteMarked removes blocks whose mark is old enough. One that replaced others stays as long as these do, or they would be seen again.
func (u *run) deleteMarked(ctx context.Context, l *listing) error {
	var errs []error
	if !u.keepsClock() && u.config.Retention == 0 && slices.ContainsFunc(l.blocks, func(b block.Listed) bool { return b.DeletionMark != nil && byClock(b.DeletionMark) }) {
		errs = append(errs, u.readClock(ctx, false)) // the marks are those of others
	}
	metas := make([]block.Meta, 0, len(l.blocks))
	due, left := map[ulid.ULID]bool{}, map[ulid.ULID]*block.Meta{}
	for i, b := range l.blocks {
		metas = append(metas, b.Meta)
		left[b.Meta.ULID] = &l.blocks[i].Meta
		due[b.Meta.ULID] = b.DeletionMark != nil && u.over(b.DeletionMark)
	}
	live := ids(block.Visible(metas))
	for _, id := range inputsFirst(metas) {
		hides := slices.ContainsFunc(left[id].Replaces(), func(other ulid.ULID) bool { return left[other] != nil })
		if !due[id] || hides || ctx.Err() != nil {
			continue
		}
		if err := u.remove(ctx, left[id], !live[id]); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(left, id)
	}
	return errors.Join(errs...)
}

// expiredDetails is how a deletion mark begins that says of a block that it is beyond retention.
const expiredDetails = "all samples are older than the retention of "

// clockGrace is how long a block that is beyond retention by the clock is kept at least, for somebody to notice that the clock is wrong.
const clockGrace = 24 * time.Hour

// byClock says whether a clock alone has condemned a block, which then is the only copy of its samples.
func byClock(mark *block.DeletionMark) bool { return strings.HasPrefix(mark.Details, expiredDetails) }

// over says whether a block has stayed for long enough after it was marked. What a clock alone has condemned stays until the time of its mark is sure, which
// takes a day and more, however often the clock jumps ahead; where samples are kept for less than that, as long again as they are. When the clock is
// right again, the mark is taken back; see reprieve.
func (u *run) over(mark *block.DeletionMark) bool {
	marked, grace := time.Unix(mark.DeletionTime, 0), u.config.DeletionDelay
	if byClock(mark) {
		if short := u.config.Retention > 0 && u.config.Retention < clockGrace; !short && marked.UnixMilli() > u.sure {
			return false
		}
		grace = max(grace, min(clockGrace, cmp.Or(u.config.Retention, clockGrace)))
	}
	return u.now().Sub(marked) > grace
}

// reprieve says whether a block was marked as beyond retention and is not, by the clock and the setting of today. A run without retention cannot tell.
func (u *run) reprieve(b *block.Listed, now time.Time) bool {
	return u.config.Retention > 0 && byClock(b.DeletionMark) && !expired(&b.Meta, now.UnixMilli(), u.config.Retention)
}

// deletePartials removes folders without meta.json that nobody has touched for long: what interrupted uploads and deletions
// have left. Ids of compacted blocks are as old as their inputs, so that the time of the objects counts, too.
func (u *run) deletePartials(ctx context.Context, bkt objstore.Bucket, lister Lister) error {
	var errs []error
	for _, id := range lister.Partial() {
		if u.now().Sub(id.Timestamp()) < u.config.PartialAge || u.o.Uploading(id) || ctx.Err() != nil {
			continue
		}
		abandoned, err := u.abandoned(ctx, bkt, id)
		if err == nil && abandoned {
			err = block.Delete(ctx, bkt, id)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove partial upload %s: %w", id, err))
			continue
		}
		if abandoned {
			u.summary.Partial++
			u.metrics.partials.Inc()
			u.log.Info("removed an abandoned upload", "block", id)
		}
	}
	return errors.Join(errs...)
}

// abandoned says whether the block still has no meta.json and all of its objects are old.
func (u *run) abandoned(ctx context.Context, bkt objstore.Bucket, id ulid.ULID) (bool, error) {
	old := true
	err := bkt.Iter(ctx, id.String()+objstore.DirDelim, func(name string) error {
		attrs, err := bkt.Attributes(ctx, name)
		if err != nil {
			return err
		}
		old = old && path.Base(filepath.ToSlash(name)) != block.MetaFilename && u.now().Sub(attrs.LastModified) >= u.config.PartialAge
		return nil
	}, objstore.WithRecursiveIter())
	return old, err
}
