package serving

import (
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/merge"
)

// charger takes what the series of a selection will cost from a budget, before anything is made of them. A nil one takes nothing.
type charger struct {
	b     *Budget
	steps int64 // the points that the engine will hold of each, at most
	cost  func(labels.Labels, []storage.ChunkSeries) (bytes int64, err error)
}

// charge is called with each series and its parts.
func (c *charger) charge(lset labels.Labels, parts []storage.ChunkSeries) error {
	if c == nil {
		return nil
	}
	n, err := c.cost(lset, parts)
	if err != nil {
		return err
	}
	return c.b.add(n, 1, c.steps)
}

// admit refuses a set whose series alone are more than one query may have: to sort them would take longer than anything else that comes before the error. It
// takes nothing, as other sets may have parts of the same series.
func (c *charger) admit(set storage.ChunkSeriesSet) error {
	g, ok := set.(merge.Gathered)
	if c == nil || !ok {
		return nil
	}
	var bytes, series int64
	var part [1]storage.ChunkSeries
	for part[0] = range g.Found() {
		n, err := c.cost(part[0].Labels(), part[:])
		if err != nil {
			return err
		}
		bytes, series = bytes+n, series+1
		if err := c.b.pool.allow(bytes, series, c.steps); err != nil {
			return err
		}
	}
	return nil
}

// chargedGroups charges each series before it yields it.
type chargedGroups struct {
	groups
	*charger
	lset  labels.Labels
	parts []storage.ChunkSeries
	err   error
}

func (g *chargedGroups) Next() bool {
	if g.err != nil || !g.groups.Next() {
		return false
	}
	g.lset, g.parts = g.groups.At()
	g.err = g.charge(g.lset, g.parts)
	return g.err == nil
}

func (g *chargedGroups) At() (labels.Labels, []storage.ChunkSeries) { return g.lset, g.parts }

func (g *chargedGroups) Err() error {
	if g.err != nil {
		return g.err
	}
	return g.groups.Err()
}
