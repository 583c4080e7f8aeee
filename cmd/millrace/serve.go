package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"

	"github.com/millrace/millrace/pkg/engine"
	"github.com/millrace/millrace/pkg/promapi"
)

// stopWithin is how long a server takes to stop at the most; systemd and Grafana are not patient.
const stopWithin = time.Second

// runServe runs the engine until ctx ends. Settings that cannot work are an error at once; an outage of the bucket is not.
func runServe(ctx context.Context, cfg engine.Config, stdout, stderr io.Writer) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	logger := newLogger(stderr, cfg.LogLevel, cfg.LogFormat)
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), versioncollector.NewCollector("millrace"))
	e, err := engine.New(cfg, reg, reg, logger)
	if err != nil {
		return err
	}
	// Whoever started a server is there to hear why it cannot work; trying on would hide it in the log.
	if err := e.Prepare(); err != nil {
		return err
	}
	e.Start(promapi.ForEngine(e))
	go welcome(ctx, e, cfg, stdout)
	<-ctx.Done()
	logger.Info("stopping")
	deadline, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	e.Stop(deadline)
	return nil
}

// welcome says where to write to and where to ask, once both work.
func welcome(ctx context.Context, e *engine.Engine, cfg engine.Config, w io.Writer) {
	select {
	case <-ctx.Done():
		return
	case <-e.Opened():
	}
	for e.Addr() == nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
	scheme := "http"
	if cfg.Web.ConfigFile != "" {
		scheme = "http(s)"
	}
	base := fmt.Sprintf("%s://%s", scheme, e.Addr())
	fmt.Fprintf(w, `
Millrace is ready.

  Point Prometheus at it:   remote_write: [{url: %[1]s/api/v1/write}]
  Ask it:                   curl '%[1]s/api/v1/query?query=up'
  See its layers:           curl '%[1]s/api/v1/layers'

`, base)
}
