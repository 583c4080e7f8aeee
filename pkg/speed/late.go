package speed

import (
	"cmp"
	"math"
	"slices"
	"unsafe"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/millrace/millrace/pkg/merge"
)

// maxLate is the number of late samples of a series that are kept unsorted.
const maxLate = 64

// lateSample is a float, unless h is set.
type lateSample struct {
	t, st int64
	v     float64
	h     *lateHistogram
}

// lateHistogram holds one of the two. It is a copy of our own and never changed.
type lateHistogram struct {
	h  *histogram.Histogram
	fh *histogram.FloatHistogram
}

const (
	lateSampleBytes = int(unsafe.Sizeof(lateSample{}))
	lateDataBytes   = int(unsafe.Sizeof(lateData{}))
)

// lateData is what a series received out of order.
type lateData struct {
	chunks []chunkRef   // In the order in which they were made, each sorted; they may overlap.
	buf    []lateSample // In the order of arrival.
	// The range of buf.
	mint, maxt int64
	histograms bool // There are or were some.
	// atLast says that there is a late sample with the timestamp of the series' last in-order sample: then the latter is
	// no longer what counts, and a repetition of it must not be dropped.
	atLast bool
}

// add puts a sample into the buffer and returns by how many bytes that grew.
func (l *lateData) add(s lateSample) int {
	if len(l.buf) == 0 {
		l.mint, l.maxt = math.MaxInt64, math.MinInt64
	}
	before := cap(l.buf)
	if len(l.buf) == before {
		grown := make([]lateSample, len(l.buf), min(max(4, 2*before), maxLate))
		copy(grown, l.buf)
		l.buf = grown
	}
	l.buf = append(l.buf, s)
	l.histograms = l.histograms || s.h != nil
	l.mint, l.maxt = min(l.mint, s.t), max(l.maxt, s.t)
	return (cap(l.buf) - before) * lateSampleBytes
}

// settle sorts late samples in place and drops those that a later one replaces.
func settle(buf []lateSample) []lateSample {
	slices.SortStableFunc(buf, func(a, b lateSample) int { return cmp.Compare(a.t, b.t) })
	out := buf[:0]
	for i, s := range buf {
		if i+1 < len(buf) && buf[i+1].t == s.t {
			continue
		}
		out = append(out, s)
	}
	return out
}

// lateIterator iterates over settled samples. Their histograms' hints say nothing of their neighbours, which are others than where they came from.
type lateIterator struct {
	samples []lateSample
	i       int
}

func (it *lateIterator) Next() chunkenc.ValueType {
	it.i++
	return it.valueType()
}

func (it *lateIterator) Seek(t int64) chunkenc.ValueType {
	it.i = max(it.i, 0)
	for it.i < len(it.samples) && it.samples[it.i].t < t {
		it.i++
	}
	return it.valueType()
}

func (it *lateIterator) valueType() chunkenc.ValueType {
	switch {
	case it.i >= len(it.samples):
		it.i = len(it.samples)
		return chunkenc.ValNone
	case it.samples[it.i].h == nil:
		return chunkenc.ValFloat
	case it.samples[it.i].h.h != nil:
		return chunkenc.ValHistogram
	}
	return chunkenc.ValFloatHistogram
}

func (it *lateIterator) At() (int64, float64) { return it.samples[it.i].t, it.samples[it.i].v }
func (it *lateIterator) AtT() int64           { return it.samples[it.i].t }
func (it *lateIterator) AtST() int64          { return it.samples[it.i].st }
func (*lateIterator) Err() error              { return nil }

// AtHistogram returns a copy, since readers may change what they get.
func (it *lateIterator) AtHistogram(dst *histogram.Histogram) (int64, *histogram.Histogram) {
	s := it.samples[it.i]
	if dst == nil {
		dst = &histogram.Histogram{}
	}
	s.h.h.CopyTo(dst)
	if !isGauge(dst.CounterResetHint) {
		dst.CounterResetHint = histogram.UnknownCounterReset
	}
	return s.t, dst
}

func (it *lateIterator) AtFloatHistogram(dst *histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	s := it.samples[it.i]
	if dst == nil {
		dst = &histogram.FloatHistogram{}
	}
	if s.h.fh != nil {
		s.h.fh.CopyTo(dst)
	} else {
		dst = s.h.h.ToFloat(dst)
	}
	if !isGauge(dst.CounterResetHint) {
		dst.CounterResetHint = histogram.UnknownCounterReset
	}
	return s.t, dst
}

// encodeLate encodes settled samples, handing each finished chunk to emit.
func encodeLate(buf []lateSample, startTimestamps bool, emit func(chunks.Meta)) error {
	enc := merge.NewEncoder(merge.EncodeOptions{StartTimestamps: startTimestamps})
	for _, s := range buf {
		var (
			meta chunks.Meta
			cut  bool
			err  error
		)
		switch {
		case s.h == nil:
			meta, cut, err = enc.Float(s.st, s.t, s.v)
		case s.h.h != nil:
			meta, cut, err = enc.Histogram(s.st, s.t, s.h.h)
		default:
			meta, cut, err = enc.FloatHistogram(s.st, s.t, s.h.fh)
		}
		if err != nil {
			return err
		}
		if cut {
			emit(meta)
		}
	}
	if meta, ok := enc.Flush(); ok {
		emit(meta)
	}
	return nil
}
