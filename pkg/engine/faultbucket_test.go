package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

var (
	errFault = errors.New("the store has a fault")
	errDead  = errors.New("the process is dead")
)

// faultBucket does to the calls of a bucket, at random, what networks and stores do: they fail before or after they take effect, time out, are slow, and bodies
// end too early. Once it is dead no call takes effect, as when the process dies between two calls.
type faultBucket struct {
	objstore.Bucket

	mu    sync.Mutex // guards the following
	r     *rand.Rand
	share int // of 100 calls, those with a fault
	dies  int // after how many calls; 0 is never
	dead  bool
}

// calls sets how many of 100 calls have a fault from now on, and after how many calls the process dies; 0 is never.
func (b *faultBucket) calls(share, dies int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.share, b.dies = share, dies
}

// fault is what happens to one call.
type fault struct {
	before, after error
	cut           int // at which byte a body ends, if not negative
}

func (b *faultBucket) fault(ctx context.Context) fault {
	f := fault{cut: -1}
	b.mu.Lock()
	if b.dies--; b.dies == 0 {
		b.dead = true
	}
	dead, hit, kind, at := b.dead, b.r.Intn(100) < b.share, b.r.Intn(5), b.r.Intn(3000)
	b.mu.Unlock()
	switch {
	case dead:
		f.before = errDead
	case !hit:
	case kind == 0:
		f.before = errFault
	case kind == 1:
		f.after = errFault
	case kind == 2:
		f.before = fmt.Errorf("%w: %w", errFault, context.DeadlineExceeded)
	case kind == 3:
		f.cut = at
	default:
		select {
		case <-ctx.Done():
			f.before = ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
	return f
}

// do carries out a call without a body.
func (b *faultBucket) do(ctx context.Context, call func() error) error {
	f := b.fault(ctx)
	if f.before != nil {
		return f.before
	}
	return errors.Join(call(), f.after)
}

// read carries out a call that returns a body.
func (b *faultBucket) read(ctx context.Context, call func() (io.ReadCloser, error)) (io.ReadCloser, error) {
	f := b.fault(ctx)
	if err := errors.Join(f.before, f.after); err != nil {
		return nil, err
	}
	body, err := call()
	if err == nil && f.cut >= 0 {
		body = &cutBody{ReadCloser: body, left: f.cut}
	}
	return body, err
}

// cutBody is a body whose connection breaks.
type cutBody struct {
	io.ReadCloser
	left int
}

func (c *cutBody) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.ReadCloser.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

func (b *faultBucket) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	return b.read(ctx, func() (io.ReadCloser, error) { return b.Bucket.Get(ctx, name) })
}

func (b *faultBucket) GetRange(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	return b.read(ctx, func() (io.ReadCloser, error) { return b.Bucket.GetRange(ctx, name, off, n) })
}

func (b *faultBucket) Attributes(ctx context.Context, name string) (a objstore.ObjectAttributes, err error) {
	err = b.do(ctx, func() (err error) { a, err = b.Bucket.Attributes(ctx, name); return err })
	return a, err
}

func (b *faultBucket) Exists(ctx context.Context, name string) (ok bool, err error) {
	err = b.do(ctx, func() (err error) { ok, err = b.Bucket.Exists(ctx, name); return err })
	return ok, err
}

func (b *faultBucket) Iter(ctx context.Context, dir string, f func(string) error, o ...objstore.IterOption) error {
	return b.do(ctx, func() error { return b.Bucket.Iter(ctx, dir, f, o...) })
}

func (b *faultBucket) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, o ...objstore.IterOption) error {
	return b.do(ctx, func() error { return b.Bucket.IterWithAttributes(ctx, dir, f, o...) })
}

func (b *faultBucket) Delete(ctx context.Context, name string) error {
	return b.do(ctx, func() error { return b.Bucket.Delete(ctx, name) })
}

func (b *faultBucket) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	f := b.fault(ctx)
	if f.before != nil {
		return f.before
	}
	if f.cut >= 0 {
		r = &cutBody{ReadCloser: io.NopCloser(r), left: f.cut}
	}
	return errors.Join(b.Bucket.Upload(ctx, name, r, o...), f.after)
}

// faultHistory is a history of engines whose bucket has faults.
type faultHistory struct {
	*history
	b      *faultBucket
	failed int
}

// open starts an engine over a bucket that is alive, and without faults until it is open.
func (h *faultHistory) open() {
	cfg := testConfig(h.t, h.path)
	cfg.Bucket.SyncInterval = 50 * time.Millisecond
	e := newEngine(h.t, cfg)
	e.wrapBucket = func(b objstore.Bucket) objstore.Bucket {
		h.b = &faultBucket{Bucket: b, r: rand.New(rand.NewSource(h.Int63()))}
		return h.b
	}
	h.e = started(h.t, e)
}

// answered compares all samples of all series, unless the answer is an error.
func (h *faultHistory) answered() {
	got, err := h.samples()
	if err != nil {
		h.failed++
		_, timeout := errors.AsType[promql.ErrQueryTimeout](err)
		require.True(h.t, timeout || errors.Is(err, errFault) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errDead), "%v", err)
		return
	}
	require.Equal(h.t, h.want, got)
}

// die lets the process die between two calls to the bucket, while it compacts, and starts another.
func (h *faultHistory) die() {
	h.b.calls(0, 1+h.Intn(60))
	_ = h.e.RunBatch(h.t.Context()) // which may be through before
	h.b.calls(0, 1)
	stopEngine(h.t, h.e)
	h.open()
}

// Whatever the bucket does: an answer is an error, or holds for each time of a series what was accepted last. What was accepted is never lost.
func TestHistoriesOfAnEngineWithAFaultyBucket(t *testing.T) {
	for seed := range int64(*histories) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			h := &faultHistory{history: &history{
				Rand: rand.New(rand.NewSource(seed)), t: t, path: t.TempDir(), now: time.Now().UnixMilli(),
				last: map[string]int64{}, want: map[string]map[int64]int{},
			}}
			h.open()
			for range 50 {
				h.b.calls(h.Intn(3)*h.Intn(20), 0)
				switch h.Intn(20) {
				case 0, 1, 2:
					require.NoError(t, h.e.rotate())
				case 3, 4:
					_ = h.e.RunBatch(t.Context())
				case 5:
					stopEngine(t, h.e)
					h.open()
				case 6:
					h.die()
				default:
					h.write()
				}
				if h.Intn(2) == 0 {
					h.answered()
				}
			}
			h.b.calls(0, 0)
			eventually(t, "all is well when the bucket is", func() bool { return h.e.RunBatch(t.Context()) == nil })
			h.check()
			listed, err := block.NewLister(h.b).List(t.Context())
			require.NoError(t, err)
			for id := range listed {
				findings, err := block.Verify(t.Context(), h.b, id)
				require.NoError(t, err)
				require.Empty(t, findings)
			}
			t.Logf("%d queries failed", h.failed)
		})
	}
}
