package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/tombstone"
)

// brokenBlock stands for a block that is left out of answers, which warn of that: one whose meta.json cannot be used, of which nobody knows the times
// that it holds, or one in quarantine.
type brokenBlock struct {
	id         ulid.ULID
	mint, maxt int64 // both inclusive
	err        error
}

func (*brokenBlock) Layer() serving.Layer          { return serving.Batch }
func (*brokenBlock) Generations() (uint64, uint64) { return 0, 0 }
func (b *brokenBlock) MinTime() int64              { return b.mint }
func (b *brokenBlock) MaxTime() int64              { return b.maxt }

// DeletedBy implements serving.Source: there are no samples.
func (*brokenBlock) DeletedBy(*tombstone.Tombstone) tombstone.Effect { return tombstone.None }

func (b *brokenBlock) ChunkQuerier(int64, int64) (storage.ChunkQuerier, error) {
	err := fmt.Errorf("the answer may be incomplete: block %s of the bucket is left out: %w", b.id, b.err)
	return warningQuerier{storage.NoopChunkedQuerier(), annotations.New().Add(err)}, nil
}

// warningQuerier finds nothing but its warnings. They are copied, as those who collect them may change them.
type warningQuerier struct {
	storage.ChunkQuerier
	warnings annotations.Annotations
}

func (q warningQuerier) Select(context.Context, bool, *storage.SelectHints, ...*labels.Matcher) storage.ChunkSeriesSet {
	return warningSet{storage.EmptyChunkSeriesSet(), maps.Clone(q.warnings)}
}

func (q warningQuerier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, maps.Clone(q.warnings), nil
}

func (q warningQuerier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, maps.Clone(q.warnings), nil
}

type warningSet struct {
	storage.ChunkSeriesSet
	warnings annotations.Annotations
}

func (s warningSet) Warnings() annotations.Annotations { return s.warnings }

// brokenBlocks stands for those of a listing's bad blocks that answers miss: not for such as another block has replaced or local disk still holds,
// nor for downsampled ones, which hold aggregates and no samples.
func brokenBlocks(bad map[ulid.ULID]error, listed map[ulid.ULID]block.Listed, local map[ulid.ULID]bool) []*brokenBlock {
	replaced := map[ulid.ULID]bool{}
	for _, l := range listed {
		for _, id := range l.Meta.Replaces() {
			replaced[id] = true
		}
	}
	var out []*brokenBlock
	for id, err := range bad {
		if !replaced[id] && !local[id] && !errors.Is(err, block.ErrDownsampled) {
			out = append(out, &brokenBlock{id: id, mint: minTime, maxt: maxTime, err: err})
		}
	}
	return out
}

// unusable names the blocks whose samples are missing from answers because their meta.json cannot be used. Nothing is wrong with downsampled ones.
func unusable(bad map[ulid.ULID]error) error {
	var errs []error
	for _, id := range slices.SortedFunc(maps.Keys(bad), ulid.ULID.Compare) {
		if !errors.Is(bad[id], block.ErrDownsampled) {
			errs = append(errs, fmt.Errorf("block %s is left out of answers: %w", id, bad[id]))
		}
	}
	return errors.Join(errs...)
}

// quarantined separates the blocks that answer from those that are in quarantine and that local disk does not hold. What these have replaced answers
// in their place, as far as it is still there.
func quarantined(metas []block.Meta, listed map[ulid.ULID]block.Listed, local map[ulid.ULID]bool) (answering, left []block.Meta) {
	return block.Answering(metas, func(id ulid.ULID) bool { return listed[id].QuarantineMark != nil && !local[id] })
}

// inQuarantine stands for blocks that are left out of answers.
func inQuarantine(left []block.Meta, listed map[ulid.ULID]block.Listed) []*brokenBlock {
	var out []*brokenBlock
	for _, m := range left {
		err := fmt.Errorf("it is in quarantine: %s", listed[m.ULID].QuarantineMark.Details)
		out = append(out, &brokenBlock{id: m.ULID, mint: m.MinTime, maxt: m.MaxTime - 1, err: err})
	}
	return out
}

// leftOut names the blocks that are in quarantine.
func leftOut(blocks []*brokenBlock) error {
	var errs []error
	for _, b := range blocks {
		errs = append(errs, fmt.Errorf("block %s is left out of answers: %w", b.id, b.err))
	}
	return errors.Join(errs...)
}
