package merge

import (
	"iter"

	"github.com/prometheus/prometheus/storage"
)

// Gathered is what a set may also be: one that has found all of its series before it yields the first one, and sorts them only for that.
type Gathered interface {
	// Found yields the series in whatever order they are.
	Found() iter.Seq[storage.ChunkSeries]
}
