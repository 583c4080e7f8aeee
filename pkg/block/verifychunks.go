package block

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// checkSegments checks the first bytes of all chunk files.
func (v *verifier) checkSegments() error {
	for file := 1; file < v.r.files(); file++ {
		name := v.r.names[file]
		if v.r.size(file) < chunks.SegmentHeaderSize {
			if err := v.find(name, 0, "file has %d bytes only", v.r.size(file)); err != nil {
				return err
			}
			continue
		}
		b, err := v.r.loadOnce(v.ctx, file, span{0, chunks.SegmentHeaderSize})
		if err != nil {
			return err
		}
		if binary.BigEndian.Uint32(b) != chunks.MagicChunks || b[4] != 1 {
			if err := v.find(name, 0, "file does not begin as chunks of version 1 do: %x", b); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkChunk reads a chunk and its samples.
func (v *verifier) checkChunk(c chunks.Meta) error {
	segment, off := unpackRef(c.Ref)
	file := segment + 1
	if file >= int64(v.r.files()) {
		return v.find(IndexFilename, -1, "reference to chunk segment %d of %d", segment, v.r.files()-1)
	}
	name := v.r.names[file]
	b, err := v.readChunk(int(file), off)
	if err != nil {
		return v.judge(name, off, err)
	}
	if problem := v.checkSamples(c, b); problem != "" {
		return v.find(name, off, "%s", problem)
	}
	return nil
}

func (v *verifier) count(chk chunkenc.Chunk, samples int) {
	v.stats.NumSamples += uint64(samples)
	if isHistogram(chk.Encoding()) {
		v.stats.NumHistogramSamples += uint64(samples)
	} else {
		v.stats.NumFloatSamples += uint64(samples)
	}
}

// readChunk returns encoding and data of the chunk at off, from the stream of its file: chunks lie in the order of the series.
func (v *verifier) readChunk(file int, off int64) (_ []byte, err error) {
	size := v.r.size(file)
	if off < chunks.SegmentHeaderSize || off > size-minFrame {
		return nil, fmt.Errorf("%w: no chunk can be there in a file of %d bytes", ErrCorrupt, size)
	}
	s := v.segs[int64(file)]
	if s == nil {
		if s, err = openStream(v.ctx, v.r, file, off, size); err != nil {
			return nil, err
		}
	}
	s, err = s.at(off)
	v.segs[int64(file)] = s
	if err != nil {
		return nil, err
	}
	return s.next(chunkFraming)
}

// checkSamples decodes a chunk and says what is wrong with it. A decoder may panic on what the checksum did not catch.
func (v *verifier) checkSamples(c chunks.Meta, b []byte) (problem string) {
	defer func() {
		if r := recover(); r != nil {
			problem = fmt.Sprintf("chunk cannot be decoded: %v", r)
		}
	}()
	chk, err := chunkenc.FromData(chunkenc.Encoding(b[0]), b[1:])
	if err != nil {
		return err.Error()
	}
	n, last := 0, int64(0)
	it := chk.Iterator(nil)
	for it.Next() != chunkenc.ValNone {
		t := it.AtT()
		switch {
		case n == 0 && t != c.MinTime:
			return fmt.Sprintf("first sample is at %d, the index says %d", t, c.MinTime)
		case n > 0 && t <= last:
			return fmt.Sprintf("sample %d at %d is not after the one before it at %d", n, t, last)
		}
		n, last = n+1, t
	}
	switch {
	case it.Err() != nil:
		return fmt.Sprintf("sample %d: %v", n, it.Err())
	case n != chk.NumSamples() || n == 0:
		return fmt.Sprintf("chunk has %d samples, its header says %d", n, chk.NumSamples())
	case last != c.MaxTime:
		return fmt.Sprintf("last sample is at %d, the index says %d", last, c.MaxTime)
	}
	v.count(chk, n)
	return ""
}

// fileStream reads a part of a file from its beginning to its end.
type fileStream struct {
	ctx    context.Context
	r      *bucketReader
	file   int
	body   io.Closer
	buf    *bufio.Reader
	sum    xxhash.Digest // of what was read into buf
	pos    int64
	end    int64
	item   []byte
	broken bool // the length of an item cannot be right: where the next one is, is not known
}

// openStream begins to read bytes [off, end) of a file.
func openStream(ctx context.Context, r *bucketReader, file int, off, end int64) (*fileStream, error) {
	s := &fileStream{ctx: ctx, r: r, file: file, pos: off, end: end}
	if off >= end {
		return s, nil
	}
	name := path.Join(r.id.String(), r.names[file])
	body, err := r.bkt.GetRange(ctx, name, off, end-off)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, bucketError(r.bkt, err))
	}
	s.body, s.buf = body, bufio.NewReaderSize(io.TeeReader(body, &s.sum), 1<<20)
	s.sum.Reset()
	return s, nil
}

func (s *fileStream) close() {
	if s.body != nil {
		s.body.Close()
	}
}

// at moves to off; backwards by a new request.
func (s *fileStream) at(off int64) (*fileStream, error) {
	if off >= s.pos && !s.broken {
		return s, s.skipTo(off)
	}
	next, err := openStream(s.ctx, s.r, s.file, off, s.end)
	if err != nil {
		return s, err
	}
	s.close()
	return next, nil
}

func (s *fileStream) skipTo(off int64) error {
	off = min(off, s.end)
	if off <= s.pos {
		return nil
	}
	n, err := s.buf.Discard(int(off - s.pos))
	s.pos += int64(n)
	return s.failed(err)
}

// failed adds context to an error of the bucket.
func (s *fileStream) failed(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %s of block %s at byte %d: %w", s.r.names[s.file], s.r.id, s.pos, err)
}

// next returns the content of the item at the current position, until the next call.
func (s *fileStream) next(f framing) ([]byte, error) {
	if s.end-s.pos < minFrame {
		s.broken = true
		return nil, fmt.Errorf("%w: only %d bytes are left", ErrCorrupt, s.end-s.pos)
	}
	head, err := s.buf.Peek(int(min(maxFrame, s.end-s.pos)))
	if err != nil {
		return nil, s.failed(err)
	}
	n, ok := f.length(head)
	if !ok || n > s.end-s.pos {
		s.broken = true
		return nil, fmt.Errorf("%w: item has length %d, only %d bytes are left", ErrCorrupt, n, s.end-s.pos)
	}
	if int64(cap(s.item)) < n {
		s.item = make([]byte, n)
	}
	s.item = s.item[:n]
	got, err := io.ReadFull(s.buf, s.item)
	s.pos += int64(got)
	if err != nil {
		return nil, s.failed(err)
	}
	return f.content(s.item)
}
