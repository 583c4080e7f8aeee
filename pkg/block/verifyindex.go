package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sort"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/encoding"
)

// checkSeries reads all series entries and their chunks.
func (v *verifier) checkSeries() error {
	first, end := int64(v.h.toc.Series), int64(v.h.toc.LabelIndices)
	s, err := openStream(v.ctx, v.r, indexFile, first, end)
	if err != nil {
		return err
	}
	defer s.close()
	ix := newIndexReader(v.ctx, v.r, v.h)
	for {
		if err := v.ctx.Err(); err != nil {
			return err
		}
		if err := s.skipTo((s.pos + seriesAlign - 1) / seriesAlign * seriesAlign); err != nil || s.pos >= end {
			return err
		}
		v.series = ""
		off := s.pos
		content, err := s.next(seriesFraming)
		if err != nil {
			if err := v.judge(IndexFilename, off, err); err != nil {
				return err
			}
			if s.broken {
				return nil
			}
			continue
		}
		v.refs = append(v.refs, uint32(off/seriesAlign))
		if err := v.checkEntry(ix, off, content); err != nil {
			return err
		}
	}
}

// checkEntry checks one series.
func (v *verifier) checkEntry(ix *indexReader, off int64, content []byte) error {
	var (
		builder labels.ScratchBuilder
		chks    []chunks.Meta
	)
	if err := ix.decode(content, &builder, &chks); err != nil {
		return v.judge(IndexFilename, off, err)
	}
	if err := v.tallyLabels(off, content); err != nil {
		return err
	}
	lset := builder.Labels()
	v.series = lset.String()
	if v.stats.NumSeries > 0 && labels.Compare(lset, v.last) <= 0 {
		if err := v.find(IndexFilename, off, "series is not after the one before it"); err != nil {
			return err
		}
	}
	v.last = lset
	v.stats.NumSeries++
	if len(chks) == 0 {
		return v.find(IndexFilename, off, "series has no chunks")
	}
	for i, c := range chks {
		if err := v.checkChunkMeta(off, chks, i); err != nil {
			return err
		}
		v.stats.NumChunks++
		if err := v.checkChunk(c); err != nil {
			return err
		}
	}
	return nil
}

// checkChunkMeta checks what the index says of chunk i.
func (v *verifier) checkChunkMeta(off int64, chks []chunks.Meta, i int) error {
	c := chks[i]
	var problem string
	switch {
	case c.MinTime > c.MaxTime:
		problem = "ends before it begins"
	case i > 0 && c.MinTime <= chks[i-1].MaxTime:
		problem = "overlaps the one before it"
	case c.MinTime < v.meta.MinTime || c.MaxTime >= v.meta.MaxTime:
		problem = fmt.Sprintf("is outside of the block's range [%d, %d)", v.meta.MinTime, v.meta.MaxTime)
	case v.stats.NumChunks > 0 && c.Ref <= v.chunk:
		problem = "is not stored after the one before it"
	}
	v.chunk = max(v.chunk, c.Ref)
	if problem == "" {
		return nil
	}
	return v.find(IndexFilename, off, "chunk %d, %d to %d, %s", i, c.MinTime, c.MaxTime, problem)
}

// tallyLabels counts a series for its labels.
func (v *verifier) tallyLabels(off int64, content []byte) error {
	d := encoding.Decbuf{B: content}
	ref := uint32(off / seriesAlign)
	last := ""
	for k := d.Uvarint64(); k > 0 && d.Err() == nil; k-- {
		p := symbolPair{name: uint32(d.Uvarint64()), value: uint32(d.Uvarint64())}
		v.pairs[p] = v.pairs[p].add(ref)
		name, err := v.h.symbol(p.name)
		if err != nil {
			return v.judge(IndexFilename, off, err)
		}
		if name <= last {
			if err := v.find(IndexFilename, off, "label %q is not in order", name); err != nil {
				return err
			}
		}
		last = name
	}
	return nil
}

// checkPostings compares all postings with the labels of the series.
func (v *verifier) checkPostings() error {
	s, err := openStream(v.ctx, v.r, indexFile, int64(v.h.toc.Postings), v.h.postingsEnd)
	if err != nil {
		return err
	}
	defer func() { s.close() }()
	var all tally
	for _, ref := range v.refs {
		all = all.add(ref)
	}
	for _, name := range v.h.sorted {
		e := v.h.names[name]
		for i := e.first; i < e.last; i++ {
			value, off := v.h.entry(i)
			if s, err = s.at(off); err != nil {
				return err
			}
			got, err := v.readPostings(s)
			if err != nil {
				if err := v.judge(IndexFilename, off, fmt.Errorf("postings of %s=%q: %w", name, value, err)); err != nil {
					return err
				}
				continue
			}
			want := all
			if name != "" || value != "" {
				want = v.take(name, value)
			}
			if got != want {
				if err := v.find(IndexFilename, off, "postings of %s=%q are not those of the series", name, value); err != nil {
					return err
				}
			}
		}
	}
	return v.reportUnlisted()
}

// take returns the tally of a label, and forgets it.
func (v *verifier) take(name, value string) tally {
	n, ok := v.symbolNumber(name)
	val, ok2 := v.symbolNumber(value)
	if !ok || !ok2 {
		return tally{}
	}
	p := symbolPair{name: n, value: val}
	t := v.pairs[p]
	delete(v.pairs, p)
	return t
}

// reportUnlisted finds labels of series for which there are no postings.
func (v *verifier) reportUnlisted() error {
	for p := range v.pairs {
		name, err1 := v.h.symbol(p.name)
		value, err2 := v.h.symbol(p.value)
		if err := errors.Join(err1, err2); err != nil {
			return v.judge(IndexFilename, -1, err)
		}
		if err := v.find(IndexFilename, -1, "there are no postings of %s=%q", strings.Clone(name), strings.Clone(value)); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) symbolNumber(s string) (uint32, bool) {
	i := sort.Search(len(v.h.symPos), func(i int) bool {
		got, err := v.h.symbol(uint32(i))
		return err != nil || got >= s
	})
	if i == len(v.h.symPos) {
		return 0, false
	}
	got, err := v.h.symbol(uint32(i))
	return uint32(i), err == nil && got == s
}

// readPostings reads a list of references and checks that they are in order and of series.
func (v *verifier) readPostings(s *fileStream) (t tally, err error) {
	b, err := s.next(postingsFraming)
	if err != nil {
		return t, err
	}
	if len(b) < 4 || int64(binary.BigEndian.Uint32(b))*4 != int64(len(b)-4) {
		return t, fmt.Errorf("%w: %d bytes for the number of references given", ErrCorrupt, len(b))
	}
	last := int64(-1)
	for b = b[4:]; len(b) > 0; b = b[4:] {
		ref := binary.BigEndian.Uint32(b)
		if int64(ref) <= last {
			return t, fmt.Errorf("%w: reference %d is after %d", ErrCorrupt, ref, last)
		}
		if _, ok := slices.BinarySearch(v.refs, ref); !ok {
			return t, fmt.Errorf("%w: there is no series %d", ErrCorrupt, ref)
		}
		last = int64(ref)
		t = t.add(ref)
	}
	return t, nil
}

// minFrame is the number of bytes of the smallest item: an empty one and its checksum.
const minFrame = 1 + crc32.Size
