// Package plugin answers Grafana: it turns data queries, health checks and resource calls into calls of an engine in the same
// process (embedded mode) or of a Millrace or Prometheus server elsewhere (remote mode), and runs the process around them.
//
// The one idea: a handler never knows which of the two it talks to. Both are a backend (queries, exemplars and the HTTP API), and
// both return answers in columns that frames take over without another copy. What a user sees of Grafana's own Prometheus
// datasource (steps, variables, names, frame types, errors) is computed here, from the query's model, in pure functions.
//
// # Concurrency
//
// A datasource is immutable after its creation; Grafana creates one per instance of settings, calls it from many goroutines, and may
// hold an old and a new one at once. The engine belongs to the process, not to a datasource, and outlives them all. The queries of
// one request run in goroutines of their own, which end before the request is answered; a panic in one is that query's answer.
// Serve owns the process: whoever asks first (Shutdown, SIGTERM, the parent's death) stops the engine, once.
package plugin
