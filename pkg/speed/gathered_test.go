package speed

import (
	"fmt"
	"testing"

	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/merge"
)

// A set tells what it has found without sorting it, and yields it sorted all the same.
func TestWhatIsFoundIsSortedLater(t *testing.T) {
	g := NewGeneration(Options{})
	var want []string
	for i := range 100 {
		g.Append(uint64(i), batch(in(lset("__name__", fmt.Sprintf("m%02d", 99-i)), sample{t: 1, v: 1})))
		want = append(want, fmt.Sprintf("m%02d", i))
	}
	q, err := g.ChunkQuerier(0, 10)
	require.NoError(t, err)
	names := func(hints *storage.SelectHints) (found, yielded []string) {
		set := q.Select(ctx, true, hints, all())
		for s := range set.(merge.Gathered).Found() {
			found = append(found, s.Labels().Get("__name__"))
		}
		for set.Next() {
			yielded = append(yielded, set.At().Labels().Get("__name__"))
		}
		require.NoError(t, set.Err())
		return found, yielded
	}
	found, yielded := names(nil)
	require.ElementsMatch(t, want, found)
	require.NotEqual(t, want, found)
	require.Equal(t, want, yielded)
	found, yielded = names(&storage.SelectHints{Limit: 3})
	require.Equal(t, want[:3], found)
	require.Equal(t, want[:3], yielded)
}
