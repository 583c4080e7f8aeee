package engine

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/serving"
)

// objectStore is a bucket that is no folder, and remembers which parts of objects were asked for.
type objectStore struct {
	objstore.Bucket
	mu    sync.Mutex
	asked []string
}

func (b *objectStore) GetRange(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	b.mu.Lock()
	b.asked = append(b.asked, name)
	b.mu.Unlock()
	return b.Bucket.GetRange(ctx, name, off, n)
}

// during returns what was asked for while f ran.
func (b *objectStore) during(f func()) []string {
	b.mu.Lock()
	b.asked = nil
	b.mu.Unlock()
	f()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked
}

func newObjectStore(t *testing.T) *objectStore {
	b := &objectStore{Bucket: objstore.NewInMemBucket()}
	makeBucket = func([]byte) (objstore.Bucket, error) { return b, nil }
	t.Cleanup(func() { makeBucket = newBucket })
	return b
}

func indexCopies(t *testing.T, path string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(path, indexesDir))
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestIndexesAreKeptLocally: whether a block was uploaded from here or found in the bucket, the first query of it asks for chunks only.
func TestIndexesAreKeptLocally(t *testing.T) {
	store, path := newObjectStore(t), t.TempDir()
	now := time.Now().UnixMilli()
	want := []point{{now - 1000, 1}}
	ask := func(e *Engine) []string {
		return store.during(func() { require.Equal(t, want, read(t, e, serving.Batch, "a", now, time.Hour)) })
	}
	onlyChunks := func(asked []string) {
		require.NotEmpty(t, asked)
		for _, name := range asked {
			require.Contains(t, name, "/chunks/")
		}
	}

	e := startEngine(t, testConfig(t, path))
	write(t, e, "a", want[0])
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
	eventually(t, "the block is in the bucket", func() bool {
		return len(e.Layers().Blocks) == 1 && e.Layers().Blocks[0].Location == "bucket"
	})
	require.Equal(t, []string{e.Layers().Blocks[0].ULID.String()}, indexCopies(t, path))
	onlyChunks(ask(e))
	require.Empty(t, ask(e), "again, it asks for nothing")
	stopEngine(t, e)

	require.NoError(t, os.RemoveAll(filepath.Join(path, indexesDir)))
	e = startEngine(t, testConfig(t, path))
	eventually(t, "the copy is made again", func() bool {
		return len(indexCopies(t, path)) == 1 && !strings.HasSuffix(indexCopies(t, path)[0], goneSuffix)
	})
	e.copyIndexes(t.Context()) // waits for the one under way
	onlyChunks(ask(e))
	stopEngine(t, e)

	e = startEngine(t, testConfig(t, path))
	onlyChunks(ask(e))
	stopEngine(t, e)

	e = startEngine(t, testConfig(t, path, "--objstore.index-cache-size=0"))
	require.Empty(t, indexCopies(t, path), "who wants no copies need not remove them")
	require.NotEmpty(t, ask(e))
}

func TestAQueryMayNotFetchMoreThanItsLimit(t *testing.T) {
	newObjectStore(t)
	e := startEngine(t, testConfig(t, t.TempDir(), "--query.max-bucket-size=1B"))
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now - 1000, 1})
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
	eventually(t, "the block is in the bucket", func() bool {
		return len(e.Layers().Blocks) == 1 && e.Layers().Blocks[0].Location == "bucket"
	})
	require.ErrorContains(t, readError(t, e, serving.Batch, "a", now, time.Hour), "--query.max-bucket-size")
}
