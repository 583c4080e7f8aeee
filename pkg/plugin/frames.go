package plugin

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/data"
	"github.com/grafana/regexp"
	commonmodel "github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
)

// frameTypeCells is the type of frames that hold the buckets of native histograms; the SDK has no name for it.
const frameTypeCells data.FrameType = "heatmap-cells"

// legendAuto leaves the legend to the front end.
const legendAuto = "__auto"

var typeVersion = data.FrameTypeVersion{0, 1}

// frames turns an answer into frames of one type. There is at least one; an empty answer is an empty frame.
func (q query) frames(a answer, fromAlert bool) (data.Frames, error) {
	if fromAlert && a.hasHistograms() {
		return nil, newError(http.StatusBadRequest, backend.ErrorSourceDownstream,
			"the query returns native histograms, which an alert rule cannot compare: reduce them to numbers with histogram_quantile(), histogram_avg(), histogram_count() or histogram_sum()")
	}
	var out data.Frames
	switch a.kind {
	case parser.ValueTypeString:
		out = data.Frames{stringFrame(a)}
	case parser.ValueTypeScalar, parser.ValueTypeVector:
		out = q.seriesFrames(&a, data.FrameTypeNumericMulti)
	default:
		out = q.seriesFrames(&a, data.FrameTypeTimeSeriesMulti)
	}
	for _, f := range out {
		q.decorate(f)
	}
	first := out[0].Meta
	first.ExecutedQueryString = q.executed()
	custom, ok := first.Custom.(map[string]any)
	if !ok {
		custom = map[string]any{}
		first.Custom = custom
	}
	custom["calculatedMinStep"] = q.step.Milliseconds() // incremental querying merges frames by it
	first.Notices = notices(a)
	return out, nil
}

// seriesFrames makes one frame a series, all of type floats or, where there is no float at all, all of cells. Frames of one query must not
// differ in type, and floats are what every panel can show.
func (q query) seriesFrames(a *answer, floats data.FrameType) data.Frames {
	hasFloats := slices.ContainsFunc(a.series, func(s series) bool { return len(s.values) > 0 })
	if !hasFloats && a.hasHistograms() {
		return cellFrames(a.series)
	}
	var out data.Frames
	left := 0
	for _, s := range a.series {
		if len(s.cells.times) > 0 {
			left++
		}
		if len(s.values) == 0 {
			continue
		}
		f := data.NewFrame("",
			data.NewField(data.TimeSeriesTimeFieldName, nil, s.times),
			data.NewField(data.TimeSeriesValueFieldName, s.labels, s.values))
		f.Meta = seriesMeta(floats, a.kind)
		out = append(out, f)
	}
	if left > 0 {
		a.warnings = append(a.warnings, fmt.Sprintf("the native histograms of %d series are not shown, as there are also floats in the result: query them apart", left))
	}
	if len(out) == 0 {
		f := data.NewFrame("")
		f.Meta = seriesMeta(floats, a.kind)
		out = data.Frames{f}
	}
	return out
}

func seriesMeta(t data.FrameType, kind parser.ValueType) *data.FrameMeta {
	return &data.FrameMeta{Type: t, TypeVersion: typeVersion, Custom: map[string]any{"resultType": string(kind)}}
}

func cellFrames(all []series) data.Frames {
	var out data.Frames
	for _, s := range all {
		if len(s.cells.times) == 0 {
			continue
		}
		f := data.NewFrame("",
			data.NewField("xMax", s.labels, s.cells.times),
			data.NewField("yMin", s.labels, s.cells.min),
			data.NewField("yMax", s.labels, s.cells.max),
			data.NewField("count", s.labels, s.cells.count),
			data.NewField("yLayout", s.labels, s.cells.layout))
		f.Meta = &data.FrameMeta{Type: frameTypeCells}
		out = append(out, f)
	}
	return out
}

func stringFrame(a answer) *data.Frame {
	f := data.NewFrame("",
		data.NewField(data.TimeSeriesTimeFieldName, nil, []time.Time{a.textTime}),
		data.NewField(data.TimeSeriesValueFieldName, data.Labels{}, []string{a.text}))
	f.Meta = &data.FrameMeta{Type: data.FrameTypeTimeSeriesMulti, Custom: map[string]any{"resultType": string(a.kind)}}
	return f
}

// decorate sets what the front end draws a frame by: the interval of its points, and names.
func (q query) decorate(f *data.Frame) {
	if len(f.Fields) < 2 {
		return
	}
	f.Fields[0].Config = &data.FieldConfig{Interval: float64(q.step.Milliseconds())}
	value := f.Fields[1]
	if name := q.displayName(value.Labels); name != "" {
		value.Config = &data.FieldConfig{DisplayNameFromDS: name}
	}
	if name, ok := value.Labels[commonmodel.MetricNameLabel]; ok && f.Meta.Type != frameTypeCells {
		value.Name = name
	}
}

var legendVariable = regexp.MustCompile(`\{\{\s*(.+?)\s*\}\}`)

// displayName is the name of a series in legends; empty leaves it to the front end.
func (q query) displayName(l data.Labels) string {
	var name string
	switch q.legend {
	case "":
		name = metricName(l)
	case legendAuto:
		if len(l) == 0 {
			name = "{}"
		}
	default:
		name = legendVariable.ReplaceAllStringFunc(q.legend, func(v string) string {
			return l[strings.TrimSpace(v[2:len(v)-2])]
		})
	}
	if name == "{}" {
		return q.expr
	}
	return name
}

// metricName writes labels as PromQL does.
func metricName(l data.Labels) string {
	pairs := make([]string, 0, len(l))
	for k, v := range l {
		if k != commonmodel.MetricNameLabel {
			pairs = append(pairs, fmt.Sprintf("%s=%q", k, v))
		}
	}
	name, named := l[commonmodel.MetricNameLabel]
	if len(pairs) == 0 && named {
		return name
	}
	slices.Sort(pairs)
	return name + "{" + strings.Join(pairs, ", ") + "}"
}

// notices are an answer's warnings and infos, for its first frame: they are about the query, not about a series.
func notices(a answer) []data.Notice {
	var out []data.Notice
	for severity, texts := range map[data.NoticeSeverity][]string{data.NoticeSeverityWarning: a.warnings, data.NoticeSeverityInfo: a.infos} {
		for _, text := range texts {
			out = append(out, data.Notice{Severity: severity, Text: text})
		}
	}
	slices.SortFunc(out, func(x, y data.Notice) int {
		if x.Severity != y.Severity {
			return int(y.Severity) - int(x.Severity) // the graver first
		}
		return strings.Compare(x.Text, y.Text)
	})
	return out
}
