package plugin

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/data"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update-golden", false, "write the golden files of frames anew")

// checkGolden compares an answer, as JSON, with testdata/NAME.json.
func checkGolden(t *testing.T, name string, responses backend.Responses) {
	t.Helper()
	got, err := json.MarshalIndent(responses, "", "  ")
	require.NoError(t, err)
	path := filepath.Join("testdata", name+".json")
	if *update {
		require.NoError(t, os.WriteFile(path, append(got, '\n'), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.JSONEq(t, string(want), string(got))
}

const goldenLoad = `
load 60s
	requests{job="api", instance="a"} 0+60x10
	requests{job="api", instance="b"} 0+120x10
	odd{case="nan"} 1 NaN 3 _ _ _ _ _ _ _ _
	odd{case="inf"} 1 Inf -Inf 4x7
	latency{job="api"} {{schema:0 sum:5 count:4 buckets:[1 2 1]}}x10
	mixed{kind="float"} 1x10
	mixed{kind="histogram"} {{schema:0 sum:1 count:1 buckets:[1]}}x10
`

// Each case is a request with one query or more, answered as the golden file says, by the engine and over HTTP alike.
func TestFrames(t *testing.T) {
	e := newEngine(t, goldenLoad)
	for _, tc := range []struct {
		name   string
		models map[string]string
	}{
		{"range", map[string]string{"A": `{"expr":"requests","range":true,"interval":"5m"}`}},
		{"range_neither_flag", map[string]string{"A": `{"expr":"sum(requests)","interval":"5m"}`}},
		{"range_legend", map[string]string{"A": `{"expr":"requests","range":true,"interval":"5m","legendFormat":"{{ job }}/{{instance}}{{nothing}}"}`}},
		{"range_legend_auto", map[string]string{"A": `{"expr":"requests","range":true,"interval":"5m","legendFormat":"__auto"}`}},
		{"range_legend_auto_no_labels", map[string]string{"A": `{"expr":"sum(requests)","range":true,"interval":"5m","legendFormat":"__auto"}`}},
		{"range_without_name", map[string]string{"A": `{"expr":"rate(requests[$__rate_interval])","range":true,"interval":"5m"}`}},
		{"range_nan_and_gaps", map[string]string{"A": `{"expr":"odd","range":true,"interval":"2m"}`}},
		{"range_histogram", map[string]string{"A": `{"expr":"latency","range":true,"interval":"5m","legendFormat":"{{job}}"}`}},
		{"range_mixed", map[string]string{"A": `{"expr":"mixed","range":true,"interval":"5m"}`}},
		{"range_empty", map[string]string{"A": `{"expr":"nothing","range":true}`}},
		{"range_scalar", map[string]string{"A": `{"expr":"1+1","range":true,"interval":"5m"}`}},
		{"instant", map[string]string{"A": `{"expr":"sort(requests)","instant":true,"format":"table"}`}},
		{"instant_histogram", map[string]string{"A": `{"expr":"latency","instant":true}`}},
		{"instant_empty", map[string]string{"A": `{"expr":"nothing","instant":true}`}},
		{"instant_scalar", map[string]string{"A": `{"expr":"1/0","instant":true}`}},
		{"instant_string", map[string]string{"A": `{"expr":"\"text\"","instant":true}`}},
		{"both", map[string]string{"A": `{"expr":"sum(requests)","instant":true,"range":true,"interval":"5m"}`}},
		{"infos", map[string]string{"A": `{"expr":"rate(mixed{kind=\"float\"}[5m])","instant":true}`}},
		{"warnings", map[string]string{"A": `{"expr":"quantile(2, requests)","instant":true}`}},
		{"several", map[string]string{"A": `{"expr":"sum(requests)","instant":true}`, "B": `{"expr":"nothing","range":true}`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			both(t, e, `{"timeInterval":"1m"}`, func(t *testing.T, d *datasource) {
				checkGolden(t, tc.name, ask(t, d, nil, tc.models))
			})
		})
	}
}

func TestExemplars(t *testing.T) {
	e := newEngine(t, goldenLoad)
	ex := func(sec int64, v float64, trace string) exemplar.Exemplar {
		return exemplar.Exemplar{Labels: labels.FromStrings("traceID", trace), Value: v, Ts: sec * 1000, HasTs: true}
	}
	e.exemplars = fakeExemplars{found: []exemplar.QueryResult{
		{SeriesLabels: labels.FromStrings("__name__", "requests", "job", "api"), Exemplars: []exemplar.Exemplar{
			ex(1, 1, "low"), ex(2, 1.1, "near"), ex(3, 100, "high"), ex(310, 5, "later"),
		}},
		{SeriesLabels: labels.FromStrings("__name__", "requests", "instance", "b"), Exemplars: []exemplar.Exemplar{ex(4, 1.05, "other"), ex(5, 1, "same"), ex(6, 1, "same"), ex(7, 1, "same")}},
	}}
	for name, m := range map[string]string{
		"exemplars":       `{"expr":"sum(requests)","range":true,"exemplar":true,"interval":"5m"}`,
		"exemplars_alone": `{"expr":"nothing","range":true,"exemplar":true,"interval":"5m"}`,
	} {
		t.Run(name, func(t *testing.T) {
			both(t, e, `{}`, func(t *testing.T, d *datasource) { checkGolden(t, name, ask(t, d, nil, map[string]string{"A": m})) })
		})
	}
	t.Run("failing", func(t *testing.T) {
		e := newEngine(t, goldenLoad)
		e.exemplars = fakeExemplars{err: errBroken}
		d := newDatasource(t, e, backend.DataSourceInstanceSettings{})
		a := ask(t, d, nil, map[string]string{"A": `{"expr":"sum(requests)","range":true,"exemplar":true}`})["A"]
		require.NoError(t, a.Error)
		require.Contains(t, a.Frames[0].Meta.Notices[0].Text, "broken on purpose")
	})
	t.Run("of an alert rule", func(t *testing.T) {
		both(t, e, `{}`, func(t *testing.T, d *datasource) {
			a := ask(t, d, map[string]string{"FromAlert": "true"}, map[string]string{"A": `{"expr":"sum(requests)","range":true,"exemplar":true}`})["A"]
			require.NoError(t, a.Error)
			require.Len(t, a.Frames, 1)
		})
	})
}

func TestAlerting(t *testing.T) {
	e := newEngine(t, goldenLoad)
	alert := map[string]string{"FromAlert": "true"}
	both(t, e, `{}`, func(t *testing.T, d *datasource) {
		t.Run("instant wins", func(t *testing.T) {
			responses := ask(t, d, alert, map[string]string{"A": `{"expr":"requests","instant":true,"range":true}`})
			require.Len(t, responses, 1)
			require.Equal(t, data.FrameTypeNumericMulti, responses["A"].Frames[0].Meta.Type)
		})
		t.Run("range alone", func(t *testing.T) {
			f := ask(t, d, alert, map[string]string{"A": `{"expr":"requests","range":true}`})["A"].Frames[0]
			require.Equal(t, data.FrameTypeTimeSeriesMulti, f.Meta.Type)
			require.Equal(t, data.FrameTypeVersion{0, 1}, f.Meta.TypeVersion)
		})
		t.Run("native histogram", func(t *testing.T) {
			a := ask(t, d, alert, map[string]string{"A": `{"expr":"latency","instant":true}`})["A"]
			require.ErrorContains(t, a.Error, "histogram_quantile")
			require.ErrorContains(t, a.Error, "histogram_avg")
			require.Equal(t, backend.StatusBadRequest, a.Status)
			require.Equal(t, backend.ErrorSourceDownstream, a.ErrorSource)
		})
		t.Run("mixed", func(t *testing.T) {
			require.Error(t, ask(t, d, alert, map[string]string{"A": `{"expr":"mixed","instant":true}`})["A"].Error)
		})
		t.Run("empty is one typed frame", func(t *testing.T) {
			frames := ask(t, d, alert, map[string]string{"A": `{"expr":"nothing","instant":true}`})["A"].Frames
			require.Len(t, frames, 1)
			require.Empty(t, frames[0].Fields)
			require.Equal(t, data.FrameTypeNumericMulti, frames[0].Meta.Type)
		})
	})
}

func TestQueryErrors(t *testing.T) {
	e := newEngine(t, goldenLoad)
	both(t, e, `{}`, func(t *testing.T, d *datasource) {
		for _, tc := range []struct {
			name, model string
			status      int
			text        string
		}{
			{"syntax", `{"expr":"sum(","range":true}`, 400, "parse error"},
			{"empty", `{"expr":"","range":true}`, 400, ""},
			{"type of a range", `{"expr":"\"text\"","range":true}`, 400, "invalid expression type"},
			{"execution", `{"expr":"requests{instance=\"a\"} * on(job) requests","instant":true}`, 422, "duplicate series"},
			{"model", `{"expr":1}`, 400, "model"},
			{"layer", `{"expr":"up","layer":"lower"}`, 400, "layer"},
			{"minimum step", `{"expr":"up","interval":"soon"}`, 400, "minimum step"},
			{"filter", `{"expr":"up","adhocFilters":[{"key":"a","operator":"like","value":"b"}]}`, 400, "unknown operator"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				responses := ask(t, d, nil, map[string]string{"A": tc.model, "B": `{"expr":"sum(requests)","instant":true}`})
				require.Len(t, responses, 2)
				a := responses["A"]
				require.ErrorContains(t, a.Error, tc.text)
				require.Equal(t, tc.status, int(a.Status))
				require.Equal(t, backend.ErrorSourceDownstream, a.ErrorSource)
				require.NoError(t, responses["B"].Error, "the other query goes on")
				require.Len(t, responses["B"].Frames, 1)
			})
		}
	})
}

func TestQueryWhileNotReady(t *testing.T) {
	e := newEngine(t, goldenLoad)
	d := newDatasource(t, e, backend.DataSourceInstanceSettings{})
	for _, tc := range []struct {
		state State
		text  string
	}{
		{State{Phase: PhaseStarting}, "starting"},
		{State{Phase: PhaseStarting, Progress: "replaying the log: 40 %"}, "starting: replaying the log: 40 %"},
		{State{Phase: PhaseFailed, Err: errBroken}, "broken on purpose"},
		{State{Phase: PhaseFailed}, "no reason"},
		{State{Phase: PhaseStopping}, "stopping"},
	} {
		e.state.Store(&tc.state)
		a := ask(t, d, nil, map[string]string{"A": `{"expr":"requests","range":true,"exemplar":true}`})["A"]
		require.ErrorContains(t, a.Error, tc.text)
		require.Equal(t, 503, int(a.Status))
	}
}

// While logs are replayed, a query is answered only where that is all of the answer.
func TestQueryWhileReplaying(t *testing.T) {
	e := newEngine(t, goldenLoad)
	e.state.Store(&State{Phase: PhaseReplaying, Progress: "40 %"})
	e.incomplete = errBroken
	d := newDatasource(t, e, backend.DataSourceInstanceSettings{})
	for _, layer := range []string{"", "merged", "speed"} {
		a := ask(t, d, nil, map[string]string{"A": `{"expr":"requests","range":true,"exemplar":true,"layer":"` + layer + `"}`})["A"]
		require.ErrorIs(t, a.Error, errBroken)
		require.Equal(t, 503, int(a.Status))
		require.Empty(t, a.Frames)
	}
	a := ask(t, d, nil, map[string]string{"A": `{"expr":"requests","range":true,"layer":"batch"}`})["A"]
	require.NoError(t, a.Error)
	require.NotEmpty(t, a.Frames)
	e.incomplete = nil
	require.NoError(t, ask(t, d, nil, map[string]string{"A": `{"expr":"requests","range":true}`})["A"].Error)
}

func TestQueryLayer(t *testing.T) {
	e := newEngine(t, goldenLoad)
	d := newDatasource(t, e, backend.DataSourceInstanceSettings{})
	for _, layer := range []string{"", "merged", "speed", "batch"} {
		require.NoError(t, ask(t, d, nil, map[string]string{"A": `{"expr":"requests","layer":"` + layer + `"}`})["A"].Error)
	}
	require.Equal(t, []string{"merged", "speed", "batch"}, e.layers)
}

func TestEveryRefIDOnce(t *testing.T) {
	d := newDatasource(t, newEngine(t, goldenLoad), backend.DataSourceInstanceSettings{})
	responses := ask(t, d, nil, map[string]string{
		"A":         `{"expr":"sum(requests)","instant":true,"range":true}`,
		"A-Instant": `{"expr":"nothing","range":true}`,
	})
	require.Len(t, responses, 2)
	require.Contains(t, responses["A-Instant"].Frames[0].Meta.ExecutedQueryString, "nothing", "a query of that name is not replaced")
}

func TestTimeRangeBackwards(t *testing.T) {
	_, err := parseQuery(backend.DataQuery{JSON: []byte(`{"expr":"up"}`), TimeRange: backend.TimeRange{From: time.Unix(10, 0), To: time.Unix(5, 0)}}, "", false)
	require.ErrorContains(t, err, "ends before it starts")
}

// A rounded step may mean more points than Prometheus allows for one series.
func TestTooManyPoints(t *testing.T) {
	q := backend.DataQuery{JSON: []byte(`{"expr":"up","interval":"1s"}`), MaxDataPoints: 20000, TimeRange: backend.TimeRange{From: time.Unix(0, 0), To: time.Unix(4*3600, 0)}}
	_, err := parseQuery(q, "", false)
	require.ErrorContains(t, err, "14400 points at a step of 1s, more than the 11000")
}

func TestApplyFilters(t *testing.T) {
	f := func(key, op, value string) filter { return filter{Key: key, Operator: op, Value: value} }
	for _, tc := range []struct {
		name  string
		expr  string
		model model
		want  string
	}{
		{"none leaves the text alone", `sum( x )`, model{}, `sum( x )`},
		{"ad hoc", `rate(x[5m])`, model{AdhocFilters: []filter{f("job", "equals", "a"), f("env", "not-equals", "b")}}, `rate(x{env!="b",job="a"}[5m])`},
		{"regular expressions", `x`, model{AdhocFilters: []filter{f("a", "regex-match", "b.*"), f("c", "regex-not-match", "d")}}, `x{a=~"b.*",c!~"d"}`},
		{"one of", `x`, model{AdhocFilters: []filter{{Key: "a", Operator: "one-of", Values: []string{"b", "c"}}, {Key: "d", Operator: "not-one-of", Values: []string{"e"}}}}, `x{a=~"b|c",d!~"e"}`},
		{"replace the query's own", `x{job="a",b="c"} / y`, model{AdhocFilters: []filter{f("job", "equals", "z")}}, `x{b="c",job="z"} / y{job="z"}`},
		{"two scopes on a label mean either", `x`, model{Scopes: []scope{{Filters: []filter{f("job", "equals", "a.b")}}, {Filters: []filter{f("job", "equals", "c")}}}}, `x{job=~"a\\.b|c"}`},
		{"ad hoc replaces a scope", `x`, model{Scopes: []scope{{Filters: []filter{f("job", "equals", "a")}}}, AdhocFilters: []filter{f("job", "equals", "b")}}, `x{job="b"}`},
		{"group by", `sum by (a) (x) + sum(x) + sum without (b) (x)`, model{GroupByKeys: []string{"a", "c"}}, `sum by (a, c) (x) + sum by (a, c) (x) + sum without (b) (x)`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := applyFilters(tc.expr, tc.model)
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

func TestThin(t *testing.T) {
	at := func(sec int64, v float64) point { return point{at: time.Unix(sec, 0), value: v} }
	require.Equal(t, []point{at(1, 3), at(11, 4)}, thin([]point{at(11, 4), at(1, 3), at(2, 2)}, 10*time.Second), "the highest of each step, by time")
	require.Equal(t, []point{at(1, 5), at(2, 5)}, thin([]point{at(1, 5), at(2, 5)}, time.Second), "one a step, without any spread")
	flat := []point{at(1, 100), at(2, 1), at(3, 1), at(4, 1), at(5, 1), at(6, 1), at(7, 1), at(8, 1)}
	require.Equal(t, []point{at(1, 100), at(2, 1)}, thin(flat, time.Minute), "and what is far from it")
	require.Empty(t, thin(nil, time.Second))
}
