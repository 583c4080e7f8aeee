package ingest

import (
	"fmt"
	"math"
	"time"

	"github.com/prometheus/common/model"

	"github.com/millrace/millrace/pkg/retention"
)

// Names of the flags that set the limits, as they appear in error texts.
const (
	flagBody         = "--ingest.max-body-size"
	flagDecompressed = "--ingest.max-decompressed-size"
	flagInflight     = "--ingest.max-inflight-size"
	flagLabels       = "--ingest.max-labels"
	flagLabelName    = "--ingest.max-label-name-length"
	flagLabelValue   = "--ingest.max-label-value-length"
	flagBuckets      = "--ingest.max-histogram-buckets"
	flagFuture       = "--ingest.max-future"
	flagPast         = "--ingest.max-past"
)

// Limits bound what is accepted. A limit that is 0 is off, except for those of
// sizes in bytes, whose largest value is 1 GiB, which 0 stands for too.
type Limits struct {
	// MaxBody bounds a body as received, in bytes (--ingest.max-body-size).
	MaxBody int64
	// MaxDecompressed bounds a body after decompression, in bytes; its decoded
	// form may take 8 times as much (--ingest.max-decompressed-size).
	MaxDecompressed int64
	// MaxInflight bounds the memory that all requests being read and handled may
	// take together, in bytes; 0 is off (--ingest.max-inflight-size). A request
	// that is alone is always handled.
	MaxInflight int64
	// MaxLabels bounds the labels of a series (--ingest.max-labels).
	MaxLabels int
	// MaxLabelName bounds a label's name, in bytes (--ingest.max-label-name-length).
	MaxLabelName int
	// MaxLabelValue bounds a label's value, in bytes (--ingest.max-label-value-length).
	MaxLabelValue int
	// MaxBuckets bounds a native histogram's buckets, spans and custom bounds
	// together (--ingest.max-histogram-buckets).
	MaxBuckets int
	// MaxFuture bounds how far a timestamp may be ahead of the clock (--ingest.max-future).
	MaxFuture time.Duration
	// MaxPast bounds how far a timestamp may be behind the clock (--ingest.max-past).
	MaxPast time.Duration
	// HA is about pairs of Prometheus servers that send the same.
	HA HA
	// Horizon returns the oldest timestamp, in ms, that retention keeps. It is
	// asked once per request; nil means that everything is kept.
	Horizon func() int64
	// Rules keep samples of some series for a shorter time.
	Rules retention.Rules
	// Now is the clock by which samples are judged; nil is time.Now.
	Now func() time.Time
}

// DefaultLimits returns the limits that hold unless a flag says otherwise.
func DefaultLimits() Limits {
	return Limits{
		MaxBody:         32 << 20,
		MaxDecompressed: 32 << 20,
		MaxInflight:     1 << 30,
		MaxLabels:       128,
		MaxLabelName:    1024,
		MaxLabelValue:   4096,
		MaxBuckets:      16384,
		MaxFuture:       10 * time.Minute,
		HA:              HA{Failover: 30 * time.Second},
	}
}

// withBounds replaces what is out of bounds by the bound.
func (l Limits) withBounds() Limits {
	for _, size := range []*int64{&l.MaxBody, &l.MaxDecompressed} {
		if *size <= 0 || *size > maxSize {
			*size = maxSize
		}
	}
	return l
}

// Timestamps outside of the years 1 to 9999 are refused whatever the limits say:
// they are units gone wrong, and arithmetic on them would overflow elsewhere.
const (
	minTime = -62135596800000
	maxTime = 253402300799999
)

// window is the range of timestamps that a request may have.
type window struct {
	now              int64
	future, past     int64 // bounds by the clock
	horizon          int64 // bound by retention
	rules            int64 // bound that retention rules may set
	earliest, latest int64 // what results
}

func (l *Limits) window(now time.Time) window {
	w := window{now: now.UnixMilli(), future: math.MaxInt64, past: math.MinInt64, horizon: math.MinInt64, rules: l.Rules.Newest(now.UnixMilli())}
	if l.MaxFuture > 0 {
		w.future = w.now + l.MaxFuture.Milliseconds()
	}
	if l.MaxPast > 0 {
		w.past = w.now - l.MaxPast.Milliseconds()
	}
	if l.Horizon != nil {
		w.horizon = l.Horizon()
	}
	w.latest = min(maxTime, w.future)
	w.earliest = max(minTime, w.past, w.horizon, w.rules)
	return w
}

// sizeError says that a request is larger than a limit.
type sizeError struct {
	what        string
	size, limit int64 // size is -1 if it was not read to its end
	flag        string
}

func (e *sizeError) Error() string {
	if e.size < 0 {
		return fmt.Sprintf("%s request is larger than %s=%s", e.what, e.flag, bytesText(e.limit))
	}
	return fmt.Sprintf("%s request has %d bytes, more than %s=%s", e.what, e.size, e.flag, bytesText(e.limit))
}

// bytesText writes a size as flags have it.
func bytesText(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%dMB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%dKB", n>>10)
	}
	return fmt.Sprintf("%dB", n)
}

func durationText(d time.Duration) string { return model.Duration(d).String() }
