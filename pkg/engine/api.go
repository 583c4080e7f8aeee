package engine

import "net/http"

func (e *Engine) newAPI() (http.Handler, error) {
	mux := http.NewServeMux()
	mux.Handle("/api/v1/write", e.receiver)
	return mux, nil
}
