package serving

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/prometheus/prometheus/util/teststorage"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/retention"
	"github.com/millrace/millrace/pkg/tombstone"
)

// Prometheus's own scripts, over one source and over several that the samples are spread over. Where a histogram's predecessor is in
// another source, the merge leaves it to the reader to detect a reset; so what is expected of these hints is taken out in the second case.
func TestPrometheusScripts(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/prometheus/prometheus").Output()
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "promql", "promqltest", "testdata", "*.test"))
	require.NoError(t, err)
	require.Greater(t, len(files), 20)
	for _, n := range []int{1, 3} {
		for _, file := range files {
			t.Run(fmt.Sprintf("%d sources/%s", n, filepath.Base(file)), func(t *testing.T) {
				t.Parallel()
				script, err := os.ReadFile(file)
				require.NoError(t, err)
				if n > 1 {
					script = withoutHints(script)
				}
				engine := NewEngine(testOptions(promqltest.DefaultMaxSamplesPerQuery))
				promqltest.RunTestWithStorage(t, string(script), engine, func(t testing.TB) storage.Storage {
					return newSplitStorage(t, n, 42, Options{})
				})
			})
		}
	}
}

// withoutHints takes counter reset hints, and warnings of conflicts between them, out of what is expected, but not out of what is loaded.
func withoutHints(script []byte) []byte {
	hint := regexp.MustCompile(`counter_reset_hint:(not_)?reset`)
	var out []string
	loading := false
	for line := range strings.SplitSeq(string(script), "\n") {
		if !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "\t") {
			loading = strings.HasPrefix(line, "load")
		}
		if strings.Contains(line, "expect warn") && strings.Contains(line, "conflicting counter resets") {
			continue
		}
		if !loading {
			line = hint.ReplaceAllString(line, "")
		}
		out = append(out, line)
	}
	return []byte(strings.Join(out, "\n"))
}

var modelQueries = []string{
	`up`, `up{job="a"}`, `up{job=~"a|b", instance!="3"}`, `up offset 5m`, `up @ 600`, `up @ end()`, `-up`, `up > 0.5`,
	`sum(up)`, `sum by (job) (up)`, `count without (instance) (up)`, `topk(2, requests_total)`, `bottomk(1, gauge)`, `quantile(0.9, gauge)`,
	`stddev by (job) (gauge)`, `count_values("v", up)`, `group by (job) (up)`, `avg(gauge) by (job)`,
	`rate(requests_total[5m])`, `increase(requests_total[10m])`, `irate(requests_total[2m])`, `resets(requests_total[20m])`, `delta(gauge[7m])`,
	`changes(up[10m])`, `avg_over_time(gauge[5m])`, `max_over_time(gauge[5m])`, `quantile_over_time(0.5, gauge[10m])`, `last_over_time(gauge[3m])`,
	`deriv(gauge[10m])`, `predict_linear(gauge[10m], 600)`, `last_over_time({__name__=~".+"}[4m])`, `present_over_time(up[2m])`,
	`absent(nothing)`, `absent_over_time(up{job="z"}[5m])`, `sum(rate(requests_total[5m])) by (job) / count(up) by (job)`,
	`max_over_time(rate(requests_total[5m])[20m:1m])`, `sum_over_time((up == 1)[10m:30s] offset 2m)`, `up and gauge > 0`, `up or gauge`, `up unless gauge`,
	`gauge * on (job, instance) group_left up`, `label_replace(up, "x", "$1", "job", "(.*)")`, `histogram_quantile(0.9, rate(native[5m]))`,
	`histogram_count(native)`, `sum(rate(native[10m]))`, `histogram_avg(increase(native[10m]))`, `timestamp(up)`, `scalar(sum(up)) + vector(1)`,
	`{job="a"}`, `sort_desc(gauge)`, `time() - timestamp(gauge)`, `changes(mixed[10m])`,
}

// All answers from sources that the samples are spread over, some with other values that were accepted earlier, are those of one TSDB.
func TestAnswersAreThoseOfOneStorage(t *testing.T) {
	for seed := range uint64(4) {
		compareToOneStorage(t, fmt.Sprintf("seed %d", seed), seed, nil)
	}
}

// What retention rules hide is as if it had never been there.
func TestAnswersEndWhereRetentionRulesSay(t *testing.T) {
	rules, err := retention.Parse(`{job="a"}: 2h, {__name__=~"native|mixed|up",instance="1"}: 150m, {job=~"b|d",instance="2"}: 1d`)
	require.NoError(t, err)
	for i, minute := range []time.Duration{1, 20, 39} {
		now := minute*time.Minute + 2*time.Hour + 7*time.Second // where the first rule ends is in the data
		compareToOneStorage(t, fmt.Sprintf("at minute %d", minute), uint64(i), rules.Expired(now.Milliseconds()))
		compareToOneStorage(t, fmt.Sprintf("at minute %d, half an hour later", minute), uint64(i), rules.Expired((now + 30*time.Minute).Milliseconds()))
	}
	compareToOneStorage(t, "a day later", 1, rules.Expired((26 * time.Hour).Milliseconds()))
}

// compareToOneStorage asks sources that the samples are spread over and one TSDB, which never had what is hidden.
func compareToOneStorage(t *testing.T, name string, seed uint64, hidden *tombstone.Filter) {
	t.Run(name, func(t *testing.T) {
		one := teststorage.New(t)
		split := newSplitStorage(t, 3, seed, Options{Expired: func() *tombstone.Filter { return hidden }})
		split.lies = 0.3
		load(t, seed, without{one, hidden}, split)
		plain := promql.NewEngine(func() promql.EngineOpts {
			o := testOptions(1e6).PromQL
			o.EnableAtModifier, o.EnableNegativeOffset = true, true
			o.NoStepSubqueryIntervalFn = func(int64) int64 { return 60_000 }
			return o
		}())
		ours := NewEngine(testOptions(1e6))
		for _, qs := range modelQueries {
			for _, step := range []time.Duration{0, time.Minute} {
				want, err := run(t, plain, sorted{one}, qs, 40*time.Minute, step)
				require.NoError(t, err)
				got, err := run(t, ours, split, qs, 40*time.Minute, step)
				require.NoError(t, err, qs)
				require.Equal(t, want, got, qs)
			}
		}
		for _, name := range []string{"__name__", "job", "instance"} {
			require.Equal(t, labelValues(t, one, name), labelValues(t, split, name), name)
		}
	})
}

func labelValues(t *testing.T, s storage.Queryable, name string) []string {
	t.Helper()
	q, err := s.Querier(math.MinInt64, math.MaxInt64)
	require.NoError(t, err)
	defer q.Close()
	values, _, err := q.LabelValues(t.Context(), name, nil)
	require.NoError(t, err)
	return values
}

// without takes no samples that a filter hides.
type without struct {
	appendable
	hidden *tombstone.Filter
}

func (w without) AppenderV2(ctx context.Context) storage.AppenderV2 {
	return withoutAppender{w.appendable.AppenderV2(ctx), w.hidden}
}

type withoutAppender struct {
	storage.AppenderV2
	hidden *tombstone.Filter
}

func (a withoutAppender) Append(ref storage.SeriesRef, l labels.Labels, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram, o storage.AppendV2Options) (storage.SeriesRef, error) {
	if a.hidden.Deletes(l, t) {
		return ref, nil
	}
	return a.AppenderV2.Append(ref, l, st, t, v, h, fh, o)
}

// sorted makes a storage answer in the order of labels, so that sums are made in the same order.
type sorted struct{ storage.Queryable }

func (s sorted) Querier(mint, maxt int64) (storage.Querier, error) {
	q, err := s.Queryable.Querier(mint, maxt)
	return sortedQuerier{q}, err
}

type sortedQuerier struct{ storage.Querier }

func (q sortedQuerier) Select(ctx context.Context, _ bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	return q.Querier.Select(ctx, true, hints, ms...)
}

type appendable interface {
	AppenderV2(ctx context.Context) storage.AppenderV2
}

// load appends the same samples to all.
func load(t *testing.T, seed uint64, to ...appendable) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 2))
	var apps []storage.AppenderV2
	for _, a := range to {
		apps = append(apps, a.AppenderV2(t.Context()))
	}
	for _, job := range []string{"a", "b", "c"} {
		for i := range 4 {
			kv := []string{"job", job, "instance", fmt.Sprint(i)}
			counter := 0.0
			for ts := int64(0); ts < 40*60_000; ts += 15_000 {
				if counter += rnd.Float64() * 10; rnd.IntN(50) == 0 {
					counter = 0
				}
				up := float64(rnd.IntN(2))
				if rnd.IntN(30) == 0 {
					up = math.Float64frombits(value.StaleNaN)
				}
				for _, app := range apps {
					add := func(name string, v float64) {
						_, err := app.Append(0, metric(name, kv...), 0, ts, v, nil, nil, storage.AppendV2Options{})
						require.NoError(t, err)
					}
					add("up", up)
					add("requests_total", counter)
					add("gauge", counter*float64(i-1))
					h := tsdbutil.GenerateTestHistogram(ts / 15_000)
					_, err := app.Append(0, metric("native", kv...), 0, ts, 0, h, nil, storage.AppendV2Options{})
					require.NoError(t, err)
					if ts%60_000 == 0 {
						_, err = app.Append(0, metric("mixed", kv...), 0, ts, 0, nil, tsdbutil.GenerateTestFloatHistogram(ts/15_000), storage.AppendV2Options{})
						require.NoError(t, err)
					} else {
						add("mixed", up)
					}
				}
			}
		}
	}
	for _, app := range apps {
		require.NoError(t, app.Commit())
	}
}
