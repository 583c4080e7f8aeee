package speed

import (
	"math"
	"slices"
	"time"
	"unsafe"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/merge"
)

// chunkWindow is the width of the windows of event time at whose borders chunks are cut, in milliseconds, so that blocks of
// such windows take chunks as they are.
const chunkWindow = int64(2 * time.Hour / time.Millisecond)

// series is what a shard holds of one series: a cache line. It is guarded by the shard's lock.
type series struct {
	xor   xorWriter // The open chunk of floats without start timestamps; if it has no samples, more.enc may have the open chunk.
	mint  int64     // First sample of the open chunk in xor.
	lastT int64     // Last in-order sample; math.MinInt64 if there is none yet.
	more  *more     // nil until there is something.
}

// more is what a series has beyond an open chunk of floats.
type more struct {
	closed []chunkRef // In-order chunks, sorted, without overlaps.
	enc    *merge.Encoder
	late   *lateData // nil until there is something.
}

var nothingMore = &more{} // Read only.

// rest returns what there is beyond the open chunk, to be read.
func (s *series) rest() *more {
	if s.more == nil {
		return nothingMore
	}
	return s.more
}

// grow returns what there is beyond the open chunk, to be changed.
func (w *writer) grow(s *series) *more {
	if s.more == nil {
		s.more = &more{}
		w.bytes += moreBytes
	}
	return s.more
}

// Estimates in bytes.
const (
	seriesBytes  = int(unsafe.Sizeof(series{}))
	entryBytes   = int(unsafe.Sizeof(identity{})) + 24 // With its share of the registry's slots.
	moreBytes    = int(unsafe.Sizeof(more{}))
	encoderBytes = 1 << 10
	bucketBytes  = 64
)

// writer applies samples to series of one shard, whose lock its user holds for writing, and counts what it does.
type writer struct {
	sh              *shard
	startTimestamps bool
	AppendStats
	bytes      int
	registered int // Of these, what the registry takes.
	handedOver int // Of these, labels that the previous generation had.
}

// float applies a float.
func (w *writer) float(s *series, f ingest.Float) {
	if !w.startTimestamps {
		f.ST = 0
	}
	switch {
	case f.T > s.lastT:
		w.inOrderFloat(s, f)
		w.advance(s, f.T)
	case w.repeatsFloat(s, f):
		w.Duplicates++
	default:
		w.addLate(s, lateSample{t: f.T, st: f.ST, v: f.V})
	}
}

func (w *writer) advance(s *series, t int64) {
	s.lastT = t
	if s.more != nil && s.more.late != nil {
		s.more.late.atLast = false
	}
	w.Samples++
	w.see(t)
}

func (w *writer) see(t int64) {
	w.MinTime, w.MaxTime = min(w.MinTime, t), max(w.MaxTime, t)
}

func (w *writer) inOrderFloat(s *series, f ingest.Float) {
	if enc := s.rest().enc; enc != nil {
		if open, ok := enc.Open(); f.ST != 0 || (ok && open.Chunk.Encoding() == chunkenc.EncXOR2) {
			w.closeXOR(s)
			w.closed(s, w.done(enc.Float(f.ST, f.T, f.V)))
			return
		}
		w.closed(s, w.flush(enc))
	} else if f.ST != 0 {
		w.closeXOR(s)
		w.closed(s, w.done(w.openEncoder(s).Float(f.ST, f.T, f.V)))
		return
	}
	if s.xor.n > 0 && (s.xor.n >= merge.MaxFloats || f.T >= windowEnd(s.mint)) {
		w.closeXOR(s)
	}
	if s.xor.n == 0 {
		s.mint = f.T
	}
	w.bytes += s.xor.append(&w.sh.blocks, f.T, f.V)
}

// windowEnd is the next border after t.
func windowEnd(t int64) int64 {
	r := t % chunkWindow
	if r < 0 {
		r += chunkWindow
	}
	if end := t - r + chunkWindow; end > t {
		return end
	}
	return math.MaxInt64
}

// histogram applies a histogram.
func (w *writer) histogram(s *series, h ingest.Histogram) {
	if !w.startTimestamps {
		h.ST = 0
	}
	switch {
	case h.T > s.lastT:
		w.closeXOR(s)
		enc := s.rest().enc
		if enc == nil {
			enc = w.openEncoder(s)
			w.bytes += bucketBytes * buckets(h.H, h.FH)
		}
		if h.H != nil {
			w.closed(s, w.done(enc.Histogram(h.ST, h.T, h.H)))
		} else {
			w.closed(s, w.done(enc.FloatHistogram(h.ST, h.T, h.FH)))
		}
		w.advance(s, h.T)
	case w.repeatsHistogram(s, h):
		w.Duplicates++
	default:
		own := &lateHistogram{}
		if h.H != nil {
			own.h = h.H.Copy()
		} else {
			own.fh = h.FH.Copy()
		}
		w.bytes += encoderBytes/4 + 8*buckets(h.H, h.FH)
		w.addLate(s, lateSample{t: h.T, st: h.ST, h: own})
	}
}

func buckets(h *histogram.Histogram, fh *histogram.FloatHistogram) int {
	if h != nil {
		return len(h.PositiveBuckets) + len(h.NegativeBuckets)
	}
	return len(fh.PositiveBuckets) + len(fh.NegativeBuckets)
}

func (w *writer) openEncoder(s *series) *merge.Encoder {
	enc := merge.NewEncoder(merge.EncodeOptions{StartTimestamps: w.startTimestamps, Window: chunkWindow})
	w.grow(s).enc = enc
	w.bytes += encoderBytes
	return enc
}

// done is what an encoder answered: the chunk that it closed, if it did. The encoder fails on nothing that can be in a
// validated request; if it did, the sample would be counted as failed.
func (w *writer) done(meta chunks.Meta, ok bool, err error) chunks.Meta {
	if err != nil {
		w.Failed++
	}
	if !ok {
		return chunks.Meta{}
	}
	return meta
}

func (w *writer) flush(e *merge.Encoder) chunks.Meta {
	meta, _ := e.Flush()
	return meta
}

// closed stores a chunk that an encoder closed, if it has data.
func (w *writer) closed(s *series, meta chunks.Meta) {
	if meta.Chunk != nil {
		w.keep(&w.grow(s).closed, meta.Chunk.Bytes(), meta.Chunk.Encoding(), meta.MinTime, meta.MaxTime)
	}
}

func (w *writer) closeXOR(s *series) {
	if s.xor.n > 0 {
		w.sh.chunk = s.xor.bytes(&w.sh.blocks, w.sh.chunk[:0])
		w.keep(&w.grow(s).closed, w.sh.chunk, chunkenc.EncXOR, s.mint, s.lastT)
		s.xor.close(&w.sh.blocks)
	}
}

func (w *writer) keep(list *[]chunkRef, data []byte, enc chunkenc.Encoding, mint, maxt int64) {
	ref, grown := w.sh.arena.add(data, enc, mint, maxt)
	before := cap(*list)
	*list = append(*list, ref)
	w.bytes += grown + (cap(*list)-before)*chunkRefBytes
	w.chunks++
}

// repeatsFloat says whether a sample says again what the last one said, and that still counts.
func (w *writer) repeatsFloat(s *series, f ingest.Float) bool {
	if f.T != s.lastT || s.rest().lateAtLast() {
		return false
	}
	if s.xor.n > 0 {
		return f.ST == 0 && s.xor.v == math.Float64bits(f.V)
	}
	it, vt := s.last()
	if vt != chunkenc.ValFloat || it.AtST() != f.ST {
		return false
	}
	_, v := it.At()
	return math.Float64bits(v) == math.Float64bits(f.V)
}

func (w *writer) repeatsHistogram(s *series, h ingest.Histogram) bool {
	if h.T != s.lastT || s.xor.n > 0 || s.rest().lateAtLast() {
		return false
	}
	it, vt := s.last()
	if it == nil || it.AtST() != h.ST {
		return false
	}
	switch {
	case vt == chunkenc.ValHistogram && h.H != nil:
		_, last := it.AtHistogram(nil)
		return last.Equals(h.H) && isGauge(last.CounterResetHint) == isGauge(h.H.CounterResetHint)
	case vt == chunkenc.ValFloatHistogram && h.FH != nil:
		_, last := it.AtFloatHistogram(nil)
		return last.Equals(h.FH) && isGauge(last.CounterResetHint) == isGauge(h.FH.CounterResetHint)
	}
	return false
}

func isGauge(h histogram.CounterResetHint) bool { return h == histogram.GaugeType }

// last decodes the encoder's open chunk up to its last sample. Repetitions are rare enough not to keep that sample.
func (s *series) last() (chunkenc.Iterator, chunkenc.ValueType) {
	enc := s.rest().enc
	if enc == nil {
		return nil, chunkenc.ValNone
	}
	open, ok := enc.Open()
	if !ok {
		return nil, chunkenc.ValNone
	}
	it := open.Chunk.Iterator(nil)
	return it, it.Seek(open.MaxTime)
}

// addLate takes a sample that is not in order.
func (w *writer) addLate(s *series, x lateSample) {
	m := w.grow(s)
	if m.late == nil {
		m.late = &lateData{}
		w.bytes += lateDataBytes
	}
	l := m.late
	w.bytes += l.add(x)
	if x.t == s.lastT {
		l.atLast = true
	}
	w.Samples++
	w.Late++
	w.see(x.t)
	if len(l.buf) < maxLate {
		return
	}
	before := len(l.chunks)
	err := encodeLate(settle(l.buf), w.startTimestamps, func(meta chunks.Meta) {
		w.keep(&l.chunks, meta.Chunk.Bytes(), meta.Chunk.Encoding(), meta.MinTime, meta.MaxTime)
	})
	if err != nil {
		w.Failed++
	}
	w.lateChunks += len(l.chunks) - before
	clear(l.buf)
	l.buf = l.buf[:0]
}

// overlaps says whether one of the series' chunks, or its late buffer, reaches into [mint, maxt].
func (s *series) overlaps(mint, maxt int64) bool {
	if s.xor.n > 0 && s.mint <= maxt && mint <= s.lastT {
		return true
	}
	return s.more != nil && s.more.overlaps(mint, maxt)
}

func (m *more) overlaps(mint, maxt int64) bool {
	if m.enc != nil {
		if open, ok := m.enc.Open(); ok && open.MinTime <= maxt && mint <= open.MaxTime {
			return true
		}
	}
	for _, c := range slices.Backward(m.closed) { // Most queries are about the newest.
		if c.overlaps(mint, maxt) {
			return true
		}
	}
	return m.late != nil && m.late.overlaps(mint, maxt)
}

func (l *lateData) overlaps(mint, maxt int64) bool {
	if len(l.buf) > 0 && l.mint <= maxt && mint <= l.maxt {
		return true
	}
	return slices.ContainsFunc(l.chunks, func(c chunkRef) bool { return c.overlaps(mint, maxt) })
}

// lateAtLast says that what counts at the time of the last in-order sample is a late one.
func (m *more) lateAtLast() bool { return m.late != nil && m.late.atLast }
