package retention

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/millrace/millrace/pkg/tombstone"
)

// MinAge is the least age of a rule: what is younger may still be in memory.
const MinAge = 2 * time.Hour

// Rule keeps samples of the series that its selector matches for a time.
type Rule struct {
	// Selector has its matchers in one order, however they were written.
	Selector tombstone.Selector
	// Series is the selector as text, from which New makes it again.
	Series string
	// ID is the same for all rules with the same selector.
	ID ulid.ULID
	// Age is how old samples may become.
	Age time.Duration
}

// New makes a rule of a selector as it is written in PromQL.
func New(selector string, age time.Duration) (Rule, error) {
	s, err := parseSelector(selector)
	if err != nil {
		return Rule{}, err
	}
	r := Rule{Selector: s, Series: s.String(), Age: age}
	sum := sha256.Sum256([]byte("millrace retention rule\x00" + r.Series))
	_ = r.ID.SetEntropy(sum[:10]) // has the right length
	return r, nil
}

// String is the rule as it is parsed.
func (r *Rule) String() string { return r.Series + ": " + model.Duration(r.Age).String() }

// Horizon is the oldest time that the rule keeps. Times are in milliseconds.
func (r *Rule) Horizon(now int64) int64 { return now - r.Age.Milliseconds() }

// Deletes is the rule as a deletion of all samples before a time.
func (r *Rule) Deletes(before int64) *tombstone.Tombstone {
	return &tombstone.Tombstone{ID: r.ID, MinTime: math.MinInt64, MaxTime: before - 1, Selectors: []tombstone.Selector{r.Selector}}
}

// Rules are in order of their age, the smallest first.
type Rules []Rule

// Parse reads rules as they are written: a selector of series and an age, as in {job="debug"}: 3d. Several are separated by commas.
func Parse(text string) (Rules, error) {
	var rules Rules
	for _, one := range split(text) {
		colon := strings.LastIndexByte(one, ':')
		if colon < 0 {
			err := errors.New("must be a selector of series and an age, as in {job=\"debug\"}: 3d")
			if one != strings.TrimSpace(text) { // which the error of the flag shows
				err = fmt.Errorf("%q: %w", one, err)
			}
			return nil, err
		}
		age, err := model.ParseDuration(strings.TrimSpace(one[colon+1:]))
		if err != nil {
			return nil, fmt.Errorf("age of %q: %w", one, err)
		}
		r, err := New(one[:colon], time.Duration(age))
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules.And(nil), nil
}

// split divides text at the commas that are in no quotes and no braces.
func split(text string) []string {
	var (
		out          []string
		start, depth int
		quote        rune
		escaped      bool
	)
	for i, c := range text {
		switch {
		case escaped:
			escaped = false
		case quote != 0:
			escaped = c == '\\' && quote != '`'
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'' || c == '`':
			quote = c
		case c == '{':
			depth++
		case c == '}':
			depth--
		case c == ',' && depth <= 0:
			out = append(out, strings.TrimSpace(text[start:i]))
			start = i + 1
		}
	}
	return append(out, strings.TrimSpace(text[start:]))
}

// parseSelector reads a selector and brings its matchers in order.
func parseSelector(text string) (tombstone.Selector, error) {
	text = strings.TrimSpace(text)
	matchers, err := parser.NewParser(parser.Options{}).ParseMetricSelector(text)
	if err != nil {
		return nil, fmt.Errorf("selector %s: %w", text, err)
	}
	if len(matchers) == 0 {
		return nil, fmt.Errorf("selector %s: it has no matcher; --storage.retention.time is for all series", text)
	}
	slices.SortFunc(matchers, func(a, b *labels.Matcher) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Value, b.Value))
	})
	return slices.CompactFunc(matchers, func(a, b *labels.Matcher) bool { return a.String() == b.String() }), nil
}

// And returns both.
func (rs Rules) And(more Rules) Rules {
	all := slices.Concat(rs, more)
	slices.SortStableFunc(all, func(a, b Rule) int { return cmp.Compare(a.Age, b.Age) })
	return all
}

// Validate says which rule cannot be kept beside a retention of the whole store, 0 being for ever, by a writer with these external labels.
func (rs Rules) Validate(whole time.Duration, external map[string]string) error {
	for i := range rs {
		r := &rs[i]
		switch {
		case r.Age < MinAge:
			return fmt.Errorf("%s: the age must be at least %s", r, model.Duration(MinAge))
		case whole > 0 && r.Age > whole:
			return fmt.Errorf("%s: nothing is kept for longer than the retention of all series, %s: raise that one, and give those that need less a rule",
				r, model.Duration(whole))
		}
		for _, m := range r.Selector {
			if external[m.Name] != "" {
				return fmt.Errorf("%s: %s is an external label, which series get in answers only; rules see them as their senders named them", r, m.Name)
			}
		}
	}
	return nil
}

// Newest is the newest of all horizons: what is not older is kept whatever its labels are.
func (rs Rules) Newest(now int64) int64 {
	if len(rs) == 0 {
		return math.MinInt64
	}
	return rs[0].Horizon(now)
}

// Of returns the rule that decides about a series whose labels value knows; nil if none does.
func (rs Rules) Of(value func(name string) string) *Rule {
	for i := range rs {
		if !slices.ContainsFunc(rs[i].Selector, func(m *labels.Matcher) bool { return !m.Matches(value(m.Name)) }) {
			return &rs[i]
		}
	}
	return nil
}

// Expired is what the rules hide now; nil if there are none.
func (rs Rules) Expired(now int64) *tombstone.Filter {
	if len(rs) == 0 {
		return nil
	}
	all := make([]*tombstone.Tombstone, 0, len(rs))
	for i := range rs {
		all = append(all, rs[i].Deletes(rs[i].Horizon(now)))
	}
	return tombstone.FilterOf(all)
}

// Set implements the value of a flag that may be given more than once.
func (rs *Rules) Set(text string) error {
	if strings.TrimSpace(text) == "" {
		return errors.New("is empty")
	}
	more, err := Parse(text)
	if err != nil {
		return err
	}
	*rs = rs.And(more)
	return nil
}

// String is all rules as they are parsed.
func (rs *Rules) String() string {
	out := make([]string, 0, len(*rs))
	for i := range *rs {
		out = append(out, (*rs)[i].String())
	}
	return strings.Join(out, ", ")
}

// IsCumulative tells kingpin that the flag may be given more than once.
func (*Rules) IsCumulative() bool { return true }
