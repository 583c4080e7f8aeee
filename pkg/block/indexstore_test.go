package block

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

func openIndexes(t *testing.T, dir string, limit int64) *IndexStore {
	t.Helper()
	s, err := OpenIndexStore(IndexStoreOptions{Dir: dir, Limit: limit})
	require.NoError(t, err)
	return s
}

// withCopies opens a block that may use the copies of a store.
func withCopies(t *testing.T, bkt objstore.BucketReader, m Meta, s *IndexStore) *Block {
	t.Helper()
	cache := NewCache(0, nil)
	cache.UseIndexes(s)
	b, err := OpenBucketMeta(t.Context(), bkt, m, cache)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func copyNames(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func selectSome(t *testing.T, b *Block) []string {
	t.Helper()
	q, err := b.ChunkQuerier(0, 2*hour)
	require.NoError(t, err)
	defer q.Close()
	return dump(t, q.Select(t.Context(), true, nil, eq("__name__", "metric_3"), re("instance", "host-0.*"), neq("job", "job1")))
}

// TestCopiesSpareRequests: with a copy of the whole index a query asks for chunks, in one round trip; without its series it asks for these, too.
func TestCopiesSpareRequests(t *testing.T) {
	bkt, m, _ := segmented(t, func(*Meta) {})
	plain, err := OpenBucketMeta(t.Context(), bkt, m, nil)
	require.NoError(t, err)
	want := selectSome(t, plain)
	index := m.Thanos.Files[len(m.Thanos.Files)-2].SizeBytes
	for _, c := range []struct {
		name  string
		limit int64
		trips int
	}{
		{"whole", wholeShare * index * 2, 1},
		{"without series", index, 2},
		{"none", 1000, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				slow := &slowBucket{Bucket: bkt}
				store := openIndexes(t, dir, c.limit)
				b := withCopies(t, slow, m, store)
				_, requests := slow.trips(func() { require.NoError(t, store.Update(t.Context(), []*Block{b})) })
				require.LessOrEqual(t, len(requests), 2)
				require.LessOrEqual(t, store.used(), c.limit)
				for name, b := range map[string]*Block{"now": b, "after a restart": withCopies(t, slow, m, openIndexes(t, dir, c.limit))} {
					depth, requests := slow.trips(func() { require.Equal(t, want, selectSome(t, b)) })
					require.Equal(t, c.trips, depth, "%s: %s", name, requests)
				}
				_, requests = slow.trips(func() { require.NoError(t, store.Update(t.Context(), []*Block{b})) })
				require.Empty(t, requests, "what is there is not fetched again")
			})
		})
	}
}

// TestDamagedCopies: whatever happens to a copy, answers are right, and it is made again.
func TestDamagedCopies(t *testing.T) {
	bkt, m, in := segmented(t, func(*Meta) {})
	want := in.dump()
	dir := t.TempDir()
	store := openIndexes(t, dir, 1<<30)
	require.NoError(t, store.Update(t.Context(), []*Block{withCopies(t, bkt, m, store)}))
	name := filepath.Join(dir, m.ULID.String())
	good, err := os.ReadFile(name)
	require.NoError(t, err)
	damages := map[string][]byte{"empty": {}, "cut": good[:len(good)-1], "another file": []byte("not a copy of an index, but long enough to be one, as it seems: so long")}
	for at := 0; at < len(good); at += len(good) / 16 {
		b := bytes.Clone(good)
		b[at] ^= 1
		damages[fmt.Sprint("a bit at ", at)] = b
	}
	met := 0
	for what, content := range damages {
		t.Run(what, func(t *testing.T) {
			require.NoError(t, os.WriteFile(name, content, 0o600))
			store := openIndexes(t, dir, 1<<30)
			b := withCopies(t, bkt, m, store)
			require.Equal(t, want, dumpAll(t, b))
			noticed := int(testutil.ToFloat64(store.o.Metrics.damaged))
			if noticed == 0 && len(content) == len(good) {
				return // the answer did not need that part
			}
			met += noticed
			require.NoError(t, store.Update(t.Context(), []*Block{b}))
			again, err := os.ReadFile(name)
			require.NoError(t, err)
			require.Equal(t, good, again)
			require.Equal(t, want, dumpAll(t, b))
		})
	}
	require.Greater(t, met, len(damages)/2)
}

// TestWrongIndexIsNotCopiedAgain: where the bucket's own index is damaged, a copy would be fetched for nothing again and again.
func TestWrongIndexIsNotCopiedAgain(t *testing.T) {
	bkt, m, in := segmented(t, func(*Meta) {})
	object := m.ULID.String() + "/" + IndexFilename
	body, err := bkt.Get(t.Context(), object)
	require.NoError(t, err)
	index, err := io.ReadAll(body)
	require.NoError(t, err)
	bad := bytes.Clone(index)
	bad[m.Thanos.Extensions.Millrace.Index.Series+100] ^= 1
	require.NoError(t, bkt.Upload(t.Context(), object, bytes.NewReader(bad)))
	dir := t.TempDir()
	store := openIndexes(t, dir, 1<<30)
	b := withCopies(t, bkt, m, store)
	require.NoError(t, store.Update(t.Context(), []*Block{b}))
	q, err := b.ChunkQuerier(0, 2*hour)
	require.NoError(t, err)
	defer q.Close()
	_, err = tryDump(q.Select(t.Context(), true, nil, everything))
	require.ErrorIs(t, err, ErrCorrupt)
	require.NoError(t, store.Update(t.Context(), []*Block{b}))
	require.Empty(t, copyNames(t, dir))
	require.NoError(t, bkt.Upload(t.Context(), object, bytes.NewReader(index)))
	require.Equal(t, in.dump(), dumpAll(t, b), "the bucket is asked, and was mended")
}

// TestCopyingOutlivesTheBlock: a copy without series is made in the place of a whole one, also of a block that is closed meanwhile.
func TestCopyingOutlivesTheBlock(t *testing.T) {
	bkt, m, _ := segmented(t, func(*Meta) {})
	store := openIndexes(t, t.TempDir(), 1<<30)
	cache := NewCache(0, nil)
	cache.UseIndexes(store)
	b, err := OpenBucketMeta(t.Context(), bkt, m, cache)
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), []*Block{b}))
	require.NoError(t, b.Preload(t.Context()))
	store.o.Limit = store.used()
	plan := store.plan([]*Block{b})
	require.Len(t, plan, 1)
	require.False(t, plan[0].info.whole())
	data := plan[0].open(t.Context())
	defer data.Close()
	require.NoError(t, b.Close())
	got, err := io.ReadAll(data)
	require.NoError(t, err)
	body, err := bkt.Get(t.Context(), m.ULID.String()+"/"+IndexFilename)
	require.NoError(t, err)
	index, err := io.ReadAll(body)
	require.NoError(t, err)
	require.Equal(t, append(index[:plan[0].info.start:plan[0].info.start], index[plan[0].info.end:]...), got)
}

// TestShortAnswersMakeNoCopies: bytes of the second part never take the place of some that the first one lacks.
func TestShortAnswersMakeNoCopies(t *testing.T) {
	good, m, _ := segmented(t, func(*Meta) {})
	bkt := &countingBucket{Bucket: good}
	store := openIndexes(t, t.TempDir(), m.Thanos.Files[len(m.Thanos.Files)-2].SizeBytes) // without series
	b := withCopies(t, bkt, m, store)
	for at := int64(1); at <= 2; at++ {
		bkt.requests.Store(0)
		bkt.fault = func(_ string, _, n int64) (io.ReadCloser, error) {
			if bkt.requests.Load() == at {
				return cut(n-1, nil), nil
			}
			return nil, nil
		}
		require.ErrorIs(t, store.Update(t.Context(), []*Block{b}), io.ErrUnexpectedEOF)
		require.Empty(t, copyNames(t, store.o.Dir))
	}
	bkt.fault = nil
	require.NoError(t, store.Update(t.Context(), []*Block{b}))
	require.Len(t, copyNames(t, store.o.Dir), 1)
}

func TestCopiesFollowTheBlocks(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, newID(t).String()+tmpSuffix), []byte("interrupted"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, newID(t).String()), []byte("of a block that is gone"), 0o600))
	store := openIndexes(t, dir, 1<<30)
	var blocks []*Block
	var size int64
	for i := range int64(6) {
		parent := t.TempDir()
		m, err := Write(t.Context(), parent, testMeta(t, i*hour, (i+1)*hour, 1, 1, 1), []Input{benchInput(200).shifted(i * hour)}, WriteOptions{})
		require.NoError(t, err)
		require.NoError(t, Upload(t.Context(), bkt, filepath.Join(parent, m.ULID.String())))
		blocks = append(blocks, withCopies(t, bkt, m, store))
		size = copyInfo{size: m.Thanos.Files[1].SizeBytes}.fileSize()
	}
	ids := func(blocks ...*Block) (out []string) {
		for _, b := range blocks {
			out = append(out, b.meta.ULID.String())
		}
		return out
	}
	require.NoError(t, store.Update(t.Context(), blocks))
	require.ElementsMatch(t, ids(blocks...), copyNames(t, dir))
	require.NoError(t, store.Update(t.Context(), blocks[3:]))
	require.ElementsMatch(t, ids(blocks[3:]...), copyNames(t, dir), "copies of blocks that are gone are removed")

	store.o.Limit = wholeShare * size // six of the eight that would fit may be whole
	require.NoError(t, store.Update(t.Context(), blocks))
	require.ElementsMatch(t, ids(blocks...), copyNames(t, dir))
	store.o.Room = func() (int64, bool) { return -2 * store.used(), true }
	require.NoError(t, store.Update(t.Context(), blocks))
	require.Empty(t, copyNames(t, dir), "copies make room on a disk that is full")
	store.o.Room = func() (int64, bool) { return 0, false }
	store.o.Limit = size + size/2
	require.NoError(t, store.Update(t.Context(), blocks))
	names := copyNames(t, dir)
	require.NotEmpty(t, names)
	require.ElementsMatch(t, ids(blocks...)[len(blocks)-len(names):], names, "the newest come first")
	require.LessOrEqual(t, store.used(), store.o.Limit)
}

// shifted returns the same series later.
func (in memInput) shifted(by int64) memInput {
	for i := range in {
		for j := range in[i].samples {
			in[i].samples[j].t += by
		}
	}
	return in
}

func TestAdoptedIndex(t *testing.T) {
	parent := t.TempDir()
	m, err := Write(t.Context(), parent, testMeta(t, 0, hour, 1, 1, 1), []Input{benchInput(200)}, WriteOptions{})
	require.NoError(t, err)
	dir := filepath.Join(parent, m.ULID.String())
	store := openIndexes(t, t.TempDir(), 1<<30)
	require.NoError(t, store.Adopt(dir, m))
	bkt := &countingBucket{Bucket: uploaded(t, dir)}
	b := withCopies(t, bkt, m, store)
	require.NoError(t, store.Update(t.Context(), []*Block{b}))
	require.NoError(t, b.Preload(t.Context()))
	require.Zero(t, bkt.requests.Load())
	require.NoError(t, os.Remove(filepath.Join(dir, IndexFilename)))
	require.NoError(t, store.Adopt(dir, m), "it is there already")
	m.ULID = newID(t)
	require.ErrorContains(t, store.Adopt(dir, m), m.ULID.String())
	require.Len(t, copyNames(t, store.o.Dir), 1)
}

// TestCopyingEnds: a copy that the bucket does not finish is given up with the context and leaves nothing.
func TestCopyingEnds(t *testing.T) {
	bkt, m, _ := segmented(t, func(*Meta) {})
	dir := t.TempDir()
	store := openIndexes(t, dir, 1<<30)
	b := withCopies(t, &stuckBucket{Bucket: bkt}, m, store)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, store.Update(ctx, []*Block{b}), context.DeadlineExceeded)
	require.Empty(t, copyNames(t, dir))

	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	q, err := b.ChunkQuerier(0, 2*hour)
	require.NoError(t, err)
	defer q.Close()
	_, err = tryDump(q.Select(ctx, true, nil, everything))
	require.ErrorIs(t, err, context.DeadlineExceeded, "a query ends, too, when the body of an answer gets stuck")
}

// stuckBucket answers with bodies that never come and do not look at contexts.
type stuckBucket struct{ objstore.Bucket }

func (b *stuckBucket) Get(context.Context, string) (io.ReadCloser, error) { return newStuckBody(), nil }

func (b *stuckBucket) GetRange(context.Context, string, int64, int64) (io.ReadCloser, error) {
	return newStuckBody(), nil
}

type stuckBody struct {
	closed chan struct{}
	once   sync.Once
}

func newStuckBody() *stuckBody { return &stuckBody{closed: make(chan struct{})} }

func (b *stuckBody) Read([]byte) (int, error) {
	<-b.closed
	return 0, os.ErrClosed
}

func (b *stuckBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

// TestCopiesWhileQueried: copies come, go and are damaged beside queries and the end of blocks.
func TestCopiesWhileQueried(t *testing.T) {
	bkt, m, in := segmented(t, func(*Meta) {})
	want := in.dump()
	dir := t.TempDir()
	store := openIndexes(t, dir, 1<<30)
	var wg sync.WaitGroup
	for range 4 {
		cache := NewCache(0, nil)
		cache.UseIndexes(store)
		b, err := OpenBucketMeta(t.Context(), bkt, m, cache)
		require.NoError(t, err)
		var users sync.WaitGroup
		users.Go(func() {
			for range 3 {
				q, err := b.ChunkQuerier(0, 2*hour)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := tryDump(q.Select(t.Context(), true, nil, everything))
				if err != nil || len(got) != len(want) {
					t.Errorf("%d series of %d, %v", len(got), len(want), err)
				}
				_ = q.Close()
				b.Trim(-time.Second)
			}
		})
		wg.Go(func() { // does not know when the block ends
			for i := range 5 {
				blocks := []*Block{b}
				if i%2 == 1 {
					blocks = nil
				}
				if err := store.Update(t.Context(), blocks); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			users.Wait()
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func FuzzCopy(f *testing.F) {
	dir := f.TempDir()
	for _, info := range []copyInfo{{size: 100}, {id: ulid.ULID{1}, start: 40, end: 60, size: 200_000}} {
		name := filepath.Join(dir, "copy")
		require.NoError(f, writeCopy(name, info, bytes.NewReader(make([]byte, info.dataSize()))))
		b, err := os.ReadFile(name)
		require.NoError(f, err)
		got, _, err := decodeCopy(b)
		require.NoError(f, err)
		require.Equal(f, info, got)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		info, sums, err := decodeCopy(b)
		if err != nil {
			return
		}
		require.Len(t, b, int(info.fileSize()))
		require.Equal(t, info.fileSize()-info.dataSize()-copyTrailer, int64(len(sums)))
		name := filepath.Join(t.TempDir(), "copy")
		require.NoError(t, os.WriteFile(name, b, 0o600))
		c, err := openCopy(name)
		require.NoError(t, err)
		defer func() { require.NoError(t, c.close()) }()
		for _, s := range []span{{0, info.size}, {0, info.start}, {info.end, info.size - info.end}, {info.size, 0}} {
			if got, ok := c.bytes(s); ok {
				require.Len(t, got, int(s.n))
			}
		}
	})
}
