package promapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"

	"github.com/prometheus/prometheus/model/metadata"
)

func (*api) healthy(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "Millrace is Healthy.\n")
}

func (a *api) ready(w http.ResponseWriter, _ *http.Request) {
	if a.o.Ready != nil {
		if err := a.o.Ready(); err != nil {
			w.Header().Set("Retry-After", retryAfter)
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
	_, _ = io.WriteString(w, "Millrace is Ready.\n")
	does := "takes writes and answers"
	if a.o.Refusing != nil {
		if err := a.o.Refusing(); err != nil {
			_, _ = fmt.Fprintf(w, "It takes no writes: %s.\n", err)
			does = "answers"
		}
	}
	if a.o.Loading == nil {
		return
	}
	if what := a.o.Loading(); what != "" {
		_, _ = fmt.Fprintf(w, "It %s layer=batch; what else is asked waits for this: %s.\n", does, what)
	}
}

func (a *api) layers(w http.ResponseWriter, _ *http.Request) {
	if a.o.Layers == nil {
		a.respond(w, struct{}{})
		return
	}
	a.respond(w, a.o.Layers())
}

func (a *api) batchRun(w http.ResponseWriter, r *http.Request) {
	wait, err := boolParam(r, "wait", true)
	if err != nil {
		a.fail(w, badData, err)
		return
	}
	if a.o.BatchRun == nil {
		a.fail(w, unavailable, errors.New("there are no batch jobs here"))
		return
	}
	data, err := a.o.BatchRun(r.Context(), wait)
	if err != nil {
		a.failLater(w, err)
		return
	}
	a.respond(w, data)
}

// metadata answers as Prometheus does, from what senders have told of their metrics rather than from scrape targets.
func (a *api) metadata(w http.ResponseWriter, r *http.Request) {
	limit, err := numberParam(r, "limit")
	if err != nil {
		a.fail(w, badData, err)
		return
	}
	// One entry a metric is all there is.
	if _, err := numberParam(r, "limit_per_metric"); err != nil {
		a.fail(w, badData, err)
		return
	}
	known := map[string]metadata.Metadata{}
	if a.o.Metadata != nil {
		known = a.o.Metadata()
	}
	names := make([]string, 0, len(known))
	if metric := r.Form.Get("metric"); metric == "" {
		for name := range known {
			names = append(names, name)
		}
		slices.Sort(names)
	} else if _, ok := known[metric]; ok {
		names = append(names, metric)
	}
	if limit >= 0 && len(names) > limit {
		names = names[:limit]
	}
	out := make(map[string][]metadata.Metadata, len(names))
	for _, name := range names {
		out[name] = []metadata.Metadata{known[name]}
	}
	a.respond(w, out)
}

// numberParam reads an optional number; -1 if there is none.
func numberParam(r *http.Request, name string) (int, error) {
	s := r.Form.Get(name)
	if s == "" {
		return -1, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, fmt.Errorf("%s must be a number", name)
	}
	return n, nil
}
