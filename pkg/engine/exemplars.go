package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/fileutil"

	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/tombstone"
)

const (
	exemplarsFile = "exemplars"
	// exemplarLateness is how far behind a series' newest exemplar another one may be, in milliseconds.
	exemplarLateness = 10 * 60 * 1000
)

// exemplars is a bounded ring of the newest exemplars; Prometheus's own, which has a lock of its own. Like metadata it is saved whenever a log is about to
// go. A restart reads the file and then replays the logs: of what is in both, the ring keeps one. Until that is done, what each generation brings is kept apart, as a ring's
// order is that of arrival; in three rings at most, however many generations there are: of the log that is being read, of those that were, and of what arrives.
type exemplars struct {
	size     int64 // of the ring; without one nothing is kept, saved or loaded
	changed  atomic.Bool
	rejected prometheus.Counter
	saving   sync.Mutex // held while the file is written, so that none that is older replaces it

	mu   sync.RWMutex // guards the pointers: held for reading while a ring is added to, for writing while another one takes its place
	ring *tsdb.CircularExemplarStorage
	// apart are the rings of generations while logs are replayed, newest first; nil afterwards. What arrives meanwhile has one ring, with the number arriving.
	apart    map[uint64]*tsdb.CircularExemplarStorage
	arriving uint64
}

// seriesExemplar is an exemplar with its series.
type seriesExemplar struct {
	exemplar.Exemplar

	series labels.Labels
}

func newExemplars(size int64, reg prometheus.Registerer) (*exemplars, error) {
	ring, err := newRing(size)
	if err != nil {
		return nil, err
	}
	rejected := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "millrace_exemplars_dropped_total", Help: "Exemplars that were not kept as they are too far behind their series' newest.",
	})
	if err := reg.Register(rejected); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return &exemplars{ring: ring, size: size, rejected: rejected}, nil
}

func newRing(size int64) (*tsdb.CircularExemplarStorage, error) {
	s, err := tsdb.NewCircularExemplarStorage(size, tsdb.NewExemplarMetrics(prometheus.NewRegistry()), exemplarLateness)
	if err != nil {
		return nil, fmt.Errorf("make room for exemplars: %w", err)
	}
	ring, _ := s.(*tsdb.CircularExemplarStorage) // what it is documented to be
	return ring, nil
}

// keepApart keeps what generations bring from now on apart, until join. No log has a higher number than the one given, and what arrives has no lower one.
func (x *exemplars) keepApart(highest uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.apart, x.arriving = map[uint64]*tsdb.CircularExemplarStorage{}, highest+1
}

// forget gives up what a replay that failed has brought.
func (x *exemplars) forget(generation uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.apart, generation)
}

// lock takes the lock for reading and returns the ring for what a generation brings.
func (x *exemplars) lock(generation uint64) *tsdb.CircularExemplarStorage {
	for {
		x.mu.RLock()
		if x.apart == nil {
			return x.ring
		}
		generation = min(generation, x.arriving)
		if ring := x.apart[generation]; ring != nil {
			return ring
		}
		x.mu.RUnlock()
		x.makeRoom(generation)
	}
}

func (x *exemplars) makeRoom(generation uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.apart == nil || x.apart[generation] != nil {
		return
	}
	ring, err := newRing(x.size)
	if err != nil {
		ring = x.ring // which was made in the same way
	}
	x.apart[generation] = ring
}

// wasRead puts what a log brought below what later generations did, where these brought something. None that is between them is still to be read.
func (x *exemplars) wasRead(generation uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	numbers := slices.Sorted(maps.Keys(x.apart))
	at, found := slices.BinarySearch(numbers, generation)
	if !found || at+1 == len(numbers) {
		return
	}
	both, err := newRing(x.size)
	if err != nil {
		return // join does it
	}
	later := numbers[at+1]
	pour(both, x.apart[generation])
	pour(both, x.apart[later])
	x.apart[later] = both
	delete(x.apart, generation)
}

// pour adds what a ring holds to another.
func pour(to, from *tsdb.CircularExemplarStorage) {
	for _, e := range entries(from) {
		_ = to.AddExemplar(e.series, e.Exemplar) // its own ring has taken it
	}
}

// join brings together, in the order of generations, what came while logs were replayed.
func (x *exemplars) join() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, generation := range slices.Sorted(maps.Keys(x.apart)) {
		pour(x.ring, x.apart[generation])
	}
	x.apart = nil
}

// add keeps a request's exemplars but those that were deleted, and says whether it has any. One that the ring does not want is counted; the samples beside it are
// not touched by that.
func (x *exemplars) add(generation uint64, b *ingest.Batch, deleted *tombstone.Filter) bool {
	if x.size <= 0 || !slices.ContainsFunc(b.Series, func(s ingest.Series) bool { return len(s.Exemplars) > 0 }) {
		return false
	}
	ring := x.lock(generation)
	defer x.mu.RUnlock()
	for i := range b.Series {
		s := &b.Series[i]
		if len(s.Exemplars) == 0 {
			continue
		}
		series := ingest.KeyLabels(s.Key)
		for _, ex := range s.Exemplars {
			if deleted.Deletes(series, ex.T) {
				continue
			}
			err := ring.AddExemplar(series, exemplar.Exemplar{Labels: ex.Labels, Value: ex.V, Ts: ex.T, HasTs: ex.T != 0})
			if err != nil {
				x.rejected.Inc()
			}
		}
		x.changed.Store(true)
	}
	return true
}

var errApart = errors.New("logs are not replayed yet, so exemplars could be missing")

// ExemplarQuerier implements storage.ExemplarQueryable.
func (x *exemplars) ExemplarQuerier(ctx context.Context) (storage.ExemplarQuerier, error) {
	x.mu.RLock()
	ring, apart := x.ring, x.apart != nil
	x.mu.RUnlock()
	if apart {
		return nil, errApart
	}
	return ring.ExemplarQuerier(ctx)
}

func (x *exemplars) current() *tsdb.CircularExemplarStorage {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.ring
}

// delete takes exemplars out of the ring and its file: it has those that are left put into another one. Requests that bring exemplars wait for
// that, a few milliseconds for 10,000 of them.
func (x *exemplars) delete(deleted *tombstone.Filter, path string) error {
	if x.size <= 0 || !slices.ContainsFunc(x.all(), func(e seriesExemplar) bool { return deleted.Deletes(e.series, e.Ts) }) {
		return nil
	}
	ring, err := newRing(x.size)
	if err != nil {
		return err
	}
	x.mu.Lock()
	for _, e := range entries(x.ring) {
		if !deleted.Deletes(e.series, e.Ts) {
			_ = ring.AddExemplar(e.series, e.Exemplar) // the other ring has taken it
		}
	}
	x.ring = ring
	x.mu.Unlock()
	x.changed.Store(true)
	return x.save(path)
}

// all returns the ring's content, oldest first. Label sets are shared with it.
func (x *exemplars) all() []seriesExemplar { return entries(x.current()) }

func entries(ring *tsdb.CircularExemplarStorage) []seriesExemplar {
	var out []seriesExemplar
	_ = ring.IterateExemplars(func(series labels.Labels, e exemplar.Exemplar) error {
		out = append(out, seriesExemplar{e, series})
		return nil
	})
	return out
}

// save writes the ring to its file. The ring is locked only while it is copied.
func (x *exemplars) save(path string) error {
	x.saving.Lock()
	defer x.saving.Unlock()
	if x.size <= 0 || !x.changed.Swap(false) {
		return nil
	}
	err := writeFileBy(filepath.Join(path, exemplarsFile), func(w io.Writer) error { return encodeExemplars(w, x.all()) })
	if err != nil {
		x.changed.Store(true)
		return fmt.Errorf("save exemplars: %w", err)
	}
	return nil
}

// load fills the ring from its file, if there is one.
func (x *exemplars) load(name string) error {
	f, err := fileutil.OpenMmapFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = decodeExemplars(f.Bytes(), func(e seriesExemplar) {
		_ = x.current().AddExemplar(e.series, e.Exemplar) // an attempt to open that failed may have added it before
	})
	return errors.Join(err, f.Close())
}

// loadExemplars reads what was saved before the logs are replayed. A file that cannot be read is moved aside: the engine does without it.
func (e *Engine) loadExemplars() {
	if e.exemplars.size <= 0 {
		return
	}
	name := filepath.Join(e.data.path, exemplarsFile)
	err := e.exemplars.load(name)
	if err == nil {
		return
	}
	aside, failed := e.moveAside(name)
	if failed != nil {
		err = errors.Join(err, failed)
	} else {
		err = fmt.Errorf("their file was moved to %s: %w", aside, err)
	}
	e.report("exemplars", fmt.Errorf("saved exemplars are lost: %w", err))
}
