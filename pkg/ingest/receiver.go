package ingest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Appender is where accepted requests go.
type Appender interface {
	// Append stores a request: b, whose Known and Refs it may set. Header and
	// body, one behind the other, are a record of it for the log, from which
	// DecodeRecord makes b again. It returns when the write may be acknowledged,
	// and b was applied. It keeps none of the three. A request
	// that cannot be taken now gets an *Unavailable; any other error is answered
	// with 500. If b is empty, nothing is to be stored: the answer says whether
	// something could be.
	Append(ctx context.Context, header, body []byte, b *Batch) error
	// Known returns what finds the series that were accepted before; nil is
	// nothing.
	Known() Known
}

// Receiver takes remote write requests: over HTTP, as http.Handler, and from
// within the process, by Ingest. It is safe for concurrent use.
type Receiver struct {
	appender Appender
	limits   Limits
	metrics  *metrics
	replicas *replicas // nil if all are stored
	logger   *slog.Logger
	now      func() time.Time
	inflight atomic.Int64 // bytes, see Limits.MaxInflight
	headers  sync.Pool    // *[]byte
	bodies   sync.Pool    // *bytes.Buffer
}

// NewReceiver returns a Receiver that hands requests to a. Both reg and logger
// may be nil.
func NewReceiver(a Appender, l Limits, reg prometheus.Registerer, logger *slog.Logger) *Receiver {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if l.Now == nil {
		l.Now = time.Now
	}
	return &Receiver{
		appender: a, limits: l.withBounds(), metrics: newMetrics(reg), replicas: newReplicas(l.HA, reg, logger), logger: logger, now: l.Now,
		headers: sync.Pool{New: func() any { return new([]byte) }},
	}
}

// NewHandler is NewReceiver for those who need HTTP only.
func NewHandler(a Appender, l Limits, reg prometheus.Registerer, logger *slog.Logger) http.Handler {
	return NewReceiver(a, l, reg, logger)
}

// Ingest decodes, validates and stores one request, and says how much of it was
// stored. What was dropped as that of a replica which is not elected counts as
// stored, and is no error: the sender has done its duty. A Prometheus that gets
// any 2xx sends nothing again, but with remote write 2.0 it logs an error, and
// counts failed samples, where the answer says that fewer were written than it
// sent. So such an answer is, with either protocol, the one that it would have got
// were it elected. Body is the snappy block; it is not kept. The error is a *Refused
// (nothing stored, do not send it again), a *Partial (the valid part is stored),
// an *Unavailable (nothing stored, come again), the context's, or what the
// Appender returned; StatusOf translates it.
func (r *Receiver) Ingest(ctx context.Context, p Protocol, body []byte) (Written, error) {
	l := loan{r: r}
	defer l.repay()
	return r.ingestWith(ctx, &l, p, body)
}

func (r *Receiver) ingestWith(ctx context.Context, l *loan, p Protocol, body []byte) (Written, error) {
	start := r.now()
	w, err := r.ingest(ctx, l, p, body)
	r.metrics.request(p, err, r.now().Sub(start))
	r.log(p, err)
	return w, err
}

func (r *Receiver) ingest(ctx context.Context, l *loan, p Protocol, body []byte) (Written, error) {
	if p != V1 && p != V2 {
		return Written{}, refuse(http.StatusUnsupportedMediaType, causeContentType, fmt.Errorf("unknown protocol %d", p))
	}
	if n := int64(len(body)); n > r.limits.MaxBody {
		return Written{}, refuse(http.StatusRequestEntityTooLarge, causeBody,
			&sizeError{what: "compressed", size: n, limit: r.limits.MaxBody, flag: flagBody})
	}
	r.metrics.compressed.Add(float64(len(body)))
	estimate := min(estimate(body), 2*r.limits.MaxDecompressed)
	if !l.take(estimate) {
		return Written{}, r.busy()
	}
	d, _ := decoderPool.Get().(*decoder)
	d.b = newBatch()
	d.b.Known = r.appender.Known()
	defer d.b.Release()
	defer d.release() // first: it holds strings of the batch
	d.judge = &d.verdict
	d.judge.reset(&r.limits, r.now())
	d.pairing.begin(r.replicas)
	d.rejected = d.rejected[:0]
	d.budget = estimate
	d.loan, d.credit = l, maxExpansion*r.limits.MaxDecompressed-estimate
	err := d.b.decompress(body, r.limits.MaxDecompressed)
	if err == nil {
		r.metrics.decompressed.Add(float64(len(d.b.body)))
		d.budget, d.credit = d.budget-int64(len(d.b.body)), d.credit+int64(len(d.b.body))
		err = d.run(p)
	}
	if err != nil && d.starved {
		d.pairing.postpone()
		return Written{}, r.busy()
	}
	if err != nil {
		return Written{}, refuseDecoding(p, &r.limits, err)
	}
	// A sender that went away will send again: better not to store it twice.
	if err := ctx.Err(); err != nil {
		return Written{}, fmt.Errorf("request given up before it was stored: %w", err)
	}
	if err := d.pairing.refusal(); err != nil {
		return Written{}, err
	}
	if err := r.store(ctx, p, body, d); err != nil {
		d.pairing.postpone()
		return Written{}, err
	}
	r.metrics.accepted(d.b.written, len(d.b.Metadata))
	r.metrics.refused(d.judge)
	written := d.b.written
	if p := &d.pairing; p.table != nil {
		p.table.settle(p.uses, p.now)
		written.add(p.dropped)
	}
	if d.judge.refusals > 0 {
		return written, &Partial{Refusals: d.judge.refusals, Messages: d.judge.messages}
	}
	return written, nil
}

func (r *Receiver) store(ctx context.Context, p Protocol, body []byte, d *decoder) error {
	// What is dropped is acknowledged because the elected replica's is stored: not while nothing can be.
	if d.b.Empty() && d.pairing.dropped == (Written{}) {
		return nil
	}
	buf, _ := r.headers.Get().(*[]byte)
	if d.pairing.kept {
		*buf = appendReplicasHeader((*buf)[:0], p, d.pairing.labels, d.rejected)
	} else {
		*buf = AppendRecordHeader((*buf)[:0], p, d.rejected)
	}
	err := r.appender.Append(ctx, *buf, body, d.b)
	if cap(*buf) <= 64<<10 {
		r.headers.Put(buf)
	}
	return err
}

// estimate is what a small request takes beside its body: its decompressed form, and as much again for what that is decoded to. What a request takes
// beyond it is borrowed on the way.
func estimate(body []byte) int64 {
	n, _ := readVarint(body, 0) // snappy's length, checked when it is decompressed
	return 2 * int64(min(n, uint64(22*len(body)+64)))
}

// busy is the error of a request for which the others leave too little memory.
func (r *Receiver) busy() error {
	return &Unavailable{
		Status: http.StatusServiceUnavailable, RetryAfter: time.Second,
		Reason: fmt.Sprintf("requests that are being handled take more than %s=%s", flagInflight, bytesText(r.limits.MaxInflight)),
	}
}

// loan is the part of Limits.MaxInflight that one request has taken. A request that is alone gets what it needs.
type loan struct {
	r     *Receiver
	bytes int64
}

// take borrows n more bytes, if they are there.
func (l *loan) take(n int64) bool {
	total := l.r.inflight.Add(n)
	if limit := l.r.limits.MaxInflight; limit > 0 && total > limit && total > l.bytes+n {
		l.r.inflight.Add(-n)
		return false
	}
	l.bytes += n
	return true
}

func (l *loan) repay() {
	l.r.inflight.Add(-l.bytes)
	l.bytes = 0
}

// log says what the sender will not: refusals are in its own log and in the
// metrics, so they are worth a debug line only.
func (r *Receiver) log(p Protocol, err error) {
	if err == nil {
		return
	}
	level := slog.LevelDebug
	if StatusOf(err) == http.StatusInternalServerError {
		level = slog.LevelWarn
	}
	r.logger.Log(context.Background(), level, "Remote write request was not stored completely",
		"protocol", p.String(), "status", StatusOf(err), "err", err)
}

// drainLimit is how much of a refused body is read so that the connection can be
// used again.
const drainLimit = 256 << 10

func drain(body io.Reader) {
	if body != nil {
		_, _ = io.CopyN(io.Discard, body, drainLimit)
	}
}
