package block

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// Digest is of a block as it was to be written: of its symbols and series, as they were merged, and of the bytes of its files. Write fills
// it in, ReadBack compares it with a bucket.
type Digest struct {
	index  uint64   // of the bytes of the index
	chunks []uint64 // of the bytes of each chunk file
	series uint64   // of symbols and series
}

// seriesDigest is of the symbols of a block and then its series in their order: their labels as numbers, and the places, times, and numbers of
// samples of their chunks.
type seriesDigest struct {
	hash xxhash.Digest
	buf  []byte
}

func newSeriesDigest() *seriesDigest {
	d := &seriesDigest{}
	d.hash.Reset()
	return d
}

func (d *seriesDigest) addSymbol(s string) {
	d.buf = binary.LittleEndian.AppendUint64(d.buf[:0], uint64(len(s)))
	_, _ = d.hash.Write(append(d.buf, s...)) // never fails
}

func (d *seriesDigest) addSeries(labels []uint32, chks []placedChunk) {
	b := binary.LittleEndian.AppendUint64(d.buf[:0], uint64(len(labels)))
	for _, n := range labels {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(len(chks)))
	for i := range chks {
		c := &chks[i]
		b = binary.LittleEndian.AppendUint64(b, uint64(c.mint))
		b = binary.LittleEndian.AppendUint64(b, uint64(c.maxt))
		b = binary.LittleEndian.AppendUint64(b, uint64(c.ref))
		b = binary.LittleEndian.AppendUint32(b, uint32(c.size))
		b = binary.LittleEndian.AppendUint32(b, uint32(c.samples))
	}
	_, _ = d.hash.Write(b)
	d.buf = b
}
