package block

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/encoding"
	"github.com/prometheus/prometheus/tsdb/index"
)

// seriesBatch is the number of series that are read from a block in one go.
const seriesBatch = 1000

// indexReader is the tsdb.IndexReader of one query: it carries the query's context, and what it has loaded is released by
// Close. It is for one goroutine.
type indexReader struct {
	ctx   context.Context
	r     rangeReader
	h     *header
	dec   index.Decoder
	views []*items

	pending []*pendingPostings // not read yet
}

var _ tsdb.IndexReader = (*indexReader)(nil)

// newIndexReader takes over the caller's pin of the header.
func newIndexReader(ctx context.Context, r rangeReader, h *header) *indexReader {
	lookup := func(_ context.Context, n uint32) (string, error) { return h.symbol(n) }
	return &indexReader{ctx: ctx, r: r, h: h, dec: index.Decoder{LookupSymbol: lookup}}
}

// Close gives back what postings have taken, and the header. It is called once.
func (ix *indexReader) Close() error {
	for _, v := range ix.views {
		v.release()
	}
	ix.views = nil
	ix.h.unpin()
	return nil
}

func (ix *indexReader) Symbols() index.StringIter { return &symbolIter{h: ix.h} }

// SortedLabelValues implements tsdb.IndexReader. The strings are copies.
func (ix *indexReader) SortedLabelValues(ctx context.Context, name string, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, error) {
	limit := math.MaxInt
	if hints != nil && hints.Limit > 0 {
		limit = hints.Limit
	}
	own, others := splitMatchers(name, ms)
	if len(others) == 0 {
		return ix.valuesMatching(name, own, limit), nil
	}
	// What the label's own matchers say is part of the selection; values are then those of the selected series.
	return ix.valuesOfSeries(ctx, name, limit, ms)
}

// LabelValues implements tsdb.IndexReader.
func (ix *indexReader) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, error) {
	return ix.SortedLabelValues(ctx, name, hints, ms...)
}

func splitMatchers(name string, ms []*labels.Matcher) (own, others []*labels.Matcher) {
	for _, m := range ms {
		if m.Name == name {
			own = append(own, m)
		} else {
			others = append(others, m)
		}
	}
	return own, others
}

func matchesAll(ms []*labels.Matcher, value string) bool {
	return !slices.ContainsFunc(ms, func(m *labels.Matcher) bool { return !m.Matches(value) })
}

// valuesMatching returns values from the header alone.
func (ix *indexReader) valuesMatching(name string, ms []*labels.Matcher, limit int) []string {
	var out []string
	e := ix.h.names[name]
	for i := e.first; i < e.last && len(out) < limit; i++ {
		if v, _ := ix.h.entry(i); matchesAll(ms, v) {
			out = append(out, strings.Clone(v))
		}
	}
	return out
}

// valuesOfSeries returns the values of a label in the series that matchers select: from their entries, or by intersecting
// their postings with those of each value, whichever reads less.
func (ix *indexReader) valuesOfSeries(ctx context.Context, name string, limit int, ms []*labels.Matcher) ([]string, error) {
	e, ok := ix.h.names[name]
	if !ok {
		return nil, nil
	}
	refs, err := ix.selectRefs(ctx, ms)
	if err != nil || len(refs) == 0 {
		return nil, err
	}
	first, last := ix.h.postingsSpan(e.first), ix.h.postingsSpan(e.last-1)
	if int64(len(refs))*ix.h.seriesGuess/2 > last.end()-first.off {
		return ix.valuesByPostings(name, e, refs, limit)
	}
	values := map[string]struct{}{}
	err = ix.forSeries(ctx, refs, func(b []byte) error {
		return ix.labelsOf(b, func(n, v string) {
			if n == name {
				if _, ok := values[v]; !ok {
					values[strings.Clone(v)] = struct{}{}
				}
			}
		})
	})
	return limited(sortedKeys(values), limit), err
}

func (ix *indexReader) valuesByPostings(name string, e nameEntries, refs []storage.SeriesRef, limit int) ([]string, error) {
	loaded, err := ix.loadPostings(entryRange(e))
	if err != nil {
		return nil, err
	}
	lists := make([]index.Postings, e.last-e.first)
	for i := range lists {
		if lists[i], err = loaded.list(e.first + i); err != nil {
			return nil, fmt.Errorf("postings of label %q: %w", name, err)
		}
	}
	found, err := index.FindIntersectingPostings(index.NewListPostings(refs), lists)
	if err != nil {
		return nil, fmt.Errorf("intersect postings of label %q: %w", name, err)
	}
	slices.Sort(found)
	out := make([]string, 0, min(limit, len(found)))
	for _, i := range found[:min(limit, len(found))] {
		v, _ := ix.h.entry(e.first + i)
		out = append(out, strings.Clone(v))
	}
	return out, nil
}

func entryRange(e nameEntries) []int {
	out := make([]int, 0, e.last-e.first)
	for i := e.first; i < e.last; i++ {
		out = append(out, i)
	}
	return out
}

func sortedKeys(m map[string]struct{}) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func limited(s []string, limit int) []string { return s[:min(limit, len(s))] }

// selectRefs returns the series that matchers select.
func (ix *indexReader) selectRefs(ctx context.Context, ms []*labels.Matcher) ([]storage.SeriesRef, error) {
	// PostingsForMatchers sorts the slice that it is given.
	p, err := tsdb.PostingsForMatchers(ctx, ix, slices.Clone(ms)...)
	if err != nil {
		return nil, err
	}
	return index.ExpandPostings(p)
}

// LabelNames implements tsdb.IndexReader. The strings are copies.
func (ix *indexReader) LabelNames(ctx context.Context, ms ...*labels.Matcher) ([]string, error) {
	if len(ms) == 0 {
		return slices.Clone(ix.h.labelNames()), nil
	}
	p, err := tsdb.PostingsForMatchers(ctx, ix, slices.Clone(ms)...)
	if err != nil {
		return nil, err
	}
	return ix.LabelNamesFor(ctx, p)
}

// LabelNamesFor implements tsdb.IndexReader. The strings are copies.
func (ix *indexReader) LabelNamesFor(ctx context.Context, p index.Postings) ([]string, error) {
	refs, err := index.ExpandPostings(p)
	if err != nil {
		return nil, err
	}
	names := map[string]struct{}{}
	err = ix.forSeries(ctx, refs, func(b []byte) error {
		return ix.labelsOf(b, func(n, _ string) {
			if _, ok := names[n]; !ok {
				names[strings.Clone(n)] = struct{}{}
			}
		})
	})
	return sortedKeys(names), err
}

// Postings implements tsdb.IndexReader. Postings are read when they are first looked at; see pendingPostings.
func (ix *indexReader) Postings(_ context.Context, name string, values ...string) (index.Postings, error) {
	var entries []int
	for _, v := range values {
		if i := ix.h.find(name, v); i >= 0 {
			entries = append(entries, i)
		}
	}
	return ix.later(name, entries), nil
}

// PostingsForLabelMatching implements tsdb.IndexReader.
func (ix *indexReader) PostingsForLabelMatching(_ context.Context, name string, match func(string) bool) index.Postings {
	var entries []int
	e := ix.h.names[name]
	for i := e.first; i < e.last; i++ {
		if v, _ := ix.h.entry(i); match(v) {
			entries = append(entries, i)
		}
	}
	return ix.later(name, entries)
}

// PostingsForAllLabelValues implements tsdb.IndexReader.
func (ix *indexReader) PostingsForAllLabelValues(_ context.Context, name string) index.Postings {
	return ix.later(name, entryRange(ix.h.names[name]))
}

// SortedPostings implements tsdb.IndexReader: references are in the order of labels.
func (ix *indexReader) SortedPostings(p index.Postings) index.Postings { return p }

// ShardedPostings implements tsdb.IndexReader.
func (ix *indexReader) ShardedPostings(p index.Postings, shard, count uint64) index.Postings {
	refs, err := index.ExpandPostings(p)
	if err != nil {
		return index.ErrPostings(err)
	}
	var (
		out     []storage.SeriesRef
		builder labels.ScratchBuilder
		i       int
	)
	err = ix.forSeries(ix.ctx, refs, func(b []byte) error {
		if err := ix.decode(b, &builder, nil); err != nil {
			return err
		}
		if labels.StableHash(builder.Labels())%count == shard {
			out = append(out, refs[i])
		}
		i++
		return nil
	})
	if err != nil {
		return index.ErrPostings(err)
	}
	return index.NewListPostings(out)
}

// Series implements tsdb.IndexReader.
func (ix *indexReader) Series(ref storage.SeriesRef, builder *labels.ScratchBuilder, chks *[]chunks.Meta) error {
	return ix.forSeries(ix.ctx, []storage.SeriesRef{ref}, func(b []byte) error {
		return ix.decode(b, builder, chks)
	})
}

func (ix *indexReader) decode(b []byte, builder *labels.ScratchBuilder, chks *[]chunks.Meta) error {
	if err := ix.dec.Series(b, builder, chks); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}

// forSeries calls f with the content of series entries, in batches; it is valid until f returns.
func (ix *indexReader) forSeries(ctx context.Context, refs []storage.SeriesRef, f func(b []byte) error) error {
	for batch := range slices.Chunk(refs, seriesBatch) {
		loaded, err := ix.loadSeries(ctx, batch)
		if err != nil {
			return err
		}
		for i, ref := range batch {
			if err = ix.withSeries(loaded, i, ref, f); err != nil {
				break
			}
		}
		loaded.release()
		if err != nil {
			return err
		}
	}
	return nil
}

// withSeries calls f with the checked content of an entry.
func (ix *indexReader) withSeries(loaded *items, i int, ref storage.SeriesRef, f func(b []byte) error) error {
	b, err := loaded.content(i)
	if err == nil {
		err = f(b)
	}
	if err != nil {
		return fmt.Errorf("series %d at byte %d of the index: %w", ref, int64(ref)*seriesAlign, err)
	}
	return nil
}

// loadSeries reads series entries, sorted by reference.
func (ix *indexReader) loadSeries(ctx context.Context, refs []storage.SeriesRef) (*items, error) {
	first, end := int64(ix.h.toc.Series), int64(ix.h.toc.LabelIndices)
	at := make([]item, len(refs))
	for i, ref := range refs {
		off := int64(ref) * seriesAlign
		if ref > math.MaxUint32 || off < first || off >= end {
			return nil, fmt.Errorf("%w: series %d is outside of the index's series", ErrCorrupt, ref)
		}
		n := min(ix.h.seriesGuess, end-off)
		if i+1 < len(refs) {
			n = max(min(n, int64(refs[i+1]-ref)*seriesAlign), 0)
		}
		at[i] = item{off: off, guess: n}
	}
	loaded, err := loadItems(ctx, ix.r, indexFile, at, seriesFraming)
	if err != nil {
		return nil, fmt.Errorf("read series: %w", err)
	}
	return loaded, nil
}

// labelsOf calls f with the labels of a series entry. The strings share the header's memory.
func (ix *indexReader) labelsOf(b []byte, f func(name, value string)) error {
	d := encoding.Decbuf{B: b}
	for k := d.Uvarint64(); k > 0; k-- {
		n, v := d.Uvarint64(), d.Uvarint64()
		if d.Err() != nil {
			return fmt.Errorf("%w: labels: %w", ErrCorrupt, d.Err())
		}
		name, err := ix.h.symbol(uint32(min(n, math.MaxUint32)))
		if err != nil {
			return err
		}
		value, err := ix.h.symbol(uint32(min(v, math.MaxUint32)))
		if err != nil {
			return err
		}
		f(name, value)
	}
	return nil
}
