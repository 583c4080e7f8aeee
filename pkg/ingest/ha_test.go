package ingest

import (
	"container/list"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"
)

var testReplicaMetrics = newReplicaMetrics(nil, func() float64 { return 0 })

// newTestReplicas is newReplicas with labels c and r, and metrics that nobody looks at.
func newTestReplicas(now func() time.Time) *replicas {
	return &replicas{
		labels: replicaLabels{replica: "r", cluster: "c"}, failover: 30 * time.Second, now: now, metrics: testReplicaMetrics,
		logger: slog.New(slog.DiscardHandler), clusters: map[string]*list.Element{}, order: list.New(),
	}
}

// clock is one that tests turn.
type clock struct{ at time.Time }

func (c *clock) now() time.Time          { return c.at }
func (c *clock) forward(d time.Duration) { c.at = c.at.Add(d) }
func newClock() *clock                   { return &clock{time.UnixMilli(testNow)} }

// arrive is a request with a float of one replica, of which what is stored says.
func arrive(t *replicas, cluster, replica string, stored bool) verdict {
	now := t.now()
	e, held, v := t.elect([]byte(cluster), []byte(replica), now)
	if e == nil {
		return v
	}
	u := replicaUse{election: e, held: held, verdict: v, stored: stored && v == verdictKeep}
	if v == verdictDrop {
		u.dropped.Samples = 1
	}
	t.settle([]replicaUse{u}, now)
	return v
}

func TestElections(t *testing.T) {
	type step struct {
		after            time.Duration
		cluster, replica string
		refused          bool // nothing of it is stored
		want             verdict
	}
	const second = time.Second
	for _, row := range []struct {
		name  string
		steps []step
	}{
		{"the first that comes is elected", []step{{0, "x", "a", false, verdictKeep}, {0, "x", "b", false, verdictDrop}, {29 * second, "x", "a", false, verdictKeep}}},
		{"another takes over after the time", []step{{0, "x", "a", false, verdictKeep}, {29999 * time.Millisecond, "x", "b", false, verdictDrop}, {1 * time.Millisecond, "x", "b", false, verdictKeep}, {0, "x", "a", false, verdictDrop}}},
		{"what comes of the elected one counts anew", []step{{0, "x", "a", false, verdictKeep}, {20 * second, "x", "a", false, verdictKeep}, {20 * second, "x", "b", false, verdictDrop}, {10 * second, "x", "b", false, verdictKeep}}},
		{"what comes of others does not", []step{{0, "x", "a", false, verdictKeep}, {20 * second, "x", "b", false, verdictDrop}, {10 * second, "x", "c", false, verdictKeep}, {0, "x", "b", false, verdictDrop}}},
		{"a pause alone elects nobody else", []step{{0, "x", "a", false, verdictKeep}, {time.Hour, "x", "a", false, verdictKeep}, {0, "x", "b", false, verdictDrop}}},
		{"clusters do not know each other", []step{{0, "x", "a", false, verdictKeep}, {0, "y", "b", false, verdictKeep}, {0, "y", "a", false, verdictDrop}, {0, "x", "b", false, verdictDrop}}},
		{"the time is not turned back", []step{{0, "x", "a", false, verdictKeep}, {-time.Hour, "x", "a", false, verdictKeep}, {time.Hour + 29*second, "x", "b", false, verdictDrop}}},
		{"one of which all is refused gives way", []step{{0, "x", "a", true, verdictKeep}, {29 * second, "x", "a", true, verdictKeep}, {second, "x", "b", false, verdictKeep}, {29 * second, "x", "a", true, verdictDrop}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newClock()
			table := newTestReplicas(c.now)
			for i, s := range row.steps {
				c.forward(s.after)
				require.Equal(t, s.want, arrive(table, s.cluster, s.replica, !s.refused), "step %d", i)
			}
		})
	}
}

// A request that is stored late says nothing about a replica that was elected later.
func TestARequestThatIsOvertakenByAnElection(t *testing.T) {
	c := newClock()
	table := newTestReplicas(c.now)
	e, held, v := table.elect([]byte("x"), []byte("a"), c.at)
	require.Equal(t, verdictKeep, v)
	slow := []replicaUse{{election: e, held: held, verdict: v, stored: true}}
	c.forward(30 * time.Second)
	require.Equal(t, verdictKeep, arrive(table, "x", "b", true))
	c.forward(10 * time.Second)
	table.settle(slow, c.at)
	c.forward(20 * time.Second)
	require.Equal(t, verdictKeep, arrive(table, "x", "a", true))
	require.EqualValues(t, 3, e.held)
}

func TestClustersAreBounded(t *testing.T) {
	c := newClock()
	table := newTestReplicas(c.now)
	name := func(i int) string { return fmt.Sprintf("cluster-%d", i) }
	for i := range maxClusters {
		require.Equal(t, verdictKeep, arrive(table, name(i), "a", true))
	}
	c.forward(29 * time.Second)
	require.Equal(t, verdictKeep, arrive(table, name(0), "a", true))
	require.Equal(t, verdictFull, arrive(table, "new", "a", true), "all are alive")
	e, _ := table.clusters[name(1)].Value.(*election)
	late := []replicaUse{{election: e, held: e.held, stored: true}}
	c.forward(time.Second)
	require.Equal(t, verdictKeep, arrive(table, "new", "a", true), "one is not")
	require.Len(t, table.clusters, maxClusters)
	require.Equal(t, maxClusters, table.order.Len())
	require.NotContains(t, table.clusters, name(1), "the oldest")
	require.Contains(t, table.clusters, name(0))
	table.settle(late, c.at)
	require.Equal(t, maxClusters, table.order.Len(), "what is forgotten stays so")
	require.Equal(t, verdictDrop, arrive(table, name(0), "b", true))

	r := newTestReceiver(t, &recorder{}, nil)
	require.Equal(t, []HACluster{}, r.HAClusters())
	r.replicas = table
	require.Len(t, r.HAClusters(), maxListedClusters)
	require.Equal(t, HACluster{
		Cluster: name(0), Replica: "a", Since: testNow, LastStored: testNow + 29_000, Elections: 1, Dropped: 1,
	}, r.HAClusters()[0])
}

// haReceiver decides by the labels cluster and __replica__.
func haReceiver(t testing.TB, a Appender, reg prometheus.Registerer, c *clock) *Receiver {
	l := DefaultLimits()
	l.HA.ClusterLabel, l.HA.ReplicaLabel, l.HA.Now = "cluster", "__replica__", c.now
	require.NoError(t, l.HA.Validate())
	r := NewReceiver(a, l, reg, nil)
	r.now = func() time.Time { return time.UnixMilli(testNow) }
	return r
}

// bodyOf writes series of one float at testNow each, whose labels are given in order, as a request of either version.
func bodyOf(p Protocol, series ...[]string) []byte {
	return bodyWith(p, message{}.bytes(2, sample(testNow, 1)), series...)
}

func bodyWith(p Protocol, rest message, series ...[]string) []byte {
	var m message
	if p == V1 {
		for _, pairs := range series {
			m = m.bytes(1, seriesV1(pairs, rest))
		}
		return pack(m)
	}
	symbols := []string{""}
	for _, pairs := range series {
		var refs message
		for _, s := range pairs {
			at := slices.Index(symbols, s)
			if at < 0 {
				at = len(symbols)
				symbols = append(symbols, s)
			}
			refs = appendVarint(refs, uint64(at))
		}
		m = m.bytes(5, append(message{}.bytes(1, refs), rest...))
	}
	return pack(append(v2Request(symbols), m...))
}

func contentType(p Protocol) string {
	if p == V1 {
		return typeV1
	}
	return typeV2
}

// knowing is a recorder that knows the series that it got.
type knowing struct {
	recorder
	known *acceptedSeries
}

func (k *knowing) Known() Known { return k.known }

// TestWhichSeriesAreOfReplicas: a request holds one of every kind. What is left of it is the same however the series are found.
func TestWhichSeriesAreOfReplicas(t *testing.T) {
	long := strings.Repeat("x", maxReplicaValue+1)
	for _, row := range []struct {
		name   string
		labels []string
		want   string // what is stored; else it is dropped, or refused with
		err    string
	}{
		{name: "elected", labels: []string{"__name__", "m", "__replica__", "a", "cluster", "x"}, want: `{__name__="m", cluster="x"}`},
		{name: "not elected", labels: []string{"__name__", "m", "__replica__", "b", "cluster", "x"}},
		{name: "unsorted, elected", labels: []string{"cluster", "x", "__replica__", "a", "__name__", "m"}, want: `{__name__="m", cluster="x"}`},
		{name: "unsorted, not elected", labels: []string{"cluster", "x", "__replica__", "b", "__name__", "m"}},
		{name: "the label last", labels: []string{"__name__", "m", "cluster", "x", "__replica__", "a"}, want: `{__name__="m", cluster="x"}`},
		{name: "the label first", labels: []string{"__replica__", "a", "__name__", "m", "cluster", "x"}, want: `{__name__="m", cluster="x"}`},
		{name: "another cluster", labels: []string{"__name__", "m", "__replica__", "b", "cluster", "y"}, want: `{__name__="m", cluster="y"}`},
		{name: "neither label", labels: []string{"__name__", "m", "d", "e"}, want: `{__name__="m", d="e"}`},
		{name: "no cluster", labels: []string{"__name__", "m", "__replica__", "b"}, want: `{__name__="m", __replica__="b"}`},
		{name: "no replica", labels: []string{"__name__", "m", "cluster", "x", "d", "e"}, want: `{__name__="m", cluster="x", d="e"}`},
		{name: "an empty cluster", labels: []string{"__name__", "m", "__replica__", "b", "cluster", ""}, want: `{__name__="m", __replica__="b"}`},
		{name: "an empty replica", labels: []string{"__name__", "m", "__replica__", "", "cluster", "x"}, want: `{__name__="m", cluster="x"}`},
		{name: "two replicas", labels: []string{"__name__", "m", "__replica__", "a", "__replica__", "b", "cluster", "x"}, err: `label "__replica__" appears more than once`},
		{name: "two clusters", labels: []string{"__name__", "m", "__replica__", "b", "cluster", "x", "cluster", "x"}, err: `label "cluster" appears more than once`},
		{name: "no metric, elected", labels: []string{"__replica__", "a", "cluster", "x"}, err: "no metric name"},
		{name: "no metric, not elected", labels: []string{"__replica__", "b", "cluster", "x"}},
		{name: "a bad label, not elected", labels: []string{"__name__", "m", "__replica__", "b", "\xff", "1", "cluster", "x"}},
		{name: "a label twice, not elected", labels: []string{"__name__", "m", "__replica__", "b", "cluster", "x", "d", "1", "d", "1"}},
		{name: "a long label, not elected", labels: []string{"__name__", "m", "__replica__", "b", "cluster", "x", "d", strings.Repeat("x", 5000)}},
		{name: "a replica that is not UTF-8", labels: []string{"__name__", "m", "__replica__", "\xff", "cluster", "x"}, err: `value of label "__replica__" is not valid UTF-8`},
		{name: "a cluster that is not UTF-8", labels: []string{"__name__", "m", "__replica__", "b", "cluster", "\xff"}, err: `value of label "cluster" is not valid UTF-8`},
		{name: "a long replica", labels: []string{"__name__", "m", "__replica__", long, "cluster", "x"}, err: `value of label "__replica__" has 1025 bytes, more than the 1024 that --ingest.ha-replica-label`},
		{name: "a long cluster", labels: []string{"__name__", "m", "__replica__", "b", "cluster", long}, err: `value of label "cluster" has 1025 bytes`},
		{name: "one beyond the limit of all labels", labels: []string{"__name__", "m", "__replica__", "b", "cluster", strings.Repeat("x", 4097)}, err: "--ingest.max-label-value-length"},
	} {
		for _, p := range []Protocol{V1, V2} {
			t.Run(row.name+", "+p.String(), func(t *testing.T) {
				app := &knowing{known: nothingAccepted()}
				reg := prometheus.NewPedanticRegistry()
				r := haReceiver(t, app, reg, newClock())
				require.Equal(t, 204, post(r, contentType(p), bodyOf(p, []string{"__name__", "first", "__replica__", "a", "cluster", "x"})).Code)
				app.batches, app.records = nil, nil
				for round := range 3 {
					w := post(r, contentType(p), bodyOf(p, row.labels))
					if row.err != "" {
						require.Equal(t, 400, w.Code)
						require.Contains(t, w.Body.String(), row.err)
						require.Empty(t, app.batches)
						continue
					}
					require.Equal(t, 204, w.Code, w.Body)
					if p == V2 {
						require.Equal(t, "1", w.Header().Get(headerSamples))
					}
					if row.want == "" {
						require.Empty(t, app.batches)
						require.EqualValues(t, round+1, r.HAClusters()[0].Dropped)
						continue
					}
					require.Len(t, app.batches, round+1)
					require.Equal(t, []string{fmt.Sprintf("%q\n", row.want) + floatText(testNow, 0, 1)}, app.batches[round].Series)
					require.Equal(t, app.batches[round], replayed(t, app.records[round]))
					b, err := DecodeRecord(app.records[round], nil)
					require.NoError(t, err)
					app.known = acceptedIn(b)
					b.Release()
				}
				require.Zero(t, testutil.ToFloat64(r.metrics.rejectedRequests.WithLabelValues(causeProtobuf)))
			})
		}
	}
}

// TestLabelsOfReplicasDoNotCount: limits are about what is stored.
func TestLabelsOfReplicasDoNotCount(t *testing.T) {
	for _, p := range []Protocol{V1, V2} {
		r := haReceiver(t, &recorder{}, nil, newClock())
		r.limits.MaxLabels = 2
		require.Equal(t, 204, post(r, contentType(p), bodyOf(p, []string{"__name__", "m", "__replica__", "a", "cluster", "x"})).Code)
		require.Equal(t, 400, post(r, contentType(p), bodyOf(p, []string{"__name__", "m", "__replica__", "a", "cluster", "x", "d", "e"})).Code)
	}
}

// TestDroppedSamplesAreNotJudged, but the request that they are in must make sense.
func TestDroppedSamplesAreNotJudged(t *testing.T) {
	soon := message{}.bytes(2, sample(testNow+time.Hour.Milliseconds(), 1))
	badHistogram := func(p Protocol) message {
		if p == V1 {
			return message{}.bytes(4, message{}.varint(1, 7).varint(15, uint64(testNow)))
		}
		return message{}.bytes(3, message{}.varint(1, 7).varint(15, uint64(testNow)))
	}
	for _, p := range []Protocol{V1, V2} {
		app := &knowing{known: nothingAccepted()}
		reg := prometheus.NewPedanticRegistry()
		r := haReceiver(t, app, reg, newClock())
		a, b := []string{"__name__", "m", "__replica__", "a", "cluster", "x"}, []string{"__name__", "m", "__replica__", "b", "cluster", "x"}
		require.Equal(t, 204, post(r, contentType(p), bodyOf(p, a)).Code)
		items := append(slices.Clone(soon), badHistogram(p)...)
		require.Equal(t, 400, post(r, contentType(p), bodyWith(p, items, a)).Code)
		w := post(r, contentType(p), bodyWith(p, items, b))
		require.Equal(t, 204, w.Code, w.Body)
		if p == V2 {
			require.Equal(t, "1", w.Header().Get(headerSamples))
			require.Equal(t, "1", w.Header().Get(headerHistograms))
			require.Equal(t, "0", w.Header().Get(headerExemplars))
		}
		require.Equal(t, 204, post(r, contentType(p), bodyWith(p, nil, b)).Code, "nor is one without samples")
		require.Len(t, app.batches, 1)

		w = post(r, contentType(p), bodyWith(p, message{}.bytes(2, []byte{9}), b))
		require.Equal(t, 400, w.Code)
		require.Contains(t, w.Body.String(), "a field runs past the end of its message")

		require.NoError(t, testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP millrace_ingest_ha_clusters Clusters of which a replica is elected.
# TYPE millrace_ingest_ha_clusters gauge
millrace_ingest_ha_clusters 1
# HELP millrace_ingest_ha_dropped_samples_total Items of replicas that are not elected, which were acknowledged and not stored, by type.
# TYPE millrace_ingest_ha_dropped_samples_total counter
millrace_ingest_ha_dropped_samples_total{type="exemplar"} 0
millrace_ingest_ha_dropped_samples_total{type="float"} 1
millrace_ingest_ha_dropped_samples_total{type="histogram"} 1
# HELP millrace_ingest_ha_elections_total Replicas that were elected: the first of their cluster, or in place of one that failed.
# TYPE millrace_ingest_ha_elections_total counter
millrace_ingest_ha_elections_total{reason="failover"} 0
millrace_ingest_ha_elections_total{reason="first"} 1
`), "millrace_ingest_ha_clusters", "millrace_ingest_ha_dropped_samples_total", "millrace_ingest_ha_elections_total"))
		require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.floats))
	}
}

// TestAFullTableIsSaid: the sender of a cluster for which there is no room learns why, and what else it sent is stored.
func TestAFullTableIsSaid(t *testing.T) {
	app := &recorder{}
	r := haReceiver(t, app, nil, newClock())
	for i := range maxClusters {
		arrive(r.replicas, fmt.Sprint(i), "a", true)
	}
	w := post(r, typeV1, bodyOf(V1, []string{"__name__", "m", "__replica__", "a", "cluster", "new"}, []string{"__name__", "m", "cluster", "new"}))
	require.Equal(t, 400, w.Code)
	require.Contains(t, w.Body.String(), `cluster "new" would be one more than the 10000 that --ingest.ha-cluster-label allows; one is forgotten when nothing has come from it for --ingest.ha-failover=30s`)
	require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.rejectedSeries[reasonClusters]))
	require.Len(t, app.batches[0].Series, 1)
}

// TestOutageOfTheStore: while nothing can be stored, no replica's samples are acknowledged only because another is elected. Each sender repeats what was not
// acknowledged, the oldest first, as Prometheus does, and in the end every scrape is stored or known to one that is still there.
func TestOutageOfTheStore(t *testing.T) {
	for name, dies := range map[string]string{"both live": "", "the elected one dies": "a", "the other one dies": "b"} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			app := &recorder{}
			r := haReceiver(t, app, nil, c)
			backlog := map[string][]int64{}
			stored := map[int64]bool{}
			send := func(replica string, scrape int64) {
				for backlog[replica] = append(backlog[replica], scrape); len(backlog[replica]) > 0; backlog[replica] = backlog[replica][1:] {
					before := len(app.batches)
					if post(r, typeV1, bodyOf(V1, []string{"__name__", "m", "__replica__", replica, "cluster", "x"})).Code != 204 {
						return
					}
					if len(app.batches) > before {
						stored[backlog[replica][0]] = true
					}
				}
			}
			const outage, end, last = 10, 200, 240 // An hour of scrapes.
			first := []string{"a", "b"}
			for scrape := range int64(last) {
				app.err = nil
				if outage <= scrape && scrape < end {
					app.err = &Unavailable{Reason: "no"}
				}
				if scrape == outage {
					slices.Reverse(first) // The one that is not elected meets the outage before the other.
				}
				for _, replica := range first {
					if replica != dies || scrape < outage {
						send(replica, scrape)
					}
				}
				c.forward(15 * time.Second)
			}
			require.Len(t, stored, last)
			elections := r.HAClusters()[0].Elections
			if dies == "a" {
				require.EqualValues(t, 2, elections)
			} else {
				require.EqualValues(t, 1, elections)
			}
		})
	}
}

// TestOutageOfTheStoreForRequestsOfSeveralReplicas: a proxy may put replicas together. A request that brings the elected one's series need not wait for
// them, and two that wait for each other do so no longer than the failover takes.
func TestOutageOfTheStoreForRequestsOfSeveralReplicas(t *testing.T) {
	series := func(replica, cluster string) []string {
		return []string{"__name__", "m", "__replica__", replica, "cluster", cluster}
	}
	for name, requests := range map[string][][][]string{
		"both of a cluster":           {{series("a", "x"), series("b", "x")}},
		"the elected one comes last":  {{series("b", "x"), series("a", "x")}},
		"two that need each other":    {{series("a", "x"), series("b", "y")}, {series("b", "x"), series("a", "y")}},
		"two, in order of preference": {{series("a", "x"), series("a", "y")}, {series("b", "x"), series("b", "y")}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			app := &recorder{}
			r := haReceiver(t, app, nil, c)
			for _, cluster := range []string{"x", "y"} {
				require.Equal(t, 204, post(r, typeV1, bodyOf(V1, series("a", cluster))).Code)
			}
			app.err = &Unavailable{Reason: "no"}
			pending := requests
			for elapsed := time.Duration(0); len(pending) > 0; elapsed += 5 * time.Second {
				require.LessOrEqual(t, elapsed, 5*time.Minute+time.Minute, "they are refused for ever")
				if elapsed >= 5*time.Minute {
					app.err = nil
				}
				pending = slices.DeleteFunc(slices.Clone(pending), func(labels [][]string) bool {
					return post(r, typeV1, bodyOf(V1, labels...)).Code == 204
				})
				require.True(t, app.err == nil || len(pending) == len(requests), "nothing is dropped while nothing can be stored")
				c.forward(5 * time.Second)
			}
			stored := map[string]bool{}
			for _, b := range app.batches[2:] {
				for _, s := range b.Series {
					stored[s] = true
				}
			}
			clusters := map[string]bool{}
			for _, request := range requests {
				for _, labels := range request {
					clusters[labels[len(labels)-1]] = true
				}
			}
			require.Len(t, stored, len(clusters))
		})
	}
}

// TestWhatIsRefusedKeepsNoReplicaElected: a replica of which nothing is accepted must not stay the elected one.
func TestWhatIsRefusedKeepsNoReplicaElected(t *testing.T) {
	c := newClock()
	app := &recorder{}
	r := haReceiver(t, app, nil, c)
	of := func(replica, name string) int {
		return post(r, typeV1, bodyOf(V1, []string{"__name__", name, "__replica__", replica, "cluster", "x"})).Code
	}
	require.Equal(t, 204, of("a", "m"))
	for range 2 {
		c.forward(15 * time.Second)
		require.Equal(t, 400, of("a", "\xff"))
	}
	require.Equal(t, 204, of("b", "m"))
	require.Equal(t, "b", r.HAClusters()[0].Replica)
}

// replicated gives the series of a random request labels of replicas, sometimes only one of the two, and says what is to become of
// them if nothing is refused: x marks those that are dropped.
func (g *generator) replicated(labels [][2]string, elected map[string]string) (out [][2]string, fate string) {
	cluster, replica := fmt.Sprint(g.IntN(3)), fmt.Sprint(g.IntN(3))
	labels = slices.DeleteFunc(labels, func(l [2]string) bool { return l[0] == "c" || l[0] == "r" })
	with := g.IntN(6)
	if with != 0 {
		labels = append(labels, [2]string{"c", cluster})
	}
	if with != 1 {
		labels = append(labels, [2]string{"r", replica})
	}
	if g.IntN(3) > 0 {
		slices.SortFunc(labels, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	}
	if with < 2 {
		return labels, ""
	}
	if elected[cluster] == "" {
		elected[cluster] = replica
	}
	if elected[cluster] != replica {
		return labels, "x"
	}
	return labels, "r"
}

// TestReplicasOfRandomRequests: what is stored is what a plain reading of the rules says, also where series are known, and the log
// gives back the same.
func TestReplicasOfRandomRequests(t *testing.T) {
	for seed := range uint64(300) {
		g := newGenerator(seed)
		elected := map[string]string{}
		v1, v2 := g.v1(), g.v2()
		want1, want2 := *v1, *v2
		want1.Timeseries, want2.Timeseries = nil, nil
		for i := range v1.Timeseries {
			ts := &v1.Timeseries[i]
			pairs, fate := g.replicated(v1Pairs(ts.Labels), elected)
			ts.Labels = nil
			kept := *ts
			for _, p := range pairs {
				ts.Labels = append(ts.Labels, prompb.Label{Name: p[0], Value: p[1]})
				if p[0] != fate {
					kept.Labels = append(kept.Labels, prompb.Label{Name: p[0], Value: p[1]})
				}
			}
			if fate != "x" {
				want1.Timeseries = append(want1.Timeseries, kept)
			}
		}
		checkReplicas(t, V1, marshal(t, v1), marshal(t, &want1))

		clear(elected)
		symbols := writev2.NewSymbolTable()
		for _, s := range v2.Symbols {
			symbols.Symbolize(s) // They keep their places.
		}
		for i := range v2.Timeseries {
			ts := &v2.Timeseries[i]
			old, ok := v2Pairs(ts.LabelsRefs, v2.Symbols)
			require.True(t, ok)
			pairs, fate := g.replicated(old, elected)
			ts.LabelsRefs = nil
			kept := *ts
			for _, p := range pairs {
				refs := []uint32{symbols.Symbolize(p[0]), symbols.Symbolize(p[1])}
				ts.LabelsRefs = append(ts.LabelsRefs, refs...)
				if p[0] != fate {
					kept.LabelsRefs = append(kept.LabelsRefs, refs...)
				}
			}
			if fate != "x" {
				want2.Timeseries = append(want2.Timeseries, kept)
			}
		}
		v2.Symbols, want2.Symbols = symbols.Symbols(), symbols.Symbols()
		checkReplicas(t, V2, marshal(t, v2), marshal(t, &want2))
	}
}

// checkReplicas checks that a request with replicas comes to the same as another without.
func checkReplicas(t *testing.T, p Protocol, body, want []byte) {
	t.Helper()
	with, without := newLive(body, newTestReplicas(newClock().now)), newLive(want, nil)
	with.limits.MaxPast, without.limits.MaxPast = 0, 0
	require.NoError(t, with.decode(p))
	require.NoError(t, without.decode(p))
	require.Equal(t, plainOf(without.b), plainOf(with.b))
	require.Equal(t, without.verdict.messages, with.verdict.messages)
	require.Equal(t, without.b.written, with.b.written)
	require.Equal(t, plainOf(with.b), replayed(t, with.record(p)))
	requireSameAgain(t, p, body, with)

	// A replay may know any series, also one that only a replica has which was dropped.
	all, err := decodeAll(p, want)
	require.NoError(t, err)
	defer all.Release()
	b, err := DecodeRecord(with.record(p), acceptedIn(all))
	require.NoError(t, err)
	defer b.Release()
	require.Equal(t, plainOf(with.b), plainOf(b))
}
