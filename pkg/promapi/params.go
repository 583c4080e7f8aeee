package promapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/millrace/millrace/pkg/serving"
)

// parseForm reads the parameters of the URL and of a form in the body.
func parseForm(r *http.Request) error {
	if strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/form-data") {
		return r.ParseMultipartForm(defaultMaxForm)
	}
	return r.ParseForm()
}

// asGet makes a GET of a request whose form has been read: Prometheus knows some paths by GET alone, and reads some parameters from the URL alone.
func asGet(r *http.Request) *http.Request {
	if r.Method == http.MethodGet {
		return r
	}
	get := r.Clone(r.Context())
	get.Method = http.MethodGet
	get.URL.RawQuery = r.Form.Encode()
	get.Body = http.NoBody
	get.ContentLength = 0
	return get
}

// checkParams refuses parameters that Prometheus's handlers do not know or would be hurt by, and puts the layer into the context.
func (a *api) checkParams(r *http.Request) (context.Context, error) {
	layer, err := serving.ParseLayer(r.Form.Get("layer"))
	if err != nil {
		return nil, fmt.Errorf("invalid parameter %q: %w", "layer", err)
	}
	switch views := r.Form.Get("views"); views {
	case "", "auto", "off":
	case "only":
		return nil, fmt.Errorf("invalid parameter %q: there are no views, so there is nothing that views=only could answer from", "views")
	default:
		return nil, fmt.Errorf("invalid parameter %q: %q must be auto, off or only", "views", views)
	}
	for _, m := range r.Form["match[]"] {
		if err := serving.CheckQuery(m); err != nil {
			return nil, fmt.Errorf("invalid parameter %q: %w", "match[]", err)
		}
	}
	if err := a.checkExpr(r); err != nil {
		return nil, fmt.Errorf("invalid parameter %q: %w", "query", err)
	}
	return serving.WithLayer(r.Context(), layer), nil
}

// checkExpr refuses expressions that cannot be walked or printed safely. The query engine checks those that it evaluates.
func (a *api) checkExpr(r *http.Request) error {
	query := r.Form.Get("query")
	if err := serving.CheckQuery(query); err != nil {
		return err
	}
	switch strings.TrimPrefix(r.URL.Path, prefix) {
	case "/format_query", "/parse_query", "/query_exemplars":
		expr, err := a.parser.ParseExpr(query)
		if err != nil {
			return nil //nolint:nilerr // the handler says what is wrong with it
		}
		return serving.CheckDepth(expr)
	}
	return nil
}

// boolParam reads a parameter that is true or false.
func boolParam(r *http.Request, name string, missing bool) (bool, error) {
	switch r.Form.Get(name) {
	case "":
		return missing, nil
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, fmt.Errorf("invalid parameter %q: %w", name, errors.New("must be true or false"))
}
