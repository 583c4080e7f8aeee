//go:build !race

package ingest

import (
	"context"
	"testing"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"
)

type discard struct{}

func (discard) Append(context.Context, []byte, []byte, *Batch) error { return nil }
func (discard) Known() Known                                         { return nil }

// TestNoAllocations: float series cost no allocation once the pools are warm.
// (The race detector empties pools at random.)
func TestNoAllocations(t *testing.T) {
	r := newTestReceiver(t, discard{}, nil)
	v1, v2 := floatRequest(500)
	for p, body := range map[Protocol][]byte{V1: pack(v1), V2: pack(v2)} {
		t.Run(p.String(), func(t *testing.T) {
			require.Less(t, testing.AllocsPerRun(200, func() {
				if err := decodeOnce(r, p, body); err != nil {
					t.Fatal(err)
				}
			}), 1.0)
			require.LessOrEqual(t, testing.AllocsPerRun(200, func() {
				if _, err := r.Ingest(context.Background(), p, body); err != nil {
					t.Fatal(err)
				}
			}), 6.0)
		})
	}
}

// BenchmarkDecode compares with Prometheus's generated decoder, which does not
// yet validate, sort or look up anything. Bytes are those of the decompressed request.
func BenchmarkDecode(b *testing.B) {
	const series = 2000
	v1, v2 := floatRequest(series)
	r := newTestReceiver(b, discard{}, nil)
	for _, c := range []struct {
		name   string
		body   []byte
		decode func(block []byte) error
	}{
		{"v1/millrace", v1, func(block []byte) error { return decodeOnce(r, V1, block) }},
		{"v1/prompb", v1, func(block []byte) error {
			body, err := snappy.Decode(nil, block)
			if err != nil {
				return err
			}
			return (&prompb.WriteRequest{}).Unmarshal(body)
		}},
		{"v2/millrace", v2, func(block []byte) error { return decodeOnce(r, V2, block) }},
		{"v2/writev2", v2, func(block []byte) error {
			body, err := snappy.Decode(nil, block)
			if err != nil {
				return err
			}
			return (&writev2.Request{}).Unmarshal(body)
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			block := pack(c.body)
			b.SetBytes(int64(len(c.body)))
			b.ReportAllocs()
			for b.Loop() {
				if err := c.decode(block); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/series, "ns/series")
		})
	}
}
