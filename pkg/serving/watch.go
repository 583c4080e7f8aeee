package serving

import (
	"context"
	"errors"
	"runtime/debug"
	rtmetrics "runtime/metrics"
	"time"
)

const (
	watchInterval = 20 * time.Millisecond
	// watchShare is the part of the process's memory limit, in percent, at which a watched query is stopped.
	watchShare = 90
	heapInUse  = "/memory/classes/heap/objects:bytes"
)

var errShortOfMemory = errors.New("the process is short of memory, and count_values makes a series of every value, which cannot be estimated; use fewer steps or round the values")

// watched returns a context that is cancelled when the process's heap comes close to the limit of the Go runtime, if there is one. It is for
// queries that can make any number of series out of few. stop ends the watch.
func watched(ctx context.Context) (_ context.Context, stop func()) {
	limit := debug.SetMemoryLimit(-1)
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(watchInterval)
		defer tick.Stop()
		sample := []rtmetrics.Sample{{Name: heapInUse}}
		for above := 0; ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if rtmetrics.Read(sample); float64(sample[0].Value.Uint64()) < float64(limit)/100*watchShare {
				above = 0
				continue
			}
			// Once may be garbage that is being collected.
			if above++; above > 1 {
				cancel(errShortOfMemory)
				return
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}
