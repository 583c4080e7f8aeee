package engine

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/speed"
	"github.com/millrace/millrace/pkg/tombstone"
	"github.com/millrace/millrace/pkg/wal"
)

const (
	minTime = math.MinInt64
	maxTime = math.MaxInt64
)

// windowMillis is the width of the windows into which a generation's recent samples are divided: that of the smallest compacted block.
const windowMillis = 2 * 60 * 60 * 1000

// header is the first thing in a generation's log. With it a generation that is sealed a second time, after a crash, becomes the same blocks.
type header struct {
	Version int       `json:"version"`
	Number  uint64    `json:"number"`
	Created int64     `json:"created"` // ms
	Entropy ulidBytes `json:"entropy"`
}

type ulidBytes [8]byte

// headerVersion is that of new logs. Version 1 had requests as records only; such a log is read, but not continued.
const headerVersion = 2

func newHeader(number uint64, now time.Time) (header, error) {
	h := header{Version: headerVersion, Number: number, Created: now.UnixMilli()}
	if _, err := rand.Read(h.Entropy[:]); err != nil {
		return header{}, fmt.Errorf("draw ids for generation %d: %w", number, err)
	}
	return h, nil
}

func parseHeader(raw []byte) (header, error) {
	var h header
	if err := json.Unmarshal(raw, &h); err != nil {
		return header{}, fmt.Errorf("parse header of log: %w", err)
	}
	if h.Version < 1 || h.Version > headerVersion {
		return header{}, fmt.Errorf("log has format version %d, this version of Millrace reads up to %d", h.Version, headerVersion)
	}
	return h, nil
}

// recentFrom is the time before which samples go to the block of all that is older.
func (h header) recentFrom() int64 {
	return floor(h.Created, windowMillis) - windowMillis
}

// blockID is the id of the k-th block of the generation; 0 is that of all that is older.
func (h header) blockID(k uint16) ulid.ULID {
	var id ulid.ULID
	_ = id.SetTime(uint64(h.Created)) // fails after the year 10889 only
	entropy := append(append(make([]byte, 0, 10), h.Entropy[:]...), byte(k>>8), byte(k))
	_ = id.SetEntropy(entropy) // fails on another length only
	return id
}

// window is a half-open range of time and the id of the block that holds a generation's samples in it.
type window struct {
	id       ulid.ULID
	from, to int64
}

// windows divides [first, last] as DESIGN says: one for each recent 2 h window, one for all that is older. A generation that lived so long
// that the ids run out gets a last window without end.
func (h header) windows(first, last int64) []window {
	var ws []window
	from := h.recentFrom()
	if first < from {
		ws = append(ws, window{id: h.blockID(0), from: first, to: from})
	}
	for k := 1; k <= math.MaxUint16 && from <= last; k++ {
		to := from + windowMillis
		if k == math.MaxUint16 {
			to = maxTime
		}
		if first < to {
			ws = append(ws, window{id: h.blockID(uint16(k)), from: from, to: to})
		}
		from = to
	}
	return ws
}

// manyWindows are more than a generation has unless a clock has jumped or a sample came from the future: in a year there are 4,380, nearly all of them empty.
const manyWindows = 24

// occupied leaves out windows without samples where there are many: each would take as long as a small block.
func (g *generation) occupied(ctx context.Context, ws []window) (_ []window, err error) {
	if len(ws) <= manyWindows {
		return ws, nil
	}
	q, err := g.mem.ChunkQuerier(minTime, maxTime)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	holds := map[ulid.ULID]bool{}
	var it chunks.Iterator
	set := q.Select(ctx, false, nil, labels.MustNewMatcher(labels.MatchEqual, "", ""))
	for set.Next() {
		it = set.At().Iterator(it)
		for it.Next() {
			c := it.At()
			i := sort.Search(len(ws), func(i int) bool { return ws[i].to > c.MinTime })
			for ; i < len(ws) && ws[i].from <= c.MaxTime; i++ {
				holds[ws[i].id] = true
			}
		}
		if err := it.Err(); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(ws, func(w window) bool { return !holds[w.id] }), set.Err()
}

func floor(t, width int64) int64 {
	r := t % width
	if r < 0 {
		r += width
	}
	return t - r
}

// generation is one generation's memory, its log, and the requests on their way from the one to the other.
type generation struct {
	header
	dir string
	log *wal.Log // nil once it is closed for good
	mem *speed.Generation
	// inflight counts requests that were accepted for the generation and are not applied yet. Add happens under Engine.accept while the generation
	// is active, so Wait, after it is not, sees them all; until then the log stays open.
	inflight sync.WaitGroup
	sealed   bool // guarded by Engine.mu
	damaged  bool // replay lost parts of the log
	replayed uint64
	// replayedSize is that of the log when it was read back, in bytes.
	replayedSize int64
	source       *generationSource
	stored       tombstone.Stored
	// deleted hides exemplars while the log is read back.
	deleted *tombstone.Filter
	// exemplars says that the log brings some back, even if there are no samples.
	exemplars atomic.Bool
}

func (g *generation) name() string { return logName(g.Number) }

func logName(number uint64) string { return fmt.Sprintf("%020d", number) }

// logSize is the size of the log in bytes. The caller holds Engine.mu.
func (g *generation) logSize() int64 {
	if g.log != nil {
		return g.log.Size()
	}
	return g.replayedSize // of a log that is closed, as it only was read back
}

// logDir is the folder of a generation's log.
func (e *Engine) logDir(number uint64) string {
	return filepath.Join(e.data.path, walDir, logName(number))
}

// generationSource shows a generation to queries.
type generationSource struct{ *generation }

var _ serving.Source = (*generationSource)(nil)

func (s *generationSource) Layer() serving.Layer          { return serving.Speed }
func (s *generationSource) Generations() (uint64, uint64) { return s.Number, s.Number }
func (s *generationSource) MinTime() int64                { return s.mem.Stats().MinTime }
func (s *generationSource) MaxTime() int64                { return s.mem.Stats().MaxTime }

// DeletedBy implements serving.Source.
func (s *generationSource) DeletedBy(t *tombstone.Tombstone) tombstone.Effect { return t.On(s.stored) }

func (s *generationSource) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return s.mem.ChunkQuerier(mint, maxt)
}

// newGeneration makes a generation with an empty log.
func (e *Engine) newGeneration(number uint64, previous *speed.Generation) (*generation, error) {
	h, err := newHeader(number, time.Now())
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode header of generation %d: %w", number, err)
	}
	g := e.wireGeneration(h, previous)
	if g.log, err = wal.Create(g.dir, raw, e.data.walOptions); err != nil {
		return nil, fmt.Errorf("create log of generation %d: %w", number, err)
	}
	return g, nil
}

func (e *Engine) wireGeneration(h header, previous *speed.Generation) *generation {
	g := &generation{header: h, mem: speed.NewGeneration(speed.Options{
		Number: h.Number, Previous: previous, StartTimestamps: e.cfg.Storage.StartTimestamps, Metrics: e.speedM,
	})}
	g.dir = e.logDir(h.Number)
	g.source, g.stored = &generationSource{g}, e.storedGeneration(h.Number)
	return g
}
