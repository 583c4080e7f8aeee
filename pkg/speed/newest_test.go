package speed

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/merge"
)

// Where only the newest sample counts, it is there, whatever else is; and it is all that is decoded where nothing was late.
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
		"late":                   {[]sample{{t: 5, v: 1}, {t: 2, v: 2}}, 0, 10, sample{t: 5, v: 1}, 2},
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

// Extent says what the chunks say.
func TestExtent(t *testing.T) {
	for name, samples := range map[string][]sample{
		"one":               {{t: 1, v: 1}},
		"open chunk":        {{t: 1, v: 1}, {t: 2, v: 2}},
		"closed chunks too": manySamples(300),
		"late":              {{t: 5, v: 1}, {t: 2, v: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			g := NewGeneration(Options{})
			g.Append(0, batch(in(lset("__name__", "m"), samples...)))
			q, err := g.ChunkQuerier(0, 250)
			require.NoError(t, err)
			set := q.Select(ctx, false, nil, all())
			require.True(t, set.Next())
			mint, maxt, n, ok := set.At().(*chunkSeries).Extent()
			require.Equal(t, name != "late", ok)
			if !ok {
				return
			}
			it := set.At().Iterator(nil)
			first, last, count := int64(-1), int64(-1), 0
			for it.Next() {
				if first < 0 {
					first = it.At().MinTime
				}
				last = it.At().MaxTime
				count += it.At().Chunk.NumSamples()
			}
			require.Equal(t, []int64{first, last, int64(count)}, []int64{mint, maxt, int64(n)})
		})
	}
}

func manySamples(n int) (out []sample) {
	for i := range n {
		out = append(out, sample{t: int64(i), v: float64(i)})
	}
	return out
}
