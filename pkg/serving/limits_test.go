package serving

import (
	"context"
	"errors"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/require"

	"github.com/prometheus/client_golang/prometheus"
)

// limited is an engine and a storage that share a pool.
func limited(limit int64, sources ...Source) (*Engine, *Queryable, *MemoryPool) {
	pool := NewMemoryPool(limit)
	o := testOptions(50_000_000)
	o.Memory, o.PromQL.Reg = pool, prometheus.NewRegistry()
	set := NewSet()
	for _, s := range sources {
		set.Replace(nil, []Entry{{Source: s}})
	}
	return NewEngine(o), NewQueryable(set, Options{Memory: pool, Registerer: o.PromQL.Reg}), pool
}

// cpu returns the CPU time that the process has used.
func cpu(t *testing.T) time.Duration {
	var u syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// What must be refused before time or memory goes into it: each at a small part of a second and of a megabyte, while another query runs.
func TestHostileQueriesAreRefusedAtOnce(t *testing.T) {
	engine, q, pool := limited(1<<30, memory(Speed, 1, append(many(1000, "m", 100), spread(1000, "wide", 60*24*time.Hour)...)...))
	nested := func(open string, n int, inner, closing string) string {
		return strings.Repeat(open, n) + inner + strings.Repeat(closing, n)
	}
	for name, c := range map[string]struct {
		query   string
		err     string
		tooMany bool
	}{
		"endless scalar":                {query: `count_over_time(vector(1)[200y:1ms])`, err: "--query.max-samples", tooMany: true},
		"seconds of years":              {query: `count_over_time(vector(1)[2y:1s])`, err: "--query.max-samples", tooMany: true},
		"as an answer":                  {query: `vector(1)[2y:1s]`, err: "--query.max-samples", tooMany: true},
		"of a selector":                 {query: `max_over_time(nothing[100y:1ms])`, err: "--query.max-samples", tooMany: true},
		"default step":                  {query: `max_over_time(vector(1)[200y:])`, err: "--query.max-samples", tooMany: true},
		"absent":                        {query: `absent_over_time(nothing[200y:1ms])`, err: "--query.max-samples", tooMany: true},
		"with @":                        {query: `sum_over_time(vector(1)[200y:1ms] @ 0)`, err: "--query.max-samples", tooMany: true},
		"with offset":                   {query: `sum_over_time(vector(1)[200y:1ms] offset 1y)`, err: "--query.max-samples", tooMany: true},
		"inside of another":             {query: `sum_over_time(max_over_time(vector(1)[1h:1s])[200y:1ms])`, err: "--query.max-samples", tooMany: true},
		"in the parameter":              {query: `topk(scalar(count_over_time(vector(1)[200y:1ms])), m)`, err: "--query.max-samples", tooMany: true},
		"within limits each":            {query: `sum_over_time(sum_over_time(vector(1)[280d:1s])[280d:1s])`, err: "looks at", tooMany: true},
		"memory of steps":               {query: `sum_over_time(vector(1)[570d:1s])`, err: "--query.memory-limit"},
		"memory of series":              {query: `sum(max_over_time(wide[60d:1m] @ 5184000))`, err: "--query.memory-limit"},
		"values of every step":          {query: `count_over_time(count_values("v", vector(time()))[1d:1s])`, err: "--query.memory-limit"},
		"label bomb":                    {query: nested(`label_replace(`, 40, `vector(1)`, `, "a", "${1}${1}x", "a", "(.*)")`), err: "nested label functions"},
		"label bomb of joins":           {query: nested(`label_join(`, 40, `m`, `, "a", "", "a", "a")`), err: "nested label functions"},
		"nested minus":                  {query: nested(`-`, 4_000, `m`, ``), err: "levels deep"},
		"nested functions":              {query: nested(`abs(`, 4_000, `m`, `)`), err: "levels deep"},
		"nested parentheses":            {query: nested(`(`, 4_000, `m`, `)`), err: "levels deep"},
		"parentheses that do not close": {query: nested(`(`, 1_000_000, ``, ``), err: "operators and parentheses"},
		"chain":                         {query: `m` + strings.Repeat(` or m`, 4_000), err: "levels deep"},
		"endless chain":                 {query: `m` + strings.Repeat(` or m`, 100_000), err: "operators and parentheses"},
		"endless parentheses":           {query: nested(`(`, 1_000_000, `m`, `)`), err: "operators and parentheses"},
		"endless minus":                 {query: nested(`-`, 1_000_000, `m`, ``), err: "operators and parentheses"},
	} {
		t.Run(name, func(t *testing.T) {
			stop, finished := make(chan struct{}), make(chan error)
			go func() {
				var err error
				for err == nil {
					select {
					case <-stop:
						finished <- nil
						return
					default:
						err = execute(engine, q, `sum(rate(m[1m]))`)
					}
				}
				finished <- err
			}()
			for _, steps := range []int64{1, 100} {
				var before, after runtime.MemStats
				err := func() error {
					runtime.ReadMemStats(&before)
					defer runtime.ReadMemStats(&after)
					ctx := context.Background()
					qry, err := engine.NewRangeQuery(ctx, q, nil, c.query, time.UnixMilli(0), time.UnixMilli(steps*1000-1000), time.Second)
					if steps == 1 {
						qry, err = engine.NewInstantQuery(ctx, q, nil, c.query, time.UnixMilli(0))
					} else if err != nil && strings.Contains(err.Error(), "invalid expression type") {
						return nil
					}
					if err != nil {
						return err
					}
					defer qry.Close()
					return qry.Exec(ctx).Err
				}()
				if err == nil && steps > 1 {
					continue
				}
				require.ErrorContains(t, err, c.err)
				require.Equal(t, c.tooMany, errors.As(err, new(promql.ErrTooManySamples)))
				require.Less(t, len(err.Error()), 1000)
			}
			close(stop)
			require.NoError(t, <-finished)
		})
	}
	require.Zero(t, pool.Used())
}

// execute runs a query of one minute.
func execute(e *Engine, q storage.Queryable, qs string) error {
	ctx := context.Background()
	qry, err := e.NewRangeQuery(ctx, q, nil, qs, time.UnixMilli(0), time.UnixMilli(60_000), 10*time.Second)
	if err != nil {
		return err
	}
	defer qry.Close()
	return qry.Exec(ctx).Err
}

// The same without company, so that what it costs can be measured.
func TestHostileQueriesCostLittle(t *testing.T) {
	engine, q, _ := limited(1<<30, memory(Speed, 1, many(10, "m", 10)...))
	_, err := run(t, engine, q, `sum(rate(m[1m])) + vector(1)`, 0, 0)
	require.NoError(t, err, "what is made once is made")
	for _, qs := range []string{
		`count_over_time(vector(1)[200y:1ms])`, `vector(1)[2y:1s]`, `absent_over_time(nothing[200y:1ms])`, `sum_over_time(vector(1)[570d:1s])`,
		`sum_over_time(sum_over_time(vector(1)[280d:1s])[280d:1s])`,
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		spent := cpu(t)
		_, err := run(t, engine, q, qs, 0, 0)
		spent = cpu(t) - spent
		runtime.ReadMemStats(&after)
		require.Error(t, err)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20), qs)
		require.Less(t, spent, time.Second, qs)
	}
}

func TestSelectingEverythingIsStoppedByMemory(t *testing.T) {
	const series = 10_000
	engine, q, pool := limited(64<<20, memory(Speed, 1, spread(series, "m", 4*time.Hour)...))
	_, err := run(t, engine, q, `{__name__=~".+"}`, 4*time.Hour, 10*time.Second)
	var memory *MemoryError
	require.ErrorAs(t, err, &memory)
	require.ErrorIs(t, err, ErrMemory)
	require.False(t, memory.Busy)
	require.EqualError(t, err, err.Error())
	require.Contains(t, err.Error(), "query would need more than 48MB of memory")
	require.Contains(t, err.Error(), "series × 1441 steps; narrow the selection or raise the step")
	require.Zero(t, pool.Used())
	// What fits is answered: all of it once, and a part of it for long.
	_, err = run(t, engine, q, `count({__name__=~".+"})`, 0, 0)
	require.NoError(t, err)
	_, err = run(t, engine, q, `{i=~"0000000."}`, 4*time.Hour, 10*time.Second)
	require.NoError(t, err)
	require.Zero(t, pool.Used())
}

// A series that has samples for a short time only costs little, however long the query is.
func TestShortSeriesInALongQueryFit(t *testing.T) {
	engine, q, _ := limited(16<<20, memory(Speed, 1, many(200, "m", 10)...))
	_, err := run(t, engine, q, `sum(rate(m[1m]))`, 30*time.Hour, 10*time.Second)
	require.NoError(t, err)
}

func TestALargeQueryLeavesRoomForSmallOnes(t *testing.T) {
	pool := NewMemoryPool(1600)
	large, other, small := pool.NewBudget(), pool.NewBudget(), pool.NewBudget()
	require.NoError(t, large.Add(1200))
	err := large.Add(1)
	require.ErrorContains(t, err, "more than 1.17KB")
	require.NoError(t, small.Add(100), "a small query gets what large ones may not have")
	err = other.Add(101)
	require.ErrorContains(t, err, "other queries")
	var memory *MemoryError
	require.ErrorAs(t, err, &memory)
	require.True(t, memory.Busy)
	require.NoError(t, other.Add(100))
	require.EqualValues(t, 1400, pool.Used())
	large.Release(5000)
	require.EqualValues(t, 200, pool.Used(), "nothing can be given back twice")
	small.Close()
	other.Close()
	require.Zero(t, pool.Used())
	require.NoError(t, NewMemoryPool(0).NewBudget().Add(1<<60), "no limit")
}

func TestBudgetsUnderConcurrency(t *testing.T) {
	pool := NewMemoryPool(1 << 20)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			b := pool.NewBudget()
			for range 1000 {
				if b.Add(1000) == nil {
					b.Release(500)
				}
				require.LessOrEqual(t, pool.Used(), int64(1<<20))
			}
			b.Close()
		})
	}
	wg.Wait()
	require.Zero(t, pool.Used())
}

func TestQueriesWaitForAPlace(t *testing.T) {
	tr := newTracker(1)
	require.Equal(t, 1, tr.GetMaxConcurrent())
	i, err := tr.Insert(t.Context(), "a")
	require.NoError(t, err)
	j, err := tr.Insert(parsing(t.Context()), "b")
	require.NoError(t, err, "parsing does not wait")
	tr.Delete(j)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = tr.Insert(ctx, "c")
	require.ErrorAs(t, err, new(promql.ErrQueryTimeout))
	cancelled, stop := context.WithCancel(t.Context())
	stop()
	_, err = tr.Insert(cancelled, "c")
	require.ErrorAs(t, err, new(promql.ErrQueryCanceled))
	tr.Delete(i)
	i, err = tr.Insert(t.Context(), "d")
	require.NoError(t, err)
	tr.Delete(i)
	require.NoError(t, tr.Close())
}

func TestASecondEngineOnTheSameRegistry(t *testing.T) {
	o := testOptions(100)
	o.PromQL.Reg = prometheus.NewRegistry()
	for range 2 {
		require.NotPanics(t, func() {
			NewEngine(o)
			NewQueryable(NewSet(), Options{Registerer: o.PromQL.Reg, Memory: NewMemoryPool(1)})
		})
	}
}

var _ storage.SampleAndChunkQueryable = (*Queryable)(nil)

// count_values can make a series of every sample. Nobody can know before; it is stopped when memory gets short.
func TestCountingValuesIsStoppedWhenMemoryIsShort(t *testing.T) {
	var values []float64
	for i := range 10_000 {
		values = append(values, float64(i))
	}
	engine, q, pool := limited(0, memory(Speed, 1, entry(metric("m"), 0, values...)))
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	old := debug.SetMemoryLimit(int64(before.Sys) + 150<<20)
	defer debug.SetMemoryLimit(old)
	_, err := run(t, engine, q, `count_values("v", m)`, 10_000*time.Second, time.Second)
	require.ErrorIs(t, err, ErrMemory)
	require.ErrorContains(t, err, "count_values")
	require.Zero(t, pool.Used())
	debug.SetMemoryLimit(old)
	_, err = run(t, engine, q, `count_values("v", m > bool 100)`, 10_000*time.Second, time.Second)
	require.NoError(t, err)
}
