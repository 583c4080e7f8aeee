package block

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

const (
	// minIndexWindow and maxIndexWindow bound what is read at a time of the index of a block that is read whole.
	minIndexWindow = 64 << 10
	maxIndexWindow = 1 << 20
)

// storedSeries reads the series of a block one after another, in the order in which its index has them. Labels stay numbers, and chunks
// stay as they are in their files. It is for one goroutine.
type storedSeries struct {
	ctx        context.Context
	b          *Block
	h          *header  // pinned
	rank       []uint32 // what becomes of each symbol's number; nil: they stay
	mint, maxt int64
	portions   portions
	observer   observer // nil if nobody wants to know

	window *view // of the index, with what is at pos
	pos    int64
	files  []*view // of files that are at hand whole

	// The series that were read, the one at at-1 being the current one, and what they all have.
	queue []storedEntry
	at    int
	refs  []uint32
	chks  []storedChunk
	slab  []byte
}

// storedEntry is a series, with where its labels and chunks end.
type storedEntry struct{ refs, chks int }

// storedChunk is a chunk as it is in its file.
type storedChunk struct {
	mint, maxt int64
	ref        chunks.ChunkRef
	frame      []byte // length, encoding, data, checksum; the last is right
	head       int    // where the encoding is
	samples    int
}

func (c *storedChunk) encoding() chunkenc.Encoding { return chunkenc.Encoding(c.frame[c.head]) }
func (c *storedChunk) data() []byte                { return c.frame[c.head+1 : len(c.frame)-4] }

// newStoredSeries takes over the caller's pin of the block's header.
func newStoredSeries(ctx context.Context, b *Block, h *header, mint, maxt int64) *storedSeries {
	s := &storedSeries{
		ctx: ctx, b: b, h: h, mint: mint, maxt: maxt, portions: portionsOf(ctx, &b.meta),
		pos: int64(h.toc.Series), files: make([]*view, b.r.files()),
	}
	if b.r.stable() {
		s.portions.series = 1 // nothing is won by more
	}
	return s
}

// rewind starts again from the first series.
func (s *storedSeries) rewind() {
	s.pos = int64(s.h.toc.Series)
	s.queue, s.at = s.queue[:0], 0
}

func (s *storedSeries) close() {
	s.window.release()
	for _, v := range s.files {
		v.release()
	}
	s.h.unpin()
}

// next moves to the next series that has something in range; false at the end.
func (s *storedSeries) next() (bool, error) {
	if s.at == len(s.queue) {
		if err := s.fill(); err != nil {
			return false, fmt.Errorf("read %s: %w", s.b.name(), err)
		}
		if s.at = 0; len(s.queue) == 0 {
			return false, nil
		}
	}
	s.at++
	if s.observer != nil {
		samples := 0
		for _, c := range s.chunks() {
			samples += c.samples
		}
		s.observer.SeriesRead(len(s.chunks()), samples)
	}
	return true, nil
}

func (s *storedSeries) before() (e storedEntry) {
	if s.at > 1 {
		e = s.queue[s.at-2]
	}
	return e
}

// labels are those of the current series: the numbers of names and values in turn.
func (s *storedSeries) labels() []uint32 { return s.refs[s.before().refs:s.queue[s.at-1].refs] }

// chunks are those of the current series in range.
func (s *storedSeries) chunks() []storedChunk { return s.chks[s.before().chks:s.queue[s.at-1].chks] }

// fill reads the next portion of series.
func (s *storedSeries) fill() error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	s.queue, s.refs, s.chks = s.queue[:0], s.refs[:0], s.chks[:0]
	for bytes := int64(0); len(s.queue) < s.portions.series && bytes < s.portions.chunks; {
		content, off, err := s.entry()
		if err != nil || content == nil {
			if err == nil {
				break
			}
			return err
		}
		begin := len(s.chks)
		ok, err := s.decode(content)
		if err != nil {
			return fmt.Errorf("series at byte %d of the index: %w", off, err)
		}
		if ok {
			s.queue = append(s.queue, storedEntry{len(s.refs), len(s.chks)})
			bytes += int64(len(s.chks)-begin) * s.h.chunkGuess
		}
	}
	return s.loadChunks()
}

// use takes down which symbols the series in range have.
func (s *storedSeries) use(used []bool) error {
	for n := 0; ; n++ {
		if n%1024 == 0 && s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		content, off, err := s.entry()
		if err != nil || content == nil {
			s.rewind()
			return err
		}
		s.refs, s.chks = s.refs[:0], s.chks[:0]
		ok, err := s.decode(content)
		if err != nil {
			return fmt.Errorf("series at byte %d of the index: %w", off, err)
		}
		if ok {
			for _, n := range s.refs {
				used[n] = true
			}
		}
	}
}

// entry returns the content of the next entry of the index, nil at the end, and where it is.
func (s *storedSeries) entry() (content []byte, off int64, err error) {
	end := int64(s.h.toc.LabelIndices)
	off = (s.pos + seriesAlign - 1) / seriesAlign * seriesAlign
	if off >= end {
		return nil, off, nil
	}
	head, err := s.indexFrom(off, min(maxFrame, end-off))
	if err != nil {
		return nil, off, err
	}
	n, ok := seriesFraming.length(head)
	if !ok || n > end-off {
		return nil, off, fmt.Errorf("%w: series at byte %d of the index has length %d, only %d bytes are left", ErrCorrupt, off, n, end-off)
	}
	b, err := s.indexFrom(off, n)
	if err != nil {
		return nil, off, err
	}
	s.pos = off + n
	if content, err = seriesFraming.content(b[:n:n]); err != nil {
		s.forget(indexFile, s.window)
		return nil, off, fmt.Errorf("series at byte %d of the index: %w", off, err)
	}
	return content, off, nil
}

// indexFrom returns n bytes of the index, or more.
func (s *storedSeries) indexFrom(off, n int64) ([]byte, error) {
	if s.window != nil {
		if b := s.window.from(off); int64(len(b)) >= n {
			return b, nil
		}
		s.window.release()
		s.window = nil
	}
	want := max(n, min(max(s.portions.chunks/2, minIndexWindow), maxIndexWindow))
	v, err := s.b.r.load(s.ctx, indexFile, []span{{off, min(want, int64(s.h.toc.LabelIndices)-off)}})
	if err != nil {
		return nil, fmt.Errorf("read series: %w", err)
	}
	s.window = v
	return v.from(off), nil
}

// forget makes that what came damaged is asked for again by who tries it again.
func (s *storedSeries) forget(file int, v *view) { (&items{r: s.b.r, file: file, first: v}).forget() }

// decode appends labels and chunks of a series; ok is false if it has nothing in range.
func (s *storedSeries) decode(content []byte) (ok bool, err error) {
	c := cursor{b: content}
	refs, chks := len(s.refs), len(s.chks)
	for k := c.uvarint(); k > 0 && !c.bad; k-- {
		for range 2 {
			n := c.uvarint()
			if n >= uint64(len(s.h.symPos)) {
				return false, fmt.Errorf("%w: symbol %d of %d", ErrCorrupt, n, len(s.h.symPos))
			}
			if s.rank != nil {
				n = uint64(s.rank[n])
			}
			s.refs = append(s.refs, uint32(n))
		}
	}
	var chk placedChunk
	for k, first := c.uvarint(), true; k > 0 && !c.bad; k, first = k-1, false {
		chk.next(&c, first)
		if chk.mint <= s.maxt && chk.maxt >= s.mint {
			s.chks = append(s.chks, storedChunk{mint: chk.mint, maxt: chk.maxt, ref: chk.ref})
		}
	}
	if c.bad {
		return false, fmt.Errorf("%w: it ends too early", ErrCorrupt)
	}
	if len(s.chks) == chks {
		s.refs = s.refs[:refs]
		return false, nil
	}
	return true, nil
}

// loadChunks reads the chunks of the series in the queue.
func (s *storedSeries) loadChunks() error {
	if s.b.r.stable() {
		for i := range s.chks {
			if err := s.mapChunk(&s.chks[i]); err != nil {
				return err
			}
		}
		return nil
	}
	all := make([]located, len(s.chks))
	size := int64(0)
	for i := range s.chks {
		all[i] = located{chunk: &s.chks[i], guess: s.guess(i)}
		size += all[i].guess
	}
	byRef := func(a, b located) int { return cmp.Compare(a.chunk.ref, b.chunk.ref) }
	if !slices.IsSortedFunc(all, byRef) {
		slices.SortFunc(all, byRef)
	}
	s.slab = slices.Grow(s.slab[:0], int(size))
	for len(all) > 0 {
		segment, _ := unpackRef(all[0].chunk.ref)
		n := slices.IndexFunc(all, func(l located) bool { other, _ := unpackRef(l.chunk.ref); return other != segment })
		if n < 0 {
			n = len(all)
		}
		if err := s.loadSegment(segment, all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

// located is a chunk to be read, and how much to read for it.
type located struct {
	chunk *storedChunk
	guess int64
}

// guess returns how much to read for the chunk at i: up to the next one, if that is behind it.
func (s *storedSeries) guess(i int) int64 {
	if i+1 < len(s.chks) {
		segment, off := unpackRef(s.chks[i].ref)
		if next, end := unpackRef(s.chks[i+1].ref); next == segment && end > off {
			return min(end-off, maxChunkGuess)
		}
	}
	return s.h.chunkGuess
}

// loadSegment copies chunks of one file to the slab.
func (s *storedSeries) loadSegment(segment int64, chks []located) error {
	file, err := s.file(segment)
	if err != nil {
		return err
	}
	at := make([]item, len(chks))
	for i, c := range chks {
		_, off := unpackRef(c.chunk.ref)
		at[i] = item{off: off, guess: min(c.guess, s.b.r.size(file))}
	}
	loaded, err := loadItems(s.ctx, s.b.r, file, at, chunkFraming)
	if err != nil {
		return fmt.Errorf("read chunks: %w", err)
	}
	defer loaded.release()
	for i, c := range chks {
		if _, err := loaded.content(i); err != nil {
			return fmt.Errorf("chunk at byte %d of segment %d: %w", at[i].off, segment, err)
		}
		begin := len(s.slab)
		s.slab = append(s.slab, loaded.whole(i)...) // a longer one leaves those before it where they are
		if err := c.chunk.setFrame(s.slab[begin:len(s.slab):len(s.slab)]); err != nil {
			return fmt.Errorf("chunk at byte %d of segment %d: %w", at[i].off, segment, err)
		}
	}
	return nil
}

func (s *storedSeries) file(segment int64) (int, error) {
	if segment+1 >= int64(s.b.r.files()) {
		return 0, fmt.Errorf("%w: reference to chunk segment %d of %d", ErrCorrupt, segment, s.b.r.files()-1)
	}
	return int(segment) + 1, nil
}

// mapChunk finds a chunk in a file that is at hand whole.
func (s *storedSeries) mapChunk(c *storedChunk) error {
	segment, off := unpackRef(c.ref)
	file, err := s.file(segment)
	if err != nil {
		return err
	}
	size := s.b.r.size(file)
	if s.files[file] == nil {
		if s.files[file], err = s.b.r.load(s.ctx, file, []span{{0, size}}); err != nil {
			return fmt.Errorf("read chunks: %w", err)
		}
	}
	if err = c.find(s.files[file].runs[0].data, off); err != nil {
		return fmt.Errorf("chunk at byte %d of segment %d: %w", off, segment, err)
	}
	return nil
}

func (c *storedChunk) find(file []byte, off int64) error {
	size := int64(len(file))
	if off >= size {
		return fmt.Errorf("%w: the file has %d bytes", ErrCorrupt, size)
	}
	n, ok := chunkFraming.length(file[off:min(off+maxFrame, size)])
	if !ok || n > size-off {
		return fmt.Errorf("%w: length %d in a file of %d bytes", ErrCorrupt, n, size)
	}
	frame := file[off : off+n : off+n]
	if _, err := chunkFraming.content(frame); err != nil {
		return err
	}
	return c.setFrame(frame)
}

// setFrame takes the bytes of a chunk, whose checksum is right.
func (c *storedChunk) setFrame(frame []byte) (err error) {
	c.frame, c.head = frame, uvarintLen(frame)
	c.samples, err = samplesIn(c.encoding(), c.data())
	return err
}

var errShortChunk = errors.New("too few bytes")

// samplesIn returns how many samples a chunk says that it has.
func samplesIn(e chunkenc.Encoding, data []byte) (int, error) {
	if len(data) < 2 {
		return 0, fmt.Errorf("%w: %w", ErrCorrupt, errShortChunk)
	}
	switch e {
	case chunkenc.EncXOR, chunkenc.EncHistogram, chunkenc.EncFloatHistogram:
		return int(data[0])<<8 | int(data[1]), nil // without making a chunk for it
	}
	chk, err := chunkenc.FromData(e, data)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return chk.NumSamples(), nil
}

// decoded returns the current series for who needs its samples.
func (s *storedSeries) decoded() (storage.ChunkSeries, error) {
	var d decodedParts
	if err := d.add(s.chunks()); err != nil {
		return nil, err
	}
	return d.series[0], nil
}
