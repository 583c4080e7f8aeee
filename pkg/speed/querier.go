package speed

import (
	"context"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/millrace/millrace/pkg/merge"
)

// ChunkQuerier returns a querier for the series with samples about [mint, maxt], concurrently with appends: it sees
// everything that was applied before Select and, per series, before the series' Iterator was called, in whole samples.
//
// The chunks of a series are sorted and do not overlap; late samples are in their places. Chunks that reach into [mint, maxt] are
// handed out whole where that spares encoding them anew: what they hold outside of it is to be ignored. Labels and chunks stay
// valid after Close.
func (g *Generation) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return &querier{g: g, mint: mint, maxt: maxt}, nil
}

type querier struct {
	g          *Generation
	mint, maxt int64
}

func (q *querier) Close() error { return nil }

// inRange says whether the generation has anything in the querier's range.
func (q *querier) inRange() bool {
	return q.g.minTime.Load() <= q.maxt && q.mint <= q.g.maxTime.Load()
}

// Select returns the series that match. Without matchers these are all series.
func (q *querier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	c := &collector{ctx: ctx, scope: &scope{mint: q.mint, maxt: q.maxt, withST: q.g.startTimestamps, newest: merge.NewestOnly(ctx)}, hints: hints}
	if hints != nil && (hints.Start != 0 || hints.End != 0) {
		c.mint, c.maxt = max(c.mint, hints.Start), min(c.maxt, hints.End)
	}
	if !q.inRange() {
		return storage.EmptyChunkSeriesSet()
	}
	for i := range q.g.shards {
		if err := c.collect(&q.g.shards[i], ms); err != nil {
			return storage.ErrChunkSeriesSet(err)
		}
	}
	set := &seriesSet{series: c.found, unsorted: sorted, i: -1}
	if hints != nil && hints.Limit > 0 && len(c.found) > hints.Limit {
		set.sort()
		set.series = set.series[:hints.Limit]
	}
	return set
}

// collector gathers the series of a query.
type collector struct {
	ctx context.Context
	*scope
	hints *storage.SelectHints
	found []chunkSeries
}

func (c *collector) collect(sh *shard, ms []*labels.Matcher) error {
	v := sh.view()
	sel, err := v.match(c.ctx, ms)
	if err != nil {
		return err
	}
	c.found = slices.Grow(c.found, sel.len(v.n))
	refs := make([]uint32, 0, checkContextEvery)
	sel.each(v.n, func(ref uint32) bool {
		if refs = append(refs, ref); len(refs) == cap(refs) {
			c.add(sh, refs)
			refs = refs[:0]
			err = c.ctx.Err()
		}
		return err == nil
	})
	if err != nil {
		return fmt.Errorf("select series: %w", err)
	}
	c.add(sh, refs)
	return nil
}

// add adds those of a shard's series that have something in the range.
func (c *collector) add(sh *shard, refs []uint32) {
	sh.reg.mu.RLock()
	defer sh.reg.mu.RUnlock()
	for _, ref := range refs {
		s := sh.series(ref)
		if !s.overlaps(c.mint, c.maxt) {
			continue
		}
		ls := sh.reg.at(ref).labels
		if c.hints != nil && c.hints.ShardCount > 0 && labels.StableHash(ls)%c.hints.ShardCount != c.hints.ShardIndex {
			continue
		}
		c.found = append(c.found, chunkSeries{labels: ls, sh: sh, scope: c.scope, ref: ref})
	}
}

// seriesSet iterates over series that were found. They are sorted, if need be, when the first one is asked for.
type seriesSet struct {
	series   []chunkSeries
	unsorted bool
	i        int
}

var _ merge.Gathered = (*seriesSet)(nil)

func (s *seriesSet) sort() {
	if s.unsorted {
		slices.SortFunc(s.series, func(a, b chunkSeries) int { return labels.Compare(a.labels, b.labels) })
	}
	s.unsorted = false
}

// Found implements merge.Gathered.
func (s *seriesSet) Found() iter.Seq[storage.ChunkSeries] {
	return func(yield func(storage.ChunkSeries) bool) {
		for i := range s.series {
			if !yield(&s.series[i]) {
				return
			}
		}
	}
}

func (s *seriesSet) Next() bool {
	s.sort()
	s.i++
	return s.i < len(s.series)
}

func (s *seriesSet) At() storage.ChunkSeries         { return &s.series[s.i] }
func (*seriesSet) Err() error                        { return nil }
func (*seriesSet) Warnings() annotations.Annotations { return nil }

// LabelValues returns the values of a label name, sorted. As in Prometheus's head, the series' own time ranges do not matter.
func (q *querier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	var out []string
	err := q.eachView(ctx, ms, func(v view, matched bitmap) error {
		values := v.values(name)
		for i, l := range values {
			if i%checkContextEvery == 0 && ctx.Err() != nil {
				return fmt.Errorf("list values of label %s: %w", name, ctx.Err())
			}
			if matched == nil || v.anyOf(l, matched) {
				out = append(out, l.value)
			}
		}
		return nil
	})
	return limited(out, hints), nil, err
}

// LabelNames returns the label names, sorted; see LabelValues.
func (q *querier) LabelNames(ctx context.Context, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	seen := map[string]struct{}{}
	err := q.eachView(ctx, ms, func(v view, matched bitmap) error {
		for _, n := range v.names() {
			if _, ok := seen[n.name]; ok {
				continue
			}
			if ctx.Err() != nil {
				return fmt.Errorf("list label names: %w", ctx.Err())
			}
			if matched == nil || slices.ContainsFunc(v.values(n.name), func(l *valueList) bool { return v.anyOf(l, matched) }) {
				seen[n.name] = struct{}{}
			}
		}
		return nil
	})
	out := make([]string, 0, len(seen))
	for n := range seen {
		out = append(out, n)
	}
	return limited(out, hints), nil, err
}

// eachView calls f for every shard with the series that match; nil are all.
func (q *querier) eachView(ctx context.Context, ms []*labels.Matcher, f func(view, bitmap) error) error {
	if !q.inRange() {
		return nil
	}
	for i := range q.g.shards {
		v := q.g.shards[i].view()
		var matched bitmap
		if len(ms) > 0 {
			sel, err := v.match(ctx, ms)
			if err != nil {
				return err
			}
			if !sel.all && len(sel.list) == 0 {
				continue
			}
			matched = sel.bitmap(v.n)
		}
		if q.g.skipped.Load() {
			matched = v.withSamples(matched)
		}
		if err := f(v, matched); err != nil {
			return err
		}
	}
	return nil
}

// withSamples returns those series of a set, of which nil is all, that have samples. The others are of requests that are not applied yet, or never will be.
func (v view) withSamples(set bitmap) bitmap {
	out := newBitmap(v.n)
	for from := uint32(0); from < v.n; from += checkContextEvery { // In parts, so that writers do not wait long.
		v.sh.reg.mu.RLock()
		for ref := from; ref < min(from+checkContextEvery, v.n); ref++ {
			if s := v.sh.series(ref); (s.lastT != math.MinInt64 || s.more != nil) && (set == nil || set.has(ref)) {
				out[ref>>6] |= 1 << (ref & 63)
			}
		}
		v.sh.reg.mu.RUnlock()
	}
	return out
}

// anyOf says whether a series of the set has the value.
func (v view) anyOf(l *valueList, set bitmap) bool {
	v.sh.reg.mu.RLock()
	refs := l.refs
	v.sh.reg.mu.RUnlock()
	return set.hasAny(refs, v.n)
}

// limited sorts, drops what is there twice, and cuts off.
func limited(s []string, hints *storage.LabelHints) []string {
	slices.Sort(s)
	s = slices.Compact(s)
	if hints != nil && hints.Limit > 0 && len(s) > hints.Limit {
		s = s[:hints.Limit]
	}
	return s
}

// Symbols returns all label names and values, sorted.
func (g *Generation) Symbols() index.StringIter {
	seen := map[string]struct{}{}
	for i := range g.shards {
		v := g.shards[i].view()
		for _, n := range v.names() {
			seen[n.name] = struct{}{}
			for _, l := range v.values(n.name) {
				seen[l.value] = struct{}{}
			}
		}
	}
	out := make([]string, 0, len(seen))
	for s := range seen {
		out = append(out, s)
	}
	slices.Sort(out)
	return index.NewStringListIter(out)
}
