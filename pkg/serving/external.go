package serving

import (
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/merge"
)

// external answers a selection as if every series had the external labels, except where it has a label of the same name itself.
type external struct {
	lset     labels.Labels
	matchers []*labels.Matcher // for the sources; they find at least what the answer needs
	check    []*labels.Matcher // what has to be checked on the series as answered
}

// external translates matchers. Without external labels they stay as they are.
func (qb *Queryable) external(ms []*labels.Matcher) external {
	e := external{lset: qb.o.ExternalLabels, matchers: ms}
	if !e.any() {
		return e
	}
	e.matchers = make([]*labels.Matcher, 0, len(ms))
	for _, m := range ms {
		e.add(m)
	}
	if len(e.matchers) == 0 {
		e.matchers = append(e.matchers, labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".*"))
	}
	return e
}

func (e *external) any() bool { return !e.lset.IsEmpty() }

// add translates one matcher on the answered series to what the stored ones must be like.
func (e *external) add(m *labels.Matcher) {
	value := e.lset.Get(m.Name)
	switch {
	case value == "":
		e.matchers = append(e.matchers, m)
	case !m.Matches(value):
		// Only a series with a value of its own can match.
		e.matchers = append(e.matchers, m)
		if m.Matches("") {
			e.matchers = append(e.matchers, labels.MustNewMatcher(labels.MatchNotEqual, m.Name, ""))
		}
	case m.Matches(""):
		// A series without the label matches, stored as well as answered.
		e.matchers = append(e.matchers, m)
	default:
		// Series without the label match as well as those with the right one, which no single matcher says for all of them.
		e.check = append(e.check, m)
	}
}

// answered returns the labels of a stored series as they are answered; ok is false if the series does not match.
func (e *external) answered(b *labels.Builder, stored labels.Labels) (lset labels.Labels, ok bool) {
	b.Reset(stored)
	e.lset.Range(func(l labels.Label) {
		if !stored.Has(l.Name) {
			b.Set(l.Name, l.Value)
		}
	})
	lset = b.Labels()
	for _, m := range e.check {
		if !m.Matches(lset.Get(m.Name)) {
			return lset, false
		}
	}
	return lset, true
}

// groups merges sets by the labels that are answered. The order of series changes with these, so all of them are gathered first, or, of more than limit
// ones, the first of them. What is gathered is taken from the budget until it is yielded.
func (e *external) groups(sets []storage.ChunkSeriesSet, b *Budget, limit int) groups {
	g := &externalGroups{e: e, b: b, limit: limit, i: -1}
	for rank, s := range sets {
		g.sets = append(g.sets, &rankedSet{ChunkSeriesSet: s, rank: rank})
	}
	return g
}

// rankedSet remembers the precedence of its series.
type rankedSet struct {
	storage.ChunkSeriesSet
	rank int
}

func (s *rankedSet) At() storage.ChunkSeries {
	return rankedSeries{ChunkSeries: s.ChunkSeriesSet.At(), rank: s.rank}
}

type rankedSeries struct {
	storage.ChunkSeries
	rank int
}

// externalGroups implements groups under external labels.
type externalGroups struct {
	e     *external
	b     *Budget
	limit int // 0 is none
	sets  []storage.ChunkSeriesSet
	all   []group
	i     int
	err   error
}

// gatheredBeyond is how many more groups than a limit allows are gathered before those behind it are let go.
const gatheredBeyond = 1000

type group struct {
	lset   labels.Labels
	parts  []storage.ChunkSeries
	bytes  int64 // taken from the budget
	series int64 // stored ones
}

func (g *externalGroups) Next() bool {
	if g.i < 0 && g.err == nil {
		g.gather()
	}
	g.i++
	if g.err != nil || g.i >= len(g.all) {
		return false
	}
	g.b.release(g.all[g.i].bytes, g.all[g.i].series)
	return true
}

func (g *externalGroups) At() (labels.Labels, []storage.ChunkSeries) {
	return g.all[g.i].lset, g.all[g.i].parts
}

func (g *externalGroups) Err() error { return g.err }

func (g *externalGroups) gather() {
	b := labels.NewBuilder(labels.EmptyLabels())
	merged := merge.Sets(g.sets)
	for merged.Next() {
		stored, parts := merged.At()
		if lset, ok := g.e.answered(b, stored); ok {
			n := int64(lset.ByteSize()) + seriesOverhead
			if g.err = g.b.add(n, 1, 0); g.err != nil {
				return
			}
			g.all = append(g.all, group{lset: lset, parts: slices.Clone(parts), bytes: n, series: 1})
		}
		if g.limit > 0 && len(g.all) > 2*g.limit+gatheredBeyond {
			g.sort()
		}
	}
	if g.err = merged.Err(); g.err == nil {
		g.sort()
	}
}

// sort sorts what was gathered, and lets go what is behind the limit.
func (g *externalGroups) sort() {
	slices.SortStableFunc(g.all, func(a, b group) int { return labels.Compare(a.lset, b.lset) })
	g.all = joinEqual(g.all)
	if g.limit == 0 || len(g.all) <= g.limit {
		return
	}
	for _, cut := range g.all[g.limit:] {
		g.b.release(cut.bytes, cut.series)
	}
	clear(g.all[g.limit:])
	g.all = g.all[:g.limit]
}

// joinEqual makes one group of those that have the same labels, with the parts in order of precedence.
func joinEqual(all []group) []group {
	out := all[:0]
	for _, g := range all {
		if n := len(out); n > 0 && labels.Equal(out[n-1].lset, g.lset) {
			parts := append(out[n-1].parts, g.parts...)
			slices.SortStableFunc(parts, func(a, b storage.ChunkSeries) int { return rank(a) - rank(b) })
			out[n-1].parts = parts
			out[n-1].bytes += g.bytes
			out[n-1].series += g.series
			continue
		}
		out = append(out, g)
	}
	return out
}

func rank(s storage.ChunkSeries) int {
	r, _ := s.(rankedSeries)
	return r.rank
}
