package serving

import (
	"errors"
	"fmt"

	"github.com/millrace/millrace/pkg/block"
)

// ErrFetch is what every error of Budget.Fetch is.
var ErrFetch = errors.New("query reads too much of the bucket")

// FetchError says that a query was stopped because it would have read more of the bucket than it may.
type FetchError struct {
	Limit int64  // bytes
	Query string // if it is known, perhaps shortened
}

func (e *FetchError) Error() string {
	what := "the request"
	if e.Query != "" {
		what = fmt.Sprintf("query %q", e.Query)
	}
	return fmt.Sprintf("%s would read more than %s of the bucket (--query.max-bucket-size); narrow the selection or the time range", what, formatBytes(e.Limit))
}

// Is makes it an ErrFetch.
func (*FetchError) Is(target error) bool { return target == ErrFetch }

var _ block.Meter = (*Budget)(nil)

// LimitFetch sets how many bytes each budget of the pool may fetch from the bucket; 0 or less is no limit. It must be called before the pool is used.
func (p *MemoryPool) LimitFetch(n int64) { p.fetchLimit = n }

// Fetch counts n bytes that are about to be fetched from the bucket. What the caches have is not counted. Its errors are *FetchError.
func (b *Budget) Fetch(n int64) error {
	limit := b.pool.fetchLimit
	if fetched := b.fetched.Add(n); limit > 0 && fetched > limit {
		return &FetchError{Limit: limit}
	}
	return nil
}
