package ingest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Unavailable is what an Appender returns when it cannot take a request now. The
// sender is asked to come again.
type Unavailable struct {
	// Status is 429 or 503; anything else counts as 503. Prometheus's senders
	// come again after 503 always, after 429 only if they are told to.
	Status int
	// RetryAfter is sent in whole seconds, at least one.
	RetryAfter time.Duration
	Reason     string
}

func (u *Unavailable) Error() string { return u.Reason }

func (u *Unavailable) status() int {
	if u.Status == http.StatusTooManyRequests {
		return u.Status
	}
	return http.StatusServiceUnavailable
}

func (u *Unavailable) retryAfter() string {
	return strconv.Itoa(max(1, int(math.Ceil(u.RetryAfter.Seconds()))))
}

// Refused is the error for a request of which nothing was stored, and that would
// be refused again.
type Refused struct {
	// Status is the HTTP status: 400, 405, 413 or 415.
	Status int
	// Cause is what millrace_ingest_rejected_requests_total counts it under.
	Cause string
	Err   error
}

func (r *Refused) Error() string { return r.Err.Error() }

// Unwrap returns the reason.
func (r *Refused) Unwrap() error { return r.Err }

// Partial is the error for a request of which a part was refused. The rest is
// stored; sending it again would not change anything.
type Partial struct {
	// Refusals is how many series and samples were refused.
	Refusals int
	// Messages describe the first of them.
	Messages []string
}

func (p *Partial) Error() string {
	s := strings.Join(p.Messages, "\n")
	if more := p.Refusals - len(p.Messages); more > 0 {
		s += fmt.Sprintf("\nand %d more", more)
	}
	return s
}

// StatusOf returns the HTTP status for the result of Ingest.
func StatusOf(err error) int {
	var unavailable *Unavailable
	var refused *Refused
	var partial *Partial
	switch {
	case err == nil:
		return http.StatusNoContent
	case errors.As(err, &unavailable):
		return unavailable.status()
	case errors.As(err, &refused):
		return refused.Status
	case errors.As(err, &partial):
		return http.StatusBadRequest
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// Causes of refused requests.
const (
	causeMethod       = "method"
	causeContentType  = "content_type"
	causeEncoding     = "content_encoding"
	causeBody         = "body_too_large"
	causeDecompressed = "decompressed_too_large"
	causeDecoded      = "decoded_too_large"
	causeIncomplete   = "incomplete_body"
	causeSnappy       = "snappy"
	causeProtobuf     = "protobuf"
)

var causes = []string{
	causeMethod, causeContentType, causeEncoding, causeBody, causeDecompressed,
	causeDecoded, causeIncomplete, causeSnappy, causeProtobuf,
}

func refuse(status int, cause string, err error) *Refused {
	return &Refused{Status: status, Cause: cause, Err: err}
}

// refuseDecoding turns an error of the decoder into an answer. 413 for sizes: a
// sender retries neither this nor 400, and this one says what to change.
func refuseDecoding(p Protocol, l *Limits, err error) *Refused {
	var size *sizeError
	switch {
	case errors.As(err, &size):
		return refuse(http.StatusRequestEntityTooLarge, causeDecompressed, err)
	case errors.Is(err, errTooLarge):
		return refuse(http.StatusRequestEntityTooLarge, causeDecoded,
			fmt.Errorf("%w: more than %d times %s=%s, or labels or buckets beyond all measure",
				err, maxExpansion, flagDecompressed, bytesText(l.MaxDecompressed)))
	case errors.Is(err, errSnappy):
		return refuse(http.StatusBadRequest, causeSnappy, fmt.Errorf("decompress request: %w", err))
	}
	return refuse(http.StatusBadRequest, causeProtobuf, fmt.Errorf("decode remote write %s request: %w", p, err))
}
