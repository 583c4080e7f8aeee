package plugin

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/data"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"
)

func TestDecodeAnswer(t *testing.T) {
	at := func(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
	for _, tc := range []struct {
		name, body string
		want       answer
	}{
		{
			"matrix", `{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[[1.5,"2"],[2,"NaN"],[3,"+Inf"]]}]}}`,
			answer{kind: parser.ValueTypeMatrix, series: []series{{labels: data.Labels{"a": "b"}, times: []time.Time{at(1500), at(2000), at(3000)}, values: []float64{2, math.NaN(), math.Inf(1)}}}},
		},
		{
			"times do not drift", `{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1435781451.781,"1e3"]}]}}`,
			answer{kind: parser.ValueTypeVector, series: []series{{labels: data.Labels{}, times: []time.Time{at(1435781451781)}, values: []float64{1000}}}},
		},
		{
			"result before its type", `{"data":{"result":[3,"4"],"resultType":"scalar"},"status":"success"}`,
			answer{kind: parser.ValueTypeScalar, series: []series{{labels: data.Labels{}, times: []time.Time{at(3000)}, values: []float64{4}}}},
		},
		{"string", `{"status":"success","data":{"resultType":"string","result":[1,"text"]}}`, answer{kind: parser.ValueTypeString, text: "text", textTime: at(1000)}},
		{
			"notes and unknown fields", `{"status":"success","new":{"x":[1]},"warnings":["w"],"infos":["i"],"data":{"stats":{},"resultType":"vector","result":[]}}`,
			answer{kind: parser.ValueTypeVector, warnings: []string{"w"}, infos: []string{"i"}},
		},
		{
			"histogram", `{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"histogram":[1,{"count":"3","sum":"1","buckets":[[3,"-1","1","2"],[0,"1","2","1"]]}]}]}}`,
			answer{kind: parser.ValueTypeVector, series: []series{{labels: data.Labels{}, cells: cells{
				times: []time.Time{at(1000), at(1000)}, min: []float64{-1, 1}, max: []float64{1, 2}, count: []float64{2, 1}, layout: []int8{3, 0},
			}}}},
		},
		{"null result", `{"status":"success","data":{"resultType":"matrix","result":null}}`, answer{kind: parser.ValueTypeMatrix}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := decodeAnswer(strings.NewReader(tc.body))
			require.NoError(t, err)
			for i, s := range got.series {
				for j, v := range s.values {
					if math.IsNaN(v) && math.IsNaN(tc.want.series[i].values[j]) {
						s.values[j], tc.want.series[i].values[j] = 0, 0
					}
				}
			}
			require.Equal(t, tc.want, got)
		})
	}
	for _, bad := range []string{
		``, `null`, `[]`, `<html>`, `{}`, `{"status":"success"}`, `{"status":"success","data":{}}`, `{"status":"success","data":null}`,
		`{"status":"error","error":"why"}`,
		`{"status":"success","data":{"resultType":"tensor","result":[]}}`,
		`{"status":"success","data":{"resultType":"scalar","result":[1]}}`,
		`{"status":"success","data":{"resultType":"scalar","result":[1,"2",3]}}`,
		`{"status":"success","data":{"resultType":"scalar","result":[1,"two"]}}`,
		`{"status":"success","data":{"result":[1,"two"],"resultType":"scalar"}}`,
		`{"status":"success","data":{"resultType":"matrix","result":[{"values":[[1,"2"]`,
		`{"status":"success","data":{"resultType":"vector","result":[{"histogram":[1,{"buckets":[[0,"1","2"]]}]}]}}`,
	} {
		t.Run("not "+bad, func(t *testing.T) {
			_, err := decodeAnswer(strings.NewReader(bad))
			require.Error(t, err)
		})
	}
}

// Columns of a frame must be of one length, whatever a server sends.
func FuzzDecodeAnswer(f *testing.F) {
	for _, s := range []string{
		`{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"a":"b"},"values":[[1.5,"2"]],"histograms":[[1,{"buckets":[[3,"-1","1","2"]]}]]}]}}`,
		`{"status":"success","data":{"result":[3,"4"],"resultType":"scalar"}}`,
		`{"status":"success","data":{"resultType":"string","result":[1,"text"]},"warnings":["w"]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := decodeAnswer(bytes.NewReader(body))
		if err != nil {
			return
		}
		for _, s := range a.series {
			n := len(s.cells.times)
			if len(s.times) != len(s.values) || len(s.cells.min) != n || len(s.cells.max) != n || len(s.cells.count) != n || len(s.cells.layout) != n {
				t.Fatalf("columns of different lengths: %+v", s)
			}
		}
		if frames, err := (query{expr: "x", step: time.Second}).frames(a, false); err != nil || len(frames) == 0 {
			t.Fatalf("no frames: %v", err)
		}
	})
}

func FuzzDecodeExemplars(f *testing.F) {
	f.Add([]byte(`{"status":"success","data":[{"seriesLabels":{"a":"b"},"exemplars":[{"labels":{"c":"d"},"value":"1","timestamp":1.5}]}]}`))
	f.Fuzz(func(_ *testing.T, body []byte) {
		if found, err := decodeExemplars(bytes.NewReader(body)); err == nil {
			(query{step: time.Second}).exemplarFrame(found)
		}
	})
}

// However a path is spelled, what is passed on is a path of the contract, spelled as there.
func FuzzFindRoute(f *testing.F) {
	for _, s := range []string{"api/v1/query", "/api/v1/label/a/values", "../api//v1/write/", "api/v1/label/%2e%2e/values"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, given string) {
		cleaned, _, ok := findRoute(given)
		if !ok {
			return
		}
		if _, known := routes[cleaned]; known {
			return
		}
		name, a := strings.CutPrefix(cleaned, "api/v1/label/")
		name, b := strings.CutSuffix(name, "/values")
		if !a || !b || name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\\%?#;\x00\n") {
			t.Fatalf("%q became %q", given, cleaned)
		}
	})
}

// What the front end's query editor asks for is there, for everyone.
func TestFrontEndPaths(t *testing.T) {
	for _, path := range []string{
		"/api/v1/query", "/api/v1/query_range", "/api/v1/series", "/api/v1/labels", "/api/v1/label/job/values", "/api/v1/metadata",
		"/api/v1/query_exemplars", "/api/v1/rules", "suggestions",
	} {
		_, r, ok := findRoute(path)
		require.True(t, ok, path)
		require.Equal(t, readers, r.access, path)
	}
}
