package batch

import (
	"context"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/claim"
)

// slowBucket takes a second for each upload and read of a block, as nobody notices whose clock is synctest's.
type slowBucket struct {
	objstore.Bucket
	uploads sync.Map // by name of the object, how often
}

func (b *slowBucket) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	if !strings.HasPrefix(name, LeaseFolder) {
		time.Sleep(time.Second)
		n, _ := b.uploads.LoadOrStore(name, new(int))
		*n.(*int)++
	}
	return b.Bucket.Upload(ctx, name, r, o...)
}

func (b *slowBucket) GetRange(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	time.Sleep(time.Second)
	return b.Bucket.GetRange(ctx, name, off, n)
}

// leasing gives a runner a lease, as that of a process of its own.
func leasing(host, place string) func(*Options) {
	return func(o *Options) {
		o.Lease = &Lease{Identity: claim.Identity{Instance: "of " + host, Place: place, Host: host, PID: 7}}
	}
}

// due is a world in which there is something to be compacted.
func due(t *testing.T, bkt objstore.Bucket) *world {
	w := newWorld(t, bkt, testStart)
	for range 4 {
		w.generation([]string{"a", "b", "h"}, 0, 5*minute, 30*hour, 60*hour)
		w.advance(30 * minute)
	}
	w.advance(3 * hour)
	w.generation([]string{"a"}, 0)
	return w
}

// Two at once do the work once: who comes second is told who is at it, or waits for the end, as it was asked to.
func TestALeaseSavesDoubleWork(t *testing.T) {
	for _, force := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			bkt := &slowBucket{Bucket: objstore.NewInMemBucket()}
			w := due(t, bkt)
			reg := prometheus.NewRegistry()
			one, two := w.runner(leasing("one", "")), w.runner(leasing("two", ""), func(o *Options) { o.Metrics = NewMetrics(reg) })
			var first, second Summary
			var err error
			var both sync.WaitGroup
			both.Go(func() { first = w.run(one, force) })
			both.Go(func() {
				time.Sleep(5 * time.Second)
				require.Len(t, one.Leases(), 1)
				require.Equal(t, claim.Held, one.Leases()[0].State)
				second, err = two.Run(t.Context(), force)
			})
			both.Wait()
			require.Positive(t, first.Jobs)
			require.Zero(t, second.Jobs+second.Written+second.Abandoned, second)
			if force {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, ErrElsewhere)
				require.ErrorContains(t, err, `{writer="a"}: process 7 on host "one", since `)
				require.Positive(t, second.Elsewhere)
				require.Contains(t, second.String(), " jobs left to another process")
				require.Equal(t, "one", two.Leases()[0].Holder.Host)
				require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(`
					# HELP millrace_batch_runs_elsewhere_total Runs of the batch layer that left jobs to another process.
					# TYPE millrace_batch_runs_elsewhere_total counter
					millrace_batch_runs_elsewhere_total 1
				`), "millrace_batch_runs_elsewhere_total"))
			}
			bkt.uploads.Range(func(name, n any) bool {
				require.Equal(t, 1, *n.(*int), name)
				return true
			})
			w.check()
			w.run(two, force)
			require.Empty(t, two.Leases())
			l := block.NewLister(bkt)
			_, err = l.List(t.Context())
			require.NoError(t, err)
			require.Empty(t, l.Bad(), "no lease is taken for a block")
			require.Empty(t, l.Partial())
		})
	}
}

// A holder that is killed is waited for as long as its lease lasts, or not at all by who follows it in the same place; whatever its clock said.
func TestALeaseLapses(t *testing.T) {
	for _, row := range []struct {
		name       string
		host, next string // place
		after      time.Duration
	}{
		{name: "another process", next: "there", after: DefaultLeaseTimes().Expire},
		{name: "the same server again", host: "one", next: "here"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				killed := &faultBucket{Bucket: objstore.NewInMemBucket()}
				w := due(t, killed)
				killed.at, killed.fault = killed.calls.Load()+60, func() error { return errInjected }
				_, err := w.runner(leasing("one", "here")).Run(t.Context(), false)
				require.ErrorIs(t, err, errInjected)
				require.NotEmpty(t, objectsBelow(t, killed.Bucket, LeaseFolder), "it was killed while it held the lease")

				w.bucket = killed.Bucket
				began := time.Now()
				host := "two"
				if row.host != "" {
					host = row.host
				}
				require.Positive(t, w.run(w.runner(leasing(host, row.next)), false).Jobs)
				require.InDelta(t, row.after.Seconds(), time.Since(began).Seconds(), DefaultLeaseTimes().Renew.Seconds())
				w.check()
			})
		})
	}
}

// What stands where leases are can keep jobs waiting for as long as a lease lasts, not longer.
func TestLeasesThatCannotBeRead(t *testing.T) {
	for name, content := range map[string]string{
		"damaged":              `{"version":1,`,
		"empty":                "",
		"of a clock far ahead": `{"version":1,"instance":"x","host":"future","pid":1,"since":"2099-01-01T00:00:00Z","renewed":"2099-01-01T00:00:00Z"}`,
		"of a clock far back":  `{"version":1,"instance":"x","host":"past","pid":1,"since":"1970-01-01T00:00:00Z","renewed":"1970-01-01T00:00:00Z"}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := due(t, objstore.NewInMemBucket())
				w.run(w.runner(leasing("one", "")), false)
				names := objectsBelow(t, w.bucket, LeaseFolder)
				require.Len(t, names, 1)
				require.NoError(t, w.bucket.Upload(t.Context(), names[0], strings.NewReader(content)))
				w.generation([]string{"a"}, 0)
				w.advance(day)
				w.generation([]string{"a"}, 0)
				began := time.Now()
				require.Positive(t, w.run(w.runner(leasing("two", "")), false).Jobs)
				require.LessOrEqual(t, time.Since(began), DefaultLeaseTimes().Expire+DefaultLeaseTimes().Renew)
				require.Len(t, objectsBelow(t, w.bucket, LeaseFolder), 1, "what was in the way is gone")
				w.check()
			})
		})
	}
}

// One that did the jobs of many writers and was killed is waited for once, not once for each of them; nor is it asked about one after the other while it lives.
func TestLeasesOfManyWritersLapseTogether(t *testing.T) {
	for _, alive := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, objstore.NewInMemBucket(), testStart)
			const writers = 4
			for i := range writers {
				labels := map[string]string{"writer": fmt.Sprint(i)}
				for gen := range uint64(3) {
					in, m := memInput{}, testMeta(fmt.Sprint(i, gen), 0, gen, gen, testStart, testStart, testStart.Add(hour))
					in.add("a", testStart.UnixMilli(), float64(gen))
					m.Thanos.Labels = labels
					dir := fastDir(t)
					_, err := block.Write(t.Context(), dir, m, []block.Input{in}, block.WriteOptions{SegmentSize: 1 << 20})
					require.NoError(t, err)
					require.NoError(t, block.Upload(t.Context(), w.bucket, filepath.Join(dir, m.ULID.String())))
				}
				other := claim.New(claim.Options{Bucket: w.bucket, Labels: labels, Folder: LeaseFolder, Times: DefaultLeaseTimes(), Identity: claim.Identity{Instance: "x"}})
				require.NoError(t, other.Step(t.Context()))
				if alive {
					ctx, stop := context.WithCancel(t.Context())
					defer stop()
					go func() {
						for pause(ctx, 10*time.Second); ctx.Err() == nil; pause(ctx, 10*time.Second) {
							_ = other.Step(ctx)
						}
					}()
				}
			}
			w.advance(day)
			began, wait := time.Now(), DefaultLeaseTimes().Expire
			r := w.runner(leasing("two", ""))
			s, err := r.Run(t.Context(), false)
			if alive {
				wait = 3 * DefaultLeaseTimes().Renew
				require.ErrorIs(t, err, ErrElsewhere)
				require.Equal(t, writers, strings.Count(err.Error(), ErrElsewhere.Error()))
				require.Zero(t, s.Jobs)
			} else {
				require.NoError(t, err)
				require.GreaterOrEqual(t, s.Jobs, writers)
				require.Empty(t, r.Leases())
			}
			require.LessOrEqual(t, time.Since(began), wait+DefaultLeaseTimes().Renew)
		})
	}
}

// leaseless is a bucket in which leases cannot be looked after.
type leaseless struct{ objstore.Bucket }

func (b leaseless) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	if strings.HasPrefix(name, LeaseFolder) {
		return errInjected
	}
	return b.Bucket.Upload(ctx, name, r, o...)
}

// A lease saves work. Where there can be none, jobs are run without it.
func TestJobsWhereNoLeaseCanBeHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := due(t, leaseless{objstore.NewInMemBucket()})
		r := w.runner(leasing("one", ""))
		require.Positive(t, w.run(r, false).Jobs)
		require.Empty(t, r.Leases())
		w.check()
	})
}

// Writers that share a bucket do not wait for each other; nor does a run wait that has nothing to do.
func TestWhoNeedsNoLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bkt := objstore.NewInMemBucket()
		w := due(t, bkt)
		other := claim.New(claim.Options{
			Bucket: bkt, Labels: map[string]string{"writer": "b"}, Folder: LeaseFolder, Times: DefaultLeaseTimes(), Identity: claim.Identity{Instance: "x"},
		})
		require.NoError(t, other.Step(t.Context()))
		began := time.Now()
		require.Positive(t, w.run(w.runner(leasing("one", "")), false).Jobs)

		same := claim.New(claim.Options{Bucket: bkt, Labels: writerA, Folder: LeaseFolder, Times: DefaultLeaseTimes(), Identity: claim.Identity{Instance: "x"}})
		require.NoError(t, same.Step(t.Context()))
		_, err := same.Held()
		require.NoError(t, err)
		require.Zero(t, w.run(w.runner(leasing("two", "")), false).Elsewhere)
		require.Zero(t, time.Since(began))
	})
}

// A recomputation waits for a compactor, unless it only looks.
func TestARecomputationWaitsForTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := due(t, objstore.NewInMemBucket())
		w.config.KeepLevel0 = Forever
		w.run(w.runner(leasing("one", "")), false)
		c := claim.New(claim.Options{Bucket: w.bucket, Labels: writerA, Folder: LeaseFolder, Times: DefaultLeaseTimes(), Identity: claim.Identity{Instance: "x"}})
		require.NoError(t, c.Step(t.Context()))
		for _, dry := range []bool{true, false} {
			began := time.Now()
			found, err := w.runner(leasing("two", "")).RecomputeRange(t.Context(), 0, testStart.Add(day).UnixMilli(), dry)
			require.NoError(t, err)
			require.NotEmpty(t, found)
			require.Equal(t, dry, time.Since(began) < DefaultLeaseTimes().Expire)
		}
	})
}

func objectsBelow(t *testing.T, bkt objstore.Bucket, dir string) (names []string) {
	t.Helper()
	require.NoError(t, bkt.Iter(t.Context(), dir, func(name string) error {
		names = append(names, path.Clean(name))
		return nil
	}, objstore.WithRecursiveIter()))
	return names
}

// panicBucket panics at one upload of a block's file.
type panicBucket struct {
	objstore.Bucket
	armed atomic.Bool
}

func (b *panicBucket) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	if !strings.HasPrefix(name, LeaseFolder) && b.armed.Swap(false) {
		panic("on purpose")
	}
	return b.Bucket.Upload(ctx, name, r, o...)
}

// Whoever runs jobs may recover from a panic and go on: what others wait for is given up.
func TestLeaseOfAJobThatPanicsIsGivenUp(t *testing.T) {
	for _, place := range []string{"", "place"} {
		t.Run("place="+place, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bkt := &panicBucket{Bucket: objstore.NewInMemBucket()}
				w := due(t, bkt)
				one, two := w.runner(leasing("one", place)), w.runner(leasing("two", place))
				bkt.armed.Store(true)
				require.PanicsWithValue(t, "on purpose", func() { _, _ = one.Run(t.Context(), false) })
				_, err := two.Run(t.Context(), false)
				require.NoError(t, err)
				_, err = one.Run(t.Context(), false)
				require.NoError(t, err)
			})
		})
	}
}

// A run whose lease another process had meanwhile does not go on with the plan that it made before.
func TestLeaseThatAnotherHadInBetweenIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := due(t, objstore.NewInMemBucket())
		one, two := w.runner(leasing("one", "")), w.runner(leasing("two", ""))
		u := one.newRun(false)
		l := u.newLease(writerA)
		require.NoError(t, u.take(t.Context(), l))
		l.stop() // as where the process is suspended
		l.renewing.Wait()
		require.True(t, l.valid())
		time.Sleep(3 * DefaultLeaseTimes().Expire)
		_, err := two.Run(t.Context(), true)
		require.NoError(t, err)
		require.NoError(t, l.claimant.Step(t.Context()))
		_, err = l.claimant.Held()
		require.NoError(t, err)
		require.False(t, l.valid())
	})
}
