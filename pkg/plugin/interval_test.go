package plugin

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Expectations are those of Grafana's own Prometheus datasource for the same input.
func TestStep(t *testing.T) {
	const hour = time.Hour
	for _, tc := range []struct {
		name           string
		span           time.Duration
		maxDataPoints  int64
		minStep        string
		scrapeInterval string
		intervalMs     int64
		factor         int64
		want           time.Duration
	}{
		{"minimum above what is computed", 48 * hour, 761, "10m", "", 300000, 1, 10 * time.Minute},
		{"minimum below what is computed", 48 * hour, 761, "2m", "", 300000, 1, 5 * time.Minute},
		{"few points", 48 * hour, 175, "2m", "", 900000, 1, 15 * time.Minute},
		{"no minimum, 12 h", 12 * hour, 0, "", "15s", 0, 1, 30 * time.Second},
		{"no minimum, 1 h", hour, 0, "", "15s", 0, 1, 15 * time.Second},
		{"factor", 48 * hour, 0, "", "15s", 0, 10, 20 * time.Minute},
		{"factor one", 48 * hour, 0, "", "15s", 0, 1, 2 * time.Minute},
		{"factor zero is one", hour, 0, "", "15s", 0, 0, 15 * time.Second},
		{"long scrape interval", 48 * hour, 0, "", "240s", 0, 1, 4 * time.Minute},
		{"no scrape interval is 15s", hour, 0, "", "", 0, 1, 15 * time.Second},
		{"very short range", time.Minute, 0, "", "15s", 0, 1, 15 * time.Second},
		{"minimum is $__interval", 48 * hour, 0, "$__interval", "15s", 60000, 1, 2 * time.Minute},
		{"minimum is ${__interval}", 48 * hour, 0, "${__interval}", "15s", 60000, 1, 2 * time.Minute},
		{"minimum is $__interval, from intervalMs", 48 * hour, 12384, "$__interval", "15s", 120000, 1, 2 * time.Minute},
		{"minimum is $__rate_interval", 48 * hour, 12384, "$__rate_interval", "30s", 100000, 1, 130 * time.Second},
		{"minimum is ${__rate_interval}", 48 * hour, 12384, "${__rate_interval}", "30s", 100000, 1, 130 * time.Second},
		{"minimum is $__rate_interval, four scrapes", hour, 12384, "$__rate_interval", "30s", 30000, 1, 2 * time.Minute},
		{"rate interval is not multiplied", hour, 12384, "$__rate_interval_ms", "30s", 30000, 7, 2 * time.Minute},
		{"own minimum above intervalMs", 48 * hour, 12384, "150s", "30s", 100000, 1, 150 * time.Second},
		{"own minimum equals intervalMs", 48 * hour, 12384, "120s", "30s", 120000, 1, 2 * time.Minute},
		{"minimum is not rounded", hour, 12384, "37s", "30s", 30000, 1, 37 * time.Second},
		{"minimum as a number of seconds", hour, 100, "45", "15s", 0, 1, 45 * time.Second},
		{"minimum in brackets", hour, 100, "<45s", "15s", 0, 1, 45 * time.Second},
		{"minimum of days", 10 * 24 * hour, 1000, "1d", "15s", 0, 1, 24 * hour},
		{"0s is no minimum", hour, 0, "0s", "15s", 0, 1, 15 * time.Second},
		{"11,000 points at most", 365 * 24 * hour, 100000, "1s", "1s", 0, 1, hour},
		{"never below a millisecond", time.Second, 1000, "1us", "15s", 0, 1, time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			from := time.UnixMilli(1_700_000_000_123)
			got, err := timing{
				from: from, to: from.Add(tc.span), maxDataPoints: tc.maxDataPoints,
				minStep: tc.minStep, scrapeInterval: tc.scrapeInterval, intervalMs: tc.intervalMs, factor: tc.factor,
			}.step()
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

func TestStepRefuses(t *testing.T) {
	for name, tm := range map[string]timing{
		"unreadable minimum":         {minStep: "soon"},
		"unreadable scrape interval": {scrapeInterval: "soon"},
		"negative factor":            {factor: -1},
	} {
		t.Run(name, func(t *testing.T) {
			tm.from, tm.to = time.Unix(0, 0), time.Unix(3600, 0)
			_, err := tm.step()
			require.Equal(t, 400, classify(err, 0).status)
		})
	}
}

// Expectations are those of Grafana's own Prometheus datasource for the same input.
func TestInterpolate(t *testing.T) {
	for _, tc := range []struct {
		name           string
		expr           string
		span           time.Duration
		step           time.Duration
		panelInterval  time.Duration
		minStep        string
		scrapeInterval string
		want           string
	}{
		{"nothing to do", `rate(x[5m])`, time.Hour, time.Minute, 0, "", "15s", `rate(x[5m])`},
		{"interval", `rate(x{a="b"}[$__interval])`, 48 * time.Hour, 2 * time.Minute, time.Minute, "", "15s", `rate(x{a="b"}[2m])`},
		{"interval is cut to one unit", `x[$__interval]`, time.Hour, 90 * time.Second, time.Minute, "", "15s", `x[1m]`},
		{"interval in milliseconds", `x * $__interval_ms`, 48 * time.Hour, 2 * time.Minute, time.Minute, "", "15s", `x * 120000`},
		{"both", `rate(x[$__interval_ms]) + rate(x[$__interval])`, 48 * time.Hour, 2 * time.Minute, time.Minute, "", "15s", `rate(x[120000]) + rate(x[2m])`},
		{"both in braces", `x[${__interval_ms}] + x[${__interval}]`, 48 * time.Hour, 2 * time.Minute, time.Minute, "", "15s", `x[120000] + x[2m]`},
		{"range", `x[$__range]`, 48 * time.Hour, time.Minute, time.Minute, "", "15s", `x[172800s]`},
		{"range in seconds", `x[$__range_s]`, 48 * time.Hour, time.Minute, time.Minute, "", "15s", `x[172800]`},
		{"range in seconds in braces", `x[${__range_s}s]`, 48 * time.Hour, time.Minute, time.Minute, "", "15s", `x[172800s]`},
		{"range below half a second", `x[$__range_s]`, 200 * time.Millisecond, time.Minute, time.Minute, "", "15s", `x[0]`},
		{"range above half a second", `x[$__range_s]`, 800 * time.Millisecond, time.Minute, time.Minute, "", "15s", `x[1]`},
		{"range in milliseconds", `x[$__range_ms]`, 20 * time.Millisecond, time.Minute, time.Minute, "", "15s", `x[20]`},
		{"rate interval", `rate(x[$__rate_interval])`, 5 * time.Minute, 15 * time.Second, 5 * time.Minute, "", "15s", `rate(x[5m15s])`},
		{"rate interval is four scrapes", `rate(x[$__rate_interval])`, time.Hour, 30 * time.Second, 30 * time.Second, "", "30s", `rate(x[2m0s])`},
		{"rate interval of the minimum step", `rate(x[$__rate_interval])`, 48 * time.Hour, 130 * time.Second, 100 * time.Second, "$__rate_interval", "30s", `rate(x[2m10s])`},
		{"rate interval above a minimum step", `rate(x[$__rate_interval])`, 48 * time.Hour, 150 * time.Second, 100 * time.Second, "150s", "30s", `rate(x[10m0s])`},
		{"rate interval beside $__interval", `rate(x[$__rate_interval])`, 48 * time.Hour, 2 * time.Minute, 2 * time.Minute, "$__interval", "15s", `rate(x[8m0s])`},
		{"rate interval in milliseconds", `rate(x[$__rate_interval_ms])`, 48 * time.Hour, 2 * time.Minute, 2 * time.Minute, "", "15s", `rate(x[135000])`},
		{"rate interval both, in braces", `x[${__rate_interval_ms}] + x[${__rate_interval}]`, 48 * time.Hour, 2 * time.Minute, 2 * time.Minute, "", "15s", `x[135000] + x[2m15s]`},
		{"unreadable scrape interval", `x[$__rate_interval]`, time.Hour, time.Minute, time.Minute, "", "soon", `x[0s]`},
		{"other variables stay", `x{a="$node"} offset $__intervals`, time.Hour, time.Minute, time.Minute, "", "15s", `x{a="$node"} offset 1ms`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			from := time.UnixMilli(1_700_000_000_000)
			tm := timing{from: from, to: from.Add(tc.span), panelInterval: tc.panelInterval, minStep: tc.minStep, scrapeInterval: tc.scrapeInterval}
			require.Equal(t, tc.want, tm.interpolate(tc.expr, tc.step))
		})
	}
}

func TestAlign(t *testing.T) {
	day := 24 * time.Hour
	for _, tc := range []struct {
		name   string
		at     time.Time
		step   time.Duration
		offset int64
		want   time.Time
	}{
		{"seconds", time.Unix(1664816826, 5e6), 5 * time.Second, 0, time.Unix(1664816825, 0)},
		{"milliseconds", time.Unix(1664816825, 5e6), 10 * time.Millisecond, 0, time.Unix(1664816825, 0)},
		{"offset", time.Unix(1664816825, 5e6), 2 * time.Second, -3, time.Unix(1664816825, 0)},
		{"days begin at the user's midnight", time.Date(2024, 5, 2, 1, 0, 0, 0, time.UTC), day, 7200, time.Date(2024, 5, 1, 22, 0, 0, 0, time.UTC)},
		{"weeks begin on Thursdays", time.Date(2022, 10, 3, 0, 0, 0, 0, time.UTC), 7 * day, 0, time.Date(2022, 9, 29, 0, 0, 0, 0, time.UTC)},
		{"before 1970", time.Unix(-1, 0), time.Minute, 0, time.Unix(-60, 0)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			require.Equal(t, tc.want.UTC(), align(tc.at, tc.step, tc.offset))
		})
	}
}
