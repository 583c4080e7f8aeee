package ingest

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
)

// TestDecodeEqualsReference: whatever valid request comes, in whatever order of
// fields, the batch says the same as Prometheus's generated code.
func TestDecodeEqualsReference(t *testing.T) {
	for seed := range uint64(400) {
		g := newGenerator(seed)
		v1, v2 := marshal(t, g.v1()), marshal(t, g.v2())
		checkV1(t, v1)
		checkV2(t, v2)
		checkV1(t, shuffle(g.Rand, v1, 1))
		checkV2(t, shuffle(g.Rand, v2, 5))
	}
}

func checkV1(t *testing.T, body []byte) {
	t.Helper()
	var req prompb.WriteRequest
	require.NoError(t, req.Unmarshal(body))
	want, ok := referenceV1(&req)
	require.True(t, ok)
	b, err := decodeAll(V1, body)
	require.NoError(t, err)
	defer b.Release()
	require.Equal(t, want, plainOf(b))
}

func checkV2(t *testing.T, body []byte) {
	t.Helper()
	var req writev2.Request
	require.NoError(t, req.Unmarshal(body))
	want, ok := referenceV2(&req)
	require.True(t, ok)
	b, err := decodeAll(V2, body)
	require.NoError(t, err)
	defer b.Release()
	require.Equal(t, want.Series, plainOf(b).Series)
}

// shuffle moves the fields of a message and of the messages in field deep, and
// throws unknown fields in.
func shuffle(r *rand.Rand, body []byte, deep protowire.Number) []byte {
	var fields [][]byte
	for len(body) > 0 {
		num, typ, n := protowire.ConsumeTag(body)
		size := n + protowire.ConsumeFieldValue(num, typ, body[n:])
		field := body[:size:size]
		if num == deep {
			inner, _ := protowire.ConsumeBytes(field[n:])
			field = message{}.bytes(num, shuffle(r, inner, 0))
		}
		fields = append(fields, field)
		body = body[size:]
	}
	fields = append(fields, message{}.varint(100, 7), message{}.str(1000, "x"),
		protowire.AppendTag(protowire.AppendTag(nil, 77, protowire.StartGroupType), 77, protowire.EndGroupType))
	r.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
	var out []byte
	for _, f := range fields {
		out = append(out, f...)
	}
	return out
}

func TestKeyRoundTrip(t *testing.T) {
	for seed := range uint64(50) {
		ls := referenceLabels(newGenerator(seed).labels())
		key := LabelsKey(nil, ls)
		require.Equal(t, ls.String(), KeyLabels(key).String())
		n := 0
		for name, value := range KeyPairs(key) {
			require.Equal(t, ls.Get(string(name)), string(value))
			n++
		}
		require.Equal(t, ls.Len(), n)
	}
	require.True(t, KeyLabels(nil).IsEmpty())
	require.True(t, KeyLabels([]byte{tagLabel, 200}).IsEmpty())
}

// TestKey: the key of a label set is the same however it was written, and is the
// request's own bytes where these are canonical.
func TestKey(t *testing.T) {
	want := LabelsKey(nil, labels.FromStrings("__name__", "up", "a", "1", "b", "2"))
	float := message{}.bytes(2, sample(testNow, 1))
	long := func(field []byte) []byte { // length as an overlong varint
		return append([]byte{field[0], field[1] | 0x80, 0}, field[2:]...)
	}
	one := message{}.bytes(1, label("__name__", "up"))
	two := message{}.bytes(1, label("a", "1"))
	three := message{}.bytes(1, label("b", "2"))
	join := func(parts ...[]byte) (m message) {
		for _, p := range parts {
			m = append(m, p...)
		}
		return m
	}
	for name, c := range map[string]struct {
		series message
		alias  bool
	}{
		"canonical":              {join(one, two, three, float), true},
		"labels last":            {join(float, one, two, three), true},
		"unsorted":               {join(one, three, two, float), false},
		"apart":                  {join(one, two, float, three), false},
		"overlong length":        {join(one, long(two), three, float), false},
		"overlong inner length":  {join(one, message{}.bytes(1, append(long(message{}.str(1, "a")), message{}.str(2, "1")...)), three, float), false},
		"overlong tag":           {join(one, append([]byte{tagLabel | 0x80, 0}, two[1:]...), three, float), false},
		"value before name":      {join(one, message{}.bytes(1, message{}.str(2, "1").str(1, "a")), three, float), false},
		"empty value":            {join(one, two, message{}.bytes(1, label("aa", "")), three, float), false},
		"no value field":         {join(one, two, message{}.bytes(1, message{}.str(1, "aa")), three, float), false},
		"name twice":             {join(one, message{}.bytes(1, message{}.str(1, "x").str(1, "a").str(2, "1")), three, float), false},
		"unknown field in label": {join(one, message{}.bytes(1, append(label("a", "1"), message{}.varint(9, 1)...)), three, float), false},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := decodeAll(V1, message{}.bytes(1, c.series))
			require.NoError(t, err)
			defer b.Release()
			require.Len(t, b.Series, 1)
			require.Equal(t, want, b.Series[0].Key)
			require.Equal(t, c.alias, len(b.keys) == 0)
		})
	}
}

// TestReplayOfSeriesWithoutLabels: such series are refused when they come; a
// record that holds one all the same is read, not mistaken for something else.
func TestReplayOfSeriesWithoutLabels(t *testing.T) {
	b, err := DecodeRecord(append([]byte{recordRequest, byte(V2), 0}, pack(v2Request(nil, upFloat))...), nil)
	require.NoError(t, err)
	defer b.Release()
	require.Len(t, b.Series, 1)
	require.Empty(t, b.Series[0].Key)
}

// TestVarints: the same numbers are read as by encoding/binary, which is stricter
// only about the tenth byte.
func TestVarints(t *testing.T) {
	for _, v := range []uint64{0, 1, 127, 128, 300, 1<<32 - 1, 1 << 63, 1<<64 - 1} {
		b := binary.AppendUvarint(nil, v)
		got, n := readVarint(b, 0)
		require.Equal(t, v, got)
		require.Equal(t, len(b), n)
		require.Equal(t, len(b), varintLen(v))
		_, n = readVarint(b[:len(b)-1], 0)
		require.Equal(t, codeTruncated, n)
	}
	_, n := readVarint([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), 0)
	require.Equal(t, codeVarint, n)
}
