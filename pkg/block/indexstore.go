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
// Blocks pin the copy that they read: one that is removed or replaced stays mapped, and counts, until the last query that has looked at it is done.
//
// It is safe for concurrent use. mu guards what stands below it and is not held while a copy is made; updating is held by the one Update at a time.
type IndexStore struct {
	o        IndexStoreOptions
	updating chan struct{}

	mu      sync.Mutex
	sizes   map[ulid.ULID]int64      // of the files
	mapped  map[ulid.ULID]*indexCopy // those that are in use
	making  map[ulid.ULID]int64      // sizes of files that are being written
	leaving int64                    // bytes of files that were removed while they are in use
	refused map[ulid.ULID]time.Time  // until when no copies are made, as they were wrong
}

// OpenIndexStore opens the folder. What is in it from another process is used.
func OpenIndexStore(o IndexStoreOptions) (*IndexStore, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Metrics == nil {
		o.Metrics = NewIndexMetrics(nil)
	}
	s := &IndexStore{
		o: o, updating: make(chan struct{}, 1), sizes: map[ulid.ULID]int64{}, mapped: map[ulid.ULID]*indexCopy{},
		making: map[ulid.ULID]int64{}, refused: map[ulid.ULID]time.Time{},
	}
	if err := s.scan(); err != nil {
		return nil, fmt.Errorf("open folder of indexes: %w", err)
	}
	s.measure()
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

// used returns the bytes on disk: also those of files that were removed and of such as are being written.
func (s *IndexStore) used() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes()
}

func (s *IndexStore) bytes() int64 {
	n := s.leaving
	for _, size := range s.sizes {
		n += size
	}
	for _, size := range s.making {
		n += size
	}
	return n
}

// measure is called, with the lock, after each change.
func (s *IndexStore) measure() { s.o.Metrics.bytes.Set(float64(s.bytes())) }

func (s *IndexStore) size(id ulid.ULID) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sizes[id]
}

func (s *IndexStore) remove(id ulid.ULID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removeFile(id)
}

// removeFile is remove for who holds the lock.
func (s *IndexStore) removeFile(id ulid.ULID) error {
	if err := ignoreMissing(os.Remove(s.name(id))); err != nil {
		return err
	}
	s.leave(id)
	delete(s.sizes, id)
	s.measure()
	return nil
}

// reserve begins to make a copy: false if there is no room now, or if it is being made.
func (s *IndexStore) reserve(info copyInfo, limit int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.making[info.id] > 0 || s.bytes()+info.fileSize() > limit {
		return false
	}
	s.making[info.id] = info.fileSize()
	s.measure()
	return true
}

// settle ends what reserve has begun.
func (s *IndexStore) settle(id ulid.ULID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.making, id)
	s.measure()
}

// Update makes the copies that are missing for blocks of a bucket, all that there are, and removes those of others. One that cannot be made does
// not keep the others from it, unless the context ends. Mapped blocks need no copies. Blocks may be closed meanwhile.
func (s *IndexStore) Update(ctx context.Context, blocks []*Block) error {
	select {
	case s.updating <- struct{}{}:
		defer func() { <-s.updating }()
	case <-ctx.Done():
		return ctx.Err()
	}
	limit := s.limit()
	plan := s.plan(blocks, limit)
	errs := s.clean(plan)
	for _, b := range blocks {
		b.followCopy() // so that what was removed is free before something takes its place
	}
	var g errgroup.Group
	g.SetLimit(copiesAtOnce)
	var mu sync.Mutex
	for _, p := range plan {
		if p.file == s.size(p.info.id) || ctx.Err() != nil {
			continue
		}
		g.Go(func() error {
			if !s.reserve(p.info, limit) {
				return nil // queries still use what was removed: the next Update makes it
			}
			defer s.settle(p.info.id)
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

// clean removes copies that are not planned, or planned otherwise.
func (s *IndexStore) clean(plan []planned) (errs []error) {
	keep := map[ulid.ULID]int64{}
	for _, p := range plan {
		keep[p.info.id] = p.file
	}
	s.mu.Lock()
	var remove []ulid.ULID
	for id, size := range s.sizes {
		if keep[id] != size {
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

// limit returns how many bytes all copies may take: of what the disk has for us, and for them already, half at most.
func (s *IndexStore) limit() int64 {
	limit := s.o.Limit
	if s.o.Room != nil {
		if room, known := s.o.Room(); known {
			limit = min(limit, (s.used()+room)/2)
		}
	}
	return limit
}

// plan says which copies should be there, those of the newest blocks first. A copy that is there stays until it goes beyond its bounds by some
// more than a new one may reach: a limit that moves with the free space of the disk would have the same ones made and removed by turns.
func (s *IndexStore) plan(blocks []*Block, limit int64) []planned {
	blocks = slices.Clone(blocks)
	slices.SortFunc(blocks, func(a, b *Block) int {
		return cmp.Or(cmp.Compare(b.meta.MaxTime, a.meta.MaxTime), b.meta.ULID.Compare(a.meta.ULID))
	})
	eighths := func(n int64) int64 { return limit * n / 8 }
	var out []planned
	used := int64(0)
	for _, b := range blocks {
		r, ok := b.r.(*bucketReader)
		if !ok || s.isRefused(r.id) {
			continue
		}
		p := planned{b: b, r: r, info: copyInfo{id: r.id, tag: r.tag, size: r.size(indexFile)}}
		p.file = p.info.fileSize()
		largest, upTo := limit/wholeShare, eighths(6)
		if s.size(r.id) == p.file {
			largest, upTo = limit/(wholeShare-1), eighths(7)
		}
		if p.file > largest || used+p.file > upTo {
			sections, known := b.meta.indexSections(p.info.size)
			if !known {
				continue
			}
			p.info.start, p.info.end = sections.Series, sections.Postings
			p.file = p.info.fileSize()
			upTo = eighths(7)
			if s.size(r.id) == p.file {
				upTo = limit
			}
		}
		if used+p.file > upTo {
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
	p.b.followCopy()
	return nil
}

// write makes a copy for which there is a reservation, in one step, and only of an index whose header can be read.
func (s *IndexStore) write(info copyInfo, data io.Reader) error {
	name := s.name(info.id)
	tmp := name + tmpSuffix
	if err := writeCopy(tmp, info, data); err != nil {
		return err
	}
	if err := checkCopy(tmp); err != nil {
		if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnusable) {
			s.mu.Lock()
			s.refused[info.id] = time.Now().Add(refuseFor)
			s.mu.Unlock()
		}
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(tmp, name); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	s.o.Metrics.made.Inc()
	s.leave(info.id)
	s.sizes[info.id] = info.fileSize()
	s.measure()
	return nil
}

// checkCopy opens a copy that was just written, to see whether its header is right.
func checkCopy(name string) error {
	c, err := openCopy(name)
	if err != nil {
		return err
	}
	return errors.Join(c.checkSections(), c.close())
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
	if !ok || s.size(m.ULID) > 0 || info.fileSize() > s.o.Limit/wholeShare || !s.reserve(info, s.o.Limit) {
		return nil
	}
	defer s.settle(m.ULID)
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
