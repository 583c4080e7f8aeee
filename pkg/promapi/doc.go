// Package promapi serves Millrace's HTTP API: Prometheus's, with a few paths and parameters of its own.
//
// The one idea: Prometheus's own web/api/v1 answers whatever it can answer for us, so that parameters, warnings and errors are as users
// know them, but it never sees a request that our list of paths (routes.go) does not name: much of it panics without the
// parts of a Prometheus server that we do not have. Only upstream.go knows how it is made.
//
// A handler is safe for concurrent use and holds no lock and no goroutine of its own. A panic in a request is that request's 500.
package promapi
