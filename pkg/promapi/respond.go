package promapi

import (
	"net/http"

	jsoniter "github.com/json-iterator/go"
	v1 "github.com/prometheus/prometheus/web/api/v1"
)

// failure is a status with the name that Prometheus has for its kind.
type failure struct {
	code int
	typ  string
}

var (
	badData          = failure{http.StatusBadRequest, "bad_data"}
	notFound         = failure{http.StatusNotFound, "not_found"}
	methodNotAllowed = failure{http.StatusMethodNotAllowed, "bad_data"}
	tooLargeForm     = failure{http.StatusRequestEntityTooLarge, "bad_data"}
	internalError    = failure{http.StatusInternalServerError, "internal"}
	execution        = failure{http.StatusUnprocessableEntity, "execution"}
	unavailable      = failure{http.StatusServiceUnavailable, "unavailable"}
)

var json = jsoniter.ConfigCompatibleWithStandardLibrary

// fail answers with an error.
func (a *api) fail(w http.ResponseWriter, f failure, err error) {
	a.send(w, f.code, &v1.Response{Status: "error", ErrorType: f.typ, Error: err.Error()})
}

// respond answers with data.
func (a *api) respond(w http.ResponseWriter, data any) {
	a.send(w, http.StatusOK, &v1.Response{Status: "success", Data: data})
}

func (a *api) send(w http.ResponseWriter, code int, resp *v1.Response) {
	body, err := json.Marshal(resp)
	if err != nil {
		a.o.Logger.Error("an answer cannot be encoded", "err", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(body)
}
