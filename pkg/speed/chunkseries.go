package speed

import (
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/millrace/millrace/pkg/merge"
)

// chunkSeries is a series that a query found.
type chunkSeries struct {
	labels labels.Labels
	sh     *shard
	*scope
	ref uint32
}

// scope is what the series of a query have in common.
type scope struct {
	mint, maxt int64
	withST     bool
	newest     bool // Only each series' newest sample counts.
}

func (c *chunkSeries) Labels() labels.Labels { return c.labels }

// Iterator takes a snapshot of the series' chunks that reach into the range, and merges late ones in as it is advanced.
func (c *chunkSeries) Iterator(reuse chunks.Iterator) chunks.Iterator {
	it, ok := reuse.(*chunkList)
	if !ok {
		it = &chunkList{}
	}
	snap := snapshot{inOrder: it.metas[:0]}
	if err := c.snapshot(&snap); err != nil {
		return failedChunks{err}
	}
	if len(snap.late) == 0 && len(snap.buf) == 0 {
		*it = chunkList{metas: snap.inOrder, i: -1}
		return it
	}
	layers, err := snap.series(c.labels, c.withST)
	if err != nil {
		return failedChunks{err}
	}
	// Trimmed: outside the range, what should replace a sample may have been left out.
	return merge.Chunks(layers, c.mint, c.maxt, merge.EncodeOptions{StartTimestamps: c.withST})
}

// chunkList iterates over the chunks of a snapshot. It may be used again for another series.
type chunkList struct {
	metas []chunks.Meta
	i     int
}

func (l *chunkList) Next() bool {
	l.i++
	return l.i < len(l.metas)
}

func (l *chunkList) At() chunks.Meta { return l.metas[l.i] }
func (*chunkList) Err() error        { return nil }

// Samples implements merge.Sampled: where there are late samples, to merge them in need not end in chunks.
func (c *chunkSeries) Samples() (chunkenc.Iterator, bool) {
	if !c.hasLate() {
		return nil, false
	}
	var snap snapshot
	if err := c.snapshot(&snap); err != nil {
		return nil, false // Iterator will say why.
	}
	return merge.Limit(snap.samples(), c.mint, c.maxt), true // Trimmed as there.
}

func (c *chunkSeries) hasLate() bool {
	c.sh.reg.mu.RLock()
	defer c.sh.reg.mu.RUnlock()
	s := c.sh.series(c.ref)
	return s.rest().late != nil && !c.newestIsOpen(s)
}

// newestIsOpen says that nothing but the open chunk's last sample counts.
func (c *chunkSeries) newestIsOpen(s *series) bool {
	// A late sample may replace that one, but is never after it.
	return c.newest && s.xor.n > 0 && c.mint <= s.lastT && s.lastT <= c.maxt && !s.rest().lateAtLast()
}

// Extent returns the range of a series' chunks that reach into the query's, in milliseconds, and the number of their samples, those that late
// ones replace included, without copying any. ok is false if that takes more than a look: where there are histograms.
func (c *chunkSeries) Extent() (mint, maxt int64, samples int, ok bool) {
	c.sh.reg.mu.RLock()
	defer c.sh.reg.mu.RUnlock()
	s := c.sh.series(c.ref)
	more := s.rest()
	if more.enc != nil {
		return 0, 0, 0, false
	}
	mint, maxt = math.MaxInt64, math.MinInt64
	if l := more.late; l != nil {
		if l.histograms {
			return 0, 0, 0, false
		}
		if len(l.buf) > 0 && l.mint <= c.maxt && c.mint <= l.maxt {
			mint, maxt, samples = l.mint, l.maxt, len(l.buf)
		}
		for _, r := range l.chunks {
			if r.overlaps(c.mint, c.maxt) {
				mint, maxt = min(mint, r.mint), max(maxt, r.maxt)
				samples += c.sh.arena.samples(r)
			}
		}
	}
	for _, r := range more.closed {
		if r.overlaps(c.mint, c.maxt) {
			mint, maxt = min(mint, r.mint), max(maxt, r.maxt)
			samples += c.sh.arena.samples(r)
		}
	}
	if s.xor.n > 0 && s.mint <= c.maxt && c.mint <= s.lastT {
		mint, maxt = min(mint, s.mint), max(maxt, s.lastT)
		samples += int(s.xor.n)
	}
	return mint, maxt, samples, true
}

// snapshot is a series at one moment.
type snapshot struct {
	inOrder []chunks.Meta
	late    []chunks.Meta // In the order in which they were made.
	buf     []lateSample  // A copy.
}

func (c *chunkSeries) snapshot(snap *snapshot) error {
	c.sh.reg.mu.RLock()
	defer c.sh.reg.mu.RUnlock()
	s := c.sh.series(c.ref)
	more := s.rest()
	if c.newestIsOpen(s) {
		meta, err := openChunk(s.xor.single(), chunkenc.EncXOR, s.lastT, s.lastT)
		snap.inOrder = append(snap.inOrder, meta)
		return err
	}
	if need := c.count(more.closed) + 1; cap(snap.inOrder) < need {
		snap.inOrder = make([]chunks.Meta, 0, need)
	}
	if err := c.open(more.closed, &snap.inOrder); err != nil {
		return err
	}
	if err := c.openHead(s, &snap.inOrder); err != nil {
		return err
	}
	if l := more.late; l != nil {
		if err := c.open(l.chunks, &snap.late); err != nil {
			return err
		}
		if len(l.buf) > 0 && l.mint <= c.maxt && c.mint <= l.maxt {
			snap.buf = slices.Clone(l.buf)
		}
	}
	return nil
}

func (c *chunkSeries) count(refs []chunkRef) (n int) {
	for _, r := range refs {
		if r.overlaps(c.mint, c.maxt) {
			n++
		}
	}
	return n
}

// open appends those of the closed chunks that reach into the range.
func (c *chunkSeries) open(refs []chunkRef, out *[]chunks.Meta) error {
	for _, r := range refs {
		if !r.overlaps(c.mint, c.maxt) {
			continue
		}
		meta, err := c.sh.arena.open(r)
		if err != nil {
			return err
		}
		*out = append(*out, meta)
	}
	return nil
}

// openHead appends a copy of the chunk to which samples are being appended.
func (c *chunkSeries) openHead(s *series, out *[]chunks.Meta) error {
	mint, maxt, enc := s.mint, s.lastT, chunkenc.EncXOR
	var open chunks.Meta
	if s.xor.n == 0 {
		ok := false
		if e := s.rest().enc; e != nil {
			open, ok = e.Open()
		}
		if !ok {
			return nil
		}
		mint, maxt, enc = open.MinTime, open.MaxTime, open.Chunk.Encoding()
	}
	if mint > c.maxt || maxt < c.mint {
		return nil
	}
	var data []byte
	if s.xor.n > 0 {
		data = s.xor.bytes(&c.sh.blocks, make([]byte, 0, s.xor.size()))
	} else {
		data = slices.Clone(open.Chunk.Bytes())
	}
	meta, err := openChunk(data, enc, mint, maxt)
	if err != nil {
		return err
	}
	*out = append(*out, meta)
	return nil
}

// layers divides a snapshot's chunks into lists in order of precedence. Late chunks that follow one another in time share one: a
// device that delivers two weeks in order makes one list of a thousand chunks.
func (s *snapshot) layers() [][]chunks.Meta {
	out := [][]chunks.Meta{s.inOrder}
	last := int64(math.MaxInt64)
	for _, meta := range s.late {
		if meta.MinTime <= last {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], meta)
		last = meta.MaxTime
	}
	return out
}

// samples merges a snapshot.
func (s *snapshot) samples() chunkenc.Iterator {
	layers := s.layers()
	its := make([]chunkenc.Iterator, 0, len(layers)+1)
	for _, metas := range layers {
		if len(metas) > 0 {
			its = append(its, merge.ChunkIterator(&chunkList{metas: metas, i: -1}))
		}
	}
	if len(s.buf) > 0 {
		its = append(its, &lateIterator{samples: settle(s.buf), i: -1})
	}
	return merge.Iterators(its)
}

// series turns a snapshot into series in order of precedence.
func (s *snapshot) series(ls labels.Labels, withST bool) ([]storage.ChunkSeries, error) {
	layers := s.layers()
	if len(s.buf) > 0 {
		var metas []chunks.Meta
		err := encodeLate(settle(s.buf), withST, func(meta chunks.Meta) { metas = append(metas, meta) })
		if err != nil {
			return nil, err
		}
		layers = append(layers, metas)
	}
	out := make([]storage.ChunkSeries, len(layers))
	for i, metas := range layers {
		out[i] = &layer{ls, metas}
	}
	return out, nil
}

// layer is a list of chunks as a series.
type layer struct {
	labels labels.Labels
	metas  []chunks.Meta
}

func (l *layer) Labels() labels.Labels { return l.labels }

func (l *layer) Iterator(chunks.Iterator) chunks.Iterator {
	return storage.NewListChunkSeriesIterator(l.metas...)
}

// failedChunks is an iterator without chunks that reports an error.
type failedChunks struct{ err error }

func (failedChunks) At() chunks.Meta { return chunks.Meta{} }
func (failedChunks) Next() bool      { return false }
func (f failedChunks) Err() error    { return f.err }
