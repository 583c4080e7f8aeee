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
	maxGapPages = 16
	// maxPiecePages bounds one request to 4 MB, so that large reads run in parallel.
	maxPiecePages = 1000
	// maxParallel is the number of requests one read makes at a time, as far as the cache allows so many.
	maxParallel = DefaultRequests
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
	r.tag = sizesTag(r.sizes)
	return r, nil
}

// sizesTag tells blocks of the same ULID and different sizes apart.
func sizesTag(sizes []int64) uint32 {
	var raw []byte
	for _, s := range sizes {
		raw = binary.BigEndian.AppendUint64(raw, uint64(s))
	}
	return uint32(xxhash.Sum64(raw))
}

// copied returns the local copy of the index, pinned; nil if there is none.
func (r *bucketReader) copied() *indexCopy {
	if r.cache.indexes == nil {
		return nil
	}
	return r.cache.indexes.pin(r.id, r.tag, r.sizes[indexFile])
}

func (r *bucketReader) hasCopy() bool {
	return r.cache.indexes != nil && r.cache.indexes.size(r.id) > 0
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
func (r *bucketReader) mapped(int) bool     { return false }
func (r *bucketReader) close() error        { return nil }

func (r *bucketReader) open(ctx context.Context, name string) (io.ReadCloser, error) {
	r.cache.metrics.requests.Inc()
	body, err := r.bkt.Get(ctx, path.Join(r.id.String(), name))
	return body, bucketError(r.bkt, err)
}

// fetch fills buf with the bytes of a file from off on. It returns soon after ctx has ended, whatever the bucket does.
func (r *bucketReader) fetch(ctx context.Context, file int, off int64, buf []byte) error {
	name, n := path.Join(r.id.String(), r.names[file]), int64(len(buf))
	if err := meter(ctx, n); err != nil {
		return err
	}
	if err := r.cache.begin(ctx); err != nil {
		return err
	}
	defer r.cache.end()
	body, err := r.bkt.GetRange(ctx, name, off, n)
	if err != nil {
		return fmt.Errorf("get bytes %d to %d of %s: %w", off, off+n, name, bucketError(r.bkt, err))
	}
	// Not every client's body ends with its request's context.
	stop := context.AfterFunc(ctx, func() { body.Close() })
	got, err := io.ReadFull(body, buf)
	if stop() {
		defer body.Close()
	}
	r.cache.metrics.fetched.Add(float64(got))
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		err = cmp.Or(ctx.Err(), bucketError(r.bkt, err))
		return fmt.Errorf("get bytes %d to %d of %s: got %d bytes: %w", off, off+n, name, got, err)
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
	if v := r.viewOfCopy(ctx, file, spans); v != nil {
		return v, nil
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

// viewOfCopy returns spans of the index in the local copy; nil if it does not hold them, or holds something else in their place.
func (r *bucketReader) viewOfCopy(ctx context.Context, file int, spans []span) *view {
	if file != indexFile {
		return nil
	}
	c := r.copied()
	if c == nil {
		return nil
	}
	if v := c.view(ctx, spans); v != nil {
		return v
	}
	c.giveUp()
	c.unpin()
	return nil
}

func (r *bucketReader) forget(file int, s span) {
	keys := newPageKeys(r.id, r.tag, file)
	for _, p := range pagesOf([]span{s}) {
		r.cache.del(keys.page(p))
	}
}
