package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/tombstone"
)

// tombstonesDir, below the data path, has a file for each tombstone that is in force, under its name in the bucket.
const tombstonesDir = tombstone.Folder

// deletions is the tombstones in force: those made here, and those that others put into the bucket. All of them are files below the data
// path, so that a start without the bucket knows them. Under the lock nothing is taken but the set's own, and no I/O is done.
type deletions struct {
	dir   string
	store *tombstone.Store
	set   *serving.Set
	gauge prometheus.Gauge

	mu       sync.Mutex
	known    map[ulid.ULID]*tombstone.Tombstone
	inBucket map[ulid.ULID]bool // those that the bucket was seen to have, or that were put there
	private  map[ulid.ULID]bool // those made by this process and never sent to the bucket: no import can have taken them for earlier ones
}

func newDeletions(path string, store *tombstone.Store, set *serving.Set, gauge prometheus.Gauge) *deletions {
	return &deletions{
		dir: filepath.Join(path, tombstonesDir), store: store, set: set, gauge: gauge,
		known: map[ulid.ULID]*tombstone.Tombstone{}, inBucket: map[ulid.ULID]bool{}, private: map[ulid.ULID]bool{},
	}
}

// load reads the files. One that cannot be read is an error: what it deletes would come back.
func (d *deletions) load() error {
	if err := os.MkdirAll(d.dir, 0o750); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return fmt.Errorf("read tombstones: %w", err)
	}
	var all []*tombstone.Tombstone
	for _, entry := range entries {
		name := filepath.Join(d.dir, entry.Name())
		if strings.HasSuffix(name, goneSuffix) {
			_ = os.Remove(name) // was being written when the process ended: nobody was told that it is there
			continue
		}
		id, ok := tombstone.ParseFileName(entry.Name())
		if !ok {
			continue
		}
		t, err := readTombstone(name, id)
		if err != nil {
			return fmt.Errorf("%s: %w (what it deletes would be seen again; to give the deletion up, stop Millrace and remove the file)", name, err)
		}
		all = append(all, t)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range all {
		d.known[t.ID] = t
	}
	d.show()
	return nil
}

func readTombstone(name string, id ulid.ULID) (*tombstone.Tombstone, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > tombstone.MaxSize {
		return nil, fmt.Errorf("%w: it has %d bytes", tombstone.ErrCorrupt, info.Size())
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	t, err := tombstone.Parse(raw)
	if err == nil && t.ID != id {
		err = fmt.Errorf("%w: it is tombstone %s", tombstone.ErrCorrupt, t.ID)
	}
	return t, err
}

// save writes a tombstone's file, synced.
func (d *deletions) save(t *tombstone.Tombstone) error {
	raw, err := t.Marshal()
	if err != nil {
		return err
	}
	name := filepath.Join(d.dir, tombstone.FileName(t.ID))
	if err := writeFile(name, raw); err != nil {
		_ = os.Remove(name) // should it be there but not be known to stay
		return fmt.Errorf("save tombstone: %w", err)
	}
	return nil
}

// add lets queries that begin from now on not see what these tombstones delete.
func (d *deletions) add(ts []*tombstone.Tombstone) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := len(d.known)
	for _, t := range ts {
		d.known[t.ID] = t
	}
	if len(d.known) > before {
		d.show()
	}
}

// begin adds a tombstone of which nobody else can know yet.
func (d *deletions) begin(t *tombstone.Tombstone) {
	d.mu.Lock()
	d.private[t.ID] = true
	d.mu.Unlock()
	d.add([]*tombstone.Tombstone{t})
}

// covers says whether a tombstone would hide nothing that another one does not hide already. Another one that may be in the bucket does not count: what has been
// imported since lists it as earlier.
func (d *deletions) covers(t *tombstone.Tombstone) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range d.private {
		if k := d.known[id]; k != nil && k.Same(t) {
			return true
		}
	}
	return false
}

// show lets queries know. The lock is held.
func (d *deletions) show() {
	d.set.Delete(d.sorted())
	d.gauge.Set(float64(len(d.known)))
}

func (d *deletions) sorted() []*tombstone.Tombstone {
	return slices.SortedFunc(maps.Values(d.known), tombstone.Compare)
}

// all returns the tombstones in force, oldest first.
func (d *deletions) all() []*tombstone.Tombstone {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sorted()
}

func (d *deletions) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.known)
}

// missing returns those of ts that are not known.
func (d *deletions) missing(ts []*tombstone.Tombstone) []*tombstone.Tombstone {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(ts), func(t *tombstone.Tombstone) bool { return d.known[t.ID] != nil })
}

// uploaded returns which are in the bucket, as far as is known.
func (d *deletions) uploaded() map[ulid.ULID]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.inBucket)
}

// upload brings what the bucket does not have there. It comes before every block of a later generation.
func (d *deletions) upload(ctx context.Context) error {
	there := d.uploaded()
	for _, t := range d.all() {
		if there[t.ID] {
			continue
		}
		d.mu.Lock()
		delete(d.private, t.ID) // whatever becomes of the request
		d.mu.Unlock()
		if err := d.store.Put(ctx, t); err != nil {
			return err
		}
		d.mu.Lock()
		d.inBucket[t.ID] = true
		d.mu.Unlock()
	}
	return nil
}

// listed takes over what a listing of the bucket shows. The listing began when the bucket was known to have before. needed says whether there
// is something left that a tombstone hides: then one that the bucket does not have any more is put there again, else it is forgotten.
func (d *deletions) listed(ts []*tombstone.Tombstone, before map[ulid.ULID]bool, needed func(*tombstone.Tombstone) bool) error {
	var errs []error
	for _, t := range d.missing(ts) {
		errs = append(errs, d.save(t))
	}
	d.add(ts)
	var gone []*tombstone.Tombstone
	shown := map[ulid.ULID]bool{}
	for _, t := range ts {
		shown[t.ID] = true
	}
	for _, t := range d.all() {
		if before[t.ID] && !shown[t.ID] && !needed(t) {
			gone = append(gone, t)
		}
	}
	for _, t := range gone {
		// Before the file, as without it nobody would know.
		if err := os.Remove(filepath.Join(d.dir, tombstone.FileName(t.ID))); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("forget tombstone: %w", err))
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range before {
		if !shown[id] {
			delete(d.inBucket, id)
		}
	}
	for id := range shown {
		d.inBucket[id] = true
	}
	if len(gone) == 0 {
		return errors.Join(errs...)
	}
	for _, t := range gone {
		delete(d.known, t.ID)
	}
	d.show()
	return errors.Join(errs...)
}

// highest is the newest generation of the writer that a tombstone concerns: none that takes requests may have this number.
func (d *deletions) highest(writer map[string]string) uint64 {
	highest := uint64(0)
	for _, t := range d.all() {
		if maps.Equal(t.Writer, writer) {
			highest = max(highest, t.Generation)
		}
	}
	return highest
}

// of returns what the tombstones delete of a source.
func (d *deletions) of(s tombstone.Stored) *tombstone.Filter { return tombstone.NewFilter(d.all(), s) }

// TombstoneInfo is one deletion that is in force. Times are in milliseconds since 1970.
type TombstoneInfo struct {
	ULID       ulid.ULID `json:"ulid"`
	Match      []string  `json:"match"`
	MinTime    int64     `json:"minTime"`
	MaxTime    int64     `json:"maxTime"`
	Generation uint64    `json:"generation"`
	Created    int64     `json:"created"`
	Uploaded   bool      `json:"uploaded"`
	// Remaining is how many generations and blocks there are that the deletion may concern and was not applied to.
	Remaining int `json:"remaining"`
}

// Tombstones describes the deletions that are in force.
type Tombstones struct {
	Count  int             `json:"count"`
	Newest []TombstoneInfo `json:"newest"` // the last ones made, newest first
}

// shownTombstones is how many of them /api/v1/layers describes.
const shownTombstones = 100

func (d *deletions) describe(sources []tombstone.Stored) Tombstones {
	all, there := d.all(), d.uploaded()
	out := Tombstones{Count: len(all), Newest: []TombstoneInfo{}}
	for _, t := range slices.Backward(all) {
		if len(out.Newest) == shownTombstones {
			break
		}
		info := TombstoneInfo{
			ULID: t.ID, MinTime: t.MinTime, MaxTime: t.MaxTime, Generation: t.Generation, Created: t.Created, Uploaded: there[t.ID],
		}
		for _, s := range t.Selectors {
			info.Match = append(info.Match, s.String())
		}
		for _, s := range sources {
			if t.On(s) != tombstone.None {
				info.Remaining++
			}
		}
		out.Newest = append(out.Newest, info)
	}
	return out
}

// localSources are the generations in memory or in logs and the blocks on local disk.
func (e *Engine) localSources() []tombstone.Stored {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []tombstone.Stored
	for _, l := range e.unread {
		out = append(out, l.stored)
	}
	for _, g := range e.generations {
		out = append(out, g.stored)
	}
	for _, b := range e.local {
		out = append(out, b.source.stored())
	}
	return out
}

// storedGeneration is a generation of this engine as tombstones look at it: its times may change.
func (e *Engine) storedGeneration(number uint64) tombstone.Stored {
	return tombstone.Stored{
		Writer: e.cfg.Storage.externalLabels(), MinTime: minTime, MaxTime: maxTime, MinGeneration: number, MaxGeneration: number,
		Instance: e.instance(),
	}
}

// takeTombstones takes over the tombstones of a listing; listed are the blocks of the bucket, all of them.
func (e *Engine) takeTombstones(ts []*tombstone.Tombstone, before map[ulid.ULID]bool, listed map[ulid.ULID]block.Listed) error {
	sources := e.localSources()
	for _, l := range listed {
		sources = append(sources, l.Meta.Stored())
	}
	return e.data.deletions.listed(ts, before, func(t *tombstone.Tombstone) bool {
		return slices.ContainsFunc(sources, func(s tombstone.Stored) bool { return t.On(s) != tombstone.None })
	})
}

// Deletion is what is asked to be deleted.
type Deletion struct {
	// Selectors say which series are meant; one of them must match.
	Selectors []tombstone.Selector
	// MinTime and MaxTime bound the samples, both inclusive, in milliseconds.
	MinTime, MaxTime int64
}

// ErrTooManyTombstones says that no further deletion is possible before others are done.
var ErrTooManyTombstones = errors.New("there are too many deletions whose samples are not erased yet")

// DeleteSeries hides samples of which the request to store them was answered before the call, from every query that begins after it, for good:
// when it returns nil, that is on the disk. Batch jobs erase them. What is accepted later is not hidden.
func (e *Engine) DeleteSeries(ctx context.Context, d Deletion) error {
	if err := e.enter(); err != nil {
		return err
	}
	defer e.wg.Done()
	if err := e.complete(ctx); err != nil { // exemplars are deleted from what is there
		return err
	}
	claimed, err := e.numberHeld(ctx)
	if err != nil {
		return unavailable(err.Error(), refusedFor)
	}
	e.deleting.Lock()
	defer e.deleting.Unlock()
	if err := ctx.Err(); err != nil {
		return err // has waited for others until its caller had gone
	}
	if err := e.refusal.Load(); err != nil {
		return unavailable((*err).Error(), refusedFor) // the order of what is accepted is another writer's
	}
	if now, err := e.data.claim.Held(); err == nil && now != claimed {
		return unavailable("this server has just become the bucket's writer", refusedFor)
	}
	if limit, n := e.cfg.Storage.MaxTombstones, e.data.deletions.count(); n >= limit {
		return fmt.Errorf("%w: %d, --storage.max-tombstones is %d; 'millrace batch run --force' and clean_tombstones erase what they may", ErrTooManyTombstones, n, limit)
	}
	generation, err := e.lastAccepted()
	if err != nil {
		return err
	}
	t, err := tombstone.New(generation, d.MinTime, d.MaxTime, d.Selectors, e.cfg.Storage.externalLabels(), e.cfg.Storage.ExternalLabels)
	if err != nil {
		return err
	}
	t.Instance = e.instance()
	if e.data.deletions.covers(t) {
		return nil // nothing was accepted since
	}
	// The exemplars have no generation, so they go at once. They go first: what a crash leaves is a deletion that was not answered.
	if err := e.exemplars.delete(tombstone.FilterOf([]*tombstone.Tombstone{t}), e.data.path); err != nil {
		return err
	}
	if err := e.data.deletions.save(t); err != nil {
		return err
	}
	e.data.deletions.begin(t)
	e.metrics.deletions.Inc()
	e.logger.Info("deleted series", "tombstone", t.ID, "match", t.Selectors, "from", stamp(t.MinTime), "to", stamp(t.MaxTime), "generation", t.Generation)
	signal(e.uploadable)
	return nil
}

// stamp writes a time for people; its ends are those of all times.
func stamp(ms int64) string {
	switch ms {
	case minTime:
		return "the beginning"
	case maxTime:
		return "the end"
	}
	return time.UnixMilli(ms).UTC().Format(time.RFC3339Nano)
}

// lastAccepted returns a generation such that it and those before it hold all that was accepted until now, and nothing else ever.
func (e *Engine) lastAccepted() (uint64, error) {
	g := e.activeGeneration()
	if g == nil {
		return 0, errStopping
	}
	if g.mem.Stats().Samples == 0 && !g.exemplars.Load() {
		return g.Number - 1, nil
	}
	if err := e.rotate(); err != nil {
		return 0, fmt.Errorf("seal what was accepted: %w", err)
	}
	return g.Number, nil
}
