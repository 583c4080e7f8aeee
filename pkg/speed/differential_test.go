package speed

import (
	"context"
	"fmt"
	"math/rand"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
)

// bothStores holds the same samples in a generation and in Prometheus's head.
func bothStores(t testing.TB) (*Generation, *tsdb.Head) {
	t.Helper()
	o := tsdb.DefaultHeadOptions()
	o.ChunkDirRoot = t.TempDir()
	o.ChunkRange = 1 << 40
	o.EnableSharding = true
	head, err := tsdb.NewHead(nil, nil, nil, nil, o, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, head.Close()) })
	require.NoError(t, head.Init(0))
	g := NewGeneration(Options{})

	r := rand.New(rand.NewSource(1))
	gen := &generator{Rand: r}
	for i := range 150 {
		kv := []string{"__name__", fmt.Sprintf("m%d", i%5), "i", fmt.Sprint(i)}
		if i%2 == 0 {
			kv = append(kv, "env", []string{"prod", "dev", "test"}[i%3])
		}
		if i%7 == 0 {
			kv = append(kv, "pod", fmt.Sprintf("pod-%d", i%11), "ünïcode", "€"+fmt.Sprint(i%4))
		}
		ls := labels.FromStrings(kv...)
		var samples []sample
		at := r.Int63n(100_000)
		for range 1 + r.Intn(150) {
			s := gen.value()
			if i%4 > 0 {
				s.h, s.fh = nil, nil
			} else if i%8 > 0 && s.h != nil {
				s.h, s.fh = nil, s.h.ToFloat(nil)
			}
			if i%4 == 0 && value.IsStaleNaN(s.v) { // The head makes it a histogram if the last sample was one.
				s.v = 1
			}
			s.t = at
			at += 1 + r.Int63n(60_000)
			samples = append(samples, s)
		}
		app := head.Appender(ctx)
		for _, s := range samples {
			if s.h != nil || s.fh != nil {
				if s.h != nil {
					s.h = s.h.Copy()
				} else {
					s.fh = s.fh.Copy()
				}
				_, err = app.AppendHistogram(0, ls, s.t, s.h, s.fh)
			} else {
				_, err = app.Append(0, ls, s.t, s.v)
			}
			require.NoError(t, err)
		}
		require.NoError(t, app.Commit())
		for _, s := range samples { // One request each, as types may alternate.
			g.Append(g.shards[0].turn.next, batch(in(ls, s)))
		}
	}
	return g, head
}

// matcherTable holds selectors of every kind: by type of matcher, what the empty string does, sets, prefixes, missing labels.
func matcherTable() [][]*labels.Matcher {
	m := func(typ labels.MatchType, n, v string) *labels.Matcher { return labels.MustNewMatcher(typ, n, v) }
	const eq, ne, re, nre = labels.MatchEqual, labels.MatchNotEqual, labels.MatchRegexp, labels.MatchNotRegexp
	var singles []*labels.Matcher
	for _, name := range []string{"__name__", "env", "pod", "ünïcode", "missing"} {
		for _, typ := range []labels.MatchType{eq, ne} {
			for _, v := range []string{"", "m1", "prod", "pod-7", "€0", "none"} {
				singles = append(singles, m(typ, name, v))
			}
		}
		for _, typ := range []labels.MatchType{re, nre} {
			for _, v := range []string{"", ".*", ".+", "m1|m2|none", "prod|", "(prod|dev)?", "p.*", "pod-[0-5]", ".*0", "(?i)PROD", "^$", "€.", "none.+"} {
				singles = append(singles, m(typ, name, v))
			}
		}
	}
	out := [][]*labels.Matcher{{all()}, {m(eq, "i", "17")}, {m(re, "i", "1.")}, {m(re, "i", "17|18|x")}}
	for _, s := range singles {
		out = append(out, []*labels.Matcher{s})
	}
	r := rand.New(rand.NewSource(2))
	for range 100 {
		var ms []*labels.Matcher
		for range 2 + r.Intn(3) {
			ms = append(ms, singles[r.Intn(len(singles))])
		}
		out = append(out, ms)
	}
	return out
}

func TestSameAnswersAsPrometheusHead(t *testing.T) {
	g, head := bothStores(t)
	lo, hi := head.MinTime(), head.MaxTime()
	require.Equal(t, []int64{lo, hi}, []int64{g.Stats().MinTime, g.Stats().MaxTime})
	for _, rng := range [][2]int64{{minTime, maxTime}, {lo + (hi-lo)/4, lo + (hi-lo)/2}, {hi, hi}, {hi + 1, hi + 10}} {
		mint, maxt := rng[0], rng[1]
		block := tsdb.NewRangeHead(head, mint, maxt)
		theirs, err := tsdb.NewBlockChunkQuerier(block, mint, maxt)
		require.NoError(t, err)
		ours, err := g.ChunkQuerier(mint, maxt)
		require.NoError(t, err)
		for i, ms := range matcherTable() {
			require.Equal(t, selectNames(t, theirs, nil, slices.Clone(ms)...), selectNames(t, ours, nil, ms...), "%v", ms)
			for _, hints := range []*storage.LabelHints{nil, {Limit: 2}} {
				for _, name := range []string{"__name__", "env", "pod", "i", "missing"} {
					want, _, err := theirs.LabelValues(ctx, name, nil, slices.Clone(ms)...)
					require.NoError(t, err)
					if hints != nil { // The head may cut off before it sorts.
						want = want[:min(hints.Limit, len(want))]
					}
					got, _, err := ours.LabelValues(ctx, name, hints, ms...)
					require.NoError(t, err)
					require.Equal(t, append([]string{}, want...), append([]string{}, got...), "values of %s for %v", name, ms)
				}
				want, _, err := theirs.LabelNames(ctx, hints, slices.Clone(ms)...)
				require.NoError(t, err)
				got, _, err := ours.LabelNames(ctx, hints, ms...)
				require.NoError(t, err)
				require.Equal(t, append([]string{}, want...), append([]string{}, got...), "names for %v", ms)
			}
			if i < 20 {
				requireSameSamples(t, theirs, g, mint, maxt, ms)
			}
		}
		want, _, err := theirs.LabelNames(ctx, nil)
		require.NoError(t, err)
		got, _, err := ours.LabelNames(ctx, nil)
		require.NoError(t, err)
		require.Equal(t, append([]string{}, want...), append([]string{}, got...))
		require.NoError(t, theirs.Close())
	}
}

func requireSameSamples(t *testing.T, theirs storage.ChunkQuerier, g *Generation, mint, maxt int64, ms []*labels.Matcher) {
	t.Helper()
	got := query(t, g, mint, maxt, ms...)
	set := theirs.Select(ctx, true, nil, slices.Clone(ms)...)
	for set.Next() {
		name := set.At().Labels().String()
		requireSamples(t, samplesOf(t, set.At().Iterator(nil), mint, maxt), got[name])
		delete(got, name)
	}
	require.NoError(t, set.Err())
	require.Empty(t, got)
}

func TestSelectHints(t *testing.T) {
	g, head := bothStores(t)
	theirs, err := tsdb.NewBlockChunkQuerier(tsdb.NewRangeHead(head, minTime, maxTime), minTime, maxTime)
	require.NoError(t, err)
	defer theirs.Close()
	ours, err := g.ChunkQuerier(minTime, maxTime)
	require.NoError(t, err)
	ms := []*labels.Matcher{labels.MustNewMatcher(labels.MatchNotEqual, "__name__", "m0")}
	end := g.Stats().MinTime + 10_000
	every := selectNames(t, ours, nil, ms...)
	for name, h := range map[string]*storage.SelectHints{
		"range":  {Start: 0, End: end},
		"series": {Start: 0, End: end, Func: "series"},
		"shard":  {Start: 0, End: maxTime, ShardCount: 4, ShardIndex: 1},
	} {
		t.Run(name, func(t *testing.T) {
			want := selectNames(t, theirs, h, slices.Clone(ms)...)
			require.NotEmpty(t, want)
			require.Less(t, len(want), len(every))
			require.Equal(t, want, selectNames(t, ours, h, ms...))
		})
	}
	require.Equal(t, every[:7], selectNames(t, ours, &storage.SelectHints{Limit: 7}, ms...))
}

func TestSymbols(t *testing.T) {
	g, head := bothStores(t)
	ix, err := head.Index()
	require.NoError(t, err)
	defer ix.Close()
	var want, got []string
	for it := ix.Symbols(); it.Next(); {
		if it.At() != "" { // The key of the list of all series.
			want = append(want, it.At())
		}
	}
	it := g.Symbols()
	for it.Next() {
		got = append(got, it.At())
	}
	require.NoError(t, it.Err())
	require.Equal(t, want, got)
}

func TestQueriesEndWithTheirContext(t *testing.T) {
	g, _ := bothStores(t)
	q, err := g.ChunkQuerier(minTime, maxTime)
	require.NoError(t, err)
	done, cancel := context.WithCancel(ctx)
	cancel()
	ms := labels.MustNewMatcher(labels.MatchRegexp, "i", ".*1.*")
	set := q.Select(done, true, nil, ms)
	require.False(t, set.Next())
	require.ErrorIs(t, set.Err(), context.Canceled)
	_, _, err = q.LabelValues(done, "i", nil, ms)
	require.ErrorIs(t, err, context.Canceled)
	_, _, err = q.LabelValues(done, "i", nil)
	require.ErrorIs(t, err, context.Canceled)
	_, _, err = q.LabelNames(done, nil)
	require.ErrorIs(t, err, context.Canceled)
}
