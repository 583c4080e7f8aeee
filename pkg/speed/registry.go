package speed

import (
	"sync"

	"github.com/prometheus/prometheus/model/labels"
)

// pageSize is the number of entries in a page of series; growing by pages, no entry ever moves, and a large generation
// grows without copying.
const (
	pageBits = 8
	pageSize = 1 << pageBits
)

// identity is what a series is known by. It is never changed after it was published in the registry.
type identity struct {
	hash   uint64
	key    string // Canonical form of the labels; see ingest.Series.
	labels labels.Labels
}

// registry finds a shard's series by the hash and bytes of their keys. References count up from 0. It is apart from the
// shard so that the next generation can take over labels without keeping this one's samples alive.
type registry struct {
	mu    sync.RWMutex // Guards the whole shard.
	pages []*[pageSize]identity
	n     uint32
	slots []uint64 // Open addressing: upper half of the hash, and reference + 1; 0 is free.
}

const minSlots = 64

func (r *registry) at(ref uint32) *identity {
	return &r.pages[ref>>pageBits][ref&(pageSize-1)]
}

// find looks a series up. The caller holds the lock.
func (r *registry) find(hash uint64, key []byte) (uint32, bool) {
	if len(r.slots) == 0 {
		return 0, false
	}
	mask := uint64(len(r.slots) - 1)
	for i := hash & mask; r.slots[i] != 0; i = (i + 1) & mask {
		if r.slots[i]>>32 != hash>>32 {
			continue
		}
		ref := uint32(r.slots[i]) - 1
		if r.at(ref).key == string(key) { // Does not allocate.
			return ref, true
		}
	}
	return 0, false
}

// add registers a series that find did not find. The caller holds the lock for writing.
func (r *registry) add(id identity) uint32 {
	if 4*(int(r.n)+1) > 3*len(r.slots) {
		r.grow()
	}
	ref := r.n
	if ref&(pageSize-1) == 0 {
		r.pages = append(r.pages, new([pageSize]identity))
	}
	*r.at(ref) = id
	r.n++
	r.place(id.hash, ref)
	return ref
}

func (r *registry) place(hash uint64, ref uint32) {
	mask := uint64(len(r.slots) - 1)
	i := hash & mask
	for r.slots[i] != 0 {
		i = (i + 1) & mask
	}
	r.slots[i] = hash>>32<<32 | uint64(ref+1)
}

func (r *registry) grow() {
	r.slots = make([]uint64, max(minSlots, 2*len(r.slots)))
	for ref := range r.n {
		r.place(r.at(ref).hash, ref)
	}
}

// registries are those of all shards of a generation.
type registries struct {
	shift uint
	regs  []*registry
}

// labels returns the labels and key of a series, if they are known.
func (rs *registries) find(hash uint64, key []byte) (identity, bool) {
	r := rs.regs[hash>>rs.shift]
	r.mu.RLock()
	defer r.mu.RUnlock()
	ref, ok := r.find(hash, key)
	if !ok {
		return identity{}, false
	}
	return *r.at(ref), true
}
