package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/batch"
	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/tombstone"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	hour = int64(time.Hour / time.Millisecond)
	// begin is a midnight.
	begin = int64(1_767_916_800_000)
)

var writer = map[string]string{"millrace": "main"}

// importInto opens an import to bkt, does it, and closes it.
func importInto(t *testing.T, bkt objstore.Bucket, change func(*Options), do func(context.Context, *Importer) error) (Summary, error) {
	t.Helper()
	return importWith(t.Context(), t, bkt, change, do)
}

func importWith(ctx context.Context, t *testing.T, bkt objstore.Bucket, change func(*Options), do func(context.Context, *Importer) error) (Summary, error) {
	t.Helper()
	o := Options{Bucket: bkt, Labels: writer, ScratchDir: t.TempDir(), Limits: ingest.DefaultLimits()}
	if change != nil {
		change(&o)
	}
	im, err := Open(ctx, o)
	if err != nil {
		return Summary{}, err
	}
	err = do(ctx, im)
	require.NoError(t, im.Close())
	require.NoDirExists(t, im.scratch)
	return im.Summary(), err
}

func blocksOf(dir string) func(context.Context, *Importer) error {
	return func(ctx context.Context, im *Importer) error { return im.Blocks(ctx, dir) }
}

// newDB is a Prometheus database that takes samples of any age.
func newDB(t *testing.T) *tsdb.DB {
	t.Helper()
	o := tsdb.DefaultOptions()
	o.RetentionDuration, o.OutOfOrderTimeWindow = 0, 1000*24*hour
	o.MaxBlockChunkSegmentSize = 1 << 20 // is taken from the disk at once
	db, err := tsdb.Open(t.TempDir(), slog.New(slog.DiscardHandler), nil, o, nil)
	require.NoError(t, err)
	db.DisableCompactions()
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// fill appends floats, native histograms and stale markers, every 2 minutes, and leaves every seventh sample of a metric for later,
// so that it arrives out of order.
func fill(t *testing.T, db *tsdb.DB, from, to int64) {
	t.Helper()
	var late []int64
	app := db.Appender(t.Context())
	add := func(ts int64, v float64, lset ...string) {
		_, err := app.Append(0, labels.FromStrings(lset...), ts, v)
		require.NoError(t, err)
	}
	for ts, n := from, int64(0); ts < to; ts, n = ts+2*hour/60, n+1 {
		for _, job := range []string{"a", "b"} {
			add(ts, float64(n%500)*1.25, "__name__", "requests_total", "job", job)
		}
		if n%7 == 0 {
			late = append(late, ts)
		} else {
			add(ts, math.Sin(float64(n)), "__name__", "temperature", "room", "öst")
		}
		if n%400 == 399 {
			add(ts, math.Float64frombits(0x7ff0000000000002), "__name__", "gone")
		} else {
			add(ts, float64(n), "__name__", "gone")
		}
		_, err := app.AppendHistogram(0, labels.FromStrings("__name__", "latency"), ts, tsdbutil.GenerateTestHistogram(n%300), nil)
		require.NoError(t, err)
		var fh *histogram.FloatHistogram
		if fh = tsdbutil.GenerateTestGaugeFloatHistogram(n); n%2 == 0 {
			fh = tsdbutil.GenerateTestCustomBucketsFloatHistogram(n)
		}
		_, err = app.AppendHistogram(0, labels.FromStrings("__name__", "sizes"), ts, nil, fh)
		require.NoError(t, err)
	}
	require.NoError(t, app.Commit())
	app = db.Appender(t.Context())
	for _, ts := range late {
		add(ts, 7, "__name__", "temperature", "room", "öst")
	}
	require.NoError(t, app.Commit())
}

var queries = []string{
	`{__name__!=""}`,
	`sum by (job) (rate(requests_total[30m]))`,
	`temperature`,
	`count_over_time(temperature[1h])`,
	`gone`,
	`histogram_quantile(0.9, rate(latency[1h]))`,
	`histogram_count(latency)`,
	`sizes`,
	`resets(requests_total[1d])`,
}

// answers are those of a queryable to all queries, over the range, at steps that do not hit samples.
func answers(t *testing.T, q storage.Queryable, from, to int64) map[string]string {
	t.Helper()
	e := serving.NewEngine(serving.EngineOptions{PromQL: promql.EngineOpts{
		MaxSamples: 50_000_000, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, EnableAtModifier: true, EnableNegativeOffset: true,
	}})
	out := map[string]string{}
	for _, query := range queries {
		r, err := e.NewRangeQuery(t.Context(), q, nil, query, time.UnixMilli(from), time.UnixMilli(to), 7*time.Minute+13*time.Second)
		require.NoError(t, err)
		res := r.Exec(t.Context())
		require.NoError(t, res.Err, query)
		out[query] = res.Value.String()
		r.Close()
	}
	return out
}

// served is what a server over the bucket answers from.
func served(t *testing.T, bkt objstore.Bucket) storage.Queryable {
	t.Helper()
	listed, err := block.List(t.Context(), bkt)
	require.NoError(t, err)
	metas := make([]block.Meta, 0, len(listed))
	for _, l := range listed {
		metas = append(metas, l.Meta)
	}
	set := serving.NewSet()
	for _, m := range block.Visible(metas) {
		b, err := block.OpenBucketMeta(t.Context(), bkt, m, nil)
		require.NoError(t, err)
		set.Replace(nil, []serving.Entry{{Source: served1{b}}})
		t.Cleanup(func() { require.NoError(t, b.Close()) })
	}
	deleted, err := tombstone.NewStore(bkt).List(t.Context())
	require.NoError(t, err)
	set.Delete(deleted)
	return serving.NewQueryable(set, serving.Options{})
}

type served1 struct{ *block.Block }

func (served1) Layer() serving.Layer { return serving.Batch }
func (s served1) Generations() (uint64, uint64) {
	m := s.Meta()
	return m.Generations()
}

func (s served1) DeletedBy(t *tombstone.Tombstone) tombstone.Effect {
	m := s.Meta()
	return t.On(m.Stored())
}
func (s served1) MinTime() int64 { return s.Meta().MinTime }
func (s served1) MaxTime() int64 { return s.Meta().MaxTime - 1 }

// compact runs all batch jobs on the bucket.
func compact(t *testing.T, bkt objstore.Bucket) batch.Summary {
	t.Helper()
	r, err := batch.NewRunner(batch.Options{Bucket: bkt, Lister: block.NewLister(bkt), ScratchDir: t.TempDir()})
	require.NoError(t, err)
	s, err := r.Run(t.Context(), true)
	require.NoError(t, err)
	return s
}

// content is every object of a bucket.
func content(bkt *objstore.InMemBucket) map[string]string {
	out := map[string]string{}
	for name, b := range bkt.Objects() {
		out[name] = string(b)
	}
	return out
}

func requireSameContent(t *testing.T, want, got *objstore.InMemBucket) {
	t.Helper()
	w, g := content(want), content(got)
	require.Equal(t, slices.Sorted(maps.Keys(w)), slices.Sorted(maps.Keys(g)))
	requireSame(t, w, g)
}

func requireVerified(t *testing.T, bkt objstore.Bucket) {
	t.Helper()
	listed, err := block.List(t.Context(), bkt)
	require.NoError(t, err)
	for id := range listed {
		findings, err := block.Verify(t.Context(), bkt, id)
		require.NoError(t, err)
		require.Empty(t, findings)
	}
}

var errKilled = errors.New("killed")

// faultBucket calls on with the number of each request; from an error on, no request is carried out.
type faultBucket struct {
	objstore.Bucket
	on func(n int, what string) error

	mu sync.Mutex
	n  int
}

func (b *faultBucket) call(what string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n++
	return b.on(b.n-1, what)
}

func (b *faultBucket) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	if err := errors.Join(b.call("upload "+name), ctx.Err()); err != nil {
		return err
	}
	return b.Bucket.Upload(ctx, name, r, o...)
}

func (b *faultBucket) Exists(ctx context.Context, name string) (bool, error) {
	if err := errors.Join(b.call("exists "+name), ctx.Err()); err != nil {
		return false, err
	}
	return b.Bucket.Exists(ctx, name)
}

func (b *faultBucket) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	if err := errors.Join(b.call("attributes "+name), ctx.Err()); err != nil {
		return objstore.ObjectAttributes{}, err
	}
	return b.Bucket.Attributes(ctx, name)
}

func (b *faultBucket) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := errors.Join(b.call("get "+name), ctx.Err()); err != nil {
		return nil, err
	}
	return b.Bucket.Get(ctx, name)
}

func (b *faultBucket) Iter(ctx context.Context, dir string, f func(string) error, o ...objstore.IterOption) error {
	if err := errors.Join(b.call("list "+dir), ctx.Err()); err != nil {
		return err
	}
	return b.Bucket.Iter(ctx, dir, f, o...)
}

// killEverywhere does an import again and again, killed or cancelled at each request to the bucket in turn, and once more without.
// Each time the bucket must be as after an import that nothing disturbed.
func killEverywhere(t *testing.T, change func(*Options), do func(context.Context, *Importer) error) {
	t.Helper()
	want := objstore.NewInMemBucket()
	_, err := importInto(t, want, change, do)
	require.NoError(t, err)
	require.NotEmpty(t, want.Objects())
	for _, cancelled := range []bool{false, true} {
		for n := 0; ; n++ {
			ctx, cancel := context.WithCancel(t.Context())
			got := objstore.NewInMemBucket()
			struck := false
			_, err := importWith(ctx, t, &faultBucket{Bucket: got, on: func(i int, _ string) error {
				switch {
				case i < n:
				case cancelled:
					struck = true
					cancel()
				default:
					struck = true
					return errKilled
				}
				return nil
			}}, change, do)
			cancel()
			if !struck {
				require.NoError(t, err)
				require.Greater(t, n, 5)
				break
			}
			require.Error(t, err, "request %d", n)
			requireVerified(t, got)
			_, err = importInto(t, got, change, do)
			require.NoError(t, err)
			requireSameContent(t, want, got)
		}
	}
}

// ownBlock puts a block of a generation of the server's own into the bucket.
func ownBlock(t *testing.T, bkt objstore.Bucket, generation uint64, db *tsdb.DB, from, to int64) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, db.Snapshot(dir, true))
	var inputs []block.Input
	im := &Importer{bounds: span{minTime, maxTime}, log: slog.New(slog.DiscardHandler)}
	found, err := im.findBlocks(dir)
	require.NoError(t, err)
	for _, s := range found {
		in, err := im.input(s)
		require.NoError(t, err)
		defer s.close()
		inputs = append(inputs, in)
	}
	var m block.Meta
	m.ULID = ulid.MustNew(uint64(to), nil)
	m.MinTime, m.MaxTime, m.Thanos.Labels = from, to, writer
	m.SetExtension(0, generation, generation)
	out := t.TempDir()
	_, err = block.Write(t.Context(), out, m, inputs, block.WriteOptions{})
	require.NoError(t, err)
	require.NoError(t, block.Upload(t.Context(), bkt, fmt.Sprintf("%s/%s", out, m.ULID)))
}

func querier(t *testing.T, q storage.Queryable, from, to int64) storage.Querier {
	t.Helper()
	out, err := q.Querier(from, to)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, out.Close()) })
	return out
}

// samplesOf are all samples, "labels at time" → value.
func samplesOf(t *testing.T, q storage.Querier) map[string]string {
	t.Helper()
	out := map[string]string{}
	set := q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for set.Next() {
		it := set.At().Iterator(nil)
		for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
			key := fmt.Sprintf("%s at %d", set.At().Labels(), it.AtT())
			if vt == chunkenc.ValFloat {
				_, v := it.At()
				out[key] = fmt.Sprint(math.Float64bits(v))
				continue
			}
			_, fh := it.AtFloatHistogram(nil)
			out[key] = fh.String()
		}
		require.NoError(t, it.Err())
	}
	require.NoError(t, set.Err())
	return out
}

// byHour writes down series of floats whose times are whole hours since begin.
func byHour(t *testing.T, q storage.Querier) (out []string) {
	t.Helper()
	set := q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for set.Next() {
		line := set.At().Labels().String()
		it := set.At().Iterator(nil)
		for it.Next() != chunkenc.ValNone {
			ts, v := it.At()
			line += fmt.Sprintf(" %gh=%g", float64(ts-begin)/float64(hour), v)
		}
		require.NoError(t, it.Err())
		out = append(out, line)
	}
	require.NoError(t, set.Err())
	return out
}

// requireSame compares maps that are too large to print.
func requireSame(t *testing.T, want, got map[string]string) {
	t.Helper()
	require.NotEmpty(t, want)
	for k, v := range want {
		if v != got[k] {
			require.Failf(t, "not the same", "%s: want %.300q, got %.300q", k, v, got[k])
		}
	}
	require.Len(t, got, len(want))
}

// blocksOnly is what a Prometheus server knows from the blocks in dir.
func blocksOnly(t *testing.T, dir string) storage.Queryable {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "wal"), 0o700)) // must be there
	db, err := tsdb.OpenDBReadOnly(dir, t.TempDir(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}
