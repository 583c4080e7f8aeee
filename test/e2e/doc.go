// Package e2e drives the built programs as users do: a real Prometheus scrapes a real node exporter and writes to a real server, and both are asked
// the same questions.
package e2e
