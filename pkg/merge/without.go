package merge

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// Interval is a range of time in milliseconds, both ends inclusive.
type Interval struct{ MinTime, MaxTime int64 }

// Covers says whether all of [mint, maxt] lies in the interval.
func (i Interval) Covers(mint, maxt int64) bool { return i.MinTime <= mint && maxt <= i.MaxTime }

// Overlaps says whether something of [mint, maxt] lies in the interval.
func (i Interval) Overlaps(mint, maxt int64) bool { return i.MinTime <= maxt && mint <= i.MaxTime }

// Union sorts intervals and joins those that touch, in place.
func Union(all []Interval) []Interval {
	slices.SortFunc(all, func(a, b Interval) int { return cmp.Compare(a.MinTime, b.MinTime) })
	out := all[:0]
	for _, i := range all {
		if n := len(out); n > 0 && (out[n-1].MaxTime == math.MaxInt64 || i.MinTime <= out[n-1].MaxTime+1) {
			out[n-1].MaxTime = max(out[n-1].MaxTime, i.MaxTime)
			continue
		}
		out = append(out, i)
	}
	return out
}

// Without yields the chunks of src without the samples in gone, which is as Union returns it. A chunk that has none in it is passed on
// untouched, one that has no others is left out unread; what is cut is encoded anew. So is a histogram chunk that follows a gap: what it says
// of its predecessor was true of a sample that is gone.
func Without(src chunks.Iterator, gone []Interval) chunks.Iterator {
	return &without{src: src, gone: gone}
}

type without struct {
	src  chunks.Iterator
	gone []Interval
	enc  chunks.Iterator // of the chunk that is encoded anew
	gap  bool            // samples before the next chunk may be gone
	cur  chunks.Meta
	err  error
}

func (w *without) At() chunks.Meta { return w.cur }
func (w *without) Err() error      { return w.err }

func (w *without) Next() bool {
	for w.err == nil {
		if w.enc != nil {
			if w.enc.Next() {
				w.cur = w.enc.At()
				return true
			}
			w.err, w.enc = w.enc.Err(), nil
			continue
		}
		if !w.src.Next() {
			w.err = w.src.Err()
			return false
		}
		w.cur = w.src.At()
		if w.passes() {
			return true
		}
	}
	return false
}

// passes says whether the current chunk is yielded as it is; if not, it is being encoded, or left out.
func (w *without) passes() bool {
	mint, maxt := w.cur.MinTime, w.cur.MaxTime
	first, _ := slices.BinarySearchFunc(w.gone, mint, func(i Interval, t int64) int { return cmp.Compare(i.MaxTime, t) })
	cut := first < len(w.gone) && w.gone[first].Overlaps(mint, maxt)
	if cut && w.gone[first].Covers(mint, maxt) {
		w.gap = true
		return false
	}
	if w.cur.Chunk == nil {
		w.err = fmt.Errorf("cut chunk at %d: %w", mint, errNoData)
		return false
	}
	if !cut && (!w.gap || valueType(w.cur.Chunk.Encoding()) == chunkenc.ValFloat) {
		w.gap = false
		return true
	}
	// Start timestamps stay where there are any.
	w.enc = Encode(&except{Iterator: w.cur.Chunk.Iterator(nil), gone: w.gone[first:], gap: w.gap}, EncodeOptions{StartTimestamps: true})
	w.gap = cut
	return false
}

// except passes over the samples in gone.
type except struct {
	chunkenc.Iterator
	gone []Interval // from the one on that ends at the current sample or later
	gap  bool       // samples right before the current one are gone
	past bool       // the current sample is not the first
}

func (e *except) Next() chunkenc.ValueType {
	if e.past {
		e.gap = false
	}
	return e.settle(e.Iterator.Next())
}

func (e *except) Seek(t int64) chunkenc.ValueType {
	e.gap = true // or so it may be
	return e.settle(e.Iterator.Seek(t))
}

func (e *except) settle(vt chunkenc.ValueType) chunkenc.ValueType {
	for ; vt != chunkenc.ValNone; vt = e.Iterator.Next() {
		t := e.AtT()
		for len(e.gone) > 0 && e.gone[0].MaxTime < t {
			e.gone = e.gone[1:]
		}
		if len(e.gone) == 0 || t < e.gone[0].MinTime {
			e.past = true
			return vt
		}
		e.gap = true
	}
	return chunkenc.ValNone
}

func (e *except) AtHistogram(h *histogram.Histogram) (int64, *histogram.Histogram) {
	t, got := e.Iterator.AtHistogram(h)
	return t, forget(got, h, e.gap)
}

func (e *except) AtFloatHistogram(fh *histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	t, got := e.Iterator.AtFloatHistogram(fh)
	return t, forgetFloat(got, fh, e.gap)
}
