package block

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
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

// TestRemovedCopiesCount: the bytes of a copy are free when the queries that use it are done, and not before, whatever becomes of its file.
func TestRemovedCopiesCount(t *testing.T) {
	bkt, m, in := segmented(t, func(*Meta) {})
	store := openIndexes(t, t.TempDir(), 1<<30)
	b := withCopies(t, bkt, m, store)
	require.NoError(t, store.Update(t.Context(), []*Block{b}))
	size := store.used()
	require.Positive(t, size)
	q, err := b.ChunkQuerier(0, 2*hour)
	require.NoError(t, err)
	set := q.Select(t.Context(), true, nil, everything)
	require.True(t, set.Next())
	require.NotEmpty(t, store.mapped)

	store.o.Limit = size // for one without series
	require.NoError(t, store.Update(t.Context(), []*Block{b}))
	require.Empty(t, copyNames(t, store.o.Dir))
	require.Equal(t, size, store.used(), "nothing takes the place of what is not free yet")
	require.InDelta(t, size, testutil.ToFloat64(store.o.Metrics.bytes), 0)
	rest, err := tryDump(set)
	require.NoError(t, err)
	require.Equal(t, in.dump()[1:], rest)
	require.NoError(t, q.Close())
	require.Zero(t, store.used())
	require.Zero(t, testutil.ToFloat64(store.o.Metrics.bytes))

	require.NoError(t, store.Update(t.Context(), []*Block{b}))
	require.Positive(t, store.used())
	require.Less(t, store.used(), size)
	require.Equal(t, in.dump(), dumpAll(t, b))
	require.NoError(t, b.Close())
	require.Empty(t, store.mapped, "with the block go its pins")
	require.Zero(t, store.leaving)
}

// TestCopiesStayWhileTheLimitMoves: what a disk has left goes up and down without copies being made and removed by turns.
func TestCopiesStayWhileTheLimitMoves(t *testing.T) {
	bkt, m, _ := segmented(t, func(*Meta) {})
	store := openIndexes(t, t.TempDir(), 1<<30)
	b := withCopies(t, bkt, m, store)
	whole := copyInfo{size: b.r.size(indexFile)}.fileSize()
	kind := func(limit int64) string {
		switch plan := store.plan([]*Block{b}, limit); {
		case len(plan) == 0:
			return "none"
		case plan[0].info.whole():
			return "whole"
		}
		return "part"
	}
	const border = wholeShare
	require.Equal(t, "whole", kind(border*whole))
	require.Equal(t, "part", kind(border*whole-border))
	require.NoError(t, store.Update(t.Context(), []*Block{b}))
	require.Equal(t, "whole", kind(border*whole-border), "one that is there stays")
	require.Equal(t, "part", kind((border-1)*whole-border))

	store.o.Limit = whole
	require.NoError(t, store.Update(t.Context(), []*Block{b}))
	part := store.used()
	require.Less(t, part, whole)
	require.Equal(t, "part", kind(border*whole-border))
	require.Equal(t, "part", kind(part))
	require.Equal(t, "none", kind(part-1))
	require.NoError(t, store.remove(m.ULID))
	require.Equal(t, "none", kind(part))

	store.o.Limit = 1 << 30
	store.o.Room = func() (int64, bool) { return 1 << 20, true }
	require.Equal(t, int64(1<<19), store.limit())
}

// TestBadTransfers: what came wrong is no copy, and does not keep queries from what is right in the bucket.
func TestBadTransfers(t *testing.T) {
	good, m, in := segmented(t, func(*Meta) {})
	index := m.Thanos.Extensions.Millrace.Index
	size := m.Thanos.Files[len(m.Thanos.Files)-2].SizeBytes
	for name, c := range map[string]struct {
		at     int64
		copies int
	}{
		"version":               {4, 0},
		"symbols":               {100, 0},
		"series":                {index.Series + 100, 1},
		"postings offset table": {index.PostingsTable + 30, 0},
		"table of contents":     {size - 10, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				bkt := &flippedBucket{Bucket: good, at: c.at}
				store := openIndexes(t, dir, 1<<30)
				b := withCopies(t, bkt, m, store)
				err := store.Update(t.Context(), []*Block{b})
				require.Len(t, copyNames(t, dir), c.copies)
				bkt.at = -1
				if c.copies > 0 {
					require.NoError(t, err)
					q, err := b.ChunkQuerier(0, 2*hour)
					require.NoError(t, err)
					_, err = tryDump(q.Select(t.Context(), true, nil, everything))
					require.ErrorIs(t, err, ErrCorrupt, "once, as with all that comes wrong")
					require.NoError(t, q.Close())
				} else {
					require.Error(t, err)
				}
				require.Equal(t, in.dump(), dumpAll(t, b))
				require.NoError(t, store.Update(t.Context(), []*Block{b}))
				require.Empty(t, copyNames(t, dir))
				time.Sleep(refuseFor)
				require.NoError(t, store.Update(t.Context(), []*Block{b}))
				require.Len(t, copyNames(t, dir), 1, "later, it is tried again")
				require.Equal(t, in.dump(), dumpAll(t, b))
			})
		})
	}
}

// flippedBucket answers with a wrong bit where objects are asked for whole.
type flippedBucket struct {
	objstore.Bucket
	at int64 // below 0: none
}

func (b *flippedBucket) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	body, err := b.Bucket.Get(ctx, name)
	if err != nil || b.at < 0 {
		return body, err
	}
	defer body.Close()
	raw, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	raw[b.at] ^= 0x80
	return io.NopCloser(bytes.NewReader(raw)), nil
}

// TestHeaderOfAWrongCopy: a copy with a header that was wrong when it came, of an earlier version, does not make queries fail.
func TestHeaderOfAWrongCopy(t *testing.T) {
	bkt, m, in := segmented(t, func(*Meta) {})
	body, err := bkt.Get(t.Context(), m.ULID.String()+"/"+IndexFilename)
	require.NoError(t, err)
	raw, err := io.ReadAll(body)
	require.NoError(t, err)
	raw[100] ^= 1
	dir := t.TempDir()
	b := withCopies(t, bkt, m, nil)
	r := b.r.(*bucketReader)
	require.NoError(t, writeCopy(filepath.Join(dir, m.ULID.String()), copyInfo{id: r.id, tag: r.tag, size: int64(len(raw))}, bytes.NewReader(raw)))
	store := openIndexes(t, dir, 1<<30)
	b = withCopies(t, bkt, m, store)
	require.Equal(t, in.dump(), dumpAll(t, b))
	require.Empty(t, copyNames(t, dir))
}

// TestViewsAreChecked: a view of a copy has what was asked for, and nothing that was not compared with a checksum.
func TestViewsAreChecked(t *testing.T) {
	index := make([]byte, 10*copyUnit+5)
	for i := range index {
		index[i] = byte(i * 7 / 3)
	}
	size := int64(len(index))
	for _, info := range []copyInfo{{size: size}, {start: copyUnit + 100, end: 3*copyUnit + 7, size: size}} {
		name := filepath.Join(t.TempDir(), "copy")
		require.NoError(t, writeCopy(name, info, io.MultiReader(bytes.NewReader(index[:info.start]), bytes.NewReader(index[info.end:]))))
		c, err := openCopy(name)
		require.NoError(t, err)
		defer func() { require.NoError(t, c.close()) }()
		rng := rand.New(rand.NewPCG(5, 5))
		for range 200 {
			var spans []span
			held := true
			for range 1 + rng.IntN(4) {
				s := span{off: rng.Int64N(size)}
				s.n = min(rng.Int64N(3*copyUnit), size-s.off)
				spans = append(spans, s)
				held = held && (info.whole() || s.end() <= info.start || s.off >= info.end)
			}
			v := c.view(t.Context(), spans)
			require.Equal(t, held, v != nil, "%+v of %+v", spans, info)
			if !held {
				continue
			}
			for _, s := range spans {
				if s.n > 0 {
					require.Equal(t, index[s.off:s.end()], v.from(s.off)[:s.n:s.n], "%+v", s)
				}
			}
			for _, r := range v.runs {
				require.Equal(t, index[r.off:r.end()], r.data)
				require.Len(t, r.data, cap(r.data))
				require.True(t, len(r.data) == 0 || c.bytesGood(r))
			}
		}
	}
}

// bytesGood says whether the checksums of a run have been compared.
func (c *indexCopy) bytesGood(r run) bool {
	at := r.off
	if !c.whole() && at >= c.end {
		at -= c.end - c.start
	}
	for i := at / copyUnit; i*copyUnit < at+int64(len(r.data)); i++ {
		if !c.good[i].Load() {
			return false
		}
	}
	return true
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
	plan := store.plan([]*Block{b}, store.limit())
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
		bkt.fault = func(request int64, _ string, _, n int64) (io.ReadCloser, error) {
			if request == at {
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
	var limit atomic.Int64
	limit.Store(1 << 30)
	store.o.Room = func() (int64, bool) { return 2*limit.Load() - store.used(), true }
	sizes := []int64{1 << 30, m.Thanos.Files[len(m.Thanos.Files)-2].SizeBytes} // for a whole one, and one without series
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
			for i := range 6 {
				blocks := []*Block{b}
				if i%3 == 1 {
					blocks = nil
				}
				limit.Store(sizes[i/2%2])
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
	require.Empty(t, store.mapped)
	require.Zero(t, store.leaving)
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
