package wal

import "github.com/prometheus/client_golang/prometheus"

// Metrics of all logs of a process. One is made with NewMetrics and given to every log in its Options.
type Metrics struct {
	records       prometheus.Counter
	bytes         prometheus.Counter
	writes        prometheus.Counter
	writeFailures prometheus.Counter
	syncDuration  prometheus.Histogram
	syncFailures  prometheus.Counter
	rewritten     prometheus.Counter
	atRisk        prometheus.Counter
	segments      prometheus.Gauge
	replayed      prometheus.Counter
	lostRegions   prometheus.Counter
	lostRecords   prometheus.Counter
	lostBytes     prometheus.Counter
}

// NewMetrics registers the metrics with reg; with a nil reg they are counted for nobody.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		records:       counter("records_appended_total", "Records written to a write-ahead log."),
		bytes:         counter("bytes_appended_total", "Bytes written to a write-ahead log, frames included."),
		writes:        counter("writes_total", "Write calls; records per write is the size of a commit group."),
		writeFailures: counter("write_failures_total", "Groups of records that could not be written or synced and whose senders were told so."),
		syncFailures:  counter("fsync_failures_total", "Calls of fsync that failed."),
		rewritten:     counter("rewritten_records_total", "Records written again to a new segment after a failed fsync."),
		atRisk:        counter("at_risk_records_total", "Acknowledged records that could be neither synced nor written again after a failed fsync."),
		replayed:      counter("replay_records_total", "Records read back by replay."),
		lostRegions:   counter("replay_lost_regions_total", "Damaged or missing regions that replay skipped."),
		lostRecords:   counter("replay_lost_records_total", "Records known to be lost in regions that replay skipped."),
		lostBytes:     counter("replay_lost_bytes_total", "Bytes of regions that replay skipped."),
		segments: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "millrace", Subsystem: "wal", Name: "segments",
			Help: "Segments of the write-ahead logs that are open.",
		}),
		syncDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "millrace", Subsystem: "wal", Name: "fsync_duration_seconds",
			Help:                        "Duration of fsync calls on segments.",
			Buckets:                     prometheus.ExponentialBuckets(0.0001, 4, 10),
			NativeHistogramBucketFactor: 1.1,
		}),
	}
	if reg == nil {
		return m
	}
	reg.MustRegister(
		m.records, m.bytes, m.writes, m.writeFailures, m.syncDuration, m.syncFailures, m.rewritten, m.atRisk, m.segments,
		m.replayed, m.lostRegions, m.lostRecords, m.lostBytes,
	)
	return m
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "millrace", Subsystem: "wal", Name: name, Help: help})
}
