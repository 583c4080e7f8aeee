package block

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"sort"
	"strings"
	"unsafe"

	"github.com/prometheus/prometheus/tsdb/encoding"
	"github.com/prometheus/prometheus/tsdb/index"
	"golang.org/x/sync/errgroup"
)

const (
	tocSize = 6*8 + crc32.Size
	// tailSize is what is read of the end of an index at first: of a small block it holds the whole postings offset table.
	tailSize = 64_000
	// seriesAlign is the unit of series references.
	seriesAlign = 16
	// maxPostingsAhead bounds the postings that are read with a header: those of about 100,000 series.
	maxPostingsAhead = 4 << 20
	// maxGuess bounds what is read of a series or a chunk whose length is not known.
	maxGuess = 16_000
)

// header is what is kept of an index to find everything else: symbols and postings offset table, as they are in the file,
// with the position of each of their entries (4 bytes an entry). It is immutable. One whose memory is that of a local copy is pinned by those who use it.
type header struct {
	toc     *index.TOC
	size    int64  // of the index
	symbols []byte // entries of the symbol table
	symPos  []uint32

	table    []byte // entries of the postings offset table
	tablePos []uint32
	names    map[string]nameEntries
	sorted   []string // label names; the strings are copies

	postingsEnd int64 // where the postings section ends
	seriesGuess int64
	chunkGuess  int64

	from *indexCopy // what symbols and table are the memory of, pinned; nil where no pin is needed
}

// pin keeps the header's memory until unpin; false if it is no longer to be used.
func (h *header) pin() bool { return h.from == nil || h.from.pinAgain() }

func (h *header) unpin() {
	if h.from != nil {
		h.from.unpin()
	}
}

// nameEntries are the entries [first, last) of a label name in the postings offset table.
type nameEntries struct{ first, last int }

// byteSlice implements encoding.ByteSlice and index.ByteSlice.
type byteSlice []byte

func (b byteSlice) Len() int                    { return len(b) }
func (b byteSlice) Range(start, end int) []byte { return b[start:end] }

// view of bytes as a string, without a copy.
func yolo(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// loadHeader reads the header of an index. On a bucket that takes one round trip where the meta tells the index's sections, else two, of which
// the second one brings the postings, too, if they are small: with these, series and chunks, no query of a block takes more than four.
func loadHeader(ctx context.Context, r rangeReader, m *Meta) (*header, error) {
	h := &header{size: r.size(indexFile)}
	p := &headerParts{r: r, tailOff: h.size}
	sections, known := m.indexSections(h.size)
	if !known {
		sections.PostingsTable = max(0, h.size-tailSize)
	}
	if err := p.read(ctx, sections); err != nil {
		return nil, err
	}
	var err error
	if h.toc, err = decodeTOC(p.tail, h.size); err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.read(gctx, sectionsOf(h.toc)) })
	if n := int64(h.toc.PostingsTable - h.toc.Postings); !known && n <= maxPostingsAhead && !r.mapped(indexFile) {
		g.Go(func() error { return readAhead(gctx, r, span{int64(h.toc.Postings), n}) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := checkIndexStart(p.start); err != nil {
		return nil, err
	}
	if err := h.decodeSymbols(p.start[h.toc.Symbols:h.toc.Series]); err != nil {
		return nil, fmt.Errorf("symbol table: %w", err)
	}
	if err := h.decodeTable(p.tail[int64(h.toc.PostingsTable)-p.tailOff : len(p.tail)-tocSize]); err != nil {
		return nil, fmt.Errorf("postings offset table: %w", err)
	}
	h.guess(r, m)
	return h, nil
}

// headerParts are the beginning of an index, which has the symbols, and its end, which has postings offset table and table of contents.
type headerParts struct {
	r       rangeReader
	start   []byte
	tail    []byte
	tailOff int64
}

// read extends the parts to what lies before s.Series and from s.PostingsTable on. All that is missing takes one round trip.
func (p *headerParts) read(ctx context.Context, s IndexSections) error {
	g, ctx := errgroup.WithContext(ctx)
	if have := int64(len(p.start)); have < s.Series {
		g.Go(func() (err error) {
			p.start, err = p.r.loadOnce(ctx, indexFile, span{0, s.Series})
			return err
		})
	}
	if s.PostingsTable < p.tailOff {
		g.Go(func() error {
			missing := span{s.PostingsTable, p.tailOff - s.PostingsTable}
			if p.r.mapped(indexFile) {
				missing.n, p.tail = p.r.size(indexFile)-missing.off, nil // no copy is made
			}
			b, err := p.r.loadOnce(ctx, indexFile, missing)
			if len(p.tail) > 0 {
				b = append(slices.Clip(b), p.tail...)
			}
			p.tail, p.tailOff = b, s.PostingsTable
			return err
		})
	}
	return g.Wait()
}

// readAhead puts a part of the index into the cache. It is not charged to the query, which may not need it.
func readAhead(ctx context.Context, r rangeReader, s span) error {
	v, err := r.load(WithBudget(ctx, nil), indexFile, []span{s})
	v.release()
	return err
}

// sectionsOf returns what a table of contents says.
func sectionsOf(toc *index.TOC) IndexSections {
	return IndexSections{Series: int64(toc.Series), Postings: int64(toc.Postings), PostingsTable: int64(toc.PostingsTable)}
}

// readSections returns where the sections of an index file begin.
func readSections(name string) (s IndexSections, err error) {
	f, err := os.Open(name)
	if err != nil {
		return s, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return s, err
	}
	tail := make([]byte, tocSize)
	if _, err := f.ReadAt(tail, st.Size()-tocSize); err != nil {
		return s, fmt.Errorf("read table of contents: %w", err)
	}
	toc, err := decodeTOC(tail, st.Size())
	if err != nil {
		return s, err
	}
	return sectionsOf(toc), nil
}

// decodeTOC decodes the table of contents at the end of an index of the given size and checks that its sections are in order.
func decodeTOC(tail []byte, size int64) (*index.TOC, error) {
	toc, err := index.NewTOCFromByteSlice(byteSlice(tail))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	sections := []uint64{index.HeaderLen, toc.Symbols, toc.Series, toc.LabelIndices, toc.Postings, toc.PostingsTable, uint64(size - tocSize)}
	for i := 1; i < len(sections); i++ {
		if sections[i] < sections[i-1] {
			return nil, fmt.Errorf("%w: table of contents of an index of %d bytes has sections in the wrong order: %+v", ErrCorrupt, size, *toc)
		}
	}
	return toc, nil
}

func checkIndexStart(b []byte) error {
	if len(b) < index.HeaderLen || binary.BigEndian.Uint32(b) != index.MagicIndex {
		return fmt.Errorf("%w: index does not begin with its magic number", ErrCorrupt)
	}
	if v := b[4]; v != index.FormatV2 && v != index.FormatV3 {
		return fmt.Errorf("%w: index has version %d, this program reads 2 and 3", ErrUnusable, v)
	}
	return nil
}

// section decodes a section that begins with its length and number of entries and ends with a checksum.
func section(b []byte, minEntry int) (entries []byte, count int, err error) {
	if len(b) < 8+crc32.Size {
		return nil, 0, fmt.Errorf("%w: section has %d bytes only", ErrCorrupt, len(b))
	}
	n := int64(binary.BigEndian.Uint32(b))
	if n < 4 || n > int64(len(b)-4-crc32.Size) {
		return nil, 0, fmt.Errorf("%w: length %d in a section of %d bytes", ErrCorrupt, n, len(b))
	}
	content, sum := b[4:4+n], b[4+n:]
	if got, want := crc32.Checksum(content, castagnoli), binary.BigEndian.Uint32(sum); got != want {
		return nil, 0, fmt.Errorf("%w: checksum is %08x, the file says %08x", ErrCorrupt, got, want)
	}
	cnt := int64(binary.BigEndian.Uint32(content))
	if cnt*int64(minEntry) > n-4 {
		return nil, 0, fmt.Errorf("%w: %d entries in %d bytes", ErrCorrupt, cnt, n-4)
	}
	return content[4:], int(cnt), nil
}

func (h *header) decodeSymbols(b []byte) error {
	entries, count, err := section(b, 1)
	if err != nil {
		return err
	}
	h.symbols, h.symPos = entries, make([]uint32, 0, count)
	d := encoding.Decbuf{B: entries}
	last := ""
	for i := range count {
		h.symPos = append(h.symPos, uint32(len(entries)-d.Len()))
		s := yolo(d.UvarintBytes())
		if d.Err() != nil {
			return fmt.Errorf("%w: symbol %d: %w", ErrCorrupt, i, d.Err())
		}
		if i > 0 && s <= last {
			return fmt.Errorf("%w: symbol %d is not in order", ErrCorrupt, i)
		}
		last = s
	}
	return nil
}

func (h *header) decodeTable(b []byte) error {
	entries, count, err := section(b, 4)
	if err != nil {
		return err
	}
	h.table, h.tablePos = entries, make([]uint32, 0, count)
	h.names = make(map[string]nameEntries)
	h.postingsEnd = int64(h.toc.PostingsTable)
	if t := h.toc.LabelIndicesTable; t > h.toc.Postings && t < h.toc.PostingsTable {
		h.postingsEnd = int64(t)
	}
	d := encoding.Decbuf{B: entries}
	var (
		name, value string
		first       int
	)
	for i := range count {
		h.tablePos = append(h.tablePos, uint32(len(entries)-d.Len()))
		n, v, off, err := decodeTableEntry(&d)
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if off < h.toc.Postings || off >= uint64(h.postingsEnd) {
			return fmt.Errorf("%w: entry %d is for postings at %d, outside of their section", ErrCorrupt, i, off)
		}
		if i > 0 && (n < name || (n == name && v <= value)) {
			return fmt.Errorf("%w: entry %d is not in order", ErrCorrupt, i)
		}
		if i == 0 || n != name {
			h.endName(first, i)
			h.sorted, first = append(h.sorted, strings.Clone(n)), i
		}
		name, value = n, v
	}
	h.endName(first, count)
	return nil
}

// endName notes that the entries of the latest label name are [first, last).
func (h *header) endName(first, last int) {
	if n := len(h.sorted); n > 0 {
		h.names[h.sorted[n-1]] = nameEntries{first: first, last: last}
	}
}

// decodeTableEntry returns an entry of the postings offset table; the strings share the table's memory.
func decodeTableEntry(d *encoding.Decbuf) (name, value string, off uint64, err error) {
	keys := d.Uvarint64()
	name, value = yolo(d.UvarintBytes()), yolo(d.UvarintBytes())
	off = d.Uvarint64()
	if d.Err() != nil {
		return "", "", 0, fmt.Errorf("%w: %w", ErrCorrupt, d.Err())
	}
	if keys != 2 {
		return "", "", 0, fmt.Errorf("%w: %d keys", ErrCorrupt, keys)
	}
	return name, value, off, nil
}

// guess plans how much to read of things whose length is not known before they are read: twice the mean, or the largest,
// where the meta tells it and it is not large.
func (h *header) guess(r rangeReader, m *Meta) {
	var chunkBytes int64
	for f := 1; f < r.files(); f++ {
		chunkBytes += r.size(f)
	}
	h.seriesGuess = guessSize(m.Thanos.IndexStats.SeriesMaxSize, int64(h.toc.LabelIndices-h.toc.Series), m.Stats.NumSeries)
	h.chunkGuess = guessSize(m.Thanos.IndexStats.ChunkMaxSize, chunkBytes, m.Stats.NumChunks)
}

func guessSize(largest, total int64, count uint64) int64 {
	const small, large = 64, 4096
	mean := int64(large)
	if count > 0 && count < uint64(total) {
		mean = total / int64(count)
	}
	g := 2*mean + small
	if largest > 0 && largest <= max(g, large) {
		g = largest
	}
	return min(g, maxGuess)
}

// symbol returns a symbol by its number. The string shares the header's memory.
func (h *header) symbol(n uint32) (string, error) {
	if int64(n) >= int64(len(h.symPos)) {
		return "", fmt.Errorf("%w: symbol %d of %d", ErrCorrupt, n, len(h.symPos))
	}
	d := encoding.Decbuf{B: h.symbols[h.symPos[n]:]}
	return yolo(d.UvarintBytes()), nil
}

// entry returns an entry of the postings offset table, which decodeTable has checked.
func (h *header) entry(i int) (value string, off int64) {
	d := encoding.Decbuf{B: h.table[h.tablePos[i]:]}
	d.Uvarint64()
	d.UvarintBytes()
	value = yolo(d.UvarintBytes())
	return value, int64(d.Uvarint64())
}

// find returns the entry of a label pair, or -1.
func (h *header) find(name, value string) int {
	e, ok := h.names[name]
	if !ok {
		return -1
	}
	i := e.first + sort.Search(e.last-e.first, func(i int) bool {
		v, _ := h.entry(e.first + i)
		return v >= value
	})
	if i == e.last {
		return -1
	}
	if v, _ := h.entry(i); v != value {
		return -1
	}
	return i
}

// postingsSpan returns where the postings of entry i are: up to those of the next entry, as writers put them.
func (h *header) postingsSpan(i int) span {
	_, off := h.entry(i)
	end := h.postingsEnd
	if i+1 < len(h.tablePos) {
		if _, next := h.entry(i + 1); next > off {
			end = next
		}
	}
	return span{off, end - off}
}

// labelNames returns the names of labels, sorted. The strings are copies.
func (h *header) labelNames() []string {
	if len(h.sorted) > 0 && h.sorted[0] == "" {
		return h.sorted[1:]
	}
	return h.sorted
}

// symbolIter iterates over symbols. The strings share the header's memory.
type symbolIter struct {
	h   *header
	i   int
	cur string
	err error
}

func (s *symbolIter) Next() bool {
	if s.err != nil || s.i >= len(s.h.symPos) {
		return false
	}
	s.cur, s.err = s.h.symbol(uint32(s.i))
	s.i++
	return s.err == nil
}

func (s *symbolIter) At() string { return s.cur }
func (s *symbolIter) Err() error { return s.err }
