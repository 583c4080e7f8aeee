package promapi

import (
	"net/http"

	"github.com/klauspost/compress/gzhttp"
	"github.com/klauspost/compress/gzip"
)

// minCompressed is the size in bytes from which an answer is worth the time: a smaller one fits into a packet as it is.
const minCompressed = 1 << 10

// newCompression wraps handlers to answer in gzip where the client takes it. What makes Prometheus's own handler slow is that it makes a compressor of a
// megabyte for every answer, and a thorough one; these are used again, and fast.
func newCompression() func(http.Handler) http.HandlerFunc {
	wrap, err := gzhttp.NewWrapper(gzhttp.MinSize(minCompressed), gzhttp.CompressionLevel(gzip.BestSpeed), gzhttp.EnableZstd(false))
	if err != nil {
		panic(err) // of the options alone
	}
	return wrap
}

// uncompressed hides from Prometheus's handlers that the client takes compressed answers; whoever calls it compresses them.
func uncompressed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Accept-Encoding")
		w.Header().Del("Vary") // They say it again.
		next.ServeHTTP(w, r)
	})
}
