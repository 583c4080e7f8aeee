package plugin

import (
	"slices"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/data"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
)

// answer is what a backend returns for a query, in columns that frames take over. It belongs to the receiver.
type answer struct {
	kind     parser.ValueType // matrix, vector, scalar or string
	series   []series         // one for a scalar
	text     string           // of a string
	textTime time.Time
	warnings []string
	infos    []string
}

// series is one series of an answer. It may hold floats and native histograms.
type series struct {
	labels data.Labels
	times  []time.Time
	values []float64
	cells  cells
}

// cells are the buckets of native histograms, one row a bucket that is not empty. The layout says which bounds belong to a bucket:
// 0 the upper one, 1 the lower one, 2 none, 3 both.
type cells struct {
	times  []time.Time
	min    []float64
	max    []float64
	count  []float64
	layout []int8
}

func (c *cells) add(t time.Time, layout int8, lower, upper, count float64) {
	c.times = append(c.times, t)
	c.min = append(c.min, lower)
	c.max = append(c.max, upper)
	c.count = append(c.count, count)
	c.layout = append(c.layout, layout)
}

func (c *cells) addHistogram(t time.Time, h *histogram.FloatHistogram) {
	for it := h.AllBucketIterator(); it.Next(); {
		b := it.At()
		if b.Count == 0 {
			continue
		}
		layout := int8(2)
		switch {
		case b.LowerInclusive && b.UpperInclusive:
			layout = 3
		case b.LowerInclusive:
			layout = 1
		case b.UpperInclusive:
			layout = 0
		}
		c.add(t, layout, b.Lower, b.Upper, b.Count)
	}
}

// newAnswer copies v, which its query's Close takes back.
func newAnswer(v parser.Value) (answer, error) {
	a := answer{kind: v.Type()}
	switch v := v.(type) {
	case promql.Matrix:
		a.series = make([]series, 0, len(v))
		for _, s := range v {
			a.series = append(a.series, fromSeries(s))
		}
	case promql.Vector:
		a.series = make([]series, 0, len(v))
		for _, s := range v {
			a.series = append(a.series, fromSample(s))
		}
	case promql.Scalar:
		a.series = []series{{labels: data.Labels{}, times: []time.Time{milli(v.T)}, values: []float64{v.V}}}
	case promql.String:
		a.text, a.textTime = v.V, milli(v.T)
	default:
		return a, badRequest("the query's result has the unknown type %s", v.Type())
	}
	return a, nil
}

func fromSeries(s promql.Series) series {
	out := series{labels: frameLabels(s.Metric)}
	if n := len(s.Floats); n > 0 {
		out.times, out.values = make([]time.Time, n), make([]float64, n)
		for i, p := range s.Floats {
			out.times[i], out.values[i] = milli(p.T), p.F
		}
	}
	for _, p := range s.Histograms {
		out.cells.addHistogram(milli(p.T), p.H)
	}
	return out
}

func fromSample(s promql.Sample) series {
	out := series{labels: frameLabels(s.Metric)}
	if s.H != nil {
		out.cells.addHistogram(milli(s.T), s.H)
		return out
	}
	out.times, out.values = []time.Time{milli(s.T)}, []float64{s.F}
	return out
}

// hasHistograms tells whether there are native histograms in a, empty ones counting as none.
func (a answer) hasHistograms() bool {
	return slices.ContainsFunc(a.series, func(s series) bool { return len(s.cells.times) > 0 })
}

func frameLabels(l labels.Labels) data.Labels {
	out := make(data.Labels, l.Len())
	l.Range(func(l labels.Label) { out[l.Name] = l.Value })
	return out
}

func milli(t int64) time.Time { return time.UnixMilli(t).UTC() }
