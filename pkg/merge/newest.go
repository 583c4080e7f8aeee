package merge

import "context"

type newestKey struct{}

// WithNewest says to a Select that of each series nothing counts but its newest sample in the range of the hints: a source may leave out
// what it knows to be older. It need not.
func WithNewest(ctx context.Context) context.Context {
	return context.WithValue(ctx, newestKey{}, true)
}

// WithAll takes back what WithNewest said: older samples count, too.
func WithAll(ctx context.Context) context.Context {
	if !NewestOnly(ctx) {
		return ctx
	}
	return context.WithValue(ctx, newestKey{}, false)
}

// NewestOnly says whether ctx comes from WithNewest.
func NewestOnly(ctx context.Context) bool {
	newest, _ := ctx.Value(newestKey{}).(bool)
	return newest
}
