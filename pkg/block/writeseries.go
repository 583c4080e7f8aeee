package block

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/pkg/merge"
)

const (
	// batchSeries, batchChunks and batchBytes bound what goes from the merge of inputs to the files at a time.
	batchSeries = 4096
	batchChunks = 16384
	batchBytes  = 1 << 20
	// batchesAhead is how many batches there are: one being merged, one being written, one on its way.
	batchesAhead = 3
)

// mergedSeries is a number of series on their way to the files.
type mergedSeries struct {
	series []storedEntry
	labels []uint32
	chks   []placedChunk
	frames []byte // of all chunks
}

func (b *mergedSeries) reset() {
	b.series, b.labels, b.chks, b.frames = b.series[:0], b.labels[:0], b.chks[:0], b.frames[:0]
}

func (b *mergedSeries) full() bool {
	return len(b.series) >= batchSeries || len(b.chks) >= batchChunks || len(b.frames) >= batchBytes
}

// writeSeries merges the inputs' series and writes them, in two goroutines: one reads and merges while the other writes.
func (w *writer) writeSeries() error {
	w.mint, w.maxt = math.MaxInt64, math.MinInt64
	g, ctx := errgroup.WithContext(w.ctx)
	ready, free := make(chan *mergedSeries), make(chan *mergedSeries, batchesAhead)
	for range batchesAhead {
		free <- &mergedSeries{}
	}
	g.Go(func() error {
		defer close(ready)
		return w.mergeAll(ctx, free, ready)
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
func (w *writer) mergeAll(ctx context.Context, free <-chan *mergedSeries, ready chan<- *mergedSeries) error {
	groups := newGroups(w.sources)
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
func (w *writer) mergeSome(ctx context.Context, g *groups, b *mergedSeries) (more bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	for !b.full() {
		if more, err = g.next(); err != nil || !more {
			return false, err
		}
		begin := len(b.chks)
		if !w.copySeries(g, b) {
			if err := w.encodeSeries(g, b); err != nil {
				return false, err
			}
		}
		if len(b.chks) > begin {
			b.labels = append(b.labels, g.labels...)
			b.series = append(b.series, storedEntry{len(b.labels), len(b.chks)})
		}
	}
	return true, nil
}

// copiedChunk is a chunk of one of the sources of a series.
type copiedChunk struct {
	*storedChunk
	source, n int
}

// copySeries appends the chunks of a series as they are in the inputs' files. It is false, and nothing is appended, if they cannot be copied
// one and all, because they overlap, are small, or reach out of range, or if an input has them otherwise.
func (w *writer) copySeries(g *groups, b *mergedSeries) bool {
	all := w.toCopy[:0]
	for _, i := range g.at {
		s, ok := g.sources[i].(*storedSeries)
		if !ok {
			return false
		}
		chks := s.chunks()
		for n := range chks {
			all = append(all, copiedChunk{&chks[n], i, n})
		}
	}
	w.toCopy = all
	byTime := func(a, b copiedChunk) int { return cmp.Compare(a.mint, b.mint) }
	if !slices.IsSortedFunc(all, byTime) {
		slices.SortStableFunc(all, byTime)
	}
	p := merge.NewPassage(w.meta.MinTime, w.meta.MaxTime-1, w.o.Encode)
	for _, c := range all {
		if c.mint > c.maxt || !p.Next(c.mint, c.maxt, c.encoding(), c.samples) {
			return false
		}
	}
	for i, c := range all {
		begin := len(b.frames)
		b.frames = append(b.frames, c.frame...)
		if i == 0 || all[i-1].source != c.source || all[i-1].n+1 != c.n {
			forgetReset(b.frames[begin:], c.storedChunk)
		}
		b.chks = append(b.chks, placedChunk{
			mint: c.mint, maxt: c.maxt, size: int64(len(c.frame)), samples: c.samples, histogram: isHistogram(c.encoding()),
		})
	}
	return true
}

// forgetReset makes the copy of a chunk that follows on another one than it did leave it open whether there was a counter reset before it.
func forgetReset(frame []byte, c *storedChunk) {
	content, sum := frame[c.head:len(frame)-crc32.Size], frame[len(frame)-crc32.Size:]
	if merge.ForgetReset(c.encoding(), content[1:]) {
		binary.BigEndian.PutUint32(sum, crc32.Checksum(content, castagnoli))
	}
}

// encodeSeries merges the samples of a series.
func (w *writer) encodeSeries(g *groups, b *mergedSeries) error {
	lset := w.labelsOf(g.labels)
	series := make([]storage.ChunkSeries, len(g.at))
	mint, maxt := w.meta.MinTime, w.meta.MaxTime-1
	var err error
	for i, at := range g.at {
		if series[i], err = g.sources[at].decoded(lset); err != nil {
			return fmt.Errorf("read series %s: %w", lset, err)
		}
	}
	if w.metas, err = w.merger.Append(w.metas[:0], series, mint, maxt, w.o.Encode); err != nil {
		return fmt.Errorf("merge series %s: %w", lset, err)
	}
	if w.o.Check {
		if err := w.comparer.Compare(series, mint, maxt, w.metas, w.o.Encode); err != nil {
			return fmt.Errorf("check series %s: %w", lset, err)
		}
	}
	for _, m := range w.metas {
		begin := len(b.frames)
		b.frames = appendFrame(b.frames, m.Chunk.Encoding(), m.Chunk.Bytes())
		b.chks = append(b.chks, placedChunk{
			mint: m.MinTime, maxt: m.MaxTime, size: int64(len(b.frames) - begin), samples: m.Chunk.NumSamples(), histogram: isHistogram(m.Chunk.Encoding()),
		})
	}
	clear(w.metas) // lets go of what they were read into
	return nil
}

// labelsOf returns the labels that numbers stand for.
func (w *writer) labelsOf(numbers []uint32) labels.Labels {
	var b labels.ScratchBuilder
	for i := 0; i < len(numbers); i += 2 {
		b.Add(w.symbols[numbers[i]], w.symbols[numbers[i+1]])
	}
	return b.Labels()
}

// writeSome writes the series of a batch.
func (w *writer) writeSome(b *mergedSeries) error {
	if err := w.chunks.write(b.frames, b.chks); err != nil {
		return err
	}
	var begin storedEntry
	for _, end := range b.series {
		if err := w.addSeries(b.labels[begin.refs:end.refs], b.chks[begin.chks:end.chks]); err != nil {
			return fmt.Errorf("write series %s: %w", w.labelsOf(b.labels[begin.refs:end.refs]), err)
		}
		begin = end
	}
	return nil
}

func (w *writer) addSeries(labels []uint32, chks []placedChunk) error {
	if err := w.index.addSeries(labels, chks); err != nil {
		return err
	}
	if w.digest != nil {
		w.digest.addSeries(labels, chks)
	}
	w.noteMetric(labels)
	w.stats.NumSeries++
	w.stats.NumChunks += uint64(len(chks))
	w.mint, w.maxt = min(w.mint, chks[0].mint), max(w.maxt, chks[len(chks)-1].maxt)
	for i := range chks {
		c := &chks[i]
		w.stats.NumSamples += uint64(c.samples)
		if c.histogram {
			w.stats.NumHistogramSamples += uint64(c.samples)
		} else {
			w.stats.NumFloatSamples += uint64(c.samples)
		}
		w.sizes.ChunkMaxSize = max(w.sizes.ChunkMaxSize, c.size)
	}
	return nil
}

func isHistogram(e chunkenc.Encoding) bool {
	switch e {
	case chunkenc.EncHistogram, chunkenc.EncFloatHistogram, chunkenc.EncHistogramST, chunkenc.EncFloatHistogramST:
		return true
	}
	return false
}
