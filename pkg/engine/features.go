package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/promql/parser"
)

// features are PromQL's optional parts.
type features struct {
	parser             parser.Options
	perStepStats       bool
	delayedNameRemoval bool
}

// known are the names that Prometheus has for features of PromQL.
var known = map[string]func(*features){
	"promql-experimental-functions":   func(f *features) { f.parser.EnableExperimentalFunctions = true },
	"promql-duration-expr":            func(*features) {}, // always on, as in Prometheus
	"promql-extended-range-selectors": func(f *features) { f.parser.EnableExtendedRangeSelectors = true },
	"promql-binop-fill-modifiers":     func(f *features) { f.parser.EnableBinopFillModifiers = true },
	"promql-per-step-stats":           func(f *features) { f.perStepStats = true },
	"promql-delayed-name-removal":     func(f *features) { f.delayedNameRemoval = true },
}

func parseFeatures(names []string) (features, error) {
	f := features{parser: parser.Options{ExperimentalDurationExpr: true}}
	for _, name := range names {
		enable, ok := known[name]
		if !ok {
			return features{}, fmt.Errorf("unknown feature %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		enable(&f)
	}
	return f, nil
}
