package block

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/prometheus/prometheus/tsdb/index"
)

// symbolUnion merges sorted strings, each once.
type symbolUnion struct {
	its     []index.StringIter
	heads   heads
	started bool
	cur     string
	at      []int // the inputs that stand at cur
	err     error
}

func (u *symbolUnion) next() bool {
	if !u.started {
		u.started = true
		u.heads.before = func(a, b int) bool { return cmp.Or(strings.Compare(u.its[a].At(), u.its[b].At()), a-b) < 0 }
		for i, it := range u.its {
			u.push(i, it.Next())
		}
	} else {
		for _, i := range u.at {
			ok := u.its[i].Next()
			if ok && u.its[i].At() <= u.cur {
				u.err = fmt.Errorf("%w: symbol %q is not behind %q", ErrCorrupt, u.its[i].At(), u.cur)
			}
			u.push(i, ok)
		}
	}
	u.at = u.at[:0]
	if u.err != nil || len(u.heads.order) == 0 {
		return false
	}
	u.cur = u.its[u.heads.order[0]].At()
	for len(u.heads.order) > 0 && u.its[u.heads.order[0]].At() == u.cur {
		u.at = append(u.at, u.heads.pop())
	}
	return true
}

// push lets an input compete with what it stands at, if it has not ended.
func (u *symbolUnion) push(input int, ok bool) {
	if ok {
		u.heads.push(input)
	} else if err := u.its[input].Err(); u.err == nil {
		u.err = err
	}
}

// storedSymbols iterates over the symbols of a block's index and takes down which number each one gets in another block.
type storedSymbols struct {
	symbolIter
	used []bool   // which are wanted; nil means all
	rank []uint32 // the other block's number, by the own one
}

func newStoredSymbols(h *header, used []bool) *storedSymbols {
	return &storedSymbols{symbolIter: symbolIter{h: h}, used: used, rank: make([]uint32, len(h.symPos))}
}

// Next implements index.StringIter.
func (s *storedSymbols) Next() bool {
	for s.used != nil && s.i < len(s.used) && !s.used[s.i] {
		s.i++
	}
	return s.symbolIter.Next()
}

// number says which number the current symbol gets.
func (s *storedSymbols) number(n uint32) { s.rank[s.i-1] = n }
