package serving

import (
	"fmt"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/millrace/millrace/pkg/merge"
)

// plainSeries is a series that one source alone has: there is nothing to merge, and what histograms say of their predecessors stays true.
type plainSeries struct {
	lset labels.Labels
	part storage.ChunkSeries
}

func (s *plainSeries) Labels() labels.Labels { return s.lset }

func (s *plainSeries) Iterator(it chunkenc.Iterator) chunkenc.Iterator {
	if x, ok := s.part.(merge.Sampled); ok {
		if it, ok := x.Samples(); ok {
			return it
		}
	}
	p, ok := it.(*plainIterator)
	if !ok {
		p = &plainIterator{}
	}
	*p = plainIterator{src: s.part.Iterator(p.src), Iterator: p.Iterator}
	return p
}

// plainIterator runs through chunks that follow one another in time. Its embedded iterator is the current chunk's; it is only
// called while open.
type plainIterator struct {
	chunkenc.Iterator
	src  chunks.Iterator
	meta chunks.Meta
	open bool
	vt   chunkenc.ValueType // of the current sample
	done bool
	err  error
}

// next opens the first chunk that reaches to t.
func (p *plainIterator) next(t int64) bool {
	p.open = false
	for p.src.Next() {
		if p.meta = p.src.At(); p.meta.MaxTime < t {
			continue
		}
		if p.meta.Chunk == nil {
			p.err = fmt.Errorf("chunk at %d has no data", p.meta.MinTime)
			return false
		}
		p.Iterator = merge.Samples(p.meta.Chunk, p.Iterator)
		p.open = true
		return true
	}
	p.err = p.src.Err()
	return false
}

func (p *plainIterator) Next() chunkenc.ValueType {
	for !p.done {
		if p.open {
			if p.vt = p.Iterator.Next(); p.vt != chunkenc.ValNone {
				return p.vt
			}
			p.err = p.Iterator.Err()
		}
		p.done = p.err != nil || !p.next(noTime)
	}
	return chunkenc.ValNone
}

func (p *plainIterator) Seek(t int64) chunkenc.ValueType {
	if p.done {
		return chunkenc.ValNone
	}
	if p.open && p.vt != chunkenc.ValNone && p.AtT() >= t {
		return p.vt
	}
	for !p.done {
		if p.open && p.meta.MaxTime >= t {
			if p.vt = p.Iterator.Seek(t); p.vt != chunkenc.ValNone {
				return p.vt
			}
			p.err = p.Iterator.Err()
		}
		p.done = p.err != nil || !p.next(t)
	}
	return chunkenc.ValNone
}

func (p *plainIterator) Err() error { return p.err }

const noTime = -1 << 63
