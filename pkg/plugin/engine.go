package plugin

import (
	"context"
	"errors"
	"net/http"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
)

// ID is the plugin's id in Grafana.
const ID = "millrace-metrics-datasource"

// Engine is what the handlers need of the engine in this process. It is there, and can be called, from the start of the process to
// its end, whatever its phase.
type Engine interface {
	// Start opens the engine in the background and returns at once.
	Start()
	// Stop stops accepting writes and syncs the log. It returns when ctx ends at the latest.
	Stop(ctx context.Context)
	// State tells where the engine stands.
	State() State
	// Handler serves the HTTP API of the contract; while the engine starts it answers 503 with Retry-After.
	Handler() http.Handler
	// QueryEngine, Queryable and ExemplarQueryable are asked only when Await has returned nil. ExemplarQueryable may be nil.
	QueryEngine() promql.QueryEngine
	Queryable() storage.SampleAndChunkQueryable
	ExemplarQueryable() storage.ExemplarQueryable
	// Await returns when the context's layer can be answered in full, which may be later than that the engine takes writes. Its error says how far it is.
	Await(ctx context.Context) error
	// WithLayer narrows queries under the returned context to one layer: merged, speed or batch.
	WithLayer(ctx context.Context, layer string) (context.Context, error)
}

// The phases of an engine.
const (
	PhaseStarting  = "starting"
	PhaseReplaying = "replaying" // takes writes; queries of all layers but batch wait
	PhaseReady     = "ready"
	PhaseFailed    = "failed"
	PhaseStopping  = "stopping"
)

// State is an engine's phase with what there is to say about it.
type State struct {
	Phase    string // one of the Phase constants
	Progress string // what a starting or replaying engine is doing
	Err      error  // why a failed engine does not open, or what is wrong with a ready one
}

// NoEngine returns an engine that has failed with err for good: the process of a plugin whose settings are wrong goes on, says so in its
// health check, and still serves datasources in remote mode.
func NoEngine(err error) Engine { return noEngine{err} }

type noEngine struct{ err error }

var errNoEngine = errors.New("there is no engine")

func (noEngine) Start()                                       {}
func (noEngine) Stop(context.Context)                         {}
func (n noEngine) State() State                               { return State{Phase: PhaseFailed, Err: n.err} }
func (noEngine) QueryEngine() promql.QueryEngine              { return nil }
func (noEngine) Queryable() storage.SampleAndChunkQueryable   { return noStorage{} }
func (noEngine) ExemplarQueryable() storage.ExemplarQueryable { return nil }

func (n noEngine) Await(context.Context) error { return n.err }

func (noEngine) WithLayer(ctx context.Context, _ string) (context.Context, error) { return ctx, nil }

func (n noEngine) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "30")
		writeAPIError(w, http.StatusServiceUnavailable, "unavailable", "the engine does not run: "+n.err.Error())
	})
}

type noStorage struct{}

func (noStorage) Querier(int64, int64) (storage.Querier, error) { return nil, errNoEngine }

func (noStorage) ChunkQuerier(int64, int64) (storage.ChunkQuerier, error) { return nil, errNoEngine }
