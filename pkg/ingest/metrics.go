package ingest

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	requests     *prometheus.CounterVec
	duration     *prometheus.HistogramVec
	compressed   prometheus.Counter
	decompressed prometheus.Counter
	floats       prometheus.Counter
	histograms   prometheus.Counter
	exemplars    prometheus.Counter
	metadata     prometheus.Counter

	rejectedRequests  *prometheus.CounterVec
	rejectedMetadata  prometheus.Counter
	rejectedSeries    [reasonCount]prometheus.Counter
	rejectedSamples   [reasonCount]prometheus.Counter
	rejectedExemplars [reasonCount]prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	f := promauto.With(reg)
	m := &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_ingest_requests_total",
			Help: "Remote write requests that were answered, by protocol and HTTP status.",
		}, []string{"protocol", "code"}),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "millrace_ingest_request_duration_seconds",
			Help:    "Time from the complete body to the answer of remote write requests.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 4, 9),
		}, []string{"protocol"}),
		rejectedRequests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_ingest_rejected_requests_total",
			Help: "Remote write requests that were refused as a whole.",
		}, []string{"reason"}),
		rejectedMetadata: f.NewCounter(prometheus.CounterOpts{
			Name: "millrace_ingest_rejected_metadata_total",
			Help: "Metadata entries that were dropped because they are not valid.",
		}),
	}
	size := f.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_ingest_bytes_total",
		Help: "Bytes of remote write requests, as received and after decompression.",
	}, []string{"form"})
	m.compressed, m.decompressed = size.WithLabelValues("compressed"), size.WithLabelValues("decompressed")
	items := f.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_ingest_samples_total",
		Help: "Items that were accepted and stored, by type.",
	}, []string{"type"})
	m.floats, m.histograms = items.WithLabelValues("float"), items.WithLabelValues("histogram")
	m.exemplars, m.metadata = items.WithLabelValues("exemplar"), items.WithLabelValues("metadata")
	m.registerReasons(f)
	return m
}

// registerReasons creates a counter for every reason, so that each is there, with
// 0, before it happens for the first time.
func (m *metrics) registerReasons(f promauto.Factory) {
	samples := f.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_ingest_rejected_samples_total",
		Help: "Samples (floats and histograms) that were refused, those of refused series included.",
	}, []string{"reason"})
	series := f.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_ingest_rejected_series_total",
		Help: "Series that were refused with all their samples, each time they came.",
	}, []string{"reason"})
	exemplars := f.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_ingest_rejected_exemplars_total",
		Help: "Exemplars that were dropped, those of refused series included.",
	}, []string{"reason"})
	for r := accepted + 1; r < reasonCount; r++ {
		name := reasonNames[r]
		ofSeries := r <= reasonNoSamples
		ofTime := r >= reasonTime && r <= reasonRule
		ofExemplar := r >= reasonExemplarLength
		if ofSeries {
			m.rejectedSeries[r] = series.WithLabelValues(name)
		}
		if !ofExemplar && r != reasonNoSamples {
			m.rejectedSamples[r] = samples.WithLabelValues(name)
		}
		if ofSeries || ofTime || ofExemplar {
			m.rejectedExemplars[r] = exemplars.WithLabelValues(name)
		}
	}
	for _, c := range causes {
		m.rejectedRequests.WithLabelValues(c)
	}
}

// request counts an answer.
func (m *metrics) request(p Protocol, err error, took time.Duration) {
	m.requests.WithLabelValues(p.String(), strconv.Itoa(StatusOf(err))).Inc()
	m.duration.WithLabelValues(p.String()).Observe(took.Seconds())
	if refused, ok := errors.AsType[*Refused](err); ok {
		m.rejectedRequests.WithLabelValues(refused.Cause).Inc()
	}
}

func (m *metrics) accepted(w Written, metadata int) {
	m.floats.Add(float64(w.Samples))
	m.histograms.Add(float64(w.Histograms))
	m.exemplars.Add(float64(w.Exemplars))
	m.metadata.Add(float64(metadata))
}

func (m *metrics) refused(j *judge) {
	m.rejectedMetadata.Add(float64(j.metadata))
	for r := accepted + 1; r < reasonCount; r++ {
		add(m.rejectedSeries[r], j.series[r])
		add(m.rejectedSamples[r], j.samples[r])
		add(m.rejectedExemplars[r], j.exemplars[r])
	}
}

func add(c prometheus.Counter, n int) {
	if n > 0 {
		c.Add(float64(n))
	}
}
