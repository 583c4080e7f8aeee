package promapi

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/prometheus/model/timestamp"
	v1 "github.com/prometheus/prometheus/web/api/v1"

	"github.com/millrace/millrace/pkg/engine"
	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/tombstone"
)

var errAdminDisabled = errors.New("admin APIs disabled")

// deleteSeries answers as Prometheus does, but for two requests that delete nothing there: a selector without matchers and an end before the
// start are refused. All of a request is deleted or, where a part of it is wrong, nothing.
func (a *api) deleteSeries(w http.ResponseWriter, r *http.Request) {
	if a.o.DeleteSeries == nil {
		a.fail(w, unavailable, errAdminDisabled)
		return
	}
	d, err := a.deletion(r)
	if err != nil {
		a.fail(w, badData, err)
		return
	}
	err = a.o.DeleteSeries(r.Context(), d)
	switch {
	case errors.Is(err, tombstone.ErrMatchers):
		a.fail(w, badData, fmt.Errorf("invalid parameter %q: %w", "match[]", err))
	case errors.Is(err, engine.ErrTooManyTombstones):
		w.Header().Set("Retry-After", "600")
		a.fail(w, unavailable, err)
	case err != nil:
		a.failLater(w, err)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// failLater tells when to come again, where an error says so.
func (a *api) failLater(w http.ResponseWriter, err error) {
	later, ok := errors.AsType[*ingest.Unavailable](err)
	if !ok {
		a.fail(w, internalError, err)
		return
	}
	w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(later.RetryAfter.Seconds()))))
	a.fail(w, unavailable, err)
}

// deletion reads what a request asks to be deleted.
func (a *api) deletion(r *http.Request) (d engine.Deletion, err error) {
	if len(r.Form["match[]"]) == 0 {
		return d, errors.New("no match[] parameter provided")
	}
	if d.MinTime, err = timeParam(r, "start", math.MinInt64); err != nil {
		return d, err
	}
	if d.MaxTime, err = timeParam(r, "end", math.MaxInt64); err != nil {
		return d, err
	}
	if d.MinTime > d.MaxTime {
		return d, fmt.Errorf("invalid parameter %q: end timestamp must not be before start time", "end")
	}
	for _, s := range r.Form["match[]"] {
		matchers, err := a.parser.ParseMetricSelector(s)
		if err == nil && len(matchers) == 0 {
			err = errors.New("it must contain at least one matcher")
		}
		if err != nil {
			return d, fmt.Errorf("invalid parameter %q: %w", "match[]", err)
		}
		d.Selectors = append(d.Selectors, matchers)
	}
	return d, nil
}

// timeParam reads an optional time, in seconds or as in RFC 3339, as Prometheus does: its own ends of time are those of all times.
func timeParam(r *http.Request, name string, missing int64) (int64, error) {
	s := r.Form.Get(name)
	switch s {
	case "":
		return missing, nil
	case firstTime:
		return math.MinInt64, nil
	case lastTime:
		return math.MaxInt64, nil
	}
	if seconds, err := strconv.ParseFloat(s, 64); err == nil {
		ms := math.Round(seconds * 1000)
		if !(math.Abs(ms) < 1<<62) {
			return 0, fmt.Errorf("invalid parameter %q: invalid time value: cannot parse %q to a valid timestamp", name, s)
		}
		return int64(ms), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return timestamp.FromTime(t), nil
	}
	return 0, fmt.Errorf("invalid parameter %q: invalid time value: cannot parse %q to a valid timestamp", name, s)
}

// The texts of what Prometheus takes for the ends of time.
var (
	firstTime = v1.MinTime.Format(time.RFC3339Nano)
	lastTime  = v1.MaxTime.Format(time.RFC3339Nano)
)

// cleanTombstones erases from the bucket what was deleted, as far as that is possible now, and answers when that is done.
func (a *api) cleanTombstones(w http.ResponseWriter, r *http.Request) {
	if a.o.DeleteSeries == nil || a.o.BatchRun == nil {
		a.fail(w, unavailable, errAdminDisabled)
		return
	}
	if _, err := a.o.BatchRun(r.Context(), true); err != nil {
		a.failLater(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
