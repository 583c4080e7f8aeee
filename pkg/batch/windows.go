package batch

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/merge"
)

// windows returns the windows of the job's outputs, in order of time: those in which an input has samples. An input that
// spans several (all that is older than the recent windows is one block, whatever its age) is read once for that, so that
// years without samples cost nothing.
func (e *execution) windows(ctx context.Context) ([]window, error) {
	if e.job.Kind == Erase {
		return []window{e.job.whole()}, nil
	}
	found := map[window]struct{}{}
	for _, m := range e.job.Inputs {
		if w := windowAt(m.MinTime, e.job.Width); w.holds(&m) {
			found[w] = struct{}{}
			continue
		}
		b, err := e.input(ctx, m)
		if err != nil {
			return nil, err
		}
		if err := scan(block.WithReadAhead(ctx, e.config.readAhead(1)), b, e.job.Width, found); err != nil {
			return nil, fmt.Errorf("find the windows of block %s: %w", m.ULID, err)
		}
	}
	return slices.SortedFunc(maps.Keys(found), func(a, b window) int { return cmp.Compare(a.min, b.min) }), nil
}

// scan adds the windows in which b has samples.
func scan(ctx context.Context, b *block.Block, width int64, found map[window]struct{}) (err error) {
	m := b.Meta()
	q, err := b.ChunkQuerier(m.MinTime, m.MaxTime-1)
	if err != nil {
		return err
	}
	defer q.Close()
	name, value := index.AllPostingsKey()
	set := q.Select(ctx, true, nil, labels.MustNewMatcher(labels.MatchEqual, name, value))
	var (
		its  chunks.Iterator
		it   chunkenc.Iterator
		last window
	)
	add := func(t int64) {
		if t >= last.min && t < last.max {
			return
		}
		last = windowAt(t, width)
		found[last] = struct{}{}
	}
	for set.Next() {
		its = set.At().Iterator(its)
		for its.Next() {
			c := its.At()
			add(c.MinTime)
			if c.MaxTime < last.max {
				continue
			}
			it = c.Chunk.Iterator(it)
			for it.Next() != chunkenc.ValNone {
				add(it.AtT())
			}
			if err := it.Err(); err != nil {
				return fmt.Errorf("%w: chunk of %s: %w", block.ErrCorrupt, set.At().Labels(), err)
			}
		}
		if err := its.Err(); err != nil {
			return err
		}
	}
	return set.Err()
}

// inputCount is what was read of an input for an output.
type inputCount struct {
	meta                    block.Meta
	whole                   bool // all of it was to be read
	series, chunks, samples uint64
}

// check compares the count with the input's meta, which was made when the input was written.
func (c *inputCount) check() error {
	want := c.meta.Stats
	if !c.whole || c.series == want.NumSeries && c.chunks == want.NumChunks && c.samples == want.NumSamples {
		return nil
	}
	return fmt.Errorf("%w: of block %s, %d series, %d chunks and %d samples were read, its %s tells of %d, %d and %d", merge.ErrDiffers, c.meta.ULID,
		c.series, c.chunks, c.samples, block.MetaFilename, want.NumSeries, want.NumChunks, want.NumSamples)
}

// countedInput counts what is read.
type countedInput struct {
	*block.Block
	seen  *atomic.Int64
	count *inputCount
}

func (c countedInput) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	q, err := c.Block.ChunkQuerier(mint, maxt)
	if err != nil {
		return nil, err
	}
	return countedQuerier{ChunkQuerier: q, in: c}, nil
}

type countedQuerier struct {
	storage.ChunkQuerier
	in countedInput
}

func (q countedQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	set := q.ChunkQuerier.Select(ctx, sorted, hints, ms...)
	if hints != nil && hints.Func == "series" {
		return set // labels only, a first pass
	}
	return &countedSet{ChunkSeriesSet: set, in: q.in}
}

type countedSet struct {
	storage.ChunkSeriesSet
	in  countedInput
	its chunks.Iterator
}

func (s *countedSet) Next() bool {
	if !s.ChunkSeriesSet.Next() {
		return false
	}
	chks, samples := 0, 0
	s.its = s.At().Iterator(s.its)
	for s.its.Next() {
		chks++
		samples += s.its.At().Chunk.NumSamples()
	}
	s.in.SeriesRead(chks, samples)
	return true
}

// SeriesRead counts a series, with so many chunks and samples. Writing a block calls it, too.
func (c countedInput) SeriesRead(chunks, samples int) {
	c.seen.Add(1)
	c.count.series++
	c.count.chunks += uint64(chunks)
	c.count.samples += uint64(samples)
}
