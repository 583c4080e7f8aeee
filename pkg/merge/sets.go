package merge

import (
	"container/heap"
	"errors"
	"fmt"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

// Groups iterates over the series of several sets by labels, each with all sets' parts of it.
type Groups struct {
	sets    []storage.ChunkSeriesSet
	heap    setHeap
	taken   []int // The sets that the current group is from, to be moved on by Next.
	group   []storage.ChunkSeries
	labels  labels.Labels
	started bool
	err     error
}

// Sets merges sets, each sorted by labels, given in order of precedence.
func Sets(sets []storage.ChunkSeriesSet) *Groups {
	return &Groups{sets: sets}
}

// Next moves to the next series; false at the end or on an error of any set.
func (g *Groups) Next() bool {
	if g.err != nil {
		return false
	}
	if !g.started {
		g.started = true
		for i := range g.sets {
			g.push(i)
		}
	}
	for _, i := range g.taken {
		g.push(i)
	}
	g.taken, g.group = g.taken[:0], g.group[:0]
	if g.err != nil || len(g.heap) == 0 {
		return false
	}
	g.labels = g.heap[0].labels
	for len(g.heap) > 0 && labels.Compare(g.heap[0].labels, g.labels) == 0 {
		h := heap.Pop(&g.heap).(setHead)
		g.taken = append(g.taken, h.set)
		g.group = append(g.group, h.series)
	}
	return true
}

// At returns the labels of the current series and its parts in order of precedence. The slice is reused by Next.
func (g *Groups) At() (labels.Labels, []storage.ChunkSeries) { return g.labels, g.group }

// Err returns the first error of a set.
func (g *Groups) Err() error { return g.err }

// Warnings returns those of all sets.
func (g *Groups) Warnings() annotations.Annotations {
	var ws annotations.Annotations
	for _, s := range g.sets {
		ws.Merge(s.Warnings())
	}
	return ws
}

var errUnsorted = errors.New("series set is not sorted")

func (g *Groups) push(i int) {
	s := g.sets[i]
	if !s.Next() {
		if err := s.Err(); err != nil && g.err == nil {
			g.err = err
		}
		return
	}
	series := s.At()
	ls := series.Labels()
	if len(g.taken) > 0 && labels.Compare(ls, g.labels) <= 0 && g.err == nil {
		g.err = fmt.Errorf("merge series %s after %s: %w", ls, g.labels, errUnsorted)
		return
	}
	heap.Push(&g.heap, setHead{set: i, labels: ls, series: series})
}

type setHead struct {
	set    int
	labels labels.Labels
	series storage.ChunkSeries
}

type setHeap []setHead

func (h setHeap) Len() int      { return len(h) }
func (h setHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

func (h setHeap) Less(i, j int) bool {
	if c := labels.Compare(h[i].labels, h[j].labels); c != 0 {
		return c < 0
	}
	return h[i].set < h[j].set
}

func (h *setHeap) Push(x any) { *h = append(*h, x.(setHead)) }

func (h *setHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = setHead{}
	*h = old[:len(old)-1]
	return x
}
