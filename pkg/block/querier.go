package block

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

// querier reads a time range of a block. Its sets may be used by different goroutines.
type querier struct {
	b          *Block
	mint, maxt int64
	held       account

	mu   sync.Mutex // guards open
	open []*indexReader
}

// Select implements storage.ChunkQuerier: series in order of labels. Nothing is read before the first call of Next. With
// hints.Func "series", only the labels are read and the series have no chunks.
func (q *querier) Select(ctx context.Context, _ bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	s := &seriesSet{ctx: ctx, b: q.b, q: q, mint: q.mint, maxt: q.maxt, ms: slices.Clone(ms), portions: portionsOf(ctx, &q.b.meta)}
	if hints != nil {
		s.mint, s.maxt = hints.Start, hints.End
		s.limit = hints.Limit
		s.labelsOnly = hints.Func == "series"
		s.shard, s.shards = hints.ShardIndex, hints.ShardCount
	}
	if !q.b.meta.Overlaps(s.mint, s.maxt) {
		return storage.EmptyChunkSeriesSet()
	}
	return s
}

// index returns a reader of the block's index that is closed with the querier at the latest.
func (q *querier) index(ctx context.Context) (*indexReader, error) {
	h, err := q.b.loadHeader(ctx)
	if err != nil {
		return nil, err
	}
	ix := newIndexReader(ctx, q.b.r, h)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open = append(q.open, ix)
	return ix, nil
}

// done closes an index reader before the querier is closed.
func (q *querier) done(ix *indexReader) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.open, ix); i >= 0 {
		q.open = slices.Delete(q.open, i, i+1)
		ix.Close()
	}
}

// LabelValues implements storage.LabelQuerier. The strings are copies.
func (q *querier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	values, err := q.withIndex(ctx, func(ix *indexReader) ([]string, error) {
		return ix.SortedLabelValues(ctx, name, hints, ms...)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("values of label %q in %s: %w", name, q.b.name(), err)
	}
	return values, nil, nil
}

// LabelNames implements storage.LabelQuerier. The strings are copies.
func (q *querier) LabelNames(ctx context.Context, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	names, err := q.withIndex(ctx, func(ix *indexReader) ([]string, error) { return ix.LabelNames(ctx, ms...) })
	if err != nil {
		return nil, nil, fmt.Errorf("label names in %s: %w", q.b.name(), err)
	}
	if hints != nil && hints.Limit > 0 {
		names = limited(names, hints.Limit)
	}
	return names, nil, nil
}

func (q *querier) withIndex(ctx context.Context, f func(ix *indexReader) ([]string, error)) ([]string, error) {
	if !q.b.meta.Overlaps(q.mint, q.maxt) {
		return nil, nil
	}
	ix, err := q.index(ctx)
	if err != nil {
		return nil, err
	}
	defer q.done(ix)
	return f(ix)
}

// Close gives back to the budgets what the querier's results hold.
func (q *querier) Close() error {
	q.mu.Lock()
	open := q.open
	q.open = nil
	q.mu.Unlock()
	for _, ix := range open {
		ix.Close()
	}
	q.held.releaseAll()
	return nil
}
