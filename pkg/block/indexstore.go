package block

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"
)

const (
	// copiesAtOnce is how many copies are made at the same time, so that queries have the network for themselves, or nearly so.
	copiesAtOnce = 2
	// wholeShare is the part of the limit up to which an index is copied whole.
	wholeShare = 8
	// minCopyRate is the speed, in bytes per second, below which to copy an index is given up.
	minCopyRate = 64 << 10
)

// IndexStoreOptions configures an IndexStore.
type IndexStoreOptions struct {
	Dir   string // made if it is missing; nothing else may be in it
	Limit int64  // bytes that all copies may take
	// Room returns how many bytes the disk has for us; copies take half of that at most. nil: it is not known.
	Room    func() (bytes int64, known bool)
	Metrics *IndexMetrics // may be nil
	Logger  *slog.Logger  // may be nil
}

// IndexMetrics are those of an IndexStore. They outlive it, as the folder may be opened anew.
type IndexMetrics struct {
	made, damaged prometheus.Counter
	bytes         prometheus.Gauge
}

// NewIndexMetrics registers the metrics. reg may be nil.
func NewIndexMetrics(reg prometheus.Registerer) *IndexMetrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	f := promauto.With(reg)
	return &IndexMetrics{
		made: f.NewCounter(prometheus.CounterOpts{
			Name: "millrace_block_index_copies_total", Help: "Indexes of the bucket's blocks that were copied to the local disk.",
		}),
		damaged: f.NewCounter(prometheus.CounterOpts{
			Name: "millrace_block_index_copies_damaged_total", Help: "Local copies of indexes that could not be used and were removed.",
		}),
		bytes: f.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_block_index_copies_bytes", Help: "Disk space that local copies of indexes take.",
		}),
	}
}

// IndexStore keeps copies of the indexes of a bucket's blocks in a local folder: with one, a query asks the bucket for chunks only, in one round
// trip. Newest blocks come first; indexes that are too large for the limit are copied without their series, as long as that fits.
//
// It is safe for concurrent use. mu guards what stands below it and is not held while a copy is made; updating is held by the one Update at a time.
type IndexStore struct {
	o        IndexStoreOptions
	updating chan struct{}

	mu      sync.Mutex
	sizes   map[ulid.ULID]int64 // of the files
	refused map[ulid.ULID]bool  // blocks whose indexes were wrong already when they were copied
}

// OpenIndexStore opens the folder. What is in it from another process is used.
func OpenIndexStore(o IndexStoreOptions) (*IndexStore, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = NewIndexMetrics(nil)
	}
	s := &IndexStore{o: o, updating: make(chan struct{}, 1), sizes: map[ulid.ULID]int64{}, refused: map[ulid.ULID]bool{}}
	if err := s.scan(); err != nil {
		return nil, fmt.Errorf("open folder of indexes: %w", err)
	}
	o.Metrics.bytes.Set(float64(s.used()))
	return s, nil
}

// scan finds the copies that are there, and removes what an interruption has left.
func (s *IndexStore) scan() error {
	if err := os.MkdirAll(s.o.Dir, 0o750); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.o.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, err := ulid.ParseStrict(e.Name())
		if err != nil {
			if filepath.Ext(e.Name()) == tmpSuffix {
				if err := os.Remove(filepath.Join(s.o.Dir, e.Name())); err != nil {
					return err
				}
			}
			continue
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		s.sizes[id] = info.Size()
	}
	return nil
}

func (s *IndexStore) name(id ulid.ULID) string { return filepath.Join(s.o.Dir, id.String()) }

func (s *IndexStore) used() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, size := range s.sizes {
		n += size
	}
	return n
}

func (s *IndexStore) size(id ulid.ULID) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sizes[id]
}

// open returns the copy of a block's index; nil if there is none.
func (s *IndexStore) open(id ulid.ULID, tag uint32, size int64) *indexCopy {
	if s.size(id) == 0 {
		return nil
	}
	c, err := openCopy(s.name(id))
	if err == nil && (c.id != id || c.tag != tag || c.size != size) {
		err = errors.Join(fmt.Errorf("%w: it is of another block", ErrUnusable), c.close())
	}
	if err != nil {
		s.discard(id, err)
		return nil
	}
	return c
}

// discard removes a copy that cannot be used.
func (s *IndexStore) discard(id ulid.ULID, cause error) {
	s.o.Metrics.damaged.Inc()
	s.o.Logger.Warn("a local copy of an index cannot be used and is made again", "block", id, "err", cause)
	if err := s.remove(id); err != nil {
		s.o.Logger.Warn("removing a local copy of an index failed", "block", id, "err", err)
	}
}

// refuse removes a copy and lets none take its place: the block is read from the bucket, where the fault may be.
func (s *IndexStore) refuse(id ulid.ULID) {
	s.mu.Lock()
	s.refused[id] = true
	s.mu.Unlock()
	s.discard(id, fmt.Errorf("%w: what was copied was wrong already", ErrCorrupt))
}

func (s *IndexStore) isRefused(id ulid.ULID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused[id]
}

func (s *IndexStore) remove(id ulid.ULID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ignoreMissing(os.Remove(s.name(id))); err != nil {
		return err
	}
	s.o.Metrics.bytes.Sub(float64(s.sizes[id]))
	delete(s.sizes, id)
	return nil
}

// Update makes the copies that are missing for blocks of a bucket, all that there are, and removes those of others. One that cannot be made does
// not keep the others from it, unless the context ends. Mapped blocks need no copies.
func (s *IndexStore) Update(ctx context.Context, blocks []*Block) error {
	select {
	case s.updating <- struct{}{}:
		defer func() { <-s.updating }()
	case <-ctx.Done():
		return ctx.Err()
	}
	plan := s.plan(blocks)
	errs := s.clean(plan)
	var g errgroup.Group
	g.SetLimit(copiesAtOnce)
	var mu sync.Mutex
	for _, p := range plan {
		if p.file == s.size(p.b.meta.ULID) || ctx.Err() != nil {
			continue
		}
		g.Go(func() error {
			if err := s.fetch(ctx, p); err != nil && !errors.Is(err, ErrGone) {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("copy index of block %s: %w", p.b.meta.ULID, err))
			}
			return nil
		})
	}
	_ = g.Wait()
	return cmp.Or(ctx.Err(), errors.Join(errs...))
}

// clean removes copies that are not planned.
func (s *IndexStore) clean(plan []planned) (errs []error) {
	keep := map[ulid.ULID]bool{}
	for _, p := range plan {
		keep[p.b.meta.ULID] = true
	}
	s.mu.Lock()
	var remove []ulid.ULID
	for id := range s.sizes {
		if !keep[id] {
			remove = append(remove, id)
		}
	}
	s.mu.Unlock()
	for _, id := range remove {
		if err := s.remove(id); err != nil {
			errs = append(errs, fmt.Errorf("remove copy of an index: %w", err))
		}
	}
	return errs
}

// planned is a copy that should be there.
type planned struct {
	b    *Block
	r    *bucketReader
	info copyInfo
	file int64 // bytes
}

// plan says which copies should be there, those of the newest blocks first.
func (s *IndexStore) plan(blocks []*Block) []planned {
	limit := s.o.Limit
	if s.o.Room != nil {
		if room, known := s.o.Room(); known {
			limit = min(limit, s.used()+room/2)
		}
	}
	blocks = slices.Clone(blocks)
	slices.SortFunc(blocks, func(a, b *Block) int {
		return cmp.Or(cmp.Compare(b.meta.MaxTime, a.meta.MaxTime), b.meta.ULID.Compare(a.meta.ULID))
	})
	var out []planned
	used := int64(0)
	for _, b := range blocks {
		r, ok := b.r.(*bucketReader)
		if !ok || s.isRefused(r.id) {
			continue
		}
		p := planned{b: b, r: r, info: copyInfo{id: r.id, tag: r.tag, size: r.size(indexFile)}}
		if p.file = p.info.fileSize(); p.file > limit/wholeShare || used+p.file > limit-limit/4 {
			sections, known := b.meta.indexSections(p.info.size)
			if !known {
				continue
			}
			p.info.start, p.info.end = sections.Series, sections.Postings
			p.file = p.info.fileSize()
		}
		if used+p.file > limit {
			continue
		}
		used += p.file
		out = append(out, p)
	}
	return out
}

// fetch makes a copy and lets the block use it.
func (s *IndexStore) fetch(ctx context.Context, p planned) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute+time.Duration(p.file/minCopyRate)*time.Second)
	defer cancel()
	data := p.open(ctx)
	defer data.Close()
	if err := s.write(p.info, data); err != nil {
		return cmp.Or(ctx.Err(), err)
	}
	p.r.cache.metrics.fetched.Add(float64(p.info.dataSize()))
	p.b.useCopy()
	return nil
}

func (s *IndexStore) write(info copyInfo, data io.Reader) error {
	if err := writeCopy(s.name(info.id), info, data); err != nil {
		return err
	}
	s.o.Metrics.made.Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.o.Metrics.bytes.Add(float64(info.fileSize() - s.sizes[info.id]))
	s.sizes[info.id] = info.fileSize()
	return nil
}

// open returns the bytes that go to the copy. They come from the bucket, whatever copy there is: the block may be closed meanwhile, and its
// mapped memory go with it.
func (p planned) open(ctx context.Context) *indexStream {
	spans := []span{{0, p.info.size}}
	if !p.info.whole() {
		spans = []span{{0, p.info.start}, {p.info.end, p.info.size - p.info.end}}
	}
	return &indexStream{ctx: ctx, r: p.r, spans: spans}
}

// Adopt copies the index of a block that is in the bucket, or about to be, from a local folder, so that it need not be fetched. A copy that is too
// large is left to Update.
func (s *IndexStore) Adopt(dir string, m Meta) error {
	_, sizes, size, ok := segmentNames(&m)
	info := copyInfo{id: m.ULID, tag: sizesTag(append([]int64{size}, sizes...)), size: size}
	if !ok || s.size(m.ULID) > 0 || info.fileSize() > s.o.Limit/wholeShare || s.used()+info.fileSize() > s.o.Limit {
		return nil
	}
	f, err := os.Open(filepath.Join(dir, IndexFilename))
	if err != nil {
		return fmt.Errorf("copy index of block %s: %w", m.ULID, err)
	}
	defer f.Close()
	if err := s.write(info, f); err != nil {
		return fmt.Errorf("copy index of block %s: %w", m.ULID, err)
	}
	return nil
}
