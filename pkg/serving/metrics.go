package serving

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of Queryable and Engine. A second one on the same registry shares the first one's.
type metrics struct {
	retries prometheus.Counter
	refused *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	return &metrics{
		retries: register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_serving_retries_total",
			Help: "Queries that were run again because an object in the bucket was gone.",
		})),
		refused: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_serving_refused_total",
			Help: "Queries that were stopped by a limit: the memory of one query, the memory that others leave, the number of samples, or the bytes read of the bucket.",
		}, []string{"limit"})),
	}
}

// registerPool shows a memory pool.
func registerPool(reg prometheus.Registerer, p *MemoryPool) {
	register(reg, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_serving_memory_bytes",
		Help: "Memory that running queries are estimated to need.",
	}, func() float64 { return float64(p.Used()) }))
	register(reg, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_serving_memory_limit_bytes",
		Help: "Memory that all queries together may need; 0 is no limit.",
	}, func() float64 { return float64(max(p.Limit(), 0)) }))
}

// register returns c, or what is registered in its place already.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	if reg == nil {
		return c
	}
	var already prometheus.AlreadyRegisteredError
	if err := reg.Register(c); errors.As(err, &already) {
		if old, ok := already.ExistingCollector.(C); ok {
			return old
		}
	}
	return c
}

// tolerantRegisterer lets a second PromQL engine be made on a registry that has the metrics of a first one.
type tolerantRegisterer struct{ prometheus.Registerer }

func (r tolerantRegisterer) Register(c prometheus.Collector) error {
	var already prometheus.AlreadyRegisteredError
	if err := r.Registerer.Register(c); err != nil && !errors.As(err, &already) {
		return err
	}
	return nil
}

func (r tolerantRegisterer) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		// What cannot be registered is not seen; that is no reason to end the process.
		_ = r.Register(c)
	}
}
