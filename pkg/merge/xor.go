package merge

import (
	"encoding/binary"
	"errors"
	"io"
	"math"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// Samples returns an iterator over a chunk, which may be one that it returned before. It is the chunk's own but for the XOR encoding, whose samples most
// queries spend most of their time to decode: there it looks at eight bytes at a time, which nearly always hold a whole sample.
func Samples(c chunkenc.Chunk, reuse chunkenc.Iterator) chunkenc.Iterator {
	if c.Encoding() != chunkenc.EncXOR {
		return c.Iterator(reuse)
	}
	it, ok := reuse.(*xorIterator)
	if !ok {
		it = &xorIterator{}
	}
	it.reset(c.Bytes())
	return it
}

// errNoWindow is met only by who sets leading to noWindow before the first sample. Otherwise the first window is, as Prometheus has it, of all bits.
var errNoWindow = errors.New("a value's bits are in a window that was not written before")

// xorIterator iterates over the samples of an XOR chunk.
type xorIterator struct {
	data              []byte
	pos               uint // Bits of data that were read.
	read, total       uint16
	leading, trailing uint8
	t, delta          int64
	v                 uint64
	err               error
}

// xorHeader is the number of bytes before the first sample.
const xorHeader = 2

func (it *xorIterator) reset(data []byte) {
	*it = xorIterator{data: data, pos: 8 * xorHeader, total: binary.BigEndian.Uint16(data)}
}

// enough is how many bits peek returns at least.
const enough = 57

// peek returns the bits at pos, the first one highest. Behind the end of the data are zeros.
func peek(data []byte, pos uint) uint64 {
	at := pos / 8
	if at+8 <= uint(len(data)) {
		return binary.BigEndian.Uint64(data[at:]) << (pos % 8)
	}
	var rest [8]byte
	copy(rest[:], data[min(at, uint(len(data))):])
	return binary.BigEndian.Uint64(rest[:]) << (pos % 8)
}

// bits returns the next n bits, of 64 at most.
func (it *xorIterator) bits(n uint8) uint64 {
	if n <= enough {
		u := peek(it.data, it.pos) >> (64 - n)
		it.pos += uint(n)
		return u
	}
	high := peek(it.data, it.pos) >> 32
	low := peek(it.data, it.pos+32) >> (96 - n)
	it.pos += uint(n)
	return high<<(n-32) | low
}

// Next implements chunkenc.Iterator.
func (it *xorIterator) Next() chunkenc.ValueType {
	if it.err != nil || it.read == it.total {
		return chunkenc.ValNone
	}
	switch it.read {
	case 0:
		t, n := binary.Varint(it.data[it.pos/8:])
		it.skip(n)
		it.t, it.v = t, it.bits(64)
	case 1:
		delta, n := binary.Uvarint(it.data[it.pos/8:])
		it.skip(n)
		it.delta = int64(delta)
		it.t += it.delta
		it.value(peek(it.data, it.pos))
	default:
		next := peek(it.data, it.pos)
		if next>>62 != 0 {
			it.time(next)
			break
		}
		it.pos += 2 // Neither distance nor value change.
		it.t += it.delta
	}
	if it.pos > 8*uint(len(it.data)) {
		it.err = io.EOF
	}
	if it.err != nil {
		return chunkenc.ValNone
	}
	it.read++
	return chunkenc.ValFloat
}

// skip passes over a number of n bytes, which is not one if n is not positive.
func (it *xorIterator) skip(n int) {
	if n <= 0 {
		it.err = io.EOF
		return
	}
	it.pos += 8 * uint(n)
}

// time reads a sample behind the second one: how its distance to the one before differs from the distance before that, in one of five widths; then its value.
// Of the bits ahead, next, at least 57 are right.
func (it *xorIterator) time(next uint64) {
	if next>>63 == 0 {
		it.pos++
		it.t += it.delta
		it.value(next << 1)
		return
	}
	var change int64
	switch {
	case next>>62 == 0b10:
		change = it.change(next, 2, 14)
	case next>>61 == 0b110:
		change = it.change(next, 3, 17)
	case next>>60 == 0b1110:
		change = it.change(next, 4, 20)
	default:
		it.pos += 4
		change = int64(it.bits(64))
	}
	it.delta += change
	it.t += it.delta
	it.value(peek(it.data, it.pos))
}

// change reads a number of a width behind a prefix, whose upper half stands for negative ones.
func (it *xorIterator) change(next uint64, prefix, width uint) int64 {
	it.pos += prefix + width
	n := int64(next << prefix >> (64 - width))
	if n > 1<<(width-1) {
		n -= 1 << width
	}
	return n
}

// value reads a value. Of the bits ahead, next, at least 56 are right.
func (it *xorIterator) value(next uint64) {
	if next>>63 == 0 {
		it.pos++
		return
	}
	if next>>62 == 0b10 {
		it.pos += 2
		n := 64 - it.leading - it.trailing
		if n <= enough-3 {
			it.v ^= next << 2 >> (64 - n) << it.trailing
			it.pos += uint(n)
			return
		}
		if it.leading == noWindow {
			it.err = errNoWindow
			return
		}
		it.v ^= it.bits(n) << it.trailing
		return
	}
	n := uint8(next >> 51 & 0x3f)
	if n == 0 {
		n = 64
	}
	it.leading = uint8(next >> 57 & 0x1f)
	it.trailing = 64 - it.leading - n
	it.pos += 13
	it.v ^= it.bits(n) << it.trailing
}

// Seek implements chunkenc.Iterator.
func (it *xorIterator) Seek(t int64) chunkenc.ValueType {
	if it.err != nil {
		return chunkenc.ValNone
	}
	for t > it.t || it.read == 0 {
		if it.Next() == chunkenc.ValNone {
			return chunkenc.ValNone
		}
	}
	return chunkenc.ValFloat
}

// At implements chunkenc.Iterator.
func (it *xorIterator) At() (int64, float64) { return it.t, math.Float64frombits(it.v) }

// AtT implements chunkenc.Iterator.
func (it *xorIterator) AtT() int64 { return it.t }

// AtST implements chunkenc.Iterator.
func (*xorIterator) AtST() int64 { return 0 }

// Err implements chunkenc.Iterator.
func (it *xorIterator) Err() error { return it.err }

// AtHistogram implements chunkenc.Iterator.
func (*xorIterator) AtHistogram(*histogram.Histogram) (int64, *histogram.Histogram) {
	panic("a chunk of floats has no histograms")
}

// AtFloatHistogram implements chunkenc.Iterator.
func (*xorIterator) AtFloatHistogram(*histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	panic("a chunk of floats has no histograms")
}
