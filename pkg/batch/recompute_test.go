package batch

import (
	"bytes"
	"context"
	"io"
	"maps"
	"math"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

func keeping(age time.Duration) func(*Options) {
	return func(o *Options) { o.Config.KeepLevel0 = age }
}

// compacted is a bucket with two compacted days and a window, whose level-0 blocks are kept elsewhere.
func compacted(t *testing.T, bkt objstore.Bucket) (*world, *Runner) {
	w := newWorld(t, bkt, time.Now().UTC().Truncate(day).Add(day+9*hour))
	r := w.runner(keeping(Forever))
	w.generation([]string{"a", "h"}, 0, 30*minute, 3*hour, 50*hour)
	w.advance(2 * hour)
	w.generation([]string{"a", "b"}, 2*hour, 26*hour, 51*hour)
	w.run(r, true)
	w.advance(2 * hour)
	w.generation([]string{"b", "h"}, 4*hour, 50*hour)
	w.run(r, true)
	w.advance(2 * hour)
	w.run(r, true) // deletes what was marked
	w.check()
	return w, r
}

func (w *world) masters() []ulid.ULID {
	kept, err := block.MasterIDs(context.Background(), w.bucket)
	require.NoError(w.t, err)
	return slices.SortedFunc(maps.Keys(kept), ulid.ULID.Compare)
}

func (w *world) recompute(r *Runner, dry bool) []Recomputed {
	w.t.Helper()
	out, err := r.RecomputeRange(context.Background(), math.MinInt64, math.MaxInt64, dry)
	require.NoError(w.t, err)
	require.NotEmpty(w.t, out)
	return out
}

func outcomes(all []Recomputed) map[Outcome]int {
	n := map[Outcome]int{}
	for _, r := range all {
		n[r.Outcome]++
	}
	return n
}

func TestKeepsMasters(t *testing.T) {
	for name, bkt := range map[string]func(*testing.T) objstore.Bucket{
		"copied": func(*testing.T) objstore.Bucket { return objstore.NewInMemBucket() },
		"renamed": func(t *testing.T) objstore.Bucket {
			b, err := block.NewDirBucket(t.TempDir())
			require.NoError(t, err)
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, r := compacted(t, bkt(t))
			kept := w.masters()
			require.Len(t, kept, 6, "three generations, of which each has late samples")
			for _, l := range w.listed() {
				require.Positive(t, l.Meta.Level(), "kept blocks are not in the bucket's list")
				ids, known := l.Meta.Masters()
				require.True(t, known)
				require.Subset(t, kept, ids)
			}
			for _, id := range kept {
				findings, err := block.Verify(context.Background(), block.Masters(w.bucket), id)
				require.NoError(t, err)
				require.Empty(t, findings)
			}
			require.Equal(t, map[Outcome]int{Same: len(w.visible())}, outcomes(w.recompute(r, false)))

			aged := w.runner(keeping(hour))
			w.run(aged, false)
			require.Empty(t, w.masters(), "the keeping time is over")
			out := w.recompute(r, false)
			require.Equal(t, map[Outcome]int{Impossible: len(w.visible())}, outcomes(out))
			require.Contains(t, out[0].Reason, "not kept any more")
			w.check()
		})
	}
}

func TestKeepsMastersForTheirTime(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), time.Now().UTC().Truncate(day).Add(day+9*hour))
	w.generation([]string{"a"}, 0, 50*hour)
	r := w.runner(keeping(10 * hour))
	w.run(r, true)
	w.advance(2 * hour)
	s := w.run(r, true)
	require.Equal(t, 2, s.Kept, s)
	w.advance(7 * hour)
	w.run(r, true)
	require.Len(t, w.masters(), 2)
	w.advance(2 * hour)
	require.Equal(t, 2, w.run(r, true).Deleted)
	require.Empty(t, w.masters())
	w.check()
}

func TestDeletesMastersBeyondRetention(t *testing.T) {
	w, _ := compacted(t, objstore.NewInMemBucket())
	require.NotEmpty(t, w.masters())
	w.advance(30 * day)
	w.run(w.runner(keeping(Forever), func(o *Options) { o.Config.Retention = 20 * day }), false)
	require.Empty(t, w.masters(), "what retention hides must not be brought back")
}

// forge replaces a visible block by one made of inputs, as a bug in a compaction would have done.
func (w *world) forge(old block.Meta, inputs ...block.Input) block.Meta {
	w.t.Helper()
	m := old
	require.NoError(w.t, m.ULID.SetEntropy([]byte("forgedfrgd")))
	was := *old.Thanos.Extensions.Millrace
	m.SetExtension(was.Level, was.Generations.Min, was.Generations.Max, old.ULID)
	m.Thanos.Extensions.Millrace.Masters = was.Masters
	m.Compaction.Sources, m.Compaction.Parents = nil, nil
	dir := fastDir(w.t)
	m, err := block.Write(context.Background(), dir, m, inputs, block.WriteOptions{SegmentSize: 1 << 20})
	require.NoError(w.t, err)
	require.NoError(w.t, block.Upload(context.Background(), w.bucket, filepath.Join(dir, m.ULID.String())))
	return m
}

// victim is the visible block with most samples.
func (w *world) victim() block.Meta {
	return slices.MaxFunc(w.visible(), func(a, b block.Meta) int { return int(a.Stats.NumSamples) - int(b.Stats.NumSamples) })
}

func TestRecomputeSwapsWhatDiffers(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(*world, block.Meta) Difference
	}{
		{"invented and changed samples", func(w *world, old block.Meta) Difference {
			b, err := block.OpenBucket(context.Background(), w.bucket, old.ULID, nil)
			require.NoError(w.t, err)
			defer b.Close()
			in := memInput{}
			in.add("a", old.MinTime+(9*hour).Milliseconds(), -1)
			in.add("z", old.MinTime, -1)
			got := points{}
			w.read(old.ULID, got)
			d := Difference{Removed: 1, Series: 2, First: seriesLabels("a").String()}
			if _, there := got[pointKey(seriesLabels("a"), old.MinTime+(9*hour).Milliseconds())]; there {
				d.Changed = 1
			} else {
				d.Removed++
			}
			w.forge(old, b, in)
			return d
		}},
		{"lost samples", func(w *world, old block.Meta) Difference {
			in := memInput{}
			in.add("z", old.MinTime, -1)
			w.forge(old, in)
			return Difference{Removed: 1, Added: old.Stats.NumSamples, Series: 1 + old.Stats.NumSeries}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, r := compacted(t, objstore.NewInMemBucket())
			old := w.victim()
			want := tc.spoil(w, old)
			n := len(w.visible())

			dry := w.recompute(r, true)
			require.Equal(t, map[Outcome]int{Same: n - 1, Swapped: 1}, outcomes(dry))
			out := w.recompute(r, false)
			require.Equal(t, outcomes(dry), outcomes(out), "a dry run changes nothing")
			i := slices.IndexFunc(out, func(f Recomputed) bool { return f.Outcome == Swapped })
			if want.First == "" {
				want.First = out[i].Difference.First
			}
			require.Equal(t, want, out[i].Difference)
			w.check()
			w.verify()
			require.Equal(t, map[Outcome]int{Same: n}, outcomes(w.recompute(r, false)), "and nothing is left to do")
			w.run(r, false)
			w.advance(2 * hour)
			w.run(r, false)
			w.check()
		})
	}
}

func TestRecomputeMendsADamagedBlock(t *testing.T) {
	w, r := compacted(t, objstore.NewInMemBucket())
	old := w.victim()
	name := path.Join(old.ULID.String(), "chunks/000001")
	body, err := w.bucket.Get(context.Background(), name)
	require.NoError(t, err)
	raw, err := io.ReadAll(body)
	require.NoError(t, err)
	raw[len(raw)/2] ^= 0xff
	require.NoError(t, w.bucket.Upload(context.Background(), name, bytes.NewReader(raw)))

	out := w.recompute(w.runner(keeping(Forever)), false)
	i := slices.IndexFunc(out, func(f Recomputed) bool { return f.Outcome == Swapped })
	require.Contains(t, out[i].Reason, "cannot be read")
	require.Equal(t, old.ULID, out[i].Block.ULID)
	w.check()
	require.Equal(t, map[Outcome]int{Same: len(out)}, outcomes(w.recompute(r, false)))
}

func TestRecomputeSaysWhatItCannotBuild(t *testing.T) {
	w, r := compacted(t, objstore.NewInMemBucket())
	lost := w.masters()[0]
	require.NoError(t, block.Delete(context.Background(), block.Masters(w.bucket), lost))
	for _, f := range w.recompute(r, false) {
		ids, _ := f.Block.Masters()
		if slices.Contains(ids, lost) {
			require.Equal(t, Impossible, f.Outcome)
			require.Contains(t, f.Reason, lost.String())
			continue
		}
		require.Equal(t, Same, f.Outcome)
	}
	old := w.victim()
	b, err := block.OpenBucket(context.Background(), w.bucket, old.ULID, nil)
	require.NoError(t, err)
	defer b.Close()
	old.Thanos.Extensions.Millrace.Masters = nil // as an earlier version made them
	w.forge(old, b)
	out := w.recompute(r, false)
	require.True(t, slices.ContainsFunc(out, func(f Recomputed) bool { return strings.Contains(f.Reason, "does not say") }))
	w.check()
}

// TestMastersOfUnknownOrigin: blocks that were made of one whose level-0 blocks are not known do not pretend to know theirs.
func TestMastersOfUnknownOrigin(t *testing.T) {
	known := testMeta("known", 0, 1, 1, testStart, testStart, testStart)
	unknown := testMeta("unknown", 1, 2, 2, testStart, testStart, testStart)
	require.Equal(t, []ulid.ULID{known.ULID}, masters([]block.Meta{known}))
	require.Empty(t, masters([]block.Meta{known, unknown}))
}

// TestRecomputeDiesAtEveryCall fails each bucket call in turn, of a recomputation and of the runs that move level-0 blocks to where they are
// kept: nothing is lost, and a second attempt completes the work.
func TestRecomputeDiesAtEveryCall(t *testing.T) {
	first := objstore.NewInMemBucket()
	origin, _ := compacted(t, first)
	old := origin.victim()
	in := memInput{}
	in.add("z", old.MinTime, -1)
	origin.forge(old, in)
	origin.generation([]string{"a"}, 0, hour)
	origin.run(origin.runner(keeping(Forever)), true)
	origin.advance(2 * hour) // now two of its level-0 blocks wait to be moved

	work := func(ctx context.Context, r *Runner) error {
		if _, err := r.RecomputeRange(ctx, math.MinInt64, math.MaxInt64, false); err != nil {
			return err
		}
		_, err := r.Run(ctx, true)
		return err
	}
	step := int64(7)
	if testing.Short() || !thorough {
		step = 17
	}
	for _, after := range []bool{false, true} {
		for k := int64(1); ; k += step {
			bkt := copyBucket(t, first)
			w := newWorld(t, bkt, origin.clock())
			w.expected = origin.expected
			faulty := &faultBucket{Bucket: bkt, at: k, after: after, fault: func() error { return errInjected }}
			err := work(context.Background(), w.runner(keeping(Forever), func(o *Options) { o.Bucket, o.Lister = faulty, block.NewLister(faulty) }))
			if faulty.calls.Load() < k {
				require.NoError(t, err)
				break
			}
			require.NoError(t, work(context.Background(), w.runner(keeping(Forever))))
			w.check()
			require.Equal(t, map[Outcome]int{Same: len(w.visible())}, outcomes(w.recompute(w.runner(keeping(Forever)), true)), "call %d", k)
		}
	}
}

// TestRecomputeKeepsDeletions: what was deleted does not come back from level-0 blocks, and a block of which nothing is left goes.
func TestRecomputeKeepsDeletions(t *testing.T) {
	w, r := compacted(t, objstore.NewInMemBucket())
	w.delete("a", 60*hour, 0)
	out := w.recompute(r, false)
	require.NotZero(t, outcomes(out)[Swapped], "series a is rebuilt away")
	require.Zero(t, outcomes(out)[Impossible])
	w.check()
	w.checkErased()
	require.Zero(t, outcomes(w.recompute(r, false))[Swapped], "and once is enough")

	w.delete(".+", 1000*hour, 0)
	n := len(w.visible())
	dry := w.recompute(r, true)
	require.Equal(t, map[Outcome]int{Swapped: n}, outcomes(dry))
	for _, f := range w.recompute(r, false) {
		require.Zero(t, f.Replacement)
		require.Contains(t, f.Reason, "no samples")
	}
	w.check()
	w.advance(2 * hour)
	w.run(r, true)
	w.advance(2 * hour)
	w.run(r, true)
	w.check()
	w.checkErased()
}
