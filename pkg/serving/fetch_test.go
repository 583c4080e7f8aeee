package serving

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

// blockInput is what a block is made of.
type blockInput struct{ all []*storage.SeriesEntry }

func (in blockInput) ChunkQuerier(int64, int64) (storage.ChunkQuerier, error) {
	return &memoryQuerier{all: in.all}, nil
}

func (in blockInput) Symbols() index.StringIter {
	set := map[string]bool{}
	for _, s := range in.all {
		s.Labels().Range(func(l labels.Label) { set[l.Name], set[l.Value] = true, true })
	}
	var all []string
	for s := range set {
		all = append(all, s)
	}
	return index.NewStringListIter(sortUnique(all))
}

// bucketSource is a block in a bucket with a cache of its own.
func bucketSource(t *testing.T, all ...*storage.SeriesEntry) *fakeSource {
	t.Helper()
	m := block.Meta{}
	m.ULID, m.MinTime, m.MaxTime = ulid.Make(), 0, 1<<40
	m.Thanos.Labels = map[string]string{"writer": "test"}
	m.SetExtension(0, 1, 1)
	dir := t.TempDir()
	m, err := block.Write(t.Context(), dir, m, []block.Input{blockInput{all}}, block.WriteOptions{})
	require.NoError(t, err)
	bkt := objstore.NewInMemBucket()
	require.NoError(t, block.Upload(t.Context(), bkt, filepath.Join(dir, m.ULID.String())))
	cache := block.NewCache(1, nil)
	t.Cleanup(cache.Close)
	b, err := block.OpenBucketMeta(t.Context(), bkt, m, cache)
	require.NoError(t, err)
	return &fakeSource{layer: Batch, gens: [2]uint64{1, 1}, mint: m.MinTime, maxt: m.MaxTime, open: b.ChunkQuerier}
}

func TestBytesOfTheBucketAreLimited(t *testing.T) {
	var all []*storage.SeriesEntry
	for i := range 2000 {
		values := make([]float64, 300)
		for j := range values {
			values[j] = float64(i*j%977) / 7
		}
		all = append(all, entry(labels.FromStrings("__name__", "m", "series", fmt.Sprintf("%04d", i)), 0, values...))
	}
	engine, q, pool := limited(1<<30, bucketSource(t, all...))
	ask := func(expr string) error {
		query, err := engine.NewInstantQuery(t.Context(), q, nil, expr, time.Unix(200, 0))
		require.NoError(t, err)
		defer query.Close()
		return query.Exec(t.Context()).Err
	}
	require.NoError(t, ask(`m{series="0000"}`)) // the header is there now
	pool.LimitFetch(200 << 10)
	require.NoError(t, ask(`m{series="0001"}`))
	err := ask(`sum(m)`)
	require.ErrorIs(t, err, ErrFetch)
	require.ErrorContains(t, err, `query "sum(m)" would read more than 200KB of the bucket (--query.max-bucket-size)`)
	require.Equal(t, 1.0, testutil.ToFloat64(engine.metrics.refused.WithLabelValues("bucket")))
	for i := range 40 {
		require.NoError(t, ask(fmt.Sprintf(`m{series="%04d"}`, 50*i)), "each query counts for itself")
	}

	querier, err := q.Querier(0, 300_000)
	require.NoError(t, err)
	defer querier.Close()
	set := querier.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "series", ".+"))
	for set.Next() {
		require.NotEmpty(t, set.At().Labels())
	}
	require.ErrorIs(t, set.Err(), ErrFetch, "what is no query of the engine is limited, too")

	pool.LimitFetch(0)
	require.NoError(t, ask(`sum(m)`))
	pool.LimitFetch(1)
	require.NoError(t, ask(`sum(m)`), "what is cached is not counted")
}
