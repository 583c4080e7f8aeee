package plugin

import (
	"maps"
	"math"
	"slices"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/data"
	"github.com/prometheus/prometheus/model/exemplar"
)

// point is an exemplar with the labels that are shown: its series' labels, and its own where both have one.
type point struct {
	at     time.Time
	value  float64
	labels data.Labels
}

// exemplarFrame is one table of exemplars for a query, thinned out so that a panel can draw them; nil when there are none.
func (q query) exemplarFrame(found []exemplar.QueryResult) *data.Frame {
	var all []point
	names := map[string]bool{}
	for _, r := range found {
		for _, e := range r.Exemplars {
			l := frameLabels(r.SeriesLabels)
			maps.Copy(l, frameLabels(e.Labels))
			for k := range l {
				names[k] = true
			}
			all = append(all, point{at: milli(e.Ts), value: e.Value, labels: l})
		}
	}
	if len(all) == 0 {
		return nil
	}
	columns := make([]string, 0, len(names))
	for k := range names {
		columns = append(columns, k)
	}
	slices.Sort(columns)
	return exemplarTable(thin(all, q.step), columns)
}

func exemplarTable(points []point, columns []string) *data.Frame {
	times, values := make([]time.Time, len(points)), make([]float64, len(points))
	texts := make([][]string, len(columns))
	for c := range texts {
		texts[c] = make([]string, len(points))
	}
	for i, p := range points {
		times[i], values[i] = p.at, p.value
		for c, name := range columns {
			texts[c][i] = p.labels[name]
		}
	}
	f := data.NewFrame("exemplar",
		data.NewField(data.TimeSeriesTimeFieldName, nil, times),
		data.NewField(data.TimeSeriesValueFieldName, nil, values))
	for c, name := range columns {
		f.Fields = append(f.Fields, data.NewField(name, nil, texts[c]))
	}
	f.Meta = &data.FrameMeta{Custom: map[string]any{"resultType": "exemplar"}}
	return f
}

// thin keeps, of each step, the highest exemplar and those below that differ from the one kept before by more than two standard deviations
// of all values. Order is that of time.
func thin(all []point, step time.Duration) []point {
	apart := 2 * deviation(all)
	slices.SortStableFunc(all, func(a, b point) int {
		if c := align(a.at, step, 0).Compare(align(b.at, step, 0)); c != 0 {
			return c
		}
		switch {
		case a.value > b.value:
			return -1
		case a.value < b.value:
			return 1
		}
		return 0
	})
	kept := all[:0]
	for i, p := range all {
		first := i == 0 || len(kept) == 0 || !align(kept[len(kept)-1].at, step, 0).Equal(align(p.at, step, 0))
		if first || (apart > 0 && kept[len(kept)-1].value-p.value > apart) {
			kept = append(kept, p)
		}
	}
	slices.SortStableFunc(kept, func(a, b point) int { return a.at.Compare(b.at) })
	return kept
}

// deviation is the standard deviation of a sample, by Welford's method.
func deviation(all []point) float64 {
	if len(all) < 2 {
		return 0
	}
	var mean, m2 float64
	for i, p := range all {
		d := p.value - mean
		mean += d / float64(i+1)
		m2 += d * (p.value - mean)
	}
	return math.Sqrt(m2 / float64(len(all)-1))
}
