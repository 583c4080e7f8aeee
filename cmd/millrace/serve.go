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
		if cfg.ConfigFile != "" {
			return fmt.Errorf("%w (settings of the command line and of --config.file=%s)", err, cfg.ConfigFile)
		}
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
	go welcome(ctx, e, stdout)
	<-ctx.Done()
	logger.Info("stopping")
	deadline, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	e.Stop(deadline)
	return nil
}

// welcome says where to write to and where to ask, once both work.
func welcome(ctx context.Context, e *engine.Engine, w io.Writer) {
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
	fmt.Fprint(w, banner(e.URL()))
}

// banner is what a user needs first. here says that others have to put this machine's name into the URL.
func banner(root string, here bool) string {
	where := ""
	if here {
		where = fmt.Sprintf("\n  Its address is %s (on this machine); elsewhere, write this machine's name in place of 127.0.0.1.\n", root)
	}
	return fmt.Sprintf(`
Millrace is ready.
%[2]s
  Point Prometheus at it:   remote_write: [{url: %[1]s/api/v1/write}]
  Ask it:                   curl '%[1]s/api/v1/query?query=up'
  See its layers:           curl '%[1]s/api/v1/layers'

`, root, where)
}
