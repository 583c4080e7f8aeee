package block

import (
	"cmp"
	"context"
	"encoding/binary"
	"hash/crc32"
	"slices"

	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/merge"
)

// merging is the goroutine of a writer that reads the inputs, series by series, and copies what can be copied.
type merging struct {
	*writer
	ctx     context.Context
	groups  *groups
	encoder encoder // for inputs that cannot be read ahead of
	jobs    chan *encodeJob
	job     *encodeJob // that is being filled, of the last batch; nil if there is none
	toCopy  []copiedChunk
	series  []storage.ChunkSeries
}

// all takes batches from free, fills them, and hands them on.
func (m *merging) all(free <-chan *mergedSeries, ready chan<- *mergedSeries) error {
	for {
		var b *mergedSeries
		select {
		case b = <-free:
		case <-m.ctx.Done():
			return m.ctx.Err()
		}
		more, err := m.some(b)
		if err == nil {
			err = m.start()
		}
		if err != nil {
			return err
		}
		select {
		case ready <- b:
		case <-m.ctx.Done():
			return m.ctx.Err()
		}
		if !more {
			return nil
		}
	}
}

// some fills a batch with the next series; more is false after the last one.
func (m *merging) some(b *mergedSeries) (more bool, err error) {
	if err := m.ctx.Err(); err != nil {
		return false, err
	}
	for !b.full() {
		if more, err = m.groups.next(); err != nil || !more {
			return false, err
		}
		e := mergedEntry{}
		switch parts := m.parts(); {
		case parts == nil:
			err = m.encodeNow(b)
		case !m.copy(b, parts):
			e.job, e.n, err = m.encodeLater(b, parts)
		}
		if err != nil {
			return false, err
		}
		b.labels = append(b.labels, m.groups.labels...)
		e.labels, e.chks, e.frames = len(b.labels), len(b.chks), len(b.frames)
		b.series = append(b.series, e)
	}
	return true, nil
}

// copiedChunk is a chunk of a series: which one of which source.
type copiedChunk struct {
	*storedChunk
	source, n int
}

// parts returns the chunks of all sources of a series, those of one after those of the other; nil if a source has them otherwise.
func (m *merging) parts() []copiedChunk {
	all := m.toCopy[:0]
	for _, i := range m.groups.at {
		s, ok := m.sources[i].(*storedSeries)
		if !ok {
			return nil
		}
		chks := s.chunks()
		for n := range chks {
			all = append(all, copiedChunk{&chks[n], i, n})
		}
	}
	m.toCopy = all
	return all
}

// copy appends the chunks of a series as they are in the inputs' files. It is false, and nothing is appended, if they cannot be copied
// one and all, because they overlap, are small, or reach out of range.
func (m *merging) copy(b *mergedSeries, all []copiedChunk) bool {
	byTime := func(a, b copiedChunk) int { return cmp.Compare(a.mint, b.mint) }
	if !slices.IsSortedFunc(all, byTime) {
		all = slices.Clone(all)
		slices.SortStableFunc(all, byTime)
	}
	p := merge.NewPassage(m.meta.MinTime, m.meta.MaxTime-1, m.o.Encode)
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

// encodeNow merges the samples of a series.
func (m *merging) encodeNow(b *mergedSeries) (err error) {
	m.series = m.series[:0]
	for _, i := range m.groups.at {
		part, err := m.sources[i].decoded()
		if err != nil {
			return err
		}
		m.series = append(m.series, part)
	}
	b.chks, b.frames, err = m.encoder.encode(m.groups.labels, m.series, b.chks, b.frames)
	return err
}

// encodeLater gives a series to a job. The job is started when it has enough.
func (m *merging) encodeLater(b *mergedSeries, parts []copiedChunk) (j *encodeJob, n int, err error) {
	if m.job == nil {
		m.job = b.newJob()
	}
	j = m.job
	n = j.add(m.groups.labels, parts)
	if j.full() {
		err = m.start()
	}
	return j, n, err
}

// start hands on the job that was filled, if there is one.
func (m *merging) start() error {
	if m.job == nil {
		return nil
	}
	select {
	case m.jobs <- m.job:
		m.job = nil
		return nil
	case <-m.ctx.Done():
		return m.ctx.Err()
	}
}
