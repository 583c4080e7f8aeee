package promapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	v1 "github.com/prometheus/prometheus/web/api/v1"

	"github.com/millrace/millrace/pkg/serving"
)

const (
	defaultStatusLimit = 10
	maxStatusLimit     = 10_000
)

// tsdbStatus answers which labels make up the series of the speed layer, in the shape of Prometheus's head.
func (a *api) tsdbStatus(w http.ResponseWriter, r *http.Request) {
	limit := defaultStatusLimit
	if s := r.Form.Get("limit"); s != "" {
		var err error
		if limit, err = strconv.Atoi(s); err != nil || limit < 1 {
			a.fail(w, badData, errors.New("limit must be a positive number"))
			return
		}
		if limit > maxStatusLimit {
			a.fail(w, badData, fmt.Errorf("limit must not exceed %d", maxStatusLimit))
			return
		}
	}
	c, err := countSpeed(r.Context(), a.o.Queryable)
	if err != nil {
		a.fail(w, execution, err)
		return
	}
	status := c.status(limit)
	if a.o.Head != nil {
		status.HeadStats = a.o.Head()
	}
	status.HeadStats.NumSeries = max(status.HeadStats.NumSeries, c.series)
	status.HeadStats.NumLabelPairs = len(c.pairs)
	a.respond(w, status)
}

// cardinality counts series by their labels.
type cardinality struct {
	series uint64
	pairs  map[labels.Label]uint64
}

func countSpeed(ctx context.Context, q storage.Queryable) (*cardinality, error) {
	querier, err := q.Querier(minTime, maxTime)
	if err != nil {
		return nil, err
	}
	defer querier.Close()
	c := &cardinality{pairs: map[labels.Label]uint64{}}
	set := querier.Select(serving.WithLayer(ctx, serving.Speed), false,
		&storage.SelectHints{Start: minTime, End: maxTime, Func: "series"},
		labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".*"))
	for set.Next() {
		c.series++
		set.At().Labels().Range(func(l labels.Label) { c.pairs[l]++ })
	}
	return c, set.Err()
}

func (c *cardinality) status(limit int) v1.TSDBStatus {
	values, bytes := map[string]uint64{}, map[string]uint64{}
	var metrics, pairs []v1.TSDBStat
	for l, n := range c.pairs {
		values[l.Name]++
		bytes[l.Name] += uint64(len(l.Value)) * n
		if l.Name == model.MetricNameLabel {
			metrics = append(metrics, v1.TSDBStat{Name: l.Value, Value: n})
		}
		pairs = append(pairs, v1.TSDBStat{Name: l.Name + "=" + l.Value, Value: n})
	}
	return v1.TSDBStatus{
		SeriesCountByMetricName:     top(metrics, limit),
		LabelValueCountByLabelName:  top(list(values), limit),
		MemoryInBytesByLabelName:    top(list(bytes), limit),
		SeriesCountByLabelValuePair: top(pairs, limit),
	}
}

func list(counts map[string]uint64) []v1.TSDBStat {
	out := make([]v1.TSDBStat, 0, len(counts))
	for name, n := range counts {
		out = append(out, v1.TSDBStat{Name: name, Value: n})
	}
	return out
}

// top returns the largest, and never nil.
func top(all []v1.TSDBStat, limit int) []v1.TSDBStat {
	slices.SortFunc(all, func(a, b v1.TSDBStat) int {
		return cmp.Or(cmp.Compare(b.Value, a.Value), cmp.Compare(a.Name, b.Name))
	})
	if len(all) > limit {
		all = all[:limit]
	}
	if all == nil {
		all = []v1.TSDBStat{}
	}
	return all
}
