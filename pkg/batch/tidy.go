package batch

import (
	"github.com/oklog/ulid/v2"

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
	for _, m := range block.Visible(metas) {
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
