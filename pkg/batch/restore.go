package batch

import (
	"context"
	"errors"

	"github.com/oklog/ulid/v2"

	"github.com/millrace/millrace/pkg/block"
)

// replacedDetails is what a deletion mark says of a block that a job has replaced.
const replacedDetails = "replaced by a compaction"

// answering returns the blocks that answer, with those that do in the place of a block in quarantine, and the blocks in quarantine that do not.
func answering(listed []block.Listed) (answer, left []block.Meta) {
	metas := make([]block.Meta, 0, len(listed))
	out := map[ulid.ULID]bool{}
	for _, l := range listed {
		metas = append(metas, l.Meta)
		out[l.Meta.ULID] = l.QuarantineMark != nil
	}
	return block.Answering(metas, func(id ulid.ULID) bool { return out[id] })
}

// restored returns the blocks from which those in quarantine can be made again: all that one was merged from, if that is all there and whole.
// With a part of it, jobs would give samples another precedence than those that the block in quarantine still holds.
func restored(listed []block.Listed) map[ulid.ULID]bool {
	answer, left := answering(listed)
	there := ids(answer)
	for _, l := range listed {
		if l.DeletionMark != nil {
			delete(there, l.Meta.ULID)
		}
	}
	out := map[ulid.ULID]bool{}
	for _, m := range left {
		if !mergedFrom(&m, there) {
			continue
		}
		for _, p := range m.Compaction.Parents {
			out[p.ULID] = true
		}
	}
	return out
}

// unmark takes back the deletion marks of replaced blocks that answer again since what replaced them is in quarantine, and of those that a wrong clock had
// taken for older than they are. They are not deleted on the strength of this listing, even if that fails.
func (u *run) unmark(ctx context.Context, l *listing) error {
	answer, _ := answering(l.blocks)
	again := ids(answer)
	metas := make([]block.Meta, 0, len(l.blocks))
	for _, b := range l.blocks {
		metas = append(metas, b.Meta)
	}
	for _, m := range block.Visible(metas) {
		delete(again, m.ULID)
	}
	var errs []error
	for i, b := range l.blocks {
		if b.DeletionMark == nil {
			continue
		}
		reason := "what replaced it is in quarantine"
		if u.reprieve(&b, l.at) {
			reason = "it is not beyond retention by the clock of now"
		} else if b.DeletionMark.Details != replacedDetails || !again[b.Meta.ULID] {
			continue
		}
		l.blocks[i].DeletionMark = nil
		if err := block.Unmark(ctx, u.o.Bucket, b.Meta.ULID); err != nil {
			errs = append(errs, err)
			continue
		}
		u.log.Info("a block that was marked for deletion stays", "block", b.Meta.ULID, "reason", reason)
	}
	return errors.Join(errs...)
}
