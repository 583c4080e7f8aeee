package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/value"
	"github.com/stretchr/testify/require"
)

const (
	typeV1 = "application/x-protobuf"
	typeV2 = "application/x-protobuf;proto=io.prometheus.write.v2.Request"
)

func post(h http.Handler, contentType string, body []byte) *httptest.ResponseRecorder {
	req := httptest.NewRequest(http.MethodPost, "/api/v1/write", bytes.NewReader(body))
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Content-Encoding", "snappy")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

var (
	up      = []string{"__name__", "up", "job", "a"}
	upFloat = message{}.bytes(2, sample(testNow, 1))
)

// v2Request writes a request of version 2.0 whose series are given as messages.
func v2Request(symbols []string, series ...message) []byte {
	var m message
	for _, s := range symbols {
		m = m.str(4, s)
	}
	for _, s := range series {
		m = m.bytes(5, s)
	}
	return m
}

var upSymbols = []string{"", "__name__", "up", "job", "a"}

func upV2(rest message) message { return append(message{}.bytes(1, []byte{1, 2, 3, 4}), rest...) }

func repeat(n int, m message) message { return bytes.Repeat(m, n) }

func TestHostileRequests(t *testing.T) {
	oneSeries := func(pairs []string, rest message) []byte { return message{}.bytes(1, seriesV1(pairs, rest)) }
	many := []string{"__name__", "up"}
	for i := range 40 {
		many = append(many, fmt.Sprintf("l%02d", i), "x")
	}
	hist := func(m message) []byte {
		return oneSeries(up, message{}.bytes(4, m.varint(15, uint64(testNow))))
	}
	span := func(offset int32, length uint32) []byte {
		return message{}.varint(1, uint64(uint32(offset)<<1^uint32(offset>>31))).varint(2, uint64(length))
	}
	future := sample(testNow+601_000, 1)
	for _, c := range []struct {
		name   string
		v2     bool
		body   []byte // packed unless raw is set
		raw    []byte
		status int
		text   string
	}{
		// Compression.
		{"no body at all", false, nil, []byte{}, 400, "corrupt snappy block: no length at its start"},
		{"not snappy", false, nil, []byte("\x05hello, world"), 400, "decompress request: corrupt snappy block"},
		{"snappy stream format", false, nil, []byte("\xff\x06\x00\x00sNaPpY"), 400, "corrupt snappy block"},
		{"body that ends early", false, nil, pack(oneSeries(up, upFloat))[:20], 400, "corrupt snappy block"},
		{"length of 4 GiB", false, nil, []byte("\xff\xff\xff\xff\x0f\x00x"), 413, "decompressed request has 4294967295 bytes, more than --ingest.max-decompressed-size=64KB"},
		{"length beyond 32 bits", false, nil, []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), 400, "corrupt snappy block"},
		{"length that the bytes cannot hold", false, nil, append([]byte("\x80\x80\x02"), 0, 'x'), 400, "it claims 32768 bytes, more than its 5 bytes can hold"},
		{"compressed too large", false, nil, make([]byte, 20<<10), 413, "compressed request has 20480 bytes, more than --ingest.max-body-size=16KB"},
		{"decompressed too large", false, make([]byte, 65<<10), nil, 413, "decompressed request has 66560 bytes, more than --ingest.max-decompressed-size=64KB"},

		// Protobuf.
		{"zeros", false, make([]byte, 10), nil, 400, "write request: illegal field number or wire type"},
		{"end of a group that was not opened", false, []byte{0x0c}, nil, 400, "illegal field number or wire type"},
		{"wire type 7", false, []byte{0x0f}, nil, 400, "illegal field number or wire type"},
		{"field that runs past the end", false, []byte{0x0a, 0x7f, 1}, nil, 400, "a field runs past the end"},
		{"length of 2^63", false, []byte("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), nil, 400, "a field runs past the end"},
		{"endless varint", false, []byte("\x0a" + strings.Repeat("\xff", 20)), nil, 400, "a varint has more than 10 bytes"},
		{"wrong wire type", false, []byte{1 << 3, 1}, nil, 400, "a field has the wrong wire type"},
		{"label of the wrong type", false, message{}.bytes(1, message{}.varint(1, 1)), nil, 400, "timeseries 0: a field has the wrong wire type"},
		{"second series broken", false, append(oneSeries(up, upFloat), 0x0a, 2, 0x12, 0x7f), nil, 400, "timeseries 1: a field runs past the end"},
		{"broken sample", false, oneSeries(up, message{}.bytes(2, []byte{9, 0})), nil, 400, "timeseries 0: sample: a field runs past the end"},
		{"broken label", false, oneSeries(nil, message{}.bytes(1, []byte{0x0a, 9})), nil, 400, "timeseries 0: label: a field runs past the end"},
		{"broken exemplar", false, oneSeries(up, message{}.bytes(3, []byte{0x11})), nil, 400, "timeseries 0: exemplar: a field runs past the end"},
		{"broken metadata", false, message{}.bytes(3, []byte{0x12, 9}), nil, 400, "metadata: a field runs past the end"},
		{"packed deltas of a broken length", false, hist(message{}.bytes(12, []byte{0x80})), nil, 400, "histogram: a field runs past the end"},
		{"packed doubles of a broken length", false, hist(message{}.bytes(13, make([]byte, 7))), nil, 400, "histogram: a field runs past the end"},
		{"groups nested deeply, never closed", false, bytes.Repeat([]byte{0x5b}, 60_000), nil, 400, "a field runs past the end"},
		{"2.0 sent as 1.0", false, v2Request(upSymbols, upV2(message{}.bytes(2, sample(testNow, 1)))), nil, 400, "the body is not of the protobuf message that Content-Type names"},
		{"1.0 sent as 2.0", true, oneSeries(up, upFloat), nil, 400, "the body is not of the protobuf message that Content-Type names"},

		// Symbols.
		{"label reference out of range", true, v2Request(upSymbols, upV2(upFloat), message{}.bytes(1, []byte{1, 5})), nil, 400, "timeseries 1: label reference 1=5 is outside of the symbols table (5 entries)"},
		{"label reference of 2^32-1", true, v2Request(upSymbols, message{}.varint(1, 1<<32-1).varint(1, 0)), nil, 400, "label reference 4294967295=0 is outside"},
		{"no symbols", true, v2Request(nil, upV2(upFloat)), nil, 400, "label reference 1=2 is outside of the symbols table (0 entries)"},
		{"odd number of references", true, v2Request(upSymbols, message{}.bytes(1, []byte{1, 2, 3})), nil, 400, "odd number of label references (3)"},
		{"broken references", true, v2Request(upSymbols, message{}.bytes(1, []byte{1, 0x80})), nil, 400, "label references: a field runs past the end"},
		{"help out of range", true, v2Request(upSymbols, upV2(message{}.bytes(5, message{}.varint(3, 9)))), nil, 400, "metadata's help reference 9 is outside"},
		{"unit out of range", true, v2Request(upSymbols, upV2(message{}.bytes(5, message{}.varint(4, 9)))), nil, 400, "metadata's unit reference 9 is outside"},
		{"exemplar reference out of range", true, v2Request(upSymbols, upV2(message{}.bytes(4, message{}.bytes(1, []byte{9, 9})))), nil, 400, "exemplar: label reference 9=9 is outside"},
		{"a long symbol in many series", true, v2Request([]string{"", "__name__", strings.Repeat("x", 4000)},
			repeat(3, message{}.bytes(1, []byte{1, 2}).bytes(2, sample(testNow, 1))), // a series has it once only
		), nil, 400, "label \"__name__\" appears more than once"},
		{"a symbol bomb", true, append(v2Request([]string{"", "__name__", strings.Repeat("x", 4000)}),
			repeat(1000, message{}.bytes(5, message{}.bytes(1, []byte{1, 2}).bytes(2, sample(testNow, 1))))...), nil, 413, "too large when decoded: more than 8 times --ingest.max-decompressed-size=64KB"},

		// What blows up.
		{"empty samples", false, oneSeries(up, repeat(30_000, message{}.bytes(2, nil))), nil, 413, "too large when decoded"},
		{"empty histograms", false, oneSeries(up, repeat(30_000, message{}.bytes(4, nil))), nil, 413, "too large when decoded"},
		{"empty exemplars", false, oneSeries(up, repeat(30_000, message{}.bytes(3, nil))), nil, 413, "too large when decoded"},
		{"empty metadata", false, repeat(10_000, message{}.bytes(3, message{}.str(2, "x"))), nil, 413, "too large when decoded"},
		{"empty series", false, repeat(30_000, message{}.bytes(1, nil)), nil, 400, "series {}: no labels"},
		{"empty series of 2.0", true, v2Request(upSymbols, repeat(30_000, message{})), nil, 400, "series {}: no labels"},
		{"empty labels", false, oneSeries(nil, repeat(30_000, message{}.bytes(1, nil))), nil, 400, "series {}: no labels"},
		{"packed deltas", false, hist(message{}.bytes(12, make([]byte, 60_000))), nil, 400, "invalid native histogram: 60000 buckets, spans and bounds, more than --ingest.max-histogram-buckets=1000"},

		// Labels.
		{"no labels", false, oneSeries(nil, upFloat), nil, 400, "series {}: no labels"},
		{"only empty labels", false, oneSeries([]string{"__name__", "", "a", ""}, upFloat), nil, 400, "series {}: no labels"},
		{"no metric name", false, oneSeries([]string{"job", "a"}, upFloat), nil, 400, `series {job="a"}: no metric name (label __name__)`},
		{"no metric name in 2.0", true, v2Request(upSymbols, append(message{}.bytes(1, []byte{3, 4}), upFloat...)), nil, 400, `series {job="a"}: no metric name (label __name__)`},
		{"metric name is not UTF-8", false, oneSeries([]string{"__name__", "a\xff"}, upFloat), nil, 400, `metric name "a\xff" is not valid UTF-8`},
		{"label name is not UTF-8", false, oneSeries([]string{"__name__", "up", "a\xff", "x"}, upFloat), nil, 400, `label name "a\xff" is not valid UTF-8`},
		{"label value is not UTF-8", false, oneSeries([]string{"__name__", "up", "a", "\xc3("}, upFloat), nil, 400, `value of label "a" is not valid UTF-8`},
		{"symbol is not UTF-8", true, v2Request([]string{"", "__name__", "up", "job", "\xff"}, upV2(upFloat)), nil, 400, `value of label "job" is not valid UTF-8`},
		{"label without a name", false, oneSeries([]string{"__name__", "up", "", "x"}, upFloat), nil, 400, "a label has no name"},
		{"duplicate label", false, oneSeries([]string{"__name__", "up", "job", "a", "job", "a"}, upFloat), nil, 400, `series up{job="a", job="a"}: label "job" appears more than once`},
		{"too many labels", false, oneSeries(many, upFloat), nil, 400, "41 labels, more than --ingest.max-labels=30"},
		{"label name too long", false, oneSeries([]string{"__name__", "up", strings.Repeat("n", 201), "x"}, upFloat), nil, 400, "has 201 bytes, more than --ingest.max-label-name-length=200"},
		{"label value too long", false, oneSeries([]string{"__name__", "up", "a", strings.Repeat("v", 4097)}, upFloat), nil, 400, `value of label "a" has 4097 bytes, more than --ingest.max-label-value-length=4096`},
		{"metric name too long", false, oneSeries([]string{"__name__", strings.Repeat("v", 4097)}, upFloat), nil, 400, `value of label "__name__" has 4097 bytes, more than --ingest.max-label-value-length=4096`},
		{"nothing in a series of 2.0", true, v2Request(upSymbols, upV2(nil)), nil, 400, `series up{job="a"}: neither samples nor histograms`},

		// Timestamps.
		{"future", false, oneSeries(up, message{}.bytes(2, future)), nil, 400, `series up{job="a"}, timestamp 1700000601000: timestamp is 10m1s in the future, more than --ingest.max-future=10m`},
		{"future in 2.0", true, v2Request(upSymbols, upV2(message{}.bytes(2, future))), nil, 400, "more than --ingest.max-future=10m"},
		{"far future", false, oneSeries(up, message{}.bytes(2, sample(testNow*100, 1))), nil, 400, "timestamp is 1947916d in the future"},
		{"past", false, oneSeries(up, message{}.bytes(2, sample(testNow-31*86400_000, 1))), nil, 400, "timestamp is 31d in the past, more than --ingest.max-past=30d"},
		{"beyond retention", false, oneSeries(up, message{}.bytes(2, sample(testNow-21*86400_000, 1))), nil, 400, "timestamp is older than what retention keeps, which begins at 1698272000000"},
		{"nanoseconds", false, oneSeries(up, message{}.bytes(2, sample(testNow*1e6, 1))), nil, 400, "it must be in milliseconds"},
		{"least timestamp", false, oneSeries(up, message{}.bytes(2, sample(math.MinInt64, 1))), nil, 400, "not between the years 1 and 9999"},
		{"histogram in the future", false, oneSeries(up, message{}.bytes(4, message{}.varint(15, uint64(testNow+601_000)))), nil, 400, "10m1s in the future"},

		// Histograms.
		{"spans that claim 2^32-1 buckets", false, hist(message{}.bytes(11, span(0, 1<<32-1))), nil, 400, "leaves the range of bucket indexes"},
		{"spans that claim 2^31-1 buckets", false, hist(message{}.bytes(11, span(0, 1<<31-1)).bytes(12, []byte{0})), nil, 400, "positive side: spans need 2147483647 buckets, have 1 buckets"},
		{"reduced spans that claim 2^31-1 buckets", false, hist(message{}.varint(4, 18).bytes(11, span(0, 1<<31-1))), nil, 400, "spans need 2147483647 buckets, have 0"},
		{"span that leaves 32 bits", false, hist(message{}.bytes(11, span(math.MaxInt32, 1)).bytes(12, []byte{0})), nil, 400, "a span with offset 2147483647 and length 1 leaves the range"},
		{"negative offset of a second span", false, hist(message{}.bytes(11, span(5, 1)).bytes(11, span(-3, 1)).bytes(12, []byte{2, 2}).varint(1, 3)), nil, 400, "span number 2 with offset -3: histogram has a span whose offset is negative"},
		{"more spans than allowed", false, hist(repeat(1001, message{}.bytes(8, nil))), nil, 400, "1001 buckets, spans and bounds, more than --ingest.max-histogram-buckets=1000"},
		{"negative bucket", false, hist(message{}.bytes(11, span(0, 1)).bytes(12, []byte{1})), nil, 400, "has a bucket whose observation count is negative"},
		{"count mismatch", false, hist(message{}.varint(1, 7)), nil, 400, "0 observations found in buckets, but the Count field is 7"},
		{"unknown schema", false, hist(message{}.varint(4, 199)), nil, 400, "histogram has an invalid schema"},
		{"custom buckets without bounds", false, hist(message{}.varint(4, 105).bytes(11, span(3, 2)).bytes(12, []byte{0, 0})), nil, 400, "only 0 custom bounds defined"},
		{"custom bounds out of order", false, hist(message{}.varint(4, 105).bytes(16, message{}.double(1, 2)[1:]).bytes(16, message{}.double(1, 1)[1:])), nil, 400, "must be in strictly increasing order"},
		{"custom bounds in an exponential histogram", false, hist(message{}.double(16, 1)), nil, 400, "must not have custom bounds"},
		{"negative float count", false, hist(message{}.double(2, -1)), nil, 400, "observation count is negative"},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := &recorder{}
			r := newTestReceiver(t, app, func(l *Limits) {
				l.MaxBody, l.MaxDecompressed = 16<<10, 64<<10
				l.MaxLabels, l.MaxLabelName, l.MaxBuckets = 30, 200, 1000
				l.MaxPast = 30 * 24 * time.Hour
				l.Horizon = func() int64 {
					if c.name == "past" {
						return math.MinInt64
					}
					return testNow - 20*86400_000
				}
			})
			ct, body := typeV1, c.raw
			if c.v2 {
				ct = typeV2
			}
			if body == nil {
				body = pack(c.body)
			}
			w := post(r, ct, body)
			require.Equal(t, c.status, w.Code, w.Body.String())
			require.Contains(t, w.Body.String(), c.text)
			require.Less(t, w.Body.Len(), 10_000)
			require.Empty(t, app.batches, "nothing may be stored")
			if c.v2 {
				require.Equal(t, "0", w.Header().Get(headerSamples))
			}
			// The receiver goes on.
			w = post(r, typeV1, pack(oneSeries(up, upFloat)))
			require.Equal(t, http.StatusNoContent, w.Code, w.Body.String())
			require.Len(t, app.batches, 1)
			require.Zero(t, r.inflight.Load())
		})
	}
}

func TestNegotiation(t *testing.T) {
	v1 := pack(message{}.bytes(1, seriesV1(up, upFloat)))
	v2 := pack(v2Request(upSymbols, upV2(upFloat)))
	for _, c := range []struct {
		method, contentType, encoding string
		body                          []byte
		status                        int
		text                          string
	}{
		{"POST", "application/x-protobuf", "snappy", v1, 204, ""},
		{"POST", "", "", v1, 204, ""},
		{"POST", "application/x-protobuf", "Snappy", v1, 204, ""},
		{"POST", "application/x-protobuf;proto=prometheus.WriteRequest", "snappy", v1, 204, ""},
		{"POST", "application/x-protobuf; proto=prometheus.WriteRequest; charset=utf-8", "snappy", v1, 204, ""},
		{"POST", `Application/X-Protobuf; proto="io.prometheus.write.v2.Request"`, "snappy", v2, 204, ""},
		{"POST", typeV2, "", v2, 204, ""},
		{"GET", typeV1, "snappy", nil, 405, "method GET is not allowed; remote write uses POST"},
		{"PUT", typeV1, "snappy", v1, 405, "method PUT is not allowed"},
		{"POST", "application/json", "", v1, 415, `content type "application/json" is not supported`},
		{"POST", "application/x-www-form-urlencoded", "", v1, 415, "is not supported"},
		{"POST", "application/x-protobuf;proto", "snappy", v1, 415, "is not supported"},
		{"POST", "application/x-protobuf;proto=io.prometheus.write.v3.Request", "snappy", v1, 415, `protobuf message "io.prometheus.write.v3.Request" is not supported; prometheus.WriteRequest and io.prometheus.write.v2.Request are`},
		{"POST", typeV1, "gzip", v1, 415, `content encoding "gzip" is not supported; only snappy is`},
		{"POST", typeV2, "zstd", v2, 415, `content encoding "zstd" is not supported`},
	} {
		t.Run(c.method+" "+c.contentType+" "+c.encoding, func(t *testing.T) {
			app := &recorder{}
			r := newTestReceiver(t, app, nil)
			req := httptest.NewRequest(c.method, "/", bytes.NewReader(c.body))
			if c.contentType != "" {
				req.Header.Set("Content-Type", c.contentType)
			}
			if c.encoding != "" {
				req.Header.Set("Content-Encoding", c.encoding)
			}
			w := httptest.NewRecorder()
			r.ServeHTTP(w, req)
			require.Equal(t, c.status, w.Code, w.Body.String())
			require.Contains(t, w.Body.String(), c.text)
			require.Equal(t, c.status == 204, len(app.batches) == 1)
			require.Equal(t, c.status == 405, w.Header().Get("Allow") == "POST")
		})
	}
}

func replayed(t testing.TB, rec []byte) plain {
	t.Helper()
	b, err := DecodeRecord(rec, nil)
	require.NoError(t, err)
	defer b.Release()
	return plainOf(b)
}

// TestErrorTextIsBounded: a request full of errors gets a short answer.
func TestErrorTextIsBounded(t *testing.T) {
	var req message
	for range 5000 {
		req = req.bytes(1, seriesV1([]string{"a" + strings.Repeat("b", 500), strings.Repeat("\xff", 500)}, upFloat))
	}
	w := post(newTestReceiver(t, &recorder{}, nil), typeV1, pack(req))
	require.Equal(t, 400, w.Code)
	require.Contains(t, w.Body.String(), "and 4990 more")
	require.Less(t, w.Body.Len(), 10_000)
	require.True(t, validUTF8(w.Body.String()))
}

func TestWellFormedRequestsThatHoldNothing(t *testing.T) {
	for name, c := range map[string]struct {
		ct   string
		body []byte
	}{
		"empty v1":             {typeV1, nil},
		"empty v2":             {typeV2, nil},
		"symbols only":         {typeV2, v2Request(upSymbols)},
		"series without items": {typeV1, message{}.bytes(1, seriesV1(up, nil))},
		"unknown fields":       {typeV1, message{}.varint(2, 1)},
	} {
		t.Run(name, func(t *testing.T) {
			app := &recorder{}
			w := post(newTestReceiver(t, app, nil), c.ct, pack(c.body))
			require.Equal(t, 204, w.Code, w.Body.String())
			require.Empty(t, app.batches)
		})
	}
	t.Run("metadata only", func(t *testing.T) {
		app := &recorder{}
		r := newTestReceiver(t, app, nil)
		require.Equal(t, 204, post(r, typeV1, pack(message{}.bytes(3, message{}.str(2, "m")))).Code)
		require.Equal(t, 204, post(r, typeV2, pack(v2Request(upSymbols, upV2(message{}.bytes(5, message{}.varint(1, 2)))))).Code)
		require.Equal(t, []string{`{"m" "unknown" "" ""}`}, app.batches[0].Metadata)
		require.Equal(t, []string{`{"up" "gauge" "" ""}`}, app.batches[1].Metadata)
	})
}

func TestStaleMarkerKeepsItsBits(t *testing.T) {
	app := &recorder{}
	r := newTestReceiver(t, app, nil)
	stale := math.Float64frombits(value.StaleNaN)
	w := post(r, typeV1, pack(message{}.bytes(1, seriesV1(up, message{}.bytes(2, sample(testNow, stale))))))
	require.Equal(t, 204, w.Code)
	require.Contains(t, app.batches[0].Series[0], fmt.Sprintf("%x", value.StaleNaN))
}

func TestAppenderErrors(t *testing.T) {
	body := pack(v2Request(upSymbols, upV2(upFloat)))
	for name, c := range map[string]struct {
		err        error
		status     int
		retryAfter string
	}{
		"overloaded":    {&Unavailable{Status: 503, RetryAfter: 1500 * time.Millisecond, Reason: "disk is full"}, 503, "2"},
		"too many":      {fmt.Errorf("append: %w", &Unavailable{Status: 429, Reason: "slow down"}), 429, "1"},
		"without more":  {&Unavailable{Reason: "starting"}, 503, "1"},
		"anything else": {errors.New("write log: input/output error"), 500, ""},
		"cancelled":     {context.Canceled, 503, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newTestReceiver(t, &recorder{err: c.err}, nil)
			w := post(r, typeV2, body)
			require.Equal(t, c.status, w.Code)
			require.Equal(t, c.retryAfter, w.Header().Get("Retry-After"))
			require.Contains(t, w.Body.String(), c.err.Error())
			require.Equal(t, "0", w.Header().Get(headerSamples))
			require.Zero(t, testutil.ToFloat64(r.metrics.floats))
		})
	}
}

func TestIngestWithoutHTTP(t *testing.T) {
	app := &recorder{}
	r := newTestReceiver(t, app, nil)
	w, err := r.Ingest(t.Context(), V2, pack(v2Request(upSymbols, upV2(upFloat))))
	require.NoError(t, err)
	require.Equal(t, Written{Samples: 1}, w)

	_, err = r.Ingest(t.Context(), 3, nil)
	require.Equal(t, 415, StatusOf(err))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.Ingest(ctx, V2, pack(v2Request(upSymbols, upV2(upFloat))))
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 503, StatusOf(err))
	require.Len(t, app.batches, 1)
}

// TestClientGoesAway: of a body that is announced but does not arrive, nothing is
// stored, whatever stands in the part that did.
func TestClientGoesAway(t *testing.T) {
	app := &recorder{}
	r := newTestReceiver(t, app, nil)
	done := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		defer close(done)
		r.ServeHTTP(w, req)
	}))
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	require.NoError(t, err)
	body := pack(message{}.bytes(1, seriesV1(up, upFloat)))
	_, err = fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body)+1, body)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	<-done
	require.Empty(t, app.batches)
	require.Equal(t, 1.0, testutil.ToFloat64(r.metrics.rejectedRequests.WithLabelValues(causeIncomplete)))
}

// endless is a body without an end, to see how much of it is read.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) { e.read += len(p); return len(p), nil }

func TestBodyIsNotReadBeyondTheLimit(t *testing.T) {
	r := newTestReceiver(t, &recorder{}, func(l *Limits) { l.MaxBody = 1 << 20 })
	for _, announced := range []int64{-1, 1 << 40} {
		body := &endless{}
		req := httptest.NewRequest(http.MethodPost, "/", io.NopCloser(body))
		req.ContentLength = announced
		w := httptest.NewRecorder()
		r.ServeHTTP(w, req)
		require.Equal(t, 413, w.Code)
		require.Contains(t, w.Body.String(), "--ingest.max-body-size=1MB")
		require.Less(t, body.read, 4<<20)
	}
}

// blocked is an Appender that waits.
type blocked struct{ entered, leave chan struct{} }

func (*blocked) Known() Known { return nil }

func (b *blocked) Append(context.Context, []byte, []byte, *Batch) error {
	b.entered <- struct{}{}
	<-b.leave
	return nil
}

func TestInflightLimit(t *testing.T) {
	app := &blocked{make(chan struct{}), make(chan struct{})}
	r := newTestReceiver(t, app, func(l *Limits) { l.MaxInflight = 100 })
	body := pack(message{}.bytes(1, seriesV1(up, upFloat)))
	first := make(chan error)
	go func() {
		_, err := r.Ingest(context.Background(), V1, body)
		first <- err
	}()
	<-app.entered // alone, it may be larger than the limit
	_, err := r.Ingest(t.Context(), V1, body)
	var u *Unavailable
	require.ErrorAs(t, err, &u)
	require.Contains(t, u.Reason, "--ingest.max-inflight-size=100B")
	require.Equal(t, 503, StatusOf(err))
	close(app.leave)
	require.NoError(t, <-first)
	require.Zero(t, r.inflight.Load())
}

// What has arrived of a body counts, however slowly the rest comes.
func TestInflightLimitCountsBodiesAsTheyCome(t *testing.T) {
	r := newTestReceiver(t, &recorder{}, func(l *Limits) { l.MaxInflight = 1000 })
	slow, feed := io.Pipe()
	answered := make(chan int)
	go func() {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/api/v1/write", slow))
		answered <- w.Code
	}()
	_, err := feed.Write(make([]byte, 990))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return r.inflight.Load() == 990 }, 10*time.Second, time.Millisecond)
	w := post(r, typeV1, pack(message{}.bytes(1, seriesV1(up, upFloat))))
	require.Equal(t, 503, w.Code)
	require.Equal(t, "1", w.Header().Get("Retry-After"))
	require.NoError(t, feed.Close())
	require.Equal(t, 400, <-answered)
	require.Zero(t, r.inflight.Load())
	require.Equal(t, 204, post(r, typeV1, pack(message{}.bytes(1, seriesV1(up, upFloat)))).Code)
}

// A request whose decoded form is much larger than it is borrows the difference, and comes again if others need that.
func TestInflightLimitCountsWhatIsDecoded(t *testing.T) {
	var req message
	for range 40_000 { // 30 bytes each, of which almost 5 times as much is made
		req = req.bytes(1, seriesV1([]string{"__name__", "m"}, upFloat))
	}
	dense := pack(req)
	app := &blocked{make(chan struct{}, 2), make(chan struct{})}
	r := newTestReceiver(t, app, func(l *Limits) { l.MaxInflight = 4 << 20 })
	first := make(chan error)
	go func() {
		_, err := r.Ingest(context.Background(), V1, pack(message{}.bytes(1, seriesV1(up, upFloat))))
		first <- err
	}()
	<-app.entered
	_, err := r.Ingest(t.Context(), V1, dense)
	require.Equal(t, 503, StatusOf(err))
	require.ErrorContains(t, err, "--ingest.max-inflight-size=4MB")
	close(app.leave)
	require.NoError(t, <-first)
	_, err = r.Ingest(t.Context(), V1, dense)
	require.NoError(t, err, "alone it is handled")
	require.Zero(t, r.inflight.Load())
}
