package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
)

// indexStream reads parts of a block's index from the bucket, one after the other, by one request each. It never looks at local copies, so that
// it can be used whether or not the block is closed meanwhile, and holds none of the bytes. It is for one goroutine.
type indexStream struct {
	ctx   context.Context
	r     *bucketReader
	spans []span // what is left; the first one is under way where there is a body
	body  io.ReadCloser
	stop  func() bool
}

// Read implements io.Reader.
func (s *indexStream) Read(b []byte) (int, error) {
	for len(s.spans) > 0 && s.spans[0].n == 0 {
		s.Close()
		s.spans = s.spans[1:]
	}
	if len(s.spans) == 0 {
		return 0, io.EOF
	}
	cur := &s.spans[0]
	if s.body == nil {
		if err := s.open(*cur); err != nil {
			return 0, err
		}
	}
	n, err := s.body.Read(b[:min(int64(len(b)), cur.n)])
	cur.off, cur.n = cur.off+int64(n), cur.n-int64(n)
	switch {
	case errors.Is(err, io.EOF) && cur.n > 0:
		return n, fmt.Errorf("index at byte %d: %w", cur.off, io.ErrUnexpectedEOF)
	case errors.Is(err, io.EOF):
		return n, nil
	}
	return n, bucketError(s.r.bkt, err) // some clients make their request when the first byte is read
}

func (s *indexStream) open(part span) (err error) {
	s.r.cache.metrics.requests.Inc()
	name := path.Join(s.r.id.String(), IndexFilename)
	if part == (span{0, s.r.sizes[indexFile]}) {
		s.body, err = s.r.bkt.Get(s.ctx, name)
	} else {
		s.body, err = s.r.bkt.GetRange(s.ctx, name, part.off, part.n)
	}
	if err != nil {
		s.body = nil
		return bucketError(s.r.bkt, err)
	}
	// Not every client's body ends with its request's context.
	body := s.body
	s.stop = context.AfterFunc(s.ctx, func() { body.Close() })
	return nil
}

// Close ends the request that is under way.
func (s *indexStream) Close() {
	if s.body != nil && s.stop() {
		s.body.Close()
	}
	s.body = nil
}
