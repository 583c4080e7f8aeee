package engine

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/millrace/millrace/pkg/ingest"
)

// appender is the engine as the receiver sees it.
type appender struct{ *Engine }

var _ ingest.Appender = appender{}

// Append settles the order of a request, logs it and applies it. When it returns nil the request is in the kernel's hands (with
// --storage.wal-sync=every: on the disk) and visible to the next query.
func (e appender) Append(_ context.Context, header, body []byte, b *ingest.Batch) error {
	if err := e.admit(); err != nil {
		return err
	}
	g := e.enter()
	if g == nil {
		return unavailable("the engine is "+string(e.State().Phase), time.Second)
	}
	defer g.inflight.Done()
	var err error
	if g.mem.CanRecord(b) && !e.metadata.differs(g.Number, b) {
		err = e.appendFloats(g, header, body, b)
	} else {
		err = e.appendRequest(g, header, body, b)
	}
	e.report("log", err)
	if err != nil {
		return unavailable("the write-ahead log cannot be written: "+err.Error(), 5*time.Second)
	}
	if e.full(g) {
		signal(e.data.full)
	}
	return nil
}

// enter returns the active generation, which stays open for the request until it leaves by inflight.Done; nil if there is none.
func (e appender) enter() *generation {
	e.accept.Lock()
	defer e.accept.Unlock()
	if e.active != nil {
		e.active.inflight.Add(1)
	}
	return e.active
}

// appendRequest logs a request as it came.
func (e appender) appendRequest(g *generation, header, body []byte, b *ingest.Batch) error {
	ticket := g.log.Enqueue(header, body)
	if err := ticket.Wait(); err != nil {
		g.mem.Skip(ticket.Index())
		return err
	}
	e.apply(g, ticket.Index(), b)
	return nil
}

// maxFloatsRecord is the size in bytes from which a request is logged as it came: compressed, it is what the log is known to take.
const maxFloatsRecord = 16 << 20

// definitionsEvery is the number of bytes of a log after which the series are defined anew: so far reaches the damage of a lost definition, and so much
// of the log more are the definitions.
const definitionsEvery = 256 << 20

// appendFloats logs what a request comes to where that is floats alone: less to write, and faster to read back.
func (e appender) appendFloats(g *generation, header, body []byte, b *ingest.Batch) error {
	if len(b.Series) == 0 {
		return nil // metadata that is no news
	}
	g.mem.DefineFrom(uint32(g.log.Size()/definitionsEvery) + 1)
	g.mem.Resolve(b)
	rec := g.mem.Record(b)
	defer rec.Release()
	if len(rec.Bytes) > maxFloatsRecord {
		return e.appendRequest(g, header, body, b)
	}
	ticket := g.log.Enqueue(rec.Bytes)
	if err := ticket.Wait(); err != nil {
		g.mem.Skip(ticket.Index())
		return err
	}
	rec.Written()
	g.mem.Append(ticket.Index(), b)
	return nil
}

// Known returns the active generation. By the time that a request gets its place another one may be; then it looks its series up again.
func (e appender) Known() ingest.Known {
	if g := e.activeGeneration(); g != nil {
		return g.mem
	}
	return nil
}

// apply puts a logged request into memory; a replay takes the same way.
func (e *Engine) apply(g *generation, index uint64, b *ingest.Batch) {
	g.mem.Append(index, b)
	if e.exemplars.add(g.Number, b, g.deleted) {
		g.exemplars.Store(true)
	}
	e.metadata.add(g.Number, b)
}

// admit refuses writes where that has to be.
func (e *Engine) admit() error {
	kind, err := e.refusesWrites()
	if err != nil {
		e.metrics.refused.WithLabelValues(kind).Inc()
	}
	if kind == refusedMemory {
		signal(e.data.full) // should the active generation itself be too large: no write will notice it now
	}
	return err
}

// refusedMemory is one of the kinds of refusals, as metrics name them.
const refusedMemory = "memory"

// refusesWrites is why writes are refused: disk or memory would have no room for them, or another writer has the external labels.
func (e *Engine) refusesWrites() (kind string, err error) {
	u := e.disk.Load()
	if u == nil {
		return "", nil // not open yet: there is no active generation either
	}
	if err := e.refusal.Load(); err != nil {
		return "writer", unavailable((*err).Error(), refusedFor)
	}
	if err := u.refusal(); err != nil {
		return "disk", unavailable(err.Error(), 10*time.Second)
	}
	if err := e.memoryRefusal(); err != nil {
		return refusedMemory, unavailable(err.Error(), 10*time.Second)
	}
	return "", nil
}

// RefusesWrites is why writes are refused just now, with an engine that is open; nil if they are taken.
func (e *Engine) RefusesWrites() error {
	_, err := e.refusesWrites()
	return err
}

func unavailable(reason string, retryAfter time.Duration) error {
	return &ingest.Unavailable{Status: http.StatusServiceUnavailable, RetryAfter: retryAfter, Reason: reason}
}

var errStopping = errors.New("the engine is stopping")

// closeLogs ends acceptance and syncs what was accepted.
func (e *Engine) closeLogs() {
	e.accept.Lock()
	g := e.active
	e.active = nil
	e.accept.Unlock()
	if g == nil {
		return
	}
	g.inflight.Wait()
	if err := g.log.Close(); err != nil {
		e.logger.Error("closing the log failed", "generation", g.Number, "err", err)
	}
}
