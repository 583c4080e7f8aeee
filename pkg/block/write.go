package block

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/fileutil"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/millrace/millrace/pkg/merge"
)

// Input is what a block is made of: a generation or another block.
type Input interface {
	storage.ChunkQueryable
	// Symbols are the strings in the input's labels, sorted; there may be more of them than that.
	Symbols() index.StringIter
}

// WriteOptions say how a block is written. The zero value is right for all but tests and special cases.
type WriteOptions struct {
	// SegmentSize is the size of chunk files in bytes; 0 is 512 MB, Prometheus's own value.
	SegmentSize int64
	// Encode says what chunks look like that have to be encoded anew.
	Encode merge.EncodeOptions
	// Check compares the samples of each series with those of the inputs, which then must give their chunks more than once. A
	// difference is a merge.ErrDiffers.
	Check bool
	// Digest, if given, takes what is written, for ReadBack.
	Digest *Digest
}

// tmpSuffix is that of a block's folder while it is being written.
const tmpSuffix = ".tmp"

// Write merges inputs, in order of precedence (later wins), to a block in the folder dir/ULID. m gives the ULID, the range
// [MinTime, MaxTime) of samples to take, external labels and extension; the rest of the returned meta is filled in.
//
// The times in a level-0 block's meta are those of its samples; above, they are the range given, except for an end that is
// open (math.MinInt64, math.MaxInt64). Sources, if not given, are the block itself and the sources of those inputs that lie
// in the range whole; parents are all inputs that are blocks. What inputs that have a method Families, as blocks do, know of
// the families of the metrics written goes along; the later input wins.
//
// The block appears complete and synced, by a rename, or not at all; without samples in range there is none, and ErrEmpty.
// If dir has a block of this ULID already, its meta is returned: who writes under the same ULID again writes the same block. With a
// digest it is written anew.
//
// The symbols of all inputs are merged first. From then on labels are numbers, in the order of the strings: series of inputs that are
// blocks are compared, merged and written without a string being made of them, and their chunks are copied as they are in their files.
// One goroutine reads and merges, another one writes. Memory does not grow with the number of samples; for each distinct string in
// labels some is taken.
func Write(ctx context.Context, dir string, m Meta, inputs []Input, o WriteOptions) (Meta, error) {
	final := filepath.Join(dir, m.ULID.String())
	if old, err := OpenLocal(final); err == nil && o.Digest == nil {
		return old.Meta(), old.Close()
	}
	w := &writer{ctx: ctx, dir: final + tmpSuffix, meta: m, inputs: inputs, o: o, metrics: map[string]struct{}{}}
	err := w.write()
	if err == nil {
		err = commit(w.dir, final)
	}
	if err != nil {
		err = errors.Join(err, os.RemoveAll(w.dir))
		return Meta{}, fmt.Errorf("write block %s: %w", m.ULID, err)
	}
	return w.meta, nil
}

// commit syncs a folder's entries and gives it its final name.
func commit(tmp, final string) error {
	for _, d := range []string{filepath.Join(tmp, ChunksDirname), tmp} {
		if err := syncFolder(d); err != nil {
			return err
		}
	}
	// What has this name cannot be opened, so it is no block.
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	return fileutil.Rename(tmp, final)
}

// writer is one Write.
type writer struct {
	ctx    context.Context
	dir    string
	meta   Meta
	inputs []Input
	o      WriteOptions

	symbols    []string // in the labels of the series written
	sources    []seriesSource
	chunks     chunkWriter
	index      *indexWriter
	digest     *seriesDigest // nil if it is not wanted
	mint, maxt int64         // of the samples written
	stats      tsdb.BlockStats
	sizes      IndexStats

	metrics    map[string]struct{} // names of the series written
	lastMetric uint32
	described  bool // there is a metadata.json
}

func (w *writer) write() (err error) {
	if w.meta.MinTime >= w.meta.MaxTime {
		return fmt.Errorf("range [%d, %d) is empty", w.meta.MinTime, w.meta.MaxTime)
	}
	if err := os.RemoveAll(w.dir); err != nil {
		return fmt.Errorf("clear folder: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(w.dir, ChunksDirname), 0o777); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	if err := w.data(); err != nil {
		return err
	}
	if w.stats.NumSamples == 0 {
		return ErrEmpty
	}
	if err := w.writeFamilies(); err != nil {
		return err
	}
	if err := w.finishMeta(); err != nil {
		return err
	}
	b, err := w.meta.Marshal()
	if err != nil {
		return err
	}
	return writeSynced(filepath.Join(w.dir, MetaFilename), b)
}

func writeSynced(name string, b []byte) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.Sync()
}

// closing calls f, whose error counts if there was none before: an index closed too early has a lot to complain about.
func closing(err *error, f func() error) {
	if e := f(); *err == nil && e != nil {
		*err = fmt.Errorf("close: %w", e)
	}
}

// data writes chunks and index.
func (w *writer) data() (err error) {
	defer func() {
		for _, s := range w.sources {
			s.close()
		}
	}()
	if err := w.openSources(); err != nil {
		return err
	}
	if w.o.Digest != nil {
		w.digest = newSeriesDigest()
		for _, s := range w.symbols {
			w.digest.addSymbol(s)
		}
	}
	if w.index, err = newIndexWriter(filepath.Join(w.dir, IndexFilename), w.symbols); err != nil {
		return err
	}
	defer closing(&err, w.index.close)
	w.chunks = chunkWriter{dir: filepath.Join(w.dir, ChunksDirname), size: cmp.Or(w.o.SegmentSize, defaultSegment)}
	defer closing(&err, w.chunks.close)
	if err := w.writeSeries(); err != nil {
		return err
	}
	if err := w.chunks.close(); err != nil {
		return err
	}
	if err := w.index.finish(w.ctx); err != nil {
		return err
	}
	w.sizes.SeriesMaxSize = w.index.largest
	if w.o.Digest != nil {
		*w.o.Digest = Digest{index: w.index.sum.Sum64(), chunks: w.chunks.sums, series: w.digest.hash.Sum64()}
	}
	return nil
}

func (w *writer) selectAll(q storage.ChunkQuerier, fn string) storage.ChunkSeriesSet {
	k, v := index.AllPostingsKey()
	hints := &storage.SelectHints{Start: w.meta.MinTime, End: w.meta.MaxTime - 1, Func: fn, DisableTrimming: true}
	return q.Select(w.ctx, true, hints, labels.MustNewMatcher(labels.MatchEqual, k, v))
}

// inputMeta returns the meta of an input that is a block.
func inputMeta(in Input) (Meta, bool) {
	b, ok := in.(interface{ Meta() Meta })
	if !ok {
		return Meta{}, false
	}
	return b.Meta(), true
}

// contains says whether all samples of an input go into the block.
func (w *writer) contains(m Meta) bool {
	return m.MinTime >= w.meta.MinTime && m.MaxTime <= w.meta.MaxTime
}

// finishMeta fills in what is known only now.
func (w *writer) finishMeta() error {
	m := &w.meta
	m.Version = MetaVersion
	m.Stats = w.stats
	w.lineage()
	if m.Level() == 0 || m.MinTime == math.MinInt64 {
		m.MinTime = w.mint
	}
	if m.Level() == 0 || m.MaxTime == math.MaxInt64 {
		m.MaxTime = w.maxt + 1
	}
	t := &m.Thanos
	t.Version = ThanosVersion
	t.IndexStats = w.sizes
	if t.Source == "" {
		t.Source = Source
	}
	if t.Labels == nil {
		t.Labels = map[string]string{}
	}
	if e := t.Extensions.Millrace; e != nil {
		own := *e // the caller's may be that of other blocks, too
		var err error
		if own.Index, err = readSections(filepath.Join(w.dir, IndexFilename)); err != nil {
			return fmt.Errorf("read back the index: %w", err)
		}
		t.Extensions.Millrace = &own
	}
	return w.listFiles()
}

// lineage says where the block comes from.
func (w *writer) lineage() {
	c := &w.meta.Compaction
	c.Level = max(c.Level, w.meta.Level()+1)
	own := len(c.Sources) == 0
	if own {
		c.Sources = []ulid.ULID{w.meta.ULID}
	}
	parents := len(c.Parents) == 0 && w.meta.Level() > 0
	for _, in := range w.inputs {
		m, ok := inputMeta(in)
		if !ok {
			continue
		}
		if own && w.contains(m) {
			c.Sources = append(append(c.Sources, m.ULID), m.Compaction.Sources...)
		}
		if parents {
			c.Parents = append(c.Parents, tsdb.BlockDesc{ULID: m.ULID, MinTime: m.MinTime, MaxTime: m.MaxTime})
		}
	}
	if own {
		slices.SortFunc(c.Sources, ulid.ULID.Compare)
		c.Sources = slices.Compact(c.Sources)
	}
}

// listFiles notes the block's files and their sizes, which spares readers requests.
func (w *writer) listFiles() error {
	segments, err := localSegments(w.dir)
	if err != nil {
		return err
	}
	t := &w.meta.Thanos
	t.Files, t.SegmentFiles = nil, nil
	names := slices.Concat(segments, []string{IndexFilename, MetaFilename})
	if w.described {
		names = append(names, MetadataFilename)
	}
	for _, name := range names {
		f := File{RelPath: name}
		if name != MetaFilename {
			st, err := os.Stat(filepath.Join(w.dir, filepath.FromSlash(name)))
			if err != nil {
				return fmt.Errorf("size of %s: %w", name, err)
			}
			f.SizeBytes = st.Size()
		}
		t.Files = append(t.Files, f)
	}
	for _, name := range segments {
		t.SegmentFiles = append(t.SegmentFiles, filepath.Base(name))
	}
	return nil
}
