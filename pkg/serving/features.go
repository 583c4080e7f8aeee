package serving

import (
	"fmt"
	"strings"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
)

// Features are the optional parts of PromQL that are switched on.
type Features struct {
	Parser             parser.Options
	PerStepStats       bool
	DelayedNameRemoval bool
	TypeAndUnitLabels  bool
	UseStartTimestamps bool
}

// ParseFeatures reads the names that Prometheus's --enable-feature has for features of PromQL; each may hold several, separated by
// commas. A name that is none of them is an error, also one of a feature that only a Prometheus server has.
func ParseFeatures(names []string) (Features, error) {
	var f Features
	for _, list := range names {
		for name := range strings.SplitSeq(list, ",") {
			switch strings.TrimSpace(name) {
			case "":
			case "promql-experimental-functions":
				f.Parser.EnableExperimentalFunctions = true
			case "promql-binop-fill-modifiers":
				f.Parser.EnableBinopFillModifiers = true
			case "promql-unquoted-utf8-names":
				f.Parser.EnableUnquotedUTF8Names = true
			case "promql-per-step-stats":
				f.PerStepStats = true
			case "promql-delayed-name-removal":
				f.DelayedNameRemoval = true
			case "type-and-unit-labels":
				f.TypeAndUnitLabels = true
			case "use-start-timestamps":
				f.UseStartTimestamps = true
			case "promql-duration-expr", "promql-extended-range-selectors", "native-histograms":
				// On for good, as in Prometheus.
			default:
				return Features{}, fmt.Errorf("feature %q: must be one of promql-binop-fill-modifiers, promql-delayed-name-removal, promql-duration-expr, promql-experimental-functions, promql-extended-range-selectors, promql-per-step-stats, promql-unquoted-utf8-names, type-and-unit-labels, use-start-timestamps", name)
			}
		}
	}
	return f, nil
}

// NewParser returns the parser of the features.
func (f Features) NewParser() parser.Parser {
	return parser.NewParser(f.Parser)
}

// Apply switches the features on in an engine's options.
func (f Features) Apply(o *promql.EngineOpts) {
	o.Parser = f.NewParser()
	o.EnablePerStepStats = f.PerStepStats
	o.EnableDelayedNameRemoval = f.DelayedNameRemoval
	o.EnableTypeAndUnitLabels = f.TypeAndUnitLabels
	o.UseStartTimestamps = f.UseStartTimestamps
}
