package plugin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/backend/gtime"
)

// Modes of a datasource.
const (
	modeEmbedded = "embedded"
	modeRemote   = "remote"
)

// settings are the part of a datasource's jsonData that the back end reads. Authentication, TLS and timeouts of remote mode are read by
// the SDK.
type settings struct {
	Mode                  string `json:"mode"`       // embedded or remote; when empty, whether there is a URL decides
	HTTPMethod            string `json:"httpMethod"` // of queries in remote mode
	TimeInterval          string `json:"timeInterval"`
	QueryTimeout          string `json:"queryTimeout"`
	CustomQueryParameters string `json:"customQueryParameters"`

	url    *url.URL   // of the server in remote mode
	params url.Values // of customQueryParameters
}

func parseSettings(ds backend.DataSourceInstanceSettings) (settings, error) {
	var s settings
	if len(ds.JSONData) > 0 {
		if err := json.Unmarshal(ds.JSONData, &s); err != nil {
			return s, fmt.Errorf("read the datasource's settings: %w", err)
		}
	}
	if err := s.checkMode(strings.TrimSpace(ds.URL)); err != nil {
		return s, err
	}
	s.HTTPMethod = strings.ToUpper(strings.TrimSpace(s.HTTPMethod))
	switch s.HTTPMethod {
	case "":
		s.HTTPMethod = http.MethodPost
	case http.MethodGet, http.MethodPost:
	default:
		return s, fmt.Errorf("HTTP method %q: must be GET or POST", s.HTTPMethod)
	}
	for name, v := range map[string]string{"scrape interval": s.TimeInterval, "query timeout": s.QueryTimeout} {
		if v == "" {
			continue
		}
		if d, err := gtime.ParseIntervalStringToTimeDuration(v); err != nil || d <= 0 {
			return s, fmt.Errorf("%s %q: must be a duration such as 15s", name, v)
		}
	}
	var err error
	if s.params, err = url.ParseQuery(s.CustomQueryParameters); err != nil {
		return s, fmt.Errorf("custom query parameters %q: %w", s.CustomQueryParameters, err)
	}
	return s, nil
}

func (s *settings) checkMode(address string) error {
	if s.Mode == "" {
		s.Mode = modeEmbedded
		if address != "" {
			s.Mode = modeRemote
		}
	}
	switch {
	case s.Mode == modeEmbedded:
		return nil
	case s.Mode != modeRemote:
		return fmt.Errorf("mode %q: must be %s or %s", s.Mode, modeEmbedded, modeRemote)
	case address == "":
		return fmt.Errorf("mode is %s, but no URL is set", modeRemote)
	}
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("URL of the server: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf("URL of the server %q: must begin with http:// or https:// and name a host", address)
	}
	u.RawQuery, u.Fragment = "", ""
	s.url = u
	return nil
}

// Orgs are the organisations that may use the plugin.
type Orgs struct {
	all bool
	ids map[int64]bool
}

// DefaultOrgs is organisation 1 alone.
func DefaultOrgs() Orgs { return Orgs{ids: map[int64]bool{1: true}} }

// ParseOrgs reads the setting allowed_org_ids: numbers separated by commas or spaces, or * for all. Empty means organisation 1.
func ParseOrgs(s string) (Orgs, error) {
	fields := strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
	if len(fields) == 0 {
		return DefaultOrgs(), nil
	}
	o := Orgs{ids: map[int64]bool{}}
	for _, f := range fields {
		if f == "*" {
			o.all = true
			continue
		}
		id, err := strconv.ParseInt(f, 10, 64)
		if err != nil || id < 1 {
			return Orgs{}, fmt.Errorf("allowed_org_ids: %q is not the number of an organisation", f)
		}
		o.ids[id] = true
	}
	return o, nil
}

// orgOf is the organisation in which a caller is.
func orgOf(pc backend.PluginContext) int64 {
	return pc.OrgID //nolint:staticcheck // the namespace that is to replace it has no agreed way back to the number that users know
}

// check returns an error that a user can act on when the organisation is not allowed.
func (o Orgs) check(id int64) error {
	if o.all || o.ids[id] {
		return nil
	}
	return newError(http.StatusForbidden, backend.ErrorSourceDownstream,
		"organisation %d may not use this plugin: add it to allowed_org_ids in grafana.ini's section [plugin.%s]", id, ID)
}
