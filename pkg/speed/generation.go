package speed

import (
	"math"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/ingest"
)

// Options of a generation.
type Options struct {
	// Number is the generation's place in the order of generations.
	Number uint64
	// Shards is rounded up to a power of two; 0 means twice as many as there are processors, from 4 to 64.
	Shards int
	// FirstIndex is the index of the first request.
	FirstIndex uint64
	// Previous, if not nil, is a generation from which the labels of series met again are taken. Only its registry is kept
	// alive by this, until all its series were met again or the new generation is sealed.
	Previous *Generation
	// StartTimestamps keeps start timestamps, in chunk encodings that older readers do not know.
	StartTimestamps bool
	// Metrics may be shared by generations; nil means none that anyone sees.
	Metrics *Metrics
}

const maxShards = 1 << 12

func defaultShards() int { return min(max(4, 2*runtime.GOMAXPROCS(0)), 64) }

// Generation holds everything that arrived between two seals. All methods may be called at the same time.
type Generation struct {
	number          uint64
	startTimestamps bool
	metrics         *Metrics
	shards          []shard
	regs            *registries
	previous        atomic.Pointer[registries]
	ids             atomic.Uint32 // That were given to series in the log.
	epoch           atomic.Uint32 // Of the log; see DefineFrom.

	samples, late, duplicates, bytes atomic.Int64
	handedOver, handedOverBytes      atomic.Int64 // Series whose labels were the previous generation's, and these labels.
	minTime, maxTime                 atomic.Int64
	skipped                          atomic.Bool // There may be series without samples for good.
}

// NewGeneration returns an empty generation.
func NewGeneration(o Options) *Generation {
	n := o.Shards
	if n <= 0 {
		n = defaultShards()
	}
	n = 1 << bits.Len(uint(min(n, maxShards)-1))
	g := &Generation{
		number:          o.Number,
		startTimestamps: o.StartTimestamps,
		metrics:         o.Metrics,
		shards:          make([]shard, n),
		regs:            &registries{shift: uint(64 - bits.TrailingZeros(uint(n))), regs: make([]*registry, n)},
	}
	if g.metrics == nil {
		g.metrics = NewMetrics(nil)
	}
	for i := range g.shards {
		g.regs.regs[i] = &registry{}
		g.shards[i].reg = g.regs.regs[i]
		g.shards[i].turn.next = o.FirstIndex
	}
	if o.Previous != nil {
		g.previous.Store(o.Previous.regs)
	}
	g.epoch.Store(1)
	g.minTime.Store(math.MaxInt64)
	g.maxTime.Store(math.MinInt64)
	return g
}

// AppendStats says what became of a request's samples. Times are in milliseconds.
type AppendStats struct {
	Samples    int // That were stored, histograms included; Late among them.
	Late       int // Not newer than their series' last one.
	Duplicates int // Equal to the bit to their series' last one, and dropped.
	Failed     int // That could not be encoded; never, for validated requests.
	Created    int // Series.
	HandedOver int // Of these, those whose labels the previous generation had.
	// Of the stored samples; MinTime > MaxTime if there are none.
	MinTime, MaxTime int64

	chunks, lateChunks int
}

// scratch is what Append needs for the time of a call.
type scratch struct {
	order   []uint32 // Indexes into the batch, by shard.
	ends    []uint32 // Where each shard's part of order ends.
	passage passage
}

var scratches = sync.Pool{New: func() any { return &scratch{passage: newPassage()} }}

// group sorts the series that have samples by shard, keeping their order inside each.
func (sc *scratch) group(list []ingest.Series, shards int, shift uint) {
	if cap(sc.ends) < shards+1 {
		sc.ends = make([]uint32, shards+1)
	}
	sc.ends = sc.ends[:shards+1]
	clear(sc.ends)
	for i := range list {
		if hasSamples(&list[i]) {
			sc.ends[list[i].Hash>>shift+1]++
		}
	}
	for i := range shards {
		sc.ends[i+1] += sc.ends[i]
	}
	n := int(sc.ends[shards])
	if cap(sc.order) < n {
		sc.order = make([]uint32, n)
	}
	sc.order = sc.order[:n]
	for i := range list { // Moves each shard's start to its end.
		if hasSamples(&list[i]) {
			at := &sc.ends[list[i].Hash>>shift]
			sc.order[*at] = uint32(i)
			*at++
		}
	}
}

func hasSamples(s *ingest.Series) bool { return len(s.Floats)+len(s.Histograms) > 0 }

// Append applies the request with the given index. It waits until those with lower indexes have been applied, shard by
// shard, and returns when its samples are visible. Every index is given to Append or Skip exactly once, and none after Seal.
// The batch is not kept, and not changed but for being detached from another generation.
func (g *Generation) Append(index uint64, b *ingest.Batch) AppendStats {
	if b.Known != nil && b.Known != ingest.Known(g) {
		b.Detach()
	}
	sc, _ := scratches.Get().(*scratch)
	sc.group(b.Series, len(g.shards), g.regs.shift)
	w := writer{startTimestamps: g.startTimestamps}
	start := uint32(0)
	g.inTurn(index, 1, sc.passage, &w, func(i int) {
		end := sc.ends[i]
		if start < end {
			g.shards[i].apply(g, b, sc.order[start:end], &w)
		}
		start = end
	})
	scratches.Put(sc)
	return w.AppendStats
}

// inTurn calls apply for each shard when it is the turn there of n requests that follow one another. It applies the shard's part of all of them and
// counts in w.
func (g *Generation) inTurn(index, n uint64, p passage, w *writer, apply func(shard int)) {
	w.MinTime, w.MaxTime = math.MaxInt64, math.MinInt64
	next := 0
	defer func() { // After a panic: whoever comes later must not wait for this request for ever.
		for i := next; i < len(g.shards); i++ {
			for k := range n {
				g.shards[i].turn.skip(index + k)
			}
		}
	}()
	for i := range g.shards {
		next = i + 1
		g.visit(index, n, i, p, w, apply)
	}
	g.metrics.count(&w.AppendStats)
}

// visit waits for the requests' turn at a shard, applies their part and passes the turn on, whatever happens.
func (g *Generation) visit(index, n uint64, shard int, p passage, w *writer, apply func(shard int)) {
	turn := &g.shards[shard].turn
	turn.wait(index, p)
	defer turn.pass(n)
	before := *w
	apply(shard)
	g.account(&before, w)
}

// account makes visible in Stats what a shard's part added.
func (g *Generation) account(before, w *writer) {
	add(&g.regs.series, w.Created-before.Created)
	add(&g.regs.bytes, w.registered-before.registered)
	add(&g.samples, w.Samples-before.Samples)
	add(&g.late, w.Late-before.Late)
	add(&g.duplicates, w.Duplicates-before.Duplicates)
	add(&g.bytes, w.bytes-before.bytes)
	lower(&g.minTime, w.MinTime)
	raise(&g.maxTime, w.MaxTime)
	if w.HandedOver > before.HandedOver {
		add(&g.handedOverBytes, w.handedOver-before.handedOver)
		g.takeOver(int64(w.HandedOver - before.HandedOver))
	}
}

// takeOver counts series that were handed over. When these are all, the previous generation has nothing left to give.
func (g *Generation) takeOver(n int64) {
	all := g.handedOver.Add(n)
	if prev := g.previous.Load(); prev != nil && all >= prev.series.Load() {
		g.Disinherit()
	}
}

// lower makes a at most n.
func lower(a *atomic.Int64, n int64) {
	for {
		if old := a.Load(); n >= old || a.CompareAndSwap(old, n) {
			return
		}
	}
}

// raise makes a at least n.
func raise(a *atomic.Int64, n int64) {
	for {
		if old := a.Load(); n <= old || a.CompareAndSwap(old, n) {
			return
		}
	}
}

func add(a *atomic.Int64, n int) {
	if n != 0 {
		a.Add(int64(n))
	}
}

// Skip gives up an index, for a request whose log write failed. It does not wait.
func (g *Generation) Skip(index uint64) {
	g.skipped.Store(true)
	for i := range g.shards {
		g.shards[i].turn.skip(index)
	}
}

// Find implements ingest.Known; it needs no lock.
func (g *Generation) Find(hash uint64, key []byte) (uint32, bool) {
	if ref, ok := g.regs.find(hash, key); ok {
		return ref + 1, true
	}
	return 0, false
}

// After implements ingest.Known.
func (g *Generation) After(hash uint64, ref uint32) (ingest.KnownSeries, bool) {
	next := g.regs.at(hash, ref-1).next.Load()
	if next == 0 {
		return ingest.KnownSeries{}, false
	}
	ref = uint32(next)
	id := g.regs.regs[next>>32].at(ref - 1)
	return ingest.KnownSeries{Labels: id.labels, Hash: id.hash, Ref: ref}, true
}

// Follow implements ingest.Known.
func (g *Generation) Follow(hash uint64, ref uint32, next ingest.KnownSeries) {
	g.regs.at(hash, ref-1).next.Store(next.Hash>>g.regs.shift<<32 | uint64(next.Ref))
}

// Labels implements ingest.Known.
func (g *Generation) Labels(hash uint64, ref uint32) labels.Labels {
	return g.regs.at(hash, ref-1).labels
}

// Seal says that there will be no more appends: the caller has waited for all to return. It lets go of the previous generation.
func (g *Generation) Seal() { g.Disinherit() }

// Disinherit lets go of the previous generation: new series get labels of their own.
func (g *Generation) Disinherit() { g.previous.Store(nil) }

// Number returns the generation's number.
func (g *Generation) Number() uint64 { return g.number }

// Stats describes a generation.
type Stats struct {
	Series     int64
	Samples    int64 // That were stored; those that a later one with the same timestamp replaces are counted too.
	Late       int64 // Of these, those that came out of order.
	Duplicates int64 // That were dropped.
	Bytes      int64 // Memory, estimated; strings shared with the previous generation are counted in both.
	// Inherited is what is kept alive of the previous generation and not in Bytes: its registry, until it is not needed any more.
	Inherited int64
	// Of all samples, in milliseconds; MinTime > MaxTime if there are none.
	MinTime, MaxTime int64
}

// Stats is cheap enough to be called for every request.
func (g *Generation) Stats() Stats {
	return Stats{
		Series: g.regs.series.Load(), Samples: g.samples.Load(), Late: g.late.Load(), Duplicates: g.duplicates.Load(),
		Bytes: g.bytes.Load(), Inherited: g.inherited(), MinTime: g.minTime.Load(), MaxTime: g.maxTime.Load(),
	}
}

func (g *Generation) inherited() int64 {
	prev := g.previous.Load()
	if prev == nil {
		return 0
	}
	return max(0, prev.bytes.Load()-g.handedOverBytes.Load())
}
