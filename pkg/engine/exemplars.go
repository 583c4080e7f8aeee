package engine

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/millrace/millrace/pkg/ingest"
)

// exemplarLateness is how far behind a series' newest exemplar another one may be, in milliseconds.
const exemplarLateness = 10 * 60 * 1000

// exemplars is a bounded ring of the newest exemplars; Prometheus's own, which has a lock of its own.
type exemplars struct {
	ring     *tsdb.CircularExemplarStorage
	rejected prometheus.Counter
}

func newExemplars(size int64, reg prometheus.Registerer) (*exemplars, error) {
	s, err := tsdb.NewCircularExemplarStorage(size, tsdb.NewExemplarMetrics(prometheus.NewRegistry()), exemplarLateness)
	if err != nil {
		return nil, fmt.Errorf("make room for exemplars: %w", err)
	}
	rejected := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "millrace_exemplars_dropped_total", Help: "Exemplars that were not kept: repeated, or too far behind their series' newest.",
	})
	if err := reg.Register(rejected); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return &exemplars{ring: s.(*tsdb.CircularExemplarStorage), rejected: rejected}, nil
}

// add keeps a request's exemplars. One that the ring does not want is counted; the samples beside it are not touched by that.
func (x *exemplars) add(b *ingest.Batch) {
	for i := range b.Series {
		s := &b.Series[i]
		if len(s.Exemplars) == 0 {
			continue
		}
		series := ingest.KeyLabels(s.Key)
		for _, ex := range s.Exemplars {
			err := x.ring.AddExemplar(series, exemplar.Exemplar{Labels: ex.Labels, Value: ex.V, Ts: ex.T, HasTs: ex.T != 0})
			if err != nil {
				x.rejected.Inc()
			}
		}
	}
}

// ExemplarQuerier implements storage.ExemplarQueryable.
func (x *exemplars) ExemplarQuerier(ctx context.Context) (storage.ExemplarQuerier, error) {
	return x.ring.ExemplarQuerier(ctx)
}
