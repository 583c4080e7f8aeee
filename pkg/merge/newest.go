package merge

import "context"

type newestKey struct{}

// WithNewest says to a Select that of each series nothing counts but its newest sample in the range of the hints: a source may leave out
// what it knows to be older. It need not.
func WithNewest(ctx context.Context) context.Context {
	return context.WithValue(ctx, newestKey{}, true)
}

// NewestOnly says whether ctx comes from WithNewest.
func NewestOnly(ctx context.Context) bool { return ctx.Value(newestKey{}) != nil }
