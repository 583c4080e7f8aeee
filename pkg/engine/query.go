package engine

import (
	"fmt"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"

	"github.com/millrace/millrace/pkg/batch"
	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/serving"
)

// openQueries makes the merge and the PromQL engine over it. memory is the process's limit in bytes.
func (e *Engine) openQueries(memory int64) error {
	limit := e.cfg.Query.MemoryLimit
	if limit == 0 {
		limit = memory / 4
	}
	pool := serving.NewMemoryPool(limit)
	pool.LimitFetch(e.cfg.Query.MaxBucketBytes)
	e.cache = block.NewCache(e.cfg.Bucket.CacheBytes, e.reg)
	e.cache.LimitRequests(e.cfg.Bucket.MaxRequests)
	e.indexMetrics = block.NewIndexMetrics(e.reg)
	e.batchMetrics = batch.NewMetrics(e.reg)
	e.queryable = serving.NewQueryable(e.set, serving.Options{
		Horizon: e.horizon, Expired: e.expired, Memory: pool, ExternalLabels: labels.FromMap(e.cfg.Storage.ExternalLabels), LookbackDelta: e.cfg.Query.LookbackDelta,
		StartTimestamps: e.cfg.Storage.StartTimestamps, Refresh: e.syncBucket, Logger: e.logger, Registerer: e.reg,
	})
	var err error
	if e.features, err = serving.ParseFeatures(e.cfg.Query.Features); err != nil {
		return fmt.Errorf("--enable-feature: %w", err)
	}
	o := promql.EngineOpts{
		Logger: e.logger, Reg: e.reg, MaxSamples: e.cfg.Query.MaxSamples, Timeout: e.cfg.Query.Timeout, LookbackDelta: e.cfg.Query.LookbackDelta,
		EnableAtModifier: true, EnableNegativeOffset: true,
	}
	e.features.Apply(&o)
	e.queries = serving.NewEngine(serving.EngineOptions{PromQL: o, MaxConcurrency: e.cfg.Query.MaxConcurrency, Memory: pool, Refresh: e.syncBucket})
	return nil
}
