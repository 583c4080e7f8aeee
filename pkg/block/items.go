package block

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// item is something in a file whose length is known only when its beginning is read.
type item struct {
	off   int64
	guess int64 // how many bytes to read at first
}

// framing finds the length of an item, all told, from its first bytes; ok is false if there are too few of them.
type framing func(b []byte) (n int64, ok bool)

// maxFrame is the number of bytes that a framing needs at most.
const maxFrame = binary.MaxVarintLen64

// maxItem bounds series entries and chunks, far above what there is, so that a damaged length does not take all memory.
const maxItem = 64 << 20

// items is a number of loaded items. Released, it must not be used any more.
type items struct {
	first, second *view
	at            []item // guess is the length now
	late          []bool // in second
}

// loadItems reads items of a file, sorted by offset: in one go where the guesses are good, in two otherwise.
func loadItems(ctx context.Context, r rangeReader, file int, at []item, frame framing) (*items, error) {
	size := r.size(file)
	l := &items{at: at, late: make([]bool, len(at))}
	spans := make([]span, len(at))
	for i, it := range at {
		if it.off < 0 || it.off >= size {
			return nil, fmt.Errorf("%w: reference to byte %d of a file of %d", ErrCorrupt, it.off, size)
		}
		spans[i] = span{it.off, min(max(it.guess, maxFrame), size-it.off)}
	}
	var err error
	if l.first, err = r.load(ctx, file, spans); err != nil {
		return nil, err
	}
	spans = spans[:0]
	for i, it := range at {
		b := l.first.from(it.off)
		n, ok := frame(b)
		if !ok || n <= 0 || n > size-it.off {
			l.release()
			return nil, fmt.Errorf("%w: item at byte %d of a file of %d has length %d", ErrCorrupt, it.off, size, n)
		}
		at[i].guess = n
		if n > int64(len(b)) {
			l.late[i] = true
			spans = append(spans, span{it.off, n})
		}
	}
	if len(spans) == 0 {
		return l, nil
	}
	if l.second, err = r.load(ctx, file, spans); err != nil {
		l.release()
		return nil, err
	}
	return l, nil
}

// bytes returns item i, framing and checksum included.
func (l *items) bytes(i int) []byte {
	v := l.first
	if l.late[i] {
		v = l.second
	}
	return v.from(l.at[i].off)[:l.at[i].guess:l.at[i].guess]
}

func (l *items) release() {
	l.first.release()
	l.second.release()
}

// frameSeries is the framing of series entries: length, content, checksum.
func frameSeries(b []byte) (int64, bool) { return frameUvarint(b, crc32.Size) }

// frameChunk is the framing of chunks: length, encoding, data, checksum.
func frameChunk(b []byte) (int64, bool) { return frameUvarint(b, 1+crc32.Size) }

func frameUvarint(b []byte, extra int64) (int64, bool) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > maxItem {
		return 0, false
	}
	return int64(k) + int64(n) + extra, true
}

// framePostings is the framing of postings: length, content, checksum.
func framePostings(b []byte) (int64, bool) {
	if len(b) < 4 {
		return 0, false
	}
	return 4 + int64(binary.BigEndian.Uint32(b)) + crc32.Size, true
}

// checksummed splits off the checksum at the end of b and compares it with that of what is before it, head bytes excepted.
func checksummed(b []byte, head int) ([]byte, error) {
	if len(b) < head+crc32.Size {
		return nil, fmt.Errorf("%w: %d bytes only", ErrCorrupt, len(b))
	}
	content, sum := b[head:len(b)-crc32.Size], b[len(b)-crc32.Size:]
	if got, want := crc32.Checksum(content, castagnoli), binary.BigEndian.Uint32(sum); got != want {
		return nil, fmt.Errorf("%w: checksum is %08x, the file says %08x", ErrCorrupt, got, want)
	}
	return content, nil
}
