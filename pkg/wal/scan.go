package wal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

const (
	readAhead = 256 << 10 // bytes read at once; replay is sequential, and records are smaller as a rule
	pageSize  = 4 << 10   // what is given up at once when the disk cannot read
	sector    = 512       // what a disk writes as a whole
)

// scanner walks over the frames in a range of a file and steps over whatever is not one.
type scanner struct {
	r    io.ReaderAt
	id   uint64 // of the log
	pos  int64  // where the next frame is looked for
	end  int64
	max  int64 // largest record
	skip bool  // pages that cannot be read are read as zeros

	attempt uint16 // of the last frame: those of earlier ones behind it were cut off

	buf []byte // the bytes of the file from off on
	off int64
}

// found is what next came upon: a damaged region, a record behind it, or both.
type found struct {
	record []byte // nil if there is none; valid until the next call
	seq    uint64 // of the record
	from   int64  // where the record's frame begins
	to     int64  // where it ends

	bad     span   // the damaged region, before the record if there is one; may be empty
	known   uint64 // one more than the highest sequence number of the damaged records whose frame header is whole
	partial bool   // the region is a frame that is longer than the file
	stale   bool   // the region begins with a frame that was cut off
}

type span struct{ from, to int64 }

func (s span) size() int64 { return s.to - s.from }

// next returns false at the end of the range. An error is one of the disk.
func (s *scanner) next() (f found, ok bool, err error) {
	if s.pos >= s.end {
		return found{}, false, nil
	}
	f.bad = span{s.pos, s.pos}
	for s.pos < s.end {
		h, ok, err := s.header()
		switch {
		case err != nil:
			return found{}, false, err
		case !ok:
			if s.pos, err = s.findMarker(s.pos + 1); err != nil {
				return found{}, false, err
			}
			continue
		}
		from, to := s.pos, s.pos+frameHeaderSize+h.length
		if h.attempt < s.attempt {
			// Its record may be overwritten in part: what is behind it begins anywhere.
			f.stale = f.stale || from == f.bad.from
			s.pos++
			continue
		}
		if to > s.end {
			if from > f.bad.from { // a region of its own: what is before it is damaged, this may be an interrupted write
				f.bad.to = from
				return f, true, nil
			}
			f.partial = true
			s.pos = s.end
			break
		}
		s.pos = to
		if h.length <= s.max {
			b, err := s.peek(from, to-from)
			if err != nil {
				return found{}, false, err
			}
			if record := b[frameHeaderSize:]; checksum(s.id, record) == h.crc {
				f.record, f.seq, f.from, f.to = record, h.seq, from, to
				f.bad.to = from
				s.attempt = h.attempt
				return f, true, nil
			}
		}
		f.known = max(f.known, h.seq+1)
	}
	f.bad.to = s.end
	return f, true, nil
}

// header reads the frame header at s.pos; ok is false if there is none.
func (s *scanner) header() (h frameHeader, ok bool, err error) {
	if s.end-s.pos < frameHeaderSize {
		return frameHeader{}, false, nil
	}
	b, err := s.peek(s.pos, frameHeaderSize)
	if err != nil {
		return frameHeader{}, false, err
	}
	h, ok = parseFrameHeader(s.id, b)
	return h, ok, nil
}

// findMarker returns the next place from pos on that looks like the beginning of a frame, or s.end.
func (s *scanner) findMarker(pos int64) (int64, error) {
	for s.end-pos >= frameHeaderSize {
		b := s.buffered(pos)
		if len(b) < frameHeaderSize {
			var err error
			if b, err = s.peek(pos, min(readAhead, s.end-pos)); err != nil {
				return 0, err
			}
		}
		if i := bytes.Index(b, marker[:]); i >= 0 {
			return pos + int64(i), nil
		}
		pos += int64(len(b) - len(marker) + 1)
	}
	return s.end, nil
}

// peek returns n bytes at pos, which lie within the range; they are valid until the next call. n is at most readAhead or a frame with a
// record of s.max bytes, so that no length in the file decides how much is allocated.
func (s *scanner) peek(pos, n int64) ([]byte, error) {
	if pos >= s.off && pos+n <= s.off+int64(len(s.buf)) {
		return s.buf[pos-s.off:][:n], nil
	}
	size := min(max(n, readAhead), s.end-pos)
	have := s.buffered(pos)
	if int64(cap(s.buf)) < size {
		s.buf = make([]byte, size)
	}
	s.buf = s.buf[:size]
	kept := copy(s.buf, have)
	s.off = pos
	if err := s.read(s.buf[kept:], pos+int64(kept)); err != nil {
		s.buf = s.buf[:0]
		return nil, err
	}
	return s.buf[:n], nil
}

// buffered returns what is there from pos on without reading.
func (s *scanner) buffered(pos int64) []byte {
	if pos < s.off || pos >= s.off+int64(len(s.buf)) {
		return nil
	}
	return s.buf[pos-s.off:]
}

func (s *scanner) read(b []byte, off int64) error {
	err := readFull(s.r, b, off)
	if err == nil || !s.skip {
		return err
	}
	for len(b) > 0 {
		n := min(int64(len(b)), pageSize-off%pageSize)
		if readFull(s.r, b[:n], off) != nil {
			clear(b[:n])
		}
		b, off = b[n:], off+n
	}
	return nil
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at offset %d: %w", len(b), off, err)
}

// unwritten tells whether the region, which reaches to the end of the file, looks like a write that a power cut interrupted: nothing but
// zeros, or sectors at its end that are.
func (s *scanner) unwritten(region span) (bool, error) {
	zeros := region.to // where the zeros at the end begin
	for zeros > region.from {
		from := max(region.from, zeros-readAhead)
		b, err := s.peek(from, zeros-from)
		if err != nil {
			return false, err
		}
		rest := int64(len(bytes.TrimRight(b, "\x00")))
		zeros = from + rest
		if rest > 0 {
			break
		}
	}
	firstSector := (zeros + sector - 1) / sector * sector
	return zeros == region.from || firstSector < region.to, nil
}
