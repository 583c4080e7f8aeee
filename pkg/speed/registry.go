package speed

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/ingest"
)

// pageSize is the number of entries in a page of series; growing by pages, no entry ever moves, and a large generation
// grows without copying.
const (
	pageBits = 8
	pageSize = 1 << pageBits
)

// identity is what a series is known by. Hash and labels are never changed after it was published in the registry.
type identity struct {
	hash     uint64 // Of the key; see ingest.Series. The key itself is not kept: the labels say the same.
	labels   labels.Labels
	next     atomic.Uint64 // The series that came behind it in some request: shard, and reference + 1; 0 is none.
	id       atomic.Uint32 // Under which records of the log speak of the series; 0 before the first does.
	recorded atomic.Uint32 // The epoch in which the log has a record that defines the id; 0 is none.
}

// registry finds a shard's series by the hash and bytes of their keys. References count up from 0. It is apart from the
// shard so that the next generation can take over labels without keeping this one's samples alive.
//
// find needs no lock. A series is published by the store of its slot; tables are replaced as a whole, and a reader of one that
// has been replaced misses what came after. It learns the truth by asking again under the lock.
type registry struct {
	mu    sync.RWMutex // Guards the whole shard.
	n     uint32
	pages atomic.Pointer[[]*[pageSize]identity]
	slots atomic.Pointer[[]atomic.Uint64] // Open addressing: upper half of the hash, and reference + 1; 0 is free.
}

const minSlots = 64

func (r *registry) at(ref uint32) *identity {
	return &(*r.pages.Load())[ref>>pageBits][ref&(pageSize-1)]
}

// find looks a series up.
func (r *registry) find(hash uint64, key []byte) (uint32, bool) {
	table := r.slots.Load()
	if table == nil {
		return 0, false
	}
	slots := *table
	mask := uint64(len(slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		slot := slots[i].Load()
		if slot == 0 {
			return 0, false
		}
		if slot>>32 != hash>>32 {
			continue
		}
		ref := uint32(slot) - 1
		if id := r.at(ref); id.hash == hash && ingest.KeyEquals(key, id.labels) {
			return ref, true
		}
	}
}

// add registers a series that find did not find under the lock, which the caller holds for writing.
func (r *registry) add(hash uint64, ls labels.Labels) uint32 {
	if table := r.slots.Load(); table == nil || 4*(int(r.n)+1) > 3*len(*table) {
		r.grow()
	}
	ref := r.n
	if ref&(pageSize-1) == 0 {
		r.addPage()
	}
	entry := r.at(ref)
	entry.hash, entry.labels = hash, ls
	r.n++
	place(*r.slots.Load(), hash, ref)
	return ref
}

func (r *registry) addPage() {
	var pages []*[pageSize]identity
	if old := r.pages.Load(); old != nil {
		pages = *old
	}
	pages = append(pages, new([pageSize]identity)) // Readers of the old header do not look behind its end.
	r.pages.Store(&pages)
}

func place(slots []atomic.Uint64, hash uint64, ref uint32) {
	mask := uint64(len(slots) - 1)
	i := hash & mask
	for slots[i].Load() != 0 {
		i = (i + 1) & mask
	}
	slots[i].Store(hash>>32<<32 | uint64(ref+1))
}

func (r *registry) grow() {
	size := minSlots
	if old := r.slots.Load(); old != nil {
		size = 2 * len(*old)
	}
	slots := make([]atomic.Uint64, size)
	for ref := range r.n {
		place(slots, r.at(ref).hash, ref)
	}
	r.slots.Store(&slots)
}

// registries are those of all shards of a generation.
type registries struct {
	shift uint
	regs  []*registry

	series atomic.Int64
	bytes  atomic.Int64 // What they take, estimated, with labels.
}

// find returns a series' reference in its shard, if it is known.
func (rs *registries) find(hash uint64, key []byte) (uint32, bool) {
	return rs.regs[hash>>rs.shift].find(hash, key)
}

// at returns what a series that was found is known by.
func (rs *registries) at(hash uint64, ref uint32) *identity { return rs.regs[hash>>rs.shift].at(ref) }

// labels returns the labels of a series, if it is known.
func (rs *registries) labels(hash uint64, key []byte) (labels.Labels, bool) {
	ref, ok := rs.find(hash, key)
	if !ok {
		return labels.EmptyLabels(), false
	}
	return rs.at(hash, ref).labels, true
}
