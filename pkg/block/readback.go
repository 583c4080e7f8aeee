package block

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/thanos-io/objstore"
)

// ErrMismatch says that a block in a bucket is not what was to be written.
var ErrMismatch = errors.New("the block in the bucket is not what was written")

// ReadBack reads index and chunks of the block of m whole, which need not have its meta.json yet, each of the files from its beginning to its end.
// Their bytes must be those that were written. Beyond that the index must make sense to who reads it: it must give the symbols and series that
// were merged, chunks one after another where the files have them, exactly the postings that these series have, and the meta's
// statistics. Chunks are not decoded: their bytes were compared with the inputs'. What does not agree is an ErrMismatch; other errors are the
// bucket's. Memory is taken for symbols and the table of postings, with 8 bytes more for each symbol, and for the longest list of postings, that of all series.
func ReadBack(ctx context.Context, bkt objstore.BucketReader, m Meta, want *Digest) error {
	v := &verifier{ctx: ctx, bkt: bkt, id: m.ULID, meta: m}
	err := v.checkFiles()
	if err == nil && len(v.findings) == 0 {
		b := &readBack{ctx: ctx, r: v.r, h: v.h, meta: m, want: want, series: newSeriesDigest()}
		if err = b.run(); err == nil {
			return nil
		}
	}
	switch {
	case len(v.findings) > 0:
		return fmt.Errorf("%w: %s", ErrMismatch, v.findings[0])
	case errors.Is(err, ErrCorrupt), errors.Is(err, ErrUnusable):
		return fmt.Errorf("%w: block %s: %w", ErrMismatch, m.ULID, err)
	}
	return fmt.Errorf("read back block %s: %w", m.ULID, err)
}

// readBack is one ReadBack of a block whose files are there, with the right sizes.
type readBack struct {
	ctx  context.Context
	r    *bucketReader
	h    *header
	meta Meta
	want *Digest

	series *seriesDigest
	stats  tsdb.BlockStats
	hashes []uint64 // of symbols
	// owed is the sum of what is made of each label of each series, and of the series themselves; their postings must make up for it.
	owed uint64

	file   int // of the chunks that are being read, 0 at first
	chunks *fileStream
	refs   []uint32
	chks   []placedChunk
}

func (b *readBack) run() error {
	defer func() {
		if b.chunks != nil {
			b.chunks.close()
		}
	}()
	for n := range b.h.symPos {
		s, err := b.h.symbol(uint32(n))
		if err != nil {
			return err
		}
		b.series.addSymbol(s)
		b.hashes = append(b.hashes, xxhash.Sum64String(s))
	}
	index, err := openStream(b.ctx, b.r, indexFile, 0, b.h.size)
	if err != nil {
		return err
	}
	defer index.close()
	if err := b.readSeries(index); err != nil {
		return err
	}
	if err := b.endChunks(); err != nil {
		return err
	}
	if got := b.series.hash.Sum64(); got != b.want.series {
		return fmt.Errorf("%w: the digest of its series is %016x, not %016x", ErrCorrupt, got, b.want.series)
	}
	if err := b.readPostings(index); err != nil {
		return err
	}
	if b.stats != b.meta.Stats {
		return fmt.Errorf("%w: its statistics are %+v, not %+v", ErrCorrupt, b.stats, b.meta.Stats)
	}
	return b.end(index, b.want.index)
}

// end reads what is left of a file and compares its bytes.
func (b *readBack) end(s *fileStream, want uint64) error {
	if err := s.skipTo(s.end); err != nil {
		return err
	}
	if got := s.sum.Sum64(); got != want {
		return fmt.Errorf("%w: the digest of %s is %016x, not %016x", ErrCorrupt, b.r.names[s.file], got, want)
	}
	return nil
}

// readSeries reads the series of the index, and their chunks.
func (b *readBack) readSeries(s *fileStream) error {
	end := int64(b.h.toc.LabelIndices)
	if err := s.skipTo(int64(b.h.toc.Series)); err != nil {
		return err
	}
	for {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		off := (s.pos + seriesAlign - 1) / seriesAlign * seriesAlign
		if off >= end {
			return nil
		}
		if err := s.skipTo(off); err != nil {
			return err
		}
		content, err := s.next(seriesFraming)
		if err == nil {
			err = b.readEntry(content, uint32(off/seriesAlign))
		}
		if err != nil {
			return fmt.Errorf("series at byte %d of the index: %w", off, err)
		}
	}
}

// readEntry reads a series.
func (b *readBack) readEntry(content []byte, ref uint32) error {
	c := cursor{b: content}
	b.refs, b.chks = b.refs[:0], b.chks[:0]
	b.owed += posting(0, ref)
	for k := c.uvarint(); k > 0 && !c.bad; k-- {
		name, value := c.uvarint(), c.uvarint()
		if n := uint64(len(b.hashes)); name >= n || value >= n {
			return fmt.Errorf("%w: symbols %d and %d of %d", ErrCorrupt, name, value, n)
		}
		b.refs = append(b.refs, uint32(name), uint32(value))
		b.owed += posting(labelHash(b.hashes[name], b.hashes[value]), ref)
	}
	var chk placedChunk
	for k, first := c.uvarint(), true; k > 0 && !c.bad; k, first = k-1, false {
		chk.next(&c, first)
		if err := b.readChunk(&chk); err != nil {
			return err
		}
		b.chks = append(b.chks, chk)
	}
	if c.bad || len(b.chks) == 0 {
		return fmt.Errorf("%w: it ends too early", ErrCorrupt)
	}
	b.stats.NumSeries++
	b.stats.NumChunks += uint64(len(b.chks))
	b.series.addSeries(b.refs, b.chks)
	return nil
}

// readChunk passes over a chunk, which must be the next one of the files.
func (b *readBack) readChunk(c *placedChunk) error {
	if b.chunks == nil || b.chunks.pos == b.chunks.end {
		if err := b.nextChunks(); err != nil {
			return err
		}
	}
	s := b.chunks
	if want := chunks.ChunkRef(chunks.NewBlockChunkRef(uint64(b.file-1), uint64(s.pos))); c.ref != want {
		return fmt.Errorf("%w: it has a chunk at %#x, but the next one is at %#x", ErrCorrupt, c.ref, want)
	}
	head, err := s.buf.Peek(int(min(maxFrame, s.end-s.pos)))
	if err != nil {
		return s.failed(err)
	}
	n, ok := chunkFraming.length(head)
	k := uvarintLen(head)
	if !ok || n > s.end-s.pos || len(head) < k+3 {
		return fmt.Errorf("%w: chunk at %#x has length %d, only %d bytes are left", ErrCorrupt, c.ref, n, s.end-s.pos)
	}
	e := chunkenc.Encoding(head[k])
	if c.samples, err = samplesIn(e, head[k+1:]); err != nil {
		return err
	}
	c.size = n
	b.stats.NumSamples += uint64(c.samples)
	if isHistogram(e) {
		b.stats.NumHistogramSamples += uint64(c.samples)
	} else {
		b.stats.NumFloatSamples += uint64(c.samples)
	}
	return s.skipTo(s.pos + n)
}

// nextChunks opens the next file of chunks, after what is left of the one before.
func (b *readBack) nextChunks() (err error) {
	if err := b.endFile(); err != nil {
		return err
	}
	b.file++
	if b.file >= b.r.files() {
		return fmt.Errorf("%w: it has chunks in file %d of %d", ErrCorrupt, b.file, b.r.files()-1)
	}
	if b.chunks, err = openStream(b.ctx, b.r, b.file, 0, b.r.size(b.file)); err != nil {
		return err
	}
	return b.chunks.skipTo(chunks.SegmentHeaderSize)
}

// endFile compares the bytes of the file of chunks that was read.
func (b *readBack) endFile() error {
	if b.chunks == nil {
		return nil
	}
	if b.file > len(b.want.chunks) {
		return fmt.Errorf("%w: there is a file %d of chunks, which was not written", ErrCorrupt, b.file)
	}
	err := b.end(b.chunks, b.want.chunks[b.file-1])
	b.chunks.close()
	b.chunks = nil
	return err
}

func (b *readBack) endChunks() error {
	if err := b.endFile(); err != nil {
		return err
	}
	if n := b.r.files() - 1; b.file != n || n != len(b.want.chunks) {
		return fmt.Errorf("%w: it has chunks in %d of %d files, %d were written", ErrCorrupt, b.file, n, len(b.want.chunks))
	}
	return nil
}

// readPostings compares all postings with the labels of the series.
func (b *readBack) readPostings(s *fileStream) error {
	for _, name := range b.h.sorted {
		e := b.h.names[name]
		for i := e.first; i < e.last; i++ {
			value, off := b.h.entry(i)
			var label uint64
			if name != "" || value != "" {
				label = labelHash(xxhash.Sum64String(name), xxhash.Sum64String(value))
			}
			if err := b.readList(s, off, label); err != nil {
				return fmt.Errorf("postings of %s=%q at byte %d of the index: %w", name, value, off, err)
			}
		}
	}
	if b.owed != 0 {
		return fmt.Errorf("%w: postings are not those of the series", ErrCorrupt)
	}
	return nil
}

func (b *readBack) readList(s *fileStream, off int64, label uint64) error {
	if off < s.pos {
		return fmt.Errorf("%w: they begin before those before them end", ErrCorrupt)
	}
	if err := s.skipTo(off); err != nil {
		return err
	}
	list, err := s.next(postingsFraming)
	if err != nil {
		return err
	}
	if len(list) < 4 || int64(binary.BigEndian.Uint32(list))*4 != int64(len(list)-4) {
		return fmt.Errorf("%w: %d bytes for the number of references given", ErrCorrupt, len(list))
	}
	last := int64(-1)
	for list = list[4:]; len(list) > 0; list = list[4:] {
		ref := binary.BigEndian.Uint32(list)
		if int64(ref) <= last {
			return fmt.Errorf("%w: reference %d is after %d", ErrCorrupt, ref, last)
		}
		last = int64(ref)
		b.owed -= posting(label, ref)
	}
	return nil
}

// labelHash is a hash of a label, given those of its name and its value.
func labelHash(name, value uint64) uint64 { return mix(name*0x9e3779b97f4a7c15 + value) }

// posting is a hash of a label's reference to a series, of which sums are made: any mixing that makes those of different sets differ will do.
func posting(label uint64, ref uint32) uint64 { return mix(label ^ (uint64(ref)+1)*0xff51afd7ed558ccd) }

func mix(x uint64) uint64 {
	x = (x ^ x>>33) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>29) * 0x94d049bb133111eb
	return x ^ x>>32
}
