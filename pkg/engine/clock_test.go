package engine

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/serving"
)

// A generation may reach from before a clock jumped to long after: what lies between is empty, and costs nothing.
func TestAGenerationOfWhichTheClockJumped(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir(), "--ingest.max-future=0s"))
	now := time.Now().UnixMilli()
	far := now + 365*dayMillis
	write(t, e, "a", point{now - 3*dayMillis, 1}, point{now, 2}, point{far, 3})
	write(t, e, "b", point{far, 4}, point{now + dayMillis/6, 5}, point{now, 6})
	g := e.activeGeneration()
	stats := g.mem.Stats()
	windows := g.windows(stats.MinTime, stats.MaxTime)
	require.Greater(t, len(windows), 4000)
	occupied, err := g.occupied(t.Context(), windows)
	require.NoError(t, err)
	require.Less(t, len(occupied), 10)

	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, []point{{now - 3*dayMillis, 1}, {now, 2}}, read(t, e, serving.Batch, "a", now, 100*time.Hour))
	require.Equal(t, []point{{far, 3}}, read(t, e, serving.Batch, "a", far, time.Hour))
	require.Equal(t, []point{{now, 6}, {now + dayMillis/6, 5}, {far, 4}}, read(t, e, serving.Batch, "b", far, 366*24*time.Hour))
}
