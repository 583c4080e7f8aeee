package block

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

// newDirBucket is a bucket in a folder that it makes.
func newDirBucket(t testing.TB, root string) *DirBucket {
	t.Helper()
	bkt, err := NewDirBucket(root)
	require.NoError(t, err)
	require.NoError(t, bkt.Init(t.Context()))
	return bkt
}

// requests are one of each kind, on names that are not there.
func requests(t *testing.T, bkt objstore.Bucket) map[string]error {
	t.Helper()
	id := newID(t)
	out := map[string]error{}
	_, out["list"] = List(t.Context(), bkt)
	out["list with attributes"] = bkt.IterWithAttributes(t.Context(), "", func(objstore.IterObjectAttributes) error { return nil })
	_, out["get"] = bkt.Get(t.Context(), "x/y")
	_, out["get a range"] = bkt.GetRange(t.Context(), "x/y", 1, 2)
	_, out["attributes"] = bkt.Attributes(t.Context(), "x/y")
	_, out["exists"] = bkt.Exists(t.Context(), "x/y")
	out["upload"] = bkt.Upload(t.Context(), "x/y", strings.NewReader("z"))
	out["delete"] = bkt.Delete(t.Context(), "x/y")
	_, out["open"] = OpenBucket(t.Context(), bkt, id, nil)
	_, out["open with its meta"] = OpenBucketMeta(t.Context(), bkt, testMeta(t, 0, hour, 0, 1, 1), nil)
	_, out["verify"] = Verify(t.Context(), bkt, id)
	return out
}

func TestAFolderThatIsAwayIsNoEmptyBucket(t *testing.T) {
	for _, row := range []struct {
		name string
		take func(t *testing.T, root string) (left string)
		err  string
	}{
		{"missing", func(t *testing.T, root string) string {
			require.NoError(t, os.Rename(root, root+".away"))
			return ""
		}, "does not exist: is it mounted?"},
		{"an empty mount point", func(t *testing.T, root string) string {
			require.NoError(t, os.Rename(root, root+".away"))
			require.NoError(t, os.Mkdir(root, 0o750))
			return ""
		}, "is it mounted?"},
		{"a mount point with a note", func(t *testing.T, root string) string {
			require.NoError(t, os.Rename(root, root+".away"))
			require.NoError(t, os.Mkdir(root, 0o750))
			require.NoError(t, os.WriteFile(filepath.Join(root, "NOT_MOUNTED"), nil, 0o600))
			return "NOT_MOUNTED"
		}, "is it mounted?"},
		{"a file", func(t *testing.T, root string) string {
			require.NoError(t, os.Rename(root, root+".away"))
			require.NoError(t, os.WriteFile(root, nil, 0o600))
			return ""
		}, "not a folder"},
	} {
		t.Run(row.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "mnt", "bucket")
			bkt := newDirBucket(t, root)
			left := row.take(t, root)
			for request, err := range requests(t, bkt) {
				require.ErrorIs(t, err, ErrUnavailable, request)
				require.NotErrorIs(t, err, ErrGone, request)
				require.ErrorContains(t, err, root, request)
				require.ErrorContains(t, err, row.err, request)
				require.False(t, bkt.IsObjNotFoundErr(err), request)
			}
			require.ErrorIs(t, bkt.Init(t.Context()), ErrUnavailable, "a bucket that was there is not made anew")
			entries, _ := os.ReadDir(root)
			require.Equal(t, left != "", len(entries) == 1, "nothing is written to it")

			require.NoError(t, os.RemoveAll(root))
			require.NoError(t, os.Rename(root+".away", root))
			_, err := List(t.Context(), bkt)
			require.NoError(t, err, "it is back")
		})
	}
}

func TestReadersDoNotMakeTheFolder(t *testing.T) {
	root := filepath.Join(t.TempDir(), "bucket")
	bkt, err := NewDirBucket(root)
	require.NoError(t, err)
	for request, err := range requests(t, bkt) {
		require.ErrorIs(t, err, ErrUnavailable, request)
	}
	require.NoDirExists(t, root)

	require.NoError(t, os.Mkdir(root, 0o750))
	listed, err := List(t.Context(), bkt)
	require.NoError(t, err, "a folder that nobody has used yet is an empty bucket")
	require.Empty(t, listed)
	entries, err := os.ReadDir(root)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestAFolderOfBlocksWithoutItsMarkerIsABucket(t *testing.T) {
	dir, m := writeBlock(t, randomInput(rand.New(rand.NewPCG(1, 2)), 5, 0, hour))
	root := filepath.Join(t.TempDir(), "bucket")
	require.NoError(t, Upload(t.Context(), newDirBucket(t, root), dir))
	require.NoError(t, os.Remove(filepath.Join(root, markerFilename)))

	bkt, err := NewDirBucket(root)
	require.NoError(t, err)
	bkt.ExpectMade()
	listed, err := List(t.Context(), bkt)
	require.NoError(t, err)
	require.Contains(t, listed, m.ULID)
	require.NoError(t, bkt.Init(t.Context()))
	require.FileExists(t, filepath.Join(root, markerFilename))
}

func TestLeftoversOfKilledUploadsAreRemoved(t *testing.T) {
	root := t.TempDir()
	now := time.Now()
	for name, age := range map[string]time.Duration{
		".upload-old": leftoverAge + time.Minute, ".upload-young": leftoverAge - time.Minute, "other-old": 2 * leftoverAge,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte("half"), 0o600))
		require.NoError(t, os.Chtimes(filepath.Join(root, name), now, now.Add(-age)))
	}
	bkt, err := NewDirBucket(root)
	require.NoError(t, err)
	_, err = List(t.Context(), bkt)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(root, ".upload-old"), "who only reads removes nothing")

	require.NoError(t, bkt.Upload(t.Context(), "a/b", strings.NewReader("x")))
	require.NoFileExists(t, filepath.Join(root, ".upload-old"))
	require.FileExists(t, filepath.Join(root, ".upload-young"), "another process may be writing")
	require.FileExists(t, filepath.Join(root, "other-old"))

	old := now.Add(-2 * leftoverAge)
	require.NoError(t, os.Chtimes(filepath.Join(root, ".upload-young"), old, old))
	bkt.cleanOnce(now.Add(2 * cleanInterval))
	_, err = os.Stat(filepath.Join(root, ".upload-young"))
	require.ErrorIs(t, err, fs.ErrNotExist, "it is looked for again later")
}
