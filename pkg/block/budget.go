package block

import (
	"context"
	"fmt"
	"sync"
)

// Budget bounds the memory of a query. Add is called with the bytes that are about to be allocated; an error refuses them
// and ends the read. It must be safe for concurrent use.
type Budget interface {
	Add(bytes int64) error
}

// releaser is what a Budget may also be: it gets back what a read has dropped.
type releaser interface {
	Release(bytes int64)
}

type budgetKey struct{}

// WithBudget returns a context whose reads of blocks are charged to b.
func WithBudget(ctx context.Context, b Budget) context.Context {
	return context.WithValue(ctx, budgetKey{}, b)
}

// charge adds n bytes to the context's budget, if it has one.
func charge(ctx context.Context, n int64) error {
	b, ok := ctx.Value(budgetKey{}).(Budget)
	if !ok || n <= 0 {
		return nil
	}
	if err := b.Add(n); err != nil {
		return fmt.Errorf("read block: %w", err)
	}
	return nil
}

// discharge gives n bytes back to the context's budget.
func discharge(ctx context.Context, n int64) {
	if b, ok := ctx.Value(budgetKey{}).(releaser); ok && n > 0 {
		b.Release(n)
	}
}

// Meter bounds what a query fetches from buckets. Fetch is called with the bytes of each request before it is made; an error refuses
// it and ends the read. It must be safe for concurrent use.
type Meter interface {
	Fetch(bytes int64) error
}

type meterKey struct{}

// WithMeter returns a context whose requests for blocks are counted by m.
func WithMeter(ctx context.Context, m Meter) context.Context {
	return context.WithValue(ctx, meterKey{}, m)
}

// meter counts a request of n bytes with the context's meter, if it has one.
func meter(ctx context.Context, n int64) error {
	if m, ok := ctx.Value(meterKey{}).(Meter); ok {
		return m.Fetch(n)
	}
	return nil
}

// account gathers what a querier's results hold until it is closed. Its lock guards holdings.
type account struct {
	mu       sync.Mutex
	holdings []holding
}

type holding struct {
	ctx   context.Context
	bytes int64
}

// hold charges n bytes until releaseAll.
func (a *account) hold(ctx context.Context, n int64) error {
	if err := charge(ctx, n); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if last := len(a.holdings) - 1; last >= 0 && a.holdings[last].ctx == ctx {
		a.holdings[last].bytes += n
		return nil
	}
	a.holdings = append(a.holdings, holding{ctx: ctx, bytes: n})
	return nil
}

func (a *account) releaseAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.holdings {
		discharge(h.ctx, h.bytes)
	}
	a.holdings = nil
}
