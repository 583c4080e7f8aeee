package serving

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/tombstone"
)

func deletion(t *testing.T, generation uint64, mint, maxt int64) *tombstone.Tombstone {
	t.Helper()
	selector := tombstone.Selector{labels.MustNewMatcher(labels.MatchEqual, "a", "b")}
	d, err := tombstone.New(generation, mint, maxt, []tombstone.Selector{selector}, writer, nil)
	require.NoError(t, err)
	return d
}

// asked counts how often a source is asked what a deletion does to it, and may take its time to answer.
type asked struct {
	*fakeSource
	times int
	wait  func()
}

func (s *asked) DeletedBy(t *tombstone.Tombstone) tombstone.Effect {
	s.times++
	if s.wait != nil {
		s.wait()
	}
	return s.fakeSource.DeletedBy(t)
}

// Deletions that come and go one by one, among sources that do, hide what they would hide if all were looked at anew.
func TestDeletionsThatComeAndGo(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		set := NewSet()
		var all []*tombstone.Tombstone
		for range 100 {
			switch rnd.IntN(5) {
			case 0, 1:
				from := rnd.Int64N(100)
				all = append(all, deletion(t, uint64(rnd.IntN(10)), from, from+rnd.Int64N(50)))
			case 2:
				if len(all) > 0 {
					all = slices.Delete(all, 0, 1+rnd.IntN(len(all)))
				}
			case 3:
				gen, from := uint64(rnd.IntN(10)), rnd.Int64N(100)
				set.Replace(nil, []Entry{{Source: &fakeSource{gens: [2]uint64{gen, gen + 1}, mint: from, maxt: from + 20}}})
			case 4:
				if sources := set.Sources(); len(sources) > 0 {
					set.Replace(sources[:1], nil)
				}
			}
			rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] }) // others' come with earlier ids
			some := slices.SortedFunc(slices.Values(all[rnd.IntN(len(all)+1):]), tombstone.Compare)
			set.Delete(some)
			snap := set.Pin()
			for _, m := range snap.v.members {
				var by []*tombstone.Tombstone
				if d := snap.v.deleted[m]; d != nil {
					by = d.by
				}
				require.Equal(t, effective(m, some), by)
				require.Equal(t, len(by) == 0, snap.v.deleted[m].Filter() == nil)
			}
			snap.Release()
		}
	}
}

// With however many others in force, each source is asked about a further deletion once.
func TestAFurtherDeletionCostsNoMoreForThoseBefore(t *testing.T) {
	set, sources := NewSet(), make([]*asked, 10)
	for i := range sources {
		sources[i] = &asked{fakeSource: &fakeSource{gens: [2]uint64{1, 1}, maxt: 1}}
		set.Replace(nil, []Entry{{Source: sources[i]}})
	}
	var all []*tombstone.Tombstone
	for range 50 {
		all = append(all, deletion(t, 1, 0, 1))
		set.Delete(all)
	}
	set.Delete(all[1:])
	for _, s := range sources {
		require.Equal(t, 50, s.times)
	}
	require.Len(t, set.current.deleted, len(sources))
	for _, d := range set.current.deleted {
		require.Same(t, set.current.deleted[set.current.members[0]], d, "one filter for all")
	}
}

// While it is worked out what a deletion hides, queries begin with what was before.
func TestQueriesDoNotWaitForDeletions(t *testing.T) {
	set := NewSet()
	asking, answer := make(chan struct{}), make(chan struct{})
	slow := &asked{fakeSource: &fakeSource{gens: [2]uint64{1, 1}, maxt: 1}, wait: func() { asking <- struct{}{}; <-answer }}
	set.Replace(nil, []Entry{{Source: slow}})
	done, all := make(chan struct{}), []*tombstone.Tombstone{deletion(t, 1, 0, 1)}
	go func() {
		defer close(done)
		set.Delete(all)
	}()
	<-asking
	before := set.Pin()
	require.Empty(t, before.v.deleted)
	before.Release()
	close(answer)
	<-done
	require.Len(t, set.current.deleted, 1)
}

// Ten thousand deletions, the most by default, of a thousand blocks: the cost of one more.
func BenchmarkDelete(b *testing.B) {
	set := NewSet()
	var entries []Entry
	for range 1000 {
		entries = append(entries, Entry{Source: &fakeSource{gens: [2]uint64{1, 1}, maxt: 1}})
	}
	set.Replace(nil, entries)
	var all []*tombstone.Tombstone
	for range 10_001 {
		d, err := tombstone.New(1, 0, 1, []tombstone.Selector{{labels.MustNewMatcher(labels.MatchEqual, "a", "b")}}, writer, nil)
		require.NoError(b, err)
		all = append(all, d)
	}
	set.Delete(all[:10_000])
	for i := 0; b.Loop(); i++ {
		set.Delete(all[:10_000+(i+1)%2])
	}
}
