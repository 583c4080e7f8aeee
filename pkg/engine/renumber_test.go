package engine

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/claim"
	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
)

// acceptedBlock makes a local block of what was accepted, which is not uploaded yet.
func acceptedBlock(t *testing.T, e *Engine) {
	t.Helper()
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
}

// killWaiting ends an engine as kill does, before what waits is uploaded.
func killWaiting(t *testing.T, e *Engine) {
	t.Helper()
	e.uploads.Lock()
	e.cancel()
	e.uploads.Unlock()
	kill(t, e)
}

// A writer may die when its tombstone is in the bucket and the blocks that it concerns are not. What the next one accepts, or had waiting, is not of
// these generations, though it has their numbers.
func TestTheDeletionsOfAWriterThatDied(t *testing.T) {
	bucket, c, now := t.TempDir(), &clock{}, time.Now().UnixMilli()
	a := startEngine(t, c.sharing(t, bucket, t.TempDir()))
	write(t, a, "a", point{now, 1})
	require.NoError(t, a.RunBatch(t.Context()))
	b := startEngine(t, c.sharing(t, bucket, t.TempDir()))
	require.Equal(t, claim.Refused, b.Layers().Writer.State)
	a.flushing.Lock()
	write(t, a, "a", point{now + 1, 2})
	deleteAll(t, a, series("a"))
	require.NoError(t, a.uploadOnce(t.Context()))
	number := a.data.deletions.all()[0].Generation
	a.flushing.Unlock()
	killWaiting(t, a)

	c.watch(t, 2*claim.DefaultTimes().Expire, b)
	require.Equal(t, claim.Held, b.Layers().Writer.State)
	write(t, b, "a", point{now + 2, 3})
	want := []point{{now + 2, 3}}
	require.NoError(t, b.syncBucket(t.Context()))
	require.Equal(t, want, read(t, b, serving.Merged, "a", now+10, time.Hour))
	require.NoError(t, b.uploadOnce(t.Context()))
	require.Greater(t, b.activeGeneration().Number, number)
	require.Equal(t, want, read(t, b, serving.Merged, "a", now+10, time.Hour))
	require.NoError(t, b.RunBatch(t.Context()))
	require.Equal(t, want, read(t, b, serving.Merged, "a", now+10, time.Hour))
	require.Equal(t, want, read(t, b, serving.Batch, "a", now+10, time.Hour))
}

// A deletion concerns all that this server's answers show, also right after it has become the writer.
func TestADeletionByANewWriterIsAboveTheBucket(t *testing.T) {
	bucket, c, now := t.TempDir(), &clock{}, time.Now().UnixMilli()
	a := startEngine(t, c.sharing(t, bucket, t.TempDir()))
	b := startEngine(t, c.sharing(t, bucket, t.TempDir()))
	for range 3 {
		write(t, a, "a", point{now, 1})
		require.NoError(t, a.RunBatch(t.Context()))
	}
	killWaiting(t, a)
	b.data.numbering.Lock() // the upload loop must not be first
	c.watch(t, 2*claim.DefaultTimes().Expire, b)
	require.Equal(t, claim.Held, b.Layers().Writer.State)
	require.NoError(t, b.syncBucket(t.Context()))
	require.NotEmpty(t, read(t, b, serving.Merged, "a", now, time.Hour))
	b.data.numbering.Unlock()
	deleteAll(t, b, series("a"))
	require.Empty(t, read(t, b, serving.Merged, "a", now, time.Hour))
	write(t, b, "a", point{now, 2})
	require.NoError(t, b.RunBatch(t.Context()))
	require.Equal(t, []point{{now, 2}}, read(t, b, serving.Merged, "a", now, time.Hour))
}

// While the bucket cannot tell which numbers it holds there is no order of acceptance to delete by.
func TestNoDeletionBeforeTheNumbersAreCompared(t *testing.T) {
	b := newMovableBucket(t)
	e := startEngine(t, b.config(t.TempDir()))
	e.data.numbering.Lock()
	e.data.numbered = 0
	b.away()
	e.data.numbering.Unlock()
	err := e.DeleteSeries(t.Context(), Deletion{Selectors: nil, MinTime: minTime, MaxTime: maxTime})
	var refused *ingest.Unavailable
	require.ErrorAs(t, err, &refused)
}

// A process that is killed while queries hold blocks that were uploaded leaves their folders. What is accepted last wins all the same.
func TestUploadedBlocksThatAKillLeft(t *testing.T) {
	for name, row := range map[string]struct {
		marked, compacted bool
	}{
		"marked":                 {marked: true},
		"killed before the mark": {},
		"compacted since":        {compacted: true},
	} {
		t.Run(name, func(t *testing.T) {
			path, bucket, now := t.TempDir(), t.TempDir(), time.Now().UnixMilli()
			e := startEngine(t, folderConfig(t, path, bucket))
			e.uploads.Lock()
			write(t, e, "a", point{now, 1})
			acceptedBlock(t, e)
			query := e.set.Pin()
			write(t, e, "a", point{now, 2})
			acceptedBlock(t, e)
			e.uploads.Unlock()
			require.NoError(t, e.uploadOnce(t.Context()))
			number := e.activeGeneration().Number
			left := filepath.Join(t.TempDir(), "left")
			require.NoError(t, os.CopyFS(left, os.DirFS(path)))
			blocks, err := filepath.Glob(filepath.Join(left, blocksDir, "*", uploadedFile))
			require.NoError(t, err)
			require.Len(t, blocks, 1, "or this is no test")
			if !row.marked {
				require.NoError(t, os.Remove(blocks[0]))
			}
			query.Release()
			if row.compacted {
				require.NoError(t, e.RunBatch(t.Context()))
			}
			stopEngine(t, e)

			want := []point{{now, 2}}
			for range 2 {
				e = startEngine(t, folderConfig(t, left, bucket))
				require.Equal(t, want, read(t, e, serving.Merged, "a", now, time.Hour))
				require.Eventually(t, func() bool { return e.stepClaim(t.Context()) == nil && e.uploadOnce(t.Context()) == nil }, 10*time.Second, 10*time.Millisecond)
				require.Empty(t, e.localIDs())
				require.Equal(t, want, read(t, e, serving.Merged, "a", now, time.Hour))
				require.Equal(t, number, e.activeGeneration().Number, "there is no other writer")
				require.NoError(t, e.syncBucket(t.Context()))
				require.Equal(t, want, read(t, e, serving.Batch, "a", now, time.Hour))
				stopEngine(t, e)
			}
			blocks, err = filepath.Glob(filepath.Join(left, blocksDir, "*"))
			require.NoError(t, err)
			require.Empty(t, blocks)
		})
	}
}

// Blocks from before a change of the external labels are not uploaded under the claim of the new ones: the old ones may be another writer's by now.
func TestBlocksThatWaitWithOtherLabels(t *testing.T) {
	bucket, path, c, now := t.TempDir(), t.TempDir(), &clock{}, time.Now().UnixMilli()
	e := startEngine(t, c.sharing(t, bucket, path))
	e.uploads.Lock()
	write(t, e, "a", point{now, 1})
	acceptedBlock(t, e)
	waiting := e.localIDs()
	e.cancel()
	e.uploads.Unlock()
	kill(t, e)

	cfg := c.sharing(t, bucket, path)
	cfg.Storage.ExternalLabels = map[string]string{"site": "x"}
	e = startEngine(t, cfg)
	require.Contains(t, problem(e, "external labels"), `1 blocks that were accepted under other external labels wait for their upload`)
	write(t, e, "b", point{now, 2})
	require.NoError(t, e.RunBatch(t.Context()))
	listed, err := e.data.lister.List(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, listed)
	for id, l := range listed {
		require.Equal(t, cfg.Storage.ExternalLabels, l.Meta.Thanos.Labels, id)
	}
	require.Equal(t, waiting, e.localIDs())
	require.Equal(t, []point{{now, 1}}, read(t, e, serving.Merged, "a", now, time.Hour))
	uploaded, known := e.uploadedUpTo(nil)
	require.True(t, known)
	require.Equal(t, e.activeGeneration().Number-1, uploaded, "they do not keep others from being compacted")
	stopEngine(t, e)

	e = startEngine(t, c.sharing(t, bucket, path))
	require.Empty(t, problem(e, "external labels"))
	require.NoError(t, e.RunBatch(t.Context()))
	require.Empty(t, e.localIDs())
	require.Equal(t, []point{{now, 1}}, read(t, e, serving.Batch, "a", now, time.Hour))
}
