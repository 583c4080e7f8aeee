package speed

import (
	"math"

	"github.com/millrace/millrace/pkg/ingest"
)

// shard holds the series whose hashes fall to it. The registry's lock guards everything but the turn.
type shard struct {
	turn turn

	reg      *registry
	pages    []*[pageSize]series // By reference.
	postings postings
	blocks   blocks
	arena    arena
	chunk    []byte // Scratch.
}

func (sh *shard) series(ref uint32) *series {
	return &sh.pages[ref>>pageBits][ref&(pageSize-1)]
}

// apply applies the part of a request that belongs to the shard: the series of b that list names.
func (sh *shard) apply(g *Generation, b *ingest.Batch, list []uint32, w *writer) {
	sh.reg.mu.Lock()
	defer sh.reg.mu.Unlock()
	w.sh = sh
	for _, i := range list {
		in := &b.Series[i]
		ref, ok := sh.reg.find(in.Hash, in.Key)
		if !ok {
			ref = sh.create(g, in, w)
		}
		s := sh.series(ref)
		for _, f := range in.Floats {
			w.float(s, f)
		}
		for _, h := range in.Histograms {
			w.histogram(s, h)
		}
	}
}

// create registers a series. Its labels are those of the previous generation, if that knows it.
func (sh *shard) create(g *Generation, in *ingest.Series, w *writer) uint32 {
	id, known := identity{}, false
	if prev := g.previous.Load(); prev != nil {
		id, known = prev.find(in.Hash, in.Key)
	}
	if known {
		w.HandedOver++
	} else {
		id = identity{hash: in.Hash, key: string(in.Key), labels: ingest.KeyLabels(in.Key)}
	}
	ref := sh.reg.add(id)
	if ref&(pageSize-1) == 0 {
		sh.pages = append(sh.pages, new([pageSize]series))
	}
	sh.series(ref).lastT = math.MinInt64
	w.Created++
	// The labels' strings take about as much as the key.
	w.bytes += seriesBytes + 2*len(id.key) + sh.postings.add(ref, id.labels)
	return ref
}
