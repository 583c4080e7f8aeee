package batch

import (
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are those of runners. One set may serve several runners one after the other.
type Metrics struct {
	runs, runFailures prometheus.Counter
	elsewhere         prometheus.Counter
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
	tombstones        prometheus.Counter
	quarantined       prometheus.Gauge

	runner atomic.Pointer[Runner] // the latest one that the metrics serve
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
		elsewhere:   counter("runs_elsewhere_total", "Runs of the batch layer that left jobs to another process."),
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
		tombstones:   counter("tombstones_removed_total", "Deletions of series of which nothing is left to be hidden."),
		quarantined: f.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_batch_blocks_quarantined", Help: "Blocks that take part in no job because they are damaged: found by a job, or marked in the bucket.",
		}),
	}
	m.gauge(f, "jobs_planned", "Batch jobs that wait for the one that runs.", func(s *JobStatus) float64 { return oneIf(s.State == Planned) })
	m.gauge(f, "jobs_running", "Batch jobs that run.", func(s *JobStatus) float64 { return oneIf(s.State == Running) })
	m.gauge(f, "job_progress_ratio", "How far the batch job that runs has come, from 0 to 1.", whileRunning(func(s *JobStatus) float64 { return s.Progress }))
	m.gauge(f, "job_series_per_second", "Series that the batch job that runs has read, by the time that it has taken.", whileRunning(func(s *JobStatus) float64 { return s.Rate }))
	m.gauge(f, "job_remaining_seconds", "Estimated time to the end of the batch job that runs; 0 while there is no estimate.", whileRunning(func(s *JobStatus) float64 {
		if s.Remaining == nil {
			return 0
		}
		return *s.Remaining
	}))
	for _, kind := range []Kind{CompactLevel0, MergeWindow, CompactDay, CompactFortnight, Erase} {
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

// Status is Runner.Status of the latest runner that was made with these metrics.
func (m *Metrics) Status() []JobStatus {
	if r := m.runner.Load(); r != nil {
		return r.Status()
	}
	return nil
}

// gauge is the sum of what each job comes to when the metrics are gathered.
func (m *Metrics) gauge(f promauto.Factory, name, help string, of func(*JobStatus) float64) {
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_batch_" + name, Help: help}, func() (sum float64) {
		jobs := m.Status()
		for i := range jobs {
			sum += of(&jobs[i])
		}
		return sum
	})
}

func whileRunning(of func(*JobStatus) float64) func(*JobStatus) float64 {
	return func(s *JobStatus) float64 {
		if s.State != Running {
			return 0
		}
		return of(s)
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
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
