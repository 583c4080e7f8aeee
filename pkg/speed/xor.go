package speed

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// xorWriter writes a chunk of Prometheus's XOR encoding, to the byte as chunkenc.XORChunk does, but as a value inside the
// series, without interfaces or pointers. Its bytes, but for the two of the header, are a chain of blocks.
type xorWriter struct {
	t           int64
	v           uint64 // Bits of the last value.
	tDelta      uint64
	first, last uint32 // Blocks; 0 if no chunk is open.
	n           uint16
	blocks      uint8 // Length of the chain.
	pos         uint8 // End of the data in the last block.
	free        uint8 // Unused bits in the last byte.
	leading     uint8 // Of the last window of changed bits; noWindow if there is none.
	trailing    uint8
}

const (
	xorHeader = 2 // Number of samples, big endian.
	noWindow  = 0xff
)

// append adds a sample, whose time is after the last one's. It returns by how many bytes the pool grew.
func (x *xorWriter) append(b *blocks, t int64, v float64) int {
	used := b.used
	vb := math.Float64bits(v)
	switch x.n {
	case 0:
		x.pos, x.free, x.leading, x.trailing, x.tDelta = blockSize, 0, noWindow, 0, 0
		x.uvarint(b, uint64(t)<<1^uint64(t>>63))
		x.put(b, vb, 64)
	case 1:
		x.tDelta = uint64(t - x.t)
		x.uvarint(b, x.tDelta)
		x.value(b, vb)
	default:
		delta := uint64(t - x.t)
		x.timestamp(b, int64(delta-x.tDelta))
		x.tDelta = delta
		x.value(b, vb)
	}
	x.t, x.v = t, vb
	x.n++
	return int(b.used-used) * blockSize
}

func (x *xorWriter) uvarint(b *blocks, u uint64) {
	for ; u >= 0x80; u >>= 7 {
		x.put(b, u&0x7f|0x80, 8)
	}
	x.put(b, u, 8)
}

// timestamp writes the change of the distance between samples.
func (x *xorWriter) timestamp(b *blocks, dod int64) {
	switch {
	case dod == 0:
		x.put(b, 0, 1)
	case fits(dod, 14):
		x.put(b, 0b10<<14|uint64(dod)&(1<<14-1), 16)
	case fits(dod, 17):
		x.put(b, 0b110<<17|uint64(dod)&(1<<17-1), 20)
	case fits(dod, 20):
		x.put(b, 0b1110<<20|uint64(dod)&(1<<20-1), 24)
	default:
		x.put(b, 0b1111, 4)
		x.put(b, uint64(dod), 64)
	}
}

// fits is the format's notion of a number that n bits can hold.
func fits(d int64, n uint) bool {
	return -(1<<(n-1)-1) <= d && d <= 1<<(n-1)
}

// value writes the bits in which a value differs from the one before.
func (x *xorWriter) value(b *blocks, vb uint64) {
	diff := vb ^ x.v
	if diff == 0 {
		x.put(b, 0, 1)
		return
	}
	leading := uint8(min(bits.LeadingZeros64(diff), 31))
	trailing := uint8(bits.TrailingZeros64(diff))
	if x.leading != noWindow && leading >= x.leading && trailing >= x.trailing {
		x.put(b, 0b10, 2)
		x.put(b, diff>>x.trailing, 64-x.leading-x.trailing)
		return
	}
	x.leading, x.trailing = leading, trailing
	width := 64 - leading - trailing
	x.put(b, 0b11<<11|uint64(leading)<<6|uint64(width)&0x3f, 13)
	x.put(b, diff>>trailing, width)
}

// put writes the n lowest bits of u, of which higher ones must not be set where n < 64.
func (x *xorWriter) put(b *blocks, u uint64, n uint8) {
	u <<= 64 - n
	if x.free > 0 {
		b.at(x.last)[x.pos-1] |= byte(u >> (64 - x.free))
		if n <= x.free {
			x.free -= n
			return
		}
		u <<= x.free
		n -= x.free
	}
	size := (n + 7) / 8
	x.free = 8*size - n
	if x.pos <= blockSize-8 { // What is behind the data may be anything.
		binary.BigEndian.PutUint64(b.at(x.last)[x.pos:], u)
		x.pos += size
		return
	}
	for range size {
		if x.pos == blockSize {
			x.extend(b)
		}
		b.at(x.last)[x.pos] = byte(u >> 56)
		x.pos++
		u <<= 8
	}
}

// extend adds a block to the chain.
func (x *xorWriter) extend(b *blocks) {
	ref := b.take()
	if x.first == 0 {
		x.first = ref
	} else {
		setNext(b.at(x.last), ref)
	}
	x.last = ref
	x.blocks++
	x.pos = blockNext
}

// size is the number of bytes of the chunk.
func (x *xorWriter) size() int {
	return xorHeader + (int(x.blocks)-1)*blockData + int(x.pos) - blockNext
}

// bytes appends the chunk to dst.
func (x *xorWriter) bytes(b *blocks, dst []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, x.n)
	for ref := x.first; ref != x.last; {
		line := b.at(ref)
		dst = append(dst, line[blockNext:]...)
		ref = next(line)
	}
	return append(dst, b.at(x.last)[blockNext:x.pos]...)
}

// single returns a chunk of the last sample alone.
func (x *xorWriter) single() []byte {
	out := make([]byte, xorHeader, xorHeader+binary.MaxVarintLen64+8)
	binary.BigEndian.PutUint16(out, 1)
	out = binary.AppendVarint(out, x.t)
	return binary.BigEndian.AppendUint64(out, x.v)
}

// close ends the chunk and gives its blocks back.
func (x *xorWriter) close(b *blocks) {
	b.give(x.first, x.last)
	x.first, x.last, x.blocks, x.n = 0, 0, 0, 0
}
