package block

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/stretchr/testify/require"
)

// selectors is a table of what dashboards and mistakes ask for.
var selectors = map[string][]*labels.Matcher{
	"everything":         {everything},
	"equal":              {eq("__name__", "metric_3")},
	"two":                {eq("__name__", "metric_3"), eq("instance", "host-003:9100")},
	"not equal":          {eq("__name__", "metric_3"), neq("job", "job1")},
	"only not equal":     {neq("job", "job1")},
	"regexp":             {re("__name__", "metric_[12]"), re("instance", "host-00.:9100")},
	"set":                {re("__name__", "metric_1|metric_4|nothing")},
	"prefix":             {re("series", "0000.*")},
	"not regexp":         {eq("job", "job2"), nre("instance", "host-0[0-3].*")},
	"no such label":      {eq("nothing", "x")},
	"no such value":      {eq("job", "nothing")},
	"label is empty":     {eq("extra", ""), eq("job", "job1")},
	"label is not empty": {neq("extra", "")},
	"any value":          {re("extra", ".+"), re("job", ".*")},
	"no value":           {nre("extra", ".+"), eq("__name__", "metric_2")},
	"nothing at all":     {nre("job", ".*")},
	"absent equal empty": {eq("nothing", ""), eq("__name__", "metric_0")},
	"last value":         {re("series", "0002.*"), nre("job", "job[02]")},
}

func eq(n, v string) *labels.Matcher  { return labels.MustNewMatcher(labels.MatchEqual, n, v) }
func neq(n, v string) *labels.Matcher { return labels.MustNewMatcher(labels.MatchNotEqual, n, v) }
func re(n, v string) *labels.Matcher  { return labels.MustNewMatcher(labels.MatchRegexp, n, v) }
func nre(n, v string) *labels.Matcher { return labels.MustNewMatcher(labels.MatchNotRegexp, n, v) }

// readers opens one block in every way there is.
func readers(t *testing.T, dir string, m Meta) map[string]*Block {
	t.Helper()
	out := map[string]*Block{"local": openLocal(t, dir)}
	bkt := uploaded(t, dir)
	for name, cache := range map[string]*Cache{"bucket": NewCache(1, nil), "bucket without cache": nil} {
		b, err := OpenBucket(t.Context(), bkt, m.ULID, cache)
		require.NoError(t, err)
		out[name] = b
	}
	files := newDirBucket(t, filepath.Join(t.TempDir(), "bucket"))
	require.NoError(t, Upload(t.Context(), files, dir))
	var err error
	if out["folder"], err = OpenBucket(t.Context(), files, m.ULID, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { require.NoError(t, out["folder"].Close()) })
	// A block of another writer, whose meta does not tell files.
	bare := m
	bare.Thanos.Files, bare.Thanos.IndexStats = nil, IndexStats{}
	if out["bucket without sizes"], err = OpenBucketMeta(t.Context(), bkt, bare, nil); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAnswersAreThoseOfPrometheus(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(11, 1)), 400, 0, 4*hour)
	dir, m := writeBlock(t, in)
	ref := openPrometheus(t, dir)
	ranges := [][2]int64{{math.MinInt64, math.MaxInt64}, {hour, 2 * hour}, {3*hour + 17, 3*hour + 17}, {5 * hour, 6 * hour}, {-5, 100}}
	for kind, b := range readers(t, dir, m) {
		for name, ms := range selectors {
			for _, r := range ranges {
				t.Run(fmt.Sprintf("%s/%s/%d-%d", kind, name, r[0], r[1]), func(t *testing.T) {
					want, err := tsdb.NewBlockChunkQuerier(ref, r[0], r[1])
					require.NoError(t, err)
					defer want.Close()
					got, err := b.ChunkQuerier(r[0], r[1])
					require.NoError(t, err)
					defer got.Close()
					compareQueriers(t, want, got, r, m.Overlaps(r[0], r[1]), ms)
				})
			}
		}
	}
}

// compareQueriers compares everything that two queriers answer. Prometheus's does not look at the block's time for labels.
func compareQueriers(t *testing.T, want, got storage.ChunkQuerier, r [2]int64, overlaps bool, ms []*labels.Matcher) {
	t.Helper()
	ctx := context.Background()
	hints := &storage.SelectHints{Start: r[0], End: r[1], DisableTrimming: true}
	clone := func() []*labels.Matcher { return append([]*labels.Matcher(nil), ms...) }
	require.Equal(t, dump(t, want.Select(ctx, true, hints, clone()...)), dump(t, got.Select(ctx, true, hints, clone()...)))

	series := dump(t, want.Select(ctx, true, hints, clone()...))
	for i := range series {
		series[i], _, _ = strings.Cut(series[i], "} ")
		series[i] += "}"
	}
	only := *hints
	only.Func = "series"
	require.Equal(t, series, dump(t, got.Select(ctx, true, &only, clone()...)))
	if !overlaps {
		return
	}
	if ms[0].Name == "" {
		ms = nil
	}
	for _, name := range []string{"job", "instance", "series", "extra", "nothing"} {
		w, _, err := want.LabelValues(ctx, name, nil, clone()...)
		require.NoError(t, err)
		compareLabels(t, w, func(h *storage.LabelHints) ([]string, annotations.Annotations, error) {
			return got.LabelValues(ctx, name, h, clone()...)
		})
	}
	w, _, err := want.LabelNames(ctx, nil, clone()...)
	require.NoError(t, err)
	compareLabels(t, w, func(h *storage.LabelHints) ([]string, annotations.Annotations, error) {
		return got.LabelNames(ctx, h, clone()...)
	})
}

// compareLabels compares answers without a limit, and with one: the first ones in order.
func compareLabels(t *testing.T, want []string, get func(*storage.LabelHints) ([]string, annotations.Annotations, error)) {
	t.Helper()
	want = slices.Sorted(slices.Values(want))
	for _, limit := range []int{0, 3} {
		got, _, err := get(&storage.LabelHints{Limit: limit})
		require.NoError(t, err)
		if limit > 0 {
			want = want[:min(limit, len(want))]
		}
		require.Equal(t, append([]string{}, want...), append([]string{}, got...))
	}
}

func TestSelectLimitAndShards(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(12, 1)), 1200, 0, hour)
	dir, m := writeBlock(t, in)
	all := in.dump()
	for kind, b := range readers(t, dir, m) {
		t.Run(kind, func(t *testing.T) {
			q, err := b.ChunkQuerier(0, hour)
			require.NoError(t, err)
			defer q.Close()
			for _, limit := range []int{1, 1000, 1001, 5000} {
				got := dump(t, q.Select(t.Context(), true, &storage.SelectHints{Start: 0, End: hour, Limit: limit}, everything))
				require.Equal(t, all[:min(limit, len(all))], got)
			}
			var sharded int
			for shard := range uint64(3) {
				set := q.Select(t.Context(), true, &storage.SelectHints{End: hour, ShardIndex: shard, ShardCount: 3}, everything)
				for set.Next() {
					require.Equal(t, shard, labels.StableHash(set.At().Labels())%3)
					sharded++
				}
				require.NoError(t, set.Err())
			}
			require.Equal(t, len(all), sharded)
		})
	}
}

// TestResultsOutliveTheirBatch keeps all series of a select before it looks at any, as the PromQL engine does.
func TestResultsOutliveTheirBatch(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(13, 1)), 1200, 0, hour)
	dir, m := writeBlock(t, in)
	for kind, b := range readers(t, dir, m) {
		t.Run(kind, func(t *testing.T) {
			q, err := b.ChunkQuerier(0, hour)
			require.NoError(t, err)
			defer q.Close()
			set := q.Select(t.Context(), true, nil, everything)
			kept := &memSet{i: -1}
			for set.Next() {
				kept.series = append(kept.series, set.At())
			}
			require.NoError(t, set.Err())
			require.Equal(t, in.dump(), dump(t, kept))
		})
	}
}

func TestConcurrentQueries(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(14, 1)), 600, 0, hour)
	dir, m := writeBlock(t, in)
	want := in.dump()
	cache := NewCache(1, nil)
	b, err := OpenBucket(t.Context(), uploaded(t, dir), m.ULID, cache)
	require.NoError(t, err)
	local := openLocal(t, dir)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			reader := b
			if i%4 == 0 {
				reader = local
			}
			q, err := reader.ChunkQuerier(0, hour)
			if err != nil {
				t.Error(err)
				return
			}
			defer q.Close()
			got, err := tryDump(q.Select(context.Background(), true, nil, everything))
			if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("wrong answer: %d series, %v", len(got), err)
			}
			values, _, err := q.LabelValues(context.Background(), "instance", nil, eq("job", "job1"))
			if err != nil || len(values) == 0 {
				t.Errorf("values: %v, %v", values, err)
			}
		})
	}
	wg.Wait()
	require.Empty(t, cache.flights)
}

func TestOpenLocalErrors(t *testing.T) {
	_, err := OpenLocal(filepath.Join(t.TempDir(), "nothing"))
	require.ErrorIs(t, err, ErrGone)
}

func TestQuerierOfEmptyRange(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(15, 1)), 10, 0, hour)
	dir, m := writeBlock(t, in)
	bkt := &countingBucket{Bucket: uploaded(t, dir)}
	b, err := OpenBucketMeta(t.Context(), bkt, m, nil)
	require.NoError(t, err)
	q, err := b.ChunkQuerier(2*hour, 3*hour)
	require.NoError(t, err)
	require.Empty(t, dump(t, q.Select(t.Context(), true, nil, everything)))
	names, _, err := q.LabelNames(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, names)
	values, _, err := q.LabelValues(t.Context(), "job", nil)
	require.NoError(t, err)
	require.Empty(t, values)
	require.NoError(t, q.Close())
	require.Zero(t, bkt.requests.Load(), "a range without overlap needs no request")
}
