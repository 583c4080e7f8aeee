package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

// buckets returns one of each kind that is read and written in different ways.
func buckets(t *testing.T) map[string]objstore.Bucket {
	t.Helper()
	return map[string]objstore.Bucket{"memory": objstore.NewInMemBucket(), "folder": newDirBucket(t, filepath.Join(t.TempDir(), "bucket"))}
}

// steppedBucket fails at the n-th call that changes the bucket, as if the process had died before or in it.
type steppedBucket struct {
	objstore.Bucket
	left int
	torn bool // the failing upload leaves the first half of the object
	done []string
}

func (b *steppedBucket) step(op, name string) error {
	if b.left--; b.left < 0 {
		return errTest
	}
	b.done = append(b.done, op+" "+filepath.Base(name))
	return nil
}

func (b *steppedBucket) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	if err := b.step("put", name); err != nil {
		if all, rerr := io.ReadAll(r); b.torn && b.left == -1 && rerr == nil {
			return errors.Join(err, b.Bucket.Upload(ctx, name, strings.NewReader(string(all[:len(all)/2])), o...))
		}
		return err
	}
	return b.Bucket.Upload(ctx, name, r, o...)
}

func (b *steppedBucket) Delete(ctx context.Context, name string) error {
	if err := b.step("delete", name); err != nil {
		return err
	}
	return b.Bucket.Delete(ctx, name)
}

func TestUploadStopsAnywhere(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(31, 1)), 30, 0, hour)
	dir, m := writeBlock(t, in)
	for _, torn := range []bool{false, true} {
		for name, bkt := range buckets(t) {
			if torn && name == "folder" {
				continue // its uploads are atomic
			}
			t.Run(fmt.Sprintf("%s/torn=%v", name, torn), func(t *testing.T) {
				for steps := 0; ; steps++ {
					s := &steppedBucket{Bucket: bkt, left: steps, torn: torn}
					err := Upload(t.Context(), s, dir)
					l := NewLister(bkt)
					listed, lerr := l.List(t.Context())
					require.NoError(t, lerr)
					if err == nil {
						require.Equal(t, []string{"put 000001", "put index", "put meta.json"}, s.done)
						require.Contains(t, listed, m.ULID)
						break
					}
					require.ErrorIs(t, err, errTest)
					require.Empty(t, listed, "after %d steps", steps)
					// The last file is torn where the provider is not atomic; it is not taken for a block.
					if torn && steps == 2 {
						require.ErrorIs(t, l.Bad()[m.ULID], ErrUnusable)
						require.NoError(t, bkt.Delete(t.Context(), m.ULID.String()+"/"+MetaFilename))
					} else if steps > 0 {
						require.Equal(t, []ulid.ULID{m.ULID}, l.Partial())
					}
				}
				s := &steppedBucket{Bucket: bkt}
				require.NoError(t, Upload(t.Context(), s, dir), "what is there already is not uploaded again")
				b, err := OpenBucket(t.Context(), bkt, m.ULID, nil)
				require.NoError(t, err)
				require.Equal(t, in.dump(), dumpAll(t, b))
				require.NoError(t, b.Close())
			})
		}
	}
}

func TestDeleteStopsAnywhere(t *testing.T) {
	dir, m := writeBlock(t, randomInput(rand.New(rand.NewPCG(32, 1)), 30, 0, hour))
	for name, bkt := range buckets(t) {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, Upload(t.Context(), bkt, dir))
			require.NoError(t, MarkForDeletion(t.Context(), bkt, m.ULID, "test"))
			l := NewLister(bkt)
			listed, err := l.List(t.Context())
			require.NoError(t, err)
			require.Len(t, listed, 1)
			var order []string
			for i := 0; ; i++ {
				require.Less(t, i, 10)
				s := &steppedBucket{Bucket: bkt, left: 1} // one object at a time
				err := Delete(t.Context(), s, m.ULID)
				order = append(order, s.done...)
				listed, lerr := l.List(t.Context())
				require.NoError(t, lerr)
				require.Empty(t, listed, "a block that is partly deleted is none")
				if err == nil {
					break
				}
				require.ErrorIs(t, err, errTest)
				require.Equal(t, []ulid.ULID{m.ULID}, l.Partial())
			}
			require.Len(t, order, 4)
			require.Equal(t, "delete meta.json", order[0])
			require.Equal(t, "delete deletion-mark.json", order[3])
			require.Empty(t, l.Partial())
			require.NoError(t, Delete(t.Context(), bkt, m.ULID), "what is gone can be deleted again")
		})
	}
}

func TestUploadRefuses(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(33, 1)), 30, 0, hour)
	bkt := objstore.NewInMemBucket()

	parent := t.TempDir()
	m := testMeta(t, 0, hour, 0, 1, 1)
	m.Thanos.Labels = nil
	m, err := Write(t.Context(), parent, m, []Input{in}, WriteOptions{})
	require.NoError(t, err)
	require.ErrorContains(t, Upload(t.Context(), bkt, filepath.Join(parent, m.ULID.String())), "no external labels")

	dir, _ := writeBlock(t, in)
	require.NoError(t, os.Truncate(filepath.Join(dir, IndexFilename), 100))
	require.ErrorIs(t, Upload(t.Context(), bkt, dir), ErrCorrupt)

	require.Error(t, Upload(t.Context(), bkt, t.TempDir()))
	listed, err := List(t.Context(), bkt)
	require.NoError(t, err)
	require.Empty(t, listed)
}

// losingBucket says that it took everything, and keeps half.
type losingBucket struct{ objstore.Bucket }

func (b losingBucket) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	all, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return b.Bucket.Upload(ctx, name, strings.NewReader(string(all[:len(all)/2])), o...)
}

func TestUploadChecksWhatArrived(t *testing.T) {
	dir, _ := writeBlock(t, randomInput(rand.New(rand.NewPCG(34, 1)), 30, 0, hour))
	bkt := objstore.NewInMemBucket()
	require.ErrorContains(t, Upload(t.Context(), losingBucket{bkt}, dir), "arrived")
	listed, err := List(t.Context(), bkt)
	require.NoError(t, err)
	require.Empty(t, listed)
}

func TestListerReadsOnlyWhatIsNew(t *testing.T) {
	for name, inner := range buckets(t) {
		t.Run(name, func(t *testing.T) {
			bkt := &countingBucket{Bucket: inner}
			l := NewLister(bkt)
			listed, err := l.List(t.Context())
			require.NoError(t, err)
			require.Empty(t, listed)

			var ids []ulid.ULID
			for i := range 3 {
				dir, m := writeBlock(t, randomInput(rand.New(rand.NewPCG(uint64(i), 2)), 5, 0, hour))
				require.NoError(t, Upload(t.Context(), inner, dir))
				ids = append(ids, m.ULID)
			}
			for _, other := range []string{"debug/metas/x.json", "top.json", strings.ToLower(ids[0].String()) + "/meta.json"} {
				require.NoError(t, inner.Upload(t.Context(), other, strings.NewReader("{}")))
			}
			requests := func() int64 {
				before := bkt.requests.Load()
				listed, err = l.List(t.Context())
				require.NoError(t, err)
				return bkt.requests.Load() - before
			}
			require.Equal(t, int64(3), requests())
			require.Len(t, listed, 3)
			require.Empty(t, l.Partial())
			require.Zero(t, requests(), "metas are known")

			require.NoError(t, MarkForDeletion(t.Context(), inner, ids[1], "superseded"))
			require.Equal(t, int64(1), requests(), "the mark")
			require.Zero(t, requests())
			mark := listed[ids[1]].DeletionMark
			require.NotNil(t, mark)
			require.Equal(t, "superseded", mark.Details)
			require.InDelta(t, time.Now().Unix(), mark.DeletionTime, 60)
			require.Nil(t, listed[ids[0]].DeletionMark)

			require.NoError(t, MarkForDeletion(t.Context(), inner, ids[1], "again"))
			mark, err = readMark(t.Context(), inner, ids[1])
			require.NoError(t, err)
			require.Equal(t, "superseded", mark.Details, "the first mark counts")

			require.NoError(t, Delete(t.Context(), inner, ids[1]))
			require.Zero(t, requests())
			require.Len(t, listed, 2)

			require.NoError(t, inner.Delete(t.Context(), ids[0].String()+"/"+MetaFilename))
			requests()
			require.Len(t, listed, 1)
			require.Equal(t, []ulid.ULID{ids[0]}, l.Partial())
		})
	}
}

func TestListerSetsBadBlocksAside(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	dir, good := writeBlock(t, randomInput(rand.New(rand.NewPCG(1, 2)), 5, 0, hour))
	require.NoError(t, Upload(t.Context(), bkt, dir))
	put := func(id ulid.ULID, file, content string) {
		require.NoError(t, bkt.Upload(t.Context(), id.String()+"/"+file, strings.NewReader(content)))
	}
	torn, other, coarse := newID(t), newID(t), newID(t)
	put(torn, MetaFilename, "{")
	put(other, MetaFilename, `{"version":1,"ulid":"`+good.ULID.String()+`"}`)
	put(coarse, MetaFilename, `{"version":1,"ulid":"`+coarse.String()+`","thanos":{"downsample":{"resolution":300000}}}`)
	put(good.ULID, DeletionMarkFilename, `{"id":`)

	l := NewLister(bkt)
	listed, err := l.List(t.Context())
	require.NoError(t, err)
	require.Len(t, listed, 1)
	require.Nil(t, listed[good.ULID].DeletionMark, "half a mark is none")
	bad := l.Bad()
	require.ErrorIs(t, bad[torn], ErrUnusable)
	require.ErrorIs(t, bad[other], ErrCorrupt)
	require.ErrorIs(t, bad[coarse], ErrUnusable)

	require.NoError(t, MarkForDeletion(t.Context(), bkt, good.ULID, "again"))
	listed, err = l.List(t.Context())
	require.NoError(t, err)
	require.NotNil(t, listed[good.ULID].DeletionMark)
}

// brokenBucket cannot be listed or read.
type brokenBucket struct{ objstore.Bucket }

func (brokenBucket) Iter(context.Context, string, func(string) error, ...objstore.IterOption) error {
	return errTest
}

type unreadableBucket struct{ objstore.Bucket }

func (unreadableBucket) Get(context.Context, string) (io.ReadCloser, error) { return nil, errTest }

func TestListErrorsAreNoEmptyBucket(t *testing.T) {
	dir, _ := writeBlock(t, randomInput(rand.New(rand.NewPCG(1, 2)), 5, 0, hour))
	bkt := uploaded(t, dir)
	_, err := List(t.Context(), brokenBucket{bkt})
	require.ErrorIs(t, err, errTest)
	_, err = List(t.Context(), unreadableBucket{bkt})
	require.ErrorIs(t, err, errTest)
}

func TestDirBucketUploadIsAtomic(t *testing.T) {
	root := filepath.Join(t.TempDir(), "bucket")
	bkt := newDirBucket(t, root)
	require.NoError(t, bkt.Upload(t.Context(), "a/b", strings.NewReader("old")))
	r := io.MultiReader(strings.NewReader("new"), &errReader{r: strings.NewReader(""), err: errTest})
	require.ErrorIs(t, bkt.Upload(t.Context(), "a/b", r), errTest)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, bkt.Upload(ctx, "a/c", strings.NewReader("x")), context.Canceled)
	body, err := bkt.Get(t.Context(), "a/b")
	require.NoError(t, err)
	got, err := io.ReadAll(body)
	require.NoError(t, err)
	require.NoError(t, body.Close())
	require.Equal(t, "old", string(got))
	entries, err := os.ReadDir(root)
	require.NoError(t, err)
	require.Len(t, entries, 2, "nothing is left of uploads that failed")
	there, err := bkt.Exists(t.Context(), "a/c")
	require.NoError(t, err)
	require.False(t, there)
}
