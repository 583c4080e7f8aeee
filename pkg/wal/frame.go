package wal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math"
)

// A frame: marker 4 | length 4 | attempt 2 | sequence number 6 | CRC-32C of the record 4 | CRC-32C of these 20 bytes 4 | record.
// Integers are big-endian.
const (
	frameHeaderSize = 24
	maxSeq          = 1<<48 - 1
	maxFramePayload = math.MaxInt32 - frameHeaderSize // fits an int on 32 bit
)

// marker begins every frame. It is not valid UTF-8, has no zero byte and does not overlap with itself.
var marker = [4]byte{0xf1, 0x4d, 0x9b, 0xe7}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the CRC-32C of the log's id followed by b.
func checksum(id uint64, b []byte) uint32 {
	var seed [8]byte
	binary.BigEndian.PutUint64(seed[:], id)
	return crc32.Update(crc32.Checksum(seed[:], castagnoli), castagnoli, b)
}

type frameHeader struct {
	length  int64
	attempt uint16
	seq     uint64
	crc     uint32
}

// sealFrame fills the frame header at the start of frame, which holds the record behind it.
func sealFrame(id uint64, attempt uint16, seq uint64, frame []byte) {
	record := frame[frameHeaderSize:]
	copy(frame, marker[:])
	binary.BigEndian.PutUint32(frame[4:], uint32(len(record)))
	binary.BigEndian.PutUint64(frame[8:], uint64(attempt)<<48|seq&maxSeq)
	binary.BigEndian.PutUint32(frame[16:], checksum(id, record))
	binary.BigEndian.PutUint32(frame[20:], checksum(id, frame[:20]))
}

// parseFrameHeader reads a frame header; ok is false if b does not begin with one.
func parseFrameHeader(id uint64, b []byte) (h frameHeader, ok bool) {
	if len(b) < frameHeaderSize || !bytes.Equal(b[:4], marker[:]) ||
		binary.BigEndian.Uint32(b[20:]) != checksum(id, b[:20]) {
		return frameHeader{}, false
	}
	return frameHeader{
		length:  int64(binary.BigEndian.Uint32(b[4:])),
		attempt: binary.BigEndian.Uint16(b[8:]),
		seq:     binary.BigEndian.Uint64(b[8:]) & maxSeq,
		crc:     binary.BigEndian.Uint32(b[16:]),
	}, true
}
