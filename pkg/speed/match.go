package speed

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
)

// checkContextEvery is the number of steps of a loop after which it looks whether it is still wanted.
const checkContextEvery = 1024

// view is a shard's index as it was at one moment: the series below n.
type view struct {
	sh *shard
	n  uint32
}

func (sh *shard) view() view {
	sh.reg.mu.RLock()
	defer sh.reg.mu.RUnlock()
	return view{sh: sh, n: sh.reg.n}
}

// selection is a set of series of a view: in list, or where that is nil and all is set, all that are not in a set of without.
type selection struct {
	all     bool
	list    []uint32 // Rising.
	with    []bitmap
	without []bitmap
}

// match evaluates matchers. A matcher that the empty string matches takes away the series whose value it does not match, so
// that series without the label stay; any other one keeps those whose value it matches.
func (v view) match(ctx context.Context, ms []*labels.Matcher) (selection, error) {
	sel := selection{all: true}
	for _, m := range ms {
		if err := ctx.Err(); err != nil {
			return selection{}, fmt.Errorf("evaluate matchers: %w", err)
		}
		empty := m.Matches("")
		lists, err := v.lists(ctx, m, !empty)
		if err != nil {
			return selection{}, err
		}
		switch {
		case empty && len(lists) > 0:
			sel.without = append(sel.without, v.union(lists))
		case empty:
		case len(lists) == 0:
			return selection{}, nil
		case len(lists) == 1:
			sel.intersect(lists[0])
		default:
			sel.with = append(sel.with, v.union(lists))
		}
	}
	return sel, nil
}

func (v view) union(lists [][]uint32) bitmap {
	b := newBitmap(v.n)
	for _, l := range lists {
		b.add(l)
	}
	return b
}

// intersect keeps what is also in other.
func (s *selection) intersect(other []uint32) {
	if s.all {
		s.all, s.list = false, other
		return
	}
	short, long := s.list, other
	if len(long) < len(short) {
		short, long = long, short
	}
	out := make([]uint32, 0, len(short))
	for _, r := range short {
		i, ok := gallop(long, r)
		long = long[i:]
		if ok {
			out = append(out, r)
		}
	}
	s.list = out
}

// gallop finds r in a rising list in steps that double, then by halves: near the start it is fast.
func gallop(list []uint32, r uint32) (int, bool) {
	hi := 1
	for hi < len(list) && list[hi] < r {
		hi *= 2
	}
	lo := hi / 2
	i, ok := slices.BinarySearchFunc(list[lo:min(hi+1, len(list))], r, cmp.Compare[uint32])
	return lo + i, ok
}

// each calls f with the references of the selection, in rising order, until it returns false.
func (s *selection) each(n uint32, f func(uint32) bool) {
	if !s.all {
		for _, r := range s.list {
			if s.has(r) && !f(r) {
				return
			}
		}
		return
	}
	for r := range n {
		if s.has(r) && !f(r) {
			return
		}
	}
}

// len is the number of references if that is known without looking at each, else 0.
func (s *selection) len(n uint32) int {
	switch {
	case len(s.with)+len(s.without) > 0:
		return 0
	case s.all:
		return int(n)
	}
	return len(s.list)
}

func (s *selection) has(r uint32) bool {
	for _, b := range s.with {
		if !b.has(r) {
			return false
		}
	}
	for _, b := range s.without {
		if b.has(r) {
			return false
		}
	}
	return true
}

// bitmap returns the selection as a set.
func (s *selection) bitmap(n uint32) bitmap {
	b := newBitmap(n)
	s.each(n, func(r uint32) bool {
		b[r>>6] |= 1 << (r & 63)
		return true
	})
	return b
}

// lists returns the series of all values that m matches or, with want false, does not match. No value of an index is empty.
// None of the lists is empty.
func (v view) lists(ctx context.Context, m *labels.Matcher, want bool) ([][]uint32, error) {
	switch {
	case m.Type == labels.MatchEqual && want, m.Type == labels.MatchNotEqual && !want:
		return v.byValue(m.Name, m.Value), nil
	case (m.Type == labels.MatchEqual || m.Type == labels.MatchNotEqual) && m.Value == "":
		return v.byPredicate(ctx, m.Name, nil)
	case m.Type == labels.MatchRegexp && want, m.Type == labels.MatchNotRegexp && !want:
		if m.Value == ".+" {
			return v.byPredicate(ctx, m.Name, nil)
		}
		if set := m.SetMatches(); len(set) > 0 {
			return v.byValue(m.Name, set...), nil
		}
	case m.Value == ".*": // It matches all values, and those that it does not match were asked for.
		return nil, nil
	}
	return v.byPredicate(ctx, m.Name, func(s string) bool { return m.Matches(s) == want })
}

func (v view) byValue(name string, values ...string) [][]uint32 {
	v.sh.reg.mu.RLock()
	defer v.sh.reg.mu.RUnlock()
	n := v.sh.postings.names[name]
	if n == nil {
		return nil
	}
	var out [][]uint32
	for _, value := range values {
		if l := n.values[value]; l != nil {
			if refs := below(l.refs, v.n); len(refs) > 0 {
				out = append(out, refs)
			}
		}
	}
	return out
}

// byPredicate evaluates p, or takes all values if it is nil, without the lock.
func (v view) byPredicate(ctx context.Context, name string, p func(string) bool) ([][]uint32, error) {
	values := v.values(name)
	if p != nil {
		var kept []*valueList
		for i, l := range values {
			if i%checkContextEvery == 0 && ctx.Err() != nil {
				return nil, fmt.Errorf("evaluate matchers: %w", ctx.Err())
			}
			if p(l.value) {
				kept = append(kept, l)
			}
		}
		values = kept
	}
	return v.refs(values), nil
}

// values returns the values of a label name, some of which may be newer than the view.
func (v view) values(name string) []*valueList {
	v.sh.reg.mu.RLock()
	defer v.sh.reg.mu.RUnlock()
	if n := v.sh.postings.names[name]; n != nil {
		return n.order
	}
	return nil
}

// names returns the label names, some of which may be newer than the view.
func (v view) names() []*nameIndex {
	v.sh.reg.mu.RLock()
	defer v.sh.reg.mu.RUnlock()
	return v.sh.postings.order
}

// refs returns the lists of values, without empty ones.
func (v view) refs(values []*valueList) [][]uint32 {
	out := make([][]uint32, 0, len(values))
	for len(values) > 0 { // In parts, so that writers do not wait long.
		part := values[:min(len(values), checkContextEvery)]
		values = values[len(part):]
		v.sh.reg.mu.RLock()
		for _, l := range part {
			if refs := below(l.refs, v.n); len(refs) > 0 {
				out = append(out, refs)
			}
		}
		v.sh.reg.mu.RUnlock()
	}
	return out
}
