package ingest

import (
	"cmp"
	"container/list"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/common/model"
)

// Names of the flags about replicas, as they appear in error texts.
const (
	flagReplicaLabel = "--ingest.ha-replica-label"
	flagClusterLabel = "--ingest.ha-cluster-label"
	flagFailover     = "--ingest.ha-failover"
)

// HA is about Prometheus servers that scrape the same targets so that one may fail. Of a cluster's replicas one is elected; its
// samples are stored, without the label that tells replicas apart, and those of the others are dropped. It is off while
// both labels are empty. A series that does not have both labels is no replica's, and is stored as it is.
type HA struct {
	// ReplicaLabel is the name of the label that tells replicas apart (--ingest.ha-replica-label).
	ReplicaLabel string
	// ClusterLabel is the name of the label that replicas have in common (--ingest.ha-cluster-label).
	ClusterLabel string
	// Failover is how long nothing of the elected replica has come that could be stored when another takes its place (--ingest.ha-failover).
	Failover time.Duration
	// Now is the clock that elections go by; nil is time.Now.
	Now func() time.Time
}

// Validate says which flags do not go together.
func (h HA) Validate() error {
	if h.ReplicaLabel == "" && h.ClusterLabel == "" {
		return nil
	}
	if h.ReplicaLabel == "" || h.ClusterLabel == "" {
		return fmt.Errorf("%s=%q, %s=%q: either both are set or none", flagReplicaLabel, h.ReplicaLabel, flagClusterLabel, h.ClusterLabel)
	}
	if h.ReplicaLabel == h.ClusterLabel {
		return fmt.Errorf("%s and %s are both %q: they must differ", flagReplicaLabel, flagClusterLabel, h.ReplicaLabel)
	}
	for flag, name := range map[string]string{flagReplicaLabel: h.ReplicaLabel, flagClusterLabel: h.ClusterLabel} {
		if name == metricNameLabel || !model.UTF8Validation.IsValidLabelName(name) {
			return fmt.Errorf("%s=%q: must be the name of a label other than %s", flag, name, metricNameLabel)
		}
	}
	if h.Failover <= 0 {
		return fmt.Errorf("%s=%s: must be above 0", flagFailover, durationText(h.Failover))
	}
	return nil
}

// Bounds of what is kept about clusters, whatever senders name.
const (
	maxClusters     = 10_000
	maxReplicaValue = 1 << 10 // value of either label, in bytes
)

// replicas is the table of elected replicas, one for each cluster.
//
// An election is held when a cluster is met for the first time, and when another replica of it comes while nothing of the elected
// one has been stored for the failover time. It is by arrival, and by what was stored: a replica of which everything is
// refused, because its clock is wrong or its requests are damaged, does not stay elected as long as there is another.
//
// While nothing can be stored, because the disk is full for instance, the elected replica stays so as long as it calls, and the others are asked to come
// again as it is: what is dropped is acknowledged, and must be stored from another. Whichever comes when there is room again then has everything. That goes
// by requests, not samples: what the elected replica still has to repeat from before its last stored request is lost with it.
//
// Clusters are ordered by when something of theirs was last stored, or could not be. With maxClusters known, a new one takes the place of the one
// at the end if that is due for an election anyway; so a cluster that is forgotten loses its statistics and nothing else.
// Otherwise the new one is refused: a sender that makes clusters up cannot push out those that are alive.
//
// mu guards all of it; nothing is called under it. A request takes it once for each replica that it holds, as a rule one, and once
// when it is stored.
type replicas struct {
	labels   replicaLabels
	failover time.Duration
	now      func() time.Time
	metrics  replicaMetrics
	logger   *slog.Logger

	mu       sync.Mutex
	clusters map[string]*list.Element // of order
	order    *list.List               // of *election, the one that was stored last first
}

// election is what is known of a cluster.
type election struct {
	cluster, replica string
	since            time.Time // of the election
	stored           time.Time // when something of the elected replica was, or since
	alive            time.Time // stored, or when a request of the elected replica could not be stored and was to come again
	behind           time.Time // when a request came that could not be stored, if none was stored that came later; else zero
	dropped          uint64    // floats and histograms of other replicas
	held             uint64    // elections
}

// verdict is what becomes of a series.
type verdict uint8

const (
	// verdictJudge: no replica's series, or one whose two labels will be refused: it is judged as it is.
	verdictJudge verdict = iota
	// verdictKeep: of the elected replica; its label goes.
	verdictKeep
	// verdictDrop: of another.
	verdictDrop
	// verdictWait: of another, while the elected one's requests cannot be stored. Should that one not live to see its requests stored, this one has to
	// come again with its own.
	verdictWait
	// verdictLong: the value of one of the labels is too long to be kept.
	verdictLong
	// verdictFull: there are too many clusters.
	verdictFull
)

// newReplicas returns nil if the feature is off.
func newReplicas(h HA, reg prometheus.Registerer, logger *slog.Logger) *replicas {
	if h.ReplicaLabel == "" || h.ClusterLabel == "" {
		return nil
	}
	t := &replicas{
		labels: replicaLabels{replica: h.ReplicaLabel, cluster: h.ClusterLabel}, failover: h.Failover, now: h.Now, logger: logger,
		clusters: map[string]*list.Element{}, order: list.New(),
	}
	if t.now == nil {
		t.now = time.Now
	}
	t.metrics = newReplicaMetrics(reg, func() float64 {
		t.mu.Lock()
		defer t.mu.Unlock()
		return float64(t.order.Len())
	})
	return t
}

// elect decides about a replica that comes at the time now. The number is that of the cluster's election, for settle.
func (t *replicas) elect(cluster, replica []byte, now time.Time) (*election, uint64, verdict) {
	t.mu.Lock()
	e, before, v := t.decide(cluster, replica, now)
	if e == nil {
		t.mu.Unlock()
		return nil, 0, v
	}
	held, changed := e.held, v == verdictKeep && before != e.replica
	t.mu.Unlock()
	if changed && before == "" {
		t.metrics.first.Inc()
		t.logger.Debug("A replica was elected", "cluster", e.cluster, "replica", string(replica))
	} else if changed {
		t.metrics.failovers.Inc()
		t.logger.Info("Another replica was elected", "cluster", e.cluster, "replica", string(replica), "before", before)
	}
	return e, held, v
}

// decide also returns who was elected before.
func (t *replicas) decide(cluster, replica []byte, now time.Time) (e *election, before string, v verdict) {
	at := t.clusters[string(cluster)]
	if at == nil {
		if !t.makeRoom(now) {
			return nil, "", verdictFull
		}
		e = &election{cluster: string(cluster)}
		t.clusters[e.cluster] = t.order.PushFront(e)
	} else {
		e, _ = at.Value.(*election)
		if e.replica == string(replica) {
			return e, e.replica, verdictKeep
		}
		if now.Sub(e.alive) < t.failover {
			if !e.behind.IsZero() {
				return e, e.replica, verdictWait
			}
			return e, e.replica, verdictDrop
		}
		t.order.MoveToFront(at)
	}
	before = e.replica
	e.replica, e.since, e.stored, e.alive, e.behind = string(replica), now, now, now, time.Time{}
	e.held++
	return e, before, verdictKeep
}

// makeRoom says whether one more cluster can be kept.
func (t *replicas) makeRoom(now time.Time) bool {
	if t.order.Len() < maxClusters {
		return true
	}
	last := t.order.Back()
	e, _ := last.Value.(*election)
	if now.Sub(e.alive) < t.failover {
		return false
	}
	t.order.Remove(last)
	delete(t.clusters, e.cluster)
	t.metrics.forgotten.Inc()
	return true
}

// settle notes what became of a request's series once it is stored; now is when the request came.
func (t *replicas) settle(uses []replicaUse, now time.Time) {
	if len(uses) == 0 {
		return
	}
	var sum Written
	t.mu.Lock()
	for i := range uses {
		u := &uses[i]
		u.election.dropped += uint64(u.dropped.Samples + u.dropped.Histograms)
		sum.add(u.dropped)
		if u.stored {
			if e := t.heard(u, now); e != nil {
				if !now.Before(e.behind) {
					e.behind = time.Time{}
				}
				if now.After(e.stored) {
					e.stored = now
				}
			}
		}
	}
	t.mu.Unlock()
	add(t.metrics.floats, sum.Samples)
	add(t.metrics.histograms, sum.Histograms)
	add(t.metrics.exemplars, sum.Exemplars)
}

// postpone notes that a request could not be stored and is to come again.
func (t *replicas) postpone(uses []replicaUse, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range uses {
		if u := &uses[i]; u.verdict == verdictKeep {
			if e := t.heard(u, now); e != nil && now.After(e.behind) {
				e.behind = now
			}
		}
	}
}

// heard returns the election of an elected replica that something came of; nil if another has been elected since then, or the cluster forgotten.
func (t *replicas) heard(u *replicaUse, now time.Time) *election {
	e := u.election
	at := t.clusters[e.cluster]
	if u.held != e.held || at == nil || at.Value != any(e) {
		return nil
	}
	if now.After(e.alive) {
		e.alive = now
	}
	t.order.MoveToFront(at)
	return e
}

func (w *Written) add(o Written) {
	w.Samples += o.Samples
	w.Histograms += o.Histograms
	w.Exemplars += o.Exemplars
}

// HACluster says which replica of a cluster is elected. Times are in milliseconds since 1970.
type HACluster struct {
	Cluster    string `json:"cluster"`
	Replica    string `json:"replica"`    // the elected one
	Since      int64  `json:"since"`      // when it was elected
	LastStored int64  `json:"lastStored"` // when something of it was stored, or since
	Elections  uint64 `json:"elections"`
	Dropped    uint64 `json:"droppedSamples"` // floats and histograms of other replicas
}

// maxListedClusters is how many clusters HAClusters returns.
const maxListedClusters = 1000

// HAClusters returns the clusters of which something was stored last, by name; none if Limits.HA is off.
func (r *Receiver) HAClusters() []HACluster {
	out := []HACluster{}
	if r.replicas != nil {
		out = r.replicas.list(out)
	}
	slices.SortFunc(out, func(a, b HACluster) int { return cmp.Compare(a.Cluster, b.Cluster) })
	return out
}

func (t *replicas) list(out []HACluster) []HACluster {
	t.mu.Lock()
	defer t.mu.Unlock()
	for at := t.order.Front(); at != nil && len(out) < maxListedClusters; at = at.Next() {
		e, _ := at.Value.(*election)
		out = append(out, HACluster{
			Cluster: e.cluster, Replica: e.replica, Since: e.since.UnixMilli(), LastStored: e.stored.UnixMilli(),
			Elections: e.held, Dropped: e.dropped,
		})
	}
	return out
}

// replicaMetrics have no label for the cluster: its values are the senders' choice.
type replicaMetrics struct {
	first, failovers, forgotten   prometheus.Counter
	floats, histograms, exemplars prometheus.Counter
}

func newReplicaMetrics(reg prometheus.Registerer, clusters func() float64) replicaMetrics {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_ingest_ha_clusters", Help: "Clusters of which a replica is elected.",
	}, clusters)
	elections := f.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_ingest_ha_elections_total",
		Help: "Replicas that were elected: the first of their cluster, or in place of one that failed.",
	}, []string{"reason"})
	dropped := f.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_ingest_ha_dropped_samples_total",
		Help: "Items of replicas that are not elected, which were acknowledged and not stored, by type.",
	}, []string{"type"})
	return replicaMetrics{
		first: elections.WithLabelValues("first"), failovers: elections.WithLabelValues("failover"),
		forgotten: f.NewCounter(prometheus.CounterOpts{
			Name: "millrace_ingest_ha_forgotten_clusters_total",
			Help: "Clusters that nothing had come from and that were forgotten for others.",
		}),
		floats: dropped.WithLabelValues("float"), histograms: dropped.WithLabelValues("histogram"), exemplars: dropped.WithLabelValues("exemplar"),
	}
}

// electable says whether the values of the two labels may be kept. What the judge refuses is left to it.
func electable(cluster, replica []byte, l *Limits) verdict {
	longest := max(len(cluster), len(replica))
	if longest > bound(l.MaxLabelValue) || !utf8.Valid(cluster) || !utf8.Valid(replica) {
		return verdictJudge
	}
	if longest > maxReplicaValue {
		return verdictLong
	}
	return verdictKeep
}
