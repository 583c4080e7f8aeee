package tombstone

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand"
	"slices"
	"strconv"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/prometheus/prometheus/util/teststorage"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/merge"
)

// samples are the samples of series, by labels and time.
type samples map[string]map[int64]string

// fill appends random series of floats and histograms.
func fill(t *testing.T, r *rand.Rand, dbs ...*teststorage.TestStorage) []labels.Labels {
	var all []labels.Labels
	for i := range 1 + r.Intn(20) {
		lset := labels.FromStrings("__name__", "m"+strconv.Itoa(r.Intn(3)), "i", strconv.Itoa(i))
		if r.Intn(2) == 0 {
			b := labels.NewBuilder(lset)
			b.Set("job", strconv.Itoa(r.Intn(3)))
			lset = b.Labels()
		}
		all = append(all, lset)
		histograms := r.Intn(3) == 0
		from, n := r.Intn(300), r.Intn(400)
		for _, db := range dbs {
			app := db.Appender(t.Context())
			for k := range n {
				at := int64(from + k)
				var err error
				if histograms {
					_, err = app.AppendHistogram(0, lset, at, tsdbutil.GenerateTestHistogram(at), nil)
				} else {
					_, err = app.Append(0, lset, at, float64(at))
				}
				require.NoError(t, err)
			}
			require.NoError(t, app.Commit())
		}
		if n == 0 {
			all = all[:len(all)-1]
		}
	}
	return all
}

var selectors = []Selector{
	{eq("__name__", "m0")},
	{eq("__name__", "m1"), eq("job", "1")},
	{eq("i", "3")},
	{re("i", "1.*")},
	{labels.MustNewMatcher(labels.MatchNotEqual, "job", "")},
	{eq("job", "")},
	{labels.MustNewMatcher(labels.MatchNotRegexp, "i", "[0-5]"), re("__name__", "m.*")},
	{eq("__name__", "none")},
}

func readAll(t *testing.T, set storage.ChunkSeriesSet, mint, maxt int64) samples {
	t.Helper()
	out := samples{}
	var last labels.Labels
	for set.Next() {
		lset := set.At().Labels()
		require.Negative(t, labels.Compare(last, lset), "sorted")
		last = lset
		it := merge.ChunkIterator(set.At().Iterator(nil))
		for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
			if it.AtT() < mint || it.AtT() > maxt {
				continue
			}
			if out[lset.String()] == nil {
				out[lset.String()] = map[int64]string{}
			}
			var text string
			if vt == chunkenc.ValFloat {
				_, v := it.At()
				text = fmt.Sprint(v)
			} else {
				_, h := it.AtFloatHistogram(nil)
				text = h.String()
			}
			out[lset.String()][it.AtT()] = text
		}
		require.NoError(t, it.Err())
	}
	require.NoError(t, set.Err())
	require.Empty(t, set.Warnings())
	return out
}

func random[T any](r *rand.Rand, from []T, most int) (out []T) {
	for range r.Intn(most + 1) {
		out = append(out, from[r.Intn(len(from))])
	}
	return out
}

// What a filter leaves is what Prometheus leaves that has deleted the same.
func TestDeletesWhatPrometheusDeletes(t *testing.T) {
	for seed := range int64(25) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewSource(seed))
			ours, theirs := teststorage.New(t), teststorage.New(t)
			series := fill(t, r, ours, theirs)
			var tombstones []*Tombstone
			for range r.Intn(5) {
				from := int64(r.Intn(600))
				to := from + int64(r.Intn(400))
				if r.Intn(3) == 0 {
					from, to = math.MinInt64, math.MaxInt64
				}
				s, err := New(1, from, to, append(random(r, selectors, 2), selectors[r.Intn(len(selectors))]), writer, nil)
				require.NoError(t, err)
				tombstones = append(tombstones, s)
				for _, sel := range s.Selectors {
					require.NoError(t, theirs.Delete(t.Context(), s.MinTime, s.MaxTime, sel...))
				}
			}
			for range 10 {
				mint, maxt := int64(math.MinInt64), int64(math.MaxInt64)
				if r.Intn(2) == 0 {
					mint = int64(r.Intn(700))
					maxt = mint + int64(r.Intn(300))
				}
				a, err := ours.ChunkQuerier(mint, maxt)
				require.NoError(t, err)
				b, err := theirs.ChunkQuerier(mint, maxt)
				require.NoError(t, err)
				ms := slices.Concat(random(r, selectors, 1)...)
				if len(ms) == 0 {
					ms = []*labels.Matcher{re("__name__", ".+")}
				}
				q := FilterOf(tombstones).Querier(a, mint, maxt)
				hints := &storage.SelectHints{Start: mint, End: maxt}
				if r.Intn(3) == 0 {
					hints = nil
				}
				ctx := merge.WithNewest(t.Context())
				// Trimming, Prometheus may panic over several tombstones.
				asked := &storage.SelectHints{Start: mint, End: maxt, DisableTrimming: true}
				want := readAll(t, b.Select(ctx, true, asked, ms...), mint, maxt)
				require.Equal(t, want, readAll(t, q.Select(ctx, true, hints, ms...), mint, maxt))
				// Prometheus's head goes on to know labels of series without samples; it is asked only which samples there are.
				checkLabels(t, r, q, series, want, mint, maxt, ms)
				require.NoError(t, a.Close())
				require.NoError(t, b.Close())
			}
		})
	}
}

func checkLabels(t *testing.T, r *rand.Rand, q storage.ChunkQuerier, series []labels.Labels, want samples, mint, maxt int64, ms []*labels.Matcher) {
	t.Helper()
	names, jobs := map[string]bool{}, map[string]bool{}
	var left []string
	for _, lset := range series {
		if len(want[lset.String()]) == 0 {
			continue
		}
		left = append(left, lset.String())
		lset.Range(func(l labels.Label) { names[l.Name] = true })
		if job := lset.Get("job"); job != "" {
			jobs[job] = true
		}
	}
	hints := &storage.SelectHints{Start: mint, End: maxt, Func: seriesOnly}
	set := q.Select(t.Context(), false, hints, ms...)
	var got []string
	for set.Next() {
		got = append(got, set.At().Labels().String())
	}
	require.NoError(t, set.Err())
	require.ElementsMatch(t, left, got)

	if hints.Limit = r.Intn(3); hints.Limit > 0 {
		set := q.Select(t.Context(), true, hints, ms...)
		n := 0
		for set.Next() {
			n++
		}
		if _, ok := set.(*remainingSet); ok { // a head has no limit of its own
			require.Equal(t, min(hints.Limit, len(left)), n)
		}
	}
	if mint != math.MinInt64 {
		return // the head gives values of series without samples in range, too
	}
	limit := &storage.LabelHints{Limit: r.Intn(3)}
	values, _, err := q.LabelValues(t.Context(), "job", nil, ms...)
	require.NoError(t, err)
	require.ElementsMatch(t, slices.Collect(maps.Keys(jobs)), values)
	some, _, err := q.LabelValues(t.Context(), "job", limit, ms...)
	require.NoError(t, err)
	if limit.Limit > 0 {
		require.Len(t, some, min(limit.Limit, len(jobs)))
	}
	all, _, err := q.LabelNames(t.Context(), nil, ms...)
	require.NoError(t, err)
	require.ElementsMatch(t, slices.Collect(maps.Keys(names)), all)
}

// A matcher of a label that answers add finds the series that have it only in answers.
func TestMatchersSeeSeriesAsAnswered(t *testing.T) {
	db := teststorage.New(t)
	app := db.Appender(t.Context())
	for _, lset := range []labels.Labels{labels.FromStrings("__name__", "a"), labels.FromStrings("__name__", "b", "dc", "x"), labels.FromStrings("__name__", "c", "dc", "y")} {
		for at := range int64(100) {
			_, err := app.Append(0, lset, at, 1)
			require.NoError(t, err)
		}
	}
	require.NoError(t, app.Commit())
	for _, tc := range []struct {
		selector Selector
		left     []string
	}{
		{Selector{eq("dc", "x")}, []string{"c"}},
		{Selector{eq("dc", "")}, []string{"a", "b", "c"}},
		{Selector{labels.MustNewMatcher(labels.MatchNotEqual, "dc", "x")}, []string{"a", "b"}},
		{Selector{eq("__name__", "a"), re("dc", "x|z")}, []string{"b", "c"}},
	} {
		for _, maxt := range []int64{math.MaxInt64, 50} { // also where series go on behind what is read
			s, err := New(1, math.MinInt64, maxt, []Selector{tc.selector}, writer, map[string]string{"dc": "x"})
			require.NoError(t, err)
			inner, err := db.ChunkQuerier(0, 40)
			require.NoError(t, err)
			q := FilterOf([]*Tombstone{s}).Querier(inner, 0, 40)
			names, _, err := q.LabelValues(context.Background(), "__name__", nil)
			require.NoError(t, err)
			require.Equal(t, tc.left, names, "%s", tc.selector)
			// Matchers of queries are of the stored series.
			names, _, err = q.LabelValues(context.Background(), "__name__", nil, eq("dc", ""))
			require.NoError(t, err)
			require.Equal(t, slices.Contains(tc.left, "a"), slices.Contains(names, "a"), "%s", tc.selector)
			require.LessOrEqual(t, len(names), 1)
			require.NoError(t, q.Close())
		}
	}
}

// A selection that no tombstone can concern is that of the source itself.
func TestWhatIsNotConcernedIsNotTouched(t *testing.T) {
	s, err := New(1, 0, 100, []Selector{{eq("__name__", "a")}, {re("job", "x.*"), eq("__name__", "b")}}, writer, nil)
	require.NoError(t, err)
	inner := &askedQuerier{ChunkQuerier: storage.NoopChunkedQuerier()}
	q := FilterOf([]*Tombstone{s}).Querier(inner, -1000, 1000)
	for _, tc := range []struct {
		mint, maxt int64
		ms         []*labels.Matcher
		touched    bool
	}{
		{0, 100, []*labels.Matcher{eq("__name__", "a")}, true},
		{0, 100, []*labels.Matcher{eq("__name__", "c")}, false},
		{101, 200, []*labels.Matcher{eq("__name__", "a")}, false},
		{-10, -1, []*labels.Matcher{eq("__name__", "a")}, false},
		{0, 100, []*labels.Matcher{eq("__name__", "b"), eq("job", "x1")}, true},
		{0, 100, []*labels.Matcher{eq("__name__", "b"), eq("job", "y")}, false},
		{0, 100, []*labels.Matcher{re("__name__", "c")}, true},
	} {
		set := q.Select(t.Context(), true, &storage.SelectHints{Start: tc.mint, End: tc.maxt}, tc.ms...)
		require.Equal(t, tc.touched, set != inner.set, "%v", tc)
	}
	require.Nil(t, FilterOf(nil))
	require.Same(t, inner, FilterOf(nil).Querier(inner, 0, 1))
	require.Nil(t, NewFilter([]*Tombstone{s}, Stored{Writer: writer, MinGeneration: 2, MaxGeneration: 2}))
	require.NotNil(t, NewFilter([]*Tombstone{s}, Stored{Writer: writer, MinGeneration: 1, MaxGeneration: 1}))
}

type askedQuerier struct {
	storage.ChunkQuerier
	set storage.ChunkSeriesSet
}

func (q *askedQuerier) Select(context.Context, bool, *storage.SelectHints, ...*labels.Matcher) storage.ChunkSeriesSet {
	q.set = &storageSet{storage.EmptyChunkSeriesSet()}
	return q.set
}

type storageSet struct{ storage.ChunkSeriesSet }
