package block

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"sync"

	"github.com/VictoriaMetrics/fastcache"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// pageSize is the unit of the cache, and of what is fetched, in bytes. fastcache silently drops entries that do not fit in 64 KiB, key
// included; sixteen pages and their keys fill one of its chunks with little waste. Larger ones would be fetched mostly for nothing where a
// query needs a few chunks of each of many series.
const pageSize = 4_000

// DefaultRequests is the number of requests that are under way at the same time at most, unless a Cache is told otherwise.
const DefaultRequests = 64

// pageKey names a page of a block's file. Blocks are immutable; tag guards against one that was written anew, with other
// content, under the same ULID.
type pageKey [16 + 4 + 2 + 4]byte

// pageKeys makes the keys of one file.
type pageKeys struct{ key pageKey }

func newPageKeys(id ulid.ULID, tag uint32, file int) pageKeys {
	var k pageKeys
	copy(k.key[:16], id[:])
	binary.BigEndian.PutUint32(k.key[16:], tag)
	binary.BigEndian.PutUint16(k.key[20:], uint16(file))
	return k
}

func (k pageKeys) page(n int64) pageKey {
	binary.BigEndian.PutUint32(k.key[22:], uint32(n))
	return k.key
}

// Cache keeps pages of blocks in a bucket, for any number of blocks, and sees to it that a page is fetched by one query
// only while others wait for it. It is safe for concurrent use. Its lock guards flights and is not held during requests.
type Cache struct {
	pages   *fastcache.Cache // nil: nothing is kept
	metrics *cacheMetrics
	slots   chan struct{} // held during requests
	indexes *IndexStore   // nil: there are no local copies

	mu      sync.Mutex
	flights map[pageKey]*flight
}

// flight is a request under way. data and err are set before done is closed, and not changed afterwards.
type flight struct {
	done chan struct{}
	off  int64
	data []byte
	err  error
}

// errAbandoned is the error of a flight whose query was cancelled: others that wait for it must ask themselves.
var errAbandoned = errors.New("request was cancelled by its query")

type cacheMetrics struct {
	hits, misses, requests, fetched prometheus.Counter
}

// NewCache returns a cache of up to maxBytes (32 MB at least; 0 keeps nothing, but still merges requests that run at the
// same time). reg may be nil.
func NewCache(maxBytes int64, reg prometheus.Registerer) *Cache {
	c := &Cache{flights: make(map[pageKey]*flight), slots: make(chan struct{}, DefaultRequests)}
	if maxBytes > 0 {
		c.pages = fastcache.New(int(min(maxBytes, 1<<40, math.MaxInt)))
	}
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	c.register(promauto.With(reg))
	return c
}

// LimitRequests sets how many requests of all blocks are under way at the same time at most. It must be called before a block is opened.
func (c *Cache) LimitRequests(n int) { c.slots = make(chan struct{}, max(n, 1)) }

// UseIndexes lets blocks use local copies of their indexes. It must be called before a block is opened.
func (c *Cache) UseIndexes(s *IndexStore) { c.indexes = s }

// begin waits until another request may be made, which is to be ended by end.
func (c *Cache) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case c.slots <- struct{}{}:
		c.metrics.requests.Inc()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Cache) end() { <-c.slots }

func (c *Cache) register(f promauto.Factory) {
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "millrace_block_" + name, Help: help})
	}
	c.metrics = &cacheMetrics{
		hits:     counter("cache_hits_total", "Pages of blocks found in the cache."),
		misses:   counter("cache_misses_total", "Pages of blocks not found in the cache."),
		requests: counter("bucket_requests_total", "Range requests made for blocks."),
		fetched:  counter("bucket_fetched_bytes_total", "Bytes of blocks fetched by range requests."),
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_block_cache_bytes", Help: "Memory used by cached pages.",
	}, func() float64 { return float64(c.stats().BytesSize) })
	f.NewCounterFunc(prometheus.CounterOpts{
		Name: "millrace_block_cache_evicted_bytes_total", Help: "Bytes evicted from the page cache.",
	}, func() float64 { return float64(c.stats().EvictedBytes) })
}

func (c *Cache) stats() fastcache.Stats {
	var s fastcache.Stats
	if c.pages != nil {
		c.pages.UpdateStats(&s)
	}
	return s
}

// Close frees the cached pages. No block that uses the cache may be read afterwards.
func (c *Cache) Close() {
	if c.pages != nil {
		c.pages.Reset()
	}
}

// get copies a page to dst and says whether it was there in full.
func (c *Cache) get(key pageKey, dst []byte) bool {
	if c.pages == nil {
		return false
	}
	got, ok := c.pages.HasGet(dst[:0:len(dst)], key[:])
	return ok && len(got) == len(dst)
}

func (c *Cache) set(key pageKey, page []byte) {
	if c.pages != nil {
		c.pages.Set(key[:], page)
	}
}

func (c *Cache) del(key pageKey) {
	if c.pages != nil {
		c.pages.Del(key[:])
	}
}

// join returns the flight that will bring a page, or registers f as it; mine is true then.
func (c *Cache) join(key pageKey, f *flight) (other *flight, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if other, ok := c.flights[key]; ok {
		return other, false
	}
	c.flights[key] = f
	return f, true
}

// land ends a flight: its pages can be asked for again, and those who wait for it go on.
func (c *Cache) land(ctx context.Context, f *flight, keys []pageKey, err error) {
	f.err = err
	// The end of a context reaches those that were made of it only after whoever waits for it.
	if err != nil && (ctx.Err() != nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		f.err = errAbandoned
	}
	c.mu.Lock()
	for _, k := range keys {
		delete(c.flights, k)
	}
	c.mu.Unlock()
	close(f.done)
}
