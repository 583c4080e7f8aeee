package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

// pagedFile is a bucketReader of one file of random bytes.
func pagedFile(t *testing.T, size int, cache *Cache) (*bucketReader, *countingBucket, []byte) {
	t.Helper()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{2}).Read(data)
	inner := objstore.NewInMemBucket()
	m := testMeta(t, 0, 1, 0, 1, 1)
	m.Thanos.Files = []File{{RelPath: IndexFilename, SizeBytes: int64(size)}}
	require.NoError(t, inner.Upload(t.Context(), m.ULID.String()+"/index", strings.NewReader(string(data))))
	bkt := &countingBucket{Bucket: inner}
	r, err := newBucketReader(t.Context(), bkt, &m, cache)
	require.NoError(t, err)
	return r, bkt, data
}

func TestLoadRandomSpans(t *testing.T) {
	const size = 100*pageSize + 1234
	for _, cacheSize := range []int64{0, 1} {
		r, _, data := pagedFile(t, size, NewCache(cacheSize, nil))
		rnd := rand.New(rand.NewPCG(61, 1))
		for range 200 {
			spans := make([]span, rnd.IntN(8))
			for i := range spans {
				spans[i].off = rnd.Int64N(size)
				spans[i].n = min(rnd.Int64N(1+rnd.Int64N(5*pageSize)), size-spans[i].off)
			}
			v, err := r.load(t.Context(), 0, spans)
			require.NoError(t, err)
			for _, s := range spans {
				if s.n > 0 {
					require.Equal(t, data[s.off:s.end()], v.from(s.off)[:s.n])
				}
			}
			for _, run := range v.runs {
				require.Equal(t, data[run.off:run.off+int64(len(run.data))], run.data, "all that is shown was loaded")
			}
			v.release()
			require.Nil(t, v.from(0))
		}
		require.Empty(t, r.cache.flights)
	}
}

func TestLoadCoalesces(t *testing.T) {
	page := func(n int64) span { return span{n*pageSize + 7, 10} }
	for _, c := range []struct {
		name  string
		spans []span
		want  int64
	}{
		{"nothing", nil, 0},
		{"one page", []span{page(3), page(3)}, 1},
		{"neighbours", []span{page(3), page(4)}, 1},
		{"small gap", []span{page(3), page(3 + maxGapPages + 1)}, 1},
		{"large gap", []span{page(3), page(3 + maxGapPages + 2)}, 2},
		{"out of order", []span{page(9), page(3), page(8)}, 1},
		{"across pages", []span{{pageSize - 1, 2}}, 1},
		{"more than a request takes", []span{{0, (maxPiecePages + 50) * pageSize}}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, bkt, _ := pagedFile(t, 1200*pageSize, NewCache(0, nil))
			v, err := r.load(t.Context(), 0, c.spans)
			require.NoError(t, err)
			v.release()
			require.Equal(t, c.want, bkt.requests.Load())
		})
	}
	r, _, _ := pagedFile(t, 1000, NewCache(0, nil))
	for _, s := range []span{{-1, 5}, {0, 1001}, {1001, 0}, {1, 1 << 62}, {5, -1}} {
		_, err := r.load(t.Context(), 0, []span{s})
		require.ErrorIs(t, err, ErrCorrupt)
		_, err = r.loadOnce(t.Context(), 0, s)
		require.ErrorIs(t, err, ErrCorrupt)
	}
}

// gate lets requests wait until a test opens it.
type gate struct {
	arrived chan struct{}
	open    chan struct{}
	n       atomic.Int64
}

func TestSameMissesShareARequest(t *testing.T) {
	r, bkt, data := pagedFile(t, 10*pageSize, NewCache(0, nil))
	g := &gate{arrived: make(chan struct{}, 100), open: make(chan struct{})}
	bkt.fault = func(int64, string, int64, int64) (io.ReadCloser, error) {
		g.arrived <- struct{}{}
		<-g.open
		return nil, nil
	}
	load := func(ctx context.Context, s span) error {
		v, err := r.load(ctx, 0, []span{s})
		if err == nil && string(v.from(s.off)[:s.n]) != string(data[s.off:s.end()]) {
			err = errors.New("wrong bytes")
		}
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var leader error
	wg.Go(func() { leader = load(ctx, span{0, 3 * pageSize}) })
	<-g.arrived
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() { errs[i] = load(t.Context(), span{pageSize, 2 * pageSize}) })
	}
	wg.Go(func() { g.n.Store(1); close(g.open) })
	wg.Wait()
	cancel()
	require.NoError(t, leader)
	for _, err := range errs {
		require.NoError(t, err)
	}
	// Followers that came when the leader had finished ask themselves, nothing being cached here; the others did not.
	require.LessOrEqual(t, bkt.requests.Load(), int64(5))
	require.Empty(t, r.cache.flights)
}

// TestFollowersOutliveACancelledLeader: a query that is cancelled does not take those along that wait for its request.
func TestFollowersOutliveACancelledLeader(t *testing.T) {
	r, bkt, data := pagedFile(t, 4*pageSize, NewCache(0, nil))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	arrived := make(chan struct{})
	var calls atomic.Int64
	bkt.fault = func(int64, string, int64, int64) (io.ReadCloser, error) {
		if calls.Add(1) == 1 {
			close(arrived)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return nil, nil
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := r.load(ctx, 0, []span{{0, 4 * pageSize}})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("leader: %v", err)
		}
	})
	<-arrived
	l := &pageLoad{r: r, keys: newPageKeys(r.id, r.tag, 0), pages: []int64{1, 2}}
	l.layout()
	l.buffers[0].data = make([]byte, 2*pageSize)
	_, waits := l.plan(l.pages, 0)
	require.Len(t, waits, 2, "the follower found the leader's request")
	cancel()
	missing, err := l.await(t.Context(), waits)
	require.NoError(t, err)
	require.Equal(t, []int64{1, 2}, missing, "to be asked for again")
	wg.Wait()
	v, err := r.load(t.Context(), 0, []span{{pageSize, 2 * pageSize}})
	require.NoError(t, err)
	require.Equal(t, data[pageSize:3*pageSize], v.from(pageSize)[:2*pageSize])
}

func TestFollowersShareTheLeadersError(t *testing.T) {
	c := NewCache(0, nil)
	f := &flight{done: make(chan struct{})}
	key := newPageKeys(newID(t), 0, 0).page(1)
	_, mine := c.join(key, f)
	require.True(t, mine)
	got, mine := c.join(key, &flight{})
	require.False(t, mine)
	c.land(t.Context(), f, []pageKey{key}, errTest)
	l := &pageLoad{}
	_, err := l.await(t.Context(), []wait{{page: 1, flight: got}})
	require.ErrorIs(t, err, errTest)
	require.Empty(t, c.flights)
}

func TestCacheIsBoundedAndCounts(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := NewCache(1, reg) // 32 MB, the least there is
	defer c.Close()
	r, _, _ := pagedFile(t, 60_000_000, c)
	for range 2 {
		for off := int64(0); off < 60_000_000; off += 4_000_000 {
			v, err := r.load(t.Context(), 0, []span{{off, 4_000_000}})
			require.NoError(t, err)
			v.release()
		}
	}
	require.Less(t, c.stats().BytesSize, uint64(40<<20))
	require.Equal(t, float64(2*60_000_000/pageSize), testutil.ToFloat64(c.metrics.hits)+testutil.ToFloat64(c.metrics.misses))
	families, err := reg.Gather()
	require.NoError(t, err)
	require.Len(t, families, 6)
	require.Positive(t, c.stats().EvictedBytes)
}

func TestPagesFitTheCache(t *testing.T) {
	c := NewCache(1, nil)
	defer c.Close()
	page := make([]byte, pageSize)
	page[pageSize-1] = 9
	key := newPageKeys(newID(t), 1, 2).page(3)
	c.set(key, page)
	got := make([]byte, pageSize)
	require.True(t, c.get(key, got))
	require.Equal(t, page, got)
	require.False(t, c.get(key, got[:100]), "a page of another length is not what was asked for")
	require.False(t, c.get(newPageKeys(newID(t), 1, 2).page(3), got))
	c.del(key)
	require.False(t, c.get(key, got))
}

// A leader's request can end with its context before the contexts made of that one know.
func TestFollowersOutliveALeaderWhoseContextEndsLate(t *testing.T) {
	for _, err := range []error{context.Canceled, context.DeadlineExceeded} {
		c := NewCache(0, nil)
		f := &flight{done: make(chan struct{})}
		key := newPageKeys(newID(t), 0, 0).page(1)
		_, mine := c.join(key, f)
		require.True(t, mine)
		c.land(t.Context(), f, []pageKey{key}, fmt.Errorf("get: %w", err))
		missing, err := (&pageLoad{}).await(t.Context(), []wait{{page: 1, flight: f}})
		require.NoError(t, err)
		require.Equal(t, []int64{1}, missing)
	}
}
