package speed

import (
	"testing"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/merge"
)

// Where only the newest sample counts, it is there, whatever else is; and it is all that is decoded of a series of floats.
func TestNewestOnly(t *testing.T) {
	for name, c := range map[string]struct {
		samples []sample
		mint    int64
		maxt    int64
		newest  sample
		decoded int
	}{
		"in order":               {[]sample{{t: 1, v: 1}, {t: 2, v: 2}, {t: 3, v: 3}}, 0, 10, sample{t: 3, v: 3}, 1},
		"newest behind the end":  {[]sample{{t: 1, v: 1}, {t: 2, v: 2}, {t: 30, v: 3}}, 0, 10, sample{t: 2, v: 2}, 3},
		"late":                   {[]sample{{t: 5, v: 1}, {t: 2, v: 2}}, 0, 10, sample{t: 5, v: 1}, 1},
		"late and newest":        {[]sample{{t: 5, v: 1}, {t: 30, v: 2}, {t: 7, v: 3}}, 0, 10, sample{t: 7, v: 3}, 2},
		"late in place of it":    {[]sample{{t: 5, v: 1}, {t: 5, v: 2}}, 0, 10, sample{t: 5, v: 2}, 1},
		"nothing but before all": {[]sample{{t: 5, v: 1}}, 6, 10, sample{}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			g := NewGeneration(Options{})
			g.Append(0, batch(in(lset("__name__", "m"), c.samples...)))
			q, err := g.ChunkQuerier(c.mint, c.maxt)
			require.NoError(t, err)
			set := q.Select(merge.WithNewest(ctx), false, nil, all())
			decoded, newest := 0, sample{}
			for set.Next() {
				it := set.At().Iterator(nil)
				for it.Next() {
					cit := it.At().Chunk.Iterator(nil)
					for cit.Next() != 0 {
						decoded++
						if at, v := cit.At(); at <= c.maxt {
							newest = sample{t: at, v: v}
						}
					}
				}
				require.NoError(t, it.Err())
			}
			require.NoError(t, set.Err())
			require.Equal(t, c.newest, newest)
			require.Equal(t, c.decoded, decoded)
		})
	}
}

// Extent says what the chunks say, or more where late samples replace others, and gives up on histograms.
func TestExtent(t *testing.T) {
	for name, c := range map[string]struct {
		samples []sample
		counted int
	}{
		"one":                  {[]sample{{t: 1, v: 1}}, 1},
		"open chunk":           {[]sample{{t: 1, v: 1}, {t: 2, v: 2}}, 2},
		"closed chunks too":    {manySamples(300), 300}, // The chunk in which the range ends is counted whole.
		"late":                 {[]sample{{t: 5, v: 1}, {t: 2, v: 2}}, 2},
		"late in place of one": {[]sample{{t: 5, v: 1}, {t: 7, v: 2}, {t: 5, v: 2}}, 3},
		"late chunks":          {append([]sample{{t: 1000, v: 1}}, manySamples(100)...), 100},
		"late out of range":    {[]sample{{t: 5, v: 1}, {t: -3, v: 2}}, 1},
		"histograms":           {[]sample{{t: 5, h: &histogram.Histogram{}}}, -1},
		"late histograms":      {[]sample{{t: 5, v: 1}, {t: 2, h: &histogram.Histogram{}}}, -1},
	} {
		t.Run(name, func(t *testing.T) {
			g := NewGeneration(Options{})
			g.Append(0, batch(in(lset("__name__", "m"), c.samples...)))
			q, err := g.ChunkQuerier(0, 250)
			require.NoError(t, err)
			set := q.Select(ctx, false, nil, all())
			require.True(t, set.Next())
			mint, maxt, n, ok := set.At().(*chunkSeries).Extent()
			require.Equal(t, c.counted >= 0, ok)
			if !ok {
				return
			}
			require.Equal(t, c.counted, n)
			it := set.At().Iterator(nil)
			first, last := int64(-1), int64(-1)
			for it.Next() {
				if first < 0 {
					first = it.At().MinTime
				}
				last = it.At().MaxTime
			}
			require.Equal(t, []int64{first, last}, []int64{mint, maxt})
		})
	}
}

func manySamples(n int) (out []sample) {
	for i := range n {
		out = append(out, sample{t: int64(i), v: float64(i)})
	}
	return out
}
