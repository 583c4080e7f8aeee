package plugin

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	sdk "github.com/grafana/grafana-plugin-sdk-go/backend/datasource"
	"github.com/grafana/grafana-plugin-sdk-go/backend/grpcplugin"
	"github.com/grafana/grafana-plugin-sdk-go/backend/log"
)

const (
	// stopWithin is how long the engine may take to stop. Grafana kills 2 s after it asked, and asks nobody when it dies itself.
	stopWithin = 900 * time.Millisecond
	// minMessage is the least size limit of messages from Grafana, in bytes. Above it the sender of a resource call gets 500 and, if it is a
	// Prometheus, repeats the request for ever; so it is far above what is accepted.
	minMessage = 64 << 20
	// defaultMaxBody is the default of Options.MaxBody.
	defaultMaxBody = 32 << 20
)

// Options are what the process of a plugin is made of.
type Options struct {
	Engine Engine
	// Orgs are the organisations that are answered. The zero value is none.
	Orgs Orgs
	// MaxBody is the largest body of a resource call in bytes, compressed as it comes; 0 is 32MB.
	MaxBody int64
	// Logger is where handlers write; nil is the SDK's.
	Logger log.Logger
}

// Serve starts the engine in the background, answers Grafana until it is told to leave, and stops the engine. It returns after Grafana's
// Shutdown; on SIGTERM, and when the parent process is gone, it ends the process with status 0 instead, as the SDK's server cannot be
// stopped from within.
//
// The handshake does not wait for the engine: Grafana gives a plugin up that has not answered after 60 s.
func Serve(o Options) error {
	if o.Engine == nil {
		return errors.New("a plugin without an engine")
	}
	if o.MaxBody <= 0 {
		o.MaxBody = defaultMaxBody
	}
	if o.Logger == nil {
		o.Logger = log.DefaultLogger
	}
	p := &process{engine: o.Engine, logger: o.Logger, done: make(chan struct{})}

	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	orphaned := watchParent(p.done)
	go p.wait(terminated, orphaned)

	if serves() {
		o.Engine.Start()
	}
	err := sdk.Manage(ID, newFactory(o), sdk.ManageOpts{
		GRPCSettings: backend.GRPCSettings{MaxReceiveMsgSize: int(max(minMessage, 2*o.MaxBody))},
	})
	p.stop("grafana asked for it")
	return err
}

// serves tells whether the process was started to serve. Started by hand or to tell its version, the SDK ends it at once, and the engine
// must not touch the data path before.
func serves() bool {
	if slices.Contains(os.Args[1:], "-standalone") || slices.Contains(os.Args[1:], "--standalone") {
		return true
	}
	return os.Getenv(grpcplugin.MagicCookieKey) == grpcplugin.MagicCookieValue
}

// process is the plugin's way out, which is taken once.
type process struct {
	engine Engine
	logger log.Logger
	once   sync.Once
	done   chan struct{} // closed when the engine has stopped
}

// wait leaves the process when there is a reason to.
func (p *process) wait(terminated <-chan os.Signal, orphaned <-chan struct{}) {
	reason := "the process was asked to end"
	select {
	case <-p.done:
		return
	case <-terminated:
	case <-orphaned:
		reason = "grafana is gone"
	}
	p.stop(reason)
	os.Exit(0)
}

// stop stops the engine, or waits until whoever came first has.
func (p *process) stop(reason string) {
	p.once.Do(func() {
		p.logger.Info("stopping", "reason", reason)
		ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
		defer cancel()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			p.engine.Stop(ctx)
		}()
		select {
		case <-stopped:
		case <-ctx.Done(): // an engine that hangs gets no more time: a kill would follow
			p.logger.Warn("the engine did not stop in time")
		}
		close(p.done)
	})
}
