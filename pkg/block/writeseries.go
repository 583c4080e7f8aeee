package block

import (
	"context"
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"golang.org/x/sync/errgroup"
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
	series []mergedEntry
	labels []uint32      // of all series
	chks   []placedChunk // of those that were copied
	frames []byte        // of chks
	jobs   []*encodeJob  // of those that were not
	spare  []*encodeJob
}

// mergedEntry is a series: where its labels end, and its chunks and their frames, or by which job and as its how manieth they are made.
type mergedEntry struct {
	labels, chks, frames int
	job                  *encodeJob
	n                    int
}

func (b *mergedSeries) reset() {
	for _, j := range b.jobs {
		j.reset()
	}
	*b = mergedSeries{
		series: b.series[:0], labels: b.labels[:0], chks: b.chks[:0], frames: b.frames[:0], jobs: b.jobs[:0], spare: append(b.spare, b.jobs...),
	}
}

// newJob returns a job for series of this batch.
func (b *mergedSeries) newJob() (j *encodeJob) {
	if n := len(b.spare); n > 0 {
		j, b.spare = b.spare[n-1], b.spare[:n-1]
	} else {
		j = newEncodeJob()
	}
	b.jobs = append(b.jobs, j)
	return j
}

func (b *mergedSeries) full() bool {
	return len(b.series) >= batchSeries || len(b.chks) >= batchChunks || len(b.frames)+len(b.jobs)*jobBytes >= batchBytes
}

// chunksOf returns the chunks of series i, which may be none.
func (b *mergedSeries) chunksOf(i int) []placedChunk {
	e, begin := &b.series[i], 0
	if e.job != nil {
		chks, _ := e.job.made(e.n)
		return chks
	}
	if i > 0 {
		begin = b.series[i-1].chks
	}
	return b.chks[begin:e.chks]
}

// writeSeries merges the inputs' series and writes them: one goroutine reads and merges while another one writes. What cannot be copied is encoded by
// others meanwhile.
func (w *writer) writeSeries() error {
	w.mint, w.maxt = math.MaxInt64, math.MinInt64
	g, ctx := errgroup.WithContext(w.ctx)
	ready, free := make(chan *mergedSeries), make(chan *mergedSeries, batchesAhead)
	for range batchesAhead {
		free <- &mergedSeries{}
	}
	m := &merging{writer: w, ctx: ctx, groups: newGroups(w.sources), encoder: encoder{writer: w}, jobs: make(chan *encodeJob)}
	g.Go(func() error {
		defer close(ready)
		defer close(m.jobs)
		return m.all(free, ready)
	})
	for range encoders {
		g.Go(func() error {
			e := encoder{writer: w}
			for j := range m.jobs {
				j.done <- e.do(j) // has room
			}
			return nil
		})
	}
	g.Go(func() error {
		for b := range ready {
			if err := w.writeSome(ctx, b); err != nil {
				return err
			}
			b.reset()
			free <- b // has room for all there are
		}
		return nil
	})
	return g.Wait()
}

// writeSome writes the series of a batch: their chunks, and then, as it is known where these are, their entries of the index.
func (w *writer) writeSome(ctx context.Context, b *mergedSeries) error {
	for _, j := range b.jobs {
		if err := j.wait(ctx); err != nil {
			return err
		}
	}
	var from mergedEntry
	for _, e := range b.series {
		if e.job == nil {
			continue
		}
		if err := w.chunks.write(b.frames[from.frames:e.frames], b.chks[from.chks:e.chks]); err != nil {
			return err
		}
		from = e
		chks, frames := e.job.made(e.n)
		if err := w.chunks.write(frames, chks); err != nil {
			return err
		}
	}
	if err := w.chunks.write(b.frames[from.frames:], b.chks[from.chks:]); err != nil {
		return err
	}
	begin := 0
	for i, e := range b.series {
		if err := w.addSeries(b.labels[begin:e.labels], b.chunksOf(i)); err != nil {
			return fmt.Errorf("write series %s: %w", w.labelsOf(b.labels[begin:e.labels]), err)
		}
		begin = e.labels
	}
	return nil
}

func (w *writer) addSeries(labels []uint32, chks []placedChunk) error {
	if len(chks) == 0 {
		return nil // nothing was in range
	}
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

// labelsOf returns the labels that numbers stand for.
func (w *writer) labelsOf(numbers []uint32) labels.Labels {
	var b labels.ScratchBuilder
	for i := 0; i < len(numbers); i += 2 {
		b.Add(w.symbols[numbers[i]], w.symbols[numbers[i+1]])
	}
	return b.Labels()
}

func isHistogram(e chunkenc.Encoding) bool {
	switch e {
	case chunkenc.EncHistogram, chunkenc.EncFloatHistogram, chunkenc.EncHistogramST, chunkenc.EncFloatHistogramST:
		return true
	}
	return false
}
