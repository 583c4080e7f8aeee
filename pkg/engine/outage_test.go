package engine

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
)

const dayMillis = 24 * 60 * 60 * 1000

// movableBucket is a bucket in a folder that can be taken away: its name is a link, to the folder or, in a circle, to itself.
type movableBucket struct {
	t            testing.TB
	dir, present string
}

func newMovableBucket(t testing.TB) *movableBucket {
	dir := t.TempDir()
	b := &movableBucket{t: t, dir: filepath.Join(dir, "bucket"), present: filepath.Join(dir, "present")}
	require.NoError(t, os.Mkdir(b.present, 0o750))
	b.back()
	return b
}

func (b *movableBucket) config(path string) Config {
	cfg := testConfig(b.t, path, "--objstore.config={type: FILESYSTEM, config: {directory: "+b.dir+"}}")
	cfg.Bucket.SyncInterval = 100 * time.Millisecond
	return cfg
}

func (b *movableBucket) away() { b.link(b.dir) }
func (b *movableBucket) back() { b.link(b.present) }

// link lets the bucket's name lead to target, in one step.
func (b *movableBucket) link(target string) {
	next := b.dir + ".next"
	require.NoError(b.t, os.Symlink(target, next))
	require.NoError(b.t, os.Rename(next, b.dir))
}

// readError is the error of a query of all samples of a series in a layer.
func readError(t *testing.T, e *Engine, layer serving.Layer, series string, at int64, span time.Duration) error {
	t.Helper()
	ctx := serving.WithLayer(t.Context(), layer)
	q, err := e.queries.NewInstantQuery(ctx, e.queryable, nil, fmt.Sprintf("m{series=%q}[%dms]", series, span.Milliseconds()), time.UnixMilli(at))
	require.NoError(t, err)
	defer q.Close()
	return q.Exec(ctx).Err
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 30*time.Second, 20*time.Millisecond, what)
}

func problem(e *Engine, component string) string { return e.Layers().Problems[component] }

func TestABucketThatIsAwayAtTheStart(t *testing.T) {
	b := newMovableBucket(t)
	b.away()
	e := startEngine(t, b.config(t.TempDir()))
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now - 1000, 1})
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
	write(t, e, "a", point{now, 2})
	want := []point{{now - 1000, 1}, {now, 2}}

	require.Equal(t, want, read(t, e, serving.Speed, "a", now, time.Hour), "what is local answers")
	for _, layer := range []serving.Layer{serving.Merged, serving.Batch} {
		require.ErrorContains(t, readError(t, e, layer, "a", now, time.Hour), "the bucket has not been reached since the start")
	}
	require.Equal(t, Ready, e.State().Phase)
	require.ErrorContains(t, e.State().Err, "bucket")
	require.False(t, e.Layers().Bucket.Reachable)

	b.back()
	eventually(t, "the bucket is found again", func() bool {
		return e.State().Err == nil && len(e.Layers().Blocks) == 1 && e.Layers().Blocks[0].Location == "bucket"
	})
	require.Equal(t, want, read(t, e, serving.Merged, "a", now, time.Hour))
	require.Equal(t, want[:1], read(t, e, serving.Batch, "a", now, time.Hour))
	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, want, read(t, e, serving.Batch, "a", now, time.Hour))
}

func TestABucketThatGoesAwayAndComesBack(t *testing.T) {
	b := newMovableBucket(t)
	e := startEngine(t, b.config(t.TempDir()))
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now - 2*dayMillis, 1})
	require.NoError(t, e.RunBatch(t.Context()))

	b.away()
	write(t, e, "a", point{now - 1000, 2})
	_, err := e.RunBatchJob(t.Context(), true)
	later, ok := errors.AsType[*ingest.Unavailable](err)
	require.True(t, ok, "who asked may come again: %v", err)
	require.Contains(t, later.Reason, "the bucket is unavailable")
	require.Positive(t, later.RetryAfter)
	write(t, e, "a", point{now, 3})
	eventually(t, "the outage shows", func() bool { return problem(e, "bucket") != "" && problem(e, "upload") != "" })
	require.Equal(t, []point{{now - 1000, 2}, {now, 3}}, read(t, e, serving.Speed, "a", now, time.Hour))
	require.Equal(t, []point{{now - 1000, 2}, {now, 3}}, read(t, e, serving.Merged, "a", now, time.Hour), "a range that no block in the bucket touches")

	b.back()
	eventually(t, "the outage ends", func() bool { return problem(e, "bucket") == "" && problem(e, "upload") == "" })
	require.NoError(t, e.RunBatch(t.Context()))
	require.Equal(t, []point{{now - 2*dayMillis, 1}, {now - 1000, 2}, {now, 3}}, read(t, e, serving.Batch, "a", now, 72*time.Hour))
	require.Empty(t, read(t, e, serving.Speed, "a", now, 72*time.Hour))
}

func TestABatchRunThatSucceedsEndsProblems(t *testing.T) {
	e := startEngine(t, newMovableBucket(t).config(t.TempDir()))
	components := []string{"flush", "upload", "batch"}
	for _, c := range components {
		e.report(c, errors.New("of an earlier try"))
	}
	write(t, e, "a", point{time.Now().UnixMilli(), 1})
	_, err := e.RunBatchJob(t.Context(), true)
	require.NoError(t, err)
	for _, c := range components {
		require.Empty(t, problem(e, c), c)
	}
}

func TestAStartWithoutTheBucketKnowsWhatIsInIt(t *testing.T) {
	b := newMovableBucket(t)
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, b.config(path))
	write(t, e, "a", point{now - 2*dayMillis, 1})
	require.NoError(t, e.RunBatch(t.Context()))
	accepting := e.Layers().Watermarks.Accepting
	blocks := e.Layers().Blocks
	require.Len(t, blocks, 1)
	stopEngine(t, e)

	b.away()
	require.NoError(t, os.RemoveAll(filepath.Join(path, walDir)), "so that numbers are known from the listing alone")
	e = startEngine(t, b.config(path))
	require.GreaterOrEqual(t, e.Layers().Watermarks.Accepting, accepting)
	write(t, e, "a", point{now, 2})
	require.Equal(t, []point{{now, 2}}, read(t, e, serving.Merged, "a", now, time.Hour), "a range that needs no block")
	require.False(t, e.Layers().Bucket.Reachable)
	require.ErrorContains(t, readError(t, e, serving.Merged, "a", now, 72*time.Hour), blocks[0].ULID.String())

	b.back()
	eventually(t, "the bucket is found again", func() bool { return e.State().Err == nil })
	require.Equal(t, []point{{now - 2*dayMillis, 1}, {now, 2}}, read(t, e, serving.Merged, "a", now, 72*time.Hour))
}

// post sends n series of one sample as a sender does.
// An upload adds to what is known of the bucket: a start without it must not forget what could not be opened or was left out.
func TestAnUploadForgetsNothingThatIsInTheBucket(t *testing.T) {
	path, now := t.TempDir(), time.Now().UnixMilli()
	b := newMovableBucket(t)
	e := startEngine(t, b.config(path))
	write(t, e, "a", point{now, 1})
	require.NoError(t, e.RunBatch(t.Context()))
	id := e.Layers().Blocks[0].ULID
	removeAllBut(t, b.present, id.String())
	require.NoError(t, block.Quarantine(t.Context(), e.data.bucket, id, "byte 7 of index"))
	require.NoError(t, e.syncBucket(t.Context()))
	write(t, e, "b", point{now - dayMillis, 1})
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
	require.NoError(t, e.uploadOnce(t.Context()))
	stopEngine(t, e)

	b.away()
	e = startEngine(t, b.config(path))
	require.Error(t, readError(t, e, serving.Merged, "a", now, time.Hour), "nobody knows any more that it was in quarantine")
	require.Error(t, readError(t, e, serving.Merged, "b", now, 48*time.Hour))
	b.back()
	eventually(t, "it answers", func() bool { return e.data.synced.wasListed() })
	require.NoError(t, readError(t, e, serving.Merged, "b", now, 48*time.Hour))
}

// What is in the bucket is not known before it was listed: an upload alone is no listing.
func TestAnUploadIsNoListing(t *testing.T) {
	s := newBucketState()
	meta := func(id byte) (m block.Meta) { m.ULID[0] = id; return m }
	s.came(meta(1))
	_, known := s.content()
	require.False(t, known)
	mark := s.mark()
	s.found(mark, []block.Meta{meta(1), meta(2)})
	mark = s.mark()
	s.came(meta(3))
	s.found(mark, []block.Meta{meta(2)})
	metas, known := s.content()
	require.True(t, known)
	require.Equal(t, []block.Meta{meta(2), meta(3)}, metas, "came after the listing began")
	s.found(s.mark(), []block.Meta{meta(2)})
	metas, _ = s.content()
	require.Equal(t, []block.Meta{meta(2)}, metas, "was taken away")
}

func post(t testing.TB, h http.Handler, prefix string, n int, at int64) *httptest.ResponseRecorder {
	t.Helper()
	var req prompb.WriteRequest
	for i := range n {
		req.Timeseries = append(req.Timeseries, prompb.TimeSeries{
			Labels:  []prompb.Label{{Name: "__name__", Value: "m"}, {Name: "series", Value: fmt.Sprintf("%s-%d", prefix, i)}},
			Samples: []prompb.Sample{{Timestamp: at, Value: 1}},
		})
	}
	raw, err := req.Marshal()
	require.NoError(t, err)
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/api/v1/write", strings.NewReader(string(snappy.Encode(nil, raw))))
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("Content-Encoding", "snappy")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func samplesInMemory(e *Engine) (n int64) {
	for _, g := range e.Layers().Generations {
		n += g.Samples
	}
	return n
}

// fill writes until the engine refuses, and returns the refusal.
func fill(t *testing.T, e *Engine, at int64) *httptest.ResponseRecorder {
	t.Helper()
	for i := range 1000 {
		if w := post(t, e.receiver, fmt.Sprintf("fill-%d", i), 500, at); w.Code != http.StatusNoContent {
			return w
		}
		e.measureDisk()
	}
	require.Fail(t, "nothing was refused")
	return nil
}

func TestTheLimitOfLocalDisk(t *testing.T) {
	b := newMovableBucket(t)
	cfg := b.config(t.TempDir())
	cfg.Storage.LocalLimit = 4 << 20
	e := startEngine(t, cfg)
	now := time.Now().UnixMilli()
	b.away()

	w := fill(t, e, now)
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.NotEmpty(t, w.Header().Get("Retry-After"))
	require.Contains(t, w.Body.String(), "--storage.local-limit")
	eventually(t, "health says it", func() bool { return strings.Contains(problem(e, "disk"), "--storage.local-limit") })
	// What is refused is not stored, and what is stored is still there, sealed or not.
	require.Equal(t, http.StatusServiceUnavailable, post(t, e.receiver, "refused", 1, now).Code)
	require.Empty(t, read(t, e, serving.Speed, "refused-0", now, time.Minute))
	require.Len(t, read(t, e, serving.Speed, "fill-0-0", now, time.Minute), 1)

	// Nobody seals for the user: what stands in the way goes to the bucket by itself once that is back.
	b.back()
	eventually(t, "writes are accepted again", func() bool { return post(t, e.receiver, "again", 1, now).Code == http.StatusNoContent })
	require.Len(t, read(t, e, serving.Merged, "fill-0-0", now, time.Minute), 1)
	require.Len(t, read(t, e, serving.Merged, "again-0", now, time.Minute), 1)
	require.Empty(t, read(t, e, serving.Merged, "refused-0", now, time.Minute))
}

func TestAnUnavailableEngineAsksSendersToComeAgain(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir()))
	stopEngine(t, e)
	w := post(t, e.receiver, "late", 1, time.Now().UnixMilli())
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.NotEmpty(t, w.Header().Get("Retry-After"))
	require.Contains(t, w.Body.String(), string(Stopping))
	var u *ingest.Unavailable
	require.ErrorAs(t, appender{e}.Append(t.Context(), nil, nil, nil), &u)
}
