package merge

import (
	"errors"
	"math"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// Iterators returns the union by timestamp of its inputs; at equal timestamps the later input wins. Each input is sorted
// by time without duplicates inside. An error of any input ends the iteration and is reported by Err.
func Iterators(its []chunkenc.Iterator) chunkenc.Iterator {
	return IteratorsReuse(nil, its)
}

// IteratorsReuse is Iterators, taking the memory of an iterator that one of this package's functions returned earlier.
// Any other iterator, or nil, is ignored.
func IteratorsReuse(it chunkenc.Iterator, its []chunkenc.Iterator) chunkenc.Iterator {
	if len(its) == 1 {
		return its[0]
	}
	u, ok := it.(*union)
	if !ok {
		u = &union{}
	}
	u.resize(len(its))
	for i, in := range its {
		u.inputs[i].it = in
	}
	u.reset()
	return u
}

// unionInput is one input of a union and where it stands.
type unionInput struct {
	it chunkenc.Iterator
	t  int64
	vt chunkenc.ValueType
}

// union merges iterators by means of a heap of their current timestamps. All inputs in the heap stand at a sample; those
// that stand at the union's own timestamp are moved on by the next call of Next, so that the losers of a tie are dropped.
type union struct {
	inputs []unionInput
	heap   []int // Indexes of inputs; the top is the earliest, and of those the last input.

	cur     int   // The input that gave the current sample, -1 if there is none.
	t       int64 // Its timestamp.
	started bool
	// changed says that the sample before the current one came from another input, or is not known.
	changed bool
	err     error
}

func (u *union) resize(n int) {
	if cap(u.inputs) < n {
		grown := make([]unionInput, n)
		copy(grown, u.inputs[:cap(u.inputs)])
		u.inputs = grown
	}
	u.inputs = u.inputs[:n]
}

func (u *union) reset() {
	u.heap = u.heap[:0]
	u.cur, u.t = -1, math.MinInt64
	u.started, u.changed = false, true
	u.err = nil
}

// before is the order of the heap.
func (u *union) before(a, b int) bool {
	ta, tb := u.inputs[a].t, u.inputs[b].t
	return ta < tb || (ta == tb && a > b)
}

func (u *union) siftDown(i int) {
	for {
		least := 2*i + 1
		if least >= len(u.heap) {
			return
		}
		if r := least + 1; r < len(u.heap) && u.before(u.heap[r], u.heap[least]) {
			least = r
		}
		if !u.before(u.heap[least], u.heap[i]) {
			return
		}
		u.heap[i], u.heap[least] = u.heap[least], u.heap[i]
		i = least
	}
}

// set notes where input i stands after it was moved. It returns false when the input has ended.
func (u *union) set(i int, vt chunkenc.ValueType) bool {
	in := &u.inputs[i]
	in.vt = vt
	if vt == chunkenc.ValNone {
		if err := in.it.Err(); err != nil && u.err == nil {
			u.err = err
		}
		return false
	}
	in.t = in.it.AtT()
	return true
}

// fill builds the heap from all inputs by moving each with step.
func (u *union) fill(step func(chunkenc.Iterator) chunkenc.ValueType) {
	u.started = true
	for i := range u.inputs {
		if u.set(i, step(u.inputs[i].it)) {
			u.heap = append(u.heap, i)
		}
	}
	for i := len(u.heap)/2 - 1; i >= 0; i-- {
		u.siftDown(i)
	}
}

// moveTop puts the heap in order after its top was moved; ok is false when the top has ended.
func (u *union) moveTop(ok bool) {
	if !ok {
		last := len(u.heap) - 1
		u.heap[0] = u.heap[last]
		u.heap = u.heap[:last]
	}
	u.siftDown(0)
}

// land makes the top of the heap the current sample.
func (u *union) land(changed bool) chunkenc.ValueType {
	if u.err != nil || len(u.heap) == 0 {
		u.heap = u.heap[:0]
		u.cur = -1
		return chunkenc.ValNone
	}
	top := u.heap[0]
	u.changed = changed || top != u.cur
	u.cur, u.t = top, u.inputs[top].t
	return u.inputs[top].vt
}

func (u *union) Next() chunkenc.ValueType {
	if !u.started {
		u.fill(chunkenc.Iterator.Next)
		return u.land(true)
	}
	for len(u.heap) > 0 && u.inputs[u.heap[0]].t <= u.t && u.err == nil {
		top := u.heap[0]
		u.moveTop(u.set(top, u.inputs[top].it.Next()))
	}
	return u.land(false)
}

func (u *union) Seek(t int64) chunkenc.ValueType {
	if u.cur >= 0 && u.t >= t {
		return u.inputs[u.cur].vt
	}
	if !u.started {
		u.fill(func(it chunkenc.Iterator) chunkenc.ValueType { return it.Seek(t) })
		return u.land(true)
	}
	for len(u.heap) > 0 && u.inputs[u.heap[0]].t < t && u.err == nil {
		top := u.heap[0]
		u.moveTop(u.set(top, u.inputs[top].it.Seek(t)))
	}
	return u.land(true)
}

func (u *union) At() (int64, float64) {
	if u.cur < 0 {
		return math.MinInt64, 0
	}
	return u.inputs[u.cur].it.At()
}

func (u *union) AtHistogram(h *histogram.Histogram) (int64, *histogram.Histogram) {
	if u.cur < 0 {
		return math.MinInt64, nil
	}
	t, got := u.inputs[u.cur].it.AtHistogram(h)
	return t, forget(got, h, u.changed)
}

func (u *union) AtFloatHistogram(fh *histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	if u.cur < 0 {
		return math.MinInt64, nil
	}
	t, got := u.inputs[u.cur].it.AtFloatHistogram(fh)
	return t, forgetFloat(got, fh, u.changed)
}

func (u *union) AtT() int64 {
	return u.t
}

func (u *union) AtST() int64 {
	if u.cur < 0 {
		return 0
	}
	return u.inputs[u.cur].it.AtST()
}

func (u *union) Err() error {
	return u.err
}

// forget takes away a hint that is only true beside the sample which came before it in the input. The histogram is
// changed in place only where it is the reader's own.
func forget(got, own *histogram.Histogram, changed bool) *histogram.Histogram {
	if !changed || got == nil || got.CounterResetHint == histogram.GaugeType || got.CounterResetHint == histogram.UnknownCounterReset {
		return got
	}
	if got != own {
		c := *got
		got = &c
	}
	got.CounterResetHint = histogram.UnknownCounterReset
	return got
}

// forgetFloat is forget for float histograms.
func forgetFloat(got, own *histogram.FloatHistogram, changed bool) *histogram.FloatHistogram {
	if !changed || got == nil || got.CounterResetHint == histogram.GaugeType || got.CounterResetHint == histogram.UnknownCounterReset {
		return got
	}
	if got != own {
		c := *got
		got = &c
	}
	got.CounterResetHint = histogram.UnknownCounterReset
	return got
}

// Limit returns the samples of it with mint ≤ t ≤ maxt.
func Limit(it chunkenc.Iterator, mint, maxt int64) chunkenc.Iterator {
	return &limited{Iterator: it, mint: mint, maxt: maxt}
}

type limited struct {
	chunkenc.Iterator
	mint, maxt    int64
	started, done bool
}

func (l *limited) Next() chunkenc.ValueType {
	if !l.started {
		return l.Seek(l.mint)
	}
	if l.done {
		return chunkenc.ValNone
	}
	return l.check(l.Iterator.Next())
}

func (l *limited) Seek(t int64) chunkenc.ValueType {
	if l.done {
		return chunkenc.ValNone
	}
	l.started = true
	return l.check(l.Iterator.Seek(max(t, l.mint)))
}

func (l *limited) check(vt chunkenc.ValueType) chunkenc.ValueType {
	if vt == chunkenc.ValNone || l.AtT() > l.maxt {
		l.done = true
		return chunkenc.ValNone
	}
	return vt
}

var errNoData = errors.New("chunk without data")
