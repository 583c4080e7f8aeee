package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
)

// healthReport is what a health check found, as JSON details for the front end.
type healthReport struct {
	Mode        string  `json:"mode"`
	Phase       string  `json:"phase"`
	Progress    string  `json:"progress,omitempty"`
	Application string  `json:"application,omitempty"` // of a server
	Version     string  `json:"version,omitempty"`
	Layers      *layers `json:"layers,omitempty"` // nil where the server is not a Millrace

	problem error // what is wrong with an engine that works
}

// layers are the parts of the answer to api/v1/layers that a health check sums up. Unknown fields are left alone, so that a
// datasource and a server need not be of one version.
type layers struct {
	Generations []generation `json:"generations"`
	Blocks      []block      `json:"blocks"`
	Watermarks  *watermarks  `json:"watermarks,omitempty"`
	Bucket      *bucket      `json:"bucket,omitempty"`
	Replay      *replay      `json:"replay,omitempty"`
	// Problems are what is wrong with a server that answers, by component.
	Problems map[string]string `json:"problems,omitempty"`
}

// replay is what a start still has to read before it can answer in full.
type replay struct {
	Progress string `json:"progress"`
}

type watermarks struct {
	NewestSample *int64 `json:"newestSample"` // milliseconds; of all layers, null where there is no sample
}

type generation struct {
	State   string `json:"state"`
	Series  int64  `json:"series"`
	Samples int64  `json:"samples"`
	MinTime int64  `json:"minTime"` // milliseconds
	MaxTime int64  `json:"maxTime"`
}

type block struct {
	Level   int    `json:"level"`
	Series  int64  `json:"series"`
	Samples int64  `json:"samples"`
	MinTime int64  `json:"minTime"` // milliseconds
	MaxTime int64  `json:"maxTime"`
	Where   string `json:"where,omitempty"`
}

// bucket that is not reachable, and where there is no error, has not been asked yet.
type bucket struct {
	Reachable bool   `json:"reachable"`
	Error     string `json:"error,omitempty"`
}

// maxLayersBody bounds how much of the answer to api/v1/layers is read, in bytes.
const maxLayersBody = 64 << 20

// readLayers asks an HTTP API for its layers. The answer may stand alone or below "data".
func readLayers(ctx context.Context, api http.Handler) (*layers, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/api/v1/layers", http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("ask for the layers: %w", err)
	}
	rec := newRecorder()
	api.ServeHTTP(rec, r)
	if rec.status != http.StatusOK {
		return nil, remoteError(rec.status, &rec.body)
	}
	if rec.body.Len() > maxLayersBody {
		return nil, newError(http.StatusBadGateway, backend.ErrorSourceDownstream, "read the layers: the answer is larger than %s", sizeText(maxLayersBody))
	}
	var wrapped struct {
		layers
		Data *layers `json:"data"`
	}
	if err := json.Unmarshal(rec.body.Bytes(), &wrapped); err != nil {
		return nil, newError(http.StatusBadGateway, backend.ErrorSourceDownstream, "read the layers: %w", err)
	}
	if wrapped.Data != nil {
		return wrapped.Data, nil
	}
	return &wrapped.layers, nil
}

// newest tells how old the newest sample is. Blocks know only the window that they cover, so a server that tells the sample itself is believed.
func (l *layers) newest(now time.Time) string {
	if w := l.Watermarks; w != nil && w.NewestSample != nil {
		return "newest sample " + ageText(now.Sub(time.UnixMilli(*w.NewestSample)))
	}
	var sample, window int64
	var inMemory bool
	for _, g := range l.Generations {
		if g.Samples > 0 {
			sample, inMemory = max(sample, g.MaxTime), true
		}
	}
	if inMemory {
		return "newest sample " + ageText(now.Sub(time.UnixMilli(sample)))
	}
	for _, b := range l.Blocks {
		window = max(window, b.MaxTime)
	}
	switch {
	case len(l.Blocks) == 0:
		return "no samples yet"
	case now.Before(time.UnixMilli(window)):
		return "newest sample in a block of the current window"
	}
	return "newest sample at least " + ageText(now.Sub(time.UnixMilli(window)))
}

// series is how many series the busiest part holds: parts overlap, so that there are at least so many.
func (l *layers) series() int64 {
	var most int64
	for _, g := range l.Generations {
		most = max(most, g.Series)
	}
	for _, b := range l.Blocks {
		most = max(most, b.Series)
	}
	return most
}

// CheckHealth implements backend.CheckHealthHandler. It says what it found, not only whether that is well.
func (d *datasource) CheckHealth(ctx context.Context, req *backend.CheckHealthRequest) (*backend.CheckHealthResult, error) {
	if err := d.orgs.check(orgOf(req.PluginContext)); err != nil {
		return unhealthy(healthReport{Mode: d.settings.Mode}, err)
	}
	report, err := d.api.health(ctx)
	if err != nil {
		return unhealthy(report, err)
	}
	text := report.summary(time.Now())
	if report.problem != nil {
		return unhealthy(report, fmt.Errorf("%s But: %w", text, report.problem))
	}
	if l := report.Layers; l != nil {
		if l.Bucket != nil && !l.Bucket.Reachable && l.Bucket.Error != "" {
			return unhealthy(report, fmt.Errorf("%s But the bucket cannot be reached: %s", text, l.Bucket.Error))
		}
		if len(l.Problems) > 0 {
			return unhealthy(report, fmt.Errorf("%s But: %s", text, problemsText(l.Problems)))
		}
	}
	return healthResult(backend.HealthStatusOk, text, report)
}

func problemsText(problems map[string]string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(problems)) {
		out = append(out, name+": "+problems[name])
	}
	return strings.Join(out, "; ")
}

func unhealthy(r healthReport, err error) (*backend.CheckHealthResult, error) {
	return healthResult(backend.HealthStatusError, capitalize(err.Error()), r)
}

func healthResult(s backend.HealthStatus, text string, r healthReport) (*backend.CheckHealthResult, error) {
	details, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("write the health report: %w", err)
	}
	return &backend.CheckHealthResult{Status: s, Message: text, JSONDetails: details}, nil
}

// summary is one line for people.
func (r healthReport) summary(now time.Time) string {
	what := "The engine is " + r.Phase
	if r.Mode == modeRemote {
		what = strings.TrimSpace("The server answers: " + strings.TrimSpace(r.Application+" "+r.Version))
	}
	l := r.Layers
	if l == nil {
		return what + ". It is not a Millrace: there are no layers to choose from."
	}
	levels := map[int]int{}
	for _, b := range l.Blocks {
		levels[b.Level]++
	}
	parts := []string{what}
	if l.Replay != nil {
		parts = append(parts, "writes are taken and the batch layer answers, other queries wait for this: "+l.Replay.Progress)
	}
	parts = append(parts, "speed layer: "+countText(len(l.Generations), "generation"), "batch layer: "+blocksText(levels))
	if n := l.series(); n > 0 {
		parts = append(parts, fmt.Sprintf("at least %d series", n))
	}
	parts = append(parts, l.newest(now))
	if l.Bucket != nil && l.Bucket.Reachable {
		parts = append(parts, "bucket reachable")
	}
	return strings.Join(parts, "; ") + "."
}

func blocksText(levels map[int]int) string {
	total := 0
	var parts []string
	for level := range 16 {
		if n := levels[level]; n > 0 {
			total += n
			parts = append(parts, fmt.Sprintf("%d of level %d", n, level))
		}
	}
	if total == 0 {
		return "no blocks"
	}
	return fmt.Sprintf("%s (%s)", countText(total, "block"), strings.Join(parts, ", "))
}

func countText(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func ageText(age time.Duration) string {
	if age < 0 {
		return (-age).Round(time.Second).String() + " ahead of the clock"
	}
	return age.Round(time.Second).String() + " old"
}

func capitalize(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
