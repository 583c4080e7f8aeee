package block

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"golang.org/x/sync/errgroup"
)

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
	var fresh *flight // not registered yet
	for _, p := range missing {
		if fresh == nil {
			fresh = &flight{done: make(chan struct{})}
		}
		f := fresh
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
			fresh = nil
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
