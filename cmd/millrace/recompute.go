package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/oklog/ulid/v2"

	"github.com/millrace/millrace/pkg/batch"
	"github.com/millrace/millrace/pkg/engine"
)

// timeRange is what 'millrace batch recompute' is to look at.
type timeRange struct {
	min, max timeValue
	dry      bool
}

// timeValue is a moment in ms since 1970, given as RFC 3339 or in seconds as in Prometheus's API.
type timeValue int64

// Set implements kingpin.Value.
func (v *timeValue) Set(s string) error {
	if sec, err := strconv.ParseFloat(s, 64); err == nil && math.Abs(sec) < math.MaxInt64/2000 {
		*v = timeValue(math.Round(sec * 1000))
		return nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return errors.New("must be a time such as 2026-01-31T12:00:00Z, or seconds since 1970")
	}
	*v = timeValue(t.UnixMilli())
	return nil
}

func (v *timeValue) String() string { return stamp(int64(*v)) }

func (b *bucketCommand) recomputeFlags(c *kingpin.CmdClause) {
	engine.Named(c.Flag("min-time", "Blocks with samples from this time on are built again: RFC 3339 or seconds since 1970.").Required(), &b.recomputed.min)
	engine.Named(c.Flag("max-time", "Blocks with samples before this time are built again.").Required(), &b.recomputed.max)
	c.Flag("dry-run", "Say what differs, and swap nothing.").BoolVar(&b.recomputed.dry)
	b.jobFlags(c)
}

// recompute prints a line for each compacted block in the range. Blocks that cannot be built again are an error.
func (b *bucketCommand) recompute(ctx context.Context, stdout, stderr io.Writer) error {
	r := b.recomputed
	if r.min >= r.max {
		return fmt.Errorf("--min-time=%s is not before --max-time=%s", &r.min, &r.max)
	}
	var report strings.Builder
	err := b.withJobs(stderr, func(o batch.Options) error {
		found, err := engine.Recompute(ctx, o, int64(r.min), int64(r.max), r.dry)
		impossible := 0
		for _, f := range found {
			fmt.Fprintln(&report, recomputedText(&f, r.dry))
			if f.Outcome == batch.Impossible {
				impossible++
			}
		}
		if err != nil && len(found) == 0 {
			return err
		}
		fmt.Fprintf(&report, "%d compacted blocks, %d of them cannot be built again\n", len(found), impossible)
		if impossible > 0 {
			err = errors.Join(err, fmt.Errorf("%d of %d blocks cannot be built again", impossible, len(found)))
		}
		return err
	})
	fmt.Fprint(stdout, report.String())
	return err
}

// recomputedText is one line for people.
func recomputedText(f *batch.Recomputed, dry bool) string {
	text := fmt.Sprintf("%s  %s to %s  ", f.Block.ULID, stamp(f.Block.MinTime), stamp(f.Block.MaxTime))
	switch f.Outcome {
	case batch.Same:
		return text + "is what its level-0 blocks give"
	case batch.Impossible:
		return text + "CANNOT be built again: " + f.Reason
	case batch.Overtaken:
		return text + "was replaced by another job meanwhile"
	}
	what := f.Difference.String()
	if f.Reason != "" {
		what = f.Reason
	}
	if dry {
		return text + "would be swapped: " + what
	}
	if f.Replacement == (ulid.ULID{}) {
		return text + "is marked for deletion: " + what
	}
	return text + fmt.Sprintf("swapped for %s: %s", f.Replacement, what)
}
