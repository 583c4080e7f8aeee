package migrate

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/millrace/millrace/pkg/block"
)

// spool is a file in the scratch folder with series that are on their way into blocks. It consists of sections, each of which becomes
// an input of a block: records of a series and its chunks, as a rule in order of labels.
//
// A record is its length and then, all numbers as uvarints: the number of labels, names and values with their lengths; the number of
// chunks, each with encoding, first and last time (as varints), length and bytes.
type spool struct {
	f   *os.File
	w   *bufio.Writer
	off int64
	buf []byte
}

// section is a part of a spool.
type section struct {
	off, n  int64
	span    span // of the samples; empty if there are none
	samples uint64
	sorted  bool

	writing struct {
		lset labels.Labels
		chks []chunks.Meta
	}
}

func (im *Importer) newSpool() (*spool, error) {
	f, err := os.CreateTemp(im.scratch, "spool-")
	if err != nil {
		return nil, fmt.Errorf("make scratch file: %w", err)
	}
	return &spool{f: f, w: bufio.NewWriterSize(f, 1<<20)}, nil
}

// reset forgets all sections and gives their room back.
func (s *spool) reset() error {
	s.w.Reset(s.f)
	s.off = 0
	if _, err := s.f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("empty scratch file: %w", err)
	}
	if err := s.f.Truncate(0); err != nil {
		return fmt.Errorf("empty scratch file: %w", err)
	}
	return nil
}

func (s *spool) close() error {
	return errors.Join(s.f.Close(), os.Remove(s.f.Name()))
}

// begin starts a section. Only one can be written at a time.
func (s *spool) begin() *section {
	return &section{off: s.off, span: span{maxTime, minTime}, sorted: true}
}

// abort takes back what was written of a section.
func (s *spool) abort(sec *section) error {
	if err := s.w.Flush(); err != nil {
		return fmt.Errorf("write scratch file: %w", err)
	}
	if err := s.f.Truncate(sec.off); err != nil {
		return fmt.Errorf("cut scratch file: %w", err)
	}
	if _, err := s.f.Seek(sec.off, io.SeekStart); err != nil {
		return fmt.Errorf("cut scratch file: %w", err)
	}
	s.off = sec.off
	return nil
}

// add appends a chunk of a series. Chunks of one series are added one after another, in order of time; they may be shared until end.
func (s *spool) add(sec *section, lset labels.Labels, c chunks.Meta) error {
	w := &sec.writing
	if len(w.chks) > 0 && !labels.Equal(w.lset, lset) {
		sec.sorted = sec.sorted && labels.Compare(w.lset, lset) < 0
		if err := s.record(sec); err != nil {
			return err
		}
	}
	if n := len(w.chks); n > 0 && c.MinTime <= w.chks[n-1].MaxTime {
		return fmt.Errorf("series %s: samples at %s do not follow those before", lset, stamp(c.MinTime))
	}
	w.lset, w.chks = lset, append(w.chks, c)
	sec.samples += uint64(c.Chunk.NumSamples())
	sec.span.from, sec.span.to = min(sec.span.from, c.MinTime), max(sec.span.to, c.MaxTime+1)
	return nil
}

// end completes a section.
func (s *spool) end(sec *section) error {
	if len(sec.writing.chks) > 0 {
		if err := s.record(sec); err != nil {
			return err
		}
	}
	sec.writing.chks = nil
	sec.n = s.off - sec.off
	if err := s.w.Flush(); err != nil {
		return fmt.Errorf("write scratch file: %w", err)
	}
	return nil
}

// record writes the series that is being gathered.
func (s *spool) record(sec *section) error {
	b := binary.AppendUvarint(s.buf[:0], uint64(sec.writing.lset.Len()))
	sec.writing.lset.Range(func(l labels.Label) {
		b = appendString(appendString(b, l.Name), l.Value)
	})
	b = binary.AppendUvarint(b, uint64(len(sec.writing.chks)))
	for _, c := range sec.writing.chks {
		b = append(b, byte(c.Chunk.Encoding()))
		b = binary.AppendVarint(binary.AppendVarint(b, c.MinTime), c.MaxTime)
		b = appendString(b, string(c.Chunk.Bytes()))
	}
	s.buf, sec.writing.chks = b, sec.writing.chks[:0]
	head := binary.AppendUvarint(nil, uint64(len(b)))
	for _, part := range [][]byte{head, b} {
		if _, err := s.w.Write(part); err != nil {
			return fmt.Errorf("write scratch file: %w", err)
		}
	}
	s.off += int64(len(head) + len(b))
	return nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// spooled is a section as an input of blocks.
type spooled struct {
	f        *os.File
	sec      *section
	families block.Families
}

var errSpool = errors.New("scratch file is damaged")

// Families tells what is known of metrics.
func (in *spooled) Families(context.Context) (block.Families, error) { return in.families, nil }

// Symbols implements block.Input.
func (in *spooled) Symbols() index.StringIter {
	used := map[string]struct{}{}
	set := in.series(in.sec.span)
	for set.Next() {
		set.cur.Lset.Range(func(l labels.Label) {
			used[l.Name], used[l.Value] = struct{}{}, struct{}{}
		})
	}
	if set.err != nil {
		return failedSymbols{set.err}
	}
	return index.NewStringListIter(slices.Sorted(maps.Keys(used)))
}

// ChunkQuerier implements storage.ChunkQueryable. All series are what it selects.
func (in *spooled) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return &spooledQuerier{ChunkQuerier: storage.NoopChunkedQuerier(), in: in, span: span{mint, maxt + 1}}, nil
}

type spooledQuerier struct {
	storage.ChunkQuerier
	in   *spooled
	span span
}

// Select implements storage.ChunkQuerier.
func (q *spooledQuerier) Select(context.Context, bool, *storage.SelectHints, ...*labels.Matcher) storage.ChunkSeriesSet {
	return q.in.series(q.span)
}

// series reads the series with chunks that reach into s, in order of labels.
func (in *spooled) series(s span) *spooledSet {
	set := &spooledSet{in: in, span: s, rest: in.sec.n, b: labels.NewScratchBuilder(16)}
	set.r = bufio.NewReaderSize(io.NewSectionReader(in.f, in.sec.off, in.sec.n), 256<<10)
	if !in.sec.sorted {
		set.err = set.order()
	}
	return set
}

// spooledSet reads a section, record by record.
type spooledSet struct {
	in   *spooled
	span span
	r    *bufio.Reader
	rest int64 // bytes of the section that are not read yet
	b    labels.ScratchBuilder
	cur  storage.ChunkSeriesEntry
	err  error

	ordered []located // of a section that is not in order of labels: what is left of its series
	byOrder bool
}

// located is a series and where its record is.
type located struct {
	lset labels.Labels
	off  int64
}

// order finds the records of a section that is not in order of labels. It keeps labels and place of each.
func (s *spooledSet) order() error {
	for s.rest > 0 {
		off := s.in.sec.off + s.in.sec.n - s.rest
		lset, _, err := s.read()
		if err != nil {
			return err
		}
		s.ordered = append(s.ordered, located{lset, off})
	}
	slices.SortFunc(s.ordered, func(a, b located) int { return labels.Compare(a.lset, b.lset) })
	for i := 1; i < len(s.ordered); i++ {
		if labels.Equal(s.ordered[i-1].lset, s.ordered[i].lset) {
			return fmt.Errorf("series %s came twice", s.ordered[i].lset)
		}
	}
	s.byOrder = true
	return nil
}

// Next implements storage.ChunkSeriesSet.
func (s *spooledSet) Next() bool {
	for s.err == nil && s.more() {
		var (
			lset labels.Labels
			all  []chunks.Meta
		)
		if lset, all, s.err = s.read(); s.err != nil {
			return false
		}
		all = slices.DeleteFunc(all, func(c chunks.Meta) bool { return !s.span.overlaps(span{c.MinTime, c.MaxTime + 1}) })
		if len(all) == 0 {
			continue
		}
		s.cur = storage.ChunkSeriesEntry{Lset: lset, ChunkIteratorFn: func(chunks.Iterator) chunks.Iterator {
			return storage.NewListChunkSeriesIterator(all...)
		}}
		return true
	}
	return false
}

// more tells whether there is a record, and turns to it.
func (s *spooledSet) more() bool {
	if !s.byOrder {
		return s.rest > 0
	}
	if len(s.ordered) == 0 {
		return false
	}
	off := s.ordered[0].off
	s.ordered = s.ordered[1:]
	s.rest = s.in.sec.off + s.in.sec.n - off
	s.r.Reset(io.NewSectionReader(s.in.f, off, s.rest))
	return true
}

// At implements storage.ChunkSeriesSet.
func (s *spooledSet) At() storage.ChunkSeries {
	cur := s.cur
	return &cur
}

// Err implements storage.ChunkSeriesSet.
func (s *spooledSet) Err() error { return s.err }

// Warnings implements storage.ChunkSeriesSet.
func (*spooledSet) Warnings() annotations.Annotations { return nil }

// read decodes the next record.
func (s *spooledSet) read() (labels.Labels, []chunks.Meta, error) {
	n, err := binary.ReadUvarint(s.r)
	head := int64(len(binary.AppendUvarint(nil, n)))
	if err != nil || n > uint64(s.rest-head) {
		return labels.EmptyLabels(), nil, errors.Join(errSpool, err)
	}
	s.rest -= head + int64(n)
	// Chunks are used until the querier is closed, so that each record has memory of its own.
	raw := make([]byte, n)
	if _, err := io.ReadFull(s.r, raw); err != nil {
		return labels.EmptyLabels(), nil, errors.Join(errSpool, err)
	}
	d := decoder{b: raw}
	s.b.Reset()
	for range d.count() {
		name := d.bytes()
		s.b.Add(string(name), string(d.bytes()))
	}
	count := d.count()
	all := make([]chunks.Meta, 0, count)
	for range count {
		enc := chunkenc.Encoding(d.byte())
		c := chunks.Meta{MinTime: d.varint(), MaxTime: d.varint()}
		var err error
		if c.Chunk, err = chunkenc.FromData(enc, d.bytes()); err != nil {
			return labels.EmptyLabels(), nil, errors.Join(errSpool, err)
		}
		all = append(all, c)
	}
	return s.b.Labels(), all, d.err
}

// decoder reads the parts of a record. After an error it gives zeros.
type decoder struct {
	b   []byte
	err error
}

// count reads a number of things, of which each takes a byte at least.
func (d *decoder) count() int { return int(d.uvarint()) }

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > uint64(len(d.b)) {
		d.err, d.b = errSpool, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.err, d.b = errSpool, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.err = errSpool
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.err, d.b = errSpool, nil
		return nil
	}
	out := d.b[:n:n]
	d.b = d.b[n:]
	return out
}
