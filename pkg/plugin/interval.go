package plugin

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend/gtime"
)

const (
	defaultScrapeInterval = 15 * time.Second
	defaultMaxDataPoints  = 1500  // where a query does not say how many it wants
	maxPoints             = 11000 // of one series, as in Prometheus
)

// timing is what a query's step depends on.
type timing struct {
	from, to       time.Time
	maxDataPoints  int64
	minStep        string        // the query's "interval": a duration, a variable, or empty
	scrapeInterval string        // the datasource's; empty is 15s
	intervalMs     int64         // as computed in the front end; counts where the query has no minimum of its own
	panelInterval  time.Duration // as shown in the panel's query options
	factor         int64         // by which the step is multiplied; 0 is 1
}

func isRateInterval(s string) bool {
	switch s {
	case "$__rate_interval", "${__rate_interval}", "$__rate_interval_ms", "${__rate_interval_ms}":
		return true
	}
	return false
}

func isInterval(s string) bool {
	switch s {
	case "$__interval", "${__interval}", "$__interval_ms", "${__interval_ms}":
		return true
	}
	return false
}

// step is the resolution at which a range is evaluated, never below a millisecond.
func (t timing) step() (time.Duration, error) {
	ownMin := t.minStep
	if isInterval(ownMin) || isRateInterval(ownMin) {
		ownMin = ""
	}
	minimum, err := gtime.GetIntervalFrom(t.scrapeInterval, ownMin, t.intervalMs, defaultScrapeInterval)
	if err != nil {
		return 0, badRequest("minimum step %q: %w", ownMin, err)
	}
	points := t.maxDataPoints
	if points == 0 {
		points = defaultMaxDataPoints
	}
	span := t.to.Sub(t.from)
	step := span / time.Duration(points)
	if step < minimum {
		step = minimum // as it is: rounding is for what was computed
	} else {
		step = gtime.RoundInterval(step)
	}
	step = max(step, gtime.RoundInterval(span/maxPoints))

	if isRateInterval(t.minStep) {
		step = rateInterval(step, t.scrapeInterval)
	} else if t.factor != 0 {
		step *= time.Duration(t.factor)
	}
	if step < 0 {
		return 0, badRequest("the step is negative: %s", step)
	}
	return max(step, time.Millisecond), nil
}

// rateInterval is a window that holds enough samples for rate(). A scrape interval that cannot be read makes it 0, as in Grafana.
func rateInterval(step time.Duration, scrapeInterval string) time.Duration {
	scrape := defaultScrapeInterval
	if scrapeInterval != "" {
		var err error
		if scrape, err = gtime.ParseIntervalStringToTimeDuration(scrapeInterval); err != nil {
			return 0
		}
	}
	return max(step+scrape, 4*scrape)
}

// queryRateInterval is the value of $__rate_interval inside an expression that is evaluated at step.
func (t timing) queryRateInterval(step time.Duration) time.Duration {
	switch t.minStep {
	case "$__rate_interval", "${__rate_interval}":
		return step
	case "$__interval", "${__interval}":
		return rateInterval(t.panelInterval, step.String())
	case "":
		return rateInterval(t.panelInterval, t.scrapeInterval)
	}
	return rateInterval(t.panelInterval, t.minStep)
}

// interpolate replaces the variables that only the back end knows, which alert rules rely on.
func (t timing) interpolate(expr string, step time.Duration) string {
	if !strings.Contains(expr, "$") {
		return expr
	}
	rangeMs := t.to.Sub(t.from).Milliseconds()
	rangeS := strconv.FormatInt(int64(math.Round(float64(rangeMs)/1000)), 10)
	rate := t.queryRateInterval(step)

	// At one place the first match counts: longer names stand before their prefixes.
	var pairs []string
	for _, v := range [][2]string{
		{"__rate_interval_ms", strconv.FormatInt(rate.Milliseconds(), 10)},
		{"__rate_interval", rate.String()},
		{"__interval_ms", strconv.FormatInt(step.Milliseconds(), 10)},
		{"__interval", gtime.FormatInterval(step)},
		{"__range_ms", strconv.FormatInt(rangeMs, 10)},
		{"__range_s", rangeS},
		{"__range", rangeS + "s"},
	} {
		pairs = append(pairs, "$"+v[0], v[1], "${"+v[0]+"}", v[1])
	}
	return strings.NewReplacer(pairs...).Replace(expr)
}

// align rounds t down to a multiple of step in the user's time zone, so that a panel shows the same points when it is refreshed.
func align(t time.Time, step time.Duration, utcOffsetSec int64) time.Time {
	// In floating point, as Grafana's own datasource does it: at nanoseconds its rounding is part of the answer.
	offset, width := float64(utcOffsetSec*1e9), float64(step.Nanoseconds())
	return time.Unix(0, int64(math.Floor((float64(t.UnixNano())+offset)/width)*width-offset)).UTC()
}
