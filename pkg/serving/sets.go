package serving

import (
	"context"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/millrace/millrace/pkg/merge"
)

// warner gathers the warnings of sets.
type warner struct{ sets []storage.ChunkSeriesSet }

// Warnings returns what the sets have warned of so far.
func (w warner) Warnings() annotations.Annotations {
	var ws annotations.Annotations
	for _, s := range w.sets {
		ws.Merge(s.Warnings())
	}
	return ws
}

// lazySet opens a set when it is first read.
type lazySet struct {
	open func() storage.ChunkSeriesSet
	set  storage.ChunkSeriesSet
}

func (s *lazySet) Next() bool {
	if s.set == nil {
		s.set = s.open()
	}
	return s.set.Next()
}

func (s *lazySet) At() storage.ChunkSeries { return s.set.At() }

func (s *lazySet) Err() error {
	if s.set == nil {
		return nil
	}
	return s.set.Err()
}

func (s *lazySet) Warnings() annotations.Annotations {
	if s.set == nil {
		return nil
	}
	return s.set.Warnings()
}

// maxAhead is how many series are read ahead at once. The first batch is one series, so that there is an answer early; then
// they double up to this.
const maxAhead = 256

// aheadBatch is what a reading goroutine hands over.
type aheadBatch struct {
	series   []storage.ChunkSeries
	warnings annotations.Annotations
	last     bool
	err      error // only with last; comes after the series
}

// aheadSet reads a set in a goroutine of its own, a batch ahead of its user, so that the requests to a bucket of all sources, and of all
// selectors of a query, overlap.
type aheadSet struct {
	batches  chan aheadBatch
	cur      aheadBatch
	i        int
	warnings annotations.Annotations
	err      error
}

// readAhead starts to read the set that open returns. The goroutine ends with the set or when the querier is closed.
func (q *querier) readAhead(ctx context.Context, open func() storage.ChunkSeriesSet) storage.ChunkSeriesSet {
	s := &aheadSet{batches: make(chan aheadBatch, 1), i: -1}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return storage.ErrChunkSeriesSet(errClosed)
	}
	q.wg.Go(func() {
		defer close(s.batches)
		r := aheadReader{ctx: ctx, qb: q.qb, open: open}
		for size := 1; ; size = min(2*size, maxAhead) {
			b := r.read(size)
			select {
			case s.batches <- b:
			case <-q.stop.Done():
				return
			}
			if b.last {
				return
			}
		}
	})
	return s
}

func (s *aheadSet) Next() bool {
	s.i++
	for s.i >= len(s.cur.series) {
		if s.cur.last {
			s.err = s.cur.err
			return false
		}
		b, ok := <-s.batches
		if !ok {
			b = aheadBatch{last: true, err: errClosed}
		}
		s.cur, s.i = b, 0
		s.warnings.Merge(b.warnings)
	}
	return true
}

func (s *aheadSet) At() storage.ChunkSeries           { return s.cur.series[s.i] }
func (s *aheadSet) Err() error                        { return s.err }
func (s *aheadSet) Warnings() annotations.Annotations { return s.warnings }

// aheadReader reads batches from a set.
type aheadReader struct {
	ctx  context.Context
	qb   *Queryable
	open func() storage.ChunkSeriesSet
	set  storage.ChunkSeriesSet
}

// read returns up to size series. A panic is an error.
func (r *aheadReader) read(size int) (b aheadBatch) {
	select {
	case r.qb.slots <- struct{}{}:
	case <-r.ctx.Done():
		return aheadBatch{last: true, err: r.ctx.Err()}
	}
	defer func() { <-r.qb.slots }()
	var panicked error
	defer func() {
		if panicked != nil {
			b = aheadBatch{last: true, err: panicked}
		}
	}()
	defer r.qb.recovered(&panicked)
	if r.set == nil {
		r.set = r.open()
	}
	for len(b.series) < size {
		if !r.set.Next() {
			b.last, b.err, b.warnings = true, r.set.Err(), r.set.Warnings()
			return b
		}
		b.series = append(b.series, r.set.At())
	}
	return b
}

// trimmedSeries hides what its chunks hold outside of [mint, maxt].
type trimmedSeries struct {
	storage.Series
	mint, maxt int64
}

func (s *trimmedSeries) Iterator(chunkenc.Iterator) chunkenc.Iterator {
	return merge.Limit(s.Series.Iterator(nil), s.mint, s.maxt)
}

// chunkSeries is a merged series as chunks.
type chunkSeries struct {
	lset       labels.Labels
	parts      []storage.ChunkSeries
	mint, maxt int64
	o          merge.EncodeOptions
}

func (s *chunkSeries) Labels() labels.Labels { return s.lset }

func (s *chunkSeries) Iterator(chunks.Iterator) chunks.Iterator {
	return merge.Chunks(s.parts, s.mint, s.maxt, s.o)
}
