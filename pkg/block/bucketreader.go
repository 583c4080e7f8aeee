package block

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"
)

const (
	// maxGapPages is how many pages (64 kB in all) that nobody asked for are fetched to save a request: at 30 ms and
	// 100 MB/s a request costs as much as 3 MB, but they would be paid for in memory too.
	maxGapPages = 4
	// maxPiecePages bounds one request to 4 MB, so that large reads run in parallel.
	maxPiecePages = 256
	// maxParallel is the number of requests one read makes at a time.
	maxParallel = 8
)

// bucketReader reads a block's files by range requests, through the cache.
type bucketReader struct {
	bkt   objstore.BucketReader
	id    ulid.ULID
	tag   uint32
	names []string
	sizes []int64
	cache *Cache
}

// newBucketReader makes a reader for the block of m. It needs requests only if m does not tell the files' sizes.
func newBucketReader(ctx context.Context, bkt objstore.BucketReader, m *Meta, cache *Cache) (*bucketReader, error) {
	r := &bucketReader{bkt: bkt, id: m.ULID, cache: cache}
	segments, sizes, indexSize, ok := segmentNames(m)
	if !ok {
		var err error
		if segments, sizes, indexSize, err = listFiles(ctx, bkt, m.ULID); err != nil {
			return nil, err
		}
	}
	r.names = append([]string{IndexFilename}, segments...)
	r.sizes = append([]int64{indexSize}, sizes...)
	var raw []byte
	for _, s := range r.sizes {
		raw = binary.BigEndian.AppendUint64(raw, uint64(s))
	}
	r.tag = uint32(xxhash.Sum64(raw))
	return r, nil
}

// listFiles asks the bucket for the chunk files and sizes that a meta.json does not tell.
func listFiles(ctx context.Context, bkt objstore.BucketReader, id ulid.ULID) (names []string, sizes []int64, indexSize int64, err error) {
	err = bkt.Iter(ctx, path.Join(id.String(), ChunksDirname)+objstore.DirDelim, func(name string) error {
		if base := path.Base(slashed(name)); isSegment(base) {
			names = append(names, path.Join(ChunksDirname, base))
		}
		return nil
	})
	if err != nil {
		return nil, nil, 0, fmt.Errorf("list chunks of block %s: %w", id, err)
	}
	slices.SortFunc(names, compareSegments)
	for _, n := range append([]string{IndexFilename}, names...) {
		a, err := bkt.Attributes(ctx, path.Join(id.String(), n))
		if err != nil {
			return nil, nil, 0, fmt.Errorf("size of %s of block %s: %w", n, id, bucketError(bkt, err))
		}
		sizes = append(sizes, a.Size)
	}
	return names, sizes[1:], sizes[0], nil
}

// bucketError adds ErrGone to the error of a bucket where an object is not there.
func bucketError(bkt objstore.BucketReader, err error) error {
	if err != nil && bkt.IsObjNotFoundErr(err) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}

func (r *bucketReader) files() int          { return len(r.names) }
func (r *bucketReader) size(file int) int64 { return r.sizes[file] }
func (r *bucketReader) stable() bool        { return false }
func (r *bucketReader) close() error        { return nil }

func (r *bucketReader) open(ctx context.Context, name string) (io.ReadCloser, error) {
	r.cache.metrics.requests.Inc()
	body, err := r.bkt.Get(ctx, path.Join(r.id.String(), name))
	return body, bucketError(r.bkt, err)
}

// fetch fills buf with the bytes of a file from off on.
func (r *bucketReader) fetch(ctx context.Context, file int, off int64, buf []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	name := path.Join(r.id.String(), r.names[file])
	r.cache.metrics.requests.Inc()
	body, err := r.bkt.GetRange(ctx, name, off, int64(len(buf)))
	if err != nil {
		return fmt.Errorf("get bytes %d to %d of %s: %w", off, off+int64(len(buf)), name, bucketError(r.bkt, err))
	}
	defer body.Close()
	n, err := io.ReadFull(body, buf)
	r.cache.metrics.fetched.Add(float64(n))
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("get bytes %d to %d of %s: got %d bytes: %w", off, off+int64(len(buf)), name, n, bucketError(r.bkt, err))
	}
	return nil
}

func (r *bucketReader) loadOnce(ctx context.Context, file int, s span) ([]byte, error) {
	if err := checkSpans(r.names[file], r.sizes[file], []span{s}); err != nil {
		return nil, err
	}
	buf := make([]byte, s.n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxParallel)
	for at := int64(0); at < s.n; at += maxPiecePages * pageSize {
		part := buf[at:min(at+maxPiecePages*pageSize, s.n)]
		g.Go(func() error { return r.fetch(ctx, file, s.off+at, part) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return buf, nil
}

func (r *bucketReader) load(ctx context.Context, file int, spans []span) (*view, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkSpans(r.names[file], r.sizes[file], spans); err != nil {
		return nil, err
	}
	l := &pageLoad{r: r, file: file, keys: newPageKeys(r.id, r.tag, file), pages: pagesOf(spans)}
	total := l.layout()
	if err := charge(ctx, total); err != nil {
		return nil, err
	}
	if err := l.fill(ctx); err != nil {
		discharge(ctx, total)
		return nil, err
	}
	return &view{ctx: ctx, runs: l.runs(), bytes: total}, nil
}

func (r *bucketReader) forget(file int, s span) {
	keys := newPageKeys(r.id, r.tag, file)
	for _, p := range pagesOf([]span{s}) {
		r.cache.del(keys.page(p))
	}
}

// pagesOf returns the numbers of the pages that spans touch, sorted, each once.
func pagesOf(spans []span) []int64 {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.off, b.off) })
	var pages []int64
	next := int64(0)
	for _, s := range spans {
		if s.n == 0 {
			continue
		}
		for p := max(next, s.off/pageSize); p <= (s.end()-1)/pageSize; p++ {
			pages = append(pages, p)
			next = p + 1
		}
	}
	return pages
}

// pageLoad is one call of load: the pages it wants, and the buffers they go to.
type pageLoad struct {
	r       *bucketReader
	file    int
	keys    pageKeys
	pages   []int64
	buffers []pageBuffer
}

// pageBuffer takes the pages first to last, among them small gaps that nobody wants.
type pageBuffer struct {
	first, last int64
	data        []byte
}

// layout plans the buffers and returns their size in bytes; they are allocated by fill.
func (l *pageLoad) layout() (total int64) {
	for _, p := range l.pages {
		if n := len(l.buffers); n > 0 && p-l.buffers[n-1].last <= maxGapPages+1 {
			l.buffers[n-1].last = p
		} else {
			l.buffers = append(l.buffers, pageBuffer{first: p, last: p})
		}
	}
	for _, b := range l.buffers {
		_, end := l.bounds(b.first, b.last)
		total += end - b.first*pageSize
	}
	return total
}

// bounds returns the offsets in the file of pages first to last.
func (l *pageLoad) bounds(first, last int64) (off, end int64) {
	return first * pageSize, min((last+1)*pageSize, l.r.sizes[l.file])
}

// buffer returns the number of the buffer that page p goes to.
func (l *pageLoad) buffer(p int64) int {
	i, _ := slices.BinarySearchFunc(l.buffers, p, func(b pageBuffer, p int64) int {
		switch {
		case b.last < p:
			return -1
		case b.first > p:
			return 1
		}
		return 0
	})
	return i
}

// slice returns the memory of pages first to last, which are in one buffer.
func (l *pageLoad) slice(first, last int64) []byte {
	b := l.buffers[l.buffer(first)]
	off, end := l.bounds(first, last)
	return b.data[off-b.first*pageSize : end-b.first*pageSize]
}

// runs returns the wanted pages as contiguous bytes. Gaps are left out: they may not have been fetched.
func (l *pageLoad) runs() []run {
	var out []run
	for i := 0; i < len(l.pages); {
		j := i + 1
		for j < len(l.pages) && l.pages[j] == l.pages[j-1]+1 {
			j++
		}
		out = append(out, run{off: l.pages[i] * pageSize, data: l.slice(l.pages[i], l.pages[j-1])})
		i = j
	}
	return out
}

// fill gets all wanted pages: from the cache, by requests of its own, or from requests that are under way.
func (l *pageLoad) fill(ctx context.Context) error {
	for i, b := range l.buffers {
		off, end := l.bounds(b.first, b.last)
		l.buffers[i].data = make([]byte, end-off)
	}
	var missing []int64
	for _, p := range l.pages {
		if !l.r.cache.get(l.keys.page(p), l.slice(p, p)) {
			missing = append(missing, p)
		}
	}
	l.r.cache.metrics.hits.Add(float64(len(l.pages) - len(missing)))
	l.r.cache.metrics.misses.Add(float64(len(missing)))
	// Gaps are jumped in the first round only: pages that have been handed to others must not be written again.
	for gap := int64(maxGapPages); len(missing) > 0; gap = 0 {
		pieces, waits := l.plan(missing, gap)
		if err := l.fetchAll(ctx, pieces); err != nil {
			return err
		}
		var err error
		if missing, err = l.await(ctx, waits); err != nil {
			return err
		}
	}
	return nil
}

// piece is one request: pages first to last, and the keys of those that others may wait for.
type piece struct {
	first, last int64
	keys        []pageKey
	flight      *flight
}

// wait is a page that another query fetches.
type wait struct {
	page   int64
	flight *flight
}

// plan divides missing pages into requests to make and requests to wait for.
func (l *pageLoad) plan(missing []int64, gap int64) (pieces []*piece, waits []wait) {
	var cur *piece
	for _, p := range missing {
		f := &flight{done: make(chan struct{})}
		if cur != nil && p-cur.last <= gap+1 && p-cur.first < maxPiecePages && l.buffer(cur.first) == l.buffer(p) {
			f = cur.flight
		}
		key := l.keys.page(p)
		other, mine := l.r.cache.join(key, f)
		switch {
		case !mine:
			waits = append(waits, wait{page: p, flight: other})
		case cur != nil && f == cur.flight:
			cur.last = p
			cur.keys = append(cur.keys, key)
		default:
			cur = &piece{first: p, last: p, keys: []pageKey{key}, flight: f}
			pieces = append(pieces, cur)
		}
	}
	return pieces, waits
}

// fetchAll makes requests in parallel. Every flight lands, whatever happens.
func (l *pageLoad) fetchAll(ctx context.Context, pieces []*piece) error {
	if len(pieces) == 0 {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxParallel)
	for _, p := range pieces {
		g.Go(func() error {
			off, _ := l.bounds(p.first, p.last)
			data := l.slice(p.first, p.last)
			err := l.r.fetch(ctx, l.file, off, data)
			if err == nil {
				l.keep(p, data)
				p.flight.off, p.flight.data = off, data
			}
			l.r.cache.land(ctx, p.flight, p.keys, err)
			return err
		})
	}
	return g.Wait()
}

// keep puts the pages of a request into the cache.
func (l *pageLoad) keep(p *piece, data []byte) {
	for n := p.first; n <= p.last; n++ {
		off, end := l.bounds(n, n)
		l.r.cache.set(l.keys.page(n), data[off-p.first*pageSize:end-p.first*pageSize])
	}
}

// await takes the pages that others have fetched, and returns those that they gave up.
func (l *pageLoad) await(ctx context.Context, waits []wait) (missing []int64, err error) {
	for _, w := range waits {
		select {
		case <-w.flight.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		switch {
		case errors.Is(w.flight.err, errAbandoned):
			missing = append(missing, w.page)
		case w.flight.err != nil:
			return nil, w.flight.err
		default:
			off, end := l.bounds(w.page, w.page)
			copy(l.slice(w.page, w.page), w.flight.data[off-w.flight.off:end-w.flight.off])
		}
	}
	return missing, nil
}
