package block

import (
	"context"
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/millrace/millrace/pkg/merge"
)

const (
	// encoders is how many goroutines encode series that cannot be copied.
	encoders = 2
	// jobBytes is how many bytes of chunks they get at a time.
	jobBytes     = 64 << 10
	maxJobMemory = 4 * jobBytes
)

// encoder merges the samples of series. It is for one goroutine.
type encoder struct {
	*writer
	merger   merge.Merger
	comparer merge.Comparer
	in       decodedParts
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

// reset makes the memory of a job that is done ready for the next one; it is let go of where long series made it large.
func (j *encodeJob) reset() {
	if cap(j.raw) > maxJobMemory || cap(j.frames) > maxJobMemory {
		j.raw, j.frames = nil, nil
	}
	clear(j.chks)
	*j = encodeJob{
		labels: j.labels[:0], series: j.series[:0], parts: j.parts[:0], chks: j.chks[:0], raw: j.raw[:0],
		out: j.out[:0], frames: j.frames[:0], done: j.done,
	}
}

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
	before, first := jobSeries{}, 0
	for i := range j.series {
		s := &j.series[i]
		e.in.reset()
		for _, end := range j.parts[before.parts:s.parts] {
			if err := e.in.add(j.chks[first:end]); err != nil {
				return err
			}
			first = end
		}
		if j.out, j.frames, err = e.encode(j.labels[before.labels:s.labels], e.in.series, j.out, j.frames); err != nil {
			return err
		}
		s.out, s.frames = len(j.out), len(j.frames)
		before = *s
	}
	return nil
}

// decodedParts makes chunks of what they are in their files, in memory that is used again.
type decodedParts struct {
	series []storage.ChunkSeries
	parts  []*chunkSeries
}

func (d *decodedParts) reset() { d.series = d.series[:0] }

// add appends what one input has of a series.
func (d *decodedParts) add(all []storedChunk) error {
	n := len(d.series)
	if n == len(d.parts) {
		d.parts = append(d.parts, &chunkSeries{})
	}
	part := d.parts[n]
	part.chks = slices.Grow(part.chks[:0], len(all))[:len(all)]
	for i := range all {
		c := &all[i]
		chk, err := openChunk(part.chks[i].Chunk, c.encoding(), c.data())
		if err != nil {
			return fmt.Errorf("%w: chunk at %d: %w", ErrCorrupt, c.mint, err)
		}
		part.chks[i] = chunks.Meta{Chunk: chk, MinTime: c.mint, MaxTime: c.maxt}
	}
	d.series = append(d.series, part)
	return nil
}

// openChunk makes a chunk of its data, of what an earlier one was if that fits; it may be nil.
func openChunk(reuse chunkenc.Chunk, e chunkenc.Encoding, data []byte) (chunkenc.Chunk, error) {
	if reuse == nil || reuse.Encoding() != e {
		return chunkenc.FromData(e, data)
	}
	reuse.Reset(data)
	return reuse, nil
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
