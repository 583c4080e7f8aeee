package plugin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
)

// model is a query as panels and alert rules store it: that of Grafana's Prometheus datasource, with the choice of a layer. Its format
// (time series, table, heatmap) is the front end's business.
type model struct {
	Expr           string  `json:"expr"`
	Range          bool    `json:"range"`
	Instant        bool    `json:"instant"`
	Exemplar       bool    `json:"exemplar"`
	LegendFormat   string  `json:"legendFormat"`
	Interval       string  `json:"interval"`
	IntervalMs     float64 `json:"intervalMs"`
	IntervalFactor int64   `json:"intervalFactor"`
	UTCOffsetSec   int64   `json:"utcOffsetSec"`
	Layer          string  `json:"layer"`

	Scopes       []scope  `json:"scopes"`
	AdhocFilters []filter `json:"adhocFilters"`
	GroupByKeys  []string `json:"groupByKeys"`
}

// query is one evaluation to be made. A model with range and instant is two of them.
type query struct {
	refID   string
	expr    string
	legend  string
	layer   string // empty is merged
	instant bool   // at end, which then is not aligned

	start, end time.Time
	step       time.Duration
	exemplars  bool
}

// instantSuffix distinguishes the instant half of a query that wants both, as Grafana's front end does.
const instantSuffix = "-Instant"

// parseQuery turns a query into the evaluations that it asks for: at least one, at most two.
func parseQuery(q backend.DataQuery, scrapeInterval string, fromAlert bool) ([]query, error) {
	var m model
	if err := json.Unmarshal(q.JSON, &m); err != nil {
		return nil, badRequest("read the query's model: %w", err)
	}
	switch m.Layer {
	case "", "merged", "speed", "batch":
	default:
		return nil, badRequest("layer %q: must be merged, speed or batch", m.Layer)
	}
	if q.TimeRange.To.Before(q.TimeRange.From) {
		return nil, badRequest("the time range ends before it starts")
	}
	t := timing{
		from: q.TimeRange.From, to: q.TimeRange.To, maxDataPoints: q.MaxDataPoints,
		minStep: m.Interval, scrapeInterval: scrapeInterval, intervalMs: int64(m.IntervalMs), panelInterval: q.Interval, factor: m.IntervalFactor,
	}
	step, err := t.step()
	if err != nil {
		return nil, err
	}
	expr, err := applyFilters(t.interpolate(m.Expr, step), m)
	if err != nil {
		return nil, err
	}
	base := query{refID: q.RefID, expr: expr, legend: m.LegendFormat, layer: m.Layer, step: step}

	// Old dashboards have neither flag, and mean a range. An alert rule wants one answer: the cheaper one.
	wantInstant := m.Instant
	wantRange := !m.Instant || (m.Range && !fromAlert)
	var out []query
	if wantRange {
		r := base
		r.start, r.end = align(t.from, step, m.UTCOffsetSec), align(t.to, step, m.UTCOffsetSec)
		r.exemplars = m.Exemplar && !fromAlert
		if n := r.end.Sub(r.start) / step; n > maxPoints {
			return nil, badRequest("the range has %d points at a step of %s, more than the %d that are allowed: raise the minimum step or lower the number of data points", n, step, maxPoints)
		}
		out = append(out, r)
	}
	if wantInstant {
		i := base
		i.instant, i.start, i.end = true, t.to, t.to
		if wantRange {
			i.refID += instantSuffix
		} else if m.Exemplar && !fromAlert {
			i.exemplars, i.start = true, t.from
		}
		out = append(out, i)
	}
	return out, nil
}

// executed is what the query inspector shows and annotations parse.
func (q query) executed() string {
	return "Expr: " + q.expr + "\nStep: " + q.step.String()
}

// errPanic is the answer to a query that panicked. Its cause is in the log.
func errPanic(v any) error {
	return newError(http.StatusInternalServerError, backend.ErrorSourcePlugin, "the query failed unexpectedly: %s", fmt.Sprint(v))
}
