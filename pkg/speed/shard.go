package speed

import (
	"math"

	"github.com/prometheus/prometheus/model/labels"

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
		s := sh.series(sh.resolve(g, b, in, w))
		for _, f := range in.Floats {
			w.float(s, f)
		}
		for _, h := range in.Histograms {
			w.histogram(s, h)
		}
	}
}

// applyFloats applies floats of series that are registered.
func (sh *shard) applyFloats(list []float, w *writer) {
	sh.reg.mu.Lock()
	defer sh.reg.mu.Unlock()
	w.sh = sh
	for i := range list {
		f := &list[i]
		w.float(sh.series(f.ref), ingest.Float{T: f.t, V: f.v})
	}
}

// float is a sample of a series of a shard.
type float struct {
	ref uint32
	t   int64
	v   float64
}

// resolve returns the series of a request, which may be a new one.
func (sh *shard) resolve(g *Generation, b *ingest.Batch, in *ingest.Series, w *writer) uint32 {
	if in.Ref > 0 && b.Known == ingest.Known(g) {
		return in.Ref - 1
	}
	if ref, ok := sh.reg.find(in.Hash, in.Key); ok {
		return ref
	}
	return sh.create(g, in, w)
}

// create registers a series. Its labels are those of the previous generation, if that knows it.
func (sh *shard) create(g *Generation, in *ingest.Series, w *writer) uint32 {
	ls, known := labels.EmptyLabels(), false
	if prev := g.previous.Load(); prev != nil {
		ls, known = prev.labels(in.Hash, in.Key)
	}
	if known {
		w.HandedOver++
		w.handedOver += len(in.Key)
	} else {
		ls = ingest.KeyLabels(in.Key)
	}
	ref := sh.reg.add(in.Hash, ls)
	if ref&(pageSize-1) == 0 {
		sh.pages = append(sh.pages, new([pageSize]series))
	}
	sh.series(ref).lastT = math.MinInt64
	w.Created++
	// The labels' strings take about as much as the key.
	w.registered += entryBytes + len(in.Key)
	w.bytes += seriesBytes + entryBytes + len(in.Key) + sh.postings.add(ref, ls)
	return ref
}
