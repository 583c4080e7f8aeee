package serving

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
)

// ErrMemory is what every error of a Budget is.
var ErrMemory = errors.New("not enough memory for the query")

const (
	// One query gets no more than this part of the pool, and only queries below the other one get the rest: a large query neither starves
	// the small ones nor is it refused because of them.
	largestShare = 4 // limit - limit/4
	smallShare   = 16
)

// MemoryPool is the memory that all queries of a process share, in bytes. It counts estimates; it does not allocate.
type MemoryPool struct {
	limit      int64
	fetchLimit int64 // of each budget

	mu   sync.Mutex
	used int64
}

// NewMemoryPool returns a pool of limit bytes. 0 or less is no limit.
func NewMemoryPool(limit int64) *MemoryPool {
	return &MemoryPool{limit: limit}
}

// Used returns how many bytes budgets hold.
func (p *MemoryPool) Used() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used
}

// Limit returns the size of the pool, 0 or less if there is none.
func (p *MemoryPool) Limit() int64 { return p.limit }

// NewBudget returns the empty budget of one query. It must be closed.
func (p *MemoryPool) NewBudget() *Budget { return &Budget{pool: p} }

// Budget is what one query holds of a MemoryPool, and what it has fetched from the bucket. It is safe for concurrent use, and is a block.Budget
// and a block.Meter.
type Budget struct {
	pool    *MemoryPool
	fetched atomic.Int64

	// Guarded by pool.mu.
	used   int64
	series int64 // met so far
	steps  int64 // the most points that one of them will have
}

// Add takes n bytes; they are to be allocated only if it returns nil. Its errors are *MemoryError.
func (b *Budget) Add(n int64) error { return b.add(n, 0, 0) }

func (b *Budget) add(n, series, steps int64) error {
	p := b.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	b.series += series
	b.steps = max(b.steps, steps)
	if n <= 0 {
		return nil
	}
	used := b.used + n
	if p.limit > 0 {
		if err := p.allow(max(n, used), b.series, b.steps); err != nil { // n, as their sum may overflow
			return err
		}
		free := p.limit - p.used
		if used > p.limit/smallShare {
			free -= p.limit - p.largest()
		}
		if n > free {
			return &MemoryError{Limit: p.limit, Series: b.series, Steps: b.steps, Busy: true}
		}
	}
	b.used, p.used = used, p.used+n
	return nil
}

// allow refuses what is more than one query may have, whatever others leave.
func (p *MemoryPool) allow(n, series, steps int64) error {
	if largest := p.largest(); p.limit > 0 && n > largest {
		return &MemoryError{Limit: largest, Series: series, Steps: steps}
	}
	return nil
}

// largest is the most that one query gets.
func (p *MemoryPool) largest() int64 { return p.limit - p.limit/largestShare }

// Release gives n bytes back.
func (b *Budget) Release(n int64) { b.release(n, 0) }

func (b *Budget) release(n, series int64) {
	p := b.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	b.series -= series
	n = min(max(n, 0), b.used)
	b.used, p.used = b.used-n, p.used-n
}

// Used returns how many bytes the budget holds.
func (b *Budget) Used() int64 {
	b.pool.mu.Lock()
	defer b.pool.mu.Unlock()
	return b.used
}

// shrink gives back what is above n.
func (b *Budget) shrink(n int64) {
	b.pool.mu.Lock()
	defer b.pool.mu.Unlock()
	if over := b.used - max(n, 0); over > 0 {
		b.used, b.pool.used = b.used-over, b.pool.used-over
	}
}

// Close gives everything back. The budget can be used again.
func (b *Budget) Close() {
	b.shrink(0)
	b.fetched.Store(0)
}

// MemoryError says that a query was stopped because it would need too much memory, or more than the other queries leave.
type MemoryError struct {
	Limit  int64 // bytes
	Series int64 // found until then
	Steps  int64 // points that the engine would hold for each
	Busy   bool  // it may fit when other queries are done
}

func (e *MemoryError) Error() string {
	if e.Busy {
		return fmt.Sprintf("other queries leave too little of %s of memory (--query.memory-limit) for this one; try again later or narrow the selection", formatBytes(e.Limit))
	}
	what := ""
	if e.Series > 0 {
		what = fmt.Sprintf(": more than %d series × %d steps", e.Series, max(e.Steps, 1))
	}
	return fmt.Sprintf("query would need more than %s of memory (one query's share of --query.memory-limit)%s; narrow the selection or raise the step", formatBytes(e.Limit), what)
}

// Is makes it an ErrMemory.
func (*MemoryError) Is(target error) bool { return target == ErrMemory }

// formatBytes writes a size as flags are written, in powers of 1,024.
func formatBytes(n int64) string {
	units := []string{"B", "KB", "MB", "GB", "TB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return strconv.FormatFloat(float64(int64(v*100+0.5))/100, 'f', -1, 64) + units[i]
}
