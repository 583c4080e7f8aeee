//go:build !race

package ingest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"
)

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

// TestNoAllocationsForReplicas: nor do series of replicas that are known, or dropped, cost any.
func TestNoAllocationsForReplicas(t *testing.T) {
	bodies, names, known := replicaRequest(t, 500)
	for p, body := range bodies {
		for _, elected := range []string{"value-of-prometheus", "another"} {
			for _, app := range []knows{{known: known}, {}} {
				t.Run(fmt.Sprintf("%s, elected: %s, known: %t", p, elected, app.known != nil), func(t *testing.T) {
					r := newTestReceiver(t, app, func(l *Limits) { l.HA = names })
					arrive(r.replicas, "value-of-cluster", elected, true)
					require.LessOrEqual(t, testing.AllocsPerRun(200, func() {
						if w, err := r.Ingest(context.Background(), p, body); err != nil || w.Samples != 500 {
							t.Fatal(w, err)
						}
					}), 6.0)
				})
			}
		}
	}
}

// ruledReceiver has rules about none of floatRequest's series, whose samples it finds old enough for them.
func ruledReceiver(t testing.TB, app Appender, text string, age time.Duration) *Receiver {
	r := newTestReceiver(t, app, func(l *Limits) { l.Rules = rules(t, text) })
	r.now = func() time.Time { return time.UnixMilli(testNow).Add(age) }
	return r
}

const otherRules = `{job="debug"}: 2h, {namespace=~"dev-.*|test",pod!="x"}: 2h, {zone="none"}: 2h`

// TestNoAllocationsForRules: to look for the retention rule of a series costs none.
func TestNoAllocationsForRules(t *testing.T) {
	v1, v2 := floatRequest(500)
	all, err := decodeAll(V1, v1)
	require.NoError(t, err)
	defer all.Release()
	for p, body := range map[Protocol][]byte{V1: pack(v1), V2: pack(v2)} {
		for _, app := range []knows{{known: acceptedIn(all)}, {}} {
			t.Run(fmt.Sprintf("%s, known: %t", p, app.known != nil), func(t *testing.T) {
				r := ruledReceiver(t, app, otherRules, 3*time.Hour)
				require.LessOrEqual(t, testing.AllocsPerRun(200, func() {
					if w, err := r.Ingest(context.Background(), p, body); err != nil || w.Samples != 500 {
						t.Fatal(w, err)
					}
				}), 6.0)
			})
		}
	}
}

// BenchmarkRules shows what retention rules cost: nothing for samples that are younger than all of them.
func BenchmarkRules(b *testing.B) {
	const series = 2000
	v1, v2 := floatRequest(series)
	bodies := map[Protocol][]byte{V1: pack(v1), V2: pack(v2)}
	batch, err := decodeAll(V1, unpack(b, bodies[V1]))
	require.NoError(b, err)
	known := fastKnown{acceptedIn(batch)}
	batch.Release()
	for _, p := range []Protocol{V1, V2} {
		for _, c := range []struct {
			name, rules string
			age         time.Duration
		}{
			{"none", "", 0}, {"young", otherRules, time.Hour}, {"old", otherRules, 3 * time.Hour},
		} {
			b.Run(p.String()+"/"+c.name, func(b *testing.B) {
				r := newTestReceiver(b, knows{known: known}, nil)
				if c.rules != "" {
					r = ruledReceiver(b, knows{known: known}, c.rules, c.age)
				}
				b.ReportAllocs()
				for b.Loop() {
					if _, err := r.Ingest(context.Background(), p, bodies[p]); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/series, "ns/series")
			})
		}
	}
}

// BenchmarkReplicas shows what it costs that a request is of a replica, if its series are known (by a map).
func BenchmarkReplicas(b *testing.B) {
	const series = 2000
	bodies, names, known := replicaRequest(b, series)
	batch, err := decodeAll(V1, unpack(b, bodies[V1]))
	require.NoError(b, err)
	raw := acceptedIn(batch)
	batch.Release()
	for _, p := range []Protocol{V1, V2} {
		for _, c := range []struct {
			name    string
			ha      HA
			elected string
			known   Known
		}{
			{"off", HA{}, "", fastKnown{raw}},
			{"no replica's", HA{ReplicaLabel: "none", ClusterLabel: "cluster", Failover: time.Minute}, "", fastKnown{raw}},
			{"elected", names, "value-of-prometheus", fastKnown{known}},
			{"elected, new", names, "value-of-prometheus", nil},
			{"dropped", names, "another", fastKnown{known}},
		} {
			b.Run(p.String()+"/"+c.name, func(b *testing.B) {
				r := newTestReceiver(b, knows{known: c.known}, func(l *Limits) { l.HA = c.ha })
				if c.elected != "" {
					arrive(r.replicas, "value-of-cluster", c.elected, true)
				}
				b.ReportAllocs()
				for b.Loop() {
					if _, err := r.Ingest(context.Background(), p, bodies[p]); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/series, "ns/series")
			})
		}
	}
}

// fastKnown is acceptedSeries that trusts the hash, and never guesses.
type fastKnown struct{ *acceptedSeries }

func (k fastKnown) Find(_ uint64, key []byte) (uint32, bool) {
	ref, ok := k.refs[string(key)]
	return ref, ok
}

func (fastKnown) After(uint64, uint32) (KnownSeries, bool) { return KnownSeries{}, false }
func (fastKnown) Follow(_ uint64, _ uint32, _ KnownSeries) {}

func unpack(t testing.TB, block []byte) []byte {
	t.Helper()
	body, err := snappy.Decode(nil, block)
	require.NoError(t, err)
	return body
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
