package block

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// postingsAhead is how many references of series are sorted into postings at a time. Where there are more series, it is as many as there are of these: the
// postings of all series, or of a label that all have, take as much, and the series are not read again more often than once for each of their labels.
const postingsAhead = 2 << 20

// postingsAlign is the unit of where postings begin. As they have 4 bytes a reference, only the first ones need padding.
const postingsAlign = 4

// notNow is the place of labels whose postings are not being written.
const notNow = ^uint32(0)

// labelPair is a label as numbers of symbols.
type labelPair struct {
	name, value uint32
	next        uint32 // another pair of this value; 0 is none
	series      uint32 // how many have it
	place       uint32 // where the next reference goes
}

// labelPairs counts the series of each label. A value mostly belongs to one name: pairs are found by their value.
type labelPairs struct {
	first []uint32    // by value
	all   []labelPair // the one at 0 stands for all series
}

func newLabelPairs(symbols int) labelPairs {
	return labelPairs{first: make([]uint32, symbols), all: make([]labelPair, 1)}
}

func (p *labelPairs) find(name, value uint32) *labelPair {
	for i := p.first[value]; i != 0; i = p.all[i].next {
		if p.all[i].name == name {
			return &p.all[i]
		}
	}
	return nil
}

func (p *labelPairs) count(name, value uint32) {
	pair := p.find(name, value)
	if pair == nil {
		p.all = append(p.all, labelPair{name: name, value: value, next: p.first[value]})
		p.first[value] = uint32(len(p.all) - 1)
		pair = &p.all[len(p.all)-1]
	}
	pair.series++
}

// sorted returns the pairs in the order of names and values, which is that of their numbers. All series come first.
func (p *labelPairs) sorted() []*labelPair {
	out := make([]*labelPair, len(p.all))
	for i := range p.all {
		out[i] = &p.all[i]
		out[i].place = notNow
	}
	slices.SortFunc(out[1:], func(a, b *labelPair) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.value, b.value)) })
	return out
}

// writePostings writes the references of all series, and those of each label. It reads the entries of the series again, once for as many
// labels as have no more than w.ahead or as many as there are of them, so that memory does not grow with the number of labels of a series.
func (w *indexWriter) writePostings(ctx context.Context, sorted []*labelPair) error {
	if err := w.flush(); err != nil {
		return err
	}
	var buf []uint32
	for len(sorted) > 0 {
		n, total := w.nextLabels(sorted)
		if n == 0 {
			return fmt.Errorf("%w: label %d=%d is more often there than there are series", ErrCorrupt, sorted[0].name, sorted[0].value)
		}
		buf = slices.Grow(buf[:0], int(total))
		refs := buf[:total]
		if err := w.sortRefs(ctx, refs); err != nil {
			return fmt.Errorf("read series of the index again: %w", err)
		}
		for _, p := range sorted[:n] {
			if err := w.writeList(refs[:p.series]); err != nil {
				return err
			}
			refs = refs[p.series:]
			p.place = notNow
		}
		sorted = sorted[n:]
	}
	return nil
}

// nextLabels gives a place to the references of the first n labels, as many as are sorted at a time, and returns how many references these have.
func (w *indexWriter) nextLabels(sorted []*labelPair) (n int, total uint32) {
	ahead := max(w.ahead, w.series)
	for n < len(sorted) && total+sorted[n].series <= ahead {
		sorted[n].place = total
		total += sorted[n].series
		n++
	}
	return n, total
}

// sortRefs puts the references of the series where their labels have a place. What comes back from a disk need not be what was written: numbers of labels are
// used only where the checksum is right.
func (w *indexWriter) sortRefs(ctx context.Context, refs []uint32) error {
	pos, end := int64(w.toc.Series), int64(w.toc.LabelIndices)
	r := bufio.NewReaderSize(io.NewSectionReader(w.file, pos, end-pos), max(indexBuffer, int(w.largest)))
	for n := range w.series {
		if n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		skip := (seriesAlign - pos%seriesAlign) % seriesAlign
		if _, err := r.Discard(int(skip)); err != nil {
			return err
		}
		pos += skip
		head, err := r.Peek(maxFrame)
		if len(head) == 0 {
			return err
		}
		size, _ := seriesFraming.length(head)
		entry, err := r.Peek(int(size))
		if err != nil {
			return err
		}
		content, err := seriesFraming.content(entry)
		if err != nil {
			return fmt.Errorf("series at byte %d: %w", pos, err)
		}
		w.sortRef(content, refs, uint32(pos/seriesAlign))
		if _, err := r.Discard(int(size)); err != nil {
			return err
		}
		pos += size
	}
	return nil
}

// sortRef is sortRefs for one series.
func (w *indexWriter) sortRef(content []byte, refs []uint32, ref uint32) {
	w.pairs.all[0].put(refs, ref)
	c := cursor{b: content}
	for k := c.uvarint(); k > 0; k-- {
		name, value := uint32(c.uvarint()), uint32(c.uvarint())
		w.pairs.find(name, value).put(refs, ref)
	}
}

func (p *labelPair) put(refs []uint32, ref uint32) {
	if p.place != notNow {
		refs[p.place] = ref
		p.place++
	}
}

// writeList writes one list of postings.
func (w *indexWriter) writeList(refs []uint32) error {
	w.put(binary.BigEndian.AppendUint32(w.buf, uint32(4+4*len(refs))))
	crc := uint32(0)
	b := binary.BigEndian.AppendUint32(w.entry[:0], uint32(len(refs)))
	for {
		n := min(len(refs), indexBuffer/4)
		for _, ref := range refs[:n] {
			b = binary.BigEndian.AppendUint32(b, ref)
		}
		refs = refs[n:]
		crc = crc32.Update(crc, castagnoli, b)
		w.put(append(w.buf, b...))
		if err := w.flushFull(); err != nil {
			return err
		}
		w.entry, b = b, b[:0]
		if len(refs) == 0 {
			w.put(binary.BigEndian.AppendUint32(w.buf, crc))
			return w.flushFull()
		}
	}
}

// writePostingsTable writes where the postings of each label are. One follows the other.
func (w *indexWriter) writePostingsTable(sorted []*labelPair) error {
	var size int64
	err := w.eachList(sorted, func(name, value string, off uint64) error {
		size += 1 + stringSize(name) + stringSize(value) + uvarintSize(off)
		return nil
	})
	if err != nil {
		return err
	}
	t, err := w.table(size, len(sorted))
	if err != nil {
		return fmt.Errorf("write the offsets of postings: %w", err)
	}
	err = w.eachList(sorted, func(name, value string, off uint64) error {
		b := append(w.entry[:0], 2) // strings
		return t.add(binary.AppendUvarint(appendString(appendString(b, name), value), off))
	})
	if err != nil {
		return err
	}
	return t.end()
}

// eachList calls f with each label and where its postings are.
func (w *indexWriter) eachList(sorted []*labelPair, f func(name, value string, off uint64) error) error {
	off := (w.toc.Postings + postingsAlign - 1) / postingsAlign * postingsAlign
	for i, p := range sorted {
		var name, value string
		if i > 0 {
			name, value = w.symbols[p.name], w.symbols[p.value]
		}
		if err := f(name, value, off); err != nil {
			return err
		}
		off += 4 + 4 + 4*uint64(p.series) + crc32.Size
	}
	return nil
}
