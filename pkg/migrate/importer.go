package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb/fileutil"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/tombstone"
)

const (
	scratchName = "millrace-import"
	lockName    = "lock"

	// daySamples is from how many samples on a day is written as blocks of 2 h, so that stopping costs little.
	daySamples = 300e6
	// memoryLimit bounds, in bytes, the samples and labels of a text that are sorted at once.
	memoryLimit = 256 << 20
)

// Options say where to import to, and what. Bucket, Labels and ScratchDir must be given.
type Options struct {
	Bucket objstore.Bucket
	// Labels are the external labels of the server that the history is for.
	Labels map[string]string
	// ScratchDir is an existing folder below which a folder for temporary files is made. Of two imports at once, each needs its own.
	ScratchDir string
	// Limits bound labels, as the server's do.
	Limits ingest.Limits
	// SkipInvalid passes over series with labels beyond the limits, and counts them, in place of failing.
	SkipInvalid bool
	// MinTime and MaxTime bound the samples to import, in milliseconds, both inclusive; nil does not.
	MinTime, MaxTime *int64
	Logger           *slog.Logger

	daySamples  float64 // 0 is the constant
	memoryLimit int     // likewise
}

// Importer imports one or several sources. Close ends it.
type Importer struct {
	o       Options
	log     *slog.Logger
	keys    keys
	bounds  span // of what is imported
	scratch string
	lock    io.Closer
	known   map[ulid.ULID]bool // ids and sources of all blocks in the bucket
	// quarantined are those of them that no block has but one in quarantine, which is the value. Answers go without it.
	quarantined map[ulid.ULID]ulid.ULID
	// deleted are the deletions that came before the import: they do not hide what is imported.
	deleted  []*tombstone.Tombstone
	progress Progress
	summary  Summary
}

type closer func() error

func (c closer) Close() error { return c() }

// Open lists the bucket and takes the scratch folder, from which it removes what a killed import has left.
func Open(ctx context.Context, o Options) (_ *Importer, err error) {
	if o.Bucket == nil || len(o.Labels) == 0 || o.ScratchDir == "" {
		return nil, errors.New("import: bucket, external labels and scratch folder must be given")
	}
	im := &Importer{o: o, log: o.Logger, keys: newKeys(o.Labels), bounds: span{minTime, maxTime + 1}, known: map[ulid.ULID]bool{}, quarantined: map[ulid.ULID]ulid.ULID{}}
	if im.log == nil {
		im.log = slog.New(slog.DiscardHandler)
	}
	if im.o.daySamples == 0 {
		im.o.daySamples = daySamples
	}
	if im.o.memoryLimit == 0 {
		im.o.memoryLimit = memoryLimit
	}
	if o.MinTime != nil {
		im.bounds.from = max(im.bounds.from, *o.MinTime)
	}
	if o.MaxTime != nil && *o.MaxTime < math.MaxInt64 {
		im.bounds.to = min(im.bounds.to, *o.MaxTime+1)
	}
	if im.bounds.empty() {
		return nil, errors.New("import: the range of time is empty")
	}
	if err := im.takeScratch(); err != nil {
		return nil, err
	}
	if err := im.list(ctx); err != nil {
		return nil, errors.Join(err, im.Close())
	}
	return im, nil
}

func (im *Importer) takeScratch() error {
	im.scratch = filepath.Join(im.o.ScratchDir, scratchName)
	if err := os.MkdirAll(im.scratch, 0o700); err != nil {
		return fmt.Errorf("make scratch folder: %w", err)
	}
	lock, _, err := fileutil.Flock(filepath.Join(im.scratch, lockName))
	if err != nil {
		return fmt.Errorf("another import may be using the scratch folder %s, give this one another: %w", im.scratch, err)
	}
	im.lock = closer(lock.Release)
	if err := im.clearScratch(); err != nil {
		return errors.Join(err, im.lock.Close())
	}
	return nil
}

// clearScratch removes everything but the lock.
func (im *Importer) clearScratch() error {
	entries, err := os.ReadDir(im.scratch)
	if err != nil {
		return fmt.Errorf("clear scratch folder: %w", err)
	}
	for _, e := range entries {
		if e.Name() == lockName {
			continue
		}
		if err := os.RemoveAll(filepath.Join(im.scratch, e.Name())); err != nil {
			return fmt.Errorf("clear scratch folder: %w", err)
		}
	}
	return nil
}

// Close removes the scratch folder.
func (im *Importer) Close() error {
	err := im.clearScratch()
	_ = os.Remove(filepath.Join(im.scratch, lockName)) // fails where an open file cannot be removed
	err = errors.Join(err, im.lock.Close())
	_ = os.Remove(im.scratch) // stays if somebody else uses it by now
	return err
}

// list learns what the bucket has.
func (im *Importer) list(ctx context.Context) error {
	listed, err := block.List(ctx, im.o.Bucket)
	if err != nil {
		return err
	}
	if im.deleted, err = tombstone.NewStore(im.o.Bucket).List(ctx); err != nil {
		return err
	}
	own, others := false, map[string]bool{}
	answering := map[ulid.ULID]bool{}
	know := func(key ulid.ULID, l *block.Listed) {
		im.known[key] = true
		if l.QuarantineMark == nil {
			answering[key] = true
		} else {
			im.quarantined[key] = l.Meta.ULID
		}
	}
	for id, l := range listed {
		know(id, &l)
		if !maps.Equal(l.Meta.Thanos.Labels, im.o.Labels) {
			others[l.Meta.ExternalLabels().String()] = l.Meta.Own()
			continue
		}
		own = true
		for _, s := range l.Meta.Compaction.Sources {
			know(s, &l)
		}
	}
	maps.DeleteFunc(im.quarantined, func(key, _ ulid.ULID) bool { return answering[key] })
	for labels, millrace := range others {
		if millrace && !own {
			im.log.Warn("the bucket has blocks of a server with other external labels, with which what is imported will not be merged; is --external-label what the server has?",
				"bucket", labels, "import", im.keys.writer)
		}
	}
	return nil
}

// Progress is how far the import is.
func (im *Importer) Progress() *Progress { return &im.progress }

// Summary is what the import did so far.
func (im *Importer) Summary() Summary { return im.summary }

// Summary says what an import did.
type Summary struct {
	// Blocks written, and the samples and bytes in them.
	Blocks         int
	Samples, Bytes uint64
	// Series is the highest number of them in a block.
	Series uint64
	// Windows of 2 h, per source, that the bucket had already.
	Windows int
	// InvalidSeries were passed over because of their labels.
	InvalidSeries int
}

// String is one line for people.
func (s Summary) String() string {
	return fmt.Sprintf("%d blocks written, with %d samples of up to %d series in %d bytes; skipped: %d windows of 2h that the bucket had, %d series with invalid labels",
		s.Blocks, s.Samples, s.Series, s.Bytes, s.Windows, s.InvalidSeries)
}
