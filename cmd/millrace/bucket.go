package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/batch"
	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/engine"
	"github.com/millrace/millrace/pkg/retention"
	"github.com/millrace/millrace/pkg/tombstone"
)

// bucketCommand is what the commands that work on a bucket without an engine share.
type bucketCommand struct {
	bucket        engine.BucketConfig
	path          string
	force         bool
	scratch       string
	retention     time.Duration
	retentionSize int64
	rules         retention.Rules
	recomputed    timeRange
	quarantine    bool
	batch         engine.BatchConfig
}

func (b *bucketCommand) flags(c *kingpin.CmdClause) {
	b.bucket.Flags(c)
	c.Flag("bucket.config-file", "objstore.config-file under another name.").Hidden().StringVar(&b.bucket.File)
	c.Flag("storage.path", "Data path whose default bucket is meant when no configuration is given.").Default("data").StringVar(&b.path)
}

func (b *bucketCommand) runFlags(c *kingpin.CmdClause) {
	c.Flag("force", "Compact blocks of windows that are not over, too, and wait where another process is at work.").BoolVar(&b.force)
	b.jobFlags(c)
}

func (b *bucketCommand) jobFlags(c *kingpin.CmdClause) {
	c.Flag("batch.scratch-path", "Folder for blocks that are being made; by default one of the system's temporary folders.").StringVar(&b.scratch)
	engine.Named(c.Flag("storage.retention.time", "How long samples are kept; 0 is for ever.").Default("0s"), (*engine.Duration)(&b.retention))
	engine.Named(c.Flag("storage.retention.size", "Most bytes of blocks in the bucket that are kept, oldest removed first; 0 is any number.").Default("0B"), (*engine.Bytes)(&b.retentionSize))
	engine.Named(c.Flag("storage.retention.rule", engine.RetentionRuleHelp), &b.rules)
	b.batch.JobFlags(c)
}

func (b *bucketCommand) open() (objstore.Bucket, error) {
	if err := b.bucket.Validate(); err != nil {
		return nil, err
	}
	path, err := filepath.Abs(b.path)
	if err != nil {
		return nil, err
	}
	if b.bucket.Default() {
		if _, err := os.Stat(filepath.Join(path, "bucket")); err != nil {
			return nil, fmt.Errorf("no --objstore.config-file is given, and there is no bucket below --storage.path=%s: %w", b.path, err)
		}
	}
	config, from, err := b.bucket.Read(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	bkt, err := engine.OpenBucket(config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	return bkt, nil
}

// run runs due jobs and says what they did.
func (b *bucketCommand) run(ctx context.Context, stdout, stderr io.Writer) error {
	var summary string
	err := b.withJobs(stderr, func(o batch.Options) error {
		done, err := engine.RunJobs(ctx, o, b.force)
		if err == nil || done != (batch.Summary{Took: done.Took}) {
			summary = done.String() + "\n"
		}
		return err
	})
	fmt.Fprint(stdout, summary) // in a line of its own: that of the progress is gone
	return err
}

// withJobs calls do with what jobs need, which ends with the call, as does the line that shows their progress.
func (b *bucketCommand) withJobs(stderr io.Writer, do func(batch.Options) error) (err error) {
	if err := b.batch.Validate(); err != nil {
		return err
	}
	if err := b.rules.Validate(b.retention, nil); err != nil {
		return fmt.Errorf("--storage.retention.rule=%w", err)
	}
	jobs := b.batch.JobsBesideServer()
	jobs.Retention, jobs.RetentionSize, jobs.Rules = b.retention, b.retentionSize, b.rules
	bkt, err := b.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bkt.Close()) }()
	scratch := b.scratch
	if scratch == "" {
		if scratch, err = os.MkdirTemp("", "millrace-batch-"); err != nil {
			return fmt.Errorf("make scratch folder: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	}
	reg := prometheus.NewRegistry()
	metrics := batch.NewMetrics(reg)
	logger, stop := showProgress(stderr, metrics.Status)
	defer stop()
	return do(batch.Options{
		Bucket: bkt, Lister: block.NewLister(bkt), Cache: block.NewCache(64<<20, reg), ScratchDir: scratch,
		Config: jobs, Metrics: metrics, Logger: logger,
	})
}

// list prints the blocks, newest last, and whether they count; then how many level-0 blocks are kept, and what was deleted, if anything.
func (b *bucketCommand) list(ctx context.Context, stdout io.Writer) (err error) {
	bkt, err := b.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bkt.Close()) }()
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	for _, list := range []func(context.Context, objstore.Bucket, io.Writer) error{listBlocks, listMasters, listDeletions} {
		if err := list(ctx, bkt, w); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func listBlocks(ctx context.Context, bkt objstore.Bucket, w io.Writer) error {
	lister := block.NewLister(bkt)
	listed, err := lister.List(ctx)
	if err != nil {
		return err
	}
	metas := make([]block.Meta, 0, len(listed))
	for _, l := range listed {
		metas = append(metas, l.Meta)
	}
	slices.SortFunc(metas, block.Compare)
	visible := map[string]bool{}
	for _, m := range block.Visible(metas) {
		visible[m.ULID.String()] = true
	}
	var reasons []string // as long as errors are: in lines of their own, below the table
	fmt.Fprintln(w, "ULID\tLEVEL\tFROM\tTO\tSERIES\tSAMPLES\tBYTES\tGENERATIONS\tSTATE\tLABELS")
	for _, m := range metas {
		from, to := m.Generations()
		state := blockState(listed[m.ULID], visible[m.ULID.String()])
		if state == inQuarantine {
			reasons = append(reasons, fmt.Sprintf("%s  %s: %s", m.ULID, state, listed[m.ULID].QuarantineMark.Details))
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%d\t%d\t%d\t%d-%d\t%s\t%s\n", m.ULID, m.Level(), stamp(m.MinTime), stamp(m.MaxTime),
			m.Stats.NumSeries, m.Stats.NumSamples, m.Size(), from, to, state, m.ExternalLabels())
	}
	bad := lister.Bad()
	for _, id := range slices.SortedFunc(maps.Keys(bad), ulid.ULID.Compare) {
		state := "downsampled"
		if !errors.Is(bad[id], block.ErrDownsampled) {
			state = "broken"
			reasons = append(reasons, fmt.Sprintf("%s  %s: %s", id, state, bad[id]))
		}
		fmt.Fprintf(w, "%s\t-\t-\t-\t-\t-\t-\t-\t%s\t-\n", id, state)
	}
	if len(reasons) > 0 {
		fmt.Fprintf(w, "\n%s\n", strings.Join(reasons, "\n"))
	}
	return nil
}

func listMasters(ctx context.Context, bkt objstore.Bucket, w io.Writer) error {
	kept, err := block.MasterIDs(ctx, bkt)
	if err == nil && len(kept) > 0 {
		fmt.Fprintf(w, "\n%d level-0 blocks are kept below %s\n", len(kept), block.MastersPrefix)
	}
	return err
}

func listDeletions(ctx context.Context, bkt objstore.Bucket, w io.Writer) error {
	deletions, err := tombstone.NewStore(bkt).List(ctx)
	if err != nil || len(deletions) == 0 {
		return err
	}
	fmt.Fprintln(w, "\nDELETION\tFROM\tTO\tUP TO GENERATION\tSERIES\tLABELS")
	for _, d := range deletions {
		selectors := make([]string, 0, len(d.Selectors))
		for _, s := range d.Selectors {
			selectors = append(selectors, s.String())
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", d.ID, limit(d.MinTime), limit(d.MaxTime), d.Generation, strings.Join(selectors, " "), labels.FromMap(d.Writer))
	}
	return nil
}

// limit is a time of a deletion, which may have none.
func limit(ms int64) string {
	if far := (250 * 365 * 24 * time.Hour).Milliseconds(); ms < -far || ms > far {
		return "-"
	}
	return stamp(ms)
}

const inQuarantine = "in quarantine"

func blockState(l block.Listed, visible bool) string {
	switch {
	case l.DeletionMark != nil:
		return "marked for deletion"
	case !visible:
		return "superseded"
	case l.QuarantineMark != nil:
		return inQuarantine
	}
	return "live"
}

func stamp(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }
