package engine

import (
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/claim"
	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
)

// clock is what claims go by; it runs on its own, and ahead when a test says so.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// watch lets time pass in which engines look after their claims, as often as they should.
func (c *clock) watch(t *testing.T, d time.Duration, engines ...*Engine) {
	t.Helper()
	for ; d > 0; d -= claim.DefaultTimes().Renew {
		c.ahead.Add(int64(claim.DefaultTimes().Renew))
		for _, e := range engines {
			require.NoError(t, e.stepClaim(t.Context()))
		}
	}
}

// sharing are settings of an engine whose bucket others use, too.
func (c *clock) sharing(t *testing.T, bucket, path string) Config {
	cfg := folderConfig(t, path, bucket)
	cfg.clock = c.now
	return cfg
}

// kill ends an engine without a word to the bucket, as a process that is killed does.
func kill(t *testing.T, e *Engine) {
	t.Helper()
	e.cancel() // or a pass over what waits would find that all has arrived
	e.data.cutOff.Store(true)
	stopEngine(t, e)
}

func refusal(t *testing.T, e *Engine) *ingest.Unavailable {
	t.Helper()
	err := tryWrite(t.Context(), e, "a", point{time.Now().UnixMilli(), 1})
	var refused *ingest.Unavailable
	require.ErrorAs(t, err, &refused)
	return refused
}

func TestASecondWriterWithTheSameLabelsIsRefused(t *testing.T) {
	bucket, c, now := t.TempDir(), &clock{}, time.Now().UnixMilli()
	first := startEngine(t, c.sharing(t, bucket, t.TempDir()))
	second := startEngine(t, c.sharing(t, bucket, t.TempDir()))
	refused := refusal(t, second)
	require.Equal(t, http.StatusServiceUnavailable, refused.Status)
	require.Equal(t, refusedFor, refused.RetryAfter)
	require.Equal(t, error(refused), second.RefusesWrites())
	require.NoError(t, first.RefusesWrites())
	require.Contains(t, refused.Reason, `another writer with the same external labels {millrace="main"} held the bucket on host`)
	c.watch(t, time.Hour, first, second)
	require.Contains(t, refusal(t, second).Reason, "each writer of a bucket needs an --external-label of its own")
	require.ErrorIs(t, second.RunBatch(t.Context()), errNotHeld)
	_, err := second.RunBatchJob(t.Context(), true)
	require.ErrorAs(t, err, new(*ingest.Unavailable), "it can be done when the other has ended")
	require.False(t, second.mayCompact())
	_, known := second.uploadedUpTo(nil)
	require.False(t, known, "what another writer has uploaded")

	layers := second.Layers()
	require.Equal(t, claim.Refused, layers.Writer.State)
	require.Equal(t, first.Layers().Writer.Instance, layers.Writer.Holder.Instance)
	require.Contains(t, layers.Problems["writer"], "another writer with the same external labels")
	require.ErrorContains(t, second.State().Err, "another writer with the same external labels", "what the health check shows")
	require.Empty(t, first.Layers().Problems)
	require.Equal(t, claim.Held, first.Layers().Writer.State)

	write(t, first, "a", point{now, 1})
	require.NoError(t, first.RunBatch(t.Context()))
	lister := block.NewLister(first.data.bucket)
	blocks, err := lister.List(t.Context())
	require.NoError(t, err)
	require.Len(t, blocks, 2, "one that was compacted, and its source")
	require.Empty(t, lister.Bad(), "claims are no blocks")
	require.Empty(t, lister.Partial())

	// It takes the first one's place when that ends, at once or after a while, and goes on above its numbers.
	stopEngine(t, first)
	require.NoError(t, second.stepClaim(t.Context()))
	require.Equal(t, claim.Held, second.Layers().Writer.State)
	write(t, second, "a", point{now, 2})
	require.NoError(t, second.RunBatch(t.Context()))
	require.Equal(t, []point{{now, 2}}, read(t, second, serving.Batch, "a", now, time.Hour))
	require.Empty(t, second.Layers().Problems)
}

// The same data path goes on at once after a kill; another one, with nothing in it, when the first one's end is sure, and above its numbers.
func TestTheNextWriterAfterAKill(t *testing.T) {
	bucket, path, c, now := t.TempDir(), t.TempDir(), &clock{}, time.Now().UnixMilli()
	e := startEngine(t, c.sharing(t, bucket, path))
	write(t, e, "a", point{now, 1})
	require.NoError(t, e.RunBatch(t.Context()))
	kill(t, e)

	e = startEngine(t, c.sharing(t, bucket, path))
	write(t, e, "a", point{now, 2})
	require.NoError(t, e.RunBatch(t.Context()))
	before := e.Layers().Watermarks.Accepting
	kill(t, e)

	e = startEngine(t, c.sharing(t, bucket, t.TempDir()))
	refusal(t, e)
	c.watch(t, claim.DefaultTimes().Expire, e)
	require.GreaterOrEqual(t, e.Layers().Watermarks.Accepting, before)
	write(t, e, "a", point{now, 3})
	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, []point{{now, 3}}, read(t, e, serving.Batch, "a", now, time.Hour))
}

// A data path that was moved is not known to be the only one before it has been waited for. What is written meanwhile is kept.
func TestADataPathThatWasMoved(t *testing.T) {
	bucket, path, c, now := t.TempDir(), t.TempDir(), &clock{}, time.Now().UnixMilli()
	e := startEngine(t, c.sharing(t, bucket, path))
	write(t, e, "a", point{now, 1})
	kill(t, e)
	moved := filepath.Join(t.TempDir(), "moved")
	require.NoError(t, os.CopyFS(moved, os.DirFS(path)))

	e = startEngine(t, c.sharing(t, bucket, moved))
	write(t, e, "a", point{now, 2})
	require.ErrorIs(t, e.RunBatch(t.Context()), errNotHeld)
	require.Equal(t, claim.Waiting, e.Layers().Writer.State)
	require.Contains(t, problem(e, "writer"), "a process with this data path or a copy of it held the bucket")
	c.watch(t, claim.DefaultTimes().Inherit, e)
	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, []point{{now, 2}}, read(t, e, serving.Batch, "a", now, time.Hour))

	// Its original comes back to life.
	original := startEngine(t, c.sharing(t, bucket, path))
	c.watch(t, time.Hour, e, original)
	require.Contains(t, refusal(t, original).Reason, "a copy of this data path is in use")
	write(t, e, "a", point{now, 3})
	require.NoError(t, e.RunBatch(t.Context()))
}

// A bucket in the data path goes where that goes.
func TestCopiesOfADataPathWithItsBucketAreIndependent(t *testing.T) {
	path, now := t.TempDir(), time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	write(t, e, "a", point{now, 1})
	require.NoError(t, e.RunBatch(t.Context()))
	dup := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.CopyFS(dup, os.DirFS(path)))
	other := startEngine(t, testConfig(t, dup))
	for i, e := range []*Engine{e, other} {
		write(t, e, "a", point{now, float64(i + 2)})
		require.NoError(t, e.RunBatch(t.Context()))
		require.Equal(t, []point{{now, float64(i + 2)}}, read(t, e, serving.Batch, "a", now, time.Hour))
	}
}

// A writer that was cut off from the bucket for long finds another in its place. What it had accepted until it knew gets its place behind what the
// other uploaded, in the order that it had.
func TestWhatWaitedWhileAnotherWriterWasThere(t *testing.T) {
	b, c, now := newMovableBucket(t), &clock{}, time.Now().UnixMilli()
	sharing := func(path string) Config {
		cfg := b.config(path)
		cfg.clock = c.now
		return cfg
	}
	firstPath := t.TempDir()
	first := startEngine(t, sharing(firstPath))
	write(t, first, "a", point{now, 1})
	require.NoError(t, first.RunBatch(t.Context()))
	kill(t, first)

	b.away()
	first = startEngine(t, sharing(firstPath))
	for v := range 3 {
		write(t, first, "a", point{now, float64(10 + v)}, point{now - int64(v+1)*1000, 10})
		require.NoError(t, first.rotate())
		if v < 2 {
			require.NoError(t, first.flushSealed(t.Context()))
		}
	}
	waiting := first.Layers().Watermarks.Accepting
	require.NotZero(t, waiting)
	kill(t, first)

	b.back()
	second := startEngine(t, sharing(t.TempDir()))
	c.watch(t, claim.DefaultTimes().Expire, second)
	for v := range 10 {
		write(t, second, "a", point{now, float64(100 + v)})
		require.NoError(t, second.RunBatch(t.Context()))
	}
	highest := second.Layers().Watermarks.Uploaded
	require.Greater(t, highest, waiting, "the numbers of both must overlap for this to be a test")
	stopEngine(t, second)

	first = startEngine(t, sharing(firstPath))
	require.NoError(t, first.RunBatch(t.Context()))
	want := []point{{now - 3000, 10}, {now - 2000, 10}, {now - 1000, 10}, {now, 12}}
	require.Equal(t, want, read(t, first, serving.Batch, "a", now, time.Hour))
	require.Greater(t, first.Layers().Watermarks.Uploaded, highest)
	write(t, first, "a", point{now, 13})
	want[3].v = 13
	require.Equal(t, want, read(t, first, serving.Merged, "a", now, time.Hour))
	require.NoError(t, first.RunBatch(t.Context()))
	require.Equal(t, want, read(t, first, serving.Batch, "a", now, time.Hour))
}

func TestADataPathWhoseNameCannotBeRead(t *testing.T) {
	for name, content := range map[string]string{"damaged": "{", "of a later version": `{"version":2}`} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(path, instanceFile), []byte(content), 0o600))
			e := newEngine(t, testConfig(t, path))
			require.ErrorContains(t, e.Prepare(), instanceFile)
			stopEngine(t, e)
		})
	}
}

// An upload that was cut off, as by a caller who hung up, is no reason to keep the claim any more when all has been uploaded since.
func TestTheClaimIsGivenUpAfterAnUploadThatWasCutOffAndRepeated(t *testing.T) {
	bucket := t.TempDir()
	e := startEngine(t, folderConfig(t, t.TempDir(), bucket))
	e.data.cutOff.Store(true)
	write(t, e, "a", point{time.Now().UnixMilli(), 1})
	require.NoError(t, e.RunBatch(t.Context()))
	stopEngine(t, e)
	next := startEngine(t, folderConfig(t, t.TempDir(), bucket))
	require.Equal(t, claim.Held, next.Layers().Writer.State)
}
