package ingest

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	remoteapi "github.com/prometheus/client_golang/exp/api/remote"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/stretchr/testify/require"
)

// lenientStore stands behind Prometheus's own handler: it takes what a TSDB with
// an unlimited out-of-order window takes.
type lenientStore struct{}

func (s lenientStore) AppenderV2(context.Context) storage.AppenderV2 { return s }
func (lenientStore) Commit() error                                   { return nil }
func (lenientStore) Rollback() error                                 { return nil }

func (lenientStore) Append(_ storage.SeriesRef, _ labels.Labels, _, _ int64, _ float64, h *histogram.Histogram, fh *histogram.FloatHistogram, o storage.AppendV2Options) (storage.SeriesRef, error) {
	switch {
	case h != nil:
		if err := h.Validate(); err != nil {
			return 0, err
		}
	case fh != nil:
		if err := fh.Validate(); err != nil {
			return 0, err
		}
	}
	return 1, tooLong(o.Exemplars)
}

func (lenientStore) AppendExemplars(_ storage.SeriesRef, _ labels.Labels, exemplars []exemplar.Exemplar) (storage.SeriesRef, error) {
	return 1, tooLong(exemplars)
}

func tooLong(exemplars []exemplar.Exemplar) error {
	var failed []storage.ExemplarError
	for i, e := range exemplars {
		if exemplarLength(e) > exemplar.ExemplarMaxLabelSetLength {
			failed = append(failed, storage.ExemplarError{Index: i, Err: errors.New("too long")})
		}
	}
	if len(failed) > 0 {
		return &storage.AppendPartialError{ExemplarErrors: failed}
	}
	return nil
}

func exemplarLength(e exemplar.Exemplar) (n int) {
	e.Labels.Range(func(l labels.Label) { n += len([]rune(l.Name + l.Value)) })
	return n
}

// TestAnswersEqualPrometheus sends the same requests to Prometheus's handler.
// Status and headers must be the same but for what we do better, which the rows
// say by ours.
func TestAnswersEqualPrometheus(t *testing.T) {
	theirs := remote.NewWriteHandler(slog.New(slog.DiscardHandler), nil, lenientStore{},
		remoteapi.MessageTypes{remoteapi.WriteV1MessageType, remoteapi.WriteV2MessageType}, false, false)
	now := time.Now().UnixMilli()
	float := message{}.bytes(2, sample(now, 1))
	soon := message{}.bytes(2, sample(now+3600_000, 1))
	exemplarOf := func(ref uint64) message {
		return message{}.bytes(4, message{}.bytes(1, appendVarint(appendVarint(nil, 5), ref)).varint(3, uint64(now)))
	}
	hist := func(count uint64) message {
		return message{}.bytes(3, message{}.varint(1, count).varint(15, uint64(now)))
	}
	symbols := append(append([]string(nil), upSymbols...), "trace_id", string(make([]byte, 200)), "abc", "\xff")
	v2 := func(series ...message) []byte { return pack(v2Request(symbols, series...)) }
	v1 := func(series ...message) []byte {
		var m message
		for _, s := range series {
			m = m.bytes(1, s)
		}
		return pack(m)
	}
	for _, c := range []struct {
		name, method, contentType, encoding string
		body                                []byte
		ours                                int // 0: as theirs
	}{
		{name: "v1", contentType: typeV1, body: v1(seriesV1(up, float))},
		{name: "v1, unsorted", contentType: typeV1, body: v1(seriesV1([]string{"b", "1", "__name__", "x"}, float))},
		{name: "v1, no metric name", contentType: typeV1, body: v1(seriesV1([]string{"b", "1"}, float)), ours: 400},
		{name: "v1, future", contentType: typeV1, body: v1(seriesV1(up, soon))},
		{name: "v1, histogram", contentType: typeV1, body: v1(seriesV1(up, message{}.bytes(4, message{}.varint(15, uint64(now)))))},
		{name: "v1, invalid histogram", contentType: typeV1, body: v1(seriesV1(up, message{}.bytes(4, message{}.varint(1, 7).varint(15, uint64(now)))))},
		{name: "v1, empty", contentType: typeV1, body: v1()},
		{name: "v1, malformed", contentType: typeV1, body: pack([]byte{0x0a, 9})},
		{name: "v1, not snappy", contentType: typeV1, body: []byte("hello")},
		{name: "v1, without headers", body: v1(seriesV1(up, float)), encoding: "-"},
		{name: "get", method: http.MethodGet, contentType: typeV1, ours: 405},
		{name: "gzip", contentType: typeV1, encoding: "gzip", body: v1(seriesV1(up, float))},
		{name: "json", contentType: "application/json", body: v1(seriesV1(up, float))},
		{name: "unknown message", contentType: typeV1 + ";proto=a.b", body: v1(seriesV1(up, float))},
		{name: "v2", contentType: typeV2, body: v2(upV2(float), upV2(hist(0)))},
		{name: "v2, empty", contentType: typeV2, body: v2()},
		{name: "v2, partial", contentType: typeV2, body: v2(upV2(append(soon, float...)), upV2(append(hist(3), hist(0)...)))},
		{name: "v2, no metric name", contentType: typeV2, body: v2(append(message{}.bytes(1, []byte{3, 4}), float...), upV2(float))},
		{name: "v2, label not UTF-8", contentType: typeV2, body: v2(append(message{}.bytes(1, []byte{1, 2, 3, 8}), float...), upV2(float))},
		{name: "v2, duplicate label", contentType: typeV2, body: v2(append(message{}.bytes(1, []byte{1, 2, 3, 4, 3, 4}), float...), upV2(float))},
		{name: "v2, series without samples", contentType: typeV2, body: v2(upV2(nil), upV2(float))},
		{name: "v2, exemplars", contentType: typeV2, body: v2(upV2(append(append(append(message{}, float...), exemplarOf(7)...), exemplarOf(6)...)))},
		{name: "v2, malformed", contentType: typeV2, body: pack([]byte{0x2a, 9})},
		{name: "v2, unknown reference", contentType: typeV2, body: v2(append(message{}.bytes(1, []byte{1, 99}), float...))},
	} {
		t.Run(c.name, func(t *testing.T) {
			do := func(h http.Handler) *httptest.ResponseRecorder {
				method := c.method
				if method == "" {
					method = http.MethodPost
				}
				req := httptest.NewRequest(method, "/api/v1/write", bytes.NewReader(c.body))
				if c.contentType != "" {
					req.Header.Set("Content-Type", c.contentType)
				}
				switch c.encoding {
				case "":
					req.Header.Set("Content-Encoding", "snappy")
				case "-":
				default:
					req.Header.Set("Content-Encoding", c.encoding)
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, req)
				return w
			}
			want, got := do(theirs), do(NewReceiver(&recorder{}, DefaultLimits(), nil, nil))
			status := want.Code
			if c.ours != 0 {
				status = c.ours
			}
			require.Equal(t, status, got.Code, "theirs: %s\nours: %s", want.Body, got.Body)
			for _, h := range []string{headerSamples, headerHistograms, headerExemplars} {
				require.Equal(t, want.Header().Get(h), got.Header().Get(h), h)
			}
		})
	}
}
