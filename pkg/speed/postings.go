package speed

import (
	"slices"

	"github.com/prometheus/prometheus/model/labels"
)

// postings is a shard's inverted index. All its lists only grow at their ends, and references are given out in rising
// order: a reader that has copied a slice header under the shard's lock may read it without, and what it sees, cut off
// at the number of series that it saw first, is the index as it was at that moment.
type postings struct {
	names map[string]*nameIndex
	order []*nameIndex
}

// nameIndex lists the values of a label name.
type nameIndex struct {
	name   string
	values map[string]*valueList
	order  []*valueList
}

// valueList lists the series that have a certain label.
type valueList struct {
	value string
	refs  []uint32
}

// Estimates in bytes of what an index entry takes, beyond strings.
const (
	nameBytes  = 200
	valueBytes = 120
	refBytes   = 8
)

// add indexes a series and returns by how many bytes, about, the index grew.
func (p *postings) add(ref uint32, ls labels.Labels) (size int) {
	if p.names == nil {
		p.names = map[string]*nameIndex{}
	}
	ls.Range(func(l labels.Label) {
		n := p.names[l.Name]
		if n == nil {
			n = &nameIndex{name: l.Name, values: map[string]*valueList{}}
			p.names[l.Name] = n
			p.order = append(p.order, n)
			size += nameBytes
		}
		v := n.values[l.Value]
		if v == nil {
			v = &valueList{value: l.Value}
			n.values[l.Value] = v
			n.order = append(n.order, v)
			size += valueBytes
		}
		v.refs = append(v.refs, ref)
		size += refBytes
	})
	return size
}

// below cuts a rising list off at n.
func below(refs []uint32, n uint32) []uint32 {
	if len(refs) == 0 || refs[len(refs)-1] < n {
		return refs
	}
	i, _ := slices.BinarySearch(refs, n)
	return refs[:i]
}

// bitmap is a set of references.
type bitmap []uint64

func newBitmap(n uint32) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) add(refs []uint32) {
	for _, r := range refs {
		b[r>>6] |= 1 << (r & 63)
	}
}

func (b bitmap) has(r uint32) bool { return b[r>>6]&(1<<(r&63)) != 0 }

// hasAny says whether one of the references below n is in the set.
func (b bitmap) hasAny(refs []uint32, n uint32) bool {
	for _, r := range refs {
		if r >= n {
			return false
		}
		if b.has(r) {
			return true
		}
	}
	return false
}
