package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	headerName    = "header"
	headerMagic   = "MRWALHDR"
	headerVersion = 1
	// magic 8 | version 4 | length 4 | log id 8 | the owner's bytes | CRC-32C of all before 4.
	headerPrefix  = 24
	headerTrailer = 4

	segmentSuffix = ".wal"
	segmentMagic  = "MRWALSG1"
	// magic 8 | number 8 | log id 8 | position 8 | sequence number of the first record 8 | reserved 4 | CRC-32C of all before 4.
	segmentHeaderSize = 48

	maxPosition = 1 << 60 // no log gets there; sums of positions do not overflow

	tmpSuffix    = ".tmp"
	createPrefix = ".tmp-create-"
	removePrefix = ".tmp-remove-"
)

func encodeHeader(id uint64, owner []byte) []byte {
	b := make([]byte, 0, headerPrefix+len(owner)+headerTrailer)
	b = append(b, headerMagic...)
	b = binary.BigEndian.AppendUint32(b, headerVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(owner)))
	b = binary.BigEndian.AppendUint64(b, id)
	b = append(b, owner...)
	return binary.BigEndian.AppendUint32(b, checksum(0, b))
}

// decodeHeader returns the log's id and the owner's bytes. dir is for errors.
func decodeHeader(dir string, b []byte) (id uint64, owner []byte, err error) {
	corrupt := func(reason string) error { return &CorruptHeaderError{Dir: dir, Reason: reason} }
	switch {
	case len(b) < headerPrefix+headerTrailer:
		return 0, nil, corrupt(fmt.Sprintf("%d bytes are too few", len(b)))
	case string(b[:8]) != headerMagic:
		return 0, nil, corrupt("it does not begin with the magic number")
	}
	sum := len(b) - headerTrailer
	if binary.BigEndian.Uint32(b[sum:]) != checksum(0, b[:sum]) {
		return 0, nil, corrupt("checksum mismatch")
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != headerVersion {
		return 0, nil, &UnsupportedVersionError{Dir: dir, Version: v, Max: headerVersion}
	}
	owner = b[headerPrefix:sum]
	if int64(binary.BigEndian.Uint32(b[12:])) != int64(len(owner)) {
		return 0, nil, corrupt("wrong length")
	}
	return binary.BigEndian.Uint64(b[16:]), owner, nil
}

// readHeader reads the header file of a log. A damaged or missing one is a CorruptHeaderError; a missing folder is not.
func readHeader(fsys FS, dir string) (id uint64, owner []byte, err error) {
	b, err := readSmall(fsys, filepath.Join(dir, headerName), headerPrefix+MaxHeaderSize+headerTrailer)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, serr := fsys.Stat(dir); serr != nil {
			return 0, nil, fmt.Errorf("read header of write-ahead log %s: %w", dir, serr)
		}
		return 0, nil, &CorruptHeaderError{Dir: dir, Reason: "the file is missing"}
	case errors.Is(err, errTooLarge):
		return 0, nil, &CorruptHeaderError{Dir: dir, Reason: "the file is too large"}
	case err != nil:
		return 0, nil, fmt.Errorf("read header of write-ahead log %s: %w", dir, err)
	}
	return decodeHeader(dir, b)
}

var errTooLarge = errors.New("file is too large")

// readSmall reads a whole file of at most limit bytes.
func readSmall(fsys FS, name string, limit int64) (b []byte, err error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, errTooLarge
	}
	return readRange(f, 0, info.Size())
}

// readRange reads n bytes at off; the caller has checked n.
func readRange(r io.ReaderAt, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	if m, err := r.ReadAt(b, off); m < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

type segmentHeader struct {
	number uint64
	id     uint64 // of the log
	start  int64  // position of the first frame: bytes of good frames in the segments before
	seq    uint64 // sequence number of the first record
}

func (h segmentHeader) encode() []byte {
	b := make([]byte, 0, segmentHeaderSize)
	b = append(b, segmentMagic...)
	b = binary.BigEndian.AppendUint64(b, h.number)
	b = binary.BigEndian.AppendUint64(b, h.id)
	b = binary.BigEndian.AppendUint64(b, uint64(h.start))
	b = binary.BigEndian.AppendUint64(b, h.seq)
	b = binary.BigEndian.AppendUint32(b, 0)
	return binary.BigEndian.AppendUint32(b, checksum(0, b))
}

// parseSegmentHeader reads a segment header; ok is false if b does not begin with one.
func parseSegmentHeader(b []byte) (h segmentHeader, ok bool) {
	const sum = segmentHeaderSize - 4
	if len(b) < segmentHeaderSize || string(b[:8]) != segmentMagic ||
		binary.BigEndian.Uint32(b[sum:]) != checksum(0, b[:sum]) {
		return segmentHeader{}, false
	}
	h = segmentHeader{
		number: binary.BigEndian.Uint64(b[8:]),
		id:     binary.BigEndian.Uint64(b[16:]),
		start:  int64(binary.BigEndian.Uint64(b[24:])),
		seq:    binary.BigEndian.Uint64(b[32:]),
	}
	return h, h.start >= 0 && h.start <= maxPosition && h.seq <= maxSeq
}

func segmentName(number uint64) string {
	return fmt.Sprintf("%08d%s", number, segmentSuffix)
}

// parseSegmentName is the inverse of segmentName; ok is false for every other name.
func parseSegmentName(name string) (number uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, err == nil && segmentName(number) == name
}
