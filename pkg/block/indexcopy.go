package block

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
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

// writeCopy writes a copy to a file, in one step. data gives the bytes that the copy holds, one after the other.
func writeCopy(name string, info copyInfo, data io.Reader) (err error) {
	tmp := name + tmpSuffix
	f, err := os.Create(tmp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(f.Close()), ignoreMissing(os.Remove(tmp)))
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
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// indexCopy is a mapped copy. It is safe for concurrent use up to close.
type indexCopy struct {
	copyInfo

	file *fileutil.MmapFile
	sums []byte
	good []atomic.Bool // units whose checksums are right
	bad  atomic.Bool   // one was wrong
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
	at := s.off
	switch {
	case s.end() <= c.start:
	case s.off >= c.end:
		at -= c.end - c.start
	case !c.whole():
		return nil, false
	}
	if s.n > 0 && !c.check(at/copyUnit, (at+s.n-1)/copyUnit) {
		return nil, false
	}
	return c.file.Bytes()[at : at+s.n : at+s.n], true
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

// view returns spans of the index; nil if the copy does not hold all of them.
func (c *indexCopy) view(ctx context.Context, spans []span) *view {
	for _, s := range spans {
		if _, ok := c.bytes(s); !ok {
			return nil
		}
	}
	data := c.file.Bytes()[:c.dataSize()]
	if c.whole() {
		return &view{ctx: ctx, runs: []run{{data: data}}}
	}
	return &view{ctx: ctx, runs: []run{{data: data[:c.start]}, {off: c.end, data: data[c.start:]}}}
}
