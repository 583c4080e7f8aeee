package migrate

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tombstones"
	"github.com/thanos-io/objstore/providers/filesystem"

	"github.com/millrace/millrace/pkg/block"
)

// Blocks imports the blocks in a Prometheus server's data directory, or in a snapshot of one. Where blocks overlap, the result has the
// samples of all of them; where they say different things about the same moment, the one that begins later wins, which Prometheus
// leaves open. What was deleted there is not imported.
//
// All blocks are read whole and checked before anything is written. Where one is damaged, nothing is imported, and the error names it.
func (im *Importer) Blocks(ctx context.Context, dir string) error {
	sources, err := im.findBlocks(dir)
	if err != nil {
		return err
	}
	days := im.missingDays(sources)
	if err := im.checkBlocks(ctx, dir, sources, days); err != nil {
		return err
	}
	total := 0.0
	for _, day := range days {
		for _, s := range sources {
			total += float64(s.meta.Stats.NumSamples) * s.span.share(day)
		}
	}
	im.progress.begin("importing blocks", total, true)
	defer func() {
		for _, s := range sources {
			s.close()
		}
	}()
	for _, day := range days {
		if err := im.day(ctx, day, sources); err != nil {
			return err
		}
	}
	return nil
}

// promBlock is a block of a Prometheus server.
type promBlock struct {
	dir    string
	meta   block.Meta
	source identity
	span   span
	open   *tsdb.Block

	partial bool // it has series that are passed over
}

func (s *promBlock) close() {
	if s.open != nil {
		_ = s.open.Close() // was only read
		s.open = nil
	}
}

// findBlocks lists the blocks that Prometheus itself would load, in order of precedence.
func (im *Importer) findBlocks(dir string) ([]*promBlock, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read data directory: %w", err)
	}
	var found []*promBlock
	replaced := map[ulid.ULID]bool{}
	for _, e := range entries {
		if _, err := ulid.ParseStrict(e.Name()); err != nil || !e.IsDir() {
			im.tellOfHead(dir, e)
			continue
		}
		s, err := openSource(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		for _, p := range s.meta.Compaction.Parents {
			replaced[p.ULID] = true
		}
		found = append(found, s)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s has no blocks: it must be the data directory of a Prometheus server, or a snapshot of one", dir)
	}
	found = slices.DeleteFunc(found, func(s *promBlock) bool {
		return replaced[s.meta.ULID] || s.meta.Compaction.Deletable || !s.span.overlaps(im.bounds)
	})
	slices.SortFunc(found, func(a, b *promBlock) int {
		return cmp.Or(cmp.Compare(a.span.from, b.span.from), a.meta.ULID.Compare(b.meta.ULID))
	})
	return found, nil
}

// tellOfHead names what a running server has not put into blocks yet.
func (im *Importer) tellOfHead(dir string, e fs.DirEntry) {
	if e.Name() == "wal" || e.Name() == "wbl" || e.Name() == "chunks_head" {
		im.log.Warn("samples that are not in a block yet are not imported; to have them, take a snapshot with POST /api/v1/admin/tsdb/snapshot and import that",
			"not_imported", filepath.Join(dir, e.Name()))
	}
}

func openSource(dir string) (*promBlock, error) {
	m, err := block.ReadMeta(dir)
	if err != nil {
		return nil, err
	}
	if m.ULID.String() != filepath.Base(dir) {
		return nil, fmt.Errorf("block %s: its meta.json is of block %s", dir, m.ULID)
	}
	s := &promBlock{dir: dir, meta: m, span: span{m.MinTime, m.MaxTime}}
	deleted, err := os.ReadFile(filepath.Join(dir, tombstones.TombstonesFilename))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("block %s: %w", m.ULID, err)
	}
	sum := sha256.Sum256(deleted)
	if m.Stats.NumTombstones == 0 {
		sum = [sha256.Size]byte{} // an empty file, or none
	}
	s.source = identify("prometheus block", m.ULID.String(), string(sum[:]))
	return s, nil
}

// missingDays are the days of which the bucket does not have everything, in order.
func (im *Importer) missingDays(sources []*promBlock) []span {
	found := map[span]bool{}
	for _, s := range sources {
		for _, w := range im.missingWindows(s.source, s.span, s.span.clip(im.bounds)) {
			found[aligned(w.from, dayMillis)] = true
		}
	}
	days := make([]span, 0, len(found))
	for d := range found {
		days = append(days, d)
	}
	slices.SortFunc(days, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	return days
}

// checkBlocks reads all blocks whole of which something is missing.
func (im *Importer) checkBlocks(ctx context.Context, dir string, sources []*promBlock, days []span) error {
	due := slices.DeleteFunc(slices.Clone(sources), func(s *promBlock) bool {
		return !slices.ContainsFunc(days, func(d span) bool { return d.overlaps(s.span) })
	})
	total := 0.0
	for _, s := range due {
		total += float64(s.meta.Stats.NumSamples)
	}
	im.progress.begin("checking blocks", total, false)
	bkt, err := filesystem.NewBucket(dir)
	if err != nil {
		return fmt.Errorf("read data directory: %w", err)
	}
	for _, s := range due {
		findings, err := block.Verify(ctx, bkt, s.meta.ULID)
		if err != nil {
			return err
		}
		if len(findings) > 0 {
			return fmt.Errorf("nothing is imported, because a block is damaged (%d findings; move it elsewhere to import the others): %s", len(findings), findings[0])
		}
		if err := im.checkSeries(ctx, s); err != nil {
			return fmt.Errorf("block %s: %w", s.dir, err)
		}
		im.progress.add(float64(s.meta.Stats.NumSamples), s.meta.Stats.NumSamples)
	}
	return nil
}

// checkSeries looks for labels that are beyond the limits.
func (im *Importer) checkSeries(ctx context.Context, s *promBlock) (err error) {
	in, err := im.input(s)
	if err != nil {
		return err
	}
	defer s.close()
	q, err := tsdb.NewBlockChunkQuerier(in.block, s.span.from, s.span.to)
	if err != nil {
		return err
	}
	defer q.Close()
	name, value := index.AllPostingsKey()
	set := q.Select(ctx, false, nil, labels.MustNewMatcher(labels.MatchEqual, name, value))
	for set.Next() {
		ok, err := im.accept(set.At().Labels())
		if err != nil {
			return err
		}
		if !ok {
			s.partial = true
			im.summary.InvalidSeries++
		}
	}
	return set.Err()
}

// day imports one day from all blocks that reach into it.
func (im *Importer) day(ctx context.Context, day span, sources []*promBlock) error {
	var parts []part
	for _, s := range sources {
		if s.span.to <= day.from {
			s.close()
		}
		if !s.span.overlaps(day) {
			continue
		}
		in, err := im.input(s)
		if err != nil {
			return err
		}
		parts = append(parts, part{
			source: s.source, partial: s.partial, name: "block " + s.dir, span: s.span.clip(day), inputs: []block.Input{in},
			samples: float64(s.meta.Stats.NumSamples) * s.span.share(day), bytes: int64(float64(in.block.Size()) * s.span.share(day)),
		})
	}
	return im.write(ctx, day, parts)
}

// input opens a block. It stays open until it is closed.
func (im *Importer) input(s *promBlock) (*promInput, error) {
	if s.open == nil {
		b, err := tsdb.OpenBlock(im.log, s.dir, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("open block %s: %w", s.dir, err)
		}
		s.open = b
	}
	return &promInput{im: im, block: s.open, span: s.span}, nil
}

// promInput reads a Prometheus server's block without what was deleted, and within the bounds of the import.
type promInput struct {
	im    *Importer
	block *tsdb.Block
	span  span
}

// Symbols implements block.Input.
func (in *promInput) Symbols() index.StringIter {
	ix, err := in.block.Index()
	if err != nil {
		return failedSymbols{err}
	}
	defer ix.Close()
	return ix.Symbols() // of the open block
}

// failedSymbols is an iterator that only has an error.
type failedSymbols struct{ err error }

func (failedSymbols) Next() bool   { return false }
func (failedSymbols) At() string   { return "" }
func (f failedSymbols) Err() error { return f.err }

// ChunkQuerier implements storage.ChunkQueryable.
func (in *promInput) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	q, err := tsdb.NewBlockChunkQuerier(in.block, mint, maxt)
	if err != nil {
		return nil, fmt.Errorf("read block %s: %w", in.block.Dir(), err)
	}
	return &promQuerier{ChunkQuerier: q, in: in}, nil
}

type promQuerier struct {
	storage.ChunkQuerier
	in *promInput
}

// Select implements storage.ChunkQuerier.
func (q *promQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	if hints != nil {
		h := *hints
		asked := span{h.Start, h.End + 1}
		if c := asked.clip(q.in.im.bounds); c != asked {
			if c.empty() {
				return storage.EmptyChunkSeriesSet()
			}
			h.Start, h.End, h.DisableTrimming = c.from, c.to-1, false
		}
		hints = &h
	}
	set := q.ChunkQuerier.Select(ctx, sorted, hints, ms...)
	if !q.in.im.o.SkipInvalid {
		return set
	}
	return &validSet{ChunkSeriesSet: set, im: q.in.im}
}

// validSet passes over series with labels beyond the limits.
type validSet struct {
	storage.ChunkSeriesSet
	im *Importer
}

// Next implements storage.ChunkSeriesSet.
func (s *validSet) Next() bool {
	for s.ChunkSeriesSet.Next() {
		if s.im.checkLabels(s.At().Labels()) == nil {
			return true
		}
	}
	return false
}
