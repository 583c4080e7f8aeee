package main

import (
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// proxy adds a delay to every request and counts. Its lock guards what is counted.
type proxy struct {
	target *httputil.ReverseProxy
	delay  time.Duration
	server *http.Server

	mu     sync.Mutex
	seen   counts
	active int
	since  time.Time // when a request came while there was none
	last   time.Time // when one ended
}

// counts is what the bucket was asked for since they were reset.
type counts struct {
	requests int
	bytes    int64
	waiting  time.Duration // in which at least one request was under way
}

func newProxy(target string, delay time.Duration) *proxy {
	u, err := url.Parse(target)
	if err != nil {
		panic(err) // a constant
	}
	p := &proxy{target: httputil.NewSingleHostReverseProxy(u), delay: delay, last: time.Now()}
	p.target.Transport = &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}
	return p
}

func (p *proxy) listen(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	p.server = &http.Server{Handler: p}
	go p.server.Serve(l) //nolint:errcheck // it ends with close
	return nil
}

func (p *proxy) close() { p.server.Close() }

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.begin()
	counted := &countingWriter{ResponseWriter: w}
	defer func() { p.end(counted.n) }()
	time.Sleep(p.delay)
	p.target.ServeHTTP(counted, r)
}

func (p *proxy) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen.requests++
	if p.active++; p.active == 1 {
		p.since = time.Now()
	}
}

func (p *proxy) end(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen.bytes += n
	p.last = time.Now()
	if p.active--; p.active == 0 {
		p.seen.waiting += p.last.Sub(p.since)
	}
}

// reset returns what was counted since the last call.
func (p *proxy) reset() counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := p.seen
	p.seen = counts{}
	return seen
}

// quiet waits until nothing was asked for d.
func (p *proxy) quiet(d time.Duration) {
	for {
		p.mu.Lock()
		idle := p.active == 0 && time.Since(p.last) > d
		p.mu.Unlock()
		if idle {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

type countingWriter struct {
	http.ResponseWriter
	n int64
}

func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.n += int64(n)
	return n, err
}

// Unwrap lets the reverse proxy flush.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
