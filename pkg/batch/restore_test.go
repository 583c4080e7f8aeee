package batch

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

// What a damaged block was made of stays, however long ago it was marked, and the next run makes the block again.
func TestABlockInQuarantineIsMadeAgain(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), time.Now().UTC().Truncate(day).Add(9*hour))
	w.config.DeletionDelay = time.Hour
	w.generation([]string{"a", "b"}, 0, 3*hour)
	w.advance(4 * hour)
	r := w.runner()
	w.run(r, true)
	w.check()
	bad := w.visible()
	for _, m := range bad {
		require.NoError(t, w.bucket.Upload(context.Background(), m.ULID.String()+"/index", strings.NewReader("damaged")))
		require.NoError(t, block.Quarantine(context.Background(), w.bucket, m.ULID, "damaged"))
	}
	w.advance(96 * time.Hour)
	require.Positive(t, w.run(r, true).Written)
	w.check()
	for _, m := range w.visible() {
		findings, err := block.Verify(context.Background(), w.bucket, m.ULID)
		require.NoError(t, err)
		require.Empty(t, findings)
	}
	_, left := answering(w.listed())
	require.Empty(t, left, "no answer warns any more")
}

// As long as a part of what is needed is gone, what is left of it answers and is neither merged nor deleted.
func TestAPartOfWhatABlockInQuarantineWasMadeOfStays(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), time.Now().UTC().Truncate(day).Add(9*hour))
	w.config.DeletionDelay = time.Hour
	gone := w.generation([]string{"a"}, 0)[0]
	rest := w.generation([]string{"b"}, 0)[0]
	w.advance(4 * hour)
	r := w.runner()
	w.run(r, true)
	require.Len(t, w.visible(), 1)
	require.NoError(t, block.Delete(context.Background(), w.bucket, gone))
	require.NoError(t, block.Quarantine(context.Background(), w.bucket, w.visible()[0].ULID, "damaged"))
	for range 3 {
		w.advance(96 * time.Hour)
		require.Zero(t, w.run(r, true).Written)
		answer, left := answering(w.listed())
		require.Len(t, answer, 1)
		require.Equal(t, rest, answer[0].ULID)
		require.Len(t, left, 1)
	}
}
