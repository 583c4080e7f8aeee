package plugin

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	commonmodel "github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// pathSuggestions is not of the HTTP API: with it the front end asks for the labels that make sense beside the queries of a dashboard.
const pathSuggestions = "suggestions"

type suggestionsRequest struct {
	LabelName    string   `json:"labelName"` // asks for its values; empty asks for names
	Queries      []string `json:"queries"`
	Scopes       []filter `json:"scopes"`
	AdhocFilters []filter `json:"adhocFilters"`
	Start        string   `json:"start"`
	End          string   `json:"end"`
	Limit        int64    `json:"limit"`
}

// serveSuggestions answers with label names or values of the series that the queries' metrics have, within the filters.
func (d *datasource) serveSuggestions(w http.ResponseWriter, r *http.Request, body []byte) {
	var s suggestionsRequest
	if err := json.Unmarshal(body, &s); err != nil {
		writeAPIError(w, http.StatusBadRequest, "bad_data", "read the request: "+err.Error())
		return
	}
	form, err := s.form()
	if err != nil {
		writeAPIError(w, http.StatusBadRequest, "bad_data", err.Error())
		return
	}
	target := "api/v1/labels"
	if s.LabelName != "" {
		var ok bool
		if target, _, ok = findRoute("api/v1/label/" + s.LabelName + "/values"); !ok || target != "api/v1/label/"+s.LabelName+"/values" {
			writeAPIError(w, http.StatusBadRequest, "bad_data", "labelName "+strconv.Quote(s.LabelName)+" is not the name of a label")
			return
		}
	}
	u := url.URL{Path: "/" + target, RawQuery: form.Encode()}
	ask, err := http.NewRequestWithContext(r.Context(), http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		writeAPIError(w, http.StatusBadRequest, "bad_data", err.Error())
		return
	}
	d.api.ServeHTTP(w, ask)
}

func (s suggestionsRequest) form() (url.Values, error) {
	ms, err := matchers(s.Scopes, s.AdhocFilters)
	if err != nil {
		return nil, err
	}
	form := url.Values{}
	metrics := s.metrics()
	for _, m := range metrics {
		form.Add("match[]", selector(append([]string{m}, texts(ms)...)))
	}
	if len(metrics) == 0 && len(ms) > 0 {
		form.Add("match[]", selector(texts(ms)))
	}
	if s.Start != "" {
		form.Set("start", s.Start)
	}
	if s.End != "" {
		form.Set("end", s.End)
	}
	if s.Limit > 0 {
		form.Set("limit", strconv.FormatInt(s.Limit, 10))
	}
	return form, nil
}

func selector(matchers []string) string { return "{" + strings.Join(matchers, ",") + "}" }

func texts(ms []*labels.Matcher) []string {
	out := make([]string, len(ms))
	for i, m := range ms {
		out[i] = m.String()
	}
	return out
}

// metrics are matchers on the names of all metrics in the queries. A query that does not parse, as the user is still writing it, has none.
func (s suggestionsRequest) metrics() []string {
	now := time.Now()
	minute := timing{from: now.Add(-time.Minute), to: now, minStep: "1m", panelInterval: time.Minute}
	var out []string
	for _, q := range s.Queries {
		expr, err := promParser.ParseExpr(minute.interpolate(q, time.Minute))
		if err != nil {
			continue
		}
		for _, sel := range parser.ExtractSelectors(expr) {
			for _, m := range sel {
				if m.Name == commonmodel.MetricNameLabel {
					out = append(out, m.String())
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
