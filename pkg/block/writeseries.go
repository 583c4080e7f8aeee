package block

import (
	"context"
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/pkg/merge"
)

const (
	// batchSeries and batchChunks bound what goes from the merge of inputs to the files at a time.
	batchSeries = 128
	batchChunks = 4096
	// batchesAhead is how many batches there are: one being merged, one being written, one on its way.
	batchesAhead = 3
)

// mergedSeries is a number of series on their way to the files.
type mergedSeries struct {
	labels []labels.Labels
	ends   []int // of each series' chunks
	chks   []chunks.Meta
}

func (b *mergedSeries) reset() {
	clear(b.chks) // lets go of what they were read into
	b.labels, b.ends, b.chks = b.labels[:0], b.ends[:0], b.chks[:0]
}

func (b *mergedSeries) full() bool { return len(b.labels) >= batchSeries || len(b.chks) >= batchChunks }

// writeSeries merges the inputs' series and writes them: with Parallel in two goroutines, so that one reads and merges while the
// other writes.
func (w *writer) writeSeries() error {
	sets := make([]storage.ChunkSeriesSet, len(w.inputs))
	for i, in := range w.inputs {
		q, err := in.ChunkQuerier(w.meta.MinTime, w.meta.MaxTime-1)
		if err != nil {
			return fmt.Errorf("open input: %w", err)
		}
		defer q.Close()
		sets[i] = w.selectAll(q, "")
	}
	groups := merge.Sets(sets)
	w.mint, w.maxt = math.MaxInt64, math.MinInt64
	if !w.o.Parallel {
		b := &mergedSeries{}
		for more := true; more; b.reset() {
			var err error
			if more, err = w.mergeSome(w.ctx, groups, b); err != nil {
				return err
			}
			if err := w.writeSome(b); err != nil {
				return err
			}
		}
		return nil
	}
	g, ctx := errgroup.WithContext(w.ctx)
	ready, free := make(chan *mergedSeries), make(chan *mergedSeries, batchesAhead)
	for range batchesAhead {
		free <- &mergedSeries{}
	}
	g.Go(func() error {
		defer close(ready)
		return w.mergeAll(ctx, groups, free, ready)
	})
	g.Go(func() error {
		for b := range ready {
			if err := w.writeSome(b); err != nil {
				return err
			}
			b.reset()
			free <- b // has room for all there are
		}
		return nil
	})
	return g.Wait()
}

// mergeAll takes batches from free, fills them, and hands them on.
func (w *writer) mergeAll(ctx context.Context, groups *merge.Groups, free <-chan *mergedSeries, ready chan<- *mergedSeries) error {
	for {
		var b *mergedSeries
		select {
		case b = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		more, err := w.mergeSome(ctx, groups, b)
		if err != nil {
			return err
		}
		select {
		case ready <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !more {
			return nil
		}
	}
}

// mergeSome fills a batch with the next series; more is false after the last one.
func (w *writer) mergeSome(ctx context.Context, groups *merge.Groups, b *mergedSeries) (more bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	mint, maxt := w.meta.MinTime, w.meta.MaxTime-1
	for !b.full() {
		if !groups.Next() {
			return false, groups.Err()
		}
		lset, series := groups.At()
		begin := len(b.chks)
		if b.chks, err = w.merger.Append(b.chks, series, mint, maxt, w.o.Encode); err != nil {
			return false, fmt.Errorf("merge series %s: %w", lset, err)
		}
		if w.o.Check {
			if err := w.comparer.Compare(series, mint, maxt, b.chks[begin:], w.o.Encode); err != nil {
				return false, fmt.Errorf("check series %s: %w", lset, err)
			}
		}
		if len(b.chks) > begin {
			b.labels, b.ends = append(b.labels, lset), append(b.ends, len(b.chks))
		}
	}
	return true, nil
}

// writeSome writes the series of a batch.
func (w *writer) writeSome(b *mergedSeries) error {
	begin := 0
	for i, lset := range b.labels {
		if err := w.addSeries(storage.SeriesRef(w.stats.NumSeries), lset, b.chks[begin:b.ends[i]]); err != nil {
			return fmt.Errorf("write series %s: %w", lset, err)
		}
		begin = b.ends[i]
	}
	return nil
}

func (w *writer) addSeries(ref storage.SeriesRef, lset labels.Labels, chks []chunks.Meta) error {
	if err := w.chunks.write(chks); err != nil {
		return err
	}
	if err := w.index.AddSeries(ref, lset, chks...); err != nil {
		return err
	}
	if w.o.Digest != nil {
		w.o.Digest.add(lset, chks)
	}
	w.noteMetric(lset)
	w.stats.NumSeries++
	w.stats.NumChunks += uint64(len(chks))
	w.mint, w.maxt = min(w.mint, chks[0].MinTime), max(w.maxt, chks[len(chks)-1].MaxTime)
	for _, c := range chks {
		n := uint64(c.Chunk.NumSamples())
		w.stats.NumSamples += n
		if isHistogram(c.Chunk.Encoding()) {
			w.stats.NumHistogramSamples += n
		} else {
			w.stats.NumFloatSamples += n
		}
		w.sizes.ChunkMaxSize = max(w.sizes.ChunkMaxSize, chunkSize(len(c.Chunk.Bytes())))
	}
	w.sizes.SeriesMaxSize = max(w.sizes.SeriesMaxSize, seriesSize(lset.Len(), w.symbols, chks))
	return nil
}
