package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"testing"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/require"
)

const seriesPerWriter = 20

// journal is what one writer knows of its samples. It sends one of each of its series a request; each is the first's value plus its own number.
type journal struct {
	writer       int
	acknowledged map[int64]float64
	// uncertain are values sent since the acknowledged one, of which nobody said whether they were taken.
	uncertain map[int64][]float64
}

func newJournal(writer int) *journal {
	return &journal{writer: writer, acknowledged: map[int64]float64{}, uncertain: map[int64][]float64{}}
}

// send writes a sample of every series, and returns the status of the answer, 0 if there was none.
func (j *journal) send(m *server, at int64, v float64) int {
	j.uncertain[at] = append(j.uncertain[at], v)
	code := post(m, j.writer, at, v)
	if code == http.StatusNoContent {
		delete(j.uncertain, at)
		j.acknowledged[at] = v
	}
	return code
}

func post(m *server, writer int, at int64, v float64) int {
	var req prompb.WriteRequest
	for s := range seriesPerWriter {
		req.Timeseries = append(req.Timeseries, prompb.TimeSeries{
			Labels: []prompb.Label{
				{Name: "__name__", Value: "crash"}, {Name: "series", Value: strconv.Itoa(s)}, {Name: "writer", Value: strconv.Itoa(writer)},
			},
			Samples: []prompb.Sample{{Timestamp: at, Value: v + float64(s)}},
		})
	}
	raw, err := req.Marshal()
	if err != nil {
		return 0
	}
	r, err := http.NewRequest(http.MethodPost, m.base+"/api/v1/write", bytes.NewReader(snappy.Encode(nil, raw)))
	if err != nil {
		return 0
	}
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("Content-Encoding", "snappy")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// stored asks for all samples of the writer in a layer with times in [from, to]: those of each series, less the series' number.
func (j *journal) stored(m *server, layer string, from, to int64) (map[int]map[int64]float64, error) {
	raw, err := m.ask("/api/v1/query", url.Values{
		"query": {fmt.Sprintf(`crash{writer="%d"}[%dms]`, j.writer, to-from+1)}, "time": {strconv.FormatFloat(float64(to)/1000, 'f', 3, 64)}, "layer": {layer},
	})
	if err != nil {
		return nil, err
	}
	var data struct {
		Result []struct {
			Metric map[string]string `json:"metric"`
			Values [][2]any          `json:"values"`
		} `json:"result"`
	}
	if err := json.Unmarshal(raw, &data); err != nil {
		return nil, err
	}
	out := map[int]map[int64]float64{}
	for _, r := range data.Result {
		series, err := strconv.Atoi(r.Metric["series"])
		if err != nil {
			return nil, err
		}
		out[series] = map[int64]float64{}
		for _, pair := range r.Values {
			at := int64(pair[0].(float64)*1000 + 0.5)
			v, err := strconv.ParseFloat(pair[1].(string), 64)
			if err != nil {
				return nil, err
			}
			if _, twice := out[series][at]; twice {
				return nil, fmt.Errorf("series %d has two samples at %d", series, at)
			}
			out[series][at] = v - float64(series)
		}
	}
	return out, nil
}

// check fails the test unless a layer of the server holds what was acknowledged with times in [from, to], and nothing that was not sent.
func (j *journal) check(t *testing.T, m *server, layer string, from, to int64) {
	t.Helper()
	require.NoError(t, j.complete(m, layer, from, to))
}

// complete is check with an error. That is an incompleteError if there was an answer.
func (j *journal) complete(m *server, layer string, from, to int64) error {
	all, err := j.stored(m, layer, from, to)
	if err != nil {
		return err
	}
	for series := range seriesPerWriter {
		if err := j.differs(all[series], from, to); err != nil {
			return incompleteError{fmt.Errorf("writer %d series %d, layer %s: %w", j.writer, series, layer, err)}
		}
	}
	return nil
}

// incompleteError says that an answer was not what the journal knows.
type incompleteError struct{ error }

// differs says in what the samples of a series with times in [from, to] are not those of the journal.
func (j *journal) differs(got map[int64]float64, from, to int64) error {
	for at, v := range got {
		want, acknowledged := j.acknowledged[at]
		ok := func(sent float64) bool { return v > sent-1e-9 && v < sent+1e-9 }
		if !(acknowledged && ok(want)) && !slices.ContainsFunc(j.uncertain[at], ok) {
			return fmt.Errorf("at %d there is %v; %v was acknowledged (%t), %v were sent since", at, v, want, acknowledged, j.uncertain[at])
		}
	}
	for at := range j.acknowledged {
		if _, ok := got[at]; !ok && at >= from && at <= to {
			return fmt.Errorf("the acknowledged sample at %d is lost", at)
		}
	}
	return nil
}
