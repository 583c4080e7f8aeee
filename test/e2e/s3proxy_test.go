package e2e

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// s3Proxy stands between a server and S3, and does to requests what networks and busy stores do.
type s3Proxy struct {
	address string
	d       *dice
	forward *httputil.ReverseProxy

	share atomic.Int64 // how many of 1,000 requests go wrong
	delay atomic.Int64 // of every answer, in nanoseconds
	open  sync.Map     // requests for objects of blocks under way: what they are
	done  [faults]atomic.Int64
}

// fault is what happens to a request.
type fault int

const (
	internalError fault = iota // 500, not carried out
	slowDown                   // 503, not carried out
	hangUp                     // no answer, not carried out
	lostAnswer                 // carried out, and no answer
	wrongAnswer                // carried out, and 500
	cutRequest                 // the connection breaks in the middle of the body
	cutAnswer                  // the connection breaks in the middle of the answer
	trickle                    // the answer comes in small pieces
	faults
)

func startProxy(t *testing.T, to string, d *dice) *s3Proxy {
	t.Helper()
	p := &s3Proxy{d: d}
	transport := &http.Transport{MaxIdleConnsPerHost: 32}
	p.forward = &httputil.ReverseProxy{
		// Requests are signed for the host that they name.
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: to}); r.Out.Host = r.In.Host },
		ModifyResponse: p.answer,
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		Transport:      transport,
		FlushInterval:  -1, // or a small answer that is cut would not begin
	}
	s := httptest.NewUnstartedServer(p)
	quiet := log.New(io.Discard, "", 0) // of the breaks that it is made to suffer
	s.Config.ErrorLog, p.forward.ErrorLog = quiet, quiet
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		transport.CloseIdleConnections()
	})
	p.address = s.Listener.Addr().(*net.TCPAddr).String()
	return p
}

type faultKey struct{}

// ServeHTTP implements http.Handler.
func (p *s3Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.Count(r.URL.Path, "/") > 2 {
		p.open.Store(r, r.Method+" "+r.URL.Path+" "+r.Header.Get("Range"))
		defer p.open.Delete(r)
	}
	if closedWithin(r.Context().Done(), time.Duration(p.delay.Load())) {
		panic(http.ErrAbortHandler)
	}
	if p.d.n(1000) >= p.share.Load() {
		p.forward.ServeHTTP(w, r)
		return
	}
	f := fault(p.d.n(int64(faults)))
	p.done[f].Add(1)
	switch f {
	case internalError, slowDown:
		fail(w, f)
	case hangUp:
		panic(http.ErrAbortHandler)
	case lostAnswer, wrongAnswer:
		p.forward.ServeHTTP(httptest.NewRecorder(), r)
		if f == lostAnswer {
			panic(http.ErrAbortHandler)
		}
		fail(w, internalError)
	case cutRequest:
		r.Body = &cutReader{ReadCloser: r.Body, left: p.d.n(max(r.ContentLength, 1))}
		p.forward.ServeHTTP(w, r)
	default:
		p.forward.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), faultKey{}, f)))
	}
}

func fail(w http.ResponseWriter, f fault) {
	code, name := http.StatusInternalServerError, "InternalError"
	if f == slowDown {
		code, name = http.StatusServiceUnavailable, "SlowDown"
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>`+name+`</Code><Message>once more, please</Message></Error>`)
}

// answer does to the body of an answer what was chosen for its request.
func (p *s3Proxy) answer(r *http.Response) error {
	switch r.Request.Context().Value(faultKey{}) {
	case cutAnswer:
		r.Body = &cutReader{ReadCloser: r.Body, left: p.d.n(max(r.ContentLength, 1))}
	case trickle:
		r.Body = &slowReader{ReadCloser: r.Body}
	}
	return nil
}

// underWay are the requests for objects of blocks that are being carried out: listings go on in the background.
func (p *s3Proxy) underWay() (requests []string) {
	for _, what := range p.open.Range {
		requests = append(requests, what.(string))
	}
	return requests
}

// cutReader fails in the middle, upon which the proxy breaks the connection.
type cutReader struct {
	io.ReadCloser
	left int64
}

func (c *cutReader) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("cut")
	}
	n, err := c.ReadCloser.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}

// slowReader has hundreds of bytes at a time.
type slowReader struct{ io.ReadCloser }

func (s *slowReader) Read(b []byte) (int, error) {
	time.Sleep(time.Millisecond)
	return s.ReadCloser.Read(b[:min(len(b), 700)])
}
