package ingest

import (
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRecordHeaderRoundTrip(t *testing.T) {
	for _, rejected := range []Rejected{nil, {0}, {1}, {0, 1, 2}, {5, 500, 1 << 20}, {math.MaxUint32}} {
		header := AppendRecordHeader([]byte("x"), V2, rejected)
		require.Equal(t, "x\x01\x02", string(header[:3]))
		d, _ := decoderPool.Get().(*decoder)
		body, err := d.readRejected(append(header[3:], "body"...))
		require.NoError(t, err)
		require.Equal(t, "body", string(body))
		require.ElementsMatch(t, rejected, d.rejected)
	}
}

func TestDecodeRecordErrors(t *testing.T) {
	body := pack(message{}.bytes(1, seriesV1(up, upFloat)))
	record := func(parts ...[]byte) (r []byte) {
		for _, p := range parts {
			r = append(r, p...)
		}
		return r
	}
	for name, c := range map[string]struct {
		rec  []byte
		want error
		text string
	}{
		"empty":                    {nil, ErrCorruptRecord, "0 bytes"},
		"header only":              {[]byte{1, 1}, ErrCorruptRecord, "2 bytes"},
		"floats by reference":      {record([]byte{2, 1, 0}, body), ErrUnknownRecord, "kind 2"},
		"later kind":               {record([]byte{4, 1, 0}, body), ErrUnknownRecord, "kind 4"},
		"no labels of replicas":    {[]byte{3, 1, 0}, ErrCorruptRecord, "names of the labels of replicas"},
		"one label of replicas":    {[]byte{3, 1, 1, 'r'}, ErrCorruptRecord, "names of the labels of replicas"},
		"replicas by cluster":      {record([]byte{3, 1, 1, 'r', 1, 'r', 0}, body), ErrCorruptRecord, "names of the labels of replicas"},
		"a long label of replicas": {[]byte{3, 1, 0xff, 0xff, 0xff, 0xff, 0x0f, 'r', 1, 'c', 0}, ErrCorruptRecord, "names of the labels of replicas"},
		"replicas, refused beyond": {record([]byte{3, 1, 1, 'r', 1, 'c', 1, 2}, body), ErrCorruptRecord, "refuses items that the request does not have"},
		"later protocol":           {record([]byte{1, 3, 0}, body), ErrUnknownRecord, "protocol 3"},
		"no body":                  {[]byte{1, 1, 0}, ErrCorruptRecord, "snappy"},
		"damaged body":             {record([]byte{1, 1, 0}, body[:len(body)-1]), ErrCorruptRecord, "snappy"},
		"body is not protobuf":     {record([]byte{1, 1, 0}, pack([]byte{0})), ErrCorruptRecord, "illegal field number"},
		"more refused than bytes":  {[]byte{1, 1, 200, 1}, ErrCorruptRecord, "number of refused items"},
		"refused list ends early":  {[]byte{1, 1, 2, 1, 0x80}, ErrCorruptRecord, "list of refused items"},
		"refused twice":            {record([]byte{1, 1, 2, 1, 0}, body), ErrCorruptRecord, "list of refused items"},
		"refused beyond 32 bits":   {record([]byte{1, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x1f}, body), ErrCorruptRecord, "list of refused items"},
		"refused item is missing":  {record([]byte{1, 1, 1, 2}, body), ErrCorruptRecord, "refuses items that the request does not have"},
		"refused after its series": {record([]byte{1, 1, 2, 0, 1}, body), ErrCorruptRecord, "refuses items that the request does not have"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := DecodeRecord(c.rec, nil)
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.text)
		})
	}
	require.Len(t, replayed(t, record([]byte{1, 1, 0}, body)).Series, 1)
	require.Len(t, replayed(t, record([]byte{3, 1, 1, 'r', 1, 'c', 0}, body)).Series, 1)
	require.Empty(t, replayed(t, record([]byte{1, 1, 1, 0}, body)).Series)
	require.Empty(t, replayed(t, record([]byte{1, 1, 1, 1}, body)).Series)
}

// TestRecordsOfReplicas: a record says by itself which label goes, and from which series.
func TestRecordsOfReplicas(t *testing.T) {
	for _, p := range []Protocol{V1, V2} {
		body := bodyOf(p, []string{"__name__", "m", "c", "x", "r", "a"}, []string{"__name__", "m", "c", "x", "r", "b"},
			[]string{"__name__", "m", "c", "y", "r", "b"}, []string{"__name__", "m", "c", "z"}, []string{"__name__", "m", "r", "b"})
		labels := func(header []byte) (out []string) {
			b, err := DecodeRecord(append(header, body...), nil)
			require.NoError(t, err)
			defer b.Release()
			for _, s := range b.Series {
				out = append(out, KeyLabels(s.Key).String())
			}
			return out
		}
		require.Equal(t, []string{`{__name__="m", c="x"}`, `{__name__="m", c="y"}`, `{__name__="m", c="z"}`, `{__name__="m", r="b"}`},
			labels(appendReplicasHeader(nil, p, replicaLabels{replica: "r", cluster: "c"}, Rejected{2})))
		require.Equal(t, []string{`{__name__="m", r="a"}`, `{__name__="m", r="b"}`, `{__name__="m", c="z"}`, `{__name__="m", r="b"}`},
			labels(appendReplicasHeader(nil, p, replicaLabels{replica: "c", cluster: "r"}, Rejected{4})))
		require.Len(t, labels(AppendRecordHeader(nil, p, nil)), 5)
	}
}

// TestReplayOfWhatWasUnknown: a replay may know a series that was refused or dropped when it came; it leaves it out all the same.
func TestReplayOfWhatWasUnknown(t *testing.T) {
	v1 := message{}.bytes(1, seriesV1(up, upFloat)).bytes(1, seriesV1([]string{"__name__", "n"}, upFloat))
	v2 := v2Request(append(slices.Clone(upSymbols), "n"), upV2(upFloat), append(message{}.bytes(1, []byte{1, 5}), upFloat...))
	for p, body := range map[Protocol][]byte{V1: pack(v1), V2: pack(v2)} {
		all, err := DecodeRecord(append(AppendRecordHeader(nil, p, nil), body...), nil)
		require.NoError(t, err)
		b, err := DecodeRecord(append(AppendRecordHeader(nil, p, Rejected{0}), body...), acceptedIn(all))
		require.NoError(t, err)
		require.Len(t, b.Series, 1)
		b.Detach()
		require.Equal(t, `{__name__="n"}`, KeyLabels(b.Series[0].Key).String())
		b.Release()
		all.Release()
	}
}

// TestReplayEqualsArrival: for random requests under limits that refuse much, the
// log gives back what was stored, long after limits and clock have changed.
func TestReplayEqualsArrival(t *testing.T) {
	for seed := range uint64(200) {
		g := newGenerator(seed)
		app := &recorder{}
		r := newTestReceiver(t, app, func(l *Limits) {
			l.MaxLabels, l.MaxLabelValue, l.MaxLabelName, l.MaxBuckets = 9, 40, 25, 40
			l.Horizon = func() int64 { return testNow - 1<<39 }
		})
		_, _ = r.Ingest(t.Context(), V1, pack(marshal(t, g.v1())))
		_, _ = r.Ingest(t.Context(), V2, pack(marshal(t, g.v2())))
		for i, rec := range app.records {
			require.Equal(t, app.batches[i], replayed(t, rec))
		}
	}
}

// Whose first symbol is not the empty string is no request of remote write 2.0. Earlier builds have stored such, and their logs are read.
func TestTheFirstSymbolIsEmpty(t *testing.T) {
	body := v2Request([]string{"__name__", "up", "job", "a"}, append(message{}.bytes(1, []byte{0, 1, 2, 3}), upFloat...))
	r := newTestReceiver(t, &recorder{}, nil)
	w := post(r, contentType(V2), pack(body))
	require.Equal(t, 400, w.Code)
	require.Contains(t, w.Body.String(), "the first symbol is not the empty string")
	require.Len(t, replayed(t, append(AppendRecordHeader(nil, V2, nil), pack(body)...)).Series, 1)
}
