package block

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"sync/atomic"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb/fileutil"
)

// A copy is a local file with the index of a block in a bucket, whole or without the section of series in its middle:
//
//	data       the index's bytes [0, start) and [end, size)
//	checksums  CRC-32 (Castagnoli) of every 64 KiB of data, 4 bytes each
//	trailer    of copyTrailer bytes: magic, version, ULID, tag of the block's sizes, start, end, size, and the CRC-32 of checksums and
//	           trailer up to here
//
// Numbers are big-endian. Checksums are compared when a part is first used, so that to open a copy costs next to nothing, and what is damaged is
// noticed before it is believed. Copies are not synced: one that a power failure tears is made again.
const (
	copyMagic   = 0x4d524958 // "MRIX"
	copyVersion = 1
	copyUnit    = 64 << 10
	copyTrailer = 4 + 4 + 16 + 4 + 3*8 + crc32.Size
)

// copyInfo says what a copy holds, and of which block.
type copyInfo struct {
	id         ulid.ULID
	tag        uint32
	start, end int64 // equal in the copy of a whole index
	size       int64
}

func (i copyInfo) whole() bool { return i.start == i.end }

func (i copyInfo) dataSize() int64 { return i.start + i.size - i.end }

// fileSize is the size of the copy's file.
func (i copyInfo) fileSize() int64 {
	n := i.dataSize()
	return n + (n+copyUnit-1)/copyUnit*crc32.Size + copyTrailer
}

func (i copyInfo) trailer() []byte {
	b := binary.BigEndian.AppendUint32(nil, copyMagic)
	b = binary.BigEndian.AppendUint32(b, copyVersion)
	b = append(b, i.id[:]...)
	b = binary.BigEndian.AppendUint32(b, i.tag)
	for _, n := range []int64{i.start, i.end, i.size} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return b
}

// decodeCopy returns what a copy's file says of itself, and its checksums.
func decodeCopy(b []byte) (info copyInfo, sums []byte, err error) {
	if len(b) < copyTrailer {
		return info, nil, fmt.Errorf("%w: copy of an index has %d bytes only", ErrCorrupt, len(b))
	}
	t := b[len(b)-copyTrailer:]
	if magic, version := binary.BigEndian.Uint32(t), binary.BigEndian.Uint32(t[4:]); magic != copyMagic || version != copyVersion {
		return info, nil, fmt.Errorf("%w: not a copy of an index, or of another version than %d", ErrUnusable, copyVersion)
	}
	copy(info.id[:], t[8:])
	info.tag = binary.BigEndian.Uint32(t[24:])
	info.start, info.end = int64(binary.BigEndian.Uint64(t[28:])), int64(binary.BigEndian.Uint64(t[36:]))
	info.size = int64(binary.BigEndian.Uint64(t[44:]))
	if info.start < 0 || info.end < info.start || info.size < info.end || info.size > 1<<50 || info.fileSize() != int64(len(b)) {
		return info, nil, fmt.Errorf("%w: copy of an index of %d bytes with those before %d and from %d on has %d bytes",
			ErrCorrupt, info.size, info.start, info.end, len(b))
	}
	sums = b[info.dataSize() : len(b)-copyTrailer]
	sum := crc32.Update(crc32.Checksum(sums, castagnoli), castagnoli, t[:copyTrailer-crc32.Size])
	if want := binary.BigEndian.Uint32(t[copyTrailer-crc32.Size:]); sum != want {
		return info, nil, fmt.Errorf("%w: copy of an index: checksum is %08x, the file says %08x", ErrCorrupt, sum, want)
	}
	return info, sums, nil
}

// writeCopy writes a copy to a new file, of which nothing is left if that fails. data gives the bytes that the copy holds, one after the other.
func writeCopy(name string, info copyInfo, data io.Reader) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(f.Close()), ignoreMissing(os.Remove(name)))
		}
	}()
	w := bufio.NewWriterSize(f, copyUnit)
	buf := make([]byte, min(copyUnit, info.dataSize()))
	var sums []byte
	for left := info.dataSize(); left > 0; left -= int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), left)]
		if _, err := io.ReadFull(data, buf); err != nil {
			return fmt.Errorf("read %d bytes more of the index: %w", left, err)
		}
		sums = binary.BigEndian.AppendUint32(sums, crc32.Checksum(buf, castagnoli))
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	end := append(sums, info.trailer()...)
	end = binary.BigEndian.AppendUint32(end, crc32.Checksum(end, castagnoli))
	if _, err := w.Write(end); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// indexCopy is a mapped copy. It is safe for concurrent use up to close, which the store calls when the last user is done.
type indexCopy struct {
	copyInfo

	file *fileutil.MmapFile
	sums []byte
	good []atomic.Bool // units whose checksums are right
	bad  atomic.Bool   // one was wrong

	store *IndexStore // its lock guards the following
	users int
	gone  bool // the file was removed, or another one has its name: there are no new users
}

// openCopy maps a copy.
func openCopy(name string) (*indexCopy, error) {
	f, err := fileutil.OpenMmapFile(name)
	if err != nil {
		return nil, err
	}
	info, sums, err := decodeCopy(f.Bytes())
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &indexCopy{copyInfo: info, file: f, sums: sums, good: make([]atomic.Bool, len(sums)/crc32.Size)}, nil
}

func (c *indexCopy) close() error { return c.file.Close() }

// bytes returns a part of the index; ok is false if the copy does not hold it, or holds something else in its place.
func (c *indexCopy) bytes(s span) (b []byte, ok bool) {
	r, ok := c.checked(s)
	if !ok {
		return nil, false
	}
	at := s.off - r.off
	return r.data[at : at+s.n : at+s.n], true
}

// checked returns a part of the index with what lies beside it in the same units, so that checksums are right for all of it.
func (c *indexCopy) checked(s span) (r run, ok bool) {
	part, shift := c.file.Bytes()[:c.dataSize()], int64(0) // shift is from an offset in the file to one in the index
	switch {
	case c.whole():
	case s.end() <= c.start:
		part = part[:c.start]
	case s.off >= c.end:
		shift = c.end - c.start
	default:
		return run{}, false
	}
	if s.n == 0 {
		return run{off: s.off}, true
	}
	first, last := (s.off-shift)/copyUnit, (s.end()-shift-1)/copyUnit
	if !c.check(first, last) {
		return run{}, false
	}
	from, to := first*copyUnit, min((last+1)*copyUnit, int64(len(part)))
	if shift > 0 {
		from = max(from, c.start)
	}
	return run{off: from + shift, data: part[from:to]}, true // with the capacity to be extended
}

// check compares the checksums of units that have not been looked at before.
func (c *indexCopy) check(first, last int64) bool {
	if c.bad.Load() {
		return false
	}
	for i := first; i <= last; i++ {
		if c.good[i].Load() {
			continue
		}
		unit := c.file.Bytes()[i*copyUnit : min((i+1)*copyUnit, c.dataSize())]
		if crc32.Checksum(unit, castagnoli) != binary.BigEndian.Uint32(c.sums[i*crc32.Size:]) {
			c.bad.Store(true)
			return false
		}
		c.good[i].Store(true)
	}
	return true
}

// view returns spans of the index, and nothing whose checksums were not compared; nil if the copy does not hold all of them. It takes over the
// caller's pin.
func (c *indexCopy) view(ctx context.Context, spans []span) *view {
	byOffset := func(a, b span) int { return cmp.Compare(a.off, b.off) }
	if !slices.IsSortedFunc(spans, byOffset) {
		spans = slices.SortedFunc(slices.Values(spans), byOffset)
	}
	v := &view{ctx: ctx, copy: c}
	for _, s := range spans {
		r, ok := c.checked(s)
		if !ok {
			return nil
		}
		if n := len(v.runs); n == 0 || r.off > v.runs[n-1].end() {
			v.runs = append(v.runs, r)
		} else if beyond := r.end() - v.runs[n-1].end(); beyond > 0 {
			last := &v.runs[n-1]
			last.data = last.data[:int64(len(last.data))+beyond]
		}
	}
	for i := range v.runs {
		v.runs[i].data = slices.Clip(v.runs[i].data)
	}
	return v
}

// checkSections finds out whether the copy has a header, and one that is right: without it, all queries of the block would fail.
func (c *indexCopy) checkSections() error {
	get := func(what string, from, to int64) ([]byte, error) {
		if err := checkSpans(IndexFilename, c.size, []span{{from, to - from}}); err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		b, ok := c.bytes(span{from, to - from})
		if !ok {
			return nil, fmt.Errorf("%w: the copy of the index lacks its %s", ErrCorrupt, what)
		}
		return b, nil
	}
	tail, err := get("table of contents", c.size-tocSize, c.size)
	if err != nil {
		return err
	}
	toc, err := decodeTOC(tail, c.size)
	if err != nil {
		return err
	}
	start, err := get("symbol table", 0, int64(toc.Series))
	if err != nil {
		return err
	}
	table, err := get("postings offset table", int64(toc.PostingsTable), c.size-tocSize)
	if err != nil {
		return err
	}
	if err := checkIndexStart(start); err != nil {
		return err
	}
	if _, _, err := section(start[toc.Symbols:], 1); err != nil {
		return fmt.Errorf("symbol table: %w", err)
	}
	if _, _, err := section(table, 4); err != nil {
		return fmt.Errorf("postings offset table: %w", err)
	}
	return nil
}
