package serving

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/merge"
	"github.com/millrace/millrace/pkg/tombstone"
)

// fetches bounds how many sources one Queryable reads at the same time.
const fetches = 64

// Options configures a Queryable. The zero value has no limits.
type Options struct {
	// Horizon returns the oldest time, in milliseconds, that queries see. nil: there is none.
	Horizon func() int64
	// Expired returns what queries do not see of any source. nil, and a nil filter, is nothing.
	Expired func() *tombstone.Filter
	// Memory is what queries draw on that bring no Budget along: all but those of an Engine. nil is no limit.
	Memory *MemoryPool
	// ExternalLabels are added to every series of an answer that has no label of that name itself; matchers see the series as answered.
	ExternalLabels labels.Labels
	// LookbackDelta is what estimates assume of queries that are not an Engine's.
	LookbackDelta time.Duration
	// StartTimestamps keeps start timestamps where ChunkQuerier encodes chunks anew.
	StartTimestamps bool
	// Refresh, if any, is called before something is read again because an object in the bucket is gone. It should look for
	// what there is instead, and bring the Set up to date.
	Refresh func(context.Context) error
	// Logger hears of panics in sources; may be nil.
	Logger *slog.Logger
	// Registerer gets the metrics; may be nil.
	Registerer prometheus.Registerer
}

// Queryable is the merge of all sources of a Set.
type Queryable struct {
	set     *Set
	o       Options
	slots   chan struct{} // held while a source is read ahead
	metrics *metrics
}

var _ storage.SampleAndChunkQueryable = (*Queryable)(nil)

// NewQueryable returns the merge of set's sources.
func NewQueryable(set *Set, o Options) *Queryable {
	if o.Memory == nil {
		o.Memory = NewMemoryPool(0)
	}
	if o.LookbackDelta <= 0 {
		o.LookbackDelta = defaultLookback
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	q := &Queryable{set: set, o: o, slots: make(chan struct{}, fetches), metrics: newMetrics(o.Registerer)}
	registerPool(o.Registerer, o.Memory)
	return q
}

// Querier pins the sources as they are now until Close.
func (qb *Queryable) Querier(mint, maxt int64) (storage.Querier, error) {
	return &sampleQuerier{qb.newQuerier(mint, maxt)}, nil
}

// ChunkQuerier is Querier for chunks. A series' chunks do not overlap and hold nothing outside of the range.
func (qb *Queryable) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return &chunkQuerier{qb.newQuerier(mint, maxt)}, nil
}

func (qb *Queryable) newQuerier(mint, maxt int64) *querier {
	q := &querier{qb: qb, mint: mint, maxt: maxt, snap: qb.set.Pin(), opened: map[*member]*openedSource{}}
	if qb.o.Expired != nil {
		q.expired = qb.o.Expired()
	}
	if qb.o.Horizon != nil {
		if h := qb.o.Horizon(); h > q.mint {
			q.mint, q.clamped = h, true
		}
	}
	q.stop, q.cancel = context.WithCancel(context.Background())
	return q
}

// recovered, deferred, turns a panic of a source into an error.
func (qb *Queryable) recovered(err *error) {
	if p := recover(); p != nil {
		qb.o.Logger.Error("a source panicked", "panic", p, "stack", string(debug.Stack()))
		*err = fmt.Errorf("panic while reading a source: %v", p)
	}
}

// querier reads one snapshot. sampleQuerier and chunkQuerier give it the two shapes of storage's interfaces.
type querier struct {
	qb         *Queryable
	snap       *Snapshot
	mint, maxt int64
	clamped    bool // mint is the horizon
	expired    *tombstone.Filter

	stop   context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines that read ahead

	mu     sync.Mutex // guards the following
	opened map[*member]*openedSource
	own    *Budget
	closed bool
}

// openedSource is a source's querier, opened by whoever needs it first.
type openedSource struct {
	once sync.Once
	q    storage.ChunkQuerier
	err  error
}

var errClosed = errors.New("querier is closed")

// Close stops reading ahead, closes what was opened and releases the snapshot. Further calls do nothing.
func (q *querier) Close() error {
	q.mu.Lock()
	closed := q.closed
	q.closed = true
	q.mu.Unlock()
	if closed {
		return nil
	}
	q.cancel()
	q.wg.Wait()
	var errs []error
	for _, o := range q.opened {
		o.once.Do(func() { o.err = errClosed })
		if o.q != nil {
			errs = append(errs, o.q.Close())
		}
	}
	if q.own != nil {
		q.own.Close()
	}
	q.snap.Release()
	return errors.Join(errs...)
}

// open returns the querier of one source.
func (q *querier) open(m *member) (storage.ChunkQuerier, error) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return nil, errClosed
	}
	o := q.opened[m]
	if o == nil {
		o = &openedSource{}
		q.opened[m] = o
	}
	q.mu.Unlock()
	o.once.Do(func() {
		if o.q, o.err = m.ChunkQuerier(q.mint, q.maxt); o.err != nil {
			o.err = fmt.Errorf("open source of the %s layer: %w", m.Layer(), o.err)
			return
		}
		o.q = q.snap.v.deleted[m].Filter().Querier(o.q, q.mint, q.maxt)
		// Of most sources nothing has expired, or all of what has: their times tell.
		o.q = q.expired.Querier(o.q, max(q.mint, m.MinTime()), min(q.maxt, m.MaxTime()))
	})
	return o.q, o.err
}

// budget returns the context's budget, or the querier's own.
func (q *querier) budget(ctx context.Context) *Budget {
	if b, ok := ctx.Value(budgetKey{}).(*Budget); ok {
		return b
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.own == nil {
		q.own = q.qb.o.Memory.NewBudget()
	}
	return q.own
}

// sources returns the members of the context's layer that have something between mint and maxt.
func (q *querier) sources(ctx context.Context, mint, maxt int64) []*member {
	layer := LayerOf(ctx)
	var out []*member
	for _, m := range q.snap.v.members {
		if (layer == Merged || m.Layer() == layer) && m.MinTime() <= maxt && m.MaxTime() >= mint {
			out = append(out, m)
		}
	}
	return out
}

// during returns ctx, charged to b, that also ends when the querier is closed.
func (q *querier) during(ctx context.Context, b *Budget) context.Context {
	ctx, cancel := context.WithCancel(block.WithMeter(block.WithBudget(ctx, b), b))
	context.AfterFunc(q.stop, cancel)
	return ctx
}

// groups is the series of a selection, each with its parts in order of precedence.
type groups interface {
	Next() bool
	At() (labels.Labels, []storage.ChunkSeries)
	Err() error
}

// selection is a Select under way.
type selection struct {
	groups
	warner
	b          *Budget
	mint, maxt int64
	limit      int // 0 is none
	yielded    int
}

// selectGroups begins to read the series that match. They are sorted by labels if sorted is set or there are several sources. What they cost, unless that is nil,
// is charged as soon as it is known.
func (q *querier) selectGroups(ctx context.Context, sorted bool, hints *storage.SelectHints, ext external, c *charger) *selection {
	mint, maxt := q.mint, q.maxt
	if hints != nil {
		mint, maxt = max(mint, hints.Start), min(maxt, hints.End)
	}
	sel := &selection{b: q.budget(ctx), mint: mint, maxt: maxt}
	var own storage.SelectHints
	if hints != nil {
		own = *hints
		sel.limit = hints.Limit
	}
	own.Start, own.End = mint, maxt
	own.DisableTrimming = true // merging looks at whole chunks anyway
	if ext.any() {
		own.Limit = 0
	}
	var members []*member
	if mint <= maxt {
		members = q.sources(ctx, mint, maxt)
	}
	ctx = q.during(ctx, sel.b)
	whole := sel.limit == 0 && !ext.any() // what is found is answered, each series by itself
	sets := make([]storage.ChunkSeriesSet, len(members))
	for i, m := range members {
		open := func() storage.ChunkSeriesSet {
			cq, err := q.open(m)
			if err != nil {
				return storage.ErrChunkSeriesSet(err)
			}
			hints := own
			// A source may sort its matchers.
			return cq.Select(ctx, sorted || len(members) > 1 || ext.any(), &hints, slices.Clone(ext.matchers)...)
		}
		if m.Layer() == Batch {
			sets[i] = q.readAhead(ctx, open)
		} else {
			sets[i] = &lazySet{open: func() storage.ChunkSeriesSet {
				set := open()
				if whole {
					if err := c.admit(set); err != nil {
						return storage.ErrChunkSeriesSet(err)
					}
				}
				return set
			}}
		}
	}
	sel.warner = warner{sets}
	charged := &chargedGroups{charger: c}
	switch {
	case ext.any():
		charged.groups = ext.groups(sets, sel.b, sel.limit)
	case len(sets) == 1:
		charged.groups = &oneSet{ChunkSeriesSet: sets[0]}
	default:
		charged.groups = merge.Sets(sets)
	}
	sel.groups = charged
	return sel
}

// Next moves on, up to the limit.
func (s *selection) Next() bool {
	if s.limit > 0 && s.yielded >= s.limit {
		return false
	}
	s.yielded++
	return s.groups.Next()
}

// oneSet is a set, in whatever order it is, as groups.
type oneSet struct {
	storage.ChunkSeriesSet
	part [1]storage.ChunkSeries
}

func (s *oneSet) At() (labels.Labels, []storage.ChunkSeries) {
	s.part[0] = s.ChunkSeriesSet.At()
	return s.part[0].Labels(), s.part[:]
}

// sampleQuerier implements storage.Querier.
type sampleQuerier struct{ *querier }

// Select implements storage.Querier. Reading begins at once; errors come from the set.
func (q *sampleQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	if hints != nil && hints.Func == seriesOnly {
		return q.selectLabels(ctx, sorted, hints, ms)
	}
	set := &seriesSet{selection: q.selectGroups(ctx, sorted, hints, q.qb.external(ms), q.estimate(ctx, hints, ms).charger(q.budget(ctx)))}
	// A query that looks at what hints say needs no trimming. The horizon must hold for it too.
	if hints == nil || (q.clamped && hints.Start < q.mint) {
		set.trim = true
	}
	return set
}

// seriesSet yields a selection's series.
type seriesSet struct {
	*selection
	trim bool
	slab []storage.ChunkSeries
	cur  storage.Series
}

func (s *seriesSet) Next() bool {
	if !s.selection.Next() {
		return false
	}
	lset, parts := s.selection.At()
	if len(parts) == 1 {
		s.cur = &plainSeries{lset: lset, part: parts[0]}
	} else {
		s.cur = &series{lset: lset, Series: merge.Series(s.keep(parts)...)}
	}
	if s.trim {
		s.cur = &trimmedSeries{Series: s.cur, mint: s.mint, maxt: s.maxt}
	}
	return true
}

// keep copies parts, which the next group overwrites.
func (s *seriesSet) keep(parts []storage.ChunkSeries) []storage.ChunkSeries {
	if cap(s.slab)-len(s.slab) < len(parts) {
		s.slab = make([]storage.ChunkSeries, 0, max(256, len(parts)))
	}
	start := len(s.slab)
	s.slab = append(s.slab, parts...)
	return s.slab[start:len(s.slab):len(s.slab)]
}

func (s *seriesSet) At() storage.Series { return s.cur }

// series is a merged series under the labels of the answer.
type series struct {
	lset labels.Labels
	storage.Series
}

func (s *series) Labels() labels.Labels { return s.lset }

// chunkQuerier implements storage.ChunkQuerier.
type chunkQuerier struct{ *querier }

// Select implements storage.ChunkQuerier.
func (q *chunkQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	return &chunkSet{
		selection: q.selectGroups(ctx, sorted, hints, q.qb.external(ms), nil),
		o:         merge.EncodeOptions{StartTimestamps: q.qb.o.StartTimestamps},
	}
}

type chunkSet struct {
	*selection
	o merge.EncodeOptions
}

func (s *chunkSet) At() storage.ChunkSeries {
	lset, parts := s.selection.At()
	return &chunkSeries{lset: lset, parts: slices.Clone(parts), mint: s.mint, maxt: s.maxt, o: s.o}
}
