package promapi

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/grafana/regexp"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	v1 "github.com/prometheus/prometheus/web/api/v1"

	"github.com/millrace/millrace/pkg/engine"
	"github.com/millrace/millrace/pkg/serving"
)

// Options is what the API serves. QueryEngine and Queryable must be set; what else is nil is answered as empty.
type Options struct {
	QueryEngine promql.QueryEngine
	Queryable   storage.SampleAndChunkQueryable
	Exemplars   storage.ExemplarQueryable
	Features    serving.Features

	// Ready returns nil, or what the engine is still doing; then everything but health, metrics and layers answers 503.
	Ready func() error
	// Refusing returns why a ready engine takes no writes, or nil.
	Refusing func() error
	// Loading returns what a ready engine is still reading, or nothing.
	Loading func() string
	// Await returns when the context's layer can be answered in full, or an error where that takes too long.
	Await func(context.Context) error
	// Write takes remote write requests.
	Write http.Handler
	// Metrics serves /metrics.
	Metrics http.Handler
	// Metadata returns what is known of metric families. The map is not changed by anybody afterwards.
	Metadata func() map[string]metadata.Metadata
	// Head returns the numbers of status/tsdb about what is in memory. Its lists are made from the speed layer's series.
	Head func() v1.HeadStats
	// Layers returns the data of /api/v1/layers.
	Layers func() any
	// BatchRun runs what is due. Without wait it returns at once. Its value is the data of the answer.
	BatchRun func(ctx context.Context, wait bool) (any, error)
	// DeleteSeries deletes series; nil is what Prometheus answers without --web.enable-admin-api.
	DeleteSeries func(context.Context, engine.Deletion) error

	Build v1.PrometheusVersion
	// CORSOrigin says which origins may read answers; nil is all, as in Prometheus.
	CORSOrigin *regexp.Regexp
	// MaxForm bounds the body of a POSTed form in bytes; 0 is 4 MiB.
	MaxForm int64
	Logger  *slog.Logger
}

const defaultMaxForm = 4 << 20

// api answers requests.
type api struct {
	o        Options
	parser   parser.Parser
	upstream http.Handler
	compress func(http.Handler) http.HandlerFunc
	routes   map[string]endpoint
}

// New returns the handler of the whole API.
func New(o Options) http.Handler {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.CORSOrigin == nil {
		o.CORSOrigin = regexp.MustCompile("^(?:.*)$")
	}
	if o.MaxForm <= 0 {
		o.MaxForm = defaultMaxForm
	}
	if o.Exemplars == nil {
		o.Exemplars = noExemplars{}
	}
	a := &api{o: o, parser: o.Features.NewParser(), compress: newCompression()}
	a.upstream = newLazy(a.newUpstream)
	a.routes = a.newRoutes()
	return a
}
