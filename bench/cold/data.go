package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/millrace/millrace/pkg/block"
)

const (
	day = 24 * time.Hour
	// fastMetrics are those that have a sample every 10 s; the others have one every 5 min.
	fastMetrics  = 3
	fastInterval = 10 * time.Second
	slowInterval = 5 * time.Minute
	// patterns is the number of different sequences of values that the series of a kind have.
	patterns       = 64
	samplesPerUnit = 120
)

// makeBucket writes the blocks, unless they are there, and returns the end of the newest.
func (c *config) makeBucket(ctx context.Context, bucket string, end time.Time) (time.Time, error) {
	mark := filepath.Join(bucket, "..", "..", "made")
	if raw, err := os.ReadFile(mark); err == nil {
		at, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		return time.UnixMilli(at).UTC(), err
	}
	if err := os.MkdirAll(bucket, 0o755); err != nil {
		return end, err
	}
	names := c.series()
	for i := range c.days {
		from := end.Add(-time.Duration(c.days-i) * day)
		if err := writeDay(ctx, bucket, uint64(i+1), from, names); err != nil {
			return end, err
		}
		fmt.Fprintf(os.Stderr, "\rmade %d of %d blocks", i+1, c.days)
	}
	fmt.Fprintln(os.Stderr)
	return end, os.WriteFile(mark, []byte(strconv.FormatInt(end.UnixMilli(), 10)), 0o644)
}

// named is a series and what it holds.
type named struct {
	lset    labels.Labels
	fast    bool
	pattern int
}

// series returns all series, sorted by labels.
func (c *config) series() []named {
	var out []named
	for m := range c.metrics {
		for i := range c.instances {
			name := fmt.Sprintf("slow_metric_%03d_total", m)
			if m < fastMetrics {
				name = fmt.Sprintf("fast_metric_%03d_total", m)
			}
			out = append(out, named{fast: m < fastMetrics, pattern: (m*7 + i) % patterns, lset: labels.FromStrings(
				model.MetricNameLabel, name, "cluster", fmt.Sprintf("cluster-%d", i%4), "env", "production",
				"instance", fmt.Sprintf("host-%03d.example.internal:9100", i), "job", "node", "region", fmt.Sprintf("eu-west-%d", i%3),
			)})
		}
	}
	slices.SortFunc(out, func(a, b named) int { return labels.Compare(a.lset, b.lset) })
	return out
}

func writeDay(ctx context.Context, bucket string, number uint64, from time.Time, names []named) error {
	var m block.Meta
	m.ULID = ulid.MustNew(uint64(from.Add(day).UnixMilli()), ulid.DefaultEntropy())
	m.MinTime, m.MaxTime = from.UnixMilli(), from.Add(day).UnixMilli()
	m.Thanos.Labels = map[string]string{"writer": "bench"}
	m.SetExtension(2, number, number)
	in := &dayInput{names: names}
	var err error
	if in.fast, err = encodePatterns(from, fastInterval); err != nil {
		return err
	}
	if in.slow, err = encodePatterns(from, slowInterval); err != nil {
		return err
	}
	_, err = block.Write(ctx, bucket, m, []block.Input{in}, block.WriteOptions{SegmentSize: 256 << 20})
	return err
}

// encodePatterns returns a day's chunks of counters that grow at random.
func encodePatterns(from time.Time, interval time.Duration) ([][]chunks.Meta, error) {
	out := make([][]chunks.Meta, patterns)
	for p := range out {
		rnd := rand.New(rand.NewPCG(uint64(p), 1))
		v := 0.0
		var app chunkenc.Appender
		for t := from; t.Before(from.Add(day)); t = t.Add(interval) {
			n := len(out[p])
			if n == 0 || out[p][n-1].Chunk.NumSamples() == samplesPerUnit {
				c := chunkenc.NewXORChunk()
				var err error
				if app, err = c.Appender(); err != nil {
					return nil, err
				}
				out[p] = append(out[p], chunks.Meta{Chunk: c, MinTime: t.UnixMilli()})
				n++
			}
			v += float64(rnd.IntN(50))
			app.Append(0, t.UnixMilli(), v)
			out[p][n-1].MaxTime = t.UnixMilli()
		}
	}
	return out, nil
}

// dayInput is what a block is made of.
type dayInput struct {
	names      []named
	fast, slow [][]chunks.Meta
}

// Symbols implements block.Input.
func (in *dayInput) Symbols() index.StringIter {
	set := map[string]bool{}
	for _, n := range in.names {
		n.lset.Range(func(l labels.Label) { set[l.Name], set[l.Value] = true, true })
	}
	var all []string
	for s := range set {
		all = append(all, s)
	}
	slices.Sort(all)
	return index.NewStringListIter(all)
}

// ChunkQuerier implements block.Input.
func (in *dayInput) ChunkQuerier(int64, int64) (storage.ChunkQuerier, error) {
	return &dayQuerier{in: in}, nil
}

// dayQuerier yields all series, whatever is asked for: that is all a block's writer does.
type dayQuerier struct{ in *dayInput }

func (q *dayQuerier) Select(context.Context, bool, *storage.SelectHints, ...*labels.Matcher) storage.ChunkSeriesSet {
	return &daySet{in: q.in, i: -1}
}

var errUnsupported = errors.New("not supported")

func (*dayQuerier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, errUnsupported
}

func (*dayQuerier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, errUnsupported
}

func (*dayQuerier) Close() error { return nil }

type daySet struct {
	in *dayInput
	i  int
}

func (s *daySet) Next() bool                        { s.i++; return s.i < len(s.in.names) }
func (s *daySet) Err() error                        { return nil }
func (s *daySet) Warnings() annotations.Annotations { return nil }

func (s *daySet) At() storage.ChunkSeries {
	n := s.in.names[s.i]
	chks := s.in.slow[n.pattern]
	if n.fast {
		chks = s.in.fast[n.pattern]
	}
	return &storage.ChunkSeriesEntry{Lset: n.lset, ChunkIteratorFn: func(chunks.Iterator) chunks.Iterator {
		return storage.NewListChunkSeriesIterator(chks...)
	}}
}

// query is one that is measured.
type query struct {
	name, expr string
	end        time.Time
	length     time.Duration
}

// queries returns what is asked, of the newest data.
func (c *config) queries(end time.Time) []query {
	var out []query
	add := func(what, expr string, lengths ...time.Duration) {
		for _, l := range lengths {
			out = append(out, query{name: what + ", " + cmp.Or(strings.TrimSuffix(strings.TrimSuffix(l.String(), "0s"), "0m"), l.String()), expr: expr, end: end, length: l})
		}
	}
	const range5m = "[5m])) by (region)"
	add("one series", `rate(fast_metric_001_total{instance="host-077.example.internal:9100"}[5m])`, time.Hour, day-time.Hour)
	add("one series", `sum_over_time(slow_metric_123_total{instance="host-077.example.internal:9100"}[1h])`, 30*day-2*time.Hour)
	add("one host of 10 metrics", `sum({__name__=~"slow_metric_04._total", instance="host-077.example.internal:9100"}) by (region)`, time.Hour, day-2*time.Hour, 30*day-2*time.Hour)
	add("one metric", "sum(rate(fast_metric_001_total"+range5m, time.Hour, day-time.Hour)
	add("one metric", "sum(sum_over_time(slow_metric_123_total[1h])) by (region)", 30*day-2*time.Hour)
	add("20 hosts of 10 metrics", `sum({__name__=~"slow_metric_04._total", instance=~"host-0.0.*|host-1.5.*"}) by (region)`, time.Hour, day-2*time.Hour, 30*day-2*time.Hour)
	add("one host of 200 metrics", `sum({__name__=~"slow_metric_[12].._total", instance="host-077.example.internal:9100"}) by (region)`, time.Hour, day-2*time.Hour, 30*day-2*time.Hour)
	return slices.DeleteFunc(out, func(q query) bool { return !strings.Contains(q.name, c.only) })
}
