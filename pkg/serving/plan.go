package serving

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
)

// What the PromQL engine will hold in memory is estimated in two parts.
//
// From the expression alone (plan): the engine evaluates each part of it for all steps before it goes on to the part around it. So
// each part is evaluated as often as the query has steps, inside of a subquery as often as that has steps over the query's whole range, and
// once where nothing depends on the step. A series costs 16 bytes for each of these points. A function or operator that works step by step
// has its input and its output at the same time; a function over a range selector only its output, as it needs one window of one
// series; a function over a subquery has all points of the subquery and its output. Above an aggregation little is left. The demand of
// a selector is the most that any part on the way from it up to the next aggregation holds for one of its series. What needs no
// series (numbers, vector(), the bookkeeping of a subquery's steps) is charged before the query runs.
//
// From the series that are found (estimator): its labels, and the demand for that part of the query's time in which it has chunks; but
// what works step by step makes room for all steps (5,000 at most) as soon as a series has one. A native histogram costs what its first one
// takes.
//
// Not estimated: the output of aggregations and of joins beyond the size of their input, which --query.max-samples bounds, and the series
// that count_values makes of values, for which the process's memory is watched while it runs.

const (
	pointSize = 16 // a promql.FPoint
	// stepBookkeeping is what the engine's statistics take for each step of a subquery.
	stepBookkeeping = 16
	// seriesOverhead is what a series takes beside its labels and points: its parts, iterators and the engine's headers.
	seriesOverhead = 400
	// roomForPoints is for how many points at most the engine makes room when it makes a series.
	roomForPoints = 5000
	// maxDepth bounds the recursion of whoever walks an expression.
	maxDepth = 1000
	// maxWork bounds, in multiples of --query.max-samples, the samples that a function over a subquery looks at for one series. The engine
	// does not look at the clock meanwhile: at a nanosecond each, 200 × 50,000,000 are ten seconds.
	maxWork = 200
	// maxLabel bounds to how many bytes nested label functions can blow a value up; they can double it at every level.
	maxLabel    = 1 << 20
	storedLabel = 2048

	defaultLookback = 5 * time.Minute
)

// TooManySamplesError says that a query would hold or look at more samples than --query.max-samples allows. It unwraps to the
// engine's own error for that.
type TooManySamplesError struct{ reason string }

func (e *TooManySamplesError) Error() string {
	return "query processing would load too many samples into memory: " + e.reason
}

func (*TooManySamplesError) Unwrap() error { return promql.ErrTooManySamples("query planning") }

// demand is what a selector's series will cost.
type demand struct {
	points int64 // at most, for each series
	room   int64 // points beside these, for which there will be room even if a series has fewer
	window int64 // ms for which a sample counts: the range of a range selector, or the lookback delta
	raw    bool  // the samples themselves are the answer
}

// plan is what an expression says about its evaluation.
type plan struct {
	maxSamples int64
	lookback   int64
	subquery   func(rangeMillis int64) int64 // default step

	// static is the memory, in bytes, that is needed whatever series there are.
	static int64
	// demands are keyed by the first matcher of a selector, which storage is given in Select.
	demands map[*labels.Matcher]*demand
	// unbounded says that the number of series does not follow from that of the input.
	unbounded bool
}

// newestOnly says whether a selector is evaluated once, at the end of what it asks for, and looks back no further than any instant selector:
// then the newest sample of a series is all that the engine looks at.
func (p *plan) newestOnly(hints *storage.SelectHints) bool {
	return hints != nil && hints.Step == 0 && hints.Range == 0 && hints.Func != "info" && hints.End-hints.Start < p.lookback
}

// steps is the times at which a part of an expression is evaluated.
type steps struct {
	n        int64
	interval int64 // ms
}

// yield is what the evaluation of a part results in.
type yield struct {
	points  int64     // of each series
	room    int64     // see demand
	demands []*demand // of the selectors whose series are in it; none after an aggregation
	label   int64     // bound of the bytes of a label's value
}

// newPlan looks at a statement. Its errors are *TooManySamplesError, or say what cannot be evaluated at all.
func newPlan(stmt *parser.EvalStmt, maxSamples int, defaultStep func(int64) int64) (*plan, error) {
	p := &plan{
		maxSamples: int64(maxSamples), lookback: stmt.LookbackDelta.Milliseconds(), subquery: defaultStep,
		demands: map[*labels.Matcher]*demand{},
	}
	if depth := depthOf(stmt.Expr); depth > maxDepth {
		return nil, fmt.Errorf("the expression is nested %d levels deep; at most %d are evaluated", depth, maxDepth)
	}
	root := steps{n: 1, interval: 1}
	if !stmt.Start.Equal(stmt.End) || stmt.Interval != 0 {
		root.interval = stmt.Interval.Milliseconds()
		if root.interval <= 0 {
			return nil, fmt.Errorf("step of %s: must be at least 1ms", stmt.Interval)
		}
		root.n = (stmt.End.UnixMilli()-stmt.Start.UnixMilli())/root.interval + 1
		if root.n > p.maxSamples {
			return nil, p.tooMany("the query", root)
		}
		p.static += root.n * stepBookkeeping
	}
	_, err := p.eval(stmt.Expr, root)
	return p, err
}

func (p *plan) tooMany(what string, s steps) error {
	return &TooManySamplesError{fmt.Sprintf("%s has %d steps of %s, --query.max-samples is %d", what, s.n, time.Duration(s.interval)*time.Millisecond, p.maxSamples)}
}

// eval plans one part of the expression.
func (p *plan) eval(expr parser.Expr, s steps) (yield, error) {
	switch e := expr.(type) {
	case *parser.NumberLiteral:
		return p.constant(s), nil
	case *parser.StringLiteral:
		return yield{points: 1, label: int64(len(e.Val))}, nil
	case *parser.VectorSelector:
		return p.selector(e, &demand{points: s.n, window: p.lookback}), nil
	case *parser.MatrixSelector:
		// An argument never comes here: the samples are the answer.
		vs, _ := e.VectorSelector.(*parser.VectorSelector)
		return p.selector(vs, &demand{window: e.Range.Milliseconds(), raw: true}), nil
	case *parser.SubqueryExpr:
		v, _, err := p.child(e, s)
		return v, err
	case *parser.ParenExpr:
		return p.eval(e.Expr, s)
	case *parser.UnaryExpr:
		return p.eval(e.Expr, s)
	case *parser.StepInvariantExpr:
		v, err := p.eval(e.Expr, steps{n: 1, interval: s.interval})
		switch e.Expr.(type) {
		case *parser.MatrixSelector, *parser.SubqueryExpr:
			return v, err
		}
		return p.hold(yield{label: v.label}, s.n, v), err
	case *parser.AggregateExpr:
		return p.aggregate(e, s)
	case *parser.BinaryExpr:
		lhs, err := p.eval(e.LHS, s)
		if err != nil {
			return yield{}, err
		}
		rhs, err := p.eval(e.RHS, s)
		return p.stepwise(s.n, lhs, rhs), err
	case *parser.Call:
		return p.call(e, s)
	}
	return yield{points: s.n}, nil
}

// constant is one series without a selector.
func (p *plan) constant(s steps) yield {
	p.static += s.n * pointSize
	return yield{points: s.n}
}

func (p *plan) selector(vs *parser.VectorSelector, d *demand) yield {
	if len(vs.LabelMatchers) > 0 {
		p.demands[vs.LabelMatchers[0]] = d
	}
	return yield{points: d.points, demands: []*demand{d}, label: storedLabel}
}

// hold is a part that has its inputs and n points of output at the same time, and makes room for these one by one.
func (p *plan) hold(out yield, n int64, inputs ...yield) yield {
	out.points = n
	for _, in := range inputs {
		for _, d := range in.demands {
			d.raise(in.points+out.points, in.room+out.room)
		}
		if len(in.demands) == 0 {
			p.static += (out.points + out.room) * pointSize
		}
		out.demands = append(out.demands, in.demands...)
		out.label = max(out.label, in.label)
	}
	return out
}

// stepwise is hold for a part that makes room for all steps at once.
func (p *plan) stepwise(n int64, inputs ...yield) yield {
	room := min(n, roomForPoints)
	return p.hold(yield{room: room}, n-room, inputs...)
}

// raise notes what is held somewhere on the way up.
func (d *demand) raise(points, room int64) {
	if points+room > d.points+d.room {
		d.points, d.room = points, room
	}
}

// aggregate ends the demand of what is below it, unless it makes series of values.
func (p *plan) aggregate(e *parser.AggregateExpr, s steps) (yield, error) {
	if e.Param != nil {
		if _, err := p.eval(e.Param, s); err != nil {
			return yield{}, err
		}
	}
	in, err := p.eval(e.Expr, s)
	if err != nil {
		return yield{}, err
	}
	if e.Op == parser.COUNT_VALUES {
		if s.n > 1 {
			p.unbounded = true
		}
		if len(in.demands) == 0 {
			// Every step may bring a series, for which the engine makes room at once.
			p.static += s.n * (min(s.n, roomForPoints)*pointSize + seriesOverhead)
		}
		return p.stepwise(s.n, in), nil
	}
	p.static += s.n * pointSize
	return yield{points: s.n, label: in.label}, nil
}

// child plans the inside of a subquery, which is evaluated over the whole range of what is around it.
func (p *plan) child(e *parser.SubqueryExpr, s steps) (yield, steps, error) {
	c := steps{interval: e.Step.Milliseconds()}
	if e.Step == 0 {
		c.interval = p.subquery(e.Range.Milliseconds())
	}
	if c.interval <= 0 {
		return yield{}, c, fmt.Errorf("subquery %s: its step must be at least 1ms", shorten(e.String()))
	}
	c.n = ((s.n-1)*s.interval+e.Range.Milliseconds())/c.interval + 1
	if c.n > p.maxSamples {
		return yield{}, c, p.tooMany("subquery "+shorten(e.String()), c)
	}
	p.static += c.n * stepBookkeeping
	v, err := p.eval(e.Expr, c)
	return v, c, err
}

// call plans a function.
func (p *plan) call(e *parser.Call, s steps) (yield, error) {
	var inputs []yield
	for i, arg := range e.Args {
		switch a := arg.(type) {
		case *parser.MatrixSelector:
			vs, _ := a.VectorSelector.(*parser.VectorSelector)
			v := p.selector(vs, &demand{points: s.n, window: a.Range.Milliseconds()})
			v.points = 0 // one window of one series at a time
			inputs = append(inputs, v)
		case *parser.SubqueryExpr:
			v, c, err := p.child(a, s)
			if err != nil {
				return yield{}, err
			}
			if work := float64(s.n) * float64(a.Range.Milliseconds()/c.interval+1); work > float64(p.maxSamples)*maxWork {
				return yield{}, &TooManySamplesError{fmt.Sprintf("%s looks at %.0f samples of each series, more than %d times --query.max-samples", shorten(e.String()), work, maxWork)}
			}
			inputs = append(inputs, v)
		default:
			if e.Func.Name == "info" && i > 0 {
				continue // not evaluated; only its matchers are used
			}
			v, err := p.eval(arg, s)
			if err != nil {
				return yield{}, err
			}
			inputs = append(inputs, v)
		}
	}
	switch e.Func.Name {
	case "scalar", "absent", "absent_over_time":
		// One series comes out.
		out := p.stepwise(s.n, inputs...)
		p.static += s.n * pointSize
		return yield{points: s.n, label: out.label}, nil
	case "timestamp":
		if _, ok := e.Args[0].(*parser.VectorSelector); ok {
			return inputs[0], nil
		}
	case "label_replace", "label_join":
		return p.relabel(e, inputs)
	}
	if len(inputs) == 0 {
		return p.constant(s), nil
	}
	if overRange(e) {
		return p.hold(yield{}, s.n, inputs...), nil
	}
	return p.stepwise(s.n, inputs...), nil
}

// overRange says whether a function takes a range of each series.
func overRange(e *parser.Call) bool {
	return slices.ContainsFunc(e.Args, func(a parser.Expr) bool { return a.Type() == parser.ValueTypeMatrix })
}

// relabel bounds the length of the labels that label_replace and label_join make. The points stay where they are.
func (*plan) relabel(e *parser.Call, inputs []yield) (yield, error) {
	out := inputs[0]
	grown := int64(0)
	if e.Func.Name == "label_replace" {
		// In the worst case each reference stands for the whole source.
		replacement := inputs[2].label
		grown = replacement + (replacement/2)*min(out.label, math.MaxInt32)
		if s, ok := e.Args[2].(*parser.StringLiteral); ok {
			refs := int64(0)
			for _, r := range s.Val {
				if r == '$' {
					refs++
				}
			}
			grown = replacement + refs*out.label
		}
	} else {
		for _, in := range inputs[2:] {
			grown += out.label + in.label
		}
		grown += inputs[2].label * int64(len(inputs))
	}
	out.label = max(out.label, grown)
	if out.label > maxLabel {
		return out, fmt.Errorf("%s: nested label functions could make a label of %d bytes; at most %d are evaluated", shorten(e.String()), out.label, maxLabel)
	}
	return out, nil
}

// depthOf returns how deep an expression is nested.
func depthOf(expr parser.Expr) int {
	deepest := 0
	parser.Inspect(expr, func(n parser.Node, path []parser.Node) error {
		if n != nil {
			deepest = max(deepest, len(path)+1)
		}
		return nil
	})
	return deepest
}

// shorten keeps error texts readable.
func shorten(s string) string {
	if len(s) > 80 {
		return s[:77] + "..."
	}
	return s
}

type planKey struct{}

// estimator says what the series of one selection cost.
type estimator struct {
	demand
	start, end int64 // evaluation times that the selector is used for, ms, shifted as its samples are
}

// estimate returns the estimator of a Select: by the query's plan, or by hints alone.
func (q *querier) estimate(ctx ctxValuer, hints *storage.SelectHints, ms []*labels.Matcher) *estimator {
	e := &estimator{start: q.mint, end: q.maxt, demand: demand{window: q.qb.o.LookbackDelta.Milliseconds()}}
	if hints == nil {
		return e // whoever it is, no engine that keeps all points
	}
	e.points = 1
	if hints.Range > 0 {
		e.window = hints.Range
	}
	e.start, e.end = hints.Start+e.window, hints.End
	p, _ := ctx.Value(planKey{}).(*plan)
	if p != nil && len(ms) > 0 {
		if d, ok := p.demands[ms[0]]; ok {
			e.demand = *d
			e.start = hints.Start + e.window
			return e
		}
	}
	if hints.Step > 0 && e.end > e.start {
		e.points = (e.end-e.start)/hints.Step + 1
	}
	return e
}

// ctxValuer is the part of a context that estimates need.
type ctxValuer interface{ Value(key any) any }

func (e *estimator) charger(b *Budget) *charger {
	return &charger{b: b, steps: e.points + e.room, cost: e.cost}
}

// cost is what one series takes, in bytes.
func (e *estimator) cost(lset labels.Labels, parts []storage.ChunkSeries) (int64, error) {
	points, size, err := e.measure(parts)
	return int64(lset.ByteSize()) + seriesOverhead + points*pointSize + size, err
}

// extended is a series of floats that knows the range of its chunks, in milliseconds, and the number of their samples without reading them.
type extended interface {
	Extent() (mint, maxt int64, samples int, ok bool)
}

// manyPoints is above what it is worth to look at all chunks of a series to see for how much of the time it has any.
const manyPoints = 64

// measure returns for how many points of a series there will be room, and how many bytes more they take because they are histograms.
func (e *estimator) measure(parts []storage.ChunkSeries) (points, more int64, err error) {
	all := e.points + e.room
	extra := int64(-1)
	first, last, samples := int64(math.MaxInt64), int64(math.MinInt64), int64(0)
	for _, part := range parts {
		if x, ok := part.(extended); ok {
			if mint, maxt, n, ok := x.Extent(); ok {
				if n > 0 {
					extra = max(extra, 0)
					first, last, samples = min(first, mint), max(last, maxt), samples+int64(n)
				}
				continue
			}
		}
		it := part.Iterator(nil)
		for it.Next() {
			meta := it.At()
			if extra <= 0 {
				if extra, err = extraSize(meta); err != nil {
					return 0, 0, err
				}
			}
			if !e.raw && all <= manyPoints {
				break
			}
			first, last = min(first, meta.MinTime), max(last, meta.MaxTime)
			samples += int64(meta.Chunk.NumSamples())
		}
		if err := it.Err(); err != nil {
			return 0, 0, err
		}
	}
	switch {
	case extra < 0:
		return 0, 0, nil // no chunk
	case e.raw:
		return samples, samples * extra, nil
	case all <= manyPoints || e.end <= e.start:
		return all, all * extra, nil
	}
	covered := min(last+e.window, e.end) - max(first, e.start)
	if covered < 0 {
		return 0, 0, nil
	}
	share := min(float64(covered)/float64(e.end-e.start), 1)
	points = min(e.points, int64(share*float64(e.points))+1) + e.room
	return points, int64(share*float64(all)+1) * extra, nil
}
