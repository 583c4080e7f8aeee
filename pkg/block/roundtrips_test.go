package block

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

// latency is what every request to a slowBucket takes.
const latency = 30 * time.Millisecond

// slowBucket is a bucket behind a slow network, which remembers what was asked of it. In a synctest bubble time passes in round trips only, so
// that elapsed time, divided by latency, is the number of those that had to follow one another.
type slowBucket struct {
	objstore.Bucket

	mu    sync.Mutex
	names []string
	bytes int64
	now   int
	most  int // requests at the same time
}

func (b *slowBucket) request(ctx context.Context, what, name string, n int64) error {
	b.mu.Lock()
	b.names = append(b.names, what+" "+name)
	b.bytes += n
	b.now++
	b.most = max(b.most, b.now)
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.now--
		b.mu.Unlock()
	}()
	select {
	case <-time.After(latency):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *slowBucket) GetRange(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if err := b.request(ctx, "get", name, n); err != nil {
		return nil, err
	}
	return b.Bucket.GetRange(ctx, name, off, n)
}

func (b *slowBucket) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := b.request(ctx, "get", name, 0); err != nil {
		return nil, err
	}
	return b.Bucket.Get(ctx, name)
}

func (b *slowBucket) Exists(ctx context.Context, name string) (bool, error) {
	if err := b.request(ctx, "exists", name, 0); err != nil {
		return false, err
	}
	return b.Bucket.Exists(ctx, name)
}

func (b *slowBucket) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	if err := b.request(ctx, "attributes", name, 0); err != nil {
		return objstore.ObjectAttributes{}, err
	}
	return b.Bucket.Attributes(ctx, name)
}

func (b *slowBucket) Iter(ctx context.Context, dir string, f func(string) error, o ...objstore.IterOption) error {
	if err := b.request(ctx, "list", dir, 0); err != nil {
		return err
	}
	return b.Bucket.Iter(ctx, dir, f, o...)
}

// trips runs f and returns how many dependent round trips it took, and the requests. It is for use in a bubble.
func (b *slowBucket) trips(f func()) (depth int, requests []string) {
	b.names, b.bytes, b.most = nil, 0, 0
	began := time.Now()
	f()
	return int(time.Since(began) / latency), b.names
}

// segmented is a block of many chunk segments, uploaded. Its meta can be made that of an earlier build, or of Prometheus.
func segmented(t *testing.T, change func(*Meta)) (*objstore.InMemBucket, Meta, memInput) {
	t.Helper()
	in := randomInput(rand.New(rand.NewPCG(81, 1)), 3000, 0, 2*hour)
	parent := t.TempDir()
	m, err := Write(t.Context(), parent, testMeta(t, 0, 2*hour, 1, 1, 1), []Input{in}, WriteOptions{SegmentSize: 64 << 10})
	require.NoError(t, err)
	require.Greater(t, len(m.Thanos.SegmentFiles), 5)
	bkt := uploaded(t, parent+"/"+m.ULID.String())
	change(&m)
	raw, err := json.Marshal(m)
	require.NoError(t, err)
	require.NoError(t, bkt.Upload(t.Context(), m.ULID.String()+"/"+MetaFilename, strings.NewReader(string(raw))))
	return bkt, m, in
}

func TestRoundTrips(t *testing.T) {
	queries := map[string][]*labels.Matcher{
		"one series":    {eq("series", "001234")},
		"many matchers": {eq("__name__", "metric_3"), re("instance", "host-0.*"), neq("job", "job1"), re("job", ".+"), eq("extra", "")},
		"all":           {everything},
	}
	for _, c := range []struct {
		name   string
		change func(*Meta)
		most   int // round trips of the first query; later ones need no header
	}{
		{"of this build", func(*Meta) {}, 4},
		{"of an earlier build", func(m *Meta) { m.Thanos.Extensions.Millrace.Index = IndexSections{} }, 4},
		{"with nonsense for sections", func(m *Meta) { m.Thanos.Extensions.Millrace.Index = IndexSections{5, 6, 7} }, 5},
		{"of Thanos", func(m *Meta) { m.Thanos.Extensions, m.Thanos.IndexStats = Extensions{}, IndexStats{} }, 4},
	} {
		for name, ms := range queries {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				bkt, m, in := segmented(t, c.change)
				synctest.Test(t, func(t *testing.T) {
					slow := &slowBucket{Bucket: bkt}
					cache := NewCache(64<<20, nil)
					defer cache.Close()
					b, err := OpenBucketMeta(t.Context(), slow, m, cache)
					require.NoError(t, err)
					var got []string
					query := func() {
						q, err := b.ChunkQuerier(0, 2*hour)
						require.NoError(t, err)
						defer q.Close()
						set := q.Select(t.Context(), true, nil, ms...)
						if name == "all" { // a thousand series are one batch
							set = &headSet{ChunkSeriesSet: set, n: seriesBatch}
						}
						got = dump(t, set)
					}
					depth, requests := slow.trips(query)
					require.NotEmpty(t, got)
					require.Subset(t, in.dump(), got)
					require.LessOrEqual(t, depth, c.most, "%s", requests)
					depth, requests = slow.trips(query)
					require.Zero(t, depth)
					require.Empty(t, requests, "a repeated query asks the bucket for nothing at all")
				})
			})
		}
	}
}

// headSet is the first n series of a set.
type headSet struct {
	storage.ChunkSeriesSet
	n int
}

func (s *headSet) Next() bool { s.n--; return s.n >= 0 && s.ChunkSeriesSet.Next() }

// TestNothingToFind: what the header rules out takes no request.
func TestNothingToFind(t *testing.T) {
	bkt, m, _ := segmented(t, func(*Meta) {})
	synctest.Test(t, func(t *testing.T) {
		slow := &slowBucket{Bucket: bkt}
		b, err := OpenBucketMeta(t.Context(), slow, m, NewCache(0, nil))
		require.NoError(t, err)
		depth, requests := slow.trips(func() { require.NoError(t, b.Preload(t.Context())) })
		require.Equal(t, 1, depth)
		require.Len(t, requests, 2, "beginning and end of the index")
		for name, query := range map[string]func(q storage.ChunkQuerier){
			"another metric": func(q storage.ChunkQuerier) {
				require.Empty(t, dump(t, q.Select(t.Context(), true, nil, re("job", "job.*"), eq("__name__", "metric_x"))))
			},
			"another time": func(q storage.ChunkQuerier) {
				require.Empty(t, dump(t, q.Select(t.Context(), true, &storage.SelectHints{Start: 3 * hour, End: 4 * hour}, eq("job", "job1"))))
			},
			"names of labels": func(q storage.ChunkQuerier) {
				names, _, err := q.LabelNames(t.Context(), nil)
				require.NoError(t, err)
				require.Contains(t, names, "instance")
			},
			"values of a label": func(q storage.ChunkQuerier) {
				values, _, err := q.LabelValues(t.Context(), "job", nil, re("job", "job[12]"))
				require.NoError(t, err)
				require.Equal(t, []string{"job1", "job2"}, values)
			},
		} {
			_, requests := slow.trips(func() {
				q, err := b.ChunkQuerier(0, 2*hour)
				require.NoError(t, err)
				defer q.Close()
				query(q)
			})
			require.Empty(t, requests, name)
		}
	})
}

func TestRequestsAtTheSameTime(t *testing.T) {
	bkt, m, in := segmented(t, func(*Meta) {})
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				slow := &slowBucket{Bucket: bkt}
				cache := NewCache(0, nil)
				cache.LimitRequests(n)
				b, err := OpenBucketMeta(t.Context(), slow, m, cache)
				require.NoError(t, err)
				slow.trips(func() { require.Equal(t, in.dump(), dumpAll(t, b)) })
				require.Equal(t, n, slow.most)

				// Who waits for a place gives up with its context.
				for range n {
					require.NoError(t, cache.begin(t.Context()))
				}
				ctx, cancel := context.WithTimeout(t.Context(), latency)
				defer cancel()
				q, err := b.ChunkQuerier(0, 2*hour)
				require.NoError(t, err)
				defer q.Close()
				_, err = tryDump(q.Select(ctx, true, nil, everything))
				require.ErrorIs(t, err, context.DeadlineExceeded)
			})
		})
	}
}
