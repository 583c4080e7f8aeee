package engine

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/golang/snappy"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"

	"github.com/millrace/millrace/pkg/ingest"
)

// scrapeSelf writes the engine's own metrics through its own receiver, as a Prometheus that scrapes it would, so that there is something to
// query from the first seconds on.
func (e *Engine) scrapeSelf(ctx context.Context) {
	every(ctx, e.cfg.SelfScrape, nil, func(ctx context.Context) {
		if err := e.scrapeOnce(ctx, time.Now()); err != nil && ctx.Err() == nil {
			e.report("self-scrape", err)
			return
		}
		e.report("self-scrape", nil)
	})
}

func (e *Engine) scrapeOnce(ctx context.Context, now time.Time) error {
	families, err := e.gatherer.Gather()
	if err != nil {
		return fmt.Errorf("gather own metrics: %w", err)
	}
	r := newSelfRequest(now, e.cfg.Web.ListenAddress)
	for _, f := range families {
		r.family(f)
	}
	r.sample("up", 1, writev2.Metadata{Type: writev2.Metadata_METRIC_TYPE_GAUGE})
	r.sample("scrape_duration_seconds", time.Since(now).Seconds(), writev2.Metadata{Type: writev2.Metadata_METRIC_TYPE_GAUGE})
	r.sample("scrape_samples_scraped", float64(len(r.req.Timeseries)-2), writev2.Metadata{Type: writev2.Metadata_METRIC_TYPE_GAUGE})
	r.req.Symbols = r.symbols.Symbols()
	raw, err := r.req.Marshal()
	if err != nil {
		return fmt.Errorf("encode own metrics: %w", err)
	}
	if _, err := e.receiver.Ingest(ctx, ingest.V2, snappy.Encode(nil, raw)); err != nil {
		return fmt.Errorf("write own metrics: %w", err)
	}
	return nil
}

// selfRequest collects one scrape as a remote write 2.0 request.
type selfRequest struct {
	req      writev2.Request
	symbols  writev2.SymbolsTable
	now      int64
	instance string
}

func newSelfRequest(now time.Time, instance string) *selfRequest {
	if instance == "" {
		instance = "embedded"
	}
	return &selfRequest{symbols: writev2.NewSymbolTable(), now: now.UnixMilli(), instance: instance}
}

func (r *selfRequest) family(f *dto.MetricFamily) {
	md := writev2.Metadata{HelpRef: r.symbols.Symbolize(f.GetHelp())}
	name := f.GetName()
	for _, m := range f.GetMetric() {
		switch f.GetType() {
		case dto.MetricType_COUNTER:
			md.Type = writev2.Metadata_METRIC_TYPE_COUNTER
			r.sample(name, m.GetCounter().GetValue(), md, m.GetLabel()...)
		case dto.MetricType_GAUGE:
			md.Type = writev2.Metadata_METRIC_TYPE_GAUGE
			r.sample(name, m.GetGauge().GetValue(), md, m.GetLabel()...)
		case dto.MetricType_SUMMARY:
			md.Type = writev2.Metadata_METRIC_TYPE_SUMMARY
			r.summary(name, m, md)
		case dto.MetricType_HISTOGRAM:
			md.Type = writev2.Metadata_METRIC_TYPE_HISTOGRAM
			r.histogram(name, m, md)
		default:
			r.sample(name, m.GetUntyped().GetValue(), md, m.GetLabel()...)
		}
	}
}

func (r *selfRequest) summary(name string, m *dto.Metric, md writev2.Metadata) {
	s := m.GetSummary()
	for _, q := range s.GetQuantile() {
		r.sample(name, q.GetValue(), md, with(m, model.QuantileLabel, q.GetQuantile())...)
	}
	r.sample(name+"_sum", s.GetSampleSum(), md, m.GetLabel()...)
	r.sample(name+"_count", float64(s.GetSampleCount()), md, m.GetLabel()...)
}

func (r *selfRequest) histogram(name string, m *dto.Metric, md writev2.Metadata) {
	h := m.GetHistogram()
	last := 0.0
	for _, b := range h.GetBucket() {
		last = b.GetUpperBound()
		r.sample(name+"_bucket", float64(b.GetCumulativeCount()), md, with(m, model.BucketLabel, last)...)
	}
	if !math.IsInf(last, 1) {
		r.sample(name+"_bucket", float64(h.GetSampleCount()), md, with(m, model.BucketLabel, math.Inf(1))...)
	}
	r.sample(name+"_sum", h.GetSampleSum(), md, m.GetLabel()...)
	r.sample(name+"_count", float64(h.GetSampleCount()), md, m.GetLabel()...)
}

// with returns a metric's labels and one more whose value is a number.
func with(m *dto.Metric, name string, v float64) []*dto.LabelPair {
	value := strconv.FormatFloat(v, 'g', -1, 64)
	return append(append([]*dto.LabelPair{}, m.GetLabel()...), &dto.LabelPair{Name: &name, Value: &value})
}

func (r *selfRequest) sample(name string, v float64, md writev2.Metadata, pairs ...*dto.LabelPair) {
	b := labels.NewBuilder(labels.FromStrings(model.MetricNameLabel, name, "job", "millrace", "instance", r.instance))
	for _, p := range pairs {
		b.Set(p.GetName(), p.GetValue())
	}
	r.req.Timeseries = append(r.req.Timeseries, writev2.TimeSeries{
		LabelsRefs: r.symbols.SymbolizeLabels(b.Labels(), nil), Metadata: md,
		Samples: []writev2.Sample{{Value: v, Timestamp: r.now}},
	})
}
