package tombstone

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/millrace/millrace/pkg/merge"
)

// seriesOnly is the Func of hints that ask for labels, not for samples.
const seriesOnly = "series"

// Querier shows what q, which reads [mint, maxt] of a source, has beside what the filter hides. A selection that the filter has nothing to do
// with is q's own. q's sets must be sorted by labels where that is asked for, also those without samples.
func (f *Filter) Querier(q storage.ChunkQuerier, mint, maxt int64) storage.ChunkQuerier {
	if f == nil {
		return q
	}
	return &querier{ChunkQuerier: q, f: f, mint: mint, maxt: maxt}
}

type querier struct {
	storage.ChunkQuerier
	f          *Filter
	mint, maxt int64
}

// Select implements storage.ChunkQuerier. A series all of whose samples in range are gone is not there.
func (q *querier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	r := reading{q: q.ChunkQuerier, ms: ms, mint: q.mint, maxt: q.maxt}
	if hints != nil {
		r.hints = *hints
		r.mint, r.maxt = max(r.mint, hints.Start), min(r.maxt, hints.End)
	}
	if r.f = q.f.narrow(ms, r.mint, r.maxt); r.f == nil {
		return q.ChunkQuerier.Select(ctx, sorted, hints, ms...)
	}
	r.hints.Limit = 0
	r.ctx = merge.WithAll(ctx) // the newest sample may be one that is gone
	if hints == nil {
		r.hints.Start, r.hints.End = q.mint, q.maxt
	}
	set := &remainingSet{reading: r}
	if r.hints.Func == seriesOnly {
		sorted, set.look = true, map[int]*lookup{}
	}
	set.ChunkSeriesSet = r.read(sorted, r.hints.Func, nil)
	if hints != nil && hints.Limit > 0 {
		set.limit = hints.Limit
	}
	return set
}

// Touches says whether a source has series that the filter hides samples of, as far as its index tells. q reads all of the source.
func (f *Filter) Touches(ctx context.Context, q storage.ChunkQuerier) (bool, error) {
	for i, rule := range f.rules {
		r := reading{ctx: ctx, q: q, hints: storage.SelectHints{Start: rule.interval.MinTime, End: rule.interval.MaxTime}}
		set := r.read(false, seriesOnly, rule.stored())
		for set.Next() {
			if f.rules[i].matches(set.At().Labels()) {
				return true, nil
			}
		}
		if err := set.Err(); err != nil {
			return false, err
		}
	}
	return false, nil
}

// reading is one selection that is filtered.
type reading struct {
	ctx        context.Context
	q          storage.ChunkQuerier
	f          *Filter
	hints      storage.SelectHints
	ms         []*labels.Matcher
	mint, maxt int64
}

func (r *reading) read(sorted bool, fn string, more []*labels.Matcher) storage.ChunkSeriesSet {
	hints := r.hints
	hints.Func = fn
	ms := append(slices.Clone(r.ms), more...)
	if len(more) > 0 {
		// That all series pass, which a name without letters says, is only understood where nothing else is said.
		ms = slices.DeleteFunc(ms, func(m *labels.Matcher) bool { return m.Name == "" })
	}
	return r.q.Select(r.ctx, sorted, &hints, orAll(ms)...)
}

// orAll stands for no matchers by one that all series pass, as not every source takes it so.
func orAll(ms []*labels.Matcher) []*labels.Matcher {
	if len(ms) == 0 {
		return []*labels.Matcher{labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".*")}
	}
	return ms
}

// remainingSet passes over series of which nothing is left.
type remainingSet struct {
	storage.ChunkSeriesSet
	reading
	look    map[int]*lookup // by rule; nil where the set itself has the samples
	limit   int             // 0 is none
	yielded int
	cur     storage.ChunkSeries
	err     error
}

func (s *remainingSet) Next() bool {
	if s.err != nil || s.limit > 0 && s.yielded >= s.limit {
		return false
	}
	for s.ChunkSeriesSet.Next() {
		s.cur = s.ChunkSeriesSet.At()
		gone, rule := s.f.gone(s.cur.Labels())
		left := true
		switch {
		case len(gone) == 0:
		case covered(gone, s.mint, s.maxt):
			left = false
		case s.look == nil:
			s.cur = &remaining{ChunkSeries: s.cur, gone: gone}
			left, s.err = s.anyLeft(s.cur)
		default:
			left, s.err = s.leftOf(s.cur.Labels(), gone, rule)
		}
		if s.err != nil {
			return false
		}
		if left {
			s.yielded++
			return true
		}
	}
	return false
}

func (s *remainingSet) At() storage.ChunkSeries { return s.cur }

func (s *remainingSet) Err() error {
	if s.err != nil {
		return s.err
	}
	return s.ChunkSeriesSet.Err()
}

// anyLeft says whether a series has a chunk in range.
func (s *remainingSet) anyLeft(series storage.ChunkSeries) (bool, error) {
	it := series.Iterator(nil)
	for it.Next() {
		if m := it.At(); m.OverlapsClosedInterval(s.mint, s.maxt) {
			return true, nil
		}
	}
	return false, it.Err()
}

// leftOf says whether a series, of which only the labels were read, has samples that are not gone. These are read with those of all
// series that match the same rule, in one pass beside that of the set.
func (s *remainingSet) leftOf(lset labels.Labels, gone []merge.Interval, rule int) (bool, error) {
	l := s.look[rule]
	if l == nil {
		l = &lookup{set: s.read(true, "", s.f.rules[rule].stored())}
		s.look[rule] = l
	}
	series, err := l.find(lset)
	if series == nil || err != nil {
		return false, err
	}
	return s.anyLeft(&remaining{ChunkSeries: series, gone: gone})
}

// lookup finds series in a sorted set, asked for in that order.
type lookup struct {
	set  storage.ChunkSeriesSet
	cur  storage.ChunkSeries
	done bool
}

// find returns nil where there is no such series.
func (l *lookup) find(lset labels.Labels) (storage.ChunkSeries, error) {
	for !l.done {
		if l.cur != nil {
			switch c := labels.Compare(l.cur.Labels(), lset); {
			case c == 0:
				return l.cur, nil
			case c > 0:
				return nil, nil
			}
		}
		if !l.set.Next() {
			l.done = true
			break
		}
		l.cur = l.set.At()
	}
	return nil, l.set.Err()
}

// remaining is a series without the samples that are gone.
type remaining struct {
	storage.ChunkSeries
	gone []merge.Interval
}

func (r *remaining) Iterator(chunks.Iterator) chunks.Iterator {
	return merge.Without(r.ChunkSeries.Iterator(nil), r.gone)
}

// LabelValues implements storage.LabelQuerier: the values that series have of which something is left.
func (q *querier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	f := q.f.narrow(ms, q.mint, q.maxt)
	if f == nil {
		return q.ChunkQuerier.LabelValues(ctx, name, hints, ms...)
	}
	return q.remainingStrings(ctx, f, ms, hints,
		func() ([]string, annotations.Annotations, error) {
			return q.ChunkQuerier.LabelValues(ctx, name, unlimited(hints), slices.Clone(ms)...)
		},
		func(lset labels.Labels, f func(string)) { f(lset.Get(name)) },
		func(values map[string]struct{}) *labels.Matcher { return anyOf(name, values) },
	)
}

// LabelNames implements storage.LabelQuerier: the names of labels that series have of which something is left.
func (q *querier) LabelNames(ctx context.Context, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	f := q.f.narrow(ms, q.mint, q.maxt)
	if f == nil {
		return q.ChunkQuerier.LabelNames(ctx, hints, ms...)
	}
	return q.remainingStrings(ctx, f, ms, hints,
		func() ([]string, annotations.Annotations, error) {
			return q.ChunkQuerier.LabelNames(ctx, unlimited(hints), slices.Clone(ms)...)
		},
		func(lset labels.Labels, f func(string)) { lset.Range(func(l labels.Label) { f(l.Name) }) },
		func(map[string]struct{}) *labels.Matcher { return nil },
	)
}

// remainingStrings takes out of the strings that all returns those that only series have of which nothing is left. of gives the strings of a
// series, and having a matcher for series that have one of several strings, or nil.
func (q *querier) remainingStrings(
	ctx context.Context, f *Filter, ms []*labels.Matcher, hints *storage.LabelHints,
	all func() ([]string, annotations.Annotations, error), of func(labels.Labels, func(string)), having func(map[string]struct{}) *labels.Matcher,
) ([]string, annotations.Annotations, error) {
	out, ws, err := all()
	if err != nil || len(out) == 0 {
		return out, ws, err
	}
	// Only what deleted series have may be missing.
	doubtful := map[string]struct{}{}
	r := reading{ctx: ctx, q: q.ChunkQuerier, ms: ms, hints: storage.SelectHints{Start: q.mint, End: q.maxt}}
	for i := range f.rules {
		set := r.read(false, seriesOnly, f.rules[i].stored())
		for set.Next() {
			if lset := set.At().Labels(); f.rules[i].matches(lset) {
				of(lset, func(s string) {
					if s != "" {
						doubtful[s] = struct{}{}
					}
				})
			}
		}
		if err := set.Err(); err != nil {
			return nil, ws, err
		}
	}
	if len(doubtful) > 0 {
		look := slices.Clone(ms)
		if m := having(doubtful); m != nil {
			look = append(look, m)
		}
		set := q.Select(ctx, false, &storage.SelectHints{Start: q.mint, End: q.maxt, Func: seriesOnly}, orAll(look)...)
		for len(doubtful) > 0 && set.Next() {
			of(set.At().Labels(), func(s string) { delete(doubtful, s) })
		}
		if err := set.Err(); err != nil {
			return nil, ws, err
		}
	}
	out = slices.DeleteFunc(out, func(s string) bool { _, gone := doubtful[s]; return gone })
	if hints != nil && hints.Limit > 0 && len(out) > hints.Limit {
		out = out[:hints.Limit]
	}
	return out, ws, nil
}

func unlimited(hints *storage.LabelHints) *storage.LabelHints {
	if hints == nil {
		return nil
	}
	h := *hints
	h.Limit = 0
	return &h
}

// maxAlternatives is up to how many values it is worth to ask for each.
const maxAlternatives = 100

// anyOf matches series with one of several values of a label.
func anyOf(name string, values map[string]struct{}) *labels.Matcher {
	if len(values) > maxAlternatives {
		return nil
	}
	parts := make([]string, 0, len(values))
	for v := range values {
		parts = append(parts, regexp.QuoteMeta(v))
	}
	slices.Sort(parts)
	return labels.MustNewMatcher(labels.MatchRegexp, name, strings.Join(parts, "|"))
}
