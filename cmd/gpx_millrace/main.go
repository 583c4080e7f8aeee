// Command gpx_millrace is the plugin's process, with the engine inside. Grafana starts it; its settings come from grafana.ini's section
// [plugin.millrace-metrics-datasource].
package main

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/grafana/grafana-plugin-sdk-go/backend/log"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/pkg/engine"
	"github.com/millrace/millrace/pkg/plugin"
	"github.com/millrace/millrace/pkg/promapi"
	"github.com/millrace/millrace/pkg/serving"
)

func main() {
	if err := plugin.Serve(options(os.Environ())); err != nil {
		log.DefaultLogger.Error("the plugin ended", "err", err)
		os.Exit(1)
	}
}

// orgsKey is the one setting that is the plugin's, not the engine's.
const orgsKey = "GF_PLUGIN_ALLOWED_ORG_IDS"

// options reads the settings. Settings that are wrong make an engine that has failed and says why in the health check: the process goes on.
func options(environ []string) plugin.Options {
	var rest []string
	orgs := "1"
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, orgsKey+"="); ok {
			orgs = v
			continue
		}
		rest = append(rest, kv)
	}
	allowed, err := plugin.ParseOrgs(orgs)
	if err != nil {
		return plugin.Options{Engine: plugin.NoEngine(err), Orgs: plugin.DefaultOrgs()} // somebody has to be told
	}
	var cfg engine.Config
	unknown, err := cfg.ParseEnv(rest)
	for _, key := range slices.DeleteFunc(unknown, fromGrafana) {
		log.DefaultLogger.Warn("a setting in grafana.ini is not known", "setting", strings.ToLower(strings.TrimPrefix(key, "GF_PLUGIN_")))
	}
	if err != nil {
		return plugin.Options{Engine: plugin.NoEngine(err), Orgs: allowed}
	}
	logger := plugin.NewSlog(log.DefaultLogger, plugin.ParseLevel(cfg.LogLevel))
	slog.SetDefault(logger) // libraries write there, and without it to stderr as text
	e, err := engine.New(cfg, prometheus.DefaultRegisterer, prometheus.DefaultGatherer, logger)
	if err != nil {
		return plugin.Options{Engine: plugin.NoEngine(err), Orgs: allowed}
	}
	return plugin.Options{Engine: embedded{e, promapi.ForEngine(e)}, Orgs: allowed, MaxBody: cfg.Ingest.MaxBody}
}

// fromGrafana tells whether a variable is not a setting but something that Grafana says to every plugin, or that the SDK reads.
func fromGrafana(key string) bool {
	name := strings.TrimPrefix(key, "GF_PLUGIN_")
	return name == "VERSION" || name == "PATH" || strings.HasPrefix(name, "APP_") || strings.HasPrefix(name, "PROFILING_")
}

// embedded is the engine as the plugin's handlers see it.
type embedded struct {
	*engine.Engine
	api http.Handler
}

func (e embedded) Start()                { e.Engine.Start(e.api) }
func (e embedded) Handler() http.Handler { return e.api }

func (e embedded) State() plugin.State {
	s := e.Engine.State()
	return plugin.State{Phase: string(s.Phase), Progress: s.Progress, Err: s.Err}
}

func (e embedded) WithLayer(ctx context.Context, name string) (context.Context, error) {
	l, err := serving.ParseLayer(name)
	if err != nil {
		return nil, err
	}
	return serving.WithLayer(ctx, l), nil
}
