package block

import (
	"context"
	"fmt"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/millrace/millrace/pkg/merge"
)

const (
	// encoders is how many goroutines encode series that cannot be copied.
	encoders = 2
	// jobBytes is how many bytes of chunks they get at a time.
	jobBytes = 64 << 10
)

// encoder merges the samples of series. It is for one goroutine.
type encoder struct {
	*writer
	merger   merge.Merger
	comparer merge.Comparer
	metas    []chunks.Meta
}

// encode appends the chunks of a series, and their frames.
func (e *encoder) encode(labels []uint32, series []storage.ChunkSeries, chks []placedChunk, frames []byte) ([]placedChunk, []byte, error) {
	mint, maxt := e.meta.MinTime, e.meta.MaxTime-1
	var err error
	if e.metas, err = e.merger.Append(e.metas[:0], series, mint, maxt, e.o.Encode); err != nil {
		return nil, nil, fmt.Errorf("merge series %s: %w", e.labelsOf(labels), err)
	}
	if e.o.Check {
		if err := e.comparer.Compare(series, mint, maxt, e.metas, e.o.Encode); err != nil {
			return nil, nil, fmt.Errorf("check series %s: %w", e.labelsOf(labels), err)
		}
	}
	for _, m := range e.metas {
		begin := len(frames)
		frames = appendFrame(frames, m.Chunk.Encoding(), m.Chunk.Bytes())
		chks = append(chks, placedChunk{
			mint: m.MinTime, maxt: m.MaxTime, size: int64(len(frames) - begin), samples: m.Chunk.NumSamples(), histogram: isHistogram(m.Chunk.Encoding()),
		})
	}
	clear(e.metas) // lets go of what they were read into
	return chks, frames, nil
}

// encodeJob is some series to be encoded, whose chunks it has copies of, and what was made of them. One goroutine fills it, another one does it, and a
// third one takes the result.
type encodeJob struct {
	labels []uint32
	series []jobSeries
	parts  []int // where those of one source end, in chks
	chks   []storedChunk
	raw    []byte // their frames

	out    []placedChunk
	frames []byte
	done   chan error
}

// jobSeries is a series: where its labels and parts end, and its result.
type jobSeries struct{ labels, parts, out, frames int }

func newEncodeJob() *encodeJob { return &encodeJob{done: make(chan error, 1)} }

func (j *encodeJob) full() bool { return len(j.raw) >= jobBytes }

// add appends a series and returns its number.
func (j *encodeJob) add(labels []uint32, parts []copiedChunk) (n int) {
	for i, c := range parts {
		if i > 0 && c.source != parts[i-1].source {
			j.parts = append(j.parts, len(j.chks))
		}
		j.chks = append(j.chks, *c.storedChunk)
		j.raw = append(j.raw, c.frame...)
	}
	j.parts = append(j.parts, len(j.chks))
	j.labels = append(j.labels, labels...)
	j.series = append(j.series, jobSeries{labels: len(j.labels), parts: len(j.parts)})
	return len(j.series) - 1
}

// do encodes the series of a job.
func (e *encoder) do(j *encodeJob) (err error) {
	raw := j.raw
	for i := range j.chks {
		n := len(j.chks[i].frame)
		j.chks[i].frame, raw = raw[:n:n], raw[n:]
	}
	var (
		before jobSeries
		first  int
		series []storage.ChunkSeries
	)
	for i := range j.series {
		s := &j.series[i]
		series = series[:0]
		for _, end := range j.parts[before.parts:s.parts] {
			d, err := decodedChunks(j.chks[first:end])
			if err != nil {
				return err
			}
			series, first = append(series, d), end
		}
		if j.out, j.frames, err = e.encode(j.labels[before.labels:s.labels], series, j.out, j.frames); err != nil {
			return err
		}
		s.out, s.frames = len(j.out), len(j.frames)
		before = *s
	}
	return nil
}

// decodedChunks makes chunks of what they are in their files.
func decodedChunks(all []storedChunk) (storage.ChunkSeries, error) {
	out := &chunkSeries{labels: labels.EmptyLabels(), chks: make([]chunks.Meta, len(all))}
	for i := range all {
		c := &all[i]
		chk, err := chunkenc.FromData(c.encoding(), c.data())
		if err != nil {
			return nil, fmt.Errorf("%w: chunk at %d: %w", ErrCorrupt, c.mint, err)
		}
		out.chks[i] = chunks.Meta{Chunk: chk, MinTime: c.mint, MaxTime: c.maxt}
	}
	return out, nil
}

// wait waits for the job.
func (j *encodeJob) wait(ctx context.Context) error {
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// made returns the result for one of the series.
func (j *encodeJob) made(n int) ([]placedChunk, []byte) {
	var begin jobSeries
	if n > 0 {
		begin = j.series[n-1]
	}
	return j.out[begin.out:j.series[n].out], j.frames[begin.frames:j.series[n].frames]
}
