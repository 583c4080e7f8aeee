package merge

import (
	"bytes"
	"math"
	"slices"
	"sort"

	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// floatMerger has the samples of chunks of floats without start timestamps, decoded, merged and encoded as a whole: what Iterators and
// Encode do one sample at a time, at a fraction of the cost. The memory is reused.
type floatMerger struct {
	samples []floatSample
	tail    []floatSample
	run     []floatSample
	joiner  floatJoiner
	writer  xorWriter
	out     floatChunks
	it      chunkenc.Iterator
}

type floatSample struct {
	t     int64
	v     float64
	input int
}

// ofFloats says whether all chunks of a cluster are such.
func (c *cluster) ofFloats() bool {
	return !slices.ContainsFunc(c.members, func(n member) bool { return !ofFloats(n.meta) })
}

func ofFloats(m chunks.Meta) bool { return m.Chunk.Encoding() == chunkenc.EncXOR }

// merge decodes the chunks of a cluster, which are in order of their start, and keeps the samples in [mint, maxt].
func (f *floatMerger) merge(c *cluster, mint, maxt int64) error {
	f.samples = f.samples[:0]
	for _, n := range c.members {
		f.run = f.run[:0]
		f.it = Samples(n.meta.Chunk, f.it)
		last := int64(math.MinInt64)
		for f.it.Next() != chunkenc.ValNone {
			// What goes back in time inside of a chunk, which should not be, is dropped.
			if t, v := f.it.At(); t >= mint && t <= maxt && (t > last || len(f.run) == 0) {
				f.run = append(f.run, floatSample{t: t, v: v, input: n.input})
				last = t
			}
		}
		if err := f.it.Err(); err != nil {
			return err
		}
		f.addRun()
	}
	return nil
}

// addRun merges a chunk into what was decoded before, of which only the end can overlap it.
func (f *floatMerger) addRun() {
	if len(f.run) == 0 {
		return
	}
	first := f.run[0].t
	at := len(f.samples)
	if at > 0 && f.samples[at-1].t >= first {
		at = sort.Search(at, func(i int) bool { return f.samples[i].t >= first })
	}
	f.tail = append(f.tail[:0], f.samples[at:]...)
	f.samples = f.samples[:at]
	old, run := f.tail, f.run
	for len(old) > 0 && len(run) > 0 {
		switch a, b := &old[0], &run[0]; {
		case a.t < b.t:
			f.samples, old = append(f.samples, *a), old[1:]
		case a.t > b.t:
			f.samples, run = append(f.samples, *b), run[1:]
		case a.input > b.input:
			run = run[1:]
		default: // Of one input's chunks the one that starts later wins.
			old = old[1:]
		}
	}
	f.samples = append(append(f.samples, old...), run...)
}

// chunks encodes the samples, as Encode does. It is good until the next merge.
func (f *floatMerger) chunks(o EncodeOptions) chunks.Iterator {
	f.out = floatChunks{floatMerger: f, rest: f.samples, window: o.Window}
	return &f.out
}

type floatChunks struct {
	*floatMerger
	rest   []floatSample
	window int64
	cur    chunks.Meta
	err    error
}

func (f *floatChunks) At() chunks.Meta { return f.cur }
func (f *floatChunks) Err() error      { return f.err }

func (f *floatChunks) Next() bool {
	if len(f.rest) == 0 || f.err != nil {
		return false
	}
	n := min(len(f.rest), MaxFloats)
	if f.window > 0 {
		last := windowLast(f.rest[0].t, f.window)
		n = sort.Search(n, func(i int) bool { return f.rest[i].t > last })
	}
	var samples []floatSample
	samples, f.rest = f.rest[:n], f.rest[n:]
	f.cur.MinTime, f.cur.MaxTime = samples[0].t, samples[n-1].t
	f.cur.Chunk, f.err = f.encode(samples)
	return f.err == nil
}

// encode makes a chunk. It grows where the one before it did, and is as large as it must be.
func (f *floatMerger) encode(samples []floatSample) (chunkenc.Chunk, error) {
	f.writer.reset()
	for i := range samples {
		f.writer.append(samples[i].t, math.Float64bits(samples[i].v))
	}
	return chunkenc.FromData(chunkenc.EncXOR, bytes.Clone(f.writer.chunk()))
}
