package block

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/util/annotations"
	"golang.org/x/sync/errgroup"
)

const (
	// seriesOverhead and chunkOverhead are what a series and a chunk take in memory beside labels and data, in bytes.
	seriesOverhead = 96
	chunkOverhead  = 104
	// maxChunkBatch bounds the bytes of chunks (as far as they can be guessed) that are fetched in one go.
	maxChunkBatch = 16 << 20
	// maxChunkGuess bounds what is read for one chunk before its length is known for certain.
	maxChunkGuess = 1 << 20
)

// seriesSet yields the series of one Select, read in batches. It is for one goroutine.
type seriesSet struct {
	ctx        context.Context
	b          *Block
	q          *querier
	ms         []*labels.Matcher
	mint, maxt int64
	limit      int
	labelsOnly bool
	portions   portions

	shard, shards uint64

	ix       *indexReader
	postings index.Postings
	builder  labels.ScratchBuilder
	decoded  []chunks.Meta // reused from series to series
	entries  []seriesEntry // read, but without chunks yet
	ready    []storage.ChunkSeries
	cur      storage.ChunkSeries
	yielded  int
	ended    bool
	err      error
}

// seriesEntry is a series of which the index has been read. ends has, for each of chks, where the next chunk begins, 0
// where that is not known.
type seriesEntry struct {
	labels labels.Labels
	chks   []chunks.Meta
	ends   []chunks.ChunkRef
}

// chunkSeries is a storage.ChunkSeries of what is in memory.
type chunkSeries struct {
	labels labels.Labels
	chks   []chunks.Meta
}

func (s *chunkSeries) Labels() labels.Labels { return s.labels }

func (s *chunkSeries) Iterator(it chunks.Iterator) chunks.Iterator {
	list, ok := it.(*chunkList)
	if !ok {
		list = &chunkList{}
	}
	*list = chunkList{chks: s.chks, at: -1}
	return list
}

// chunkList iterates over chunks.
type chunkList struct {
	chks []chunks.Meta
	at   int
}

func (l *chunkList) At() chunks.Meta { return l.chks[l.at] }
func (*chunkList) Err() error        { return nil }

func (l *chunkList) Next() bool {
	l.at++
	return l.at < len(l.chks)
}

func (s *seriesSet) At() storage.ChunkSeries           { return s.cur }
func (s *seriesSet) Err() error                        { return s.err }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

func (s *seriesSet) Next() bool {
	if s.ended {
		return false
	}
	if s.limit > 0 && s.yielded >= s.limit {
		return s.end(nil)
	}
	for len(s.ready) == 0 {
		more, err := s.advance()
		if err != nil || !more {
			return s.end(err)
		}
	}
	s.cur, s.ready = s.ready[0], s.ready[1:]
	s.yielded++
	return true
}

// end finishes the set and gives back its postings.
func (s *seriesSet) end(err error) bool {
	if err != nil {
		s.err = fmt.Errorf("read %s: %w", s.b.name(), err)
	}
	s.ended, s.cur, s.ready, s.entries = true, nil, nil, nil
	if s.ix != nil {
		s.q.done(s.ix)
	}
	return false
}

// advance does the next step: find the series, read a batch of them, fetch chunks for some. False is the end.
func (s *seriesSet) advance() (more bool, err error) {
	if err := s.ctx.Err(); err != nil {
		return false, err
	}
	if s.ix == nil {
		if s.ix, err = s.q.index(s.ctx); err != nil {
			return false, err
		}
		if s.postings, err = tsdb.PostingsForMatchers(s.ctx, s.ix, s.ms...); err != nil {
			return false, err
		}
	}
	if len(s.entries) == 0 {
		if more, err = s.readEntries(); err != nil || !more {
			return false, err
		}
	}
	return true, s.fetchChunks()
}

// readEntries reads the index of the next batch of series.
func (s *seriesSet) readEntries() (more bool, err error) {
	want := s.portions.series
	if s.limit > 0 {
		want = min(want, s.limit-s.yielded)
	}
	refs := make([]storage.SeriesRef, 0, min(want, 64))
	for len(refs) < want && s.postings.Next() {
		refs = append(refs, s.postings.At())
	}
	if err := s.postings.Err(); err != nil || len(refs) == 0 {
		return false, err
	}
	var bytes int64
	err = s.ix.forSeries(s.ctx, refs, func(b []byte) error {
		e, ok, err := s.decodeEntry(b)
		if ok {
			s.entries = append(s.entries, e)
			bytes += int64(e.labels.ByteSize()) + seriesOverhead + int64(len(e.chks))*chunkOverhead
		}
		return err
	})
	if err != nil {
		return false, err
	}
	return true, s.q.held.hold(s.ctx, bytes)
}

// decodeEntry decodes a series entry; ok is false if the series has nothing in range or belongs to another shard.
func (s *seriesSet) decodeEntry(b []byte) (e seriesEntry, ok bool, err error) {
	if err := s.ix.decode(b, &s.builder, &s.decoded); err != nil {
		return e, false, err
	}
	all := s.decoded
	inRange := func(m chunks.Meta) bool { return m.OverlapsClosedInterval(s.mint, s.maxt) }
	first := slices.IndexFunc(all, inRange)
	if first < 0 {
		return e, false, nil
	}
	e.labels = s.builder.Labels()
	if s.shards > 0 && labels.StableHash(e.labels)%s.shards != s.shard {
		return e, false, nil
	}
	if s.labelsOnly {
		return e, true, nil
	}
	n := 0
	for _, c := range all[first:] {
		if inRange(c) {
			n++
		}
	}
	e.chks, e.ends = make([]chunks.Meta, 0, n), make([]chunks.ChunkRef, 0, n)
	for i := first; len(e.chks) < n; i++ {
		if !inRange(all[i]) {
			continue
		}
		end := chunks.ChunkRef(0)
		if i+1 < len(all) {
			end = all[i+1].Ref
		}
		e.chks, e.ends = append(e.chks, all[i]), append(e.ends, end)
	}
	return e, true, nil
}

// fetchChunks makes as many entries ready as the bytes of a batch allow, one at least.
func (s *seriesSet) fetchChunks() error {
	n, bytes := 0, int64(0)
	for n < len(s.entries) && bytes < s.portions.chunks {
		for i := range s.entries[n].chks {
			bytes += s.guess(&s.entries[n], i)
		}
		n++
	}
	batch := s.entries[:n]
	s.entries = s.entries[n:]
	if !s.labelsOnly {
		if err := s.loadChunks(batch); err != nil {
			return err
		}
	}
	s.ready = make([]storage.ChunkSeries, n)
	for i, e := range batch {
		s.ready[i] = &chunkSeries{labels: e.labels, chks: e.chks}
	}
	return nil
}

// guess returns how much to read for chunk i of e.
func (s *seriesSet) guess(e *seriesEntry, i int) int64 {
	file, off := unpackRef(e.chks[i].Ref)
	if next, end := unpackRef(e.ends[i]); e.ends[i] != 0 && next == file && end > off {
		return min(end-off, maxChunkGuess)
	}
	return s.ix.h.chunkGuess
}

// unpackRef returns the number of the segment and the offset in it that a reference to a chunk is made of.
func unpackRef(ref chunks.ChunkRef) (segment, off int64) { return int64(ref >> 32), int64(uint32(ref)) }

// wanted is a chunk to load, and how much to read for it.
type wanted struct {
	meta  *chunks.Meta
	guess int64
}

// loadChunks fills in the chunks of a batch, from all segments at the same time: they lie in the order of their references.
func (s *seriesSet) loadChunks(batch []seriesEntry) error {
	var all []wanted
	for n := range batch {
		for i := range batch[n].chks {
			all = append(all, wanted{meta: &batch[n].chks[i], guess: s.guess(&batch[n], i)})
		}
	}
	byRef := func(a, b wanted) int { return cmp.Compare(a.meta.Ref, b.meta.Ref) }
	if !slices.IsSortedFunc(all, byRef) {
		slices.SortFunc(all, byRef)
	}
	first := firstSegment(all)
	if len(first) == len(all) {
		return s.loadSegment(s.ctx, all)
	}
	g, ctx := errgroup.WithContext(s.ctx)
	for ; len(all) > 0; first = firstSegment(all) {
		part := first
		all = all[len(part):]
		g.Go(func() error { return s.loadSegment(ctx, part) })
	}
	return g.Wait()
}

// firstSegment returns those chunks at the beginning, sorted by reference, that are in one segment.
func firstSegment(all []wanted) []wanted {
	for i, w := range all {
		first, _ := unpackRef(all[0].meta.Ref)
		if segment, _ := unpackRef(w.meta.Ref); segment != first {
			return all[:i]
		}
	}
	return all
}

// loadSegment fills in chunks that are in one segment, sorted by reference.
func (s *seriesSet) loadSegment(ctx context.Context, chks []wanted) error {
	if len(chks) == 0 {
		return nil
	}
	segment, _ := unpackRef(chks[0].meta.Ref)
	if segment+1 >= int64(s.b.r.files()) {
		return fmt.Errorf("%w: reference to chunk segment %d of %d", ErrCorrupt, segment, s.b.r.files()-1)
	}
	file := int(segment) + 1
	if s.b.r.stable() {
		return s.mapSegment(ctx, file, chks)
	}
	at := make([]item, len(chks))
	for i, w := range chks {
		_, off := unpackRef(w.meta.Ref)
		at[i] = item{off: off, guess: min(w.guess, s.b.r.size(file))}
	}
	loaded, err := loadItems(ctx, s.b.r, file, at, chunkFraming)
	if err != nil {
		return fmt.Errorf("read chunks: %w", err)
	}
	defer loaded.release()
	slab, err := s.slab(at)
	if err != nil {
		return err
	}
	for i, w := range chks {
		content, err := loaded.content(i)
		if err != nil {
			return fmt.Errorf("chunk at byte %d of segment %d: %w", at[i].off, segment, err)
		}
		if slab != nil {
			start := len(slab)
			slab = append(slab, content...)
			content = slab[start:len(slab):len(slab)]
		}
		if w.meta.Chunk, err = chunkenc.FromData(chunkenc.Encoding(content[0]), content[1:]); err != nil {
			return fmt.Errorf("%w: chunk at byte %d of segment %d: %w", ErrCorrupt, at[i].off, segment, err)
		}
	}
	return nil
}

// mapSegment is loadSegment where all of the file is at hand.
func (s *seriesSet) mapSegment(ctx context.Context, file int, chks []wanted) error {
	size := s.b.r.size(file)
	whole, err := s.b.r.load(ctx, file, []span{{0, size}})
	if err != nil {
		return fmt.Errorf("read chunks: %w", err)
	}
	defer whole.release()
	b := whole.from(0)
	for _, w := range chks {
		_, off := unpackRef(w.meta.Ref)
		if off >= size {
			return fmt.Errorf("%w: reference to byte %d of segment %d, which has %d", ErrCorrupt, off, file-1, size)
		}
		n, ok := chunkFraming.length(b[off:min(off+maxFrame, size)])
		if !ok || n > size-off {
			return fmt.Errorf("%w: chunk at byte %d of segment %d has length %d", ErrCorrupt, off, file-1, n)
		}
		content, err := chunkFraming.content(b[off : off+n : off+n])
		if err != nil {
			return fmt.Errorf("chunk at byte %d of segment %d: %w", off, file-1, err)
		}
		if w.meta.Chunk, err = chunkenc.FromData(chunkenc.Encoding(content[0]), content[1:]); err != nil {
			return fmt.Errorf("%w: chunk at byte %d of segment %d: %w", ErrCorrupt, off, file-1, err)
		}
	}
	return nil
}

// slab returns memory for the data of chunks, which the pages that they were read from would be too large to hold on to. It is
// nil if the reader's bytes can be used as they are.
func (s *seriesSet) slab(at []item) ([]byte, error) {
	if s.b.r.stable() {
		return nil, nil
	}
	var n int64
	for _, it := range at {
		n += it.guess
	}
	if err := s.q.held.hold(s.ctx, n); err != nil {
		return nil, err
	}
	return make([]byte, 0, n), nil
}
