package engine

import (
	"fmt"
	"time"

	"github.com/millrace/millrace/pkg/batch"
)

// BatchConfig is about batch jobs. All but the schedule also holds for 'millrace batch run'.
type BatchConfig struct {
	Interval       time.Duration
	DeletionDelay  time.Duration
	MemoryLimit    int64
	EraseDelay     time.Duration
	MaxBlockSize   int64
	LateMergeShare float64
	LateMergeAge   time.Duration
	KeepLevel0     time.Duration
	keepSet        bool // KeepLevel0 is not the default
	Quarantine     bool
}

// flags registers the flags of jobs that run on a schedule.
func (b *BatchConfig) flags(cmd flagger) {
	durationVar(cmd.Flag("batch.interval", "How often batch jobs are looked for; 0 leaves them to 'millrace batch run'."), 5*time.Minute, &b.Interval)
	b.JobFlags(cmd)
}

// JobFlags registers the flags of jobs wherever they run.
func (b *BatchConfig) JobFlags(cmd flagger) {
	d := batch.DefaultConfig()
	durationVar(cmd.Flag("batch.deletion-delay", "How long a superseded block stays in the bucket."), d.DeletionDelay, &b.DeletionDelay)
	bytesVar(cmd.Flag("batch.memory-limit", "Most memory for batch jobs; at least 64MB. With less, more blocks are merged in several steps."), d.MemoryLimit, &b.MemoryLimit)
	durationVar(cmd.Flag("batch.erase-delay", "How long after a deletion of series blocks are written anew only to erase the samples."), d.EraseDelay, &b.EraseDelay)
	bytesVar(cmd.Flag("batch.max-block-size", "Size beyond which blocks are not merged into a larger one."), d.MaxBlockSize, &b.MaxBlockSize)
	Named(cmd.Flag("batch.late-merge-share", "Share of a block's samples that must have come late before it is written anew with them; 1 is as many as it has.").
		Default(fmt.Sprint(d.LateMergeShare)), (*floatValue)(&b.LateMergeShare))
	durationVar(cmd.Flag("batch.late-merge-age", "Age from which late samples are merged into a block of a day however few they are; into one of 14 days at 14 times this age."),
		d.LateMergeAge, &b.LateMergeAge)
	Named(cmd.Flag("batch.keep-level0", "Age up to which superseded level-0 blocks are kept for 'millrace batch recompute', or forever; 0 deletes them at once.").Default("30d").IsSetByUser(&b.keepSet),
		(*ageValue)(&b.KeepLevel0))
	cmd.Flag("batch.quarantine", "Mark blocks that a job finds damaged, so that queries go without them and warn, instead of failing.").BoolVar(&b.Quarantine)
}

// Validate checks the settings of jobs.
func (b *BatchConfig) Validate() error {
	switch {
	case b.MemoryLimit < 64<<20:
		return fmt.Errorf("--batch.memory-limit=%s: must be at least 64MB", sizeText(b.MemoryLimit))
	case b.DeletionDelay <= 0:
		return fmt.Errorf("--batch.deletion-delay=%s: must be above 0, or queries lose blocks that they read", b.DeletionDelay)
	case b.EraseDelay <= 0:
		return fmt.Errorf("--batch.erase-delay=%s: must be above 0", b.EraseDelay)
	case b.MaxBlockSize < 1<<20:
		return fmt.Errorf("--batch.max-block-size=%s: must be at least 1MB", sizeText(b.MaxBlockSize))
	case !(b.LateMergeShare > 0 && b.LateMergeShare <= 1):
		return fmt.Errorf("--batch.late-merge-share=%v: must be above 0 and at most 1", b.LateMergeShare)
	case b.LateMergeAge <= 0:
		return fmt.Errorf("--batch.late-merge-age=%s: must be above 0", b.LateMergeAge)
	}
	return nil
}

// Jobs are the settings as batch jobs know them.
func (b *BatchConfig) Jobs() batch.Config {
	return batch.Config{
		DeletionDelay: b.DeletionDelay, EraseDelay: b.EraseDelay, MemoryLimit: b.MemoryLimit, MaxBlockSize: b.MaxBlockSize, LateMergeShare: b.LateMergeShare, LateMergeAge: b.LateMergeAge,
		KeepLevel0: b.KeepLevel0, Quarantine: b.Quarantine,
	}
}

// JobsBesideServer are the settings of jobs that another process may run, too, with settings of its own: what only it may know to be needed no more is kept.
func (b *BatchConfig) JobsBesideServer() batch.Config {
	c := b.Jobs()
	if !b.keepSet {
		c.KeepLevel0 = batch.Forever
	}
	return c
}
