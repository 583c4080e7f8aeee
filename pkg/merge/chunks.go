package merge

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// Chunks merges series of the same labels, in order of precedence (later wins), and yields chunks that are sorted by time,
// do not overlap, and hold exactly the samples with mint ≤ t ≤ maxt. An input chunk that overlaps no other and lies within
// [mint, maxt] is passed through untouched (its Ref too), unless o asks for something else; all others are encoded anew, as
// the iterator advances. A chunk of histograms, passed or not, that does not follow on the one before it in its input says
// nothing of counter resets any more. Each input's chunks are sorted by time and have data.
func Chunks(series []storage.ChunkSeries, mint, maxt int64, o EncodeOptions) chunks.Iterator {
	m := &chunkMerger{}
	m.reset(series, mint, maxt, o)
	return m
}

// chunkInput is one input of a chunkMerger and the chunk at which it stands.
type chunkInput struct {
	it   chunks.Iterator
	meta chunks.Meta
	n    int // of chunks up to this one
}

// chunkMerger collects clusters (chunks that are connected by overlaps) from its inputs, each of which is then passed on or
// encoded. The inputs are held in a heap by the start of their next chunk.
type chunkMerger struct {
	inputs     []chunkInput
	heap       []int
	mint, maxt int64
	o          EncodeOptions

	started bool
	peeked  *cluster
	enc     chunks.Iterator // Yields the cluster that is being encoded.
	begins  bool            // Nothing of it has been yielded yet.
	last    member          // The chunk that was passed on last; none where that was encoded.
	cur     chunks.Meta
	err     error
	floats  *floatMerger // nil until it is needed
	spare   []*cluster
}

// reset begins with other series, in the memory that is there.
func (m *chunkMerger) reset(series []storage.ChunkSeries, mint, maxt int64, o EncodeOptions) {
	*m = chunkMerger{inputs: m.inputs, heap: m.heap[:0], mint: mint, maxt: maxt, o: o, floats: m.floats, spare: m.spare}
	if n := len(series) - len(m.inputs); n > 0 {
		m.inputs = append(m.inputs, make([]chunkInput, n)...)
	}
	m.inputs = m.inputs[:len(series)]
	for i, s := range series {
		m.inputs[i] = chunkInput{it: s.Iterator(m.inputs[i].it)}
	}
}

func (m *chunkMerger) At() chunks.Meta { return m.cur }
func (m *chunkMerger) Err() error      { return m.err }

func (m *chunkMerger) Next() bool {
	for m.err == nil {
		if m.enc != nil {
			if m.enc.Next() {
				return m.yield(m.enc.At(), m.begins)
			}
			m.err = m.enc.Err()
			m.enc = nil
			continue
		}
		c := m.next()
		if c == nil {
			return false
		}
		m.join(c)
		if n := c.members[0]; len(c.members) == 1 && m.passes(n.meta) {
			follows := m.last.n > 0 && m.last.input == n.input && m.last.n+1 == n.n
			m.last = n
			m.drop(c)
			return m.yield(n.meta, !follows)
		}
		m.last = member{}
		if joined, ok := m.joined(c); ok {
			m.drop(c)
			m.cur = joined
			return true
		}
		m.enc, m.begins = m.encode(c), true
		m.drop(c)
	}
	return false
}

// yield makes meta the current chunk, without what it says of counter resets if the chunk before it is another than it was.
func (m *chunkMerger) yield(meta chunks.Meta, forget bool) bool {
	m.begins = false
	if forget {
		meta, m.err = forgetReset(meta)
	}
	m.cur = meta
	return m.err == nil
}

// resetHeader returns the byte in a chunk of histograms that has what is known of a counter reset before it.
func resetHeader(e chunkenc.Encoding) (at int, ok bool) {
	switch e {
	case chunkenc.EncHistogram, chunkenc.EncFloatHistogram:
		return 2, true
	case chunkenc.EncHistogramST, chunkenc.EncFloatHistogramST:
		return 0, true
	}
	return 0, false
}

// ForgetReset leaves it open in the data of a chunk whether there was a counter reset before it, and says whether that was known. Gauges stay
// gauges.
func ForgetReset(e chunkenc.Encoding, data []byte) (changed bool) {
	at, ok := knownReset(e, data)
	if ok {
		data[at] &^= chunkenc.CounterResetHeaderMask
	}
	return ok
}

// knownReset returns the byte of a chunk's data that tells of a counter reset before it; ok is false if it tells nothing.
func knownReset(e chunkenc.Encoding, data []byte) (at int, ok bool) {
	if at, ok = resetHeader(e); !ok || at >= len(data) {
		return 0, false
	}
	switch chunkenc.CounterResetHeader(data[at] & chunkenc.CounterResetHeaderMask) {
	case chunkenc.UnknownCounterReset, chunkenc.GaugeType:
		return 0, false
	}
	return at, true
}

// forgetReset returns a chunk that leaves it open whether there was a counter reset before it. Gauges stay gauges.
func forgetReset(meta chunks.Meta) (chunks.Meta, error) {
	e, b := meta.Chunk.Encoding(), meta.Chunk.Bytes()
	if _, ok := knownReset(e, b); !ok {
		return meta, nil
	}
	b = bytes.Clone(b)
	ForgetReset(e, b)
	chk, err := chunkenc.FromData(e, b)
	if err != nil {
		return meta, fmt.Errorf("copy chunk at %d: %w", meta.MinTime, err)
	}
	meta.Chunk = chk
	return meta, nil
}

// member is a chunk of a cluster, with the precedence of the input that it is from.
type member struct {
	input int
	n     int // as in chunkInput
	meta  chunks.Meta
}

// cluster is a set of chunks in order of their start.
type cluster struct {
	members    []member
	mint, maxt int64
}

// begin returns an empty cluster, and drop takes back one that is not used any more.
func (m *chunkMerger) begin() *cluster {
	if n := len(m.spare); n > 0 {
		c := m.spare[n-1]
		m.spare = m.spare[:n-1]
		return c
	}
	return &cluster{}
}

func (m *chunkMerger) drop(c *cluster) {
	clear(c.members)
	*c = cluster{members: c.members[:0]}
	m.spare = append(m.spare, c)
}

// next returns the next cluster, or nil at the end or on error.
func (m *chunkMerger) next() *cluster {
	if c := m.peeked; c != nil {
		m.peeked = nil
		return c
	}
	if !m.started {
		m.start()
	}
	if len(m.heap) == 0 || m.err != nil {
		return nil
	}
	first := m.inputs[m.heap[0]].meta
	c := m.begin()
	c.mint, c.maxt = first.MinTime, first.MaxTime
	for len(m.heap) > 0 && m.err == nil {
		top := m.heap[0]
		meta := m.inputs[top].meta
		if meta.MinTime > c.maxt {
			break
		}
		c.add(member{input: top, n: m.inputs[top].n, meta: meta})
		m.advanceTop()
	}
	if m.err != nil {
		return nil
	}
	return c
}

// add appends a chunk. A copy of it that has less to say is dropped: a block may be read beside those that it was made of.
func (c *cluster) add(n member) {
	for i := len(c.members) - 1; i >= 0 && c.members[i].meta.MinTime == n.meta.MinTime; i-- {
		old := c.members[i].meta
		if old.MaxTime == n.meta.MaxTime && old.Chunk.Encoding() == n.meta.Chunk.Encoding() &&
			bytes.Equal(old.Chunk.Bytes(), n.meta.Chunk.Bytes()) {
			c.members = slices.Delete(c.members, i, i+1)
			break
		}
	}
	c.members = append(c.members, n)
	c.maxt = max(c.maxt, n.meta.MaxTime)
}

// passes says whether a chunk that overlaps no other may be handed on as it is.
func (m *chunkMerger) passes(meta chunks.Meta) bool {
	return meta.MinTime >= m.mint && meta.MaxTime <= m.maxt &&
		(m.o.StartTimestamps || !hasST(meta.Chunk.Encoding()))
}

// join adds the clusters that follow c to it as long as all of them together still make one chunk.
func (m *chunkMerger) join(c *cluster) {
	n, size, vt := c.extent()
	if n >= m.o.JoinBelow || vt == chunkenc.ValNone {
		return
	}
	for {
		next := m.next()
		if next == nil {
			return
		}
		nextN, nextSize, nextVT := next.extent()
		n, size = n+nextN, size+nextSize
		if nextN >= m.o.JoinBelow || nextVT != vt || n > MaxFloats ||
			(vt != chunkenc.ValFloat && size > chunkenc.TargetBytesPerHistogramChunk) ||
			(m.o.Window > 0 && windowStart(c.mint, m.o.Window) != windowStart(next.maxt, m.o.Window)) {
			m.peeked = next
			return
		}
		c.members = append(c.members, next.members...)
		c.maxt = next.maxt
		m.drop(next)
	}
}

// extent returns the samples and bytes of a cluster, and the type of its samples, ValNone if they differ.
func (c *cluster) extent() (samples, size int, vt chunkenc.ValueType) {
	vt = valueType(c.members[0].meta.Chunk.Encoding())
	for _, n := range c.members {
		samples += n.meta.Chunk.NumSamples()
		size += len(n.meta.Chunk.Bytes())
		if valueType(n.meta.Chunk.Encoding()) != vt {
			return samples, size, chunkenc.ValNone
		}
	}
	return samples, size, vt
}

// joined makes one chunk of those of a cluster, if there is nothing to be merged or left out.
func (m *chunkMerger) joined(c *cluster) (chunks.Meta, bool) {
	if len(c.members) == 1 || !c.ofFloats() {
		return chunks.Meta{}, false
	}
	return m.floatMerger().joiner.join(c, m.mint, m.maxt, m.o.Window)
}

// encode merges the samples of a cluster to chunks.
func (m *chunkMerger) encode(c *cluster) chunks.Iterator {
	if !c.ofFloats() {
		return Encode(m.samples(c), m.o)
	}
	f := m.floatMerger()
	m.err = f.merge(c, m.mint, m.maxt)
	return f.chunks(m.o)
}

func (m *chunkMerger) floatMerger() *floatMerger {
	if m.floats == nil {
		m.floats = &floatMerger{}
	}
	return m.floats
}

// samples merges the chunks of a cluster, those of one input one after another.
func (m *chunkMerger) samples(c *cluster) chunkenc.Iterator {
	slices.SortStableFunc(c.members, func(a, b member) int { return a.input - b.input })
	var (
		its  []chunkenc.Iterator
		run  []chunks.Meta
		last int
	)
	for i, n := range c.members {
		// Overlapping chunks of one input should not be; the one that starts later wins.
		if i > 0 && (n.input != last || n.meta.MinTime <= run[len(run)-1].MaxTime) {
			its = append(its, ChunkIterator(storage.NewListChunkSeriesIterator(run...)))
			run = nil
		}
		run, last = append(run, n.meta), n.input
	}
	its = append(its, ChunkIterator(storage.NewListChunkSeriesIterator(run...)))
	it := Iterators(its)
	if c.mint < m.mint || c.maxt > m.maxt {
		it = Limit(it, m.mint, m.maxt)
	}
	return it
}

func (m *chunkMerger) start() {
	m.started = true
	for i := range m.inputs {
		if m.advance(i) {
			m.heap = append(m.heap, i)
		}
	}
	for i := len(m.heap)/2 - 1; i >= 0; i-- {
		m.siftDown(i)
	}
}

// advance moves an input to its next chunk that overlaps the range.
func (m *chunkMerger) advance(i int) bool {
	in := &m.inputs[i]
	for in.it.Next() {
		in.meta = in.it.At()
		in.n++
		if in.meta.MinTime > m.maxt {
			return false
		}
		if in.meta.MaxTime < m.mint {
			continue
		}
		if in.meta.Chunk == nil {
			m.err = fmt.Errorf("merge chunk at %d: %w", in.meta.MinTime, errNoData)
			return false
		}
		return true
	}
	if err := in.it.Err(); err != nil && m.err == nil {
		m.err = err
	}
	return false
}

func (m *chunkMerger) advanceTop() {
	if !m.advance(m.heap[0]) {
		last := len(m.heap) - 1
		m.heap[0] = m.heap[last]
		m.heap = m.heap[:last]
	}
	m.siftDown(0)
}

// before orders the heap by start, then precedence.
func (m *chunkMerger) before(a, b int) bool {
	ta, tb := m.inputs[a].meta.MinTime, m.inputs[b].meta.MinTime
	return ta < tb || (ta == tb && a < b)
}

func (m *chunkMerger) siftDown(i int) {
	for {
		least := 2*i + 1
		if least >= len(m.heap) {
			return
		}
		if r := least + 1; r < len(m.heap) && m.before(m.heap[r], m.heap[least]) {
			least = r
		}
		if !m.before(m.heap[least], m.heap[i]) {
			return
		}
		m.heap[i], m.heap[least] = m.heap[least], m.heap[i]
		i = least
	}
}
