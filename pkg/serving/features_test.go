package serving

import (
	"fmt"
	"testing"

	"github.com/prometheus/prometheus/promql"
	"github.com/stretchr/testify/require"
)

func TestParseFeatures(t *testing.T) {
	f, err := ParseFeatures([]string{"promql-experimental-functions,promql-per-step-stats", " promql-delayed-name-removal", "promql-duration-expr", "promql-extended-range-selectors", "promql-binop-fill-modifiers", "promql-unquoted-utf8-names", "use-start-timestamps", "type-and-unit-labels", ""})
	require.NoError(t, err)
	var o promql.EngineOpts
	f.Apply(&o)
	require.True(t, o.EnablePerStepStats && o.EnableDelayedNameRemoval && o.UseStartTimestamps && o.EnableTypeAndUnitLabels)
	for _, qs := range []string{`limitk(1, up)`, `up + fill(0) up`, `http.größe`} {
		_, err := f.NewParser().ParseExpr(qs)
		require.NoError(t, err, qs)
		_, err = Features{}.NewParser().ParseExpr(qs)
		require.Error(t, err, qs)
	}
	for _, qs := range []string{`rate(up[5m + 1m])`, `rate(up[5m] smoothed)`} {
		_, err = Features{}.NewParser().ParseExpr(qs)
		require.NoError(t, err, qs)
	}
	for _, name := range []string{"promql-negative-offset", "exemplar-storage", "x"} {
		_, err = ParseFeatures([]string{name})
		require.ErrorContains(t, err, fmt.Sprintf("%q", name))
	}
}
