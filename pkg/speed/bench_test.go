package speed

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/millrace/millrace/pkg/ingest"
)

// nodeBatch is a scrape of 1,000 series with labels as node_exporter has them.
func nodeBatch() *ingest.Batch {
	var b ingest.Batch
	for i := range 1000 {
		b.Series = append(b.Series, in(lset(
			"__name__", fmt.Sprintf("node_cpu_seconds_total_%d", i/40), "instance", "host-0001.example.com:9100", "job", "node",
			"cluster", "eu-west-1", "cpu", fmt.Sprint(i%40), "mode", []string{"idle", "user", "system"}[i%3],
		), sample{}))
	}
	return &b
}

func advance(b *ingest.Batch, n int) {
	for i := range b.Series {
		b.Series[i].Floats[0].T = int64(n) * 15000
		b.Series[i].Floats[0].V += float64(i % 7)
	}
}

func BenchmarkAppend(b *testing.B) {
	for name, late := range map[string]bool{"in order": false, "late": true} {
		b.Run(name, func(b *testing.B) {
			g := NewGeneration(Options{})
			req := nodeBatch()
			advance(req, 1<<30)
			if !late {
				advance(req, 0)
			}
			g.Append(0, req)
			b.ReportAllocs()
			b.ResetTimer()
			for n := range b.N {
				advance(req, n+1)
				g.Append(uint64(n+1), req)
			}
			b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "samples/s")
			b.ReportMetric(float64(g.Stats().Bytes)/float64(b.N)/1000, "B/sample")
		})
	}
}

func BenchmarkNewSeries(b *testing.B) {
	old := NewGeneration(Options{})
	old.Append(0, nodeBatch())
	for name, prev := range map[string]*Generation{"unknown": nil, "handed over": old} {
		b.Run(name, func(b *testing.B) {
			req := nodeBatch()
			b.ReportAllocs()
			for range b.N {
				NewGeneration(Options{Previous: prev}).Append(0, req)
			}
			b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "series/s")
		})
	}
}

func BenchmarkQuery(b *testing.B) {
	g := NewGeneration(Options{})
	req := nodeBatch()
	for n := range 120 {
		advance(req, n)
		g.Append(uint64(n), req)
	}
	q, err := g.ChunkQuerier(minTime, maxTime)
	require.NoError(b, err)
	for name, ms := range map[string][]*labels.Matcher{
		"all 1000":      {all()},
		"regexp of 400": {labels.MustNewMatcher(labels.MatchRegexp, "__name__", "node.*_1.")},
		"one":           {labels.MustNewMatcher(labels.MatchEqual, "__name__", "node_cpu_seconds_total_3"), labels.MustNewMatcher(labels.MatchEqual, "cpu", "7")},
	} {
		for _, decode := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/decode=%v", name, decode), func(b *testing.B) {
				b.ReportAllocs()
				var it chunkenc.Iterator
				samples := 0
				for range b.N {
					set := q.Select(ctx, true, nil, ms...)
					for set.Next() {
						chks := set.At().Iterator(nil)
						for chks.Next() {
							if decode {
								it = chks.At().Chunk.Iterator(it)
								for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
									samples++
								}
							}
						}
					}
				}
				b.ReportMetric(float64(samples)/float64(b.N), "samples/op")
			})
		}
	}
}
