package ingest

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/histogram"

	"github.com/millrace/millrace/pkg/retention"
)

// reason is why an item was refused.
type reason uint8

const (
	accepted reason = iota
	reasonNoLabels
	reasonNoMetricName
	reasonMetricName
	reasonLabelName
	reasonLabelValue
	reasonDuplicateLabel
	reasonLabels
	reasonLabelNameLength
	reasonLabelValueLength
	reasonReplicaLength
	reasonClusters
	reasonNoSamples
	reasonHistogram
	reasonBuckets
	reasonTime
	reasonFuture
	reasonPast
	reasonHorizon
	reasonRule
	reasonExemplarLength
	reasonExemplarUTF8
	reasonExemplarDuplicate
	reasonCount
)

// reasonNames are the values of the label reason.
var reasonNames = [reasonCount]string{
	reasonNoLabels:          "no_labels",
	reasonNoMetricName:      "no_metric_name",
	reasonMetricName:        "invalid_metric_name",
	reasonLabelName:         "invalid_label_name",
	reasonLabelValue:        "invalid_label_value",
	reasonDuplicateLabel:    "duplicate_label",
	reasonLabels:            "too_many_labels",
	reasonLabelNameLength:   "label_name_too_long",
	reasonLabelValueLength:  "label_value_too_long",
	reasonReplicaLength:     "ha_label_value_too_long",
	reasonClusters:          "too_many_ha_clusters",
	reasonNoSamples:         "no_samples",
	reasonHistogram:         "invalid_histogram",
	reasonBuckets:           "too_many_buckets",
	reasonTime:              "invalid_timestamp",
	reasonFuture:            "too_far_in_future",
	reasonPast:              "too_old",
	reasonHorizon:           "beyond_retention",
	reasonRule:              "beyond_retention_rule",
	reasonExemplarLength:    "exemplar_labels_too_long",
	reasonExemplarUTF8:      "exemplar_labels_invalid",
	reasonExemplarDuplicate: "exemplar_labels_duplicate",
}

// replicaReasons are those of verdicts.
var replicaReasons = map[verdict]reason{verdictLong: reasonReplicaLength, verdictFull: reasonClusters}

// maxMessages is how many refusals an answer names; the rest it counts.
const maxMessages = 10

// judge decides what of a request is accepted. Texts are made for the first
// refusals only: a request with a million bad samples must not cost more than a
// good one.
type judge struct {
	limits *Limits
	window window
	rule   *retention.Rule // of the open series

	series    [reasonCount]int // refused, by reason
	samples   [reasonCount]int // floats and histograms, those of refused series included
	exemplars [reasonCount]int
	metadata  int
	refusals  int // that the sender is told about
	messages  []string
}

func (j *judge) reset(l *Limits, now time.Time) {
	*j = judge{limits: l, window: l.window(now)}
}

// labels checks a series' labels, sorted and without empty values. The second
// result is the index of the offending one.
func (j *judge) labels(pairs []pair, unique bool) (reason, int) {
	if len(pairs) == 0 {
		return reasonNoLabels, 0
	}
	if j.limits.MaxLabels > 0 && len(pairs) > j.limits.MaxLabels {
		return reasonLabels, 0
	}
	maxName, maxValue := bound(j.limits.MaxLabelName), bound(j.limits.MaxLabelValue)
	named := false
	for i := range pairs {
		p := &pairs[i]
		if p.invalid || len(p.name) == 0 {
			return invalidLabel(p), i
		}
		if len(p.name) > maxName {
			return reasonLabelNameLength, i
		}
		if len(p.value) > maxValue {
			return reasonLabelValueLength, i
		}
		named = named || string(p.name) == metricNameLabel
	}
	if !unique {
		return reasonDuplicateLabel, duplicate(pairs)
	}
	if !named {
		return reasonNoMetricName, 0
	}
	return accepted, 0
}

func bound(limit int) int {
	if limit <= 0 {
		return maxSize
	}
	return limit
}

func invalidLabel(p *pair) reason {
	switch {
	case len(p.name) == 0 || !utf8.Valid(p.name):
		return reasonLabelName
	case string(p.name) == metricNameLabel:
		return reasonMetricName
	}
	return reasonLabelValue
}

func duplicate(pairs []pair) int {
	for i := 1; i < len(pairs); i++ {
		if string(pairs[i-1].name) == string(pairs[i].name) {
			return i
		}
	}
	return 0
}

// time checks a timestamp. With reasonRule it is fine but for retention rules: the series' one decides.
func (j *judge) time(t int64) reason {
	w := &j.window
	switch {
	case t >= w.earliest && t <= w.latest:
		return accepted
	case t < minTime || t > maxTime:
		return reasonTime
	case t > w.future:
		return reasonFuture
	case t < w.horizon:
		return reasonHorizon
	case t < w.past:
		return reasonPast
	}
	return reasonRule
}

// histogram checks a histogram but for its time and, if it is acceptable, brings it to a schema
// that chunks can hold. The order matters: sizes come first, so that nothing
// below works on more buckets than there are bytes for.
func (j *judge) histogram(h Histogram) (reason, error) {
	var neg, pos []histogram.Span
	var negBuckets, posBuckets, bounds int
	if h.H != nil {
		neg, pos, bounds = h.H.NegativeSpans, h.H.PositiveSpans, len(h.H.CustomValues)
		negBuckets, posBuckets = len(h.H.NegativeBuckets), len(h.H.PositiveBuckets)
	} else {
		neg, pos, bounds = h.FH.NegativeSpans, h.FH.PositiveSpans, len(h.FH.CustomValues)
		negBuckets, posBuckets = len(h.FH.NegativeBuckets), len(h.FH.PositiveBuckets)
	}
	if n := len(neg) + len(pos) + negBuckets + posBuckets + bounds; j.limits.MaxBuckets > 0 && n > j.limits.MaxBuckets {
		return reasonBuckets, fmt.Errorf("%d buckets, spans and bounds, more than %s=%d", n, flagBuckets, j.limits.MaxBuckets)
	}
	if err := checkSpans("negative", neg, negBuckets); err != nil {
		return reasonHistogram, err
	}
	if err := checkSpans("positive", pos, posBuckets); err != nil {
		return reasonHistogram, err
	}
	if err := normalise(h); err != nil {
		return reasonHistogram, err
	}
	var err error
	if h.H != nil {
		err = h.H.Validate()
	} else {
		err = h.FH.Validate()
	}
	if err != nil {
		return reasonHistogram, err
	}
	return accepted, nil
}

// checkSpans makes sure that the spans claim the buckets that there are, and that
// no bucket's index leaves 32 bits, in which Prometheus counts them.
func checkSpans(side string, spans []histogram.Span, buckets int) error {
	claimed, index := int64(0), int64(0)
	for _, s := range spans {
		claimed += int64(s.Length)
		index += int64(s.Offset)
		if index < -1<<31 || index+int64(s.Length) > 1<<31-1 {
			return fmt.Errorf("%s side: a span with offset %d and length %d leaves the range of bucket indexes",
				side, s.Offset, s.Length)
		}
		index += int64(s.Length)
	}
	if claimed != int64(buckets) {
		return fmt.Errorf("%s side: spans need %d buckets, have %d buckets: %w",
			side, claimed, buckets, histogram.ErrHistogramSpansBucketsMismatch)
	}
	return nil
}

func (j *judge) refuseSeries(r reason, at int, pairs []pair, samples, exemplars int) {
	j.series[r]++
	j.samples[r] += samples
	j.exemplars[r] += exemplars
	if j.more() {
		j.messages = append(j.messages, fmt.Sprintf("series %s: %s", seriesText(pairs), j.labelText(r, at, pairs)))
	}
}

func (j *judge) refuseSample(r reason, pairs []pair, t int64, err error) {
	j.samples[r]++
	if j.more() {
		j.messages = append(j.messages, fmt.Sprintf("series %s, timestamp %d: %s", seriesText(pairs), t, j.sampleText(r, t, err)))
	}
}

// more counts a refusal and says whether it gets a text.
func (j *judge) more() bool {
	j.refusals++
	return j.refusals <= maxMessages
}

func (j *judge) labelText(r reason, at int, pairs []pair) string {
	switch r {
	case reasonNoLabels:
		return "no labels"
	case reasonNoMetricName:
		return "no metric name (label " + metricNameLabel + ")"
	case reasonMetricName:
		return "metric name " + quote(pairs[at].value) + " is not valid UTF-8"
	case reasonLabelName:
		if len(pairs[at].name) == 0 {
			return "a label has no name"
		}
		return "label name " + quote(pairs[at].name) + " is not valid UTF-8"
	case reasonLabelValue:
		return "value of label " + quote(pairs[at].name) + " is not valid UTF-8"
	case reasonDuplicateLabel:
		return "label " + quote(pairs[at].name) + " appears more than once"
	case reasonLabels:
		return fmt.Sprintf("%d labels, more than %s=%d", len(pairs), flagLabels, j.limits.MaxLabels)
	case reasonLabelNameLength:
		return fmt.Sprintf("label name %s has %d bytes, more than %s=%d",
			quote(pairs[at].name), len(pairs[at].name), flagLabelName, j.limits.MaxLabelName)
	case reasonLabelValueLength:
		return fmt.Sprintf("value of label %s has %d bytes, more than %s=%d",
			quote(pairs[at].name), len(pairs[at].value), flagLabelValue, j.limits.MaxLabelValue)
	case reasonReplicaLength:
		return fmt.Sprintf("value of label %s has %d bytes, more than the %d that %s and %s allow",
			quote(pairs[at].name), len(pairs[at].value), maxReplicaValue, flagReplicaLabel, flagClusterLabel)
	case reasonClusters:
		return fmt.Sprintf("cluster %s would be one more than the %d that %s allows; one is forgotten when nothing has come from it for %s=%s",
			quote(pairs[at].value), maxClusters, flagClusterLabel, flagFailover, durationText(j.limits.HA.Failover))
	}
	return "neither samples nor histograms"
}

func (j *judge) sampleText(r reason, t int64, err error) string {
	switch r {
	case reasonFuture:
		return fmt.Sprintf("timestamp is %s in the future, more than %s=%s",
			distance(t-j.window.now), flagFuture, durationText(j.limits.MaxFuture))
	case reasonPast:
		return fmt.Sprintf("timestamp is %s in the past, more than %s=%s",
			distance(j.window.now-t), flagPast, durationText(j.limits.MaxPast))
	case reasonHorizon:
		return fmt.Sprintf("timestamp is older than what retention keeps, which begins at %d", j.window.horizon)
	case reasonRule:
		return fmt.Sprintf("timestamp is older than what the retention rule %s keeps, which begins at %d", j.rule, j.rule.Horizon(j.window.now))
	case reasonTime:
		return "timestamp is not between the years 1 and 9999; it must be in milliseconds"
	}
	return fmt.Sprintf("invalid native histogram: %v", err)
}

// distance writes a number of milliseconds, which may be too many for a Duration.
func distance(ms int64) string {
	if ms > 24*3600*1000 {
		return strconv.FormatInt(ms/(24*3600*1000), 10) + "d"
	}
	return (time.Duration(ms) * time.Millisecond).String()
}

// seriesText writes a label set for a message: readable, and never long.
func seriesText(pairs []pair) string {
	const most = 8
	var s strings.Builder
	s.Write(trim(metricName(pairs)))
	s.WriteByte('{')
	n := 0
	for i := range pairs {
		if string(pairs[i].name) == metricNameLabel {
			continue
		}
		if n > 0 {
			s.WriteString(", ")
		}
		if n == most {
			s.WriteString("…")
			break
		}
		n++
		s.Write(trim(pairs[i].name))
		s.WriteByte('=')
		s.WriteString(quote(pairs[i].value))
	}
	s.WriteByte('}')
	return strings.ToValidUTF8(s.String(), "\uFFFD")
}

func quote(b []byte) string { return strconv.Quote(string(trim(b))) }

// trim shortens what a message shows of a name or value.
func trim(b []byte) []byte {
	const most = 64
	if len(b) <= most {
		return b
	}
	return append(append(make([]byte, 0, most+3), b[:most]...), "…"...)
}

// metricName finds the metric's name among a series' labels.
func metricName(pairs []pair) []byte {
	for i := range pairs {
		if string(pairs[i].name) == metricNameLabel {
			return pairs[i].value
		}
	}
	return nil
}
