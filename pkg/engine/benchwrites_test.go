package engine

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/ingest"
)

// BenchmarkSenders takes the same scrapes from one sender and from as many as there are cores, in turn, each in a generation of its own that
// knows the series. x-scale is how many times the samples a second several senders get through.
func BenchmarkSenders(b *testing.B) {
	e := benchEngine(b)
	at := time.Now().Add(-time.Hour).UnixMilli()
	var scrapes [][][]byte
	for scrape := range benchScrapes {
		scrapes = append(scrapes, benchBodies(b, ingest.V1, scrape, at+int64(scrape)*15_000))
	}
	cores := runtime.GOMAXPROCS(0)
	var alone, together time.Duration
	for b.Loop() {
		for _, turn := range []struct {
			senders int
			took    *time.Duration
		}{{1, &alone}, {cores, &together}} {
			require.NoError(b, e.rotate())
			require.NoError(b, e.flushSealed(b.Context())) // it would take the other cores
			benchSend(b, e, scrapes[0], 1)
			began := time.Now()
			for _, scrape := range scrapes[1:] {
				benchSend(b, e, scrape, turn.senders)
			}
			*turn.took += time.Since(began)
		}
	}
	samples := float64(b.N) * (benchScrapes - 1) * benchSeries
	b.ReportMetric(samples/alone.Seconds(), "samples/s-one")
	b.ReportMetric(samples/together.Seconds(), "samples/s-all")
	b.ReportMetric(alone.Seconds()/together.Seconds(), "x-scale")
}

// benchSend lets senders take the requests of a scrape from one another.
func benchSend(b *testing.B, e *Engine, requests [][]byte, senders int) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			for i := next.Add(1) - 1; int(i) < len(requests); i = next.Add(1) - 1 {
				if _, err := e.receiver.Ingest(b.Context(), ingest.V1, requests[i]); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkRotate writes one series without a pause while a generation of 100,000 is sealed. ms-sealing is the longest that one of these writes took
// while that lasted, ms-quiet the longest in as many milliseconds right before; medians over all rounds.
func BenchmarkRotate(b *testing.B) {
	e := benchEngine(b)
	at := time.Now().Add(-time.Hour).UnixMilli()
	known := benchBodies(b, ingest.V1, 0, at)
	var quiet, sealing []time.Duration
	for b.Loop() {
		b.StopTimer()
		require.NoError(b, e.flushSealed(b.Context()))
		benchSend(b, e, known, 1)
		w := benchWriter(b, e, at)
		time.Sleep(5 * time.Millisecond)
		before := time.Now()
		b.StartTimer()
		require.NoError(b, e.rotate())
		b.StopTimer()
		after := time.Now()
		time.Sleep(5 * time.Millisecond)
		writes := w()
		sealing = append(sealing, longest(writes, before, after))
		quiet = append(quiet, longest(writes, before.Add(before.Sub(after)), before))
		b.StartTimer()
	}
	b.ReportMetric(median(sealing).Seconds()*1e3, "ms-sealing")
	b.ReportMetric(median(quiet).Seconds()*1e3, "ms-quiet")
}

// span is when a write began and when it was answered.
type span struct{ from, to time.Time }

// benchWriter writes one series until what it returns is called, which returns what was written.
func benchWriter(b *testing.B, e *Engine, at int64) func() []span {
	var stop atomic.Bool
	done := make(chan []span)
	go func() {
		var writes []span
		for t := at; !stop.Load(); t++ {
			raw, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{
				Labels:  []prompb.Label{{Name: "__name__", Value: "up"}, {Name: "instance", Value: "a"}},
				Samples: []prompb.Sample{{Timestamp: t, Value: 1}},
			}}}).Marshal()
			if err != nil {
				b.Error(err)
			}
			body, from := snappy.Encode(nil, raw), time.Now()
			if _, err := e.receiver.Ingest(b.Context(), ingest.V1, body); err != nil {
				b.Error(err)
			}
			writes = append(writes, span{from, time.Now()})
		}
		done <- writes
	}()
	return func() []span {
		stop.Store(true)
		return <-done
	}
}

// longest returns what the slowest write took of those that were under way at some time in [from, to].
func longest(writes []span, from, to time.Time) time.Duration {
	var out time.Duration
	for _, w := range writes {
		if !w.from.After(to) && !w.to.Before(from) {
			out = max(out, w.to.Sub(w.from))
		}
	}
	return out
}

func median(of []time.Duration) time.Duration {
	slices.Sort(of)
	return of[len(of)/2]
}
