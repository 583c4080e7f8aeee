package batch

import (
	"context"
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/merge"
)

// Difference says how the samples of two blocks differ. The zero value says that they do not.
type Difference struct {
	// Removed, Added and Changed count samples that only the old block has, that only the new one has, and that have another value.
	Removed, Added, Changed uint64
	// Series is how many series are concerned; First are the labels of the first one.
	Series uint64
	First  string
}

func (d Difference) String() string {
	if d == (Difference{}) {
		return "no difference"
	}
	return fmt.Sprintf("%d samples removed, %d added, %d changed in %d series, the first one %s", d.Removed, d.Added, d.Changed, d.Series, d.First)
}

// compareBlocks compares what two blocks hold, chunk boundaries and counter-reset hints left aside.
func compareBlocks(ctx context.Context, before, after *block.Block) (Difference, error) {
	var (
		d    Difference
		sets [2]storage.ChunkSeriesSet
	)
	for i, b := range []*block.Block{before, after} {
		m := b.Meta()
		q, err := b.ChunkQuerier(m.MinTime, m.MaxTime-1)
		if err != nil {
			return d, err
		}
		defer q.Close()
		name, value := index.AllPostingsKey()
		sets[i] = q.Select(ctx, true, nil, labels.MustNewMatcher(labels.MatchEqual, name, value))
	}
	more := [2]bool{sets[0].Next(), sets[1].Next()}
	for more[0] || more[1] {
		var in [2]storage.ChunkSeries
		switch c := order(sets, more); {
		case c < 0:
			in[0] = sets[0].At()
		case c > 0:
			in[1] = sets[1].At()
		default:
			in[0], in[1] = sets[0].At(), sets[1].At()
		}
		if err := d.addSeries(in[0], in[1]); err != nil {
			return d, err
		}
		for i, s := range in {
			if s != nil {
				more[i] = sets[i].Next()
			}
		}
	}
	return d, firstOf(sets[0].Err(), ofNew(sets[1].Err()))
}

// firstOf returns the first error.
func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// ofNew hides what kind of error it is: the block that was just written must be readable, whatever the old one is.
func ofNew(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("read the new block: %s", err) //nolint:errorlint // see above
}

// order compares the series at which two sets stand; one that is at its end comes last.
func order(sets [2]storage.ChunkSeriesSet, more [2]bool) int {
	switch {
	case !more[1]:
		return -1
	case !more[0]:
		return 1
	}
	return labels.Compare(sets[0].At().Labels(), sets[1].At().Labels())
}

// addSeries compares one series; nil stands for one that is not there.
func (d *Difference) addSeries(before, after storage.ChunkSeries) error {
	old, rebuilt := cursorOf(before), cursorOf(after)
	counted := *d
	for old.vt != chunkenc.ValNone || rebuilt.vt != chunkenc.ValNone {
		switch {
		case rebuilt.vt == chunkenc.ValNone || old.vt != chunkenc.ValNone && old.t < rebuilt.t:
			d.Removed++
			old.next()
		case old.vt == chunkenc.ValNone || old.t > rebuilt.t:
			d.Added++
			rebuilt.next()
		default:
			if !old.equals(&rebuilt) {
				d.Changed++
			}
			old.next()
			rebuilt.next()
		}
	}
	if err := old.err(); err != nil {
		return fmt.Errorf("%w: %w", block.ErrCorrupt, err)
	}
	if err := ofNew(rebuilt.err()); err != nil {
		return err
	}
	if *d == counted {
		return nil
	}
	if d.Series++; d.Series == 1 {
		s := before
		if s == nil {
			s = after
		}
		d.First = s.Labels().String()
	}
	return nil
}

// cursor stands at a sample of a series.
type cursor struct {
	it chunkenc.Iterator
	vt chunkenc.ValueType
	t  int64
}

func cursorOf(s storage.ChunkSeries) cursor {
	if s == nil {
		return cursor{}
	}
	c := cursor{it: merge.Series(s).Iterator(nil)}
	c.next()
	return c
}

func (c *cursor) next() {
	if c.vt = c.it.Next(); c.vt != chunkenc.ValNone {
		c.t = c.it.AtT()
	}
}

func (c *cursor) err() error {
	if c.it == nil {
		return nil
	}
	return c.it.Err()
}

// equals compares values bit for bit.
func (c *cursor) equals(o *cursor) bool {
	if c.vt != o.vt {
		return false
	}
	switch c.vt {
	case chunkenc.ValFloat:
		_, a := c.it.At()
		_, b := o.it.At()
		return math.Float64bits(a) == math.Float64bits(b)
	case chunkenc.ValHistogram:
		_, a := c.it.AtHistogram(nil)
		_, b := o.it.AtHistogram(nil)
		return a.Equals(b)
	default:
		_, a := c.it.AtFloatHistogram(nil)
		_, b := o.it.AtFloatHistogram(nil)
		return a.Equals(b)
	}
}
