package speed

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// xorWriter writes a chunk of Prometheus's XOR encoding, to the byte as chunkenc.XORChunk does, but as a value inside the
// series: without interfaces, objects of its own or allocations other than the buffer's growth.
type xorWriter struct {
	buf      []byte // Header (number of samples, big endian) and bits; empty if no chunk is open.
	t        int64
	v        uint64 // Bits of the last value.
	tDelta   uint64
	n        uint16
	free     uint8 // Unused bits in the last byte.
	leading  uint8 // Of the last window of changed bits; noWindow if there is none.
	trailing uint8
}

const (
	xorHeader = 2
	noWindow  = 0xff
	// maxXORSample is the most bytes by which a sample makes a chunk longer: a varint of 10 bytes or a timestamp of 68 bits,
	// and a value of at most 77 bits.
	maxXORSample = 20
)

// bufferSizes are the capacities that a buffer passes through: size classes of the allocator, in steps of a third or less, so that
// little is left unused.
var bufferSizes = [...]int{48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024, 1280, 1536, 2048, 3072}

// reserve makes room for a sample and returns by how many bytes the buffer grew.
func (x *xorWriter) reserve() int {
	need := len(x.buf) + maxXORSample
	if need <= cap(x.buf) {
		return 0
	}
	size := need
	for _, s := range bufferSizes {
		if s >= need {
			size = s
			break
		}
	}
	grown := make([]byte, len(x.buf), size)
	copy(grown, x.buf)
	delta := size - cap(x.buf)
	x.buf = grown
	return delta
}

// append adds a sample, whose time is after the last one's. It returns by how many bytes the buffer grew.
func (x *xorWriter) append(t int64, v float64) int {
	if x.n == 0 {
		x.buf = x.buf[:0]
	}
	grown := x.reserve()
	vb := math.Float64bits(v)
	switch x.n {
	case 0:
		x.buf = append(x.buf, 0, 0)
		x.buf = binary.AppendVarint(x.buf, t)
		x.buf = binary.BigEndian.AppendUint64(x.buf, vb)
		x.free, x.leading, x.trailing, x.tDelta = 0, noWindow, 0, 0
	case 1:
		x.tDelta = uint64(t - x.t)
		x.buf = binary.AppendUvarint(x.buf, x.tDelta)
		x.value(vb)
	default:
		delta := uint64(t - x.t)
		x.timestamp(int64(delta - x.tDelta))
		x.tDelta = delta
		x.value(vb)
	}
	x.t, x.v = t, vb
	x.n++
	binary.BigEndian.PutUint16(x.buf, x.n)
	return grown
}

// timestamp writes the change of the distance between samples.
func (x *xorWriter) timestamp(dod int64) {
	switch {
	case dod == 0:
		x.put(0, 1)
	case fits(dod, 14):
		x.put(0b10<<14|uint64(dod)&(1<<14-1), 16)
	case fits(dod, 17):
		x.put(0b110<<17|uint64(dod)&(1<<17-1), 20)
	case fits(dod, 20):
		x.put(0b1110<<20|uint64(dod)&(1<<20-1), 24)
	default:
		x.put(0b1111, 4)
		x.put(uint64(dod), 64)
	}
}

// fits is the format's notion of a number that n bits can hold.
func fits(d int64, n uint) bool {
	return -(1<<(n-1)-1) <= d && d <= 1<<(n-1)
}

// value writes the bits in which a value differs from the one before.
func (x *xorWriter) value(vb uint64) {
	diff := vb ^ x.v
	if diff == 0 {
		x.put(0, 1)
		return
	}
	leading := uint8(min(bits.LeadingZeros64(diff), 31))
	trailing := uint8(bits.TrailingZeros64(diff))
	if x.leading != noWindow && leading >= x.leading && trailing >= x.trailing {
		x.put(0b10, 2)
		x.put(diff>>x.trailing, 64-x.leading-x.trailing)
		return
	}
	x.leading, x.trailing = leading, trailing
	width := 64 - leading - trailing
	x.put(0b11<<11|uint64(leading)<<6|uint64(width)&0x3f, 13)
	x.put(diff>>trailing, width)
}

// put writes the n lowest bits of u, of which higher ones must not be set where n < 64.
func (x *xorWriter) put(u uint64, n uint8) {
	u <<= 64 - n
	if x.free > 0 {
		x.buf[len(x.buf)-1] |= byte(u >> (64 - x.free))
		if n <= x.free {
			x.free -= n
			return
		}
		u <<= x.free
		n -= x.free
	}
	for n > 8 {
		x.buf = append(x.buf, byte(u>>56))
		u <<= 8
		n -= 8
	}
	x.buf = append(x.buf, byte(u>>56))
	x.free = 8 - n
}

// close ends the chunk; the buffer is kept for the next one. The bytes are valid until then.
func (x *xorWriter) close() []byte {
	x.n = 0
	return x.buf
}
