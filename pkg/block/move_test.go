package block

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

// TestKeepMasterStopsAnywhere: at every moment the block is whole in one place at least, and a repetition brings it where it is kept.
func TestKeepMasterStopsAnywhere(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(33, 1)), 30, 0, hour)
	dir, m := writeBlock(t, in)
	for name, bkt := range buckets(t) {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, Upload(t.Context(), bkt, dir))
			require.NoError(t, MarkForDeletion(t.Context(), bkt, m.ULID, "test"))
			for steps := 0; ; steps++ {
				require.Less(t, steps, 20)
				// A DirBucket renames unless it is hidden in another.
				var b objstore.Bucket = &steppedBucket{Bucket: bkt, left: steps}
				if name == "folder" && steps > 0 {
					b = bkt
				}
				err := KeepMaster(t.Context(), b, m)
				whole := 0
				for _, place := range []objstore.Bucket{bkt, Masters(bkt)} {
					listed, lerr := List(t.Context(), place)
					require.NoError(t, lerr)
					if _, there := listed[m.ULID]; there {
						whole++
						findings, verr := Verify(t.Context(), place, m.ULID)
						require.NoError(t, verr)
						require.Empty(t, findings)
					}
				}
				require.Positive(t, whole, "step %d", steps)
				if err == nil {
					break
				}
				require.ErrorIs(t, err, errTest)
			}
			kept, err := MasterIDs(t.Context(), bkt)
			require.NoError(t, err)
			require.Equal(t, map[ulid.ULID]struct{}{m.ULID: {}}, kept)
			left, err := List(t.Context(), bkt)
			require.NoError(t, err)
			require.Empty(t, left)
			listed, err := List(t.Context(), Masters(bkt))
			require.NoError(t, err)
			require.Nil(t, listed[m.ULID].DeletionMark, "its mark was for the place where it was")
			b, err := OpenBucket(t.Context(), Masters(bkt), m.ULID, nil)
			require.NoError(t, err)
			require.Equal(t, in.dump(), dumpAll(t, b))
			require.NoError(t, b.Close())
		})
	}
}

// namesBucket notes which names a listing was given.
type namesBucket struct {
	objstore.Bucket
	names []string
}

func (b *namesBucket) Iter(ctx context.Context, dir string, f func(string) error, o ...objstore.IterOption) error {
	return b.Bucket.Iter(ctx, dir, func(name string) error {
		b.names = append(b.names, name)
		return f(name)
	}, o...)
}

func TestListingEndsBehindTheBlocks(t *testing.T) {
	for name, inner := range buckets(t) {
		t.Run(name, func(t *testing.T) {
			for i := range 3 {
				dir, m := writeBlock(t, randomInput(rand.New(rand.NewPCG(uint64(i), 3)), 5, 0, hour))
				require.NoError(t, Upload(t.Context(), inner, dir))
				if i > 0 {
					require.NoError(t, KeepMaster(t.Context(), inner, m))
				}
			}
			bkt := &namesBucket{Bucket: inner}
			listed, err := List(t.Context(), bkt)
			require.NoError(t, err)
			require.Len(t, listed, 1)
			require.Len(t, bkt.names, 3+1, "the files of the block, and the name at which it ends: %v", bkt.names)
		})
	}
}
