package block

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"path"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/thanos-io/objstore"
)

// Block reads one immutable block. It is safe for concurrent use, up to Close.
//
// The header is loaded on first use. loading is a lock that can be waited for with a context; it is held while the header is
// read. An attempt that fails is not remembered: the next read tries again.
type Block struct {
	meta    Meta
	r       rangeReader
	header  atomic.Pointer[header]
	used    atomic.Int64 // when the header was last asked for, in seconds since 1970
	loading chan struct{}
}

func newBlock(m Meta, r rangeReader) *Block {
	return &Block{meta: m, r: r, loading: make(chan struct{}, 1)}
}

// name is what errors of queries call the block. They tell whether it was the bucket that could not be read.
func (b *Block) name() string {
	if b.r.stable() {
		return "block " + b.meta.ULID.String()
	}
	return "block " + b.meta.ULID.String() + " of the bucket"
}

// OpenLocal opens the block in dir, mapped into memory. A folder without meta.json is ErrGone.
func OpenLocal(dir string) (*Block, error) {
	m, err := ReadMeta(dir)
	if err != nil {
		return nil, fmt.Errorf("open block %s: %w", filepath.Base(dir), goneIfMissing(err))
	}
	if err := readable(&m); err != nil {
		return nil, err
	}
	r, err := openMmap(dir, &m)
	if err != nil {
		return nil, fmt.Errorf("open block %s: %w", m.ULID, goneIfMissing(err))
	}
	b := newBlock(m, r)
	if _, err := b.loadHeader(context.Background()); err != nil {
		r.close()
		return nil, err
	}
	return b, nil
}

// OpenBucket opens a block in a bucket with one request, for its meta.json; the rest follows on first use. cache may be
// nil, then nothing is kept. A block that is not there is ErrGone.
func OpenBucket(ctx context.Context, bkt objstore.BucketReader, id ulid.ULID, cache *Cache) (*Block, error) {
	m, err := fetchMeta(ctx, bkt, id)
	if err != nil {
		return nil, fmt.Errorf("open block %s: %w", id, err)
	}
	return OpenBucketMeta(ctx, bkt, m, cache)
}

// OpenBucketMeta is OpenBucket for who has the meta already: it makes no request, unless the meta does not tell the sizes of
// the block's files. Files of a DirBucket are mapped.
func OpenBucketMeta(ctx context.Context, bkt objstore.BucketReader, m Meta, cache *Cache) (*Block, error) {
	if err := readable(&m); err != nil {
		return nil, err
	}
	if l, ok := bkt.(localPather); ok {
		r, err := openMmap(l.LocalPath(m.ULID.String()), &m)
		if err != nil {
			// A block is not gone because the folder of them all is away.
			err = cmp.Or(l.Available(), goneIfMissing(err))
			return nil, fmt.Errorf("open block %s: %w", m.ULID, err)
		}
		return newBlock(m, r), nil
	}
	if cache == nil {
		cache = NewCache(0, nil)
	}
	r, err := newBucketReader(ctx, bkt, &m, cache)
	if err != nil {
		return nil, fmt.Errorf("open block %s: %w", m.ULID, err)
	}
	return newBlock(m, r), nil
}

// readable refuses blocks that do not hold raw samples.
func readable(m *Meta) error {
	if r := m.Thanos.Downsample.Resolution; r != 0 {
		return fmt.Errorf("block %s: %w to %d ms", m.ULID, ErrDownsampled, r)
	}
	return nil
}

// fetchMeta reads the meta.json of a block in a bucket.
func fetchMeta(ctx context.Context, bkt objstore.BucketReader, id ulid.ULID) (Meta, error) {
	name := path.Join(id.String(), MetaFilename)
	body, err := bkt.Get(ctx, name)
	if err != nil {
		return Meta{}, fmt.Errorf("get %s: %w", name, bucketError(bkt, err))
	}
	defer body.Close()
	m, err := readMeta(body)
	if err != nil {
		return Meta{}, bucketError(bkt, err)
	}
	if m.ULID != id {
		return Meta{}, fmt.Errorf("%w: %s is of block %s", ErrCorrupt, name, m.ULID)
	}
	return m, nil
}

// Meta returns the block's meta. Its maps and slices must not be changed.
func (b *Block) Meta() Meta { return b.meta }

// Size returns the bytes of the block's index and chunks.
func (b *Block) Size() int64 {
	var n int64
	for f := range b.r.files() {
		n += b.r.size(f)
	}
	return n
}

// Preload reads what a query reads first, so that an error or a wait comes now.
func (b *Block) Preload(ctx context.Context) error {
	h, err := b.loadHeader(ctx)
	if err == nil {
		h.unpin()
	}
	return err
}

// Trim gives up what was made of the index to read the block, if that was not used for some time and can be made again without a request.
func (b *Block) Trim(idle time.Duration) {
	h := b.header.Load()
	if h != nil && (h.from != nil || b.r.mapped(indexFile)) && time.Since(time.Unix(b.used.Load(), 0)) > idle {
		b.dropHeader(h)
	}
}

// followCopy lets go of a header that is not of the local copy of the index which is there now.
func (b *Block) followCopy() {
	h := b.header.Load()
	if h == nil {
		return
	}
	if r, ok := b.r.(*bucketReader); ok && (h.from == nil && r.hasCopy() || h.from != nil && h.from.isGone()) {
		b.dropHeader(h)
	}
}

// dropHeader takes a header out of the block's hands, once; queries that use it keep it.
func (b *Block) dropHeader(h *header) {
	if h != nil && b.header.CompareAndSwap(h, nil) {
		h.unpin()
	}
}

// Close frees the mapped files. The caller guarantees that no querier, chunk or symbol of the block is used any more.
func (b *Block) Close() error {
	b.dropHeader(b.header.Load())
	if err := b.r.close(); err != nil {
		return fmt.Errorf("close block %s: %w", b.meta.ULID, err)
	}
	return nil
}

// ChunkQuerier implements storage.ChunkQueryable. mint and maxt are inclusive. The querier hands out chunks that overlap the
// range whole; they are valid until the querier is closed, and count against the budget of Select's context until then.
func (b *Block) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return &querier{b: b, mint: mint, maxt: maxt}, nil
}

// Symbols iterates over the strings in the block's labels, sorted. They are valid until Close.
func (b *Block) Symbols() index.StringIter {
	h, err := b.loadHeader(context.Background())
	if err != nil {
		return &symbolIter{err: err}
	}
	if h.from != nil { // which may go before the block
		defer h.unpin()
		h = &header{symbols: bytes.Clone(h.symbols), symPos: h.symPos}
	}
	return &symbolIter{h: h}
}

// loadHeader returns the header, pinned.
func (b *Block) loadHeader(ctx context.Context) (*header, error) {
	b.used.Store(time.Now().Unix())
	if h := b.pinHeader(); h != nil {
		return h, nil
	}
	select {
	case b.loading <- struct{}{}:
		defer func() { <-b.loading }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if h := b.pinHeader(); h != nil {
		return h, nil
	}
	h, err := b.readHeader(ctx)
	if err != nil {
		return nil, fmt.Errorf("read index of block %s: %w", b.meta.ULID, err)
	}
	// It comes with one pin, which is the query's; the block has another, if there still is a reason to keep the header.
	if h.pin() {
		b.header.Store(h)
	}
	return h, nil
}

// pinHeader returns the header that is there, pinned, and gives up one that is no longer to be used.
func (b *Block) pinHeader() *header {
	h := b.header.Load()
	if h == nil || h.pin() {
		return h
	}
	b.dropHeader(h)
	return nil
}

func (b *Block) readHeader(ctx context.Context) (*header, error) {
	if r, ok := b.r.(*bucketReader); ok {
		return r.loadHeader(ctx, &b.meta)
	}
	return loadHeader(ctx, b.r, &b.meta)
}
