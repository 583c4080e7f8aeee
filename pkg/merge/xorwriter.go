package merge

import (
	"encoding/binary"
	"math/bits"
)

// xorWriter writes a chunk of the XOR encoding, to the byte as chunkenc.XORChunk does. It can also go on with bits of another chunk.
type xorWriter struct {
	data              []byte
	bits              uint64 // that are not in data yet, the first one highest
	pending           uint8  // how many, fewer than 64
	n                 uint16
	leading, trailing uint8 // leading is noWindow before the first window.
	t, delta          int64
	v                 uint64
}

// noWindow is in the place of the leading zeros of a window of changed bits, if there was none yet.
const noWindow = 0xff

func (w *xorWriter) reset() {
	*w = xorWriter{data: append(w.data[:0], make([]byte, xorHeader)...), leading: noWindow}
}

// chunk returns the bytes of the chunk, to which nothing can be appended any more. They are good until the next reset.
func (w *xorWriter) chunk() []byte {
	end := len(w.data) + int(w.pending+7)/8
	w.data = binary.BigEndian.AppendUint64(w.data, w.bits)[:end]
	binary.BigEndian.PutUint16(w.data, w.n)
	return w.data
}

// append writes a sample.
func (w *xorWriter) append(t int64, v uint64) {
	first := w.n == 0
	w.time(t)
	if first {
		w.put(v, 64)
	} else {
		w.value(v ^ w.v)
	}
	w.v = v
}

// time writes what is before the value of a sample.
func (w *xorWriter) time(t int64) {
	delta := t - w.t
	switch w.n {
	case 0:
		delta = 0
		w.uvarint(uint64(t)<<1 ^ uint64(t>>63))
	case 1:
		w.uvarint(uint64(delta))
	default:
		w.change(delta - w.delta)
	}
	w.t, w.delta = t, delta
	w.n++
}

func (w *xorWriter) uvarint(u uint64) {
	for ; u >= 0x80; u >>= 7 {
		w.put(u&0x7f|0x80, 8)
	}
	w.put(u, 8)
}

// change writes by how much the distance between samples changes.
func (w *xorWriter) change(d int64) {
	fits := func(n uint) bool { return -(1<<(n-1)-1) <= d && d <= 1<<(n-1) }
	switch {
	case d == 0:
		w.put(0, 1)
	case fits(14):
		w.put(0b10<<14|uint64(d)&(1<<14-1), 16)
	case fits(17):
		w.put(0b110<<17|uint64(d)&(1<<17-1), 20)
	case fits(20):
		w.put(0b1110<<20|uint64(d)&(1<<20-1), 24)
	default:
		w.put(0b1111, 4)
		w.put(uint64(d), 64)
	}
}

// value writes the bits in which a value differs from the one before.
func (w *xorWriter) value(diff uint64) {
	if diff == 0 {
		w.put(0, 1)
		return
	}
	leading, trailing := uint8(min(bits.LeadingZeros64(diff), 31)), uint8(bits.TrailingZeros64(diff))
	if w.leading != noWindow && leading >= w.leading && trailing >= w.trailing {
		w.put(0b10, 2)
	} else {
		w.leading, w.trailing = leading, trailing
		w.put(0b11<<11|uint64(leading)<<6|uint64(64-leading-trailing)&0x3f, 13)
	}
	w.put(diff>>w.trailing, 64-w.leading-w.trailing)
}

// put writes the n lowest bits of u, at least one; higher ones are not set.
func (w *xorWriter) put(u uint64, n uint8) {
	free := 64 - w.pending
	if n < free {
		w.bits |= u << (free - n)
		w.pending += n
		return
	}
	w.pending = n - free
	w.data = binary.BigEndian.AppendUint64(w.data, w.bits|u>>w.pending)
	w.bits = u << (64 - w.pending)
}

// copy writes the bits from one to another of other data.
func (w *xorWriter) copy(data []byte, from, to uint) {
	for from < to {
		n := min(enough, to-from)
		w.put(peek(data, from)>>(64-n), uint8(n))
		from += n
	}
}
