package block

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

// countingBucket counts what readers ask for, and does to it what a test wants.
type countingBucket struct {
	objstore.Bucket

	requests, bytes atomic.Int64
	// fault is told which request it is, from 1; nil, nil: none. Others may have been counted meanwhile.
	fault func(request int64, name string, off, n int64) (io.ReadCloser, error)
}

func (b *countingBucket) GetRange(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	request := b.requests.Add(1)
	b.bytes.Add(n)
	if b.fault != nil {
		if r, err := b.fault(request, name, off, n); r != nil || err != nil {
			return r, err
		}
	}
	return b.Bucket.GetRange(ctx, name, off, n)
}

func (b *countingBucket) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	b.requests.Add(1)
	return b.Bucket.Get(ctx, name)
}

// largeBlock is uploaded to a counting bucket.
func largeBlock(t *testing.T, series int) (*countingBucket, Meta, memInput) {
	t.Helper()
	in := randomInput(rand.New(rand.NewPCG(21, 1)), series, 0, 2*hour)
	dir, m := writeBlock(t, in)
	return &countingBucket{Bucket: uploaded(t, dir)}, m, in
}

func TestSmallQueriesFetchLittle(t *testing.T) {
	bkt, m, in := largeBlock(t, 4000)
	cache := NewCache(1, nil)
	b, err := OpenBucketMeta(t.Context(), bkt, m, cache)
	require.NoError(t, err)
	require.Zero(t, bkt.requests.Load(), "opening with a known meta is free")
	require.NoError(t, b.Preload(t.Context()))
	require.LessOrEqual(t, bkt.requests.Load(), int64(3), "end of index, symbols, rest of the offset table")
	bkt.requests.Store(0)
	bkt.bytes.Store(0)

	query := func() []string {
		q, err := b.ChunkQuerier(0, 2*hour)
		require.NoError(t, err)
		defer q.Close()
		return dump(t, q.Select(t.Context(), true, nil, eq("series", "001234")))
	}
	var want []string
	for _, s := range in {
		if s.labels.Get("series") == "001234" {
			want = memInput{s}.dump()
		}
	}
	require.Equal(t, want, query())
	require.LessOrEqual(t, bkt.requests.Load(), int64(3), "postings, series, chunks")
	require.Less(t, bkt.bytes.Load(), m.Size()/20, "of %d bytes", m.Size())

	bkt.requests.Store(0)
	require.Equal(t, want, query())
	require.Zero(t, bkt.requests.Load(), "a repeated query is answered from the cache")
}

func TestLargeQueriesCoalesce(t *testing.T) {
	bkt, m, in := largeBlock(t, 3000)
	b, err := OpenBucketMeta(t.Context(), bkt, m, NewCache(1, nil))
	require.NoError(t, err)
	require.Equal(t, in.dump(), dumpAll(t, b))
	require.Less(t, bkt.requests.Load(), int64(40))
	require.Less(t, bkt.bytes.Load(), m.Size()*5/4)
}

// errReader fails after some bytes.
type errReader struct {
	r   io.Reader
	err error
}

func (e *errReader) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	if errors.Is(err, io.EOF) && e.err != nil {
		err = e.err
	}
	return n, err
}

func TestFaultsSurface(t *testing.T) {
	good, m, in := largeBlock(t, 300)
	want := in.dump()
	for name, fault := range map[string]func(n int64) (io.ReadCloser, error){
		"error":          func(int64) (io.ReadCloser, error) { return nil, errTest },
		"error mid-way":  func(n int64) (io.ReadCloser, error) { return cut(n/2, errTest), nil },
		"truncated":      func(n int64) (io.ReadCloser, error) { return cut(n-1, nil), nil },
		"nothing at all": func(int64) (io.ReadCloser, error) { return cut(0, nil), nil },
		"zeros":          func(n int64) (io.ReadCloser, error) { return cut(n, nil), nil },
	} {
		t.Run(name, func(t *testing.T) {
			for at := int64(1); ; at++ {
				bkt := &countingBucket{Bucket: good.Bucket}
				bkt.fault = func(request int64, _ string, _, n int64) (io.ReadCloser, error) {
					if request == at {
						return fault(n)
					}
					return nil, nil
				}
				requireErrorThenAnswer(t, bkt, m, want, at)
				if bkt.requests.Load() < at {
					require.Greater(t, at, int64(4), "the query took requests that were made to fail")
					return
				}
			}
		})
	}
}

// requireErrorThenAnswer queries once, with a fault that may not be reached, and again without: a failure says so and is
// not remembered.
func requireErrorThenAnswer(t *testing.T, bkt *countingBucket, m Meta, want []string, at int64) {
	t.Helper()
	b, err := OpenBucketMeta(t.Context(), bkt, m, NewCache(1, nil))
	require.NoError(t, err)
	q, err := b.ChunkQuerier(0, 2*hour)
	require.NoError(t, err)
	got, err := tryDump(q.Select(t.Context(), true, nil, everything))
	require.NoError(t, q.Close())
	if bkt.requests.Load() >= at {
		require.Error(t, err, "fault at request %d, got %d series", at, len(got))
		require.ErrorContains(t, err, m.ULID.String())
	} else {
		require.NoError(t, err)
	}
	bkt.fault = nil
	reached := bkt.requests.Load()
	require.Equal(t, want, dumpAll(t, b))
	bkt.requests.Store(reached)
}

func cut(n int64, err error) io.ReadCloser {
	return io.NopCloser(&errReader{r: bytes.NewReader(make([]byte, n)), err: err})
}

func TestGoneObjects(t *testing.T) {
	for _, name := range []string{IndexFilename, "chunks/000001"} {
		t.Run(name, func(t *testing.T) {
			bkt, m, _ := largeBlock(t, 50)
			b, err := OpenBucketMeta(t.Context(), bkt, m, nil)
			require.NoError(t, err)
			require.NoError(t, bkt.Delete(t.Context(), m.ULID.String()+"/"+name))
			q, err := b.ChunkQuerier(0, 2*hour)
			require.NoError(t, err)
			defer q.Close()
			_, err = tryDump(q.Select(t.Context(), true, nil, everything))
			require.ErrorIs(t, err, ErrGone)
		})
	}
	_, err := OpenBucket(t.Context(), objstore.NewInMemBucket(), newID(t), nil)
	require.ErrorIs(t, err, ErrGone)
}

// blockingBucket answers when the request's context ends.
type blockingBucket struct {
	objstore.Bucket
	waiting chan struct{}
}

func (b *blockingBucket) GetRange(ctx context.Context, _ string, _, _ int64) (io.ReadCloser, error) {
	b.waiting <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestCancellationStopsRequests(t *testing.T) {
	bkt, m, _ := largeBlock(t, 50)
	slow := &blockingBucket{Bucket: bkt, waiting: make(chan struct{}, 100)}
	b, err := OpenBucketMeta(t.Context(), slow, m, nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-slow.waiting
		cancel()
	}()
	q, err := b.ChunkQuerier(0, 2*hour)
	require.NoError(t, err)
	defer q.Close()
	_, err = tryDump(q.Select(ctx, true, nil, everything))
	require.ErrorIs(t, err, context.Canceled)

	// Another query that waits for the header gives up by its own context.
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, b.Preload(ctx), context.DeadlineExceeded)
}

// fixedBudget allows so many bytes.
type fixedBudget struct{ limit, used, peak, calls atomic.Int64 }

func (b *fixedBudget) Add(n int64) error {
	b.calls.Add(1)
	if used := b.used.Add(n); used > b.limit.Load() {
		b.used.Add(-n)
		return errTest
	}
	b.peak.Store(max(b.peak.Load(), b.used.Load()))
	return nil
}

func (b *fixedBudget) Release(n int64) { b.used.Add(-n) }

func TestBudget(t *testing.T) {
	bkt, m, in := largeBlock(t, 1500)
	b, err := OpenBucketMeta(t.Context(), bkt, m, NewCache(1, nil))
	require.NoError(t, err)
	query := func(limit int64) (*fixedBudget, error) {
		budget := &fixedBudget{}
		budget.limit.Store(limit)
		q, err := b.ChunkQuerier(0, 2*hour)
		require.NoError(t, err)
		ctx := WithBudget(t.Context(), budget)
		got, err := tryDump(q.Select(ctx, true, nil, everything))
		if err == nil {
			require.Equal(t, in.dump(), got)
			require.Positive(t, budget.used.Load(), "chunks count until the querier is closed")
		}
		require.NoError(t, q.Close())
		require.Zero(t, budget.used.Load(), "all is given back")
		return budget, err
	}
	budget, err := query(1 << 40)
	require.NoError(t, err)
	peak := budget.peak.Load()
	require.Greater(t, peak, m.Size()/4)
	for _, limit := range []int64{1, peak / 10, peak / 2, peak - 1} {
		_, err := query(limit)
		require.ErrorIs(t, err, errTest, "with %d of %d bytes", limit, peak)
	}
	_, err = query(peak)
	require.NoError(t, err)

	q, err := b.ChunkQuerier(0, 2*hour)
	require.NoError(t, err)
	defer q.Close()
	_, _, err = q.LabelValues(WithBudget(t.Context(), &fixedBudget{}), "instance", nil, eq("job", "job1"))
	require.ErrorIs(t, err, errTest)
}
