package serving

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/stats"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/merge"
)

// maxOperators bounds the tokens of an expression that can nest it. Prometheus's parser takes time with the square of the depth: half
// a second for 8,000 levels, minutes for 100,000, while it looks at no clock; whatever walks the result takes stack with it.
const maxOperators = 5000

// EngineOptions configures an Engine.
type EngineOptions struct {
	// PromQL configures Prometheus's engine. MaxSamples, Timeout and Parser must be set; ActiveQueryTracker is replaced, and
	// NoStepSubqueryIntervalFn has Prometheus's default of one minute.
	PromQL promql.EngineOpts
	// MaxConcurrency is how many queries are executed at once; others wait for it until their time is up. 0 is 20.
	MaxConcurrency int
	// Memory is what queries draw on; nil is no limit. It should be the one of the Queryable too.
	Memory *MemoryPool
	// Refresh, if any, is called before a query is run again because an object in the bucket is gone.
	Refresh func(context.Context) error
}

// Engine is Prometheus's PromQL engine within limits. Queries of other Queryables than ours are possible, but their series are not charged.
type Engine struct {
	inner   *promql.Engine
	o       EngineOptions
	metrics *metrics
}

var _ promql.QueryEngine = (*Engine)(nil)

// NewEngine returns an engine.
func NewEngine(o EngineOptions) *Engine {
	if o.Memory == nil {
		o.Memory = NewMemoryPool(0)
	}
	if o.MaxConcurrency <= 0 {
		o.MaxConcurrency = 20
	}
	if o.PromQL.NoStepSubqueryIntervalFn == nil {
		o.PromQL.NoStepSubqueryIntervalFn = func(int64) int64 { return time.Minute.Milliseconds() }
	}
	if o.PromQL.Logger == nil {
		o.PromQL.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{o: o, metrics: newMetrics(o.PromQL.Reg)}
	opts := o.PromQL
	opts.EnableAtModifier, opts.EnableNegativeOffset = true, true
	opts.ActiveQueryTracker = newTracker(o.MaxConcurrency)
	if opts.Reg != nil {
		opts.Reg = tolerantRegisterer{opts.Reg}
	}
	e.inner = promql.NewEngine(opts)
	return e
}

// CheckQuery refuses an expression that it would take too long to parse.
func CheckQuery(text string) error {
	var item parser.Item
	n, braces := 0, 0
	for l := parser.Lex(text); ; {
		l.NextItem(&item)
		switch item.Typ {
		case parser.EOF, parser.ERROR:
			return nil // the parser says what is wrong with it
		case parser.LEFT_BRACE:
			braces++
		case parser.RIGHT_BRACE:
			braces--
		}
		if braces > 0 || (item.Typ != parser.LEFT_PAREN && item.Typ != parser.LEFT_BRACKET && !item.Typ.IsOperator()) {
			continue
		}
		if n++; n > maxOperators {
			return fmt.Errorf("the query has more than %d operators and parentheses", maxOperators)
		}
	}
}

// CheckDepth refuses an expression that is nested too deeply to be walked safely.
func CheckDepth(expr parser.Expr) error {
	if depth := depthOf(expr); depth > maxDepth {
		return fmt.Errorf("the expression is nested %d levels deep; at most %d are evaluated", depth, maxDepth)
	}
	return nil
}

// NewInstantQuery implements promql.QueryEngine. Parsing does not wait for a place among the queries that run.
func (e *Engine) NewInstantQuery(ctx context.Context, q storage.Queryable, opts promql.QueryOpts, qs string, ts time.Time) (promql.Query, error) {
	return e.newQuery(q, qs, func(q storage.Queryable) (promql.Query, error) {
		return e.inner.NewInstantQuery(parsing(ctx), q, opts, qs, ts)
	})
}

// NewRangeQuery implements promql.QueryEngine.
func (e *Engine) NewRangeQuery(ctx context.Context, q storage.Queryable, opts promql.QueryOpts, qs string, start, end time.Time, interval time.Duration) (promql.Query, error) {
	if interval < time.Millisecond {
		return nil, fmt.Errorf("step of %s: must be at least 1ms", interval)
	}
	return e.newQuery(q, qs, func(q storage.Queryable) (promql.Query, error) {
		return e.inner.NewRangeQuery(parsing(ctx), q, opts, qs, start, end, interval)
	})
}

func (e *Engine) newQuery(q storage.Queryable, qs string, build func(storage.Queryable) (promql.Query, error)) (_ promql.Query, err error) {
	if err := CheckQuery(qs); err != nil {
		return nil, err
	}
	defer e.recovered(qs, &err)
	w := &query{e: e, budget: e.o.Memory.NewBudget()}
	w.build = func() (promql.Query, error) { return build(&plannedQueryable{Queryable: q, query: w}) }
	if w.inner, err = w.build(); err != nil {
		return nil, err
	}
	w.plan, w.refused = e.plan(w.inner)
	return w, nil
}

func (e *Engine) plan(q promql.Query) (*plan, error) {
	stmt, ok := q.Statement().(*parser.EvalStmt)
	if !ok {
		return nil, fmt.Errorf("statement of type %T cannot be evaluated", q.Statement())
	}
	return newPlan(stmt, e.o.PromQL.MaxSamples, e.o.PromQL.NoStepSubqueryIntervalFn)
}

// recovered, deferred, turns a panic into an error of the query.
func (e *Engine) recovered(qs string, err *error) {
	if p := recover(); p != nil {
		e.o.PromQL.Logger.Error("a query panicked", "query", shorten(qs), "panic", p, "stack", string(debug.Stack()))
		*err = fmt.Errorf("panic in the query: %v", p)
	}
}

// query is a promql.Query that is planned, charged, and run again if need be.
type query struct {
	e       *Engine
	build   func() (promql.Query, error)
	plan    *plan
	refused error // why it is not executed
	budget  *Budget

	mu    sync.Mutex // guards inner, which Cancel may need at any time
	inner promql.Query
	done  []promql.Query // earlier ones
}

// Exec runs the query. The budget is held until Close.
func (w *query) Exec(ctx context.Context) *promql.Result {
	within, cancel := w.e.withTimeout(ctx)
	defer cancel()
	res := w.exec(within)
	if res.Err != nil {
		res.Err = w.e.explain(ctx, within, w.String(), res.Err)
		w.budget.Close()
		return res
	}
	// What the storage and inner parts of the expression held is free; the answer, and its text, are not.
	w.budget.shrink(answerSize(res))
	return res
}

// withTimeout returns the context of a query, which ends with ctx and after --query.timeout.
func (e *Engine) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if t := e.o.PromQL.Timeout; t > 0 {
		return context.WithTimeout(ctx, t)
	}
	return ctx, func() {}
}

func (w *query) exec(ctx context.Context) *promql.Result {
	if w.refused != nil {
		return &promql.Result{Err: w.refused}
	}
	res := w.once(ctx)
	if !errors.Is(res.Err, block.ErrGone) {
		return res
	}
	w.e.metrics.retries.Inc()
	if refresh := w.e.o.Refresh; refresh != nil {
		if err := refresh(ctx); err != nil {
			return &promql.Result{Err: fmt.Errorf("%w; looking for its replacement: %w", res.Err, err)}
		}
	}
	w.budget.Close()
	if err := w.rebuild(); err != nil {
		return &promql.Result{Err: err}
	}
	return w.once(ctx)
}

func (w *query) once(ctx context.Context) (res *promql.Result) {
	var panicked error
	defer func() {
		if panicked != nil {
			res = &promql.Result{Err: panicked}
		}
	}()
	defer w.e.recovered(w.String(), &panicked)
	if err := w.budget.add(w.plan.static, 0, 0); err != nil {
		return &promql.Result{Err: err}
	}
	if !w.plan.unbounded {
		return w.current().Exec(ctx)
	}
	ctx, stop := watched(ctx)
	defer stop()
	res = w.current().Exec(ctx)
	if res.Err != nil && errors.Is(context.Cause(ctx), errShortOfMemory) {
		res.Err = fmt.Errorf("%w: %w", ErrMemory, errShortOfMemory)
	}
	return res
}

// rebuild makes a new inner query, as each can be run only once.
func (w *query) rebuild() error {
	inner, err := w.build()
	if err != nil {
		return err
	}
	p, err := w.e.plan(inner)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = append(w.done, w.inner)
	w.inner, w.plan = inner, p
	return nil
}

func (w *query) current() promql.Query {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inner
}

// explain gives errors the type and text that a user should see. The query ran in a context within ctx, that of the caller. A deadline that is neither's is one of
// the bucket's requests: an error like any other.
func (e *Engine) explain(ctx, within context.Context, qs string, err error) error {
	var memory *MemoryError
	var samples promql.ErrTooManySamples
	var fetch *FetchError
	switch {
	case errors.As(err, &fetch):
		e.metrics.refused.WithLabelValues("bucket").Inc()
		return &FetchError{Limit: fetch.Limit, Query: shorten(qs)}
	case errors.As(err, &memory):
		limit := "memory"
		if memory.Busy {
			limit = "memory_busy"
		}
		e.metrics.refused.WithLabelValues(limit).Inc()
		return memory
	case errors.Is(err, ErrMemory):
		e.metrics.refused.WithLabelValues("memory").Inc()
	case errors.As(err, &samples):
		e.metrics.refused.WithLabelValues("samples").Inc()
		if errors.As(err, new(*TooManySamplesError)) {
			return err // names the limit itself
		}
		return fmt.Errorf("%w: more than --query.max-samples=%d", err, e.o.PromQL.MaxSamples)
	case errors.As(err, new(promql.ErrQueryTimeout)):
		return e.timedOut(ctx, err)
	case errors.As(err, new(promql.ErrQueryCanceled)):
	case errors.Is(err, context.DeadlineExceeded) && errors.Is(within.Err(), context.DeadlineExceeded):
		return e.timedOut(ctx, promql.ErrQueryTimeout("reading series"))
	case errors.Is(err, context.Canceled):
		return promql.ErrQueryCanceled("reading series")
	}
	return err
}

// timedOut names the limit that err is about, unless it was the caller's own.
func (e *Engine) timedOut(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: longer than --query.timeout=%s", err, model.Duration(e.o.PromQL.Timeout))
}

// answerSize is what an answer takes, as values and as text.
func answerSize(res *promql.Result) int64 {
	const text = 32 // bytes of a point in JSON
	n := int64(0)
	switch v := res.Value.(type) {
	case promql.Matrix:
		for _, s := range v {
			n += int64(2*s.Metric.ByteSize()) + int64(len(s.Floats))*(pointSize+text)
			for _, h := range s.Histograms {
				n += 4 * (pointSize + int64(h.H.Size()))
			}
		}
	case promql.Vector:
		for _, s := range v {
			n += int64(2*s.Metric.ByteSize()) + pointSize + text
			if s.H != nil {
				n += 4 * int64(s.H.Size())
			}
		}
	}
	return n
}

// Close gives back the memory of the query and its budget.
func (w *query) Close() {
	w.mu.Lock()
	all := append(w.done, w.inner)
	w.done = nil
	w.mu.Unlock()
	for _, q := range all {
		q.Close()
	}
	w.budget.Close()
}

func (w *query) Statement() parser.Statement { return w.current().Statement() }
func (w *query) Stats() *stats.Statistics    { return w.current().Stats() }
func (w *query) Cancel()                     { w.current().Cancel() }
func (w *query) String() string              { return w.current().String() }

// plannedQueryable hands a query's budget and plan on to the storage.
type plannedQueryable struct {
	storage.Queryable
	query *query
}

func (p *plannedQueryable) Querier(mint, maxt int64) (storage.Querier, error) {
	q, err := p.Queryable.Querier(mint, maxt)
	if err != nil {
		return nil, err
	}
	return &plannedQuerier{Querier: q, query: p.query}, nil
}

type plannedQuerier struct {
	storage.Querier
	query *query
}

func (p *plannedQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	ctx = context.WithValue(withBudget(ctx, p.query.budget), planKey{}, p.query.plan)
	if p.query.plan.newestOnly(hints) {
		ctx = merge.WithNewest(ctx)
	}
	return p.Querier.Select(ctx, sorted, hints, ms...)
}

type budgetKey struct{}

func withBudget(ctx context.Context, b *Budget) context.Context {
	return context.WithValue(ctx, budgetKey{}, b)
}
