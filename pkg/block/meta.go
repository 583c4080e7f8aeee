package block

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/millrace/millrace/pkg/tombstone"
)

// Names of the files in a block's folder.
const (
	MetaFilename         = "meta.json"
	IndexFilename        = "index"
	ChunksDirname        = "chunks"
	DeletionMarkFilename = "deletion-mark.json"
)

const (
	// MetaVersion is the version of the TSDB part of meta.json.
	MetaVersion = 1
	// ThanosVersion is the version of the thanos section of meta.json.
	ThanosVersion = 1
	// ExtensionVersion is the version of our extension. A block with a higher one is not read.
	ExtensionVersion = 1
	// Source is what thanos.source says of blocks written here.
	Source = "millrace"

	// maxMetaSize bounds what is read of a meta.json; 10,000 replaced blocks take about 300 kB.
	maxMetaSize = 16 << 20
)

var (
	// ErrGone says that an object of a block is not there (any more). The query should be run again on a fresh snapshot.
	ErrGone = errors.New("object is gone")
	// ErrEmpty says that nothing was written because no sample is in range.
	ErrEmpty = errors.New("block has no samples")
	// ErrUnusable says that a meta.json is malformed, or of a block that this program does not read.
	ErrUnusable = errors.New("block cannot be used")
	// ErrDownsampled is the ErrUnusable of a block that is whole but holds aggregates instead of samples. Thanos makes such.
	ErrDownsampled = fmt.Errorf("%w: it is downsampled", ErrUnusable)
	// ErrCorrupt says that the bytes of a block are not what was written.
	ErrCorrupt = errors.New("block is corrupt")
)

// Meta is what meta.json holds. MinTime is inclusive, MaxTime exclusive, both in milliseconds.
type Meta struct {
	tsdb.BlockMeta

	Thanos Thanos `json:"thanos"`
}

// Thanos is the part of meta.json that Thanos added to Prometheus's.
type Thanos struct {
	Version int `json:"version,omitempty"`
	// Labels are the external labels: who wrote the block. Two blocks with different ones have no common series.
	Labels     map[string]string `json:"labels"`
	Downsample Downsample        `json:"downsample"`
	Source     string            `json:"source"`
	// SegmentFiles are the chunk files, sorted; newer readers use Files.
	SegmentFiles []string `json:"segment_files,omitempty"`
	// Files are all files of the block sorted by path, meta.json without a size.
	Files      []File     `json:"files,omitempty"`
	IndexStats IndexStats `json:"index_stats,omitzero"`
	Extensions Extensions `json:"extensions,omitzero"`
}

// Downsample says how coarse the block's samples are; 0 are raw samples, the only ones that are read here.
type Downsample struct {
	Resolution int64 `json:"resolution"`
}

// File is one file of a block. SizeBytes is 0 where it is not known.
type File struct {
	RelPath   string `json:"rel_path"`
	SizeBytes int64  `json:"size_bytes,omitempty"`
}

// IndexStats are sizes in bytes that a reader can plan its requests with.
type IndexStats struct {
	SeriesMaxSize int64 `json:"series_max_size,omitempty"`
	ChunkMaxSize  int64 `json:"chunk_max_size,omitempty"`
}

// Extensions holds our own section. Others' extensions are ignored.
type Extensions struct {
	Millrace *Extension `json:"millrace,omitempty"`
}

// UnmarshalJSON accepts any JSON, as Thanos leaves the type of extensions open.
func (e *Extensions) UnmarshalJSON(b []byte) error {
	var sections map[string]json.RawMessage
	if json.Unmarshal(b, &sections) != nil || sections["millrace"] == nil {
		*e = Extensions{}
		return nil
	}
	if err := json.Unmarshal(sections["millrace"], &e.Millrace); err != nil {
		return fmt.Errorf("extension millrace: %w", err)
	}
	return nil
}

// Extension is what we know of a block beyond Thanos.
type Extension struct {
	Version int `json:"version"`
	// Level is 0 for a block made from a generation, 1 for aligned 2 h, 2 for aligned 1 d, …
	Level int `json:"level"`
	// Generations is the range of generations that went into the block.
	Generations Generations `json:"generations"`
	// Replaces are the blocks which the job replaces whose last upload this block is.
	Replaces []ulid.ULID `json:"replaces,omitempty"`
	// Masters are the level-0 blocks that went into a compacted block, from which it can be built again. Without any, they are
	// not known.
	Masters []ulid.ULID `json:"masters,omitempty"`
	// Index says where the sections of the index begin. Blocks of earlier builds do not tell.
	Index IndexSections `json:"index,omitzero"`
	// Applied are the tombstones of which all that they delete was erased from the block, sorted.
	Applied []ulid.ULID `json:"applied,omitempty"`
	// Deleted are tombstones that concern all of the block although its generation, which got another number, seems to be later.
	Deleted []ulid.ULID `json:"deleted,omitempty"`
	// Dropped are selectors of series that retention rules have taken out of the block, sorted: it has none that matches.
	Dropped []string `json:"dropped,omitempty"`
}

// IndexSections are the offsets in bytes at which sections of the file index begin. They spare readers a round trip, and are checked against
// the index's own table of contents.
type IndexSections struct {
	Series        int64 `json:"series"`
	Postings      int64 `json:"postings"`
	PostingsTable int64 `json:"postingsTable"`
}

// Generations is a range of generation numbers, both inclusive.
type Generations struct {
	Min uint64 `json:"min"`
	Max uint64 `json:"max"`
}

// Own says whether the block was written here, so that its extension can be relied on.
func (m *Meta) Own() bool { return m.Thanos.Extensions.Millrace != nil }

// Level is the block's level: 0 from a generation, higher after compactions. A foreign block's is its TSDB level less one.
func (m *Meta) Level() int {
	if e := m.Thanos.Extensions.Millrace; e != nil {
		return e.Level
	}
	return max(0, m.Compaction.Level-1)
}

// Generations is the range of generations that went into the block; 0, 0 for a foreign block, which so has the lowest
// precedence.
func (m *Meta) Generations() (minGen, maxGen uint64) {
	if e := m.Thanos.Extensions.Millrace; e != nil {
		return e.Generations.Min, e.Generations.Max
	}
	return 0, 0
}

// Replaces are the blocks that must not be seen once this one is there.
func (m *Meta) Replaces() []ulid.ULID {
	if e := m.Thanos.Extensions.Millrace; e != nil {
		return e.Replaces
	}
	return nil
}

// indexSections returns the sections of an index of the given size; ok is false where the meta does not tell them, or nonsense.
func (m *Meta) indexSections(size int64) (s IndexSections, ok bool) {
	if e := m.Thanos.Extensions.Millrace; e != nil {
		s = e.Index
	}
	if s.Series <= 0 || s.Postings < s.Series || s.PostingsTable < s.Postings || s.PostingsTable > size-tocSize {
		return IndexSections{}, false
	}
	return s, true
}

// HeaderSize is how many bytes of its index a reader of the block holds, symbols and postings offset table: all of it, where the meta does not
// tell.
func (m *Meta) HeaderSize() int64 {
	_, _, size, _ := segmentNames(m)
	s, ok := m.indexSections(size)
	if !ok {
		return size
	}
	return s.Series + size - s.PostingsTable
}

// Masters are the level-0 blocks of which the block is made, sorted: a level-0 block's own id. ok is false where they are not
// known.
func (m *Meta) Masters() (ids []ulid.ULID, ok bool) {
	switch e := m.Thanos.Extensions.Millrace; {
	case e == nil:
		return nil, false
	case e.Level == 0:
		return []ulid.ULID{m.ULID}, true
	default:
		return e.Masters, len(e.Masters) > 0
	}
}

// Dropped are the selectors of series that retention rules have taken out of the block.
func (m *Meta) Dropped() []string {
	if e := m.Thanos.Extensions.Millrace; e != nil {
		return e.Dropped
	}
	return nil
}

// Stored is the block as tombstones look at it. A block of ours without generations, which was imported, lists the deletions that came
// before it as applied, so that all others are later; the time of its id says when its data ends. A foreign block's says when it was made.
func (m *Meta) Stored() tombstone.Stored {
	s := tombstone.Stored{Writer: m.Thanos.Labels, MinTime: m.MinTime, MaxTime: m.MaxTime - 1}
	s.MinGeneration, s.MaxGeneration = m.Generations()
	if e := m.Thanos.Extensions.Millrace; e != nil {
		s.Applied, s.Deleted = e.Applied, e.Deleted
	} else {
		s.Made = int64(min(m.ULID.Time(), math.MaxInt64))
	}
	return s
}

// ExternalLabels are the labels of the block's writer.
func (m *Meta) ExternalLabels() labels.Labels { return labels.FromMap(m.Thanos.Labels) }

// Overlaps says whether the block can hold samples in [mint, maxt], both inclusive.
func (m *Meta) Overlaps(mint, maxt int64) bool { return m.MinTime <= maxt && mint < m.MaxTime }

// Size is the sum of the sizes of the block's files in bytes, as far as meta.json knows them.
func (m *Meta) Size() int64 {
	var n int64
	for _, f := range m.Thanos.Files {
		n += f.SizeBytes
	}
	return n
}

// SetExtension fills in our section and the fields that go with it: version, source and TSDB level.
func (m *Meta) SetExtension(level int, minGen, maxGen uint64, replaces ...ulid.ULID) {
	m.Thanos.Version = ThanosVersion
	m.Thanos.Source = Source
	m.Compaction.Level = level + 1
	m.Thanos.Extensions.Millrace = &Extension{
		Version:     ExtensionVersion,
		Level:       level,
		Generations: Generations{Min: minGen, Max: maxGen},
		Replaces:    replaces,
	}
}

// Compare orders blocks by precedence: the later one wins where both hold a sample of the same series and timestamp.
// It is a total order: highest generation, then lowest generation, level, ULID.
func Compare(a, b Meta) int {
	aMin, aMax := a.Generations()
	bMin, bMax := b.Generations()
	return cmp.Or(
		cmp.Compare(aMax, bMax),
		cmp.Compare(aMin, bMin),
		cmp.Compare(a.Level(), b.Level()),
		a.ULID.Compare(b.ULID),
	)
}

// Visible returns the blocks that count, in the order given: all but those that a job has replaced. A replaced block's
// own replacements stay in force, because its job was committed. Blocks that replace each other in a circle, which no job
// writes, all stay visible: seeing a block too often does no harm, missing one does.
func Visible(metas []Meta) []Meta {
	index := make(map[ulid.ULID]int, len(metas))
	for i := range metas {
		index[metas[i].ULID] = i
	}
	replaced := make([]bool, len(metas))
	for i := range metas {
		for _, id := range metas[i].Replaces() {
			if j, ok := index[id]; ok && j != i {
				replaced[j] = true
			}
		}
	}
	hidden := hiddenFromRoots(metas, index, replaced)
	var out []Meta
	for i := range metas {
		if !hidden[i] {
			out = append(out, metas[i])
		}
	}
	return out
}

// hiddenFromRoots marks what can be reached over replacements from a block that nothing replaces.
func hiddenFromRoots(metas []Meta, index map[ulid.ULID]int, replaced []bool) []bool {
	hidden := make([]bool, len(metas))
	var todo []int
	for i, r := range replaced {
		if !r {
			todo = append(todo, i)
		}
	}
	for len(todo) > 0 {
		i := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, id := range metas[i].Replaces() {
			if j, ok := index[id]; ok && j != i && !hidden[j] {
				hidden[j] = true
				todo = append(todo, j)
			}
		}
	}
	return hidden
}

// ParseMeta decodes and checks the content of a meta.json. Its errors are ErrUnusable.
func ParseMeta(b []byte) (Meta, error) {
	if len(b) > maxMetaSize {
		return Meta{}, fmt.Errorf("%w: %s has more than %d bytes", ErrUnusable, MetaFilename, maxMetaSize)
	}
	var m Meta
	if err := json.Unmarshal(b, &m); err != nil {
		return Meta{}, fmt.Errorf("%w: parse %s: %w", ErrUnusable, MetaFilename, err)
	}
	if err := m.validate(); err != nil {
		return Meta{}, fmt.Errorf("%w: %s: %w", ErrUnusable, MetaFilename, err)
	}
	return m, nil
}

// readMeta decodes what r holds, and no more of it than a meta.json may have.
func readMeta(r io.Reader) (Meta, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxMetaSize+1))
	if err != nil {
		return Meta{}, fmt.Errorf("read %s: %w", MetaFilename, err)
	}
	return ParseMeta(b)
}

// ReadMeta reads the meta.json of the block in dir.
func ReadMeta(dir string) (Meta, error) {
	f, err := os.Open(filepath.Join(dir, MetaFilename))
	if err != nil {
		return Meta{}, fmt.Errorf("open meta: %w", err)
	}
	defer f.Close()
	m, err := readMeta(f)
	if err != nil {
		return Meta{}, fmt.Errorf("block %s: %w", dir, err)
	}
	return m, nil
}

// Marshal encodes the meta as it stands in meta.json.
func (m *Meta) Marshal() ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("encode meta of block %s: %w", m.ULID, err)
	}
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return nil, fmt.Errorf("encode meta of block %s: %w", m.ULID, err)
	}
	return append(b, '\n'), nil
}

func (m *Meta) validate() error {
	switch {
	case m.Version != MetaVersion:
		return fmt.Errorf("unexpected version %d, want %d", m.Version, MetaVersion)
	case m.ULID == (ulid.ULID{}):
		return errors.New("no ulid")
	case m.MinTime > m.MaxTime:
		return fmt.Errorf("minTime %d is after maxTime %d", m.MinTime, m.MaxTime)
	case m.Thanos.Version < 0 || m.Thanos.Version > ThanosVersion:
		return fmt.Errorf("unexpected version %d of the thanos section, want %d", m.Thanos.Version, ThanosVersion)
	}
	for _, f := range m.Thanos.Files {
		if err := validateFile(f); err != nil {
			return err
		}
	}
	for _, name := range m.Thanos.SegmentFiles {
		if name == "" || strings.ContainsAny(name, `/\`) || !filepath.IsLocal(name) {
			return fmt.Errorf("segment file %q is not a file name", name)
		}
	}
	return m.validateExtension()
}

func (m *Meta) validateExtension() error {
	e := m.Thanos.Extensions.Millrace
	switch {
	case e == nil:
		return nil
	case e.Version < 1 || e.Version > ExtensionVersion:
		return fmt.Errorf("extension millrace has version %d, this program knows up to %d", e.Version, ExtensionVersion)
	case e.Level < 0:
		return fmt.Errorf("extension millrace has level %d", e.Level)
	case e.Generations.Min > e.Generations.Max:
		return fmt.Errorf("extension millrace has generations %d to %d", e.Generations.Min, e.Generations.Max)
	case slices.Contains(e.Replaces, m.ULID):
		return errors.New("block replaces itself")
	}
	return nil
}

// validateFile keeps names from a bucket from leading out of the block's folder.
func validateFile(f File) error {
	if f.RelPath == "" || strings.Contains(f.RelPath, `\`) || !filepath.IsLocal(f.RelPath) || path.Clean(f.RelPath) != f.RelPath {
		return fmt.Errorf("file %q is not inside the block", f.RelPath)
	}
	if f.SizeBytes < 0 {
		return fmt.Errorf("file %q has a size of %d", f.RelPath, f.SizeBytes)
	}
	return nil
}

// DeletionMark is the content of deletion-mark.json in Thanos's format: the block goes some time after it was marked.
type DeletionMark struct {
	ID      ulid.ULID `json:"id"`
	Version int       `json:"version"`
	Details string    `json:"details,omitempty"`
	// DeletionTime is when the block was marked, in seconds since 1970.
	DeletionTime int64 `json:"deletion_time"`
}

// Listed is a block of a bucket. Marks that it does not have are nil.
type Listed struct {
	Meta           Meta
	DeletionMark   *DeletionMark
	QuarantineMark *QuarantineMark
}
