package merge

import (
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// Sampled is a ChunkSeries that may have its samples at hand more cheaply than its chunks. Samples returns what these hold; ok is false where the
// chunks are the cheaper way.
type Sampled interface {
	Samples() (it chunkenc.Iterator, ok bool)
}

// Series merges series of the same labels, in order of precedence (later wins), into one series of samples. Each input's
// chunks are sorted by time and do not overlap. Chunks are opened as the iterator reaches them; a Seek does not open those
// that lie before its target. The samples are not limited to any range: a chunk is read whole.
func Series(series ...storage.ChunkSeries) storage.Series {
	return mergedSeries(series)
}

type mergedSeries []storage.ChunkSeries

func (s mergedSeries) Labels() labels.Labels {
	if len(s) == 0 {
		return labels.EmptyLabels()
	}
	return s[0].Labels()
}

func (s mergedSeries) Iterator(it chunkenc.Iterator) chunkenc.Iterator {
	u, ok := it.(*union)
	if !ok {
		u = &union{}
	}
	u.resize(len(s))
	for i, cs := range s {
		if x, ok := cs.(Sampled); ok {
			if it, ok := x.Samples(); ok {
				u.inputs[i].it = it
				continue
			}
		}
		c, ok := u.inputs[i].it.(*chain)
		if !ok {
			c = &chain{}
			u.inputs[i].it = c
		}
		c.reset(cs.Iterator(c.src))
	}
	u.reset()
	return u
}

// ChunkIterator returns the samples of chunks that are sorted by time and do not overlap.
func ChunkIterator(src chunks.Iterator) chunkenc.Iterator {
	c := &chain{}
	c.reset(src)
	return c
}

// chain iterates over the samples of consecutive chunks.
type chain struct {
	src  chunks.Iterator
	meta chunks.Meta
	it   chunkenc.Iterator // Of meta's chunk; kept for reuse when open is false.

	open    bool
	done    bool
	vt      chunkenc.ValueType // Of the current sample, ValNone before the first.
	t       int64
	changed bool // The previous sample is in another chunk, or not known.
	err     error
}

func (c *chain) reset(src chunks.Iterator) {
	*c = chain{src: src, it: c.it, t: math.MinInt64}
}

// openNext opens the first chunk that ends at t or later.
func (c *chain) openNext(t int64) bool {
	c.open = false
	for c.src.Next() {
		c.meta = c.src.At()
		if c.meta.MaxTime < t {
			continue
		}
		if c.meta.Chunk == nil {
			c.err = fmt.Errorf("open chunk at %d: %w", c.meta.MinTime, errNoData)
			return false
		}
		c.it = Samples(c.meta.Chunk, c.it)
		c.open = true
		return true
	}
	c.err = c.src.Err()
	return false
}

func (c *chain) end() chunkenc.ValueType {
	c.done, c.vt = true, chunkenc.ValNone
	return chunkenc.ValNone
}

// land accepts the sample at which the open chunk's iterator stands. It is false for what would go back in time, which
// can only be if the input's chunks overlap.
func (c *chain) land(vt chunkenc.ValueType, changed bool) bool {
	t := c.it.AtT()
	if t <= c.t && c.vt != chunkenc.ValNone {
		return false
	}
	c.vt, c.t, c.changed = vt, t, changed
	return true
}

func (c *chain) Next() chunkenc.ValueType {
	if c.done {
		return chunkenc.ValNone
	}
	changed := false
	for {
		if c.open {
			vt := c.it.Next()
			if vt != chunkenc.ValNone {
				if c.land(vt, changed) {
					return vt
				}
				changed = true
				continue
			}
			if c.err = c.it.Err(); c.err != nil {
				return c.end()
			}
		}
		if !c.openNext(math.MinInt64) {
			return c.end()
		}
		changed = true
	}
}

func (c *chain) Seek(t int64) chunkenc.ValueType {
	if c.done {
		return chunkenc.ValNone
	}
	if c.vt != chunkenc.ValNone && c.t >= t {
		return c.vt
	}
	for {
		if c.open && c.meta.MaxTime >= t {
			vt := c.it.Seek(t)
			for ; vt != chunkenc.ValNone; vt = c.it.Next() {
				if c.land(vt, true) {
					return vt
				}
			}
			if c.err = c.it.Err(); c.err != nil {
				return c.end()
			}
		}
		if !c.openNext(t) {
			return c.end()
		}
	}
}

func (c *chain) At() (int64, float64) { return c.it.At() }

func (c *chain) AtHistogram(h *histogram.Histogram) (int64, *histogram.Histogram) {
	t, got := c.it.AtHistogram(h)
	return t, forget(got, h, c.changed)
}

func (c *chain) AtFloatHistogram(fh *histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	t, got := c.it.AtFloatHistogram(fh)
	return t, forgetFloat(got, fh, c.changed)
}

func (c *chain) AtT() int64  { return c.t }
func (c *chain) AtST() int64 { return c.it.AtST() }
func (c *chain) Err() error  { return c.err }
