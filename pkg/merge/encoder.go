package merge

import (
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

const (
	// MaxFloats is the number of samples at which a chunk of floats is cut.
	MaxFloats = 120
	// maxHistograms bounds chunks of histograms so small that their bytes do not.
	maxHistograms = 2 * MaxFloats
)

// EncodeOptions says what encoded chunks look like. The zero value encodes what every reader of Prometheus blocks knows.
type EncodeOptions struct {
	// StartTimestamps keeps start timestamps: samples that have one go to chunks of the encodings XOR2, histogramST and
	// floathistogramST, which older readers do not know. Without it, start timestamps are dropped, and Chunks re-encodes
	// chunks of these encodings.
	StartTimestamps bool
	// Window, in milliseconds, cuts encoded chunks at multiples of it; 0 does not.
	Window int64
	// JoinBelow makes Chunks join runs of neighbouring chunks with fewer samples than this, up to MaxFloats samples
	// together; 0 does not.
	JoinBelow int
}

// Encoder turns samples of one series, given in order of time, into chunks. Floats are cut at MaxFloats samples,
// histograms by size; both where the type changes and at the window's end, histograms also where the layout changes in a way
// that the chunk cannot take up and at counter resets.
type Encoder struct {
	o EncodeOptions

	chk        chunkenc.Chunk // nil if none is open.
	app        chunkenc.Appender
	vt         chunkenc.ValueType
	n          int
	mint, maxt int64
	windowLast int64

	// Appending a histogram may change it; these are what is handed to the appender instead of the caller's.
	h  histogram.Histogram
	fh histogram.FloatHistogram
}

// NewEncoder returns an encoder without an open chunk.
func NewEncoder(o EncodeOptions) *Encoder {
	return &Encoder{o: o}
}

// Float appends a float. If that completes a chunk (which then does not hold the new sample), it is returned with true.
func (e *Encoder) Float(st, t int64, v float64) (chunks.Meta, bool, error) {
	done, ok, _, err := e.prepare(chunkenc.ValFloat, st, t)
	if err != nil {
		return chunks.Meta{}, false, err
	}
	e.app.Append(st, t, v)
	e.added(t)
	return done, ok, nil
}

// Histogram appends a histogram, which must be valid (its buckets fit its spans) and is not kept. Returns as Float does.
func (e *Encoder) Histogram(st, t int64, h *histogram.Histogram) (chunks.Meta, bool, error) {
	done, ok, prev, err := e.prepare(chunkenc.ValHistogram, st, t)
	if err != nil {
		return chunks.Meta{}, false, err
	}
	e.h = *h
	chk, recoded, app, err := e.app.AppendHistogram(prev, st, t, &e.h, false)
	if err != nil {
		return chunks.Meta{}, false, fmt.Errorf("append histogram at %d: %w", t, err)
	}
	if full, cut := e.replace(chk, recoded, app); cut {
		done, ok = full, true
	}
	e.added(t)
	return done, ok, nil
}

// FloatHistogram is Histogram for float histograms.
func (e *Encoder) FloatHistogram(st, t int64, fh *histogram.FloatHistogram) (chunks.Meta, bool, error) {
	done, ok, prev, err := e.prepare(chunkenc.ValFloatHistogram, st, t)
	if err != nil {
		return chunks.Meta{}, false, err
	}
	e.fh = *fh
	chk, recoded, app, err := e.app.AppendFloatHistogram(prev, st, t, &e.fh, false)
	if err != nil {
		return chunks.Meta{}, false, fmt.Errorf("append float histogram at %d: %w", t, err)
	}
	if full, cut := e.replace(chk, recoded, app); cut {
		done, ok = full, true
	}
	e.added(t)
	return done, ok, nil
}

// Flush closes the open chunk and returns it; false if there is none.
func (e *Encoder) Flush() (chunks.Meta, bool) {
	meta, ok := e.Open()
	e.chk, e.app, e.vt, e.n = nil, nil, chunkenc.ValNone, 0
	return meta, ok
}

// Open returns the open chunk, to which the encoder will go on appending; false if there is none. Its bytes must be copied
// before the next sample is appended if they are to be kept.
func (e *Encoder) Open() (chunks.Meta, bool) {
	if e.chk == nil || e.n == 0 {
		return chunks.Meta{}, false
	}
	return chunks.Meta{Chunk: e.chk, MinTime: e.mint, MaxTime: e.maxt}, true
}

// prepare opens a chunk that can take the sample. It returns the chunk that was cut for that, and the appender before it,
// by which histogram chunks find out whether they begin with a counter reset.
func (e *Encoder) prepare(vt chunkenc.ValueType, st, t int64) (done chunks.Meta, ok bool, prev chunkenc.Appender, err error) {
	if e.chk != nil && !e.mustCut(vt, st, t) {
		return done, false, nil, nil
	}
	if e.vt == vt {
		prev = e.app
	}
	done, ok = e.Flush()
	withST := e.o.StartTimestamps && st != 0
	if e.chk, err = vt.NewChunk(withST, withST); err != nil {
		return done, false, nil, fmt.Errorf("open chunk for %s: %w", vt, err)
	}
	if e.app, err = e.chk.Appender(); err != nil {
		return done, false, nil, fmt.Errorf("open chunk for %s: %w", vt, err)
	}
	e.vt, e.mint = vt, t
	if e.o.Window > 0 {
		e.windowLast = windowLast(t, e.o.Window)
	}
	return done, ok, prev, nil
}

func (e *Encoder) mustCut(vt chunkenc.ValueType, st, t int64) bool {
	switch {
	case vt != e.vt:
		return true
	case e.o.Window > 0 && t > e.windowLast:
		return true
	case e.o.StartTimestamps && st != 0 && !hasST(e.chk.Encoding()):
		return true
	case vt == chunkenc.ValFloat:
		return e.n >= MaxFloats
	}
	return e.n >= maxHistograms ||
		(e.n >= chunkenc.MinSamplesPerHistogramChunk && len(e.chk.Bytes()) >= chunkenc.TargetBytesPerHistogramChunk)
}

// replace takes over the chunk that the appender went on with; it returns the previous one if that is complete.
func (e *Encoder) replace(chk chunkenc.Chunk, recoded bool, app chunkenc.Appender) (full chunks.Meta, cut bool) {
	e.app = app
	if chk == nil {
		return chunks.Meta{}, false
	}
	if !recoded {
		full, cut = e.Open()
		e.n = 0
	}
	e.chk = chk
	return full, cut
}

func (e *Encoder) added(t int64) {
	if e.n == 0 {
		e.mint = t
	}
	e.maxt = t
	e.n++
}

// hasST says whether chunks of an encoding hold start timestamps.
func hasST(e chunkenc.Encoding) bool {
	return e == chunkenc.EncXOR2 || e == chunkenc.EncHistogramST || e == chunkenc.EncFloatHistogramST
}

// valueType is the type of the samples of an encoding.
func valueType(e chunkenc.Encoding) chunkenc.ValueType {
	switch e {
	case chunkenc.EncXOR, chunkenc.EncXOR2:
		return chunkenc.ValFloat
	case chunkenc.EncHistogram, chunkenc.EncHistogramST:
		return chunkenc.ValHistogram
	case chunkenc.EncFloatHistogram, chunkenc.EncFloatHistogramST:
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValNone
}

// windowLast is the last time in t's window of w.
func windowLast(t, w int64) int64 {
	if last := windowStart(t, w) + (w - 1); last >= t {
		return last
	}
	return math.MaxInt64 // The range of time ends before the window.
}

// windowStart is the multiple of w at or before t.
func windowStart(t, w int64) int64 {
	r := t % w
	if r < 0 {
		r += w
	}
	return t - r
}

// Encode encodes the samples of an iterator to chunks, as the caller asks for them.
func Encode(it chunkenc.Iterator, o EncodeOptions) chunks.Iterator {
	return &encoding{src: it, enc: Encoder{o: o}}
}

type encoding struct {
	src  chunkenc.Iterator
	enc  Encoder
	h    histogram.Histogram // Read buffers; a source may also return histograms of its own.
	fh   histogram.FloatHistogram
	cur  chunks.Meta
	done bool
	err  error
}

func (e *encoding) At() chunks.Meta { return e.cur }
func (e *encoding) Err() error      { return e.err }

func (e *encoding) Next() bool {
	for !e.done {
		vt := e.src.Next()
		if vt == chunkenc.ValNone {
			e.done = true
			if e.err = e.src.Err(); e.err != nil {
				return false
			}
			return e.emit(e.enc.Flush())
		}
		meta, ok, err := e.append(vt)
		if err != nil {
			e.done, e.err = true, err
			return false
		}
		if e.emit(meta, ok) {
			return true
		}
	}
	return false
}

func (e *encoding) emit(meta chunks.Meta, ok bool) bool {
	if ok {
		meta.Chunk.Compact()
		e.cur = meta
	}
	return ok
}

func (e *encoding) append(vt chunkenc.ValueType) (chunks.Meta, bool, error) {
	switch vt {
	case chunkenc.ValFloat:
		t, v := e.src.At()
		return e.enc.Float(e.src.AtST(), t, v)
	case chunkenc.ValHistogram:
		t, h := e.src.AtHistogram(&e.h)
		return e.enc.Histogram(e.src.AtST(), t, h)
	case chunkenc.ValFloatHistogram:
		t, fh := e.src.AtFloatHistogram(&e.fh)
		return e.enc.FloatHistogram(e.src.AtST(), t, fh)
	}
	return chunks.Meta{}, false, fmt.Errorf("encode sample at %d: unknown type %s", e.src.AtT(), vt)
}
