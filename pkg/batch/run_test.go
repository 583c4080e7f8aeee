package batch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/pkg/block"
)

var testStart = time.Date(2024, 1, 10, 9, 0, 0, 0, time.UTC)

const (
	minute = time.Minute
	hour   = time.Hour
	day    = 24 * time.Hour

	fortnight = 14 * day
)

func TestCompactsToWindowsAndDays(t *testing.T) {
	dir := t.TempDir()
	bkt, err := block.NewDirBucket(dir)
	require.NoError(t, err)
	w := newWorld(t, bkt, testStart.Add(hour))
	r := w.runner()

	// Four generations, floats and histograms; late samples hit what was accepted before and days that nobody has seen.
	for range 3 {
		w.generation([]string{"a", "b", "h"}, 0, 5*minute, 30*minute, 35*minute, hour)
		w.advance(30 * minute)
	}
	w.generation([]string{"a", "z", "h"}, 30*minute, hour, 50*hour, 99*hour)
	w.advance(30 * minute)

	s := w.run(r, false) // 12:00; what was begun before 12:00 is due from 12:10 on
	require.Zero(t, s.Jobs+s.Marked, s)
	w.advance(10 * minute)
	w.generation([]string{"a"}, 0)
	s = w.run(r, false)
	require.Equal(t, 3, s.Jobs, "two old days, and one for all level-0 blocks: %s", s)
	require.Equal(t, []string{
		"L0 10T12:10-10T12:10",
		"L1 10T08:00-10T10:00",
		"L1 10T10:00-10T12:00",
		"L2 06T00:00-07T00:00",
		"L2 08T00:00-09T00:00",
	}, w.shape())
	w.check()
	w.verify()

	s = w.run(r, false)
	require.Zero(t, s.Jobs+s.Marked, "nothing is due any more: %s", s)

	// The day is over.
	w.advance(13 * hour)
	w.generation([]string{"a"}, 0, 10*minute)
	w.run(r, true)
	require.Equal(t, []string{
		"L1 11T00:00-11T02:00",
		"L2 06T00:00-07T00:00",
		"L2 08T00:00-09T00:00",
		"L2 10T00:00-11T00:00",
	}, w.shape())
	w.check()

	// Late samples join the day.
	w.generation([]string{"a", "late"}, 13*hour, 14*hour)
	w.run(r, true)
	w.advance(2 * day)
	w.run(r, false)
	require.Equal(t, []string{
		"L2 06T00:00-07T00:00",
		"L2 08T00:00-09T00:00",
		"L2 10T00:00-11T00:00",
		"L2 11T00:00-12T00:00",
	}, w.shape())
	w.check()
	w.verify()

	// So is the fortnight, by far: deletion marks have the real time.
	w.now.Store(time.Now().Add(2 * hour).UnixMilli())
	w.run(r, false)
	require.Equal(t, []string{"L3 04T00:00-18T00:00"}, w.shape())
	w.check()
	w.verify()
	w.run(r, false)
	require.Len(t, w.listed(), 1, "what was replaced is deleted")
	w.check()
	for _, m := range w.visible() {
		b, err := tsdb.OpenBlock(nil, filepath.Join(dir, m.ULID.String()), nil, nil)
		require.NoError(t, err)
		require.Equal(t, 4, b.Meta().Compaction.Level)
		require.NoError(t, b.Close())
	}
}

func TestWindowsMergeWhenOver(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), testStart)
	r := w.runner()
	for range 3 {
		w.generation([]string{"a"}, 0, minute)
		w.run(r, true)
		w.generation([]string{"a", "b"}, 0, minute)
		w.run(r, true)
		w.advance(10 * minute)
	}
	require.Equal(t, []string{"L1 10T08:00-10T10:00"}, w.shape(), "force merges at once")
	w.check()
}

// TestManyWindowsOfOneBlock has samples years apart in one block: no more work than windows with samples.
func TestManyWindowsOfOneBlock(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), testStart)
	r := w.runner()
	var ages []time.Duration
	for i := range 12 {
		ages = append(ages, time.Duration(i)*2000*hour)
	}
	w.generation([]string{"a", "b"}, ages...)
	s := w.run(r, true)
	require.Len(t, w.visible(), 12)
	require.Equal(t, 12+11+11, s.Written, "each window once, its day and its fortnight, but for the last, which are not over")
	w.check()
	w.verify()
}

// TestLateSamplesWait has a few samples come late for a day and a fortnight that are done: they are gathered, and the large
// blocks are not touched until it is worth it.
func TestLateSamplesWait(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), testStart)
	r := w.runner(func(o *Options) { o.Config.LateMergeShare = 0.2 })
	var ages []time.Duration
	for i := range 60 {
		ages = append(ages, time.Duration(i)*minute)
	}
	w.generation([]string{"a"}, ages...)
	w.advance(day)
	w.run(r, true)
	require.Equal(t, []string{"L2 10T00:00-11T00:00"}, w.shape())
	large := w.visible()[0].ULID

	late := func(ages ...time.Duration) {
		w.generation([]string{"a"}, ages...)
		w.generation([]string{"z"}, 0) // so that the one before is complete
		w.advance(3 * hour)
		w.run(r, false)
		w.check()
	}
	late(24 * hour)
	require.Contains(t, w.shape(), "L1 10T08:00-10T10:00")
	late(29*hour, 30*hour)
	require.Equal(t, 2, strings.Count(strings.Join(w.shape(), " "), "L2 10T00:00-11T00:00"), "gathered")
	require.Contains(t, ids2names(w.visible()), large.String(), "not touched")
	late(30*hour, 31*hour, 32*hour, 33*hour, 34*hour, 35*hour, 36*hour, 37*hour, 38*hour)
	require.Equal(t, 1, strings.Count(strings.Join(w.shape(), " "), "L2 10T00:00-11T00:00"), "a fifth is worth it")

	// Days later, the fortnight is over, and then samples come late for it.
	w.advance(8 * day)
	w.run(r, true)
	require.Contains(t, w.shape(), "L3 04T00:00-18T00:00")
	large = w.visible()[0].ULID
	for range 3 {
		w.generation([]string{"a"}, 8*day, 9*day)
		w.run(r, true)
		w.check()
		require.Equal(t, 2, strings.Count(strings.Join(w.shape(), " "), "L3 04T00:00-18T00:00"), "gathered, also by force")
		require.Contains(t, ids2names(w.visible()), large.String(), "not touched")
	}
	w.advance(14 * day)
	w.run(r, false)
	require.NotContains(t, ids2names(w.visible()), large.String(), "waited long enough")
	w.check()
	w.verify()
}

func TestRetentionAndGrace(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), time.Now())
	reg := prometheus.NewRegistry()
	r := w.runner(func(o *Options) {
		o.Config.Retention = 30 * day
		o.Metrics = NewMetrics(reg)
	})
	w.generation([]string{"a"}, 0, 28*day, 40*day)
	w.generation([]string{"a"}, 41*day)
	s := w.run(r, true)
	require.Equal(t, 5, s.Marked, "three are replaced, and two too old: %s", s)
	s = w.run(r, true)
	require.Equal(t, 0, s.Marked)
	require.Equal(t, 0, s.Deleted, "grace")
	var marked int
	for _, l := range w.listed() {
		if l.DeletionMark != nil {
			marked++
		}
	}
	require.Equal(t, 5, marked)
	w.advance(61 * minute)
	s = w.run(r, true)
	require.Equal(t, 3, s.Deleted, "what was replaced")
	deleted := 0
	for runs := range confirmations + 1 {
		if runs < confirmations {
			require.Len(t, w.visible(), 4, "what is beyond retention by the clock stays for a day")
		}
		w.advance(readingGap)
		deleted += w.run(r, false).Deleted
	}
	require.GreaterOrEqual(t, deleted, 2)
	require.Len(t, w.visible(), 2) // around midnight, a day may have been compacted by now
	require.InDelta(t, 2, testutil.ToFloat64(r.metrics.marked.WithLabelValues(reasonRetention)), 0)
	require.Equal(t, float64(w.clock().UnixMilli())/1e3, testutil.ToFloat64(r.metrics.lastSuccess))
}

// TestRetentionBySize removes the oldest windows until the rest is small enough, and what came late for a window with it.
func TestRetentionBySize(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), time.Now().UTC().Truncate(fortnight).Add(10*day))
	r := w.runner(func(o *Options) { o.Config.LateMergeShare = 1 })
	w.generation([]string{"a", "b"}, 0, 20*day, 21*day, 50*day)
	w.run(r, true)
	w.generation([]string{"c"}, 50*day)
	w.run(r, true)
	fortnights := 0
	total := int64(0)
	for _, m := range w.visible() {
		total += m.Size()
		if m.Level() == 3 {
			fortnights++
		}
	}
	require.Equal(t, 2, fortnights, w.shape())
	require.Len(t, w.visible(), 4, "and what came late for one of them, and the newest: %s", w.shape())

	limited := func(limit int64) *Runner {
		return w.runner(func(o *Options) { o.Config.LateMergeShare, o.Config.RetentionSize = 1, limit })
	}
	require.Zero(t, w.run(limited(total), true).Marked)
	reg := limited(total - 1)
	require.Equal(t, 2, w.run(reg, true).Marked, "the oldest, with what came late for it")
	require.InDelta(t, 2, testutil.ToFloat64(reg.metrics.marked.WithLabelValues(reasonSize)), 0)
	require.Equal(t, 1, w.run(limited(1), true).Marked, "the newest stays")
	require.Zero(t, w.run(limited(1), true).Marked)
}

func TestPartialUploads(t *testing.T) {
	ctx := context.Background()
	bkt := objstore.NewInMemBucket()
	w := newWorld(t, bkt, time.Now())
	w.generation([]string{"a"}, 0)
	put := func(name string, age time.Duration) ulid.ULID {
		id := testMeta(name, 0, 1, 1, w.clock().Add(-age), w.clock(), w.clock()).ULID
		require.NoError(t, bkt.Upload(ctx, path.Join(id.String(), "chunks/000001"), strings.NewReader("x")))
		require.NoError(t, bkt.Upload(ctx, path.Join(id.String(), "index"), strings.NewReader("x")))
		return id
	}
	old, busy := put("old", 2*day), put("busy", 2*day)
	put("fresh", 0)
	r := w.runner(func(o *Options) { o.Uploading = func(id ulid.ULID) bool { return id == busy } })
	has := func(id ulid.ULID) bool {
		ok, err := bkt.Exists(ctx, path.Join(id.String(), "index"))
		require.NoError(t, err)
		return ok
	}
	s := w.run(r, false)
	require.Zero(t, s.Partial, "the objects themselves are young")
	w.advance(23*hour + 59*minute)
	w.run(r, false)
	require.True(t, has(old))
	w.advance(2 * minute)
	fresh := put("fresher", hour)
	s = w.run(r, false)
	require.False(t, has(old))
	require.True(t, has(busy))
	require.True(t, has(fresh))
	require.Equal(t, 2, s.Partial, "old, and what was fresh a day ago")
	w.check()
}

func TestCorruptBlockIsQuarantined(t *testing.T) {
	ctx := context.Background()
	bkt := objstore.NewInMemBucket()
	w := newWorld(t, bkt, testStart)
	w.generation([]string{"a"}, 0)
	bad := w.generation([]string{"b"}, 0, 5*hour)[0]
	w.generation([]string{"a", "c"}, 0)
	name := path.Join(bad.String(), "chunks/000001")
	content := bytes.Clone(bkt.Objects()[name])
	content[len(content)-1] ^= 1
	require.NoError(t, bkt.Upload(ctx, name, bytes.NewReader(content)))
	listedBefore := len(w.listed())

	r := w.runner()
	s, err := r.Run(ctx, true)
	require.ErrorContains(t, err, bad.String())
	require.Equal(t, 1, s.Failed)
	require.Equal(t, 1, s.Quarantined)
	require.Positive(t, s.Jobs, "what is not affected goes on")
	require.Greater(t, len(w.listed()), listedBefore)
	q := r.Quarantined()
	require.Len(t, q, 1)
	require.Equal(t, bad, q[0].ID)
	require.InDelta(t, 1, testutil.ToFloat64(r.metrics.quarantined), 0)
	require.Contains(t, ids2names(w.visible()), bad.String(), "it stays")

	s, err = r.Run(ctx, true)
	require.NoError(t, err)
	require.Zero(t, s.Jobs+s.Failed, "nothing is left to do around it: %s", s)

	// Repaired, it is taken up when the quarantine ends.
	content[len(content)-1] ^= 1
	require.NoError(t, bkt.Upload(ctx, name, bytes.NewReader(content)))
	w.advance(quarantineTime)
	s = w.run(w.runner(), true) // a cache may remember the damage
	require.Positive(t, s.Jobs)
	w.check()
	w.run(r, true)
	require.Empty(t, r.Quarantined())
}

// Marks that others have put into the bucket count as what a runner finds itself, until the block is let back in or replaced.
func TestBlocksWithMarksOfOthersAreCounted(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), testStart)
	bad := w.generation([]string{"a"}, 0)[0]
	r := w.runner()
	count := func() int {
		t.Helper()
		s := w.run(r, false)
		require.InDelta(t, s.Quarantined, testutil.ToFloat64(r.metrics.quarantined), 0)
		return s.Quarantined
	}
	require.Zero(t, count())
	require.NoError(t, block.Quarantine(t.Context(), w.bucket, bad, "damaged"))
	require.Equal(t, 1, count())
	require.NoError(t, block.Release(t.Context(), w.bucket, bad))
	require.Zero(t, count())
	require.NoError(t, block.Quarantine(t.Context(), w.bucket, bad, "damaged"))
	require.NoError(t, block.MarkForDeletion(t.Context(), w.bucket, bad, "swapped"))
	require.Zero(t, count(), "nobody needs it any more")
}

func TestDamagedBlockIsMarkedWhereWanted(t *testing.T) {
	ctx := context.Background()
	bkt := objstore.NewInMemBucket()
	w := newWorld(t, bkt, testStart)
	w.generation([]string{"a"}, 0)
	bad := w.generation([]string{"b"}, 0, 5*hour)[0]
	name := path.Join(bad.String(), "chunks/000001")
	content := bytes.Clone(bkt.Objects()[name])
	content[len(content)-1] ^= 1
	require.NoError(t, bkt.Upload(ctx, name, bytes.NewReader(content)))

	_, err := w.runner(func(o *Options) { o.Config.Quarantine = true }).Run(ctx, true)
	require.ErrorContains(t, err, bad.String())
	listed, err := block.List(ctx, bkt)
	require.NoError(t, err)
	require.Contains(t, listed[bad].QuarantineMark.Details, "chunks/000001")
	s := w.run(w.runner(), true)
	require.Zero(t, s.Failed, "another runner leaves it alone, too")

	content[len(content)-1] ^= 1
	require.NoError(t, bkt.Upload(ctx, name, bytes.NewReader(content)))
	require.NoError(t, block.Release(ctx, bkt, bad))
	w.run(w.runner(), true)
	w.check()
	require.NotContains(t, ids2names(w.visible()), bad.String())
}

// staleLister shows a block that is gone, as many times as it is told.
type staleLister struct {
	*block.Lister
	extra map[ulid.ULID]block.Listed
	times int
}

func (l *staleLister) List(ctx context.Context) (map[ulid.ULID]block.Listed, error) {
	all, err := l.Lister.List(ctx)
	if l.times > 0 {
		l.times--
		maps.Copy(all, l.extra)
	}
	return all, err
}

func TestInputsGoneMeanwhile(t *testing.T) {
	for _, tc := range []struct {
		name                           string
		times                          int
		failed, abandoned, quarantined int
	}{
		{"the next listing knows", 2, 0, 1, 0},
		{"the bucket contradicts itself", 1000, 1, 1, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bkt := objstore.NewInMemBucket()
			w := newWorld(t, bkt, testStart)
			w.generation([]string{"a"}, 0, 30*minute)
			gone := w.generation([]string{"x"}, hour)[0]
			delete(w.expected, pointKey(seriesLabels("x"), w.now.Load()-hour.Milliseconds()))
			stale := &staleLister{Lister: block.NewLister(bkt), times: tc.times}
			all, err := stale.List(context.Background())
			require.NoError(t, err)
			stale.times = tc.times
			stale.extra = map[ulid.ULID]block.Listed{gone: all[gone]}
			require.NoError(t, block.Delete(context.Background(), bkt, gone))

			r := w.runner(func(o *Options) { o.Lister = stale })
			s, err := r.Run(context.Background(), true)
			require.Equal(t, tc.failed > 0, err != nil)
			require.Equal(t, tc.failed, s.Failed)
			require.Equal(t, tc.abandoned, s.Abandoned)
			require.Equal(t, tc.quarantined, s.Quarantined)
			require.Equal(t, []string{"L1 10T08:00-10T10:00"}, w.shape())
			w.check()
			require.Equal(t, Abandoned, r.Status()[len(r.Status())-1].State)
		})
	}
}

// TestOthersWereFaster replaces the inputs while a job is under way for so long that it looks again.
func TestOthersWereFaster(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	w := newWorld(t, bkt, testStart)
	w.generation([]string{"a"}, 0, 5*hour)
	slow := &hookedBucket{Bucket: bkt}
	slow.exists = func() {
		slow.exists = func() {}
		w.generation([]string{"b"}, 0, 5*hour) // so that the other job has other outputs
		w.run(w.runner(), true)
		w.advance(2 * minute)
	}
	r := w.runner(func(o *Options) { o.Bucket = slow })
	s := w.run(r, true)
	require.Equal(t, 1, s.Abandoned)
	require.Zero(t, s.Failed+s.Written)
	w.check()
}

// hookedBucket calls exists before it answers whether something is there.
type hookedBucket struct {
	objstore.Bucket
	exists func()
}

func (b *hookedBucket) Exists(ctx context.Context, name string) (bool, error) {
	b.exists()
	return b.Bucket.Exists(ctx, name)
}

func TestGenerationsOnTheirWay(t *testing.T) {
	for _, tc := range []struct {
		name     string
		uploaded func(map[string]string) (uint64, bool)
		force    bool
		age      time.Duration
		want     int // level-0 blocks left
	}{
		{"nobody says that the last one is complete: all wait for it", nil, false, 0, 2},
		{"force takes it", nil, true, 0, 0},
		{"after hours it is taken to be complete", nil, false, assumedUploaded, 0},
		{"the writer says so", func(map[string]string) (uint64, bool) { return 2, true }, false, 0, 0},
		{"the writer denies it, also to force", func(map[string]string) (uint64, bool) { return 1, true }, true, 0, 1},
		{"the writer is asked for its labels", func(l map[string]string) (uint64, bool) { return 2, l["writer"] == "a" }, false, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, objstore.NewInMemBucket(), testStart)
			w.generation([]string{"a"}, 0)
			w.generation([]string{"b"}, 0)
			w.advance(70*minute + tc.age)
			w.run(w.runner(func(o *Options) { o.Uploaded = tc.uploaded }), tc.force)
			left := 0
			for _, m := range w.visible() {
				if m.Level() == 0 {
					left++
				}
			}
			require.Equal(t, tc.want, left)
			w.check()
		})
	}
}

// TestForceAfterAnEmptyBucket forces the first generation of a writer that the run before knew nothing of.
func TestForceAfterAnEmptyBucket(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), testStart)
	r := w.runner(func(o *Options) { o.Uploaded = func(map[string]string) (uint64, bool) { return w.gen, true } })
	w.run(r, false)
	w.generation([]string{"a"}, 0)
	require.Equal(t, 1, w.run(r, true).Jobs)
	w.check()
}

func TestOnlyOwnLabels(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), testStart)
	w.generation([]string{"a"}, 0)
	s := w.run(w.runner(func(o *Options) { o.Labels = map[string]string{"writer": "b"} }), true)
	require.Zero(t, s.Jobs)
	s = w.run(w.runner(func(o *Options) { o.Labels = map[string]string{"writer": "a"} }), true)
	require.Equal(t, 1, s.Jobs)
}

func TestStatus(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	w := newWorld(t, bkt, testStart)
	w.generation([]string{"a", "b"}, 0, 50*hour, 99*hour)
	var r *Runner
	seen := map[State]bool{}
	var mu sync.Mutex // calls are concurrent
	watched := &faultBucket{Bucket: bkt, at: 1, fault: func() error {
		mu.Lock()
		defer mu.Unlock()
		for _, s := range r.Status() {
			seen[s.State] = true
			if s.State == Running {
				assert.GreaterOrEqual(t, s.Progress, 0.0)
				assert.LessOrEqual(t, s.Progress, 1.0)
				assert.NotEmpty(t, s.Detail)
				assert.False(t, s.Started.IsZero())
			}
		}
		return nil
	}}
	r = w.runner(func(o *Options) { o.Bucket, o.Lister = watched, block.NewLister(watched) })
	w.run(r, true)
	require.Equal(t, map[State]bool{Planned: true, Running: true, Done: true}, seen)
	for _, s := range r.Status() {
		require.Equal(t, Done, s.State)
		require.InDelta(t, 1, s.Progress, 0)
		require.NotEmpty(t, s.Outputs)
		require.NotEmpty(t, s.Inputs)
	}
	for range historySize + 10 {
		r.end(&tracker{}, Done, nil)
	}
	require.Len(t, r.Status(), historySize)
}

func TestFailedJobIsTriedInTheNextRun(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	w := newWorld(t, bkt, testStart)
	w.generation([]string{"a"}, 0)
	failing := &uploadFails{Bucket: bkt}
	r := w.runner(func(o *Options) { o.Bucket = failing })
	for range 3 {
		s, err := r.Run(context.Background(), true)
		require.ErrorIs(t, err, errInjected)
		require.Equal(t, 1, s.Failed)
		require.Equal(t, Failed, r.Status()[0].State)
		require.Contains(t, r.Status()[0].Error, "injected")
		require.Empty(t, r.Quarantined())
		w.check()
	}
	failing.fixed = true
	require.Equal(t, 1, w.run(r, true).Jobs)
	require.Empty(t, r.failures)
	w.check()
}

func TestAJobNeedsRoomOnTheDisk(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	w := newWorld(t, bkt, testStart)
	w.generation([]string{"a", "b"}, 0, 30*minute)
	need := int64(0)
	for _, m := range w.visible() {
		need += m.Size()
	}
	room, known := need-1, true
	reg := prometheus.NewRegistry()
	r := w.runner(func(o *Options) {
		o.Room = func() (int64, bool) { return room, known }
		o.Metrics = NewMetrics(reg)
	})
	for range 3 {
		s, err := r.Run(context.Background(), true)
		require.ErrorIs(t, err, errNoRoom)
		require.Equal(t, 1, s.Failed)
		require.Equal(t, Failed, r.Status()[0].State)
		require.Contains(t, r.Status()[0].Error, fmt.Sprintf("may need %d bytes in %s, which has %d", need, r.o.ScratchDir, room))
		require.Empty(t, r.Quarantined())
		require.Empty(t, r.failures, "the blocks are not to blame")
		entries, err := os.ReadDir(r.o.ScratchDir)
		require.NoError(t, err)
		require.Empty(t, entries)
	}
	require.InDelta(t, 3, testutil.ToFloat64(r.metrics.noRoom), 0)
	room = need
	require.Equal(t, 1, w.run(r, true).Jobs)
	w.check()

	// Where nobody knows how much room there is, that is no reason to stop.
	room, known = 0, false
	w.generation([]string{"a"}, 10*minute)
	require.Positive(t, w.run(r, true).Jobs)
	w.check()
}

type uploadFails struct {
	objstore.Bucket
	fixed bool
}

func (b *uploadFails) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	if !b.fixed {
		return errInjected
	}
	return b.Bucket.Upload(ctx, name, r, o...)
}

func TestRunsTakeTurns(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	w := newWorld(t, bkt, testStart)
	w.generation([]string{"a"}, 0)
	inside, leave := make(chan struct{}), make(chan struct{})
	blocking := &faultBucket{Bucket: bkt, at: 1}
	blocking.fault = func() error {
		if blocking.calls.Load() == 1 {
			close(inside)
			<-leave
		}
		return nil
	}
	r := w.runner(func(o *Options) { o.Bucket, o.Lister = blocking, block.NewLister(blocking) })
	var g errgroup.Group
	g.Go(func() error { _, err := r.Run(context.Background(), true); return err })
	<-inside
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := r.Run(ctx, true)
	require.ErrorIs(t, err, context.Canceled)
	close(leave)
	require.NoError(t, g.Wait())
}

func TestScratchIsCleaned(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), testStart)
	o := w.options()
	id := ulid.MustNew(1, bytes.NewReader(make([]byte, 10))).String()
	for _, name := range []string{id, id + ".tmp", "other"} {
		require.NoError(t, os.MkdirAll(filepath.Join(o.ScratchDir, name, "chunks"), 0o777))
	}
	r, err := NewRunner(o)
	require.NoError(t, err)
	w.generation([]string{"a"}, 0)
	w.run(r, true)
	entries, err := os.ReadDir(o.ScratchDir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, "other", entries[0].Name())
}

func TestNewRunnerChecksOptions(t *testing.T) {
	w := newWorld(t, objstore.NewInMemBucket(), testStart)
	_, err := NewRunner(Options{})
	require.ErrorContains(t, err, "must be given")
	o := w.options()
	o.Config.DeletionDelay = time.Second
	_, err = NewRunner(o)
	require.ErrorContains(t, err, "deletion delay")
}

func TestBucketAway(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	w := newWorld(t, bkt, testStart)
	away := &faultBucket{Bucket: bkt, at: 1, fault: func() error { return errInjected }}
	r := w.runner(func(o *Options) { o.Bucket, o.Lister = away, block.NewLister(away) })
	_, err := r.Run(context.Background(), true)
	require.ErrorIs(t, err, errInjected, fmt.Sprint(err))
	require.InDelta(t, 1, testutil.ToFloat64(r.metrics.runFailures), 0)
}
