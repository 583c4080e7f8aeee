package tombstone

import (
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/merge"
)

// Filter is the tombstones that concern one source. nil is none of them.
type Filter struct {
	rules []rule
	// byLabel finds rules by a label that a series must have; the others are always looked at.
	byLabel []labelRules
	always  []int
}

// rule is one selector of a tombstone.
type rule struct {
	selector Selector
	answered map[string]string
	interval merge.Interval
}

// labelRules are the rules that want a label to have a certain value.
type labelRules struct {
	name   string
	values map[string][]int
}

// NewFilter returns the filter of those tombstones that have an effect on s; nil if none has.
func NewFilter(all []*Tombstone, s Stored) *Filter {
	return FilterOf(slices.DeleteFunc(slices.Clone(all), func(t *Tombstone) bool { return t.On(s) == None }))
}

// FilterOf returns a filter of all of these tombstones; nil if there are none.
func FilterOf(all []*Tombstone) *Filter {
	var rules []rule
	for _, t := range all {
		for _, s := range t.Selectors {
			rules = append(rules, rule{selector: s, answered: t.Answered, interval: t.Interval()})
		}
	}
	return newFilter(rules)
}

func newFilter(rules []rule) *Filter {
	if len(rules) == 0 {
		return nil
	}
	f := &Filter{rules: rules}
	for i, r := range rules {
		m := r.key()
		if m == nil {
			f.always = append(f.always, i)
			continue
		}
		k := slices.IndexFunc(f.byLabel, func(l labelRules) bool { return l.name == m.Name })
		if k < 0 {
			k = len(f.byLabel)
			f.byLabel = append(f.byLabel, labelRules{name: m.Name, values: map[string][]int{}})
		}
		f.byLabel[k].values[m.Value] = append(f.byLabel[k].values[m.Value], i)
	}
	return f
}

// key is a matcher that only series with one value of a label of their own can pass; nil if the rule has none.
func (r *rule) key() *labels.Matcher {
	for _, m := range r.selector {
		if m.Type == labels.MatchEqual && m.Value != "" && r.answered[m.Name] == "" {
			return m
		}
	}
	return nil
}

func (r *rule) matches(lset labels.Labels) bool {
	for _, m := range r.selector {
		if !m.Matches(r.answer(m.Name, lset.Get(m.Name))) {
			return false
		}
	}
	return true
}

// answer is the value of a label as answered.
func (r *rule) answer(name, stored string) string {
	if stored == "" {
		return r.answered[name]
	}
	return stored
}

// excludes says that no series that passes ms can match the rule.
func (r *rule) excludes(ms []*labels.Matcher) bool {
	for _, m := range ms {
		if m.Type != labels.MatchEqual {
			continue
		}
		for _, own := range r.selector {
			if own.Name == m.Name && !own.Matches(r.answer(m.Name, m.Value)) {
				return true
			}
		}
	}
	return false
}

// stored are matchers that all stored series which match the rule pass.
func (r *rule) stored() []*labels.Matcher {
	return slices.DeleteFunc(slices.Clone([]*labels.Matcher(r.selector)), func(m *labels.Matcher) bool { return r.answered[m.Name] != "" })
}

// narrow returns what of the filter concerns series that pass ms, between mint and maxt; nil if nothing does.
func (f *Filter) narrow(ms []*labels.Matcher, mint, maxt int64) *Filter {
	if f == nil {
		return nil
	}
	var rules []rule
	for _, r := range f.rules {
		if r.interval.Overlaps(mint, maxt) && !r.excludes(ms) {
			rules = append(rules, r)
		}
	}
	if len(rules) == len(f.rules) {
		return f
	}
	return newFilter(rules)
}

// matching calls add for each rule that a series matches.
func (f *Filter) matching(lset labels.Labels, add func(i int)) {
	for _, i := range f.always {
		if f.rules[i].matches(lset) {
			add(i)
		}
	}
	for _, l := range f.byLabel {
		for _, i := range l.values[lset.Get(l.name)] {
			if f.rules[i].matches(lset) {
				add(i)
			}
		}
	}
}

// gone is the times at which samples of a series are deleted, as merge.Union returns them, with one of the rules that say so.
func (f *Filter) gone(lset labels.Labels) (gone []merge.Interval, rule int) {
	f.matching(lset, func(i int) {
		gone, rule = append(gone, f.rules[i].interval), i
	})
	return merge.Union(gone), rule
}

// Deletes says whether the filter hides the sample of a series at t.
func (f *Filter) Deletes(lset labels.Labels, t int64) bool {
	if f == nil {
		return false
	}
	deleted := false
	f.matching(lset, func(i int) { deleted = deleted || f.rules[i].interval.Overlaps(t, t) })
	return deleted
}

// covered says whether all of [mint, maxt] is gone.
func covered(gone []merge.Interval, mint, maxt int64) bool {
	return slices.ContainsFunc(gone, func(i merge.Interval) bool { return i.Covers(mint, maxt) })
}
