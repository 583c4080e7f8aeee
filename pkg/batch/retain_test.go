package batch

import (
	"context"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

const seriesA = `{series="a"}`

// unaware is a runner that was not told the rules.
func unaware(o *Options) { o.Config.Rules = nil }

// TestRulesDropSeries: a block that has become too old for a rule as a whole loses its series, once, and no sooner.
func TestRulesDropSeries(t *testing.T) {
	w, _ := compacted(t, objstore.NewInMemBucket())
	before := w.visible()
	w.rules(`{series="a"}: 6h`)
	w.confirm()
	r := w.runner(keeping(Forever))
	s := w.run(r, true)
	require.Positive(t, s.Jobs)
	w.check()
	w.checkErased()
	for _, m := range w.visible() {
		whole := m.MaxTime <= w.config.Rules[0].Horizon(w.sure)
		require.Equal(t, whole, slices.Contains(m.Dropped(), seriesA), m.ULID)
		untouched := slices.ContainsFunc(before, func(b block.Meta) bool { return b.ULID == m.ULID })
		require.Equal(t, whole, !untouched, "blocks of which only a part is too old are not written anew")
	}
	w.verify()
	require.Zero(t, w.run(r, true).Jobs, "once")
	require.Zero(t, w.run(w.runner(keeping(Forever)), true).Jobs, "and for every runner")

	w.advance(3 * day)
	w.confirm()
	w.run(r, true)
	w.check()
	w.checkErased("a")
	for _, m := range w.visible() {
		require.Contains(t, m.Dropped(), seriesA)
	}
	w.rules(`{series="h"}: 2d, {series="a"}: 40d`)
	w.run(w.runner(keeping(Forever)), true)
	w.rules(`{series="a"}: 30h, {series="h"}: 2d`)
	w.checkErased() // what is gone is gone, whatever the rule said then
}

// TestRulesThatMatchNothing: that a block has no series of a rule is found out once, by its index, and no block is written for it.
func TestRulesThatMatchNothing(t *testing.T) {
	w, _ := compacted(t, objstore.NewInMemBucket())
	w.rules(`{series="none"}: 2h, {series=~"a|h",nothing!=""}: 2h`)
	w.advance(3 * day)
	w.confirm()
	w.run(w.runner(unaware), true) // compacts what has become a day
	before := w.visible()
	for range 2 { // the second one is a process that knows nothing but what is in the bucket
		require.Zero(t, w.run(w.runner(), true).Jobs)
		require.Equal(t, before, w.visible())
	}
	r := w.runner()
	l, err := r.list(context.Background(), nil)
	require.NoError(t, err)
	for _, m := range before {
		require.Empty(t, m.Dropped())
		for i := range w.config.Rules {
			require.True(t, l.void[pair{w.config.Rules[i].ID, m.ULID}])
		}
	}
	w.check()
}

// TestRecomputeDoesNotBringBackWhatWasDropped, whether the one who recomputes knows of the rule or not.
func TestRecomputeDoesNotBringBackWhatWasDropped(t *testing.T) {
	w, _ := compacted(t, objstore.NewInMemBucket())
	w.rules(`{series="a"}: 30h`)
	w.advance(3 * day)
	w.confirm()
	// What was not dropped yet goes with the recomputation.
	out := w.recompute(w.runner(keeping(Forever)), false)
	require.NotZero(t, outcomes(out)[Swapped])
	require.Zero(t, outcomes(out)[Impossible])
	w.check()
	w.checkErased("a")
	want := w.visible()
	for _, r := range []*Runner{w.runner(keeping(Forever)), w.runner(keeping(Forever), unaware)} {
		require.Equal(t, map[Outcome]int{Same: len(want)}, outcomes(w.recompute(r, false)))
		require.Equal(t, want, w.visible())
	}
}

// TestCompactionWithoutARule: who compacts without having been told a rule keeps what was dropped away, and says of a block only what holds for all that went into it.
func TestCompactionWithoutARule(t *testing.T) {
	w, _ := compacted(t, objstore.NewInMemBucket())
	w.rules(`{series="a"}: 2h`)
	w.advance(2 * day)
	w.confirm()
	w.run(w.runner(), true)
	w.checkErased("a")
	late := w.generation([]string{"a", "b"}, 74*hour) // as if it had been accepted
	w.run(w.runner(unaware, func(o *Options) { o.Config.LateMergeShare = 0.01 }), true)
	require.NotContains(t, ids2names(w.visible()), late[0].String())
	w.check()
	w.run(w.runner(), true)
	w.check()
	w.checkErased("a")
}
