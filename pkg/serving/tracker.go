package serving

import (
	"context"
	"errors"

	"github.com/prometheus/prometheus/promql"
)

// tracker lets a number of queries run at once. It is a promql.QueryTracker that writes no file.
type tracker struct{ slots chan struct{} }

var _ promql.QueryTracker = (*tracker)(nil)

func newTracker(n int) *tracker { return &tracker{slots: make(chan struct{}, n)} }

// noSlot is the index of a query that needs no place.
const noSlot = -1

func (t *tracker) GetMaxConcurrent() int { return cap(t.slots) }

// Insert waits for a place until ctx ends.
func (t *tracker) Insert(ctx context.Context, _ string) (int, error) {
	if ctx.Value(parsingKey{}) != nil {
		return noSlot, nil
	}
	select {
	case t.slots <- struct{}{}:
		return 0, nil
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return noSlot, promql.ErrQueryTimeout("the queue of queries")
		}
		return noSlot, promql.ErrQueryCanceled("the queue of queries")
	}
}

// Delete gives the place of a query to another one.
func (t *tracker) Delete(i int) {
	if i != noSlot {
		<-t.slots
	}
}

func (*tracker) Close() error { return nil }

type parsingKey struct{}

// parsing marks the context of a query that is parsed only.
func parsing(ctx context.Context) context.Context { return context.WithValue(ctx, parsingKey{}, true) }
