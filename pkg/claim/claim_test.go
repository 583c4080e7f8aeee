package claim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var oneLabel = map[string]string{"writer": "a"}

// claimant is one of a data path and a place.
func claimant(bkt objstore.Bucket, instance, place string) *Claimant {
	return New(Options{
		Bucket: bkt, Labels: oneLabel, Times: DefaultTimes(),
		Identity: Identity{Instance: instance, Place: place, Host: "host of " + instance, PID: 7},
	})
}

// run takes steps for some time, as a writer does.
func run(t *testing.T, d time.Duration, cs ...*Claimant) {
	t.Helper()
	for end := time.Now().Add(d); ; {
		for _, c := range cs {
			require.NoError(t, c.Step(t.Context()))
		}
		if !time.Now().Before(end) {
			return
		}
		time.Sleep(min(DefaultTimes().Renew, time.Until(end)))
	}
}

func requireState(t *testing.T, want State, c *Claimant) {
	t.Helper()
	require.Equal(t, want, c.Status().State)
	_, err := c.Held()
	require.Equal(t, want == Held, err == nil, "%v", err)
}

func objects(t *testing.T, bkt objstore.Bucket) (names []string) {
	t.Helper()
	require.NoError(t, bkt.Iter(t.Context(), "", func(name string) error {
		names = append(names, name)
		return nil
	}, objstore.WithRecursiveIter()))
	return names
}

func TestASecondLiveWriterIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bkt := objstore.NewInMemBucket()
		a, b := claimant(bkt, "a", "here"), claimant(bkt, "b", "there")
		requireState(t, Unknown, a)
		run(t, 0, a)
		requireState(t, Held, a)
		run(t, time.Hour, a, b)
		requireState(t, Held, a)
		requireState(t, Refused, b)
		_, err := b.Held()
		require.ErrorContains(t, err, `another writer with the same external labels {writer="a"} writes to the bucket on host "host of a" (process 7) since `)
		require.True(t, b.Status().Holder.Alive)
		require.Nil(t, b.Status().Since)
		require.Len(t, objects(t, bkt), 1, "who is refused leaves nothing")
	})
}

func TestOtherLabelsAreAnotherClaim(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	a := claimant(bkt, "a", "here")
	b := New(Options{Bucket: bkt, Labels: map[string]string{"writer": "b"}, Times: DefaultTimes(), Identity: Identity{Instance: "b"}})
	run(t, 0, a, b)
	requireState(t, Held, a)
	requireState(t, Held, b)
}

// Who comes after a writer that ended, by how that ended and by where the next one is.
func TestWhenAClaimMayBeTakenOver(t *testing.T) {
	times := DefaultTimes()
	for _, row := range []struct {
		name            string
		instance, place string
		released        bool
		waiting         State
		after           time.Duration
	}{
		{name: "killed and started again", instance: "a", place: "here"},
		{name: "data path moved", instance: "a", place: "there", waiting: Waiting, after: times.Inherit},
		{name: "data path moved, places not known", instance: "a", waiting: Waiting, after: times.Inherit},
		{name: "data path moved after an orderly end", instance: "a", place: "there", released: true},
		{name: "data path lost", instance: "b", place: "here", waiting: Refused, after: times.Expire},
		{name: "another after an orderly end", instance: "b", place: "there", released: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bkt := objstore.NewInMemBucket()
				a := claimant(bkt, "a", "here")
				run(t, time.Hour, a)
				if row.released {
					require.NoError(t, a.Release(t.Context()))
					requireState(t, Unknown, a)
					require.ErrorIs(t, a.Step(t.Context()), errReleased)
				}
				next := claimant(bkt, row.instance, row.place)
				if row.after > 0 {
					run(t, row.after-time.Second, next)
					requireState(t, row.waiting, next)
					require.WithinDuration(t, time.Now().Add(time.Second), *next.Status().Until, time.Second)
				}
				run(t, time.Second, next)
				requireState(t, Held, next)
				require.Len(t, objects(t, bkt), 1, "what is over is removed")
			})
		})
	}
}

// between lets something happen after the next upload, before that is looked at.
type between struct {
	objstore.Bucket
	then func()
}

func (b *between) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	err := b.Bucket.Upload(ctx, name, r, o...)
	if then := b.then; then != nil {
		b.then = nil
		then()
	}
	return err
}

// What a process has sent may arrive after its end, just when the next one has claimed.
func TestTheLastRequestOfAProcessArrivesLate(t *testing.T) {
	claim := func(t *testing.T, old *Claimant) {
		require.NoError(t, old.put(t.Context(), old.objectName(1), newRecord(&old.o, 1)))
	}
	renewal := func(t *testing.T, old *Claimant) {
		old.own.Renewals++
		require.NoError(t, old.put(t.Context(), old.name, old.own))
	}
	release := func(t *testing.T, old *Claimant) { require.NoError(t, old.Release(t.Context())) }
	for _, row := range []struct {
		name            string
		instance, place string
		claimed         bool // the old process had
		watched         time.Duration
		last            func(t *testing.T, old *Claimant)
		want            State
	}{
		{name: "release, started again", instance: "a", place: "here", claimed: true, last: release, want: Held},
		{name: "renewal, started again", instance: "a", place: "here", claimed: true, last: renewal, want: Held},
		{name: "first claim, started again", instance: "a", place: "here", last: claim, want: Held},
		{name: "release, data path moved", instance: "a", place: "there", claimed: true, watched: DefaultTimes().Inherit, last: release, want: Held},
		{name: "renewal, data path moved", instance: "a", place: "there", claimed: true, watched: DefaultTimes().Inherit, last: renewal, want: Refused},
		{name: "release, another data path", instance: "b", place: "there", claimed: true, watched: DefaultTimes().Expire, last: release, want: Held},
		{name: "renewal, another data path", instance: "b", place: "there", claimed: true, watched: DefaultTimes().Expire, last: renewal, want: Refused},
		{name: "first claim, another data path", instance: "b", place: "here", last: claim, want: Refused},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bkt := objstore.NewInMemBucket()
				old := claimant(bkt, "a", "here")
				if row.claimed {
					run(t, time.Hour, old)
				}
				link := &between{Bucket: bkt}
				next := claimant(link, row.instance, row.place)
				if row.watched > 0 {
					run(t, row.watched-time.Second, next)
					time.Sleep(time.Second)
				}
				happened := false
				link.then = func() { row.last(t, old); happened = true }
				run(t, 0, next)
				require.True(t, happened)
				requireState(t, row.want, next)
				if row.want == Held {
					run(t, time.Hour, next)
					requireState(t, Held, next)
					require.Len(t, objects(t, bkt), 1, "what is over is removed")
				}
			})
		})
	}
}

func TestACopyOfADataPathIsNotTakenForItsOriginal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bkt := objstore.NewInMemBucket()
		original, dup := claimant(bkt, "a", "here"), claimant(bkt, "a", "there")
		run(t, time.Hour, original, dup)
		requireState(t, Held, original)
		requireState(t, Refused, dup)
		_, err := dup.Held()
		require.ErrorContains(t, err, "a copy of this data path is in use on host")
	})
}

func TestAWriterThatWasCutOffLosesItsClaimAndGetsItBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bkt := objstore.NewInMemBucket()
		a, b := claimant(bkt, "a", "here"), claimant(bkt, "b", "there")
		run(t, time.Minute, a, b)
		held, done, first, err := a.Hold(t.Context())
		require.NoError(t, err)
		defer done()
		run(t, DefaultTimes().Valid, b)
		requireState(t, Lapsed, a)
		synctest.Wait()
		<-held.Done()
		require.ErrorContains(t, context.Cause(held), "could not be renewed")
		run(t, DefaultTimes().Expire, b)
		requireState(t, Held, b)
		run(t, 0, a)
		requireState(t, Refused, a)
		require.NoError(t, b.Release(t.Context()))
		run(t, 0, a)
		requireState(t, Held, a)
		again, err := a.Held()
		require.NoError(t, err)
		require.NotEqual(t, first, again, "it must be seen that others were there in between")
	})
}

// A bucket that was away for all tells nothing about who is alive.
func TestAnOutageOfTheBucketEndsNoClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bkt := objstore.NewInMemBucket()
		a, b := claimant(bkt, "a", "here"), claimant(bkt, "b", "there")
		run(t, time.Minute, a, b)
		time.Sleep(24 * time.Hour)
		run(t, time.Minute, b, a)
		requireState(t, Held, a)
		requireState(t, Refused, b)
	})
}

// An object that nobody can read is a claim all the same, until it has not changed for long enough.
func TestObjectsThatCannotBeRead(t *testing.T) {
	for name, content := range map[string]string{"damaged": "{", "of a later version": `{"version":2,"released":true}`, "empty": ""} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bkt := objstore.NewInMemBucket()
				a := claimant(bkt, "a", "here")
				require.NoError(t, bkt.Upload(t.Context(), claimant(bkt, "b", "").objectName(1), strings.NewReader(content)))
				require.NoError(t, bkt.Upload(t.Context(), a.dir+"/README", strings.NewReader("not a claim")))
				run(t, DefaultTimes().Expire-time.Second, a)
				requireState(t, Refused, a)
				run(t, time.Second, a)
				requireState(t, Held, a)
			})
		})
	}
}

// What is made known of a claim must fit together, even while it is being lost.
func TestStateAndProblemAreOfTheSameMoment(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	a, b := claimant(bkt, "a", "here"), claimant(bkt, "b", "there")
	run(t, 0, a, b)
	requireState(t, Refused, b)
	stop := make(chan struct{})
	var flips sync.WaitGroup
	flips.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			b.mu.Lock()
			b.holding, b.verified = !b.holding, time.Now()
			b.mu.Unlock()
		}
	})
	for range 20_000 {
		state, err := b.Standing()
		if (state == Held) != (err == nil) {
			t.Errorf("state %s with problem %v", state, err)
			break
		}
	}
	close(stop)
	flips.Wait()
}

// The clock that Go measures time by stands still in a machine that is suspended; the time of day does not.
func TestAWriterThatWasSuspendedHasToRenewItsClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bkt := objstore.NewInMemBucket()
		slept := time.Duration(0) // of a
		a, b := claimant(bkt, "a", "here"), claimant(bkt, "b", "there")
		a.o.Now = func() time.Time { return time.Now().Add(-slept) }
		run(t, time.Minute, a, b)
		requireState(t, Held, a)
		before := time.Now()
		run(t, 15*time.Minute, b)
		slept = time.Since(before)
		requireState(t, Held, b)
		requireState(t, Lapsed, a)
		_, _, _, err := a.Hold(t.Context())
		require.ErrorContains(t, err, "could not be renewed for 15m0s")
		run(t, 0, a)
		requireState(t, Refused, a)
	})
}

// A time of day that is set can only end what a claim allows: backward it lets nobody act for longer.
func TestATimeOfDayThatIsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := claimant(objstore.NewInMemBucket(), "a", "here")
		set := time.Duration(0)
		a.o.Wall = func() time.Time { return time.Now().Add(set) }
		run(t, 0, a)
		set = -time.Hour
		requireState(t, Held, a)
		time.Sleep(DefaultTimes().Valid)
		requireState(t, Lapsed, a)
		run(t, 0, a)
		requireState(t, Held, a)
		set = time.Hour
		requireState(t, Lapsed, a)
		run(t, 0, a)
		requireState(t, Held, a)
	})
}

func FuzzObjects(f *testing.F) {
	f.Add("00000000000000000001-01ARZ3NDEKTSV4RRFFQ69G5FAV.json", `{"version":1,"instance":"a","released":true}`)
	f.Add(`a\00000000000000000009-01ARZ3NDEKTSV4RRFFQ69G5FAV.json`, "{")
	f.Add("1-2.json", "null")
	f.Fuzz(func(t *testing.T, name, content string) {
		if term, session, ok := parseName(name); ok {
			c := &Claimant{session: session}
			again, id, ok := parseName(c.objectName(term))
			require.True(t, ok)
			require.Equal(t, term, again)
			require.Equal(t, session, id)
		}
		if r := parseRecord(content); r.Released {
			require.Equal(t, recordVersion, r.Version)
		}
	})
}

// faulty is a bucket on which each call takes a while, before and after it happens, and fails now and then, before or after.
type faulty struct {
	objstore.Bucket

	mu     sync.Mutex
	rnd    *rand.Rand
	away   bool
	faults bool
}

var errFault = errors.New("fault")

// call tells whether the request is lost on its way. What is slept after the request, or before it, is part of what others do in between.
func (b *faulty) draw() (before, after time.Duration, lost, failed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	most := 200 * time.Millisecond
	if b.rnd.IntN(10) == 0 {
		most = 8 * time.Second
	}
	before, after = time.Duration(b.rnd.Int64N(int64(most))), time.Duration(b.rnd.Int64N(int64(most)))
	return before, after, b.away || b.faults && b.rnd.IntN(12) == 0, b.faults && b.rnd.IntN(12) == 0
}

func (b *faulty) do(ctx context.Context, request func() error) error {
	before, after, lost, failed := b.draw()
	time.Sleep(before)
	if lost || ctx.Err() != nil {
		return errFault
	}
	err := request()
	time.Sleep(after)
	if failed || ctx.Err() != nil {
		return errFault
	}
	return err
}

func (b *faulty) Upload(ctx context.Context, name string, r io.Reader, _ ...objstore.ObjectUploadOption) error {
	return b.do(ctx, func() error { return b.Bucket.Upload(ctx, name, r) })
}

func (b *faulty) Delete(ctx context.Context, name string) error {
	return b.do(ctx, func() error { return b.Bucket.Delete(ctx, name) })
}

func (b *faulty) Iter(ctx context.Context, dir string, f func(string) error, o ...objstore.IterOption) error {
	return b.do(ctx, func() error { return b.Bucket.Iter(ctx, dir, f, o...) })
}

func (b *faulty) Get(ctx context.Context, name string) (r io.ReadCloser, err error) {
	err = errors.Join(b.do(ctx, func() error {
		r, err = b.Bucket.Get(ctx, name)
		return nil
	}), err)
	return r, err
}

// life is that of one data path: its processes claim, are cut off from the bucket, are killed or end in good order, and start again, now and then
// elsewhere; now and then both the original and a copy live.
func (s *simulation) life(instance string, rnd *rand.Rand) {
	for s.t.Context().Err() == nil && time.Now().Before(s.end) {
		link := &faulty{Bucket: s.store, rnd: rnd, faults: rnd.IntN(2) == 0}
		place := ""
		if rnd.IntN(2) == 0 {
			place = instance + " at home" // where no two live at once
		}
		c := claimant(link, instance, place)
		s.live(c, instance)
		for range 1 + rnd.IntN(80) {
			_ = c.Step(s.t.Context()) // faults are what is tried here
			link.mu.Lock()
			link.away = link.away != (rnd.IntN(15) == 0)
			link.mu.Unlock()
			time.Sleep(time.Duration(rnd.Int64N(int64(2 * DefaultTimes().Renew))))
		}
		s.dead(c)
		if rnd.IntN(2) == 0 {
			_ = c.Release(s.t.Context())
		}
		time.Sleep(time.Duration(rnd.Int64N(int64(20 * time.Minute))))
	}
}

type simulation struct {
	t     *testing.T
	store objstore.Bucket
	end   time.Time

	mu    sync.Mutex
	alive map[*Claimant]string
}

func (s *simulation) live(c *Claimant, who string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alive[c] = who
}

func (s *simulation) dead(c *Claimant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.alive, c)
}

func (s *simulation) holders() (who []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, name := range s.alive {
		if _, err := c.Held(); err == nil {
			who = append(who, name)
		}
	}
	return who
}

// Whatever happens to processes and to their links to a bucket that executes one request after the other: never do two hold a claim at once, and it does
// not stay unclaimed for ever.
func TestNeverDoTwoHoldAClaim(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				s := &simulation{t: t, store: objstore.NewInMemBucket(), end: time.Now().Add(24 * time.Hour), alive: map[*Claimant]string{}}
				var lives sync.WaitGroup
				// Of the second data path there are copies, which are never at home.
				for i, instance := range []string{"one", "two", "three", "two", "two"} {
					own := rand.New(rand.NewPCG(seed, uint64(i)+2))
					lives.Go(func() {
						if i >= 3 {
							s.copied(instance, own)
							return
						}
						s.life(instance, own)
					})
				}
				held, last := map[string]int{}, ""
				changes := 0
				for time.Now().Before(s.end) {
					who := s.holders()
					require.LessOrEqual(t, len(who), 1, "%v hold the claim at once", who)
					for _, name := range who {
						if held[name]++; name != last {
							last = name
							changes++
						}
					}
					time.Sleep(time.Duration(rnd.Int64N(int64(time.Second))))
				}
				lives.Wait()
				require.Greater(t, changes, 5, "held: %v", held)
				require.Len(t, held, 3, "everyone had it at some time")
			})
		})
	}
}

// copied is a life of copies of a data path, whose places are not known.
func (s *simulation) copied(instance string, rnd *rand.Rand) {
	for time.Now().Before(s.end) {
		time.Sleep(time.Duration(rnd.Int64N(int64(4 * time.Hour))))
		c := claimant(&faulty{Bucket: s.store, rnd: rnd, faults: true}, instance, "")
		s.live(c, instance)
		for range rnd.IntN(40) {
			_ = c.Step(s.t.Context())
			time.Sleep(time.Duration(rnd.Int64N(int64(2 * DefaultTimes().Renew))))
		}
		s.dead(c)
	}
}
