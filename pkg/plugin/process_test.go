package plugin

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/stretchr/testify/require"
)

// Variables by which tests tell the process that they start what to be.
const (
	actAsPlugin = "MILLRACE_TEST_PLUGIN"  // a folder, to which its engine writes what happened to it
	hangInStop  = "MILLRACE_TEST_HANG"    // its engine does not stop
	readyAfter  = "MILLRACE_TEST_DELAYED" // how long its engine starts
)

// pluginMain is the process of a plugin with an engine that only notes what it is told.
func pluginMain() int {
	dir := os.Getenv(actAsPlugin)
	delay, err := time.ParseDuration(os.Getenv(readyAfter))
	if err != nil {
		delay = 0
	}
	promauto.NewCounter(prometheus.CounterOpts{Name: "millrace_test_total", Help: "Is there."})
	e := &notingEngine{dir: dir}
	e.handler = http.HandlerFunc(echo)
	e.state.Store(&State{Phase: PhaseStarting, Progress: "waiting"})
	e.start = func() {
		time.AfterFunc(delay, func() { e.state.Store(&State{Phase: PhaseReady}) })
		NewSlog(log.DefaultLogger, ParseLevel("info")).Warn("engine started", "delay", delay)
	}
	e.onStop = func(context.Context) {
		if os.Getenv(hangInStop) != "" {
			select {}
		}
		e.note("stopped")
	}
	orgs, err := ParseOrgs("")
	if err != nil {
		return 2
	}
	if err := Serve(Options{Engine: e, Orgs: orgs}); err != nil {
		return 1
	}
	return 0
}

type notingEngine struct {
	fakeEngine
	dir   string
	start func()
}

func (e *notingEngine) note(what string) {
	if err := os.WriteFile(filepath.Join(e.dir, what), nil, 0o600); err != nil {
		log.DefaultLogger.Error("noting failed", "error", err)
	}
}

func (e *notingEngine) Start() {
	e.note("started")
	e.start()
}

// countingEngine counts how often it is stopped.
type countingEngine struct {
	fakeEngine
	stops atomic.Int32
}

func (e *countingEngine) Stop(context.Context) { e.stops.Add(1) }

func TestStopsOnce(t *testing.T) {
	e := &countingEngine{}
	p := &process{engine: e, logger: log.NewNullLogger(), done: make(chan struct{})}
	p.stop("one reason")
	p.stop("another")
	require.Equal(t, int32(1), e.stops.Load())
	<-p.done
	p.wait(nil, nil) // returns, and leaves the process to whoever stopped it
}

func TestWatchParentEnds(t *testing.T) {
	done := make(chan struct{})
	gone := watchParent(done)
	close(done)
	select {
	case <-gone:
		t.Fatal("the parent is there")
	case <-time.After(10 * time.Millisecond):
	}
}
