package plugin

import (
	"slices"
	"strings"

	"github.com/grafana/regexp"
	commonmodel "github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// filter is one condition of a Grafana scope or of an ad-hoc filter.
type filter struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"`
	Value    string   `json:"value"`
	Values   []string `json:"values"`
}

// scope is a set of filters that a user has chosen for a whole dashboard.
type scope struct {
	Filters []filter `json:"filters"`
}

var filterTypes = map[string]labels.MatchType{
	"equals": labels.MatchEqual, "not-equals": labels.MatchNotEqual,
	"regex-match": labels.MatchRegexp, "regex-not-match": labels.MatchNotRegexp,
	"one-of": labels.MatchRegexp, "not-one-of": labels.MatchNotRegexp,
}

func (f filter) matcher() (*labels.Matcher, error) {
	t, ok := filterTypes[f.Operator]
	if !ok {
		return nil, badRequest("filter on %q: unknown operator %q", f.Key, f.Operator)
	}
	value := f.Value
	if strings.HasSuffix(f.Operator, "one-of") && len(f.Values) > 0 {
		value = strings.Join(f.Values, "|")
	}
	m, err := labels.NewMatcher(t, f.Key, value)
	if err != nil {
		return nil, badRequest("filter on %q: %w", f.Key, err)
	}
	return m, nil
}

// matchers merges filters, one per label, sorted by name. Two scopes on one label mean either; an ad-hoc filter replaces what a scope says.
func matchers(scopes, adhoc []filter) ([]*labels.Matcher, error) {
	byName := map[string]*labels.Matcher{}
	for _, f := range scopes {
		m, err := f.matcher()
		if err != nil {
			return nil, err
		}
		if was := byName[f.Key]; was != nil {
			if m, err = labels.NewMatcher(labels.MatchRegexp, f.Key, pattern(was)+"|"+pattern(m)); err != nil {
				return nil, badRequest("filters on %q: %w", f.Key, err)
			}
		}
		byName[f.Key] = m
	}
	for _, f := range adhoc {
		m, err := f.matcher()
		if err != nil {
			return nil, err
		}
		byName[f.Key] = m
	}
	out := make([]*labels.Matcher, 0, len(byName))
	for _, m := range byName {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *labels.Matcher) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// pattern is a regular expression for what m compares with.
func pattern(m *labels.Matcher) string {
	if m.Type == labels.MatchEqual || m.Type == labels.MatchNotEqual {
		return regexp.QuoteMeta(m.Value)
	}
	return m.Value
}

// promParser reads PromQL with everything that any engine behind the plugin may know; that engine has the last word.
var promParser = parser.NewParser(parser.Options{
	EnableExperimentalFunctions: true,
	EnableBinopFillModifiers:    true,
	EnableUnquotedUTF8Names:     true,
})

// applyFilters narrows every selector of expr to the model's scopes and ad-hoc filters, and adds its labels to every grouping.
// A filter replaces a matcher that expr has on the same label.
func applyFilters(expr string, m model) (string, error) {
	var scoped []filter
	for _, s := range m.Scopes {
		scoped = append(scoped, s.Filters...)
	}
	if len(scoped)+len(m.AdhocFilters)+len(m.GroupByKeys) == 0 {
		return expr, nil // as the user wrote it
	}
	ms, err := matchers(scoped, m.AdhocFilters)
	if err != nil {
		return "", err
	}
	parsed, err := promParser.ParseExpr(expr)
	if err != nil {
		return "", badRequest("apply filters to the query: %w", err)
	}
	parser.Inspect(parsed, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			n.LabelMatchers = narrow(n.LabelMatchers, ms)
		case *parser.AggregateExpr:
			for _, key := range m.GroupByKeys {
				if !n.Without && !slices.Contains(n.Grouping, key) {
					n.Grouping = append(n.Grouping, key)
				}
			}
		}
		return nil
	})
	return parsed.String(), nil
}

func narrow(own, filters []*labels.Matcher) []*labels.Matcher {
	out := slices.DeleteFunc(slices.Clone(own), func(m *labels.Matcher) bool {
		return m.Name != commonmodel.MetricNameLabel && slices.ContainsFunc(filters, func(f *labels.Matcher) bool { return f.Name == m.Name })
	})
	return append(out, filters...)
}
