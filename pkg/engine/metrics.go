package engine

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/millrace/millrace/pkg/wal"
)

// metrics are those of the engine itself; each part has its own.
type metrics struct {
	wal               *wal.Metrics
	replayUndecodable prometheus.Counter
	flushSeconds      prometheus.Histogram
	flushFailures     prometheus.Counter
	uploads           prometheus.Counter
	uploadFailures    prometheus.Counter
	localBytes        prometheus.Gauge
	bucketUp          prometheus.Gauge
	claimHeld         prometheus.Gauge
	refused           *prometheus.CounterVec
	deletions         prometheus.Counter
	tombstones        prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		wal: wal.NewMetrics(reg),
		replayUndecodable: f.NewCounter(prometheus.CounterOpts{
			Name: "millrace_replay_undecodable_records_total", Help: "Records of the log that were intact but could not be decoded.",
		}),
		flushSeconds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_flush_duration_seconds", Help: "Time to write a sealed generation to local blocks.",
			Buckets: prometheus.ExponentialBuckets(0.01, 4, 8),
		}),
		flushFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "millrace_flush_failures_total", Help: "Attempts to write a sealed generation to local blocks that failed.",
		}),
		uploads: f.NewCounter(prometheus.CounterOpts{
			Name: "millrace_uploads_total", Help: "Local blocks that reached the bucket.",
		}),
		uploadFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "millrace_upload_failures_total", Help: "Attempts to bring a local block to the bucket that failed.",
		}),
		localBytes: f.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_local_bytes", Help: "Size of log and local blocks that wait for the bucket.",
		}),
		bucketUp: f.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_bucket_up", Help: "Whether the last listing of the bucket succeeded.",
		}),
		claimHeld: f.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_writer_claim_held", Help: "Whether this process holds the bucket's claim of its external labels, without which nothing is uploaded.",
		}),
		deletions: f.NewCounter(prometheus.CounterOpts{
			Name: "millrace_tombstones_created_total", Help: "Deletions of series that were accepted.",
		}),
		tombstones: f.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_tombstones", Help: "Deletions of series that are in force: not all that they delete is erased from the bucket.",
		}),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_writes_refused_total", Help: "Write requests that were refused, to be sent again, because disk or memory had no room or another writer has the external labels, by what it was.",
		}, []string{"reason"}),
	}
	for _, reason := range []string{"disk", "memory", "writer"} {
		m.refused.WithLabelValues(reason)
	}
	return m
}
