package batch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

// A clock that is far ahead condemns all that there is. It is not gone before somebody may have noticed, and is let off when the clock is right again.
func TestRetentionByAClockThatIsWrong(t *testing.T) {
	for _, row := range []struct {
		name  string
		wrong time.Duration // for how long it is
		kept  bool
	}{
		{"put right within hours", 20 * hour, true},
		{"nobody noticed", 26 * hour, false},
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

				time.Sleep(ahead)
				s := w.run(r, false)
				require.Equal(t, before, s.Marked)
				time.Sleep(row.wrong)
				s = w.run(r, false)
				off = ahead
				if !row.kept {
					require.Equal(t, before, s.Deleted)
					return
				}
				require.Zero(t, s.Deleted)
				s = w.run(r, true)
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

// live are the visible blocks without a mark.
func live(w *world) (out []string) {
	for _, m := range visible(w.listed()) {
		out = append(out, m.ULID.String())
	}
	return out
}
