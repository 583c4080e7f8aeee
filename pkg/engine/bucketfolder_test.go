package engine

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/batch"
	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/serving"
)

func folderConfig(t *testing.T, path, dir string) Config {
	cfg := testConfig(t, path, "--objstore.config={type: FILESYSTEM, config: {directory: "+dir+"}}")
	cfg.Bucket.SyncInterval = 50 * time.Millisecond
	return cfg
}

// TestABucketFolderThatIsNotMounted takes the folder away, as a disk that is not mounted at the next start, or is unmounted meanwhile.
func TestABucketFolderThatIsNotMounted(t *testing.T) {
	for _, row := range []struct {
		name             string
		running, missing bool
		err              string
	}{
		{"missing at the start", false, true, "does not exist: is it mounted?"},
		{"an empty mount point at the start", false, false, "is it mounted?"},
		{"missing while the engine runs", true, true, "does not exist: is it mounted?"},
		{"an empty mount point while the engine runs", true, false, "is it mounted?"},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := t.TempDir()
			dir := filepath.Join(t.TempDir(), "mnt", "bucket")
			cfg := folderConfig(t, path, dir)
			now := time.Now().UnixMilli()
			e := startEngine(t, cfg) // the first start ever makes the folder
			write(t, e, "a", point{now - 2*dayMillis, 1})
			require.NoError(t, e.RunBatch(t.Context()))

			if !row.running {
				stopEngine(t, e)
			}
			require.NoError(t, os.Rename(dir, dir+".away"))
			if !row.missing {
				require.NoError(t, os.Mkdir(dir, 0o750))
			}
			if !row.running {
				e = startEngine(t, cfg)
				require.ErrorContains(t, readError(t, e, serving.Merged, "a", now, 72*time.Hour), "block", "history is not silently missing")
			}
			write(t, e, "a", point{now, 2})
			require.ErrorContains(t, e.RunBatch(t.Context()), row.err)
			eventually(t, "the outage shows", func() bool { return problem(e, "bucket") != "" && !e.Layers().Bucket.Reachable })
			require.Contains(t, problem(e, "bucket"), dir)
			require.Contains(t, problem(e, "bucket"), row.err)
			require.Equal(t, Ready, e.State().Phase)
			require.Equal(t, []point{{now, 2}}, read(t, e, serving.Merged, "a", now, time.Hour))
			entries, _ := os.ReadDir(dir)
			require.Empty(t, entries, "nothing is written to what is not the bucket")

			require.NoError(t, os.RemoveAll(dir))
			require.NoError(t, os.Rename(dir+".away", dir))
			eventually(t, "the bucket is back", func() bool { return problem(e, "bucket") == "" })
			require.NoError(t, e.RunBatch(t.Context()))
			require.Equal(t, []point{{now - 2*dayMillis, 1}, {now, 2}}, read(t, e, serving.Batch, "a", now, 72*time.Hour))
		})
	}
}

func TestAFailedUploadShowsThatTheBucketIsAway(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bucket")
	e := startEngine(t, folderConfig(t, t.TempDir(), dir))
	require.NoError(t, e.uploadOnce(t.Context()))
	e.data.synced.turn <- struct{}{} // no listing from now on
	defer func() { <-e.data.synced.turn }()
	write(t, e, "a", point{time.Now().UnixMilli(), 1})
	require.True(t, e.Layers().Bucket.Reachable)
	require.NoError(t, os.Rename(dir, dir+".away"))
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
	err := e.uploadOnce(t.Context())
	require.ErrorContains(t, err, "is it mounted?")
	require.Equal(t, 1, strings.Count(err.Error(), "upload block"), err)
	require.False(t, e.Layers().Bucket.Reachable)
	require.Contains(t, e.Layers().Bucket.Error, "is it mounted?")

	require.NoError(t, os.Rename(dir+".away", dir))
	eventually(t, "the upload succeeds", func() bool { return e.uploadOnce(t.Context()) == nil })
	require.True(t, e.Layers().Bucket.Reachable, e.Layers().Bucket.Error)
}

// What an upload meets does not hide that the bucket cannot be listed.
func TestAnUploadDoesNotUndoAFailedListing(t *testing.T) {
	s := newBucketState()
	s.listing(serving.NewSet(), 0, nil, nil, nil, nil)
	s.listingFailed(block.ErrGone)
	s.uploadTried(block.ErrUnavailable)
	s.uploadTried(nil)
	require.Equal(t, block.ErrGone.Error(), s.info().Error)
	s.listing(serving.NewSet(), 0, nil, nil, nil, nil)
	s.uploadTried(block.ErrCorrupt)
	require.True(t, s.info().Reachable, "the bucket answered")
	s.uploadTried(block.ErrUnavailable)
	require.False(t, s.info().Reachable)
}

func TestAnotherFolderIsANewBucket(t *testing.T) {
	path, dirs := t.TempDir(), t.TempDir()
	for _, name := range []string{"one", "two"} {
		dir := filepath.Join(dirs, name)
		e := startEngine(t, folderConfig(t, path, dir))
		require.NoError(t, e.State().Err)
		require.DirExists(t, dir)
		stopEngine(t, e)
	}
	// The first one was not forgotten over the second.
	require.NoError(t, os.RemoveAll(filepath.Join(dirs, "one")))
	e := startEngine(t, folderConfig(t, path, filepath.Join(dirs, "one")))
	require.Contains(t, problem(e, "bucket"), foldersFile, "the way out is named")
	stopEngine(t, e)
	require.NoError(t, os.Remove(filepath.Join(path, foldersFile)))
	e = startEngine(t, folderConfig(t, path, filepath.Join(dirs, "one")))
	require.NoError(t, e.State().Err)
}

func TestMakingTheFolderIsLoggedOnce(t *testing.T) {
	path, there, absent := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "bucket")
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	for _, dir := range []string{there, absent, absent} {
		bkt, err := block.NewDirBucket(dir)
		require.NoError(t, err)
		require.NoError(t, newBucketFolder(path, bkt, logger).prepare(t.Context()))
	}
	require.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
	require.Contains(t, log.String(), `level=INFO msg="made the bucket's folder" path=`+absent)
}

func TestAListOfFoldersThatCannotBeReadIsAnOutage(t *testing.T) {
	path, dir := t.TempDir(), t.TempDir()
	for _, content := range []string{"{", `{"version":2}`} {
		require.NoError(t, os.WriteFile(filepath.Join(path, foldersFile), []byte(content), 0o600))
		e := startEngine(t, folderConfig(t, path, dir))
		require.Contains(t, problem(e, "bucket"), foldersFile)
		write(t, e, "a", point{time.Now().UnixMilli(), 1})
		require.Error(t, e.RunBatch(t.Context()))
		stopEngine(t, e)
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, entries)
	}
}

func TestCommandsMakeNoFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bucket")
	raw := fmt.Appendf(nil, "type: FILESYSTEM\nconfig: {directory: %s}\n", dir)
	_, err := OpenBucket(raw)
	require.ErrorContains(t, err, dir+" does not exist: is it mounted?")
	bkt, err := block.NewDirBucket(dir)
	require.NoError(t, err)
	_, err = RunJobs(t.Context(), batch.Options{Bucket: bkt, Lister: block.NewLister(bkt), ScratchDir: t.TempDir()}, true)
	require.ErrorIs(t, err, block.ErrUnavailable)
	require.NoDirExists(t, dir)
}

// removedSource is there to be removed.
type removedSource struct{ serving.Source }

func (removedSource) Generations() (uint64, uint64)                           { return 1, 1 }
func (removedSource) ChunkQuerier(int64, int64) (storage.ChunkQuerier, error) { return nil, nil }

func TestBlocksAreReleasedOutsideOfTheLock(t *testing.T) {
	for name, change := range map[string]func(*bucketState, *serving.Set, serving.Source){
		"an upload": func(s *bucketState, set *serving.Set, old serving.Source) { s.uploaded(set, &blockSource{}, old) },
		"a listing": func(s *bucketState, set *serving.Set, old serving.Source) {
			s.unknown = []serving.Source{old}
			s.listing(set, 0, nil, nil, nil, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, set, old := newBucketState(), serving.NewSet(), &removedSource{}
			released := 0
			set.Replace(nil, []serving.Entry{{Source: old, Release: func() {
				require.True(t, s.mu.TryLock(), "what is known of the bucket waits for a release")
				s.mu.Unlock()
				released++
			}}})
			change(s, set, old)
			require.Equal(t, 1, released)
		})
	}
}

func TestErrorsOfTheBucketsConfigurationNameFileAndLine(t *testing.T) {
	for _, row := range []struct {
		name, config string
		err, not     string
	}{
		{"no YAML", "type: S3\n config: [", "line 2: mapping values", ""},
		{"an empty file", "", `the setting "type" is missing`, "line"},
		{"an unknown section", "type: S3\nconfg: {}\n", "line 2: there is no setting \"confg\"", ""},
		{"an unknown setting", "type: S3\nconfig:\n  endpoint: x\n  buckt: y\n", "line 4: there is no setting \"buckt\"", "line 1"},
		{"an unknown setting, deeper", "type: S3\nconfig:\n  endpoint: x\n\n  http_config:\n    tmeout: 1s\n", "line 6: there is no setting \"tmeout\"", ""},
		{"a value of the wrong type", "type: S3\nconfig:\n  endpoint: x\n\n  insecure: maybe\n", "cannot unmarshal !!str `maybe` into bool", "line"},
		{"no bucket", "type: S3\nconfig:\n  endpoint: x\n", `the setting "bucket" is missing`, "line"},
		{"a short name of a bucket", "type: S3\nconfig:\n  endpoint: x\n  bucket: ab\n", `line 4: bucket: "ab" is no name`, ""},
		{"a short name in OBS", "type: obs\nconfig: {endpoint: x, bucket: ab, access_key: a, secret_key: b}\n", `line 2: bucket: "ab" is no name`, ""},
		{"a setting that is missing", "type: S3\nconfig:\n  bucket: x\n", "no s3 endpoint", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "bucket.yaml")
			require.NoError(t, os.WriteFile(file, []byte(row.config), 0o600))
			e := newEngine(t, testConfig(t, t.TempDir(), "--objstore.config-file="+file))
			_, err := e.openPath()
			require.ErrorContains(t, err, "--objstore.config-file="+file+": ")
			require.ErrorContains(t, err, row.err)
			if row.not != "" {
				require.NotContains(t, err.Error()[len(file):], row.not)
			}
		})
	}
}
