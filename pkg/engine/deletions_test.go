package engine

import (
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/tombstone"
)

func series(name string) tombstone.Selector {
	return tombstone.Selector{labels.MustNewMatcher(labels.MatchEqual, "series", name)}
}

// deleteAll deletes all samples of series.
func deleteAll(t *testing.T, e *Engine, s ...tombstone.Selector) {
	t.Helper()
	require.NoError(t, e.DeleteSeries(t.Context(), Deletion{Selectors: s, MinTime: minTime, MaxTime: maxTime}))
}

// Wherever a sample is, a deletion hides it, and not what is written afterwards, though it be of the same time.
func TestADeletionHidesWhatWasAcceptedBefore(t *testing.T) {
	path := t.TempDir()
	e := startEngine(t, testConfig(t, path))
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now - 3000, 1})
	require.NoError(t, e.RunBatch(t.Context())) // in a compacted block
	write(t, e, "a", point{now - 3000, 2}, point{now - 2000, 2})
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
	require.NoError(t, e.uploadOnce(t.Context())) // in a block of level 0
	write(t, e, "a", point{now - 1000, 3})
	write(t, e, "b", point{now - 1000, 3}) // in memory
	all := []point{{now - 3000, 2}, {now - 2000, 2}, {now - 1000, 3}}
	require.Equal(t, all, read(t, e, serving.Merged, "a", now, time.Minute))

	deleteAll(t, e, series("a"))
	require.Empty(t, read(t, e, serving.Merged, "a", now, time.Minute))
	require.Len(t, read(t, e, serving.Merged, "b", now, time.Minute), 1)
	write(t, e, "a", point{now - 2000, 4})
	again := []point{{now - 2000, 4}}
	require.Equal(t, again, read(t, e, serving.Merged, "a", now, time.Minute))

	stopEngine(t, e)
	e = startEngine(t, testConfig(t, path))
	require.Equal(t, again, read(t, e, serving.Merged, "a", now, time.Minute), "after a restart")
	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, again, read(t, e, serving.Merged, "a", now, time.Minute), "after a compaction")
	require.Equal(t, again, read(t, e, serving.Batch, "a", now, time.Minute))

	// Who comes new to the bucket finds in it what was deleted.
	stopEngine(t, e)
	other := t.TempDir()
	require.NoError(t, os.Rename(filepath.Join(path, bucketDir), filepath.Join(other, bucketDir)))
	e = startEngine(t, testConfig(t, other))
	require.Equal(t, again, read(t, e, serving.Merged, "a", now, time.Minute))
	require.Equal(t, 1, e.Layers().Tombstones.Count)
}

// What an instant query looks at first, a series' newest sample, may be one that is gone.
func TestTheNewestSampleMayBeDeleted(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir()))
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now - 3000, 1}, point{now - 2000, 2}, point{now - 1000, 3})
	require.NoError(t, e.DeleteSeries(t.Context(), Deletion{Selectors: []tombstone.Selector{series("a")}, MinTime: now - 2000, MaxTime: now}))
	q, err := e.queries.NewInstantQuery(t.Context(), e.queryable, nil, `m{series="a"}`, time.UnixMilli(now))
	require.NoError(t, err)
	defer q.Close()
	v, err := q.Exec(t.Context()).Vector()
	require.NoError(t, err)
	require.Len(t, v, 1)
	require.Equal(t, 1.0, v[0].F)
}

func TestADeletionSealsOnlyWhatItMust(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir()))
	first := e.activeGeneration().Number
	deleteAll(t, e, series("a"))
	require.Equal(t, first, e.activeGeneration().Number, "nothing was accepted")
	write(t, e, "a", point{time.Now().UnixMilli(), 1})
	deleteAll(t, e, series("a"))
	require.Equal(t, first+1, e.activeGeneration().Number)
	deleteAll(t, e, series("a"))
	require.Equal(t, first+1, e.activeGeneration().Number)
	require.Equal(t, 2, e.Layers().Tombstones.Count, "the same again is nothing new")
}

// A generation of which something was deleted takes no further requests, though the logs of later ones be lost.
func TestWhatComesAfterALossIsNotTakenForDeleted(t *testing.T) {
	path := t.TempDir()
	e := startEngine(t, testConfig(t, path))
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now - 1000, 1})
	old := e.activeGeneration().Number
	deleteAll(t, e, series("a"))
	eventually(t, "the generation is in the bucket", func() bool { return e.Layers().Watermarks.Uploaded == old })
	stopEngine(t, e)
	require.NoError(t, os.RemoveAll(filepath.Join(path, walDir)))
	require.NoError(t, os.RemoveAll(filepath.Join(path, bucketDir)))
	require.NoError(t, os.Remove(filepath.Join(path, foldersFile)))
	e = startEngine(t, testConfig(t, path))
	require.Greater(t, e.activeGeneration().Number, old)
	write(t, e, "a", point{now - 1000, 2})
	require.Equal(t, []point{{now - 1000, 2}}, read(t, e, serving.Merged, "a", now, time.Minute))

	// The same where only the log of the later generation is lost, and the earlier one could be gone on with.
	require.NoError(t, e.DeleteSeries(t.Context(), Deletion{Selectors: []tombstone.Selector{series("b")}, MinTime: minTime, MaxTime: maxTime}))
	e.flushing.Lock() // so that it stays a log
	write(t, e, "a", point{now - 1000, 3})
	deleteAll(t, e, series("a"))
	last := e.activeGeneration()
	copied := t.TempDir()
	require.NoError(t, os.CopyFS(copied, os.DirFS(path)))
	e.flushing.Unlock()
	require.NoError(t, os.RemoveAll(filepath.Join(copied, walDir, last.name())))
	e = startEngine(t, testConfig(t, copied))
	require.Empty(t, read(t, e, serving.Merged, "a", now, time.Minute))
	write(t, e, "a", point{now - 1000, 4})
	require.Equal(t, []point{{now - 1000, 4}}, read(t, e, serving.Merged, "a", now, time.Minute))
}

// A file that cannot be read keeps the engine from opening: what it deletes would be seen.
func TestADamagedTombstoneIsNotPassedOver(t *testing.T) {
	path := t.TempDir()
	e := startEngine(t, testConfig(t, path))
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now, 1})
	deleteAll(t, e, series("a"))
	stopEngine(t, e)
	names, err := filepath.Glob(filepath.Join(path, tombstonesDir, "*.json"))
	require.NoError(t, err)
	require.Len(t, names, 1)
	whole, err := os.ReadFile(names[0])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(names[0], []byte(strings.Replace(string(whole), `"value":"a"`, `"value":"b"`, 1)), 0o600))
	require.NoError(t, os.WriteFile(names[0]+goneSuffix, whole[:10], 0o600)) // of a process that died
	e = newEngine(t, testConfig(t, path))
	e.Start(http.NotFoundHandler())
	t.Cleanup(func() { stopEngine(t, e) })
	eventually(t, "the engine says which file it is", func() bool {
		s := e.State()
		return s.Phase == Failed && strings.Contains(s.Err.Error(), names[0]) && strings.Contains(s.Err.Error(), "wrong checksum")
	})
	require.NoError(t, os.WriteFile(names[0], whole, 0o600))
	eventually(t, "the engine opens", func() bool { return e.State().Phase == Ready })
	require.Empty(t, read(t, e, serving.Merged, "a", now, time.Minute))
	require.NoFileExists(t, names[0]+goneSuffix)
}

// One in the bucket that cannot be read fails the listing, so that nothing is seen without it.
func TestADamagedTombstoneInTheBucket(t *testing.T) {
	path := t.TempDir()
	cfg := testConfig(t, path)
	e := startEngine(t, cfg)
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now, 1})
	deleteAll(t, e, series("a"))
	require.NoError(t, e.flushSealed(t.Context()))
	require.NoError(t, e.uploadOnce(t.Context()))
	stopEngine(t, e)
	names, err := filepath.Glob(filepath.Join(path, bucketDir, tombstone.Folder, "*.json"))
	require.NoError(t, err)
	require.Len(t, names, 1)
	require.NoError(t, os.WriteFile(names[0], []byte("{}"), 0o600))
	other := t.TempDir()
	require.NoError(t, os.Rename(filepath.Join(path, bucketDir), filepath.Join(other, bucketDir)))
	e = startEngine(t, testConfig(t, other))
	require.ErrorContains(t, readError(t, e, serving.Merged, "a", now, time.Minute), filepath.Base(names[0]))
	require.Contains(t, problem(e, "bucket"), filepath.Base(names[0]))
	require.ErrorContains(t, e.runJobs(t.Context(), true), filepath.Base(names[0]))
}

// Deletions need no bucket. When it is back they are there before what is later.
func TestADeletionWhileTheBucketIsAway(t *testing.T) {
	b, path := newMovableBucket(t), t.TempDir()
	e := startEngine(t, b.config(path))
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now - 1000, 1})
	require.NoError(t, e.RunBatch(t.Context()))
	b.away()
	deleteAll(t, e, series("a"))
	write(t, e, "a", point{now, 2})
	stopEngine(t, e)
	e = startEngine(t, b.config(path))
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
	require.Error(t, e.uploadOnce(t.Context()))
	require.False(t, e.Layers().Tombstones.Newest[0].Uploaded)
	b.back()
	later := func() bool { return e.Layers().Watermarks.Uploaded > e.data.deletions.all()[0].Generation }
	eventually(t, "what is later is in the bucket", later)
	found, err := e.data.deletions.store.List(t.Context())
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, []point{{now, 2}}, read(t, e, serving.Merged, "a", now, time.Minute))
}

// An upload of a block never begins while a tombstone is missing in the bucket.
func TestTombstonesAreUploadedFirst(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir()))
	e.uploads.Lock()
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now, 1})
	deleteAll(t, e, series("a"))
	write(t, e, "a", point{now, 2})
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
	// In place of the folder there is a file, so that no tombstone gets there.
	obstacle := filepath.Join(e.data.path, bucketDir, tombstone.Folder)
	require.NoError(t, os.WriteFile(obstacle, nil, 0o600))
	e.uploads.Unlock()
	require.Error(t, e.uploadOnce(t.Context()))
	listed, err := block.List(t.Context(), e.data.bucket)
	require.NoError(t, err)
	require.Empty(t, listed)
	require.NoError(t, os.Remove(obstacle))
	require.NoError(t, e.uploadOnce(t.Context()))
	listed, err = block.List(t.Context(), e.data.bucket)
	require.NoError(t, err)
	require.NotEmpty(t, listed)
}

// What the batch layer has removed is forgotten, unless it is still needed: then it is put back.
func TestTombstonesThatAreGoneFromTheBucket(t *testing.T) {
	path := t.TempDir()
	e := startEngine(t, testConfig(t, path))
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now, 1})
	write(t, e, "b", point{now, 1})
	require.NoError(t, e.RunBatch(t.Context()))
	deleteAll(t, e, series("a"))
	require.NoError(t, e.uploadOnce(t.Context()))
	made := e.data.deletions.all()[0]
	require.NoError(t, e.data.deletions.store.Delete(t.Context(), made.ID))
	require.NoError(t, e.syncBucket(t.Context()))
	require.Empty(t, read(t, e, serving.Merged, "a", now, time.Minute))
	eventually(t, "it is back", func() bool {
		require.NoError(t, e.uploadOnce(t.Context()))
		found, err := e.data.deletions.store.List(t.Context())
		return err == nil && len(found) == 1
	})
	require.NoError(t, e.RunBatch(t.Context())) // erases
	require.NoError(t, e.data.deletions.store.Delete(t.Context(), made.ID))
	require.NoError(t, e.syncBucket(t.Context()))
	require.Equal(t, 1, e.Layers().Tombstones.Count, "a block that was replaced is still there")
	require.Empty(t, read(t, e, serving.Merged, "a", now, time.Minute))
	listed, err := block.List(t.Context(), e.data.bucket)
	require.NoError(t, err)
	for id, l := range listed {
		if l.DeletionMark != nil {
			require.NoError(t, block.Delete(t.Context(), e.data.bucket, id))
		}
	}
	require.NoError(t, e.uploadOnce(t.Context()))
	require.NoError(t, e.syncBucket(t.Context()))
	require.NoError(t, e.data.deletions.store.Delete(t.Context(), made.ID))
	require.NoError(t, e.syncBucket(t.Context()))
	require.Zero(t, e.Layers().Tombstones.Count)
	require.NoFileExists(t, filepath.Join(path, tombstonesDir, tombstone.FileName(made.ID)))
	require.Empty(t, read(t, e, serving.Merged, "a", now, time.Minute))
	require.Len(t, read(t, e, serving.Merged, "b", now, time.Minute), 1)
}

func TestADeletionTakesExemplars(t *testing.T) {
	path := t.TempDir()
	e := startEngine(t, testConfig(t, path))
	now := time.Now().UnixMilli()
	traces := func() (out []string) {
		for _, x := range e.exemplars.all() {
			out = append(out, x.series.Get("series")+x.Labels.Get("trace_id"))
		}
		return out
	}
	writeExemplars(t, e, ingest.V1, "a", someExemplar(now-2000, 1, "1"), someExemplar(now-1000, 1, "2"))
	writeExemplars(t, e, ingest.V2, "b", someExemplar(now-1000, 1, "3"))
	require.Equal(t, []string{"a1", "a2", "b3"}, traces())
	e.flushing.Lock() // the log stays, and is read back
	require.NoError(t, e.DeleteSeries(t.Context(), Deletion{Selectors: []tombstone.Selector{series("a")}, MinTime: now - 1500, MaxTime: maxTime}))
	require.Equal(t, []string{"a1", "b3"}, traces())
	writeExemplars(t, e, ingest.V1, "a", someExemplar(now-1000, 2, "4"))
	require.Equal(t, []string{"a1", "b3", "a4"}, traces())
	copied := t.TempDir()
	require.NoError(t, os.CopyFS(copied, os.DirFS(path)))
	e.flushing.Unlock()
	e = startEngine(t, testConfig(t, copied))
	require.ElementsMatch(t, []string{"a1", "b3", "a4"}, traces())
}

// Labels that answers add can be named, and are looked at as answers show them.
func TestMatchersOfExternalLabels(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir(), "--external-label=dc=x"))
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now, 1})
	dc := func(v string) tombstone.Selector {
		return append(series("a"), labels.MustNewMatcher(labels.MatchEqual, "dc", v))
	}
	deleteAll(t, e, dc("y"), dc(""))
	require.Len(t, read(t, e, serving.Merged, "a", now, time.Minute), 1)
	deleteAll(t, e, dc("x"))
	require.Empty(t, read(t, e, serving.Merged, "a", now, time.Minute))
	require.NoError(t, e.RunBatch(t.Context()))
	require.Empty(t, read(t, e, serving.Merged, "a", now, time.Minute))
}

func TestLimitsOfDeletions(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir(), "--storage.max-tombstones=1"))
	long := series(strings.Repeat("x", tombstone.MaxMatchers))
	require.ErrorIs(t, e.DeleteSeries(t.Context(), Deletion{Selectors: []tombstone.Selector{long}, MinTime: minTime, MaxTime: maxTime}), tombstone.ErrMatchers)
	deleteAll(t, e, series("a"))
	err := e.DeleteSeries(t.Context(), Deletion{Selectors: []tombstone.Selector{series("b")}, MinTime: minTime, MaxTime: maxTime})
	require.ErrorIs(t, err, ErrTooManyTombstones)
	require.ErrorContains(t, err, "--storage.max-tombstones is 1")
}

// Deletions beside writes: what was answered before is hidden, what is asked for later is not.
func TestDeletionsBesideWrites(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir()))
	now := time.Now().UnixMilli()
	stop := make(chan struct{})
	noise := make(chan error, 1)
	go func() {
		var err error
		for i := 0; err == nil; i++ {
			select {
			case <-stop:
				noise <- nil
				return
			default:
				err = tryWrite(t.Context(), e, "noise", point{now - int64(i), 1})
			}
		}
		noise <- err
	}()
	for i := range 15 {
		write(t, e, "a", point{now - 1000, float64(i)})
		deleteAll(t, e, series("a"))
		require.Empty(t, read(t, e, serving.Merged, "a", now, time.Minute))
		write(t, e, "a", point{now - 1000, -1})
		require.Equal(t, []point{{now - 1000, -1}}, read(t, e, serving.Merged, "a", now, time.Minute))
	}
	close(stop)
	require.NoError(t, <-noise)
}

func TestWhatLayersTellOfDeletions(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir()))
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now, 1})
	for i := range shownTombstones + 1 {
		s := series(fmt.Sprint(i))
		require.NoError(t, e.DeleteSeries(t.Context(), Deletion{Selectors: []tombstone.Selector{s, series("z")}, MinTime: now - 10, MaxTime: math.MaxInt64}))
	}
	l := e.Layers().Tombstones
	require.Equal(t, shownTombstones+1, l.Count)
	require.Len(t, l.Newest, shownTombstones)
	newest := l.Newest[0]
	require.NotEqual(t, ulid.ULID{}, newest.ULID)
	require.Equal(t, []string{fmt.Sprintf(`{series="%d"}`, shownTombstones), `{series="z"}`}, newest.Match)
	require.Equal(t, now-10, newest.MinTime)
	require.Equal(t, 1, newest.Remaining)
}

// A request may bring exemplars and nothing else: what was answered before a deletion does not come back from the log.
func TestADeletionTakesExemplarsThatCameAlone(t *testing.T) {
	path := t.TempDir()
	e := startEngine(t, testConfig(t, path))
	now := time.Now().UnixMilli()
	alone := func(at int64) {
		raw, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{
			Labels:    []prompb.Label{{Name: "__name__", Value: "m"}, {Name: "series", Value: "a"}},
			Exemplars: []prompb.Exemplar{{Value: 1, Timestamp: at}},
		}}}).Marshal()
		require.NoError(t, err)
		_, err = e.receiver.Ingest(t.Context(), ingest.V1, snappy.Encode(nil, raw))
		require.NoError(t, err)
	}
	alone(now - 1000)
	require.Len(t, e.exemplars.all(), 1)
	deleteAll(t, e, series("a"))
	require.Empty(t, e.exemplars.all())
	stopEngine(t, e)
	e = startEngine(t, testConfig(t, path))
	require.Empty(t, e.exemplars.all())
	alone(now)
	stopEngine(t, e)
	e = startEngine(t, testConfig(t, path))
	require.Len(t, e.exemplars.all(), 1, "what came later stays")
}
