package plugin

import (
	"context"
	"errors"
	"net/http"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
)

// backendAPI is what a datasource asks: the engine in this process, or a server elsewhere.
type backendAPI interface {
	// evaluate runs one query. Its errors have a status and a source.
	evaluate(ctx context.Context, q query) (answer, error)
	// findExemplars returns the exemplars of every series that q selects.
	findExemplars(ctx context.Context, q query) ([]exemplar.QueryResult, error)
	// ServeHTTP is the HTTP API of the contract. Requests have passed the allow-list, and hold a cleaned path.
	http.Handler
	// health tells what a user of the datasource wants to know. It has the answer to api/v1/layers, when that could be had.
	health(ctx context.Context) (healthReport, error)
	// close frees what the datasource holds.
	close()
}

// embedded asks the engine of this process.
type embedded struct{ engine Engine }

// Most notes on a result that are passed on, as in Prometheus's API.
const maxNotes = 10

func (b embedded) evaluate(ctx context.Context, q query) (answer, error) {
	if err := unready(b.engine.State()); err != nil {
		return answer{}, err
	}
	if q.layer != "" {
		var err error
		if ctx, err = b.engine.WithLayer(ctx, q.layer); err != nil {
			return answer{}, badRequest("%w", err)
		}
	}
	if err := b.await(ctx); err != nil {
		return answer{}, err
	}
	prepared, err := b.prepare(ctx, q)
	if err != nil {
		return answer{}, classify(err, http.StatusBadRequest)
	}
	defer prepared.Close()
	result := prepared.Exec(ctx)
	if result.Err != nil {
		return answer{}, classify(result.Err, http.StatusUnprocessableEntity)
	}
	a, err := newAnswer(result.Value)
	if err != nil {
		return answer{}, err
	}
	a.warnings, a.infos = result.Warnings.AsStrings(q.expr, maxNotes, maxNotes)
	return a, nil
}

// await waits until the layer can be answered in full.
func (b embedded) await(ctx context.Context) error {
	if err := b.engine.Await(ctx); err != nil {
		return newError(http.StatusServiceUnavailable, backend.ErrorSourceDownstream, "%w", err)
	}
	return nil
}

func (b embedded) prepare(ctx context.Context, q query) (promql.Query, error) {
	if q.instant {
		return b.engine.QueryEngine().NewInstantQuery(ctx, b.engine.Queryable(), nil, q.expr, q.end)
	}
	return b.engine.QueryEngine().NewRangeQuery(ctx, b.engine.Queryable(), nil, q.expr, q.start, q.end, q.step)
}

func (b embedded) findExemplars(ctx context.Context, q query) ([]exemplar.QueryResult, error) {
	if err := unready(b.engine.State()); err != nil {
		return nil, err
	}
	if err := b.await(ctx); err != nil {
		return nil, err
	}
	store := b.engine.ExemplarQueryable()
	if store == nil {
		return nil, nil
	}
	expr, err := promParser.ParseExpr(q.expr)
	if err != nil {
		return nil, classify(err, http.StatusBadRequest)
	}
	selectors := parser.ExtractSelectors(expr)
	if len(selectors) == 0 {
		return nil, nil
	}
	querier, err := store.ExemplarQuerier(ctx)
	if err != nil {
		return nil, classify(err, http.StatusInternalServerError)
	}
	found, err := querier.Select(q.start.UnixMilli(), q.end.UnixMilli(), selectors...)
	if err != nil {
		return nil, classify(err, http.StatusUnprocessableEntity)
	}
	return found, nil
}

func (b embedded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.engine.Handler().ServeHTTP(w, r)
}

func (b embedded) health(ctx context.Context) (healthReport, error) {
	s := b.engine.State()
	h := healthReport{Mode: modeEmbedded, Phase: s.Phase, Progress: s.Progress}
	if err := unready(s); err != nil {
		return h, err
	}
	h.problem = s.Err
	layers, err := readLayers(ctx, b)
	if err != nil {
		return h, errors.Join(s.Err, err)
	}
	h.Layers = layers
	return h, nil
}

func (embedded) close() {}
