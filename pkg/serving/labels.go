package serving

import (
	"context"
	"errors"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/pkg/block"
)

// seriesOnly is the Func of hints that ask for labels, not for samples.
const seriesOnly = "series"

// LabelValues implements storage.LabelQuerier.
func (q *querier) LabelValues(ctx context.Context, name string, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.again(ctx, func(q *querier) ([]string, annotations.Annotations, error) {
		ext := q.qb.external(ms)
		if len(ext.check) > 0 {
			return q.labelsOfSeries(ctx, hints, ext, func(lset labels.Labels, add func(string)) {
				if v := lset.Get(name); v != "" {
					add(v)
				}
			})
		}
		values, ws, err := q.union(ctx, hints, func(ctx context.Context, cq storage.ChunkQuerier) ([]string, annotations.Annotations, error) {
			return cq.LabelValues(ctx, name, hints, slices.Clone(ext.matchers)...) // a source may sort them
		})
		if own := ext.lset.Get(name); own != "" && err == nil {
			var without bool
			if without, err = q.anyWithout(ctx, name, ext.matchers); without {
				values = limitStrings(sortUnique(append(values, own)), hints)
			}
		}
		return values, ws, err
	})
}

// anyWithout says whether one of the stored series that match has no label of that name.
func (q *querier) anyWithout(ctx context.Context, name string, ms []*labels.Matcher) (bool, error) {
	stored := external{matchers: append(slices.Clone(ms), labels.MustNewMatcher(labels.MatchEqual, name, ""))}
	sel := q.selectGroups(ctx, false, &storage.SelectHints{Start: q.mint, End: q.maxt, Func: seriesOnly, Limit: 1}, stored, nil)
	return sel.Next(), sel.Err()
}

// LabelNames implements storage.LabelQuerier.
func (q *querier) LabelNames(ctx context.Context, hints *storage.LabelHints, ms ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return q.again(ctx, func(q *querier) ([]string, annotations.Annotations, error) {
		ext := q.qb.external(ms)
		if len(ext.check) > 0 {
			return q.labelsOfSeries(ctx, hints, ext, func(lset labels.Labels, add func(string)) {
				lset.Range(func(l labels.Label) { add(l.Name) })
			})
		}
		names, ws, err := q.union(ctx, hints, func(ctx context.Context, cq storage.ChunkQuerier) ([]string, annotations.Annotations, error) {
			return cq.LabelNames(ctx, hints, slices.Clone(ext.matchers)...)
		})
		if err != nil || len(names) == 0 {
			return names, ws, err
		}
		ext.lset.Range(func(l labels.Label) { names = append(names, l.Name) })
		return limitStrings(sortUnique(names), hints), ws, nil
	})
}

// again runs f, and once more on a fresh snapshot if something that the first one held is gone. Strings outlive both.
func (q *querier) again(ctx context.Context, f func(*querier) ([]string, annotations.Annotations, error)) ([]string, annotations.Annotations, error) {
	out, ws, err := f(q)
	if !errors.Is(err, block.ErrGone) || q.qb.refresh(ctx) != nil {
		return out, ws, err
	}
	fresh := q.qb.newQuerier(q.mint, q.maxt)
	defer fresh.Close()
	return f(fresh)
}

// refresh counts a retry and brings the set up to date.
func (qb *Queryable) refresh(ctx context.Context) error {
	qb.metrics.retries.Inc()
	if qb.o.Refresh == nil {
		return nil
	}
	return qb.o.Refresh(ctx)
}

// union asks all sources at the same time.
func (q *querier) union(ctx context.Context, hints *storage.LabelHints, ask func(context.Context, storage.ChunkQuerier) ([]string, annotations.Annotations, error)) ([]string, annotations.Annotations, error) {
	if q.mint > q.maxt {
		return nil, nil, nil
	}
	b := q.budget(ctx)
	members := q.sources(ctx, q.mint, q.maxt)
	answers := make([][]string, len(members))
	warnings := make([]annotations.Annotations, len(members))
	g, gctx := errgroup.WithContext(q.during(ctx, b))
	g.SetLimit(fetches)
	for i, m := range members {
		g.Go(func() (err error) {
			defer q.qb.recovered(&err)
			cq, err := q.open(m)
			if err != nil {
				return err
			}
			answers[i], warnings[i], err = ask(gctx, cq)
			if err != nil {
				return err
			}
			return b.Add(stringsSize(answers[i]))
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	var (
		all []string
		ws  annotations.Annotations
	)
	for i := range answers {
		all = append(all, answers[i]...)
		ws.Merge(warnings[i])
	}
	return limitStrings(sortUnique(all), hints), ws, nil
}

// labelsOfSeries looks at every series as answered, for what the sources' indexes cannot say.
func (q *querier) labelsOfSeries(ctx context.Context, hints *storage.LabelHints, ext external, collect func(labels.Labels, func(string))) ([]string, annotations.Annotations, error) {
	sel := q.selectGroups(ctx, false, &storage.SelectHints{Start: q.mint, End: q.maxt, Func: seriesOnly}, ext, nil)
	seen := map[string]struct{}{}
	var err error
	for sel.Next() {
		lset, _ := sel.At()
		collect(lset, func(s string) {
			if _, ok := seen[s]; !ok && err == nil {
				err = sel.b.Add(stringsSize([]string{s}))
				seen[s] = struct{}{}
			}
		})
		if err != nil {
			return nil, nil, err
		}
	}
	if err := sel.Err(); err != nil {
		return nil, nil, err
	}
	out := make([]string, 0, len(seen))
	for s := range seen {
		out = append(out, s)
	}
	return limitStrings(sortUnique(out), hints), sel.Warnings(), nil
}

func sortUnique(all []string) []string {
	slices.Sort(all)
	return slices.Compact(all)
}

func limitStrings(all []string, hints *storage.LabelHints) []string {
	if hints != nil && hints.Limit > 0 && len(all) > hints.Limit {
		return all[:hints.Limit]
	}
	return all
}

// stringsSize is what strings cost: themselves, their headers here and in the merge, and the answer's text.
func stringsSize(all []string) int64 {
	n := int64(len(all)) * 48
	for _, s := range all {
		n += 2 * int64(len(s))
	}
	return n
}

// selectLabels answers hints that ask for series without samples. They are read at the first call of Next, so that this can be done
// again when a block is gone.
func (q *querier) selectLabels(ctx context.Context, sorted bool, hints *storage.SelectHints, ms []*labels.Matcher) storage.SeriesSet {
	return &labelsSet{i: -1, read: func() ([]labels.Labels, annotations.Annotations, error) {
		out, ws, err := q.readLabels(ctx, sorted, hints, ms)
		if !errors.Is(err, block.ErrGone) || q.qb.refresh(ctx) != nil {
			return out, ws, err
		}
		fresh := q.qb.newQuerier(q.mint, q.maxt)
		defer fresh.Close()
		return fresh.readLabels(withBudget(ctx, q.budget(ctx)), sorted, hints, ms)
	}}
}

func (q *querier) readLabels(ctx context.Context, sorted bool, hints *storage.SelectHints, ms []*labels.Matcher) ([]labels.Labels, annotations.Annotations, error) {
	sel := q.selectGroups(ctx, sorted, hints, q.qb.external(ms), &charger{b: q.budget(ctx), cost: labelsCost})
	var out []labels.Labels
	for sel.Next() {
		lset, _ := sel.At()
		out = append(out, lset)
	}
	return out, sel.Warnings(), sel.Err()
}

// labelsCost is what the labels of a series take: once here and in the source, once as the text of the answer.
func labelsCost(lset labels.Labels, _ []storage.ChunkSeries) (int64, error) {
	return 2*int64(lset.ByteSize()) + seriesOverhead, nil
}

// labelsSet yields series that have labels only.
type labelsSet struct {
	read     func() ([]labels.Labels, annotations.Annotations, error)
	all      []labels.Labels
	i        int
	warnings annotations.Annotations
	err      error
}

func (s *labelsSet) Next() bool {
	if s.i < 0 {
		s.all, s.warnings, s.err = s.read()
	}
	s.i++
	return s.err == nil && s.i < len(s.all)
}

func (s *labelsSet) At() storage.Series {
	return storage.NewListSeries(s.all[s.i], nil)
}

func (s *labelsSet) Err() error                        { return s.err }
func (s *labelsSet) Warnings() annotations.Annotations { return s.warnings }
