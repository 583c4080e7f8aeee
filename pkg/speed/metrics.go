package speed

import "github.com/prometheus/client_golang/prometheus"

// Metrics of all generations of an engine: generations come and go, their counters go on.
type Metrics struct {
	samples    prometheus.Counter
	late       prometheus.Counter
	duplicates prometheus.Counter
	failed     prometheus.Counter
	created    prometheus.Counter
	handedOver prometheus.Counter
	chunks     prometheus.Counter
	lateChunks prometheus.Counter
}

// NewMetrics registers the metrics; reg may be nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_speed_" + name, Help: help})
		reg.MustRegister(c)
		return c
	}
	return &Metrics{
		samples:    counter("samples_total", "Samples, floats and histograms, that were put into memory."),
		late:       counter("late_samples_total", "Samples that were not newer than the last one of their series."),
		duplicates: counter("duplicate_samples_total", "Samples that repeated the last one of their series and were dropped."),
		failed:     counter("failed_samples_total", "Samples that could not be encoded."),
		created:    counter("series_created_total", "Series that a generation saw for the first time."),
		handedOver: counter("series_handed_over_total", "Of these, series whose labels were taken from the previous generation."),
		chunks:     counter("chunks_closed_total", "Chunks that were closed."),
		lateChunks: counter("late_chunks_total", "Of these, chunks of late samples."),
	}
}

func (m *Metrics) count(s *AppendStats) {
	for _, c := range [...]struct {
		counter prometheus.Counter
		n       int
	}{
		{m.samples, s.Samples},
		{m.late, s.Late},
		{m.duplicates, s.Duplicates},
		{m.failed, s.Failed},
		{m.created, s.Created},
		{m.handedOver, s.HandedOver},
		{m.chunks, s.chunks},
		{m.lateChunks, s.lateChunks},
	} {
		if c.n != 0 {
			c.counter.Add(float64(c.n))
		}
	}
}
