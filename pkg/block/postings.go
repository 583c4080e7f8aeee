package block

import (
	"fmt"
	"slices"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/encoding"
	"github.com/prometheus/prometheus/tsdb/index"
)

// pendingPostings is the union of the postings of some entries of the offset table. It is read when the first of all those that an
// index reader has handed out is looked at, together with the others: the matchers of a selection take one round trip to a bucket,
// however many they are, and none if one of them has no entry.
type pendingPostings struct {
	ix      *indexReader
	name    string
	entries []int // sorted, each once
	index.Postings
}

// later returns the union of the postings of entries.
func (ix *indexReader) later(name string, entries []int) index.Postings {
	if len(entries) == 0 {
		return index.EmptyPostings()
	}
	slices.Sort(entries)
	p := &pendingPostings{ix: ix, name: name, entries: slices.Compact(entries)}
	ix.pending = append(ix.pending, p)
	return p
}

// Next implements index.Postings.
func (p *pendingPostings) Next() bool {
	p.ix.readPending()
	return p.Postings.Next()
}

// Seek implements index.Postings.
func (p *pendingPostings) Seek(ref storage.SeriesRef) bool {
	p.ix.readPending()
	return p.Postings.Seek(ref)
}

// Err implements index.Postings.
func (p *pendingPostings) Err() error {
	if p.Postings == nil {
		return nil
	}
	return p.Postings.Err()
}

// readPending reads what has been handed out and not been read. Errors come from those postings.
func (ix *indexReader) readPending() {
	if len(ix.pending) == 0 {
		return
	}
	pending := ix.pending
	ix.pending = nil
	entries := pending[0].entries
	if len(pending) > 1 {
		entries = nil
		for _, p := range pending {
			entries = append(entries, p.entries...)
		}
		slices.Sort(entries)
		entries = slices.Compact(entries)
	}
	loaded, err := ix.loadPostings(entries)
	for _, p := range pending {
		if err == nil {
			p.Postings = p.union(loaded)
		} else {
			p.Postings = index.ErrPostings(err)
		}
	}
}

// union merges the lists of p's entries.
func (p *pendingPostings) union(loaded *loadedPostings) index.Postings {
	lists := make([]index.Postings, len(p.entries))
	for i, e := range p.entries {
		var err error
		if lists[i], err = loaded.list(e); err != nil {
			return index.ErrPostings(fmt.Errorf("postings of label %q: %w", p.name, err))
		}
	}
	return index.Merge(p.ix.ctx, lists...)
}

// loadedPostings are the postings of some entries, as they are in the file. They are held until the index reader is closed.
type loadedPostings struct {
	entries []int // sorted
	items   *items
}

// loadPostings reads the postings of entries, sorted, in one go.
func (ix *indexReader) loadPostings(entries []int) (*loadedPostings, error) {
	at := make([]item, len(entries))
	for i, e := range entries {
		s := ix.h.postingsSpan(e)
		at[i] = item{off: s.off, guess: s.n}
	}
	loaded, err := loadItems(ix.ctx, ix.r, indexFile, at, postingsFraming)
	if err != nil {
		return nil, fmt.Errorf("read postings: %w", err)
	}
	ix.views = append(ix.views, loaded)
	return &loadedPostings{entries: entries, items: loaded}, nil
}

// list returns the postings of an entry, from their beginning.
func (l *loadedPostings) list(entry int) (index.Postings, error) {
	i, _ := slices.BinarySearch(l.entries, entry)
	b, err := l.items.content(i)
	if err != nil {
		return nil, fmt.Errorf("at byte %d of the index: %w", l.items.at[i].off, err)
	}
	_, list, err := index.DecodePostingsRaw(encoding.Decbuf{B: b})
	if err != nil {
		return nil, fmt.Errorf("%w: at byte %d of the index: %w", ErrCorrupt, l.items.at[i].off, err)
	}
	return list, nil
}
