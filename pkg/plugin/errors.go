package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/prometheus/prometheus/promql"
)

// statusClientClosed is nginx's status for a client that went away before the answer, which Prometheus uses too.
const statusClientClosed = 499

// answerError is an error with the HTTP status and the source that Grafana is told.
type answerError struct {
	status int
	source backend.ErrorSource
	err    error
}

func (e *answerError) Error() string { return e.err.Error() }
func (e *answerError) Unwrap() error { return e.err }

func newError(status int, source backend.ErrorSource, format string, args ...any) error {
	return &answerError{status: status, source: source, err: fmt.Errorf(format, args...)}
}

func badRequest(format string, args ...any) error {
	return newError(http.StatusBadRequest, backend.ErrorSourceDownstream, format, args...)
}

// classify gives an error of the query engine its status and source; status is for what it does not know.
//
// Only what the engine got wrong by itself is the plugin's fault. A query that cannot be answered (syntax, limits, time, an engine that
// is not ready) is downstream.
func classify(err error, status int) *answerError {
	if known, ok := errors.AsType[*answerError](err); ok {
		return known
	}
	var (
		timeout  promql.ErrQueryTimeout
		canceled promql.ErrQueryCanceled
		storage  promql.ErrStorage
	)
	e := &answerError{status: status, source: backend.ErrorSourceDownstream, err: err}
	switch {
	case errors.As(err, &timeout), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		e.status = http.StatusGatewayTimeout
	case errors.As(err, &canceled), errors.Is(err, context.Canceled):
		e.status = statusClientClosed
	case errors.As(err, &storage):
		e.status, e.source = http.StatusInternalServerError, backend.ErrorSourcePlugin
	}
	return e
}

// errorResponse is the answer to a query that failed.
func errorResponse(err error) backend.DataResponse {
	e := classify(err, http.StatusInternalServerError)
	return backend.DataResponse{Error: e, Status: backend.Status(e.status), ErrorSource: e.source}
}

// unready returns an error that says why the engine cannot be asked, or nil.
func unready(s State) error {
	switch s.Phase {
	case PhaseReady, PhaseReplaying:
		return nil
	case PhaseFailed:
		return newError(http.StatusServiceUnavailable, backend.ErrorSourceDownstream, "the engine does not run: %w", orUnknown(s.Err))
	case PhaseStopping:
		return newError(http.StatusServiceUnavailable, backend.ErrorSourceDownstream, "the engine is stopping")
	}
	if s.Progress == "" {
		return newError(http.StatusServiceUnavailable, backend.ErrorSourceDownstream, "the engine is starting")
	}
	return newError(http.StatusServiceUnavailable, backend.ErrorSourceDownstream, "the engine is starting: %s", s.Progress)
}

func orUnknown(err error) error {
	if err == nil {
		return errors.New("no reason is known")
	}
	return err
}

// writeAPIError answers as the Prometheus HTTP API does.
func writeAPIError(w http.ResponseWriter, status int, errorType, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// Writing fails only when the caller has gone.
	_ = json.NewEncoder(w).Encode(map[string]string{"status": "error", "errorType": errorType, "error": message})
}
