package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Headers of remote write 2.0's answers.
const (
	headerSamples    = "X-Prometheus-Remote-Write-Samples-Written"
	headerHistograms = "X-Prometheus-Remote-Write-Histograms-Written"
	headerExemplars  = "X-Prometheus-Remote-Write-Exemplars-Written"
)

const (
	mediaType = "application/x-protobuf"
	messageV1 = "prometheus.WriteRequest"
	messageV2 = "io.prometheus.write.v2.Request"
)

// ServeHTTP answers POST requests of remote write 1.0 and 2.0: 204 when all was
// stored, 400 when a part was refused (the rest is stored) or the request is
// malformed, 405, 413 and 415 as HTTP has them, 429 or 503 with Retry-After when
// the sender shall come again.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	start := r.now()
	p, err := negotiate(req)
	if err != nil {
		r.reject(w, req, p, start, err)
		return
	}
	l := loan{r: r}
	defer l.repay()
	buf, err := r.readBody(w, req, &l)
	defer r.putBody(buf)
	if err != nil {
		r.reject(w, req, p, start, err)
		return
	}
	written, err := r.ingestWith(req.Context(), &l, p, buf.Bytes())
	if p == V2 {
		h := w.Header()
		h.Set(headerSamples, strconv.Itoa(written.Samples))
		h.Set(headerHistograms, strconv.Itoa(written.Histograms))
		h.Set(headerExemplars, strconv.Itoa(written.Exemplars))
	}
	answer(w, err)
}

// reject answers a request that does not reach Ingest.
func (r *Receiver) reject(w http.ResponseWriter, req *http.Request, p Protocol, start time.Time, err error) {
	r.metrics.request(p, err, r.now().Sub(start))
	r.log(p, err)
	if StatusOf(err) == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", http.MethodPost)
	}
	if p == V2 {
		for _, name := range []string{headerSamples, headerHistograms, headerExemplars} {
			w.Header().Set(name, "0")
		}
	}
	drain(req.Body)
	answer(w, err)
}

func answer(w http.ResponseWriter, err error) {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if unavailable, ok := errors.AsType[*Unavailable](err); ok {
		w.Header().Set("Retry-After", unavailable.retryAfter())
	}
	http.Error(w, err.Error(), StatusOf(err))
}

// negotiate finds out what the request is, before its body is read. The protocol
// is 0 if it did not come to that.
func negotiate(req *http.Request) (Protocol, error) {
	if req.Method != http.MethodPost {
		return 0, refuse(http.StatusMethodNotAllowed, causeMethod,
			fmt.Errorf("method %s is not allowed; remote write uses POST", req.Method))
	}
	p, err := messageOf(req.Header.Get("Content-Type"))
	if err != nil {
		return 0, refuse(http.StatusUnsupportedMediaType, causeContentType, err)
	}
	// Without the header, snappy is assumed, as Prometheus does.
	if enc := req.Header.Values("Content-Encoding"); len(enc) > 1 || len(enc) == 1 && enc[0] != "" && !strings.EqualFold(enc[0], "snappy") {
		return p, refuse(http.StatusUnsupportedMediaType, causeEncoding,
			fmt.Errorf("content encoding %q is not supported; only snappy is", strings.Join(enc, ", ")))
	}
	return p, nil
}

// messageOf translates a Content-Type.
func messageOf(contentType string) (Protocol, error) {
	if contentType == "" || contentType == mediaType {
		return V1, nil
	}
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil || media != mediaType {
		return 0, fmt.Errorf("content type %q is not supported; remote write uses %s", contentType, mediaType)
	}
	switch proto := params["proto"]; proto {
	case "", messageV1:
		return V1, nil
	case messageV2:
		return V2, nil
	default:
		return 0, fmt.Errorf("protobuf message %q is not supported; %s and %s are", proto, messageV1, messageV2)
	}
}

// readBody reads the body up to the limit. A length that is announced is not
// believed: memory grows with what arrives.
func (r *Receiver) readBody(w http.ResponseWriter, req *http.Request, l *loan) (*bytes.Buffer, error) {
	limit := r.limits.MaxBody
	buf, _ := r.bodies.Get().(*bytes.Buffer)
	if buf == nil {
		buf = new(bytes.Buffer)
	}
	buf.Reset()
	if req.ContentLength > limit {
		return buf, refuse(http.StatusRequestEntityTooLarge, causeBody,
			&sizeError{what: "compressed", size: req.ContentLength, limit: limit, flag: flagBody})
	}
	if req.Body == nil {
		return buf, nil
	}
	const believed = 1 << 20
	buf.Grow(int(min(max(req.ContentLength, 0), believed)) + bytes.MinRead)
	_, err := buf.ReadFrom(&charged{http.MaxBytesReader(w, req.Body, limit), l})
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return buf, refuse(http.StatusRequestEntityTooLarge, causeBody,
			&sizeError{what: "compressed", size: -1, limit: limit, flag: flagBody})
	case errors.Is(err, errBusy):
		return buf, r.busy()
	case err != nil:
		return buf, refuse(http.StatusBadRequest, causeIncomplete, fmt.Errorf("read request body: %w", err))
	}
	return buf, nil
}

// charged charges what is read.
type charged struct {
	src io.Reader
	*loan
}

var errBusy = errors.New("no memory left for requests")

func (c *charged) Read(p []byte) (int, error) {
	n, err := c.src.Read(p)
	if !c.take(int64(n)) {
		return 0, errBusy
	}
	return n, err
}

func (r *Receiver) putBody(buf *bytes.Buffer) {
	if buf.Cap() <= maxPooled/4 {
		r.bodies.Put(buf)
	}
}
