package promapi

import (
	"context"
	"errors"
	"math"
	"net/http"
	"net/url"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/route"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/notifications"
	v1 "github.com/prometheus/prometheus/web/api/v1"

	"github.com/millrace/millrace/pkg/engine"
	"github.com/millrace/millrace/pkg/serving"
)

// prefix is below what Prometheus's API is registered.
const prefix = "/api/v1"

// newUpstream makes Prometheus's API, with stubs for everything that a server without scraping, rules and a TSDB does not have. Its
// metrics go to a registry that nobody reads, so that any number of them can be made.
func (a *api) newUpstream() http.Handler {
	build := a.o.Build
	none := none{}
	up := v1.NewAPI(
		a.o.QueryEngine,
		a.o.Queryable,
		nil, // appendable: remote write and OTLP are off below
		a.o.Exemplars,
		func(context.Context) v1.ScrapePoolsRetriever { return none },
		func(context.Context) v1.TargetRetriever { return none },
		func(context.Context) v1.AlertmanagerRetriever { return none },
		func() config.Config { return config.DefaultConfig },
		map[string]string{}, // flags
		v1.GlobalURLOptions{},
		func(f http.HandlerFunc) http.HandlerFunc { return f }, // ready: asked before
		none, "", // TSDB and its folder
		false, // admin API
		false, // search API
		0,     // its limit
		a.o.Logger,
		func(context.Context) v1.RulesRetriever { return none },
		0, 1, 0, // remote read: samples, concurrency, frame
		false, // agent
		a.o.CORSOrigin,
		func() (v1.RuntimeInfo, error) { return v1.RuntimeInfo{}, nil },
		&build,
		func() []notifications.Notification { return nil },
		func() (<-chan notifications.Notification, func(), bool) { return nil, func() {}, false },
		prometheus.NewRegistry(), prometheus.NewRegistry(),
		nil,                 // renderer of statistics
		false,               // remote write
		nil,                 // its messages
		false, false, false, // OTLP
		0, // lookback delta of OTLP
		a.o.Features.TypeAndUnitLabels,
		false, // metadata to the appendable
		errorCode,
		nil, // registry of features
		v1.OpenAPIOptions{IncludePaths: []string{"none"}}, // It is not served.
		a.parser,
		false, 0, // cost of queries, and their timeout for it
	)
	up.ClearCodecs()
	up.InstallCodec(encoder{})
	r := route.New().WithPrefix(prefix)
	up.Register(r)
	return r
}

// lazy is a handler that is made when it is first needed: Prometheus's takes longer than all else that a start needs, and more memory, as it writes a
// description of itself that nobody asks for. What that leaves behind is given back while the first request is answered.
type lazy struct {
	handler func() http.Handler
}

func newLazy(f func() http.Handler) *lazy {
	return &lazy{handler: sync.OnceValue(func() http.Handler {
		h := f()
		go engine.GiveBack()
		return h
	})}
}

func (l *lazy) ServeHTTP(w http.ResponseWriter, r *http.Request) { l.handler().ServeHTTP(w, r) }

// errorCode tells a client to come again where a query may only have come at a bad time. T is a type of Prometheus's without a name outside.
func errorCode[T any](_ T, err error) (code int, override bool) {
	var memory *serving.MemoryError
	if errors.As(err, &memory) && memory.Busy {
		return http.StatusServiceUnavailable, true
	}
	return 0, false
}

// none stands for what we have nothing of.
type none struct{}

var errNone = errors.New("not available in Millrace")

func (none) ScrapePools() []string                       { return nil }
func (none) TargetsActive() map[string][]*scrape.Target  { return nil }
func (none) TargetsDropped() map[string][]*scrape.Target { return nil }
func (none) TargetsDroppedCounts() map[string]int        { return nil }
func (none) Alertmanagers() []*url.URL                   { return nil }
func (none) DroppedAlertmanagers() []*url.URL            { return nil }
func (none) RuleGroups() []*rules.Group                  { return nil }
func (none) AlertingRules() []*rules.AlertingRule        { return nil }
func (none) CleanTombstones() error                      { return errNone }
func (none) Snapshot(string, bool) error                 { return errNone }
func (none) BlockMetas() ([]tsdb.BlockMeta, error)       { return nil, errNone }
func (none) Stats(string, int) (*tsdb.Stats, error)      { return nil, errNone }

func (none) ScrapePoolConfig(string) (*config.ScrapeConfig, error) { return nil, errNone }

func (none) Delete(context.Context, int64, int64, ...*labels.Matcher) error { return errNone }

func (none) WALReplayStatus() (tsdb.WALReplayStatus, error) { return tsdb.WALReplayStatus{}, errNone }

// noExemplars finds none.
type noExemplars struct{}

func (noExemplars) ExemplarQuerier(context.Context) (storage.ExemplarQuerier, error) {
	return noExemplars{}, nil
}

func (noExemplars) Select(int64, int64, ...[]*labels.Matcher) ([]exemplar.QueryResult, error) {
	return []exemplar.QueryResult{}, nil
}

// The range of a question without one.
const (
	minTime = math.MinInt64
	maxTime = math.MaxInt64
)
