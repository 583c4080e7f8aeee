package batch

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are those of runners. One set may serve several runners one after the other.
type Metrics struct {
	runs, runFailures prometheus.Counter
	runSeconds        prometheus.Histogram
	lastSuccess       prometheus.Gauge
	jobs              *prometheus.CounterVec
	jobSeconds        *prometheus.HistogramVec
	written           *prometheus.CounterVec
	writtenBytes      prometheus.Counter
	samples           prometheus.Counter
	marked            *prometheus.CounterVec
	deleted           prometheus.Counter
	kept              prometheus.Counter
	partials          prometheus.Counter
	noRoom            prometheus.Counter
	mismatches        prometheus.Counter
	quarantined       prometheus.Gauge
}

// NewMetrics registers the metrics; reg may be nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "millrace_batch_" + name, Help: help})
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: "millrace_batch_" + name, Help: help}, labels)
	}
	m := &Metrics{
		runs:        counter("runs_total", "Runs of the batch layer."),
		runFailures: counter("run_failures_total", "Runs of the batch layer in which something failed."),
		runSeconds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_batch_run_duration_seconds", Help: "Time that runs of the batch layer took.",
			Buckets: prometheus.ExponentialBuckets(0.1, 4, 9),
		}),
		lastSuccess: f.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_batch_last_success_timestamp_seconds", Help: "When a run of the batch layer last succeeded, in seconds since 1970.",
		}),
		jobs: vec("jobs_total", "Batch jobs that ended, by kind and outcome.", "kind", "outcome"),
		jobSeconds: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_batch_job_duration_seconds", Help: "Time that batch jobs took.",
			Buckets: prometheus.ExponentialBuckets(0.1, 4, 9),
		}, []string{"kind"}),
		written:      vec("blocks_written_total", "Blocks that batch jobs uploaded, by level.", "level"),
		writtenBytes: counter("written_bytes_total", "Bytes of blocks that batch jobs uploaded."),
		samples:      counter("samples_written_total", "Samples in blocks that batch jobs uploaded."),
		marked:       vec("blocks_marked_total", "Blocks marked for deletion, by reason.", "reason"),
		deleted:      counter("blocks_deleted_total", "Blocks deleted after their grace period."),
		kept:         counter("level0_blocks_kept_total", "Superseded level-0 blocks that were moved to where master data is kept."),
		partials:     counter("partial_uploads_deleted_total", "Abandoned uploads that were deleted."),
		noRoom:       counter("jobs_without_room_total", "Batch jobs that failed at once because the local disk has too little room for them."),
		mismatches:   counter("mismatches_total", "Blocks that were written and found to differ from what they were made of, before they replaced anything."),
		quarantined: f.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_batch_blocks_quarantined", Help: "Blocks that cannot be read and take part in no job.",
		}),
	}
	for _, kind := range []Kind{CompactLevel0, MergeWindow, CompactDay, CompactFortnight} {
		for _, outcome := range []string{outcomeDone, outcomeFailed, outcomeAbandoned} {
			m.jobs.WithLabelValues(string(kind), outcome)
		}
	}
	for level := 1; level <= fortnights.level; level++ {
		m.written.WithLabelValues(strconv.Itoa(level))
	}
	for _, reason := range []string{reasonReplaced, reasonRetention, reasonSize, reasonEmpty} {
		m.marked.WithLabelValues(reason)
	}
	return m
}

// Values of the label outcome.
const (
	outcomeDone      = "done"
	outcomeFailed    = "failed"
	outcomeAbandoned = "abandoned"
)

// Values of the label reason.
const (
	reasonReplaced  = "replaced"
	reasonRetention = "retention"
	reasonSize      = "retention-size"
	reasonEmpty     = "empty"
)
