package promapi

import (
	"bytes"
	"math"
	"slices"
	"strconv"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	v1 "github.com/prometheus/prometheus/web/api/v1"
)

// encoder encodes answers, to the byte as Prometheus's own does. Matrices and vectors of floats, which nearly all large ones are, it writes itself, into a
// buffer of about the right size; Prometheus's would grow it from nothing and then copy it.
type encoder struct{ v1.JSONCodec }

// Estimates in bytes.
const (
	pointText  = 40
	seriesText = 40 // Beside its labels.
	labelText  = 6  // Quotes, colon and comma.
)

// Encode implements v1.Codec.
func (e encoder) Encode(resp *v1.Response) ([]byte, error) {
	data, ok := resp.Data.(*v1.QueryData)
	if !ok {
		return e.JSONCodec.Encode(resp)
	}
	var size int
	var write func([]byte) []byte
	empty := *data
	switch result := data.Result.(type) {
	case promql.Matrix:
		if slices.ContainsFunc(result, func(s promql.Series) bool { return len(s.Histograms) > 0 }) {
			return e.JSONCodec.Encode(resp)
		}
		for _, s := range result {
			size += seriesText + labelsText(s.Metric) + len(s.Floats)*pointText
		}
		empty.Result, write = promql.Matrix{}, func(b []byte) []byte { return appendMatrix(b, result) }
	case promql.Vector:
		if slices.ContainsFunc(result, func(s promql.Sample) bool { return s.H != nil }) {
			return e.JSONCodec.Encode(resp)
		}
		for _, s := range result {
			size += seriesText + labelsText(s.Metric) + pointText
		}
		empty.Result, write = promql.Vector{}, func(b []byte) []byte { return appendVector(b, result) }
	default:
		return e.JSONCodec.Encode(resp)
	}
	around := *resp
	around.Data = &empty
	frame, err := e.JSONCodec.Encode(&around)
	if err != nil {
		return nil, err
	}
	const list = `"result":[`
	at := bytes.Index(frame, []byte(list)) + len(list) // Before it are constants alone.
	out := append(make([]byte, 0, len(frame)+size), frame[:at]...)
	return append(write(out), frame[at:]...), nil
}

func labelsText(ls labels.Labels) (n int) {
	ls.Range(func(l labels.Label) { n += len(l.Name) + len(l.Value) + labelText })
	return n
}

func appendMatrix(b []byte, m promql.Matrix) []byte {
	for i, s := range m {
		b = beginSeries(b, i, s.Metric)
		for k, p := range s.Floats {
			if k == 0 {
				b = append(b, `,"values":[`...)
			} else {
				b = append(b, ',')
			}
			b = appendPoint(b, p.T, p.F)
		}
		if len(s.Floats) > 0 {
			b = append(b, ']')
		}
		b = append(b, '}')
	}
	return b
}

func appendVector(b []byte, v promql.Vector) []byte {
	for i, s := range v {
		b = beginSeries(b, i, s.Metric)
		b = append(b, `,"value":`...)
		b = append(appendPoint(b, s.T, s.F), '}')
	}
	return b
}

// beginSeries appends what comes before the points of a list's series.
func beginSeries(b []byte, i int, metric labels.Labels) []byte {
	if i > 0 {
		b = append(b, ',')
	}
	b = append(b, `{"metric":`...)
	return appendLabels(b, metric)
}

func appendLabels(b []byte, ls labels.Labels) []byte {
	b = append(b, '{')
	first := len(b)
	ls.Range(func(l labels.Label) {
		if len(b) > first {
			b = append(b, ',')
		}
		b = appendString(b, l.Name)
		b = append(b, ':')
		b = appendString(b, l.Value)
	})
	return append(b, '}')
}

// appendString appends a string, which seldom needs escapes.
func appendString(b []byte, s string) []byte {
	start := len(b)
	b = append(b, '"')
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' {
			return appendEscaped(b[:start], s)
		}
	}
	b = append(b, s...)
	return append(b, '"')
}

func appendEscaped(b []byte, s string) []byte {
	stream := json.BorrowStream(nil)
	defer json.ReturnStream(stream)
	stream.WriteString(s)
	return append(b, stream.Buffer()...)
}

// appendPoint appends a timestamp, in seconds, and a value.
func appendPoint(b []byte, t int64, f float64) []byte {
	b = append(b, '[')
	b = appendSeconds(b, t)
	b = append(b, `,"`...)
	b = appendFloat(b, f)
	return append(b, `"]`...)
}

func appendSeconds(b []byte, ms int64) []byte {
	if ms < 0 {
		b = append(b, '-')
		ms = -ms
	}
	b = strconv.AppendInt(b, ms/1000, 10)
	if rest := ms % 1000; rest != 0 {
		b = append(b, '.', byte('0'+rest/100), byte('0'+rest/10%10), byte('0'+rest%10))
	}
	return b
}

// maxWhole is below the numbers of which a float has no longer every whole one.
const maxWhole = 1 << 53

func appendFloat(b []byte, f float64) []byte {
	abs := math.Abs(f)
	if abs < maxWhole && f == math.Trunc(f) && (f != 0 || !math.Signbit(f)) {
		return strconv.AppendInt(b, int64(f), 10)
	}
	format := byte('f')
	if abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(b, f, format, -1, 64)
}
