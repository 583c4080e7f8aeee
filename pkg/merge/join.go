package merge

import (
	"bytes"
	"encoding/binary"
	"math"

	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// floatJoiner makes one XOR chunk of several that follow one another, mostly of copied bits. How a sample is encoded depends on those before it: its time on
// two of them, its value on one, and on the window of changed bits that was written last. So of each chunk the first sample and the time of the second one are
// encoded anew. A chunk writes out a window before it needs one: from the second value on, its bits mean the same behind any others.
type floatJoiner struct {
	it    xorIterator
	out   xorWriter
	first int64
}

// minCopied is how many samples a chunk has at least of which bits are copied. Its windows begin narrow once more, which costs the more the fewer samples
// share that: with 20 of a counter two bytes of a hundred, with 30 less than one, with 6 eight.
const minCopied = 20

// join joins the chunks of a cluster if these follow one another and shall become one chunk. Where they do not, or are damaged, ok is false.
func (j *floatJoiner) join(c *cluster, mint, maxt, window int64) (joined chunks.Meta, ok bool) {
	for i, n := range c.members[1:] {
		if n.meta.MinTime <= c.members[i].meta.MaxTime {
			return chunks.Meta{}, false
		}
	}
	j.begin()
	for _, n := range c.members {
		if !j.add(n.meta.Chunk.Bytes()) {
			return chunks.Meta{}, false
		}
	}
	first, last := j.first, j.out.t
	if first < mint || last > maxt || window > 0 && windowLast(first, window) < last {
		return chunks.Meta{}, false
	}
	chk, err := chunkenc.FromData(chunkenc.EncXOR, bytes.Clone(j.out.chunk()))
	return chunks.Meta{Chunk: chk, MinTime: first, MaxTime: last}, err == nil
}

func (j *floatJoiner) begin() {
	j.out.reset()
	j.out.t = math.MinInt64
}

// add appends a chunk; it is false if that cannot be.
func (j *floatJoiner) add(data []byte) bool {
	it, w := &j.it, &j.out
	it.reset(data)
	it.t, it.leading = w.t, noWindow
	if int(w.n)+int(it.total) > MaxFloats || !j.next() {
		return false
	}
	if w.n > 0 && it.total < minCopied {
		return j.addEach()
	}
	from, written := uint(8*xorHeader), uint16(0)
	if w.n == 0 {
		j.first = it.t
	} else {
		w.append(it.t, it.v)
		second := it.pos
		if !j.next() {
			return false
		}
		w.time(it.t)
		_, n := binary.Uvarint(data[second/8:])
		from, written = second+8*uint(n), 2
	}
	for it.read < it.total {
		if !j.next() {
			return false
		}
	}
	w.copy(data, from, it.pos)
	w.n += it.total - written
	w.t, w.delta, w.v = it.t, it.delta, it.v
	if it.leading != noWindow {
		w.leading, w.trailing = it.leading, it.trailing
	}
	return true
}

// addEach encodes the samples of a chunk, of which the first one was read.
func (j *floatJoiner) addEach() bool {
	for {
		j.out.append(j.it.t, j.it.v)
		if j.it.read == j.it.total {
			return true
		}
		if !j.next() {
			return false
		}
	}
}

// next reads a sample, which must be later than the one before.
func (j *floatJoiner) next() bool {
	last := j.it.t
	return j.it.Next() != chunkenc.ValNone && j.it.t > last
}
