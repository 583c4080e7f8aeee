package batch

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/retention"
)

// Config says when blocks are compacted and when they go. What is 0 gets its value from DefaultConfig.
type Config struct {
	// Delay is how long after the end of a window its blocks are compacted, so that its last generation can be uploaded
	// first. What comes later costs another merge and nothing else.
	Delay time.Duration
	// Retention is the age from which samples need not be kept; a block goes when all of its samples have reached it. 0 is
	// for ever.
	Retention time.Duration
	// RetentionSize is how many bytes the blocks that count may have together; the oldest ones go first, and never the newest. 0 is
	// any number.
	RetentionSize int64
	// Rules keep samples of some series for a shorter time. Blocks all of whose samples are too old for one, by a time that runs have found to be sure over a
	// day, are written anew without these series.
	Rules retention.Rules
	// DeletionDelay is how long a block stays in the bucket after it was marked for deletion. Readers that listed the
	// bucket before use it until then.
	DeletionDelay time.Duration
	// KeepLevel0 is the age up to which superseded level-0 blocks are kept (below block.MastersPrefix) for Recompute instead of being deleted. 0 is
	// not at all; see Forever.
	KeepLevel0 time.Duration
	// Quarantine marks blocks that a job finds damaged, so that queries go without them, with a warning, instead of failing; see block.Quarantine.
	Quarantine bool
	// EraseDelay is how long after a deletion of series blocks for which no other job is due are written anew without the samples: so
	// deletions that follow one another cost that once.
	EraseDelay time.Duration
	// SyncInterval and QueryTimeout are those of the bucket's readers; DeletionDelay is checked against them.
	SyncInterval, QueryTimeout time.Duration
	// PartialAge is the age from which an upload without meta.json is taken for abandoned. It must be longer than any
	// upload takes.
	PartialAge time.Duration
	// MaxInputs is how many blocks one job opens at most.
	MaxInputs int
	// MemoryLimit is how many bytes of memory jobs may take, as far as that can be told beforehand: half of it is shared by the
	// blocks that a job opens, of which there are fewer where it would not do.
	MemoryLimit int64
	// MaxBlockSize is the size in bytes, of index and chunks, beyond which blocks are not merged into a larger one.
	MaxBlockSize int64
	// LateMergeShare is the share of a block's samples that must have come late, to blocks beside it, before it is merged with
	// them, above 0 and at most 1.
	LateMergeShare float64
	// LateMergeAge is the age from which late samples are merged however few they are: into blocks of 14 d at 14 times this
	// age, as those are the larger by so much.
	LateMergeAge time.Duration
	// StartTimestamps keeps start timestamps, in chunk encodings that not every reader knows.
	StartTimestamps bool
}

// DefaultConfig returns the values that are used where the user says nothing.
func DefaultConfig() Config {
	return Config{
		Delay:         10 * time.Minute,
		DeletionDelay: time.Hour,
		EraseDelay:    2 * time.Hour,
		SyncInterval:  time.Minute,
		QueryTimeout:  2 * time.Minute,
		PartialAge:    24 * time.Hour,
		MaxInputs:     64,

		MemoryLimit:    256 << 20,
		MaxBlockSize:   64 << 30,
		LateMergeShare: 0.05,
		LateMergeAge:   24 * time.Hour,
	}
}

const (
	// minMemory leaves room for the buffers of the files that are written, and some blocks that are read.
	minMemory = 64 << 20
	// minInput is what reading a block takes at least, beside what footprint counts.
	minInput = 1 << 20
)

// opens returns how many of the first of inputs one job may open: two at least, or nothing would ever be merged.
func (c Config) opens(inputs []block.Meta) int {
	n, left := 0, c.MemoryLimit/2
	for n < min(len(inputs), c.MaxInputs) {
		if left -= minInput + footprint(&inputs[n]); left < 0 && n >= 2 {
			break
		}
		n++
	}
	return n
}

// footprint is how many bytes of memory an input takes, as far as its meta tells: the header of its index, with where each entry begins, and the
// references of its series. Its share of the output takes as much or more, after the inputs' samples have been read: where these had
// their half of the limit, it gathers symbols, with a rank for each of every input, labels that it counts the series of, and postings.
func footprint(m *block.Meta) int64 {
	const bytesPerSeries = 16 // references, as postings and as read back, in slices that grow
	header := m.HeaderSize()
	return header + header/2 + bytesPerSeries*int64(min(m.Stats.NumSeries, math.MaxUint32))
}

// readAhead returns the bytes that each of so many inputs may hold.
func (c Config) readAhead(inputs int) int64 { return c.MemoryLimit / 2 / int64(max(1, inputs)) }

// withDefaults replaces what is not set.
func (c Config) withDefaults() Config {
	d := DefaultConfig()
	c.Delay = cmp.Or(c.Delay, d.Delay)
	c.DeletionDelay = cmp.Or(c.DeletionDelay, d.DeletionDelay)
	c.EraseDelay = cmp.Or(c.EraseDelay, d.EraseDelay)
	c.SyncInterval = cmp.Or(c.SyncInterval, d.SyncInterval)
	c.QueryTimeout = cmp.Or(c.QueryTimeout, d.QueryTimeout)
	c.PartialAge = cmp.Or(c.PartialAge, d.PartialAge)
	c.MaxInputs = cmp.Or(c.MaxInputs, d.MaxInputs)
	c.MemoryLimit = cmp.Or(c.MemoryLimit, d.MemoryLimit)
	c.MaxBlockSize = cmp.Or(c.MaxBlockSize, d.MaxBlockSize)
	c.LateMergeShare = cmp.Or(c.LateMergeShare, d.LateMergeShare)
	c.LateMergeAge = cmp.Or(c.LateMergeAge, d.LateMergeAge)
	return c
}

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	switch {
	case c.EraseDelay < 0:
		return fmt.Errorf("delay of erasing %s is negative", c.EraseDelay)
	case c.Delay < 0:
		return fmt.Errorf("compaction delay %s is negative", c.Delay)
	case c.Retention < 0 || c.Retention > 0 && c.Retention < 2*time.Hour:
		return fmt.Errorf("retention %s must be 0 (for ever) or at least 2h", c.Retention)
	case c.KeepLevel0 < 0:
		return fmt.Errorf("level-0 blocks cannot be kept for %s", c.KeepLevel0)
	case c.RetentionSize < 0:
		return fmt.Errorf("retention of %d bytes is negative", c.RetentionSize)
	case c.Rules.Validate(c.Retention, nil) != nil:
		return fmt.Errorf("retention rule %w", c.Rules.Validate(c.Retention, nil))
	case c.SyncInterval <= 0 || c.QueryTimeout <= 0:
		return errors.New("sync interval and query timeout must be above 0")
	case c.PartialAge < time.Hour:
		return fmt.Errorf("age of partial uploads %s must be at least 1h", c.PartialAge)
	case c.MaxInputs < 2:
		return fmt.Errorf("a job needs at least 2 inputs, not %d", c.MaxInputs)
	case c.MemoryLimit < minMemory:
		return fmt.Errorf("memory limit of %d bytes must be at least %d", c.MemoryLimit, minMemory)
	case c.MaxBlockSize < 0:
		return fmt.Errorf("size of blocks %d is negative", c.MaxBlockSize)
	case !(c.LateMergeShare > 0 && c.LateMergeShare <= 1):
		return fmt.Errorf("share of late samples %v must be above 0 and at most 1", c.LateMergeShare)
	case c.LateMergeAge < 0:
		return fmt.Errorf("age of late samples %s is negative", c.LateMergeAge)
	}
	if least := 2*c.SyncInterval + c.QueryTimeout; c.DeletionDelay < least {
		return fmt.Errorf("deletion delay %s must be at least %s (two sync intervals and the query timeout), or queries lose blocks that they read",
			c.DeletionDelay, least)
	}
	return nil
}
