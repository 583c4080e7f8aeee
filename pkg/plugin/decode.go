package plugin

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/data"
	jsoniter "github.com/json-iterator/go"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// decodeBuffer is how much of a body is read at once.
const decodeBuffer = 64 << 10

// decodeAnswer reads the answer of query or query_range as a stream: a body may hold millions of samples.
func decodeAnswer(body io.Reader) (answer, error) {
	var (
		a      answer
		status string
		failed string
		found  bool
	)
	it := jsoniter.Parse(jsoniter.ConfigDefault, body, decodeBuffer)
	it.ReadMapCB(func(it *jsoniter.Iterator, field string) bool {
		switch field {
		case "status":
			status = it.ReadString()
		case "error":
			failed = it.ReadString()
		case "warnings":
			a.warnings = readStrings(it)
		case "infos":
			a.infos = readStrings(it)
		case "data":
			found = true
			readData(it, &a)
		default:
			it.Skip()
		}
		return it.Error == nil
	})
	if err := finished(it); err != nil {
		return answer{}, err
	}
	switch {
	case status == "error":
		return answer{}, errors.New(failed)
	case status != "success" || !found || a.kind == "":
		return answer{}, errors.New("not an answer of the Prometheus HTTP API")
	}
	return a, nil
}

// finished is the error of an iterator that should have read one value. jsoniter leaves io.EOF behind after the last one.
func finished(it *jsoniter.Iterator) error {
	if it.Error != nil && !errors.Is(it.Error, io.EOF) {
		return fmt.Errorf("JSON: %w", it.Error)
	}
	return nil
}

func readData(it *jsoniter.Iterator, a *answer) {
	var early []byte // the result, where it stands before its type
	it.ReadMapCB(func(it *jsoniter.Iterator, field string) bool {
		switch {
		case field == "resultType":
			a.kind = parser.ValueType(it.ReadString())
		case field == "result" && a.kind == "":
			early = it.SkipAndReturnBytes()
		case field == "result":
			readResult(it, a)
		default:
			it.Skip()
		}
		return it.Error == nil
	})
	if early == nil || it.Error != nil {
		return
	}
	late := jsoniter.ParseBytes(jsoniter.ConfigDefault, early)
	readResult(late, a)
	if err := finished(late); err != nil {
		it.ReportError("result", err.Error())
	}
}

func readResult(it *jsoniter.Iterator, a *answer) {
	switch a.kind {
	case parser.ValueTypeMatrix, parser.ValueTypeVector:
		it.ReadArrayCB(func(it *jsoniter.Iterator) bool {
			a.series = append(a.series, readSeries(it))
			return it.Error == nil
		})
	case parser.ValueTypeScalar:
		s := series{labels: data.Labels{}}
		s.readFloat(it)
		a.series = []series{s}
	case parser.ValueTypeString:
		readPair(it, func(t time.Time) { a.textTime, a.text = t, it.ReadString() })
	default:
		it.ReportError("resultType", "unknown type "+string(a.kind))
	}
}

func readSeries(it *jsoniter.Iterator) series {
	var s series
	it.ReadMapCB(func(it *jsoniter.Iterator, field string) bool {
		switch field {
		case "metric":
			s.labels = readLabels(it)
		case "value":
			s.readFloat(it)
		case "values":
			it.ReadArrayCB(func(it *jsoniter.Iterator) bool { s.readFloat(it); return it.Error == nil })
		case "histogram":
			s.cells.read(it)
		case "histograms":
			it.ReadArrayCB(func(it *jsoniter.Iterator) bool { s.cells.read(it); return it.Error == nil })
		default:
			it.Skip()
		}
		return it.Error == nil
	})
	return s
}

func (s *series) readFloat(it *jsoniter.Iterator) {
	readPair(it, func(t time.Time) {
		v := readNumber(it)
		s.times, s.values = append(s.times, t), append(s.values, v)
	})
}

// read reads one native histogram: [time, {"count": …, "sum": …, "buckets": [[layout, lower, upper, count], …]}].
func (c *cells) read(it *jsoniter.Iterator) {
	readPair(it, func(t time.Time) {
		it.ReadMapCB(func(it *jsoniter.Iterator, field string) bool {
			if field != "buckets" {
				it.Skip()
				return it.Error == nil
			}
			it.ReadArrayCB(func(it *jsoniter.Iterator) bool { c.readBucket(it, t); return it.Error == nil })
			return it.Error == nil
		})
	})
}

func (c *cells) readBucket(it *jsoniter.Iterator, t time.Time) {
	var (
		layout int8
		bounds [3]float64
		n      int
	)
	it.ReadArrayCB(func(it *jsoniter.Iterator) bool {
		switch {
		case n == 0:
			layout = it.ReadInt8()
		case n <= len(bounds):
			bounds[n-1] = readNumber(it)
		default:
			it.Skip()
		}
		n++
		return it.Error == nil
	})
	if it.Error == nil && n != 1+len(bounds) {
		it.ReportError("bucket", fmt.Sprintf("has %d parts, not 4", n))
		return
	}
	c.add(t, layout, bounds[0], bounds[1], bounds[2])
}

// readPair reads [time, value]; value reads the second part.
func readPair(it *jsoniter.Iterator, value func(time.Time)) {
	var (
		at time.Time
		n  int
	)
	it.ReadArrayCB(func(it *jsoniter.Iterator) bool {
		switch n {
		case 0:
			at = seconds(it.ReadFloat64())
		case 1:
			value(at)
		default:
			it.Skip()
		}
		n++
		return it.Error == nil
	})
	if it.Error == nil && n != 2 {
		it.ReportError("sample", fmt.Sprintf("has %d parts, not 2", n))
	}
}

// readNumber reads a number in a string, which JSON needs for NaN and the infinities.
func readNumber(it *jsoniter.Iterator) float64 {
	s := it.ReadString()
	if it.Error != nil && !errors.Is(it.Error, io.EOF) {
		return 0
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		it.ReportError("number", err.Error())
	}
	return v
}

func seconds(s float64) time.Time { return milli(int64(math.Round(s * 1000))) }

func readLabels(it *jsoniter.Iterator) data.Labels {
	l := data.Labels{}
	it.ReadMapCB(func(it *jsoniter.Iterator, name string) bool {
		l[name] = it.ReadString()
		return it.Error == nil
	})
	return l
}

func readStrings(it *jsoniter.Iterator) []string {
	var out []string
	it.ReadArrayCB(func(it *jsoniter.Iterator) bool {
		out = append(out, it.ReadString())
		return it.Error == nil
	})
	return out
}

// decodeExemplars reads the answer of query_exemplars.
func decodeExemplars(body io.Reader) ([]exemplar.QueryResult, error) {
	var out []exemplar.QueryResult
	it := jsoniter.Parse(jsoniter.ConfigDefault, body, decodeBuffer)
	it.ReadMapCB(func(it *jsoniter.Iterator, field string) bool {
		if field != "data" {
			it.Skip()
			return it.Error == nil
		}
		it.ReadArrayCB(func(it *jsoniter.Iterator) bool {
			out = append(out, readExemplars(it))
			return it.Error == nil
		})
		return it.Error == nil
	})
	return out, finished(it)
}

func readExemplars(it *jsoniter.Iterator) exemplar.QueryResult {
	var r exemplar.QueryResult
	it.ReadMapCB(func(it *jsoniter.Iterator, field string) bool {
		switch field {
		case "seriesLabels":
			r.SeriesLabels = labels.FromMap(readLabels(it))
		case "exemplars":
			it.ReadArrayCB(func(it *jsoniter.Iterator) bool {
				r.Exemplars = append(r.Exemplars, readExemplar(it))
				return it.Error == nil
			})
		default:
			it.Skip()
		}
		return it.Error == nil
	})
	return r
}

func readExemplar(it *jsoniter.Iterator) exemplar.Exemplar {
	e := exemplar.Exemplar{HasTs: true}
	it.ReadMapCB(func(it *jsoniter.Iterator, field string) bool {
		switch field {
		case "labels":
			e.Labels = labels.FromMap(readLabels(it))
		case "value":
			e.Value = readNumber(it)
		case "timestamp":
			e.Ts = seconds(it.ReadFloat64()).UnixMilli()
		default:
			it.Skip()
		}
		return it.Error == nil
	})
	return e
}
