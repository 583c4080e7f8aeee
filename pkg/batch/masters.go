package batch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/millrace/millrace/pkg/block"
)

// Forever is the value of Config.KeepLevel0 with which level-0 blocks are never deleted.
const Forever = time.Duration(math.MaxInt64)

// kept says whether a block that was superseded is master data that has to be kept for recomputing what was made of it.
func (c *Config) kept(m *block.Meta, now time.Time) bool {
	return m.Level() == 0 && m.Stats.NumSamples > 0 && !expired(m, now.UnixMilli(), c.Retention) && !c.outlived(m.ULID, now)
}

// outlived says whether a level-0 block is older than master data is kept. Its id holds the time at which its generation began.
func (c *Config) outlived(id ulid.ULID, now time.Time) bool {
	return c.KeepLevel0 != Forever && now.Sub(id.Timestamp()) >= c.KeepLevel0
}

// remove takes a block out of the bucket's blocks: for good, or, if others were made of it, to where master data is kept.
func (u *run) remove(ctx context.Context, m *block.Meta, superseded bool) error {
	if superseded && u.config.kept(m, u.now()) {
		if err := block.KeepMaster(ctx, u.o.Bucket, *m); err != nil {
			return err
		}
		u.summary.Kept++
		u.metrics.kept.Inc()
		u.log.Info("moved a superseded level-0 block to what is kept", "block", m.ULID, "below", block.MastersPrefix)
		return nil
	}
	if err := block.Delete(ctx, u.o.Bucket, m.ULID); err != nil {
		return err
	}
	u.summary.Deleted++
	u.metrics.deleted.Inc()
	u.log.Info("deleted a block", "block", m.ULID)
	return nil
}

// deleteMasters removes kept level-0 blocks that are older than they are to be kept, or whose samples are beyond retention.
func (u *run) deleteMasters(ctx context.Context) error {
	if u.config.KeepLevel0 == Forever && u.config.Retention == 0 {
		return nil // spares a listing of what only grows
	}
	bkt := block.Masters(u.o.Bucket)
	listed, err := u.masters.List(ctx)
	if err != nil {
		return fmt.Errorf("list %s: %w", block.MastersPrefix, err)
	}
	var errs []error
	for _, id := range slices.SortedFunc(maps.Keys(listed), ulid.ULID.Compare) {
		m := listed[id].Meta
		if ctx.Err() != nil || !u.mine(&m) || !u.config.outlived(id, u.now()) && !expired(&m, u.now().UnixMilli(), u.config.Retention) {
			continue
		}
		if err := block.Delete(ctx, bkt, id); err != nil {
			errs = append(errs, fmt.Errorf("below %s: %w", block.MastersPrefix, err))
			continue
		}
		u.summary.Deleted++
		u.metrics.deleted.Inc()
		u.log.Info("deleted a kept level-0 block", "block", id)
	}
	return errors.Join(errs...)
}

// mine says whether the runner may touch the block.
func (r *Runner) mine(m *block.Meta) bool {
	return ours(m) && (r.o.Labels == nil || maps.Equal(r.o.Labels, m.Thanos.Labels))
}
