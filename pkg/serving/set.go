package serving

import (
	"cmp"
	"slices"
	"sync"

	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/tombstone"
)

// Source is a part of the data that can be queried by itself: a generation or a block. It is compared by identity, so it must be a
// pointer or another comparable value. Its methods are safe for concurrent use.
type Source interface {
	// Layer is Speed for a generation and for a local block that the bucket does not hold yet, Batch for a block in the bucket.
	Layer() Layer
	// DeletedBy says what a tombstone does to the source.
	DeletedBy(t *tombstone.Tombstone) tombstone.Effect
	// Generations is the range of generations that went into the source. Of two sources that have the same sample, the one with the
	// higher max wins, then the one with the higher min; of two that are blocks, then the one that block.Compare puts later.
	Generations() (minGen, maxGen uint64)
	// MinTime and MaxTime bound the samples' timestamps, both inclusive, in milliseconds. MinTime is above MaxTime when there is no sample.
	MinTime() int64
	MaxTime() int64
	// ChunkQuerier reads the samples with mint ≤ t ≤ maxt, and more of a chunk that crosses these. Its sets are sorted by labels; a series'
	// chunks are sorted by time and do not overlap. Different goroutines may use the sets of one querier, and a series that a set has
	// yielded while the set goes on.
	ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error)
}

// Entry is a source that is added to a Set. Release, which may be nil, is called once, when the source has been removed and the last
// snapshot that holds it was released.
type Entry struct {
	Source  Source
	Release func()
}

// Set holds the sources that queries see, and what of them is deleted.
//
// Whoever changes it holds changing, and works out what comes next while queries go on with what is there. mu, which queries take, is held to put that in
// its place; who holds changing may read current without it.
type Set struct {
	changing   sync.Mutex
	tombstones []*tombstone.Tombstone // in order of their ids; guarded by changing

	mu      sync.Mutex
	current *version
}

// version is one state of a Set; its pins are guarded by the Set's lock, and the rest does not change.
type version struct {
	members []*member // in order of precedence
	// deleted is what is hidden of each member, nil for most.
	deleted map[*member]*deleted
	pins    int // snapshots, and one while the version is the current one
}

// member is a source in one or more versions.
type member struct {
	Source
	release  func()
	versions int
}

// NewSet returns a set without sources.
func NewSet() *Set {
	return &Set{current: &version{pins: 1}}
}

// Replace takes sources out of the set and adds others, in one step: a query sees either all of it or nothing. Removing what is not there
// does nothing, and neither does adding what already is there.
func (s *Set) Replace(remove []Source, add []Entry) {
	s.changing.Lock()
	next := &version{pins: 1, deleted: map[*member]*deleted{}}
	has := map[Source]bool{}
	for _, m := range s.current.members {
		if !slices.Contains(remove, m.Source) {
			next.members = append(next.members, m)
			has[m.Source] = true
			next.hide(m, s.current.deleted[m])
		}
	}
	all := changeOf(nil, s.tombstones)
	for _, e := range add {
		if !has[e.Source] {
			has[e.Source] = true
			m := &member{Source: e.Source, release: e.Release}
			next.members = append(next.members, m)
			next.hide(m, all.apply(m, nil))
		}
	}
	slices.SortStableFunc(next.members, comparePrecedence)
	freed := s.put(next)
	s.changing.Unlock()
	release(freed)
}

// Delete hides what tombstones delete, and no more what others before them did, in one step: from queries that begin later. They are in order of their ids.
func (s *Set) Delete(tombstones []*tombstone.Tombstone) {
	s.changing.Lock()
	c := changeOf(s.tombstones, tombstones)
	s.tombstones = slices.Clone(tombstones)
	next := &version{pins: 1, members: s.current.members, deleted: map[*member]*deleted{}}
	for _, m := range next.members {
		next.hide(m, c.apply(m, s.current.deleted[m]))
	}
	freed := s.put(next)
	s.changing.Unlock()
	release(freed)
}

// hide notes what is deleted of m.
func (v *version) hide(m *member, d *deleted) {
	if d != nil {
		v.deleted[m] = d
	}
}

// put makes next the current version and returns the members that nothing holds any more. changing is held.
func (s *Set) put(next *version) (freed []*member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range next.members {
		m.versions++
	}
	old := s.current
	s.current = next
	return s.unpin(old)
}

// comparePrecedence orders members so that the later one wins.
func comparePrecedence(a, b *member) int {
	aMin, aMax := a.Generations()
	bMin, bMax := b.Generations()
	if c := cmp.Or(cmp.Compare(aMax, bMax), cmp.Compare(aMin, bMin)); c != 0 {
		return c
	}
	// Imported blocks are all of one generation; compactions merge them in the order of block.Compare.
	x, xOK := a.Source.(describedBlock)
	y, yOK := b.Source.(describedBlock)
	if xOK && yOK {
		return block.Compare(x.Meta(), y.Meta())
	}
	return 0
}

// describedBlock is a source that is a block.
type describedBlock interface{ Meta() block.Meta }

// unpin takes a pin off v and returns the members that nothing holds any more. The lock is held.
func (*Set) unpin(v *version) (freed []*member) {
	if v.pins--; v.pins > 0 {
		return nil
	}
	for _, m := range v.members {
		if m.versions--; m.versions == 0 {
			freed = append(freed, m)
		}
	}
	return freed
}

func release(freed []*member) {
	for _, m := range freed {
		if m.release != nil {
			m.release()
		}
	}
}

// Sources returns the current sources in order of precedence. They are not pinned: it is for looking at, not for reading.
func (s *Set) Sources() []Source {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Source, len(s.current.members))
	for i, m := range s.current.members {
		out[i] = m.Source
	}
	return out
}

// Snapshot is the state of a Set at one moment. Its sources can be read until Release.
type Snapshot struct {
	set  *Set
	v    *version
	once sync.Once
}

// Pin returns the current state.
func (s *Set) Pin() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.pins++
	return &Snapshot{set: s, v: s.current}
}

// Release gives the snapshot back; further calls do nothing.
func (p *Snapshot) Release() {
	p.once.Do(func() {
		p.set.mu.Lock()
		freed := p.set.unpin(p.v)
		p.set.mu.Unlock()
		release(freed)
	})
}
