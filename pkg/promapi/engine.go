package promapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/version"
	v1 "github.com/prometheus/prometheus/web/api/v1"

	"github.com/millrace/millrace/pkg/engine"
)

// ForEngine returns the API of an engine. It can be served before the engine is started.
func ForEngine(e *engine.Engine) http.Handler {
	o := Options{
		QueryEngine: e.QueryEngine(),
		Queryable:   e.Queryable(),
		Exemplars:   e.ExemplarQueryable(),
		Features:    e.Features(),
		Ready:       func() error { return ready(e.State()) },
		Refusing:    e.RefusesWrites,
		Loading:     func() string { return loading(e.State()) },
		Await:       e.Await,
		Write:       e.Receiver(),
		Metrics:     promhttp.HandlerFor(e.Gatherer(), promhttp.HandlerOpts{}),
		Metadata:    e.Metadata,
		Head:        func() v1.HeadStats { return head(e.Layers()) },
		Layers:      func() any { return e.Layers() },
		BatchRun: func(ctx context.Context, wait bool) (any, error) {
			return e.RunBatchJob(ctx, wait)
		},
		Build: v1.PrometheusVersion{
			Version: version.Version, Revision: version.GetRevision(), Branch: version.Branch,
			BuildUser: version.BuildUser, BuildDate: version.BuildDate, GoVersion: runtime.Version(),
		},
		Logger: e.Logger(),
	}
	if e.AdminAPI() {
		o.DeleteSeries = e.DeleteSeries
	}
	return New(o)
}

func ready(s engine.State) error {
	switch s.Phase {
	case engine.Ready, engine.Replaying:
		return nil
	case engine.Failed:
		return fmt.Errorf("failed to start, trying again: %w", s.Err)
	}
	return errors.New(string(s.Phase) + ": " + s.Progress)
}

func loading(s engine.State) string {
	if s.Phase != engine.Replaying {
		return ""
	}
	if s.Err != nil {
		return s.Progress + " (" + s.Err.Error() + ")"
	}
	return s.Progress
}

// head sums up what is in memory.
func head(l engine.Layers) v1.HeadStats {
	var h v1.HeadStats
	for _, g := range l.Generations {
		h.NumSeries = max(h.NumSeries, uint64(g.Series))
		if g.MinTime == nil {
			continue
		}
		if h.MinTime == 0 || *g.MinTime < h.MinTime {
			h.MinTime = *g.MinTime
		}
		h.MaxTime = max(h.MaxTime, *g.MaxTime)
	}
	return h
}
