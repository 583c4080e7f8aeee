package block

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/tsdb/index"
)

// indexBuffer is how many bytes of an index are written at a time.
const indexBuffer = 256 << 10

// indexWriter writes an index of format 2, the same bytes as Prometheus's writer, of labels that are numbers of symbols: series are encoded
// from them, and their postings counted and sorted by them, without looking at a string. It writes from the beginning to the end.
type indexWriter struct {
	file    *os.File
	buf     []byte
	pos     int64 // in the file, with what is in buf
	sum     xxhash.Digest
	symbols []string
	toc     index.TOC
	pairs   labelPairs
	series  uint32
	entry   []byte
	largest int64  // entry of a series
	ahead   uint32 // references of series that are sorted at a time
}

// newIndexWriter begins an index with the table of its symbols, which are sorted.
func newIndexWriter(name string, symbols []string) (*indexWriter, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, fmt.Errorf("begin index: %w", err)
	}
	w := &indexWriter{file: f, symbols: symbols, pairs: newLabelPairs(len(symbols)), ahead: postingsAhead}
	w.sum.Reset()
	w.buf = binary.BigEndian.AppendUint32(w.buf, index.MagicIndex)
	w.buf = append(w.buf, index.FormatV2)
	w.pos = int64(len(w.buf))
	w.toc.Symbols = uint64(w.pos)
	if err := w.writeSymbols(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	w.toc.Series = uint64(w.pos)
	return w, nil
}

func (w *indexWriter) writeSymbols() error {
	size := int64(0)
	for _, s := range w.symbols {
		size += stringSize(s)
	}
	t, err := w.table(size, len(w.symbols))
	if err != nil {
		return fmt.Errorf("write symbols: %w", err)
	}
	for _, s := range w.symbols {
		if err := t.add(appendString(w.entry[:0], s)); err != nil {
			return err
		}
	}
	return t.end()
}

// addSeries writes the entry of a series: of its labels, as numbers of names and values in turn, and of its chunks, sorted by time.
func (w *indexWriter) addSeries(labels []uint32, chks []placedChunk) error {
	if err := w.align(seriesAlign); err != nil {
		return err
	}
	if w.pos/seriesAlign > math.MaxUint32 {
		return errors.New("the index has too many series")
	}
	b := binary.AppendUvarint(w.entry[:0], uint64(len(labels)/2))
	for i := 0; i < len(labels); i += 2 {
		b = binary.AppendUvarint(b, uint64(labels[i]))
		b = binary.AppendUvarint(b, uint64(labels[i+1]))
		w.pairs.count(labels[i], labels[i+1])
	}
	b = binary.AppendUvarint(b, uint64(len(chks)))
	for i := range chks {
		c := &chks[i]
		if i == 0 {
			b = binary.AppendVarint(b, c.mint)
		} else {
			b = binary.AppendUvarint(b, uint64(c.mint-chks[i-1].maxt))
		}
		b = binary.AppendUvarint(b, uint64(c.maxt-c.mint))
		if i == 0 {
			b = binary.AppendUvarint(b, uint64(c.ref))
		} else {
			b = binary.AppendVarint(b, int64(c.ref-chks[i-1].ref))
		}
	}
	w.entry = b
	w.series++
	begin := w.pos
	w.put(binary.AppendUvarint(w.buf, uint64(len(b))))
	w.put(append(w.buf, b...))
	w.put(binary.BigEndian.AppendUint32(w.buf, crc32.Checksum(b, castagnoli)))
	w.largest = max(w.largest, w.pos-begin)
	return w.flushFull()
}

// finish writes what comes after the series, syncs the file and closes it.
func (w *indexWriter) finish(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, w.close()) }()
	w.toc.LabelIndices, w.toc.Postings = uint64(w.pos), uint64(w.pos) // of the former there are none in this format
	if err := w.align(postingsAlign); err != nil {
		return err
	}
	w.pairs.all[0].series = w.series
	sorted := w.pairs.sorted()
	if err := w.writePostings(ctx, sorted); err != nil {
		return err
	}
	w.toc.LabelIndicesTable, w.toc.PostingsTable = uint64(w.pos), uint64(w.pos)
	if err := w.writePostingsTable(sorted); err != nil {
		return err
	}
	begin := len(w.buf)
	for _, n := range []uint64{w.toc.Symbols, w.toc.Series, w.toc.LabelIndices, w.toc.LabelIndicesTable, w.toc.Postings, w.toc.PostingsTable} {
		w.put(binary.BigEndian.AppendUint64(w.buf, n))
	}
	w.put(binary.BigEndian.AppendUint32(w.buf, crc32.Checksum(w.buf[begin:], castagnoli)))
	if err := w.flush(); err != nil {
		return err
	}
	return w.file.Sync()
}

// close closes the file. It may be called again.
func (w *indexWriter) close() error {
	if w.file == nil {
		return nil
	}
	f := w.file
	w.file = nil
	return f.Close()
}

// put takes what w.buf was extended to.
func (w *indexWriter) put(longer []byte) {
	w.pos += int64(len(longer) - len(w.buf))
	w.buf = longer
}

func (w *indexWriter) align(n int64) error {
	for w.pos%n != 0 {
		w.put(append(w.buf, 0))
	}
	return w.flushFull()
}

func (w *indexWriter) flushFull() error {
	if len(w.buf) < indexBuffer {
		return nil
	}
	return w.flush()
}

func (w *indexWriter) flush() error {
	_, _ = w.sum.Write(w.buf) // never fails
	_, err := w.file.Write(w.buf)
	w.buf = w.buf[:0]
	if err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	return nil
}

// indexTable is a section of strings: symbols, or the offsets of postings. It has its length, the number of entries, these, and a checksum.
type indexTable struct {
	w   *indexWriter
	crc uint32
}

// table begins one with entries of so many bytes in all.
func (w *indexWriter) table(size int64, entries int) (*indexTable, error) {
	if size+4 > math.MaxUint32 {
		return nil, fmt.Errorf("%d bytes are too many for a table of the index", size)
	}
	w.put(binary.BigEndian.AppendUint32(w.buf, uint32(size+4)))
	t := &indexTable{w: w}
	return t, t.add(binary.BigEndian.AppendUint32(w.entry[:0], uint32(entries)))
}

func (t *indexTable) add(entry []byte) error {
	t.w.entry = entry
	t.crc = crc32.Update(t.crc, castagnoli, entry)
	t.w.put(append(t.w.buf, entry...))
	return t.w.flushFull()
}

func (t *indexTable) end() error {
	t.w.put(binary.BigEndian.AppendUint32(t.w.buf, t.crc))
	return t.w.flushFull()
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func stringSize(s string) int64 { return uvarintSize(uint64(len(s))) + int64(len(s)) }

// uvarintSize returns the number of bytes that n takes as an unsigned varint.
func uvarintSize(n uint64) int64 {
	size := int64(1)
	for ; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}
