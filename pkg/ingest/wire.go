package ingest

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// The readers below take a message and an index, and return the index behind
// what they read. A negative index is an error (see wireError). They accept what
// Prometheus's generated decoder accepts, overlong varints and field numbers of
// more than 32 bits included.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireGroup   = 3
	wireEnd     = 4
	wireFixed32 = 5
)

const (
	codeTruncated = -1 - iota
	codeVarint
	codeTag
	codeType
)

var (
	errTruncated = errors.New("a field runs past the end of its message")
	errVarint    = errors.New("a varint has more than 10 bytes")
	errTag       = errors.New("illegal field number or wire type")
	errWireType  = errors.New("a field has the wrong wire type")
)

// wireError translates a negative index.
func wireError(code int) error {
	switch code {
	case codeVarint:
		return errVarint
	case codeTag:
		return errTag
	case codeType:
		return errWireType
	}
	return errTruncated
}

func readVarint(b []byte, i int) (uint64, int) {
	if i >= 0 && i < len(b) && b[i] < 0x80 {
		return uint64(b[i]), i + 1
	}
	return readLongVarint(b, i)
}

func readLongVarint(b []byte, i int) (uint64, int) {
	if i < 0 {
		return 0, i
	}
	var v uint64
	for shift := uint(0); shift < 64; shift += 7 {
		if i >= len(b) {
			return 0, codeTruncated
		}
		c := b[i]
		i++
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v, i
		}
	}
	return 0, codeVarint
}

// readTag reads a tag (field number << 3 | wire type).
func readTag(b []byte, i int) (uint64, int) {
	if i >= 0 && i < len(b) && b[i] >= 8 && b[i] < 0x80 && b[i]&7 < wireGroup {
		return uint64(b[i]), i + 1
	}
	return readRareTag(b, i)
}

func readRareTag(b []byte, i int) (uint64, int) {
	v, i := readVarint(b, i)
	if i < 0 {
		return 0, i
	}
	num, typ := int32(v>>3), v&7
	if num <= 0 || typ == wireEnd || typ > wireFixed32 {
		return 0, codeTag
	}
	return uint64(num)<<3 | typ, i
}

// readBytes reads the length at i and returns the bounds of what it announces.
func readBytes(b []byte, i int) (start, end int) {
	n, i := readVarint(b, i)
	if i < 0 {
		return i, i
	}
	if n > uint64(len(b)-i) {
		return codeTruncated, codeTruncated
	}
	return i, i + int(n)
}

func readFixed64(b []byte, i int) (uint64, int) {
	if i < 0 || len(b)-i < 8 {
		return 0, codeTruncated
	}
	return binary.LittleEndian.Uint64(b[i:]), i + 8
}

// skipField skips the value of a field that the caller does not know. known has
// a bit for every field number that the message does know: there, the wire type
// was wrong.
func skipField(b []byte, i int, tag, known uint64) int {
	if num := tag >> 3; num < 64 && known>>num&1 == 1 {
		return codeType
	}
	return skipValue(b, i, tag&7)
}

func skipValue(b []byte, i int, typ uint64) int {
	switch typ {
	case wireVarint:
		_, i = readVarint(b, i)
		return i
	case wireFixed64:
		return skipN(b, i, 8)
	case wireFixed32:
		return skipN(b, i, 4)
	case wireBytes:
		_, i = readBytes(b, i)
		return i
	case wireGroup:
		return skipGroup(b, i)
	}
	return codeTag
}

func skipN(b []byte, i, n int) int {
	if len(b)-i < n {
		return codeTruncated
	}
	return i + n
}

// skipGroup skips to the end of a group that was opened before i. It counts the
// depth instead of recursing: nesting is the sender's choice.
func skipGroup(b []byte, i int) int {
	for depth := 1; depth > 0; {
		var t uint64
		if t, i = readVarint(b, i); i < 0 {
			return i
		}
		switch t & 7 {
		case wireGroup:
			depth++
		case wireEnd:
			depth--
		default:
			if i = skipValue(b, i, t&7); i < 0 {
				return i
			}
		}
	}
	return i
}

func zigzag64(v uint64) int64 { return int64(v>>1) ^ -int64(v&1) }

// zigzag32 drops the upper half first, as a 32-bit decoder does.
func zigzag32(v uint64) int32 { return int32(uint32(v)>>1) ^ -int32(v&1) }

func appendVarint(dst []byte, v uint64) []byte { return binary.AppendUvarint(dst, v) }

// varintLen is the length of v as a short varint.
func varintLen(v uint64) int {
	if v < 0x80 {
		return 1
	}
	return (bits.Len64(v) + 6) / 7
}
