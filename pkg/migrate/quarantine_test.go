package migrate

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

// What is skipped because only a block in quarantine has it is missing from answers; the way out is to remove the block.
func TestWhatABlockInQuarantineHasIsTold(t *testing.T) {
	db := newDB(t)
	fill(t, db, begin, begin+3*hour)
	dir := t.TempDir()
	require.NoError(t, db.Snapshot(dir, true))
	bkt := objstore.NewInMemBucket()
	var log bytes.Buffer
	logged := func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) }
	first, err := importInto(t, bkt, logged, blocksOf(dir))
	require.NoError(t, err)
	_, err = importInto(t, bkt, logged, blocksOf(dir))
	require.NoError(t, err)
	require.NotContains(t, log.String(), "quarantine")

	listed, err := block.List(t.Context(), bkt)
	require.NoError(t, err)
	for id := range listed {
		require.NoError(t, block.Quarantine(t.Context(), bkt, id, "damaged"))
	}
	s, err := importInto(t, bkt, logged, blocksOf(dir))
	require.NoError(t, err)
	require.Zero(t, s.Blocks)
	require.Positive(t, s.Windows)
	for id := range listed {
		require.Equal(t, 1, strings.Count(log.String(), "block="+id.String()), log.String())
		for name := range content(bkt) {
			if strings.HasPrefix(name, id.String()+"/") {
				require.NoError(t, bkt.Delete(t.Context(), name))
			}
		}
	}
	s, err = importInto(t, bkt, logged, blocksOf(dir))
	require.NoError(t, err)
	require.Equal(t, first.Samples, s.Samples)
	requireVerified(t, bkt)
}
