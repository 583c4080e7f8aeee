package ingest

import (
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"
)

func TestKeyEquals(t *testing.T) {
	sets := []labels.Labels{
		labels.EmptyLabels(),
		labels.FromStrings("__name__", "up"),
		labels.FromStrings("__name__", "up", "job", "a"),
		labels.FromStrings("__name__", "up", "job", "b"),
		labels.FromStrings("__name__", "upj"),
		labels.FromStrings("__name__", "up", "path", strings.Repeat("x", 119)),
		labels.FromStrings("__name__", "up", "path", strings.Repeat("x", 120)),
		labels.FromStrings("__name__", "up", "path", strings.Repeat("x", 254)),
		labels.FromStrings("__name__", "up", "path", strings.Repeat("x", 255)),
		labels.FromStrings("__name__", "up", "path", strings.Repeat("x", 3000), "q", "1"),
	}
	for i, a := range sets {
		for j, b := range sets {
			require.Equal(t, i == j, KeyEquals(LabelsKey(nil, a), b), "%v and %v", a, b)
		}
	}
}

// No change of a key leaves it the key of the same labels, whether what comes out is a key or not.
func FuzzKeyEquals(f *testing.F) {
	f.Add(LabelsKey(nil, labels.FromStrings("__name__", "up", "job", "node")), uint16(3), byte(4))
	f.Fuzz(func(t *testing.T, raw []byte, at uint16, with byte) {
		ls := KeyLabels(raw).WithoutEmpty() // any labels: raw need not be a key
		key := LabelsKey(nil, ls)
		require.True(t, KeyEquals(key, ls))
		if IsKey(raw) {
			require.Equal(t, string(raw), string(key))
		}
		require.Equal(t, string(raw) == string(key), KeyEquals(raw, ls))
		if len(key) > 0 && with != 0 {
			key[int(at)%len(key)] ^= with
			require.False(t, KeyEquals(key, ls))
			require.False(t, KeyEquals(key[:int(at)%len(key)], ls))
		}
	})
}

// lookups counts the bytes of the keys that were looked up, and knows none.
type lookups struct {
	Known

	bytes int
}

func (l *lookups) Find(_ uint64, key []byte) (uint32, bool) {
	l.bytes += len(key)
	return 0, false
}

// Any number of series can name one long symbol: what is built only to look them up is bounded by the size of the request.
func TestLookupsOfARequestAreBounded(t *testing.T) {
	req := &writev2.Request{Symbols: []string{"", "__name__", strings.Repeat("x", 4000)}}
	for range 20_000 {
		req.Timeseries = append(req.Timeseries, writev2.TimeSeries{LabelsRefs: []uint32{1, 2}, Samples: []writev2.Sample{{Timestamp: testNow, Value: 1}}})
	}
	body := marshal(t, req)
	d := newLive(body, nil)
	d.limits.MaxDecompressed = 64 << 20
	d.budget = maxExpansion * d.limits.MaxDecompressed
	var looked lookups
	d.b.Known = &looked
	_ = d.decode(V2) // whatever the verdict
	require.Positive(t, looked.bytes)
	require.LessOrEqual(t, looked.bytes, maxLookups*len(body))
}
