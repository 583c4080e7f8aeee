package block

import (
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
)

// symbolUnion merges sorted strings, each once. The inputs are few: their heads are compared one by one.
type symbolUnion struct {
	its     []index.StringIter
	started bool
	cur     string
	err     error
}

func (u *symbolUnion) next() bool {
	last, started := u.cur, u.started
	u.started = true
	for i := 0; i < len(u.its); {
		it := u.its[i]
		ok := true
		if !started {
			ok = it.Next()
		}
		for ok && started && it.At() <= last {
			ok = it.Next()
		}
		if ok {
			i++
			continue
		}
		if u.err = it.Err(); u.err != nil {
			return false
		}
		u.its = append(u.its[:i:i], u.its[i+1:]...)
	}
	if len(u.its) == 0 {
		return false
	}
	u.cur = u.its[0].At()
	for _, it := range u.its[1:] {
		u.cur = min(u.cur, it.At())
	}
	return true
}

func isHistogram(e chunkenc.Encoding) bool {
	switch e {
	case chunkenc.EncHistogram, chunkenc.EncFloatHistogram, chunkenc.EncHistogramST, chunkenc.EncFloatHistogramST:
		return true
	}
	return false
}

// uvarintSize returns the number of bytes that n takes as an unsigned varint.
func uvarintSize(n uint64) int64 {
	size := int64(1)
	for ; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}

func varintSize(n int64) int64 { return uvarintSize(uint64(n)<<1 ^ uint64(n>>63)) }

// chunkSize returns what a chunk with data of n bytes takes in its file: length, encoding, data, checksum.
func chunkSize(n int) int64 { return uvarintSize(uint64(n)) + 1 + int64(n) + 4 }

// seriesSize returns the most that a series with so many labels can take in an index of so many symbols.
func seriesSize(labels, symbols int, chks []chunks.Meta) int64 {
	n := uvarintSize(uint64(labels)) + 2*int64(labels)*uvarintSize(uint64(symbols)) + uvarintSize(uint64(len(chks)))
	for i, c := range chks {
		n += uvarintSize(uint64(c.MaxTime - c.MinTime))
		if i == 0 {
			n += varintSize(c.MinTime) + uvarintSize(uint64(c.Ref))
			continue
		}
		n += uvarintSize(uint64(c.MinTime-chks[i-1].MaxTime)) + varintSize(int64(c.Ref-chks[i-1].Ref))
	}
	return uvarintSize(uint64(n)) + n + 4
}
