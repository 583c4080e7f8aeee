package batch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

// hookBucket calls upload before each upload, and fails deletions that denied picks.
type hookBucket struct {
	objstore.Bucket
	upload func(name string)
	denied func(name string) bool
}

func (h *hookBucket) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	if h.upload != nil {
		h.upload(name)
	}
	return h.Bucket.Upload(ctx, name, r, o...)
}

func (h *hookBucket) Delete(ctx context.Context, name string) error {
	if h.denied != nil && h.denied(name) {
		return errInjected
	}
	return h.Bucket.Delete(ctx, name)
}

// forgedWith is a compacted world in which a block has a sample that nobody sent.
func forgedWith(t *testing.T, hb *hookBucket) (w *world, r *Runner, forged block.Meta) {
	w, r = compacted(t, hb)
	old := w.victim()
	in := memInput{}
	in.add("z", old.MinTime, -1)
	b, err := block.OpenBucket(context.Background(), w.bucket, old.ULID, nil)
	require.NoError(t, err)
	defer b.Close()
	return w, r, w.forge(old, b, in)
}

func TestRecomputeIsOvertaken(t *testing.T) {
	for _, moment := range []string{"chunks/", block.MetaFilename} {
		t.Run(moment, func(t *testing.T) {
			hb := &hookBucket{Bucket: objstore.NewInMemBucket()}
			w, r, forged := forgedWith(t, hb)
			other, done := w.runner(keeping(Forever)), false
			hb.upload = func(name string) {
				if done || !strings.Contains(name, moment) {
					return
				}
				done = true
				w.advance(20 * day)
				w.run(other, true) // compacts to 14 days
			}
			out := w.recompute(r, false)
			require.True(t, done)
			for _, o := range out {
				if o.Block.ULID == forged.ULID {
					require.Equal(t, Overtaken, o.Outcome)
				}
			}
			hb.upload = nil
			w.advance(2 * hour)
			w.run(other, true)
			require.Equal(t, 1, outcomes(w.recompute(other, false))[Swapped], "what has overtaken it is mended next")
			w.check()
		})
	}
}

// A block that cannot be removed keeps the one that hides it.
func TestWhatCannotBeDeletedStaysHidden(t *testing.T) {
	hb := &hookBucket{Bucket: objstore.NewInMemBucket()}
	w, r, forged := forgedWith(t, hb)
	w.recompute(r, false)
	w.check()
	hb.denied = func(name string) bool { return strings.HasPrefix(name, forged.ULID.String()) }
	w.advance(20 * day)
	_, _ = r.Run(context.Background(), true) // compacts to 14 days, and marks the rebuilt block
	w.advance(2 * hour)
	for range 3 {
		_, err := r.Run(context.Background(), true)
		require.ErrorIs(t, err, errInjected)
		w.check()
		w.advance(2 * hour)
	}
	hb.denied = nil
	w.run(r, true)
	w.run(r, true)
	w.check()
	require.Len(t, w.listed(), len(w.visible()))
}

// A block of unknown generation may belong between two others, which so are not merged.
func TestNothingIsMergedAroundAnUnreadableMeta(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	w := newWorld(t, bkt, time.Now().UTC().Truncate(day).Add(day+9*hour))
	at := w.now.Load()
	var mid ulid.ULID
	for i := range 3 {
		w.now.Store(at)
		id := w.generation([]string{[]string{"a", "a", "b"}[i]}, 0)[0]
		if i == 1 {
			mid = id
		}
	}
	name := path.Join(mid.String(), block.MetaFilename)
	whole := bytes.Clone(bkt.Objects()[name])
	require.NoError(t, bkt.Upload(context.Background(), name, bytes.NewReader(whole[:len(whole)/2])))
	w.advance(4 * hour)
	s, err := w.runner().Run(context.Background(), true)
	require.ErrorContains(t, err, mid.String())
	require.Zero(t, s.Jobs)
	require.NoError(t, bkt.Upload(context.Background(), name, bytes.NewReader(whole)))
	require.Positive(t, w.run(w.runner(), true).Jobs)
	w.check()
}

// An output of an attempt that died is not taken for good when it was damaged since.
func TestResumedJobMakesADamagedOutputAgain(t *testing.T) {
	first := objstore.NewInMemBucket()
	origin := newWorld(t, first, time.Now().UTC().Truncate(day).Add(day+9*hour))
	origin.generation([]string{"a", "b"}, 0, 3*hour)
	var uncommitted ulid.ULID
	hb := &hookBucket{Bucket: copyBucket(t, first)}
	w := newWorld(t, hb, origin.clock())
	w.expected = origin.expected
	ctx, cancel := context.WithCancel(context.Background())
	hb.upload = func(name string) {
		id, rest, _ := strings.Cut(name, "/")
		if uncommitted != (ulid.ULID{}) {
			cancel() // dies after its first output
		}
		if rest == block.MetaFilename {
			uncommitted = ulid.MustParse(id)
		}
	}
	_, err := w.runner().Run(ctx, true)
	require.ErrorIs(t, err, context.Canceled)
	require.NotZero(t, uncommitted)
	hb.upload = nil
	name := path.Join(uncommitted.String(), "chunks/000001")
	body, err := hb.Get(context.Background(), name)
	require.NoError(t, err)
	raw, err := io.ReadAll(body)
	require.NoError(t, err)
	raw[len(raw)-1] ^= 1
	require.NoError(t, hb.Upload(context.Background(), name, bytes.NewReader(raw)))
	require.NoError(t, block.Quarantine(context.Background(), hb, uncommitted, "damaged"))

	w.run(w.runner(), true)
	w.check()
	w.verify()
	for _, l := range w.listed() {
		require.Nil(t, l.QuarantineMark)
	}
}

// What retention by size removes was not superseded: it goes for good, and is not kept elsewhere.
func TestOnlySupersededBlocksAreKept(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), time.Now().UTC().Truncate(day).Add(day+9*hour))
	w.generation([]string{"a"}, 0)
	id := w.listed()[0].Meta.ULID
	require.NoError(t, block.MarkForDeletion(context.Background(), w.bucket, id, "too much"))
	w.advance(2 * hour)
	s, err := w.runner(keeping(Forever)).Run(context.Background(), false)
	require.NoError(t, err)
	require.Equal(t, 1, s.Deleted, s)
	require.Empty(t, w.masters())
}

// Two runners move the same level-0 blocks in a folder, again and again: each block stays somewhere.
func TestTwoRunnersKeepMastersInAFolder(t *testing.T) {
	dir := fastDir(t)
	bkt, err := block.NewDirBucket(dir)
	require.NoError(t, err)
	w := newWorld(t, bkt, time.Now().UTC().Truncate(day).Add(day+9*hour))
	for range 10 {
		w.generation([]string{"a"}, 0)
		m := w.listed()[0].Meta
		other, err := block.NewDirBucket(dir)
		require.NoError(t, err)
		errs := make(chan error, 2)
		for _, b := range []objstore.Bucket{bkt, other} {
			go func() { errs <- block.KeepMaster(context.Background(), b, m) }()
		}
		err = errors.Join(<-errs, <-errs)
		require.Contains(t, w.masters(), m.ULID, err)
		require.NoError(t, block.KeepMaster(context.Background(), bkt, m))
		require.Empty(t, w.listed())
	}
	require.Len(t, w.masters(), 10)
}

// slowReads takes more than a minute to read something.
type slowReads struct {
	objstore.Bucket
	w *world
}

func (b slowReads) GetRange(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	b.w.advance(61 * time.Second)
	return b.Bucket.GetRange(ctx, name, off, n)
}

// TestErasuresInASlowBucket: to find out which blocks have something to erase may take longer than a plan is good for.
func TestErasuresInASlowBucket(t *testing.T) {
	w, _ := compacted(t, objstore.NewInMemBucket())
	w.delete("a|h", 90*day, 0)
	w.delete("none", 90*day, 0)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	slow := slowReads{w.bucket, w}
	_, err := w.runner(func(o *Options) { o.Bucket = slow }).Run(ctx, true)
	require.NoError(t, err)
	w.check()
	w.checkErased("a", "h")
}
