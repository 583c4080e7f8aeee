package batch

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

// A clock that is far ahead condemns all that there is. It is not gone before somebody may have noticed, and is let off when the clock is right again.
func TestRetentionByAClockThatIsWrong(t *testing.T) {
	for _, row := range []struct {
		name  string
		jumps int // how often it goes ahead
		runs  int // how many there are then, until it is put right
		kept  bool
	}{
		{"put right within hours", 1, 3, true},
		{"ahead and ahead again", 2, 2, true},
		{"ahead every time", 5, 0, true},
		{"nobody noticed", 1, 6, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // in which marks are of the wrong time, too
				const ahead = 365 * day
				w := newWorld(t, objstore.NewInMemBucket(), time.Now())
				w.generation([]string{"a", "b"}, 0, 3*hour, 3*day)
				clock, off := time.Now, time.Duration(0)
				r := w.runner(func(o *Options) {
					o.Config.Retention = 30 * day
					o.Now = func() time.Time { return clock().Add(-off) }
				})
				w.run(r, true)
				before := len(w.visible())
				require.NotZero(t, before)

				marked := 0
				for i := range row.jumps + row.runs {
					if i < row.jumps {
						time.Sleep(ahead)
					} else {
						time.Sleep(readingGap)
					}
					marked += w.run(r, false).Marked
				}
				require.Equal(t, before, marked)
				off = time.Duration(row.jumps) * ahead
				if !row.kept {
					require.Empty(t, w.visible())
					return
				}
				require.Len(t, w.visible(), before)
				s := w.run(r, true)
				require.Zero(t, s.Deleted+s.Failed)
				w.check()
				require.Len(t, live(w), before, "nothing is marked any more but what was replaced")

				// Without a retention of its own a run leaves the marks of others alone.
				time.Sleep(60 * day)
				require.Equal(t, before, w.run(r, false).Marked)
				w.run(w.runner(func(o *Options) { o.Now = func() time.Time { return clock().Add(-off) } }), false)
				require.Empty(t, live(w))
			})
		})
	}
}

// Of runs with different settings that meet on the same blocks the one that keeps them longest decides, as long as it comes once a day. One without a setting takes
// nothing back.
func TestRunsWithDifferentRetention(t *testing.T) {
	for _, row := range []struct {
		other time.Duration
		kept  bool
	}{{365 * day, true}, {0, false}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, objstore.NewInMemBucket(), time.Now())
			w.generation([]string{"a", "b"}, 40*day, 41*day)
			keeping := func(retention time.Duration) *Runner {
				return w.runner(func(o *Options) { o.Config.Retention, o.Now = retention, time.Now })
			}
			w.run(keeping(0), true)
			before := len(w.visible())
			require.NotZero(t, before)
			for range 5 {
				require.Equal(t, before, w.run(keeping(30*day), false).Marked)
				require.Empty(t, live(w))
				time.Sleep(23 * hour)
				w.run(keeping(row.other), false)
				if !row.kept {
					require.Empty(t, live(w))
					for range confirmations - 1 {
						require.Len(t, w.visible(), before, "it is not sure that they are too old")
						time.Sleep(readingGap)
						w.run(keeping(row.other), false)
					}
					require.Empty(t, w.visible())
					return
				}
				require.Len(t, live(w), before)
			}
		})
	}
}

// live are the visible blocks without a mark.
func live(w *world) (out []string) {
	for _, m := range visible(w.listed()) {
		out = append(out, m.ULID.String())
	}
	return out
}

// stepsOf reads the clock at times in hours, one after the other.
func stepsOf(c clock, hours ...int64) clock {
	for _, h := range hours {
		c = c.read(h * hour.Milliseconds())
	}
	return c
}

// Which time is sure after readings of the clock, in hours.
func TestReadingsOfTheClock(t *testing.T) {
	const year = 365 * 24
	for _, row := range []struct {
		name     string
		hours    []int64
		sure     int64
		readings []int64
	}{
		{"the first", []int64{100}, 0, []int64{100}},
		{"only some of many are kept", []int64{100, 101, 102, 104, 105, 106, 109, 110}, 0, []int64{100, 105, 110}},
		{"not before a day is over", []int64{100, 105, 110, 115, 120, 124}, 0, []int64{100, 105, 110, 115, 120}},
		{"when a day is over", []int64{100, 105, 110, 115, 120, 125}, 100, []int64{105, 110, 115, 120, 125}},
		{"day after day", []int64{100, 105, 110, 115, 120, 125, 130, 135, 140}, 115, []int64{120, 125, 130, 135, 140}},
		{"runs that are weeks apart", []int64{0, 170, 340, 510, 680, 850, 1020}, 170, []int64{340, 510, 680, 850, 1020}},
		{"ahead", []int64{100, 105, 110, 115, 120, 125, year}, 105, []int64{110, 115, 120, 125, year}},
		{"ahead and back", []int64{100, 105, 110, 115, 120, 125, year, year + 5, year + 10, 128}, 115, []int64{120, 125}},
		{"ahead for a day", []int64{100, 105, year, year + 5, year + 10, year + 15, year + 20, year + 25}, year, []int64{year + 5, year + 10, year + 15, year + 20, year + 25}},
		{"ahead for a day and back", []int64{100, year, year + 5, year + 10, year + 15, year + 20, year + 25, 130}, 0, []int64{130}},
		{"ahead and ahead again", []int64{100, 105, 110, 115, year, 2 * year, 3 * year, 4 * year}, 110, []int64{115, year, 2 * year, 3 * year, 4 * year}},
		{"behind", []int64{100, 105, 110, 115, 120, 125, 3}, 0, []int64{3}},
		{"behind for a while", []int64{100, 105, 110, 115, 120, 125, 3, 9, 130, 135, 140, 145}, 3, []int64{9, 130, 135, 140, 145}},
		{"a little behind", []int64{100, 105, 110, 115, 120, 125, 124, 125, 129}, 100, []int64{105, 110, 115, 120, 125}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := stepsOf(clock{}, row.hours...)
			in := func(ms []int64) (hours []int64) {
				for _, t := range ms {
					hours = append(hours, t/hour.Milliseconds())
				}
				return hours
			}
			require.Equal(t, row.sure, c.Sure/hour.Milliseconds())
			require.Equal(t, row.readings, in(c.Readings))
			raw, err := json.Marshal(c)
			require.NoError(t, err)
			again, err := parseClock(raw)
			require.NoError(t, err)
			require.Equal(t, c, again)
		})
	}
}

// Runs do not come to the second. What they read is sure after a day all the same, and not much later.
func TestReadingsOfRunsThatAreNotOnTime(t *testing.T) {
	for every, late := range map[time.Duration]time.Duration{5 * minute: minute, hour: 10 * minute, 6 * hour: 10 * time.Second, 6*hour + time.Second: hour} {
		for seed := range uint64(100) {
			r := rand.New(rand.NewPCG(seed, uint64(every)))
			var c clock
			for i := range int64(100) {
				now := i*every.Milliseconds() + r.Int64N(late.Milliseconds())
				if c = c.read(now); c.Sure == 0 || i < 30 {
					continue
				}
				require.GreaterOrEqual(t, now-c.Sure, clockGrace.Milliseconds())
				require.LessOrEqual(t, now-c.Sure, max(clockGrace+6*hour, 6*every).Milliseconds()+late.Milliseconds(), "%v", every)
			}
		}
	}
}

func TestWhatIsNoClock(t *testing.T) {
	for _, text := range []string{
		``, `[]`, `{`, `{"version":1,"sure":0,"readings":[1`, `{"version":2,"sure":0,"readings":[1]}`, `{"version":1}`, `{"version":1,"sure":5,"readings":[]}`,
		`{"version":1,"sure":5,"readings":[4]}`, `{"version":1,"sure":0,"readings":[5,4]}`, `{"version":1,"sure":0,"readings":[1,2,3,4,5,6]}`,
		`{"version":1,"sure":-1,"readings":[1]}`, `{"version":1,"sure":1e300,"readings":[1]}`,
	} {
		c, err := parseClock([]byte(text))
		require.Error(t, err, text)
		require.Zero(t, c, text)
	}
}

// Whatever the clock does, no time is sure that is not over, unless the clock of all processes is ahead for a day, less six hours for each time that it is set again
// meanwhile. Where it is right for long enough, time goes on.
func TestNoTimeIsSureBeforeItIsOver(t *testing.T) {
	const moment = 8 * hour
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		upTo := func(d time.Duration) int64 { return r.Int64N(d.Milliseconds()) }
		right, ahead := 20_000*dayMillis, int64(0)
		left := int64(0) // how long it may be ahead still
		var c clock
		for range 300 {
			before := ahead
			switch r.IntN(12) {
			case 0:
				ahead += upTo(400 * day)
			case 1:
				ahead += upTo(day)
			case 2:
				ahead -= upTo(day)
			case 3:
				ahead = -upTo(400 * day)
			case 4:
				ahead = 0
			}
			switch {
			case before <= 0:
				left = clockGrace.Milliseconds()
			case ahead != before:
				left -= readingGap.Milliseconds()
			}
			passed := upTo(moment)
			right += passed
			if left -= passed; left <= 0 {
				ahead = min(ahead, 0)
			}
			c = c.read(right + ahead)
			require.LessOrEqual(t, c.Sure, right, "seed %d", seed)
			if r.IntN(6) == 0 { // a process whose clock is right
				c = c.read(right)
				require.LessOrEqual(t, c.Sure, right, "seed %d", seed)
				left = clockGrace.Milliseconds()
			}
		}
		for range confirmations + 1 {
			right += readingGap.Milliseconds()
			c = c.read(right)
		}
		require.GreaterOrEqual(t, c.Sure, right-(clockGrace+readingGap).Milliseconds(), "seed %d", seed)
	}
}

// dropped are the visible blocks that say that they are without the series a.
func (w *world) dropped() (n int) {
	for _, m := range w.visible() {
		if slices.Contains(m.Dropped(), seriesA) {
			n++
		}
	}
	return n
}

// What a rule would drop by a clock that is wrong is there when the clock is right again, and goes when that has been so for a day.
func TestRulesByAClockThatIsWrong(t *testing.T) {
	const year = 365 * day
	for _, row := range []struct {
		name  string
		ahead []time.Duration // run after run
		every time.Duration
		other bool // another process runs jobs, too, and its clock is right
		kept  bool
	}{
		{"for hours", []time.Duration{year, year, year, year, year}, 5 * hour, false, true},
		{"for hours, and further ahead every time", []time.Duration{year, 2 * year, 3 * year, 4 * year, 5 * year}, hour, false, true},
		{"for days, as one of two", []time.Duration{year, year, year, year, year, year, year}, 7 * hour, true, true},
		{"for a day", []time.Duration{year, year, year, year, year, year}, 5 * hour, false, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			w, _ := compacted(t, objstore.NewInMemBucket())
			w.rules(`{series="a"}: 60d`)
			w.confirm()
			r, other := w.runner(keeping(Forever)), w.runner(keeping(Forever))
			w.run(r, false)
			for _, ahead := range row.ahead {
				w.advance(ahead)
				w.run(r, false)
				w.advance(-ahead)
				if row.other {
					w.run(other, false)
				}
				w.advance(row.every)
			}
			if !row.kept {
				require.Len(t, w.visible(), w.dropped())
				return
			}
			require.Zero(t, w.dropped())
			w.run(r, true)
			w.check()

			w.advance(80 * day)
			for range confirmations {
				w.run(r, false)
				require.Zero(t, w.dropped())
				w.advance(readingGap)
			}
			w.run(r, false)
			require.Len(t, w.visible(), w.dropped())
			w.check()
			w.checkErased("a")
		})
	}
}

// clockFaults is a bucket whose object of the clock cannot be had, or not be written.
type clockFaults struct {
	objstore.Bucket
	get, put bool
	puts     int
}

func (b *clockFaults) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if b.get && name == clockObject {
		return nil, errInjected
	}
	return b.Bucket.Get(ctx, name)
}

func (b *clockFaults) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	if name == clockObject {
		if b.puts++; b.put {
			return errInjected
		}
	}
	return b.Bucket.Upload(ctx, name, r, o...)
}

// While the bucket does not tell which time is sure, jobs are done and nothing is dropped, and the run's error says so.
func TestRulesWithoutTheClocksObject(t *testing.T) {
	w, _ := compacted(t, objstore.NewInMemBucket())
	w.rules(`{series="a"}: 6h`)
	w.advance(3 * day)
	w.confirm()
	for _, b := range []*clockFaults{{Bucket: w.bucket, get: true}, {Bucket: w.bucket, put: true}} {
		w.generation([]string{"b"}, 0)
		r := w.runner(keeping(Forever), func(o *Options) { o.Bucket = b })
		s, err := r.Run(context.Background(), true)
		require.ErrorIs(t, err, errInjected)
		require.ErrorContains(t, err, clockObject)
		require.Positive(t, s.Jobs)
		require.Zero(t, w.dropped())
		_, err = r.RecomputeRange(context.Background(), 0, w.now.Load(), false)
		require.ErrorIs(t, err, errInjected)
		require.Zero(t, w.dropped())
		w.check()
	}
	w.run(w.runner(keeping(Forever)), true)
	require.Positive(t, w.dropped())
	w.check()
}

// An object that cannot be understood is as good as none, and the log says so.
func TestClocksObjectIsDamaged(t *testing.T) {
	w, _ := compacted(t, objstore.NewInMemBucket())
	w.rules(`{series="a"}: 6h`)
	w.advance(3 * day)
	w.confirm()
	require.NoError(t, w.bucket.Upload(context.Background(), clockObject, bytes.NewReader([]byte(`{"version":1,"sure":`))))
	var log bytes.Buffer
	r := w.runner(keeping(Forever), func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	for range confirmations {
		w.run(r, true)
		require.Zero(t, w.dropped())
		w.advance(readingGap)
	}
	require.Equal(t, 1, strings.Count(log.String(), "begun anew"))
	w.run(r, true)
	require.Positive(t, w.dropped())
	w.check()
}

// The object is written by runs that have rules, and by those only when a reading is due.
func TestClocksObjectIsWrittenWhereItIsNeeded(t *testing.T) {
	w, _ := compacted(t, objstore.NewInMemBucket())
	b := &clockFaults{Bucket: w.bucket, get: true}
	through := func(o *Options) { o.Bucket = b }
	w.run(w.runner(keeping(Forever), through), true)
	require.Zero(t, b.puts, "no rules")
	b.get = false
	w.rules(`{series="a"}: 6h`)
	r := w.runner(keeping(Forever), through)
	w.recompute(r, true)
	require.Zero(t, b.puts, "only looks")
	for range 48 * 2 {
		w.run(r, false)
		w.advance(30 * minute)
	}
	require.Equal(t, 10, b.puts, "in two days")
	w.recompute(r, true)
	require.Equal(t, 10, b.puts, "only looks")
	all, err := block.List(context.Background(), w.bucket)
	require.NoError(t, err)
	require.NotEmpty(t, all, "those who list blocks pass it over")
}
