package batch

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/tombstone"
)

// Widths of compacted blocks, in milliseconds.
const (
	windowMillis = int64(2 * time.Hour / time.Millisecond)
	dayMillis    = int64(24 * time.Hour / time.Millisecond)
	// fortnightMillis is two weeks, counted from the Unix epoch: a multiple of days, so that no day lies in two of them.
	fortnightMillis = 14 * dayMillis
)

// codeVersion is part of the ids of outputs. It changes whenever the same inputs would give different bytes, so that an
// output of another version is never taken for one of this.
const codeVersion = 3

// Kind is what a job does.
type Kind string

const (
	// CompactLevel0 divides level-0 blocks into one block for each aligned 2 h window.
	CompactLevel0 Kind = "compact-2h"
	// MergeWindow merges overlapping blocks of one 2 h window.
	MergeWindow Kind = "merge-2h"
	// CompactDay merges what lies in one UTC day into one block.
	CompactDay Kind = "compact-1d"
	// CompactFortnight merges what lies in two weeks into one block.
	CompactFortnight Kind = "compact-14d"
	// Erase writes a compacted block anew without what was deleted, or without series that retention rules do not keep.
	Erase Kind = "erase"
)

// Job is one unit of work, a function of its inputs alone.
type Job struct {
	// ID is the same for every plan of the same job.
	ID   string
	Kind Kind
	// Inputs in order of precedence; the last one wins.
	Inputs []block.Meta
	// Leftovers are outputs of jobs that never were committed. All that they hold is also in other visible blocks, and once
	// this job is done, only in settled ones; they are replaced without being read.
	Leftovers []block.Meta
	// Tombstones are the deletions that may concern the inputs. What they delete does not go into the outputs.
	Tombstones []*tombstone.Tombstone
	// Level and Width (milliseconds) of the outputs.
	Level int
	Width int64
	// StartTimestamps keeps start timestamps; see Config.
	StartTimestamps bool

	drops []drop
}

// newJob makes a job that turns inputs into blocks of tier t.
func newJob(t tier, inputs []block.Meta, c Config) Job {
	j := Job{Kind: t.kind, Inputs: inputs, Level: t.level, Width: t.width, StartTimestamps: c.StartTimestamps}
	j.setID()
	return j
}

func (j *Job) setID() {
	j.ID = j.outputID(window{min: math.MinInt64, max: math.MaxInt64}, j.Inputs, nil).String()
}

// window is the range of time of an output, [min, max).
type window struct{ min, max int64 }

// windowAt returns the aligned window that holds t. At the ends of time it is cut off.
func windowAt(t, width int64) window {
	r := t % width
	if r < 0 {
		r += width
	}
	w := window{min: math.MinInt64, max: math.MaxInt64}
	if t >= math.MinInt64+r {
		w.min = t - r
	}
	if t <= math.MaxInt64-(width-r) {
		w.max = t + (width - r)
	}
	return w
}

func (w window) holds(m *block.Meta) bool    { return m.MinTime >= w.min && m.MaxTime <= w.max }
func (w window) overlaps(m *block.Meta) bool { return m.Overlaps(w.min, w.max-1) }

// from and to are the window's bounds for the log.
func (w window) from() time.Time { return time.UnixMilli(w.min).UTC() }
func (w window) to() time.Time   { return time.UnixMilli(w.max).UTC() }

// String is the window's bounds in RFC 3339.
func (w window) String() string {
	return w.from().Format(time.RFC3339) + " to " + w.to().Format(time.RFC3339)
}

// contributors are the inputs which can have samples in w, in order of precedence.
func (j *Job) contributors(w window) []block.Meta {
	var in []block.Meta
	for _, m := range j.Inputs {
		if w.overlaps(&m) {
			in = append(in, m)
		}
	}
	return in
}

// Replaces are the blocks that must not be seen any more once the job is done.
func (j *Job) Replaces() []ulid.ULID {
	ids := make([]ulid.ULID, 0, len(j.Inputs)+len(j.Leftovers))
	for _, m := range j.Inputs {
		ids = append(ids, m.ULID)
	}
	for _, m := range j.Leftovers {
		ids = append(ids, m.ULID)
	}
	return ids
}

// outputID derives an output's id from everything that its files depend on. The one that commits the job has an id of its
// own: a block is never changed, so one that was uploaded without the list cannot become the commit.
func (j *Job) outputID(w window, contributors []block.Meta, replaces []ulid.ULID) ulid.ULID {
	buf := []byte("millrace batch output\x00")
	if j.StartTimestamps {
		buf = append(buf, "start timestamps\x00"...)
	}
	buf = binary.BigEndian.AppendUint64(buf, codeVersion)
	buf = binary.BigEndian.AppendUint64(buf, uint64(j.Level))
	buf = binary.BigEndian.AppendUint64(buf, uint64(w.min))
	buf = binary.BigEndian.AppendUint64(buf, uint64(w.max))
	buf = binary.BigEndian.AppendUint64(buf, uint64(len(contributors)))
	var newest uint64
	for _, m := range contributors {
		buf = append(buf, m.ULID[:]...)
		newest = max(newest, m.ULID.Time())
	}
	for _, id := range replaces {
		buf = append(buf, id[:]...)
	}
	buf = append(buf, j.tombstoneKey(w, contributors)...)
	buf = append(buf, j.dropKey(w, contributors)...)
	return derivedID(newest, buf)
}

// derivedID is the id, of a time that came out of another one, of what depends on nothing but buf.
func derivedID(ms uint64, buf []byte) ulid.ULID {
	sum := sha256.Sum256(buf)
	var id ulid.ULID
	_ = id.SetTime(ms)
	_ = id.SetEntropy(sum[:10]) // has the right length
	return id
}

// outputMeta says what the block of window w is made of. replaces is nil for all but the commit.
func (j *Job) outputMeta(w window, replaces []ulid.ULID) block.Meta {
	in := j.contributors(w)
	var m block.Meta
	m.Version = block.MetaVersion
	m.ULID = j.outputID(w, in, replaces)
	m.MinTime, m.MaxTime = w.min, w.max
	m.Thanos.Labels = in[0].Thanos.Labels
	minGen, maxGen := in[0].Generations()
	m.Compaction.Sources = []ulid.ULID{m.ULID}
	for _, c := range in {
		lo, hi := c.Generations()
		minGen, maxGen = min(minGen, lo), max(maxGen, hi)
		m.Compaction.Parents = append(m.Compaction.Parents, tsdb.BlockDesc{ULID: c.ULID, MinTime: c.MinTime, MaxTime: c.MaxTime})
		if w.holds(&c) {
			m.Compaction.Sources = append(m.Compaction.Sources, c.ULID)
			m.Compaction.Sources = append(m.Compaction.Sources, c.Compaction.Sources...)
		}
	}
	slices.SortFunc(m.Compaction.Sources, ulid.ULID.Compare)
	m.Compaction.Sources = slices.Compact(m.Compaction.Sources)
	m.SetExtension(j.Level, minGen, maxGen, replaces...)
	m.Thanos.Extensions.Millrace.Masters = masters(in)
	m.Thanos.Extensions.Millrace.Applied = j.applied(w, in)
	m.Thanos.Extensions.Millrace.Dropped = j.dropped(w, in)
	return m
}

// masters returns the level-0 blocks that blocks are made of, none if they are not known of all.
func masters(metas []block.Meta) []ulid.ULID {
	var all []ulid.ULID
	for _, m := range metas {
		ids, known := m.Masters()
		if !known {
			return nil
		}
		all = append(all, ids...)
	}
	slices.SortFunc(all, ulid.ULID.Compare)
	return slices.Compact(all)
}
