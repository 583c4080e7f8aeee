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

// framing is how an item says how long it is.
type framing struct {
	// length returns the length of an item, all told, by its first bytes; ok is false if they make no sense.
	length func(b []byte) (n int64, ok bool)
	// head returns how many bytes come before what the checksum is of.
	head func(b []byte) int
}

var (
	// seriesFraming: length, content, checksum.
	seriesFraming = framing{length: func(b []byte) (int64, bool) { return uvarintFrame(b, crc32.Size) }, head: uvarintLen}
	// chunkFraming: length, encoding, data, checksum, which is of encoding and data.
	chunkFraming = framing{length: func(b []byte) (int64, bool) { return uvarintFrame(b, 1+crc32.Size) }, head: uvarintLen}
	// postingsFraming: length, content, checksum.
	postingsFraming = framing{length: postingsFrame, head: func([]byte) int { return 4 }}
)

// maxFrame is the number of bytes that a framing needs at most.
const maxFrame = binary.MaxVarintLen64

// maxItem bounds series entries and chunks, far above what there is, so that a damaged length does not take all memory.
const maxItem = 64 << 20

// items is a number of loaded items. Released, it must not be used any more.
type items struct {
	r             rangeReader
	file          int
	frame         framing
	first, second *view
	at            []item // guess is the length now
	late          []bool // in second
}

// loadItems reads items of a file, sorted by offset: in one go where the guesses are good, in two otherwise.
func loadItems(ctx context.Context, r rangeReader, file int, at []item, frame framing) (*items, error) {
	size := r.size(file)
	l := &items{r: r, file: file, frame: frame, at: at, late: make([]bool, len(at))}
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
		n, ok := frame.length(b)
		if !ok || n <= 0 || n > size-it.off {
			l.forget()
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

// content returns item i without framing and checksum. Where the checksum is wrong, the bytes are not kept in any cache, so
// that what came wrong over a network is asked for again.
func (l *items) content(i int) ([]byte, error) {
	b, err := l.frame.content(l.whole(i))
	if err != nil {
		l.forget()
	}
	return b, err
}

// whole returns item i as it is in the file.
func (l *items) whole(i int) []byte {
	v := l.first
	if l.late[i] {
		v = l.second
	}
	n := l.at[i].guess
	return v.from(l.at[i].off)[:n:n]
}

// forget drops from the cache, or the local disk, all that was loaded, and what came by the same requests: a whole answer may have been wrong.
func (l *items) forget() {
	for _, v := range []*view{l.first, l.second} {
		if v == nil || len(v.runs) == 0 {
			continue
		}
		if v.copy != nil {
			v.copy.store.refuse(v.copy, ErrCorrupt)
			continue
		}
		last := v.runs[len(v.runs)-1]
		l.r.forget(l.file, span{v.runs[0].off, last.off + int64(len(last.data)) - v.runs[0].off})
	}
}

func (l *items) release() {
	l.first.release()
	l.second.release()
}

func uvarintFrame(b []byte, extra int64) (int64, bool) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > maxItem {
		return 0, false
	}
	return int64(k) + int64(n) + extra, true
}

func uvarintLen(b []byte) int {
	_, n := binary.Uvarint(b)
	return max(n, 0)
}

func postingsFrame(b []byte) (int64, bool) {
	if len(b) < 4 {
		return 0, false
	}
	return 4 + int64(binary.BigEndian.Uint32(b)) + crc32.Size, true
}

// content returns what the checksum at the end of a whole item is of, if it is right.
func (f framing) content(b []byte) ([]byte, error) {
	head := f.head(b)
	if len(b) <= head+crc32.Size {
		// Nothing is ever empty, but zeros look like it: they are the right checksum of no bytes.
		return nil, fmt.Errorf("%w: item is empty", ErrCorrupt)
	}
	content, sum := b[head:len(b)-crc32.Size], b[len(b)-crc32.Size:]
	if got, want := crc32.Checksum(content, castagnoli), binary.BigEndian.Uint32(sum); got != want {
		return nil, fmt.Errorf("%w: checksum is %08x, the file says %08x", ErrCorrupt, got, want)
	}
	return content, nil
}
