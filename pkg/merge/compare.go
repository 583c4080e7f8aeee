package merge

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// ErrDiffers says that merged chunks do not hold what their inputs do.
var ErrDiffers = errors.New("merged samples differ from their inputs")

// Comparer checks what Chunks made of series against the series, by another way: chunks that are an input's byte for byte, and
// meet no other, are not decoded; of all others the samples are compared one by one. The zero value is ready; it is for one
// goroutine, and keeps buffers from call to call.
type Comparer struct {
	in    []member
	its   chunks.Iterator
	it    chunkenc.Iterator
	outIt chunkenc.Iterator
	want  []reading
	run   []reading
	got   []reading
	// hists are the histograms of them all, so that readings, mostly of floats, have no pointers.
	hists []hist
}

// reading is a decoded sample of any type, and the input that it is from.
type reading struct {
	t, st int64
	f     float64
	hist  int32 // which of the histograms
	input int32
	vt    chunkenc.ValueType
}

// hist is a histogram of one of the types.
type hist struct {
	h  *histogram.Histogram
	fh *histogram.FloatHistogram
}

// Compare checks that out are sorted chunks that do not overlap, with exactly the samples of series that lie in [mint, maxt], the
// later input's where several have one at the same time. The error is ErrDiffers, or that of an input.
func (c *Comparer) Compare(series []storage.ChunkSeries, mint, maxt int64, out []chunks.Meta, o EncodeOptions) error {
	if err := c.collect(series, mint, maxt); err != nil {
		return err
	}
	in := c.in
	for len(in)+len(out) > 0 {
		nIn, nOut := region(in, out)
		if err := c.compareRegion(in[:nIn], out[:nOut], mint, maxt, o); err != nil {
			return err
		}
		in, out = in[nIn:], out[nOut:]
	}
	return nil
}

// collect gathers the inputs' chunks in order of their start.
func (c *Comparer) collect(series []storage.ChunkSeries, mint, maxt int64) error {
	c.in = c.in[:0]
	sorted := true
	for i, s := range series {
		c.its = s.Iterator(c.its)
		for c.its.Next() {
			m := c.its.At()
			if m.MaxTime < mint || m.MinTime > maxt {
				continue
			}
			if n := len(c.in); n > 0 && m.MinTime < c.in[n-1].meta.MinTime {
				sorted = false
			}
			c.in = append(c.in, member{input: i, meta: m})
		}
		if err := c.its.Err(); err != nil {
			return err
		}
	}
	if !sorted {
		slices.SortStableFunc(c.in, func(a, b member) int { return cmp.Compare(a.meta.MinTime, b.meta.MinTime) })
	}
	return nil
}

// region returns how many of the first chunks of both are connected by overlaps.
func region(in []member, out []chunks.Meta) (nIn, nOut int) {
	end := int64(math.MaxInt64)
	if len(in) > 0 {
		end = in[0].meta.MinTime
	}
	if len(out) > 0 {
		end = min(end, out[0].MinTime)
	}
	for {
		switch {
		case nIn < len(in) && in[nIn].meta.MinTime <= end:
			end = max(end, in[nIn].meta.MaxTime)
			nIn++
		case nOut < len(out) && out[nOut].MinTime <= end:
			end = max(end, out[nOut].MaxTime)
			nOut++
		default:
			return nIn, nOut
		}
	}
}

func (c *Comparer) compareRegion(in []member, out []chunks.Meta, mint, maxt int64, o EncodeOptions) error {
	for i, m := range out {
		if m.MinTime > m.MaxTime || m.MinTime < mint || m.MaxTime > maxt || i > 0 && m.MinTime <= out[i-1].MaxTime {
			return fmt.Errorf("%w: chunk from %d to %d is out of place", ErrDiffers, m.MinTime, m.MaxTime)
		}
	}
	if len(out) == 1 && !slices.ContainsFunc(in, func(n member) bool { return !copied(n.meta, out[0]) }) && len(in) > 0 {
		return nil
	}
	if len(out) == 1 && c.follow(in, mint, maxt, out[0]) {
		return nil
	}
	if err := c.expect(in, mint, maxt); err != nil {
		return err
	}
	n := 0
	for _, m := range out {
		var err error
		if c.got, err = c.decode(c.got[:0], m, 0); err != nil {
			return err
		}
		for i := range c.got {
			switch got := &c.got[i]; {
			case i == 0 && got.t != m.MinTime || got.t > m.MaxTime:
				return fmt.Errorf("%w: chunk from %d to %d has a sample at %d", ErrDiffers, m.MinTime, m.MaxTime, got.t)
			case n == len(c.want):
				return fmt.Errorf("%w: no input has the sample at %d", ErrDiffers, got.t)
			case !c.equal(&c.want[n], got, o.StartTimestamps):
				return fmt.Errorf("%w: the sample at %d is not the one at %d of the inputs", ErrDiffers, got.t, c.want[n].t)
			}
			n++
		}
		if n == 0 || c.want[n-1].t != m.MaxTime {
			return fmt.Errorf("%w: chunk from %d to %d does not end there", ErrDiffers, m.MinTime, m.MaxTime)
		}
	}
	if n < len(c.want) {
		return fmt.Errorf("%w: the sample at %d is missing", ErrDiffers, c.want[n].t)
	}
	return nil
}

// follow says whether a chunk of floats has the samples of chunks that follow one another. Where it does not, they may agree in another way.
func (c *Comparer) follow(in []member, mint, maxt int64, out chunks.Meta) bool {
	if !ofFloats(out) {
		return false
	}
	c.outIt = out.Chunk.Iterator(c.outIt)
	n, last := 0, int64(math.MinInt64)
	for _, m := range in {
		if !ofFloats(m.meta) || m.meta.MinTime < mint || m.meta.MaxTime > maxt {
			return false
		}
		c.it = m.meta.Chunk.Iterator(c.it)
		for ; c.it.Next() != chunkenc.ValNone; n++ {
			if c.outIt.Next() == chunkenc.ValNone {
				return false
			}
			t, v := c.it.At()
			gotT, got := c.outIt.At()
			if t != gotT || math.Float64bits(v) != math.Float64bits(got) || t <= last && n > 0 || n == 0 && t != out.MinTime {
				return false
			}
			last = t
		}
		if c.it.Err() != nil {
			return false
		}
	}
	return n > 0 && last == out.MaxTime && c.outIt.Next() == chunkenc.ValNone && c.outIt.Err() == nil
}

// copied says whether out is in's chunk. Of a histogram's, the header may have lost what it said of counter resets.
func copied(in, out chunks.Meta) bool {
	if in.MinTime != out.MinTime || in.MaxTime != out.MaxTime || in.Chunk.Encoding() != out.Chunk.Encoding() {
		return false
	}
	a, b := in.Chunk.Bytes(), out.Chunk.Bytes()
	if len(a) != len(b) {
		return false
	}
	if &a[0] == &b[0] || bytes.Equal(a, b) {
		return true
	}
	i, ok := resetHeader(in.Chunk.Encoding())
	return ok && b[i]&chunkenc.CounterResetHeaderMask == 0 && a[i]&^chunkenc.CounterResetHeaderMask == b[i] &&
		bytes.Equal(a[:i], b[:i]) && bytes.Equal(a[i+1:], b[i+1:])
}

// expect decodes the inputs' samples in range and keeps those that win.
func (c *Comparer) expect(in []member, mint, maxt int64) error {
	c.want, c.hists = c.want[:0], c.hists[:0]
	for _, n := range in {
		begin := len(c.want)
		var err error
		if c.want, err = c.decode(c.want, n.meta, n.input); err != nil {
			return err
		}
		if n.meta.MinTime < mint || n.meta.MaxTime > maxt {
			inRange := slices.DeleteFunc(c.want[begin:], func(s reading) bool { return s.t < mint || s.t > maxt })
			c.want = c.want[:begin+len(inRange)]
		}
		c.settle(begin)
	}
	kept := c.want[:0]
	for i := range c.want {
		if i+1 == len(c.want) || c.want[i+1].t != c.want[i].t {
			kept = append(kept, c.want[i])
		}
	}
	c.want = kept
	return nil
}

// settle puts the samples of a chunk, which are those from begin on, into their order among those of the chunks before it. Of one input's
// samples at the same time, which should not be, the one of the chunk that starts later comes later, and so wins.
func (c *Comparer) settle(begin int) {
	order := func(a, b *reading) int { return cmp.Or(cmp.Compare(a.t, b.t), int(a.input-b.input)) }
	if begin == 0 || begin == len(c.want) || order(&c.want[begin-1], &c.want[begin]) <= 0 {
		return
	}
	c.run = append(c.run[:0], c.want[begin:]...)
	old, run := begin-1, len(c.run)-1
	for to := len(c.want) - 1; run >= 0; to-- {
		if old >= 0 && order(&c.want[old], &c.run[run]) > 0 {
			c.want[to] = c.want[old]
			old--
		} else {
			c.want[to] = c.run[run]
			run--
		}
	}
}

// decode appends the samples of a chunk of an input.
func (c *Comparer) decode(dst []reading, m chunks.Meta, input int) ([]reading, error) {
	c.it = m.Chunk.Iterator(c.it)
	if m.Chunk.Encoding() == chunkenc.EncXOR {
		for c.it.Next() != chunkenc.ValNone {
			t, v := c.it.At()
			dst = append(dst, reading{t: t, f: v, vt: chunkenc.ValFloat, input: int32(input)})
		}
		return dst, c.it.Err()
	}
	for vt := c.it.Next(); vt != chunkenc.ValNone; vt = c.it.Next() {
		s := reading{vt: vt, st: c.it.AtST(), input: int32(input), hist: int32(len(c.hists))}
		switch vt {
		case chunkenc.ValFloat:
			s.t, s.f = c.it.At()
		case chunkenc.ValHistogram:
			var h hist
			s.t, h.h = c.it.AtHistogram(nil)
			c.hists = append(c.hists, h)
		case chunkenc.ValFloatHistogram:
			var h hist
			s.t, h.fh = c.it.AtFloatHistogram(nil)
			c.hists = append(c.hists, h)
		}
		dst = append(dst, s)
	}
	return dst, c.it.Err()
}

// equal compares all but what a sample says of the one before it. Histograms may have empty buckets more or less.
func (c *Comparer) equal(want, got *reading, withST bool) bool {
	if want.t != got.t || want.vt != got.vt || withST && want.st != got.st {
		return false
	}
	switch want.vt {
	case chunkenc.ValHistogram:
		a, b := c.hists[want.hist].h, c.hists[got.hist].h
		return alike(a.Sum, b.Sum, a.CounterResetHint, b.CounterResetHint, func() bool { return a.Copy().Compact(0).Equals(b.Copy().Compact(0)) })
	case chunkenc.ValFloatHistogram:
		a, b := c.hists[want.hist].fh, c.hists[got.hist].fh
		return alike(a.Sum, b.Sum, a.CounterResetHint, b.CounterResetHint, func() bool { return a.Copy().Compact(0).Equals(b.Copy().Compact(0)) })
	}
	return math.Float64bits(want.f) == math.Float64bits(got.f)
}

// alike compares what is said of two histograms, and then their buckets. Of a stale marker, nothing but the sum counts.
func alike(sumA, sumB float64, hintA, hintB histogram.CounterResetHint, buckets func() bool) bool {
	if value.IsStaleNaN(sumA) || value.IsStaleNaN(sumB) {
		return value.IsStaleNaN(sumA) && value.IsStaleNaN(sumB)
	}
	return (hintA == histogram.GaugeType) == (hintB == histogram.GaugeType) && buckets()
}
