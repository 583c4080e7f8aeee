package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/exporter-toolkit/web"
)

// stopGrace is how long requests that run may take to end when the engine stops.
const stopGrace = 500 * time.Millisecond

// listen serves the API on the engine's own listener, and tries again every second while the address is taken.
func (e *Engine) listen(ctx context.Context, api http.Handler) {
	for {
		err := e.serve(ctx, api)
		if ctx.Err() != nil {
			return
		}
		e.report("listener", err)
		sleep(ctx, time.Second)
	}
}

// bind takes the listener's address. The configuration file is checked before, whole: an address that is taken to be given up again would be
// a recovery and a failure in turn, every second.
func (e *Engine) bind() (net.Listener, error) {
	if err := e.cfg.Web.check(); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", e.cfg.Web.ListenAddress)
	if err != nil {
		return nil, fmt.Errorf("--web.listen-address=%s: %w", e.cfg.Web.ListenAddress, err)
	}
	return l, nil
}

func (e *Engine) serve(ctx context.Context, api http.Handler) (err error) {
	l := e.prepared.listener
	e.prepared.listener = nil
	if l == nil {
		if l, err = e.bind(); err != nil {
			return err
		}
	}
	e.report("listener", nil)
	if e.cfg.Web.open() {
		e.logger.Warn("the listener asks for no authentication: it is open to everyone who reaches it, to read and to write", "address", l.Addr().String())
	}
	srv := &http.Server{Handler: api, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 1 << 20}
	e.listening.Store(l.Addr())
	stopped := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), stopGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	defer stopped()
	none, file := false, e.cfg.Web.ConfigFile
	err = web.Serve(l, srv, &web.FlagConfig{WebListenAddresses: &[]string{e.cfg.Web.ListenAddress}, WebSystemdSocket: &none, WebConfigFile: &file}, e.logger)
	_ = l.Close()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Addr is the address on which the engine listens, or nil.
func (e *Engine) Addr() net.Addr {
	a, _ := e.listening.Load().(net.Addr)
	return a
}

// URL is the root of the engine's API. here tells that it holds on this machine alone, as the listener takes every address. It is "" where
// there is no listener yet.
func (e *Engine) URL() (root string, here bool) {
	addr, ok := e.Addr().(*net.TCPAddr)
	if !ok {
		return "", false
	}
	scheme := "http"
	if e.cfg.Web.encrypts() {
		scheme = "https"
	}
	host := addr.String()
	if here = addr.IP.IsUnspecified(); here {
		host = net.JoinHostPort("127.0.0.1", strconv.Itoa(addr.Port))
	}
	return scheme + "://" + host, here
}
