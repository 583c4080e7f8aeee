package block

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/index"
)

// seriesSource yields the series of an input in the order of their labels, which are the numbers of names and values in turn, as the
// block that is written counts its symbols. Numbers are in the order of strings, so that labels are ordered as labels.Compare does.
type seriesSource interface {
	next() (bool, error)
	labels() []uint32
	// decoded returns the current series for who needs its samples. It is valid until next.
	decoded() (storage.ChunkSeries, error)
	close()
}

// openSources merges the symbols of all inputs and opens their series.
func (w *writer) openSources() error {
	u := &symbolUnion{}
	numbers := map[string]uint32{} // for inputs that have strings
	used := map[string]struct{}{}
	anyStrings := false
	for _, in := range w.inputs {
		if b, ok := in.(stored); ok {
			it, err := w.openStored(b)
			if err != nil {
				return err
			}
			u.its = append(u.its, it)
			continue
		}
		anyStrings = true
		set, err := w.openSet(in, numbers)
		if err != nil {
			return err
		}
		w.sources = append(w.sources, set)
		if m, ok := inputMeta(in); ok && w.contains(m) {
			u.its = append(u.its, in.Symbols())
		} else if err := w.usedSymbols(in, used); err != nil {
			return err
		}
	}
	u.its = append(u.its, index.NewStringListIter(sortedKeys(used)))
	for u.next() {
		n := uint32(len(w.symbols))
		if n%1024 == 0 && w.ctx.Err() != nil {
			return w.ctx.Err()
		}
		w.symbols = append(w.symbols, u.cur)
		if anyStrings {
			numbers[u.cur] = n
		}
		for _, i := range u.at {
			if s, ok := u.its[i].(*storedSymbols); ok {
				s.number(n)
			}
		}
	}
	return u.err
}

// stored is an input that is a block, as it is.
type stored interface {
	block() *Block
	Meta() Meta
}

func (b *Block) block() *Block { return b }

// observer is an input that wants to know what is read of it.
type observer interface {
	// SeriesRead is called with the chunks and samples of each series.
	SeriesRead(chunks, samples int)
}

// openStored opens the series of a block and returns its symbols: of a block of which only a part may go into the one that is written,
// those that its series in range have.
func (w *writer) openStored(in stored) (*storedSymbols, error) {
	b := in.block()
	h, err := b.loadHeader(w.ctx)
	if err != nil {
		return nil, err
	}
	s := newStoredSeries(w.ctx, b, h, w.meta.MinTime, w.meta.MaxTime-1)
	s.observer, _ = in.(observer)
	w.sources = append(w.sources, s)
	var used []bool
	if !w.contains(b.meta) {
		used = make([]bool, len(h.symPos))
		if err := s.use(used); err != nil {
			return nil, fmt.Errorf("read %s: %w", b.name(), err)
		}
	}
	it := newStoredSymbols(h, used)
	s.rank = it.rank
	return it, nil
}

// usedSymbols adds the strings in the labels of an input's series in range.
func (w *writer) usedSymbols(in Input, used map[string]struct{}) error {
	q, err := in.ChunkQuerier(w.meta.MinTime, w.meta.MaxTime-1)
	if err != nil {
		return err
	}
	defer q.Close()
	set := w.selectAll(q, "series")
	for set.Next() {
		set.At().Labels().Range(func(l labels.Label) {
			for _, s := range []string{l.Name, l.Value} {
				if _, ok := used[s]; !ok {
					used[strings.Clone(s)] = struct{}{}
				}
			}
		})
	}
	return set.Err()
}

// setSeries are the series of an input that is a generation, or a block of which something is left out.
type setSeries struct {
	q       storage.ChunkQuerier
	set     storage.ChunkSeriesSet
	numbers map[string]uint32
	cur     storage.ChunkSeries
	refs    []uint32
}

func (w *writer) openSet(in Input, numbers map[string]uint32) (*setSeries, error) {
	q, err := in.ChunkQuerier(w.meta.MinTime, w.meta.MaxTime-1)
	if err != nil {
		return nil, fmt.Errorf("open input: %w", err)
	}
	return &setSeries{q: q, set: w.selectAll(q, ""), numbers: numbers}, nil
}

func (s *setSeries) close()           { s.q.Close() }
func (s *setSeries) labels() []uint32 { return s.refs }

func (s *setSeries) decoded() (storage.ChunkSeries, error) { return s.cur, nil }

func (s *setSeries) next() (bool, error) {
	if !s.set.Next() {
		return false, s.set.Err()
	}
	s.cur = s.set.At()
	lset := s.cur.Labels()
	s.refs = s.refs[:0]
	missing := false
	lset.Range(func(l labels.Label) {
		name, ok1 := s.numbers[l.Name]
		value, ok2 := s.numbers[l.Value]
		missing = missing || !ok1 || !ok2
		s.refs = append(s.refs, name, value)
	})
	if missing {
		return false, fmt.Errorf("series %s has a label that is not among the input's symbols", lset)
	}
	return true, nil
}

var errUnsorted = errors.New("series are not sorted")

// groups iterates over the series of sources by labels, each with the sources that have a part of it.
type groups struct {
	sources []seriesSource
	heads   heads
	started bool
	labels  []uint32
	at      []int // the sources that stand at these labels, in order of precedence
}

func newGroups(sources []seriesSource) *groups {
	g := &groups{sources: sources}
	g.heads.before = func(a, b int) bool {
		c := slices.Compare(sources[a].labels(), sources[b].labels())
		return c < 0 || c == 0 && a < b
	}
	for i := range sources {
		g.at = append(g.at, i)
	}
	return g
}

// next moves to the next series; false at the end.
func (g *groups) next() (bool, error) {
	for _, i := range g.at {
		ok, err := g.sources[i].next()
		if err != nil {
			return false, err
		}
		if !ok {
			continue
		}
		if g.started && slices.Compare(g.sources[i].labels(), g.labels) <= 0 {
			return false, errUnsorted
		}
		g.heads.push(i)
	}
	g.started, g.at = true, g.at[:0]
	if len(g.heads.order) == 0 {
		return false, nil
	}
	g.labels = append(g.labels[:0], g.sources[g.heads.order[0]].labels()...)
	for len(g.heads.order) > 0 && slices.Equal(g.sources[g.heads.order[0]].labels(), g.labels) {
		g.at = append(g.at, g.heads.pop())
	}
	return true, nil
}
