package ingest

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protowire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testNow is the clock of all tests, in ms.
const testNow = int64(1_700_000_000_000)

// recorder is an Appender that keeps copies of what it got.
type recorder struct {
	mu      sync.Mutex
	records [][]byte
	batches []plain
	err     error
}

func (r *recorder) Append(_ context.Context, header, body []byte, b *Batch) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	if b.Empty() {
		return nil
	}
	r.records = append(r.records, slices.Concat(header, body))
	r.batches = append(r.batches, plainOf(b))
	return nil
}

func (*recorder) Known() Known { return nil }

// acceptedSeries finds the series of an earlier batch. What comes after what it guesses wildly until it is told, and often rightly where the request
// is the same.
type acceptedSeries struct {
	series []KnownSeries // by reference less 1
	refs   map[string]uint32
	next   map[uint32]uint32
}

func acceptedIn(b *Batch) *acceptedSeries {
	known := nothingAccepted()
	for _, s := range b.Series {
		known.add(s.Key)
	}
	return known
}

func nothingAccepted() *acceptedSeries {
	return &acceptedSeries{refs: map[string]uint32{}, next: map[uint32]uint32{}}
}

func (a *acceptedSeries) add(key []byte) {
	if a.refs[string(key)] == 0 {
		ref := uint32(len(a.series)) + 1
		a.series = append(a.series, KnownSeries{Labels: KeyLabels(key), Hash: xxhash.Sum64(key), Ref: ref})
		a.refs[string(key)] = ref
	}
}

func (a *acceptedSeries) Find(hash uint64, key []byte) (uint32, bool) {
	ref, ok := a.refs[string(key)]
	if hash != xxhash.Sum64(key) {
		panic("the hash is not that of the key")
	}
	return ref, ok
}

func (a *acceptedSeries) After(hash uint64, ref uint32) (KnownSeries, bool) {
	a.check(hash, ref)
	if ref = a.next[ref]; ref == 0 {
		ref = uint32(hash%uint64(len(a.series))) + 1
	}
	return a.series[ref-1], true
}

func (a *acceptedSeries) Follow(hash uint64, ref uint32, next KnownSeries) {
	a.check(hash, ref)
	a.check(next.Hash, next.Ref)
	a.next[ref] = next.Ref
}

func (a *acceptedSeries) Labels(hash uint64, ref uint32) labels.Labels {
	a.check(hash, ref)
	return a.series[ref-1].Labels
}

func (a *acceptedSeries) check(hash uint64, ref uint32) {
	if a.series[ref-1].Hash != hash {
		panic("the hash is not that of the series")
	}
}

func newTestReceiver(t testing.TB, a Appender, change func(*Limits)) *Receiver {
	t.Helper()
	l := DefaultLimits()
	if change != nil {
		change(&l)
	}
	r := NewReceiver(a, l, nil, nil)
	r.now = func() time.Time { return time.UnixMilli(testNow) }
	return r
}

// plain is a batch written out as text, independent of any memory.
type plain struct {
	Series   []string
	Metadata []string
}

func plainOf(b *Batch) plain {
	var p plain
	for _, s := range b.Series {
		var t strings.Builder
		ls := KeyLabels(s.Key)
		if s.Key == nil && s.Ref > 0 {
			ls = b.Known.Labels(s.Hash, s.Ref)
		}
		fmt.Fprintf(&t, "%q\n", ls.String())
		for _, f := range s.Floats {
			t.WriteString(floatText(f.T, f.ST, f.V))
		}
		for _, h := range s.Histograms {
			t.WriteString(histogramText(h.T, h.ST, h.H, h.FH))
		}
		for _, e := range s.Exemplars {
			t.WriteString(exemplarText(e.T, e.V, e.Labels))
		}
		p.Series = append(p.Series, t.String())
	}
	for _, m := range b.Metadata {
		p.Metadata = append(p.Metadata, fmt.Sprintf("%q", m))
	}
	return p
}

func floatText(t, st int64, v float64) string {
	return fmt.Sprintf("  float %d %d %x\n", t, st, math.Float64bits(v))
}

func exemplarText(t int64, v float64, l labels.Labels) string {
	return fmt.Sprintf("  exemplar %d %x %q\n", t, math.Float64bits(v), l.String())
}

func histogramText(t, st int64, h *histogram.Histogram, fh *histogram.FloatHistogram) string {
	hexes := func(v []float64) string {
		s := ""
		for _, f := range v {
			s += fmt.Sprintf("%x,", math.Float64bits(f))
		}
		return s
	}
	if h != nil {
		return fmt.Sprintf("  int %d %d hint=%d schema=%d zt=%x zc=%d c=%d s=%x %v %v %v %v [%s] nil=%t\n", t, st,
			h.CounterResetHint, h.Schema, math.Float64bits(h.ZeroThreshold), h.ZeroCount, h.Count, math.Float64bits(h.Sum),
			h.NegativeSpans, h.NegativeBuckets, h.PositiveSpans, h.PositiveBuckets, hexes(h.CustomValues), h.CustomValues == nil)
	}
	return fmt.Sprintf("  float histogram %d %d hint=%d schema=%d zt=%x zc=%x c=%x s=%x %v [%s] %v [%s] [%s] nil=%t\n", t, st,
		fh.CounterResetHint, fh.Schema, math.Float64bits(fh.ZeroThreshold), math.Float64bits(fh.ZeroCount),
		math.Float64bits(fh.Count), math.Float64bits(fh.Sum),
		fh.NegativeSpans, hexes(fh.NegativeBuckets), fh.PositiveSpans, hexes(fh.PositiveBuckets), hexes(fh.CustomValues), fh.CustomValues == nil)
}

// referenceLabels brings labels to the form that a key has, in the simplest way.
func referenceLabels(pairs [][2]string) labels.Labels {
	pairs = slices.DeleteFunc(pairs, func(p [2]string) bool { return p[1] == "" })
	sort.SliceStable(pairs, func(i, j int) bool { return pairs[i][0] < pairs[j][0] })
	b := labels.NewScratchBuilder(len(pairs))
	for _, p := range pairs {
		b.Add(p[0], p[1])
	}
	return b.Labels()
}

func knownHint(h histogram.CounterResetHint, raw int32) histogram.CounterResetHint {
	if raw < 0 || raw > 3 {
		return histogram.UnknownCounterReset
	}
	return h
}

// normalised is what is to become of a histogram of the reference decoder; ok is
// false if its resolution cannot be reduced.
func normalised(t, st int64, hint int32, h *histogram.Histogram, fh *histogram.FloatHistogram) (string, bool) {
	if h != nil {
		h.CounterResetHint = knownHint(h.CounterResetHint, hint)
	} else {
		fh.CounterResetHint = knownHint(fh.CounterResetHint, hint)
	}
	if err := normalise(Histogram{H: h, FH: fh}); err != nil {
		return "", false
	}
	return histogramText(t, st, h, fh), true
}

// referenceV1 is what Prometheus's decoder makes of a body. ok is false if the
// comparison makes no sense.
func referenceV1(req *prompb.WriteRequest) (p plain, ok bool) {
	for _, ts := range req.Timeseries {
		if len(ts.Samples)+len(ts.Histograms)+len(ts.Exemplars) == 0 {
			continue
		}
		s := fmt.Sprintf("%q\n", referenceLabels(v1Pairs(ts.Labels)).String())
		for _, f := range ts.Samples {
			s += floatText(f.Timestamp, 0, f.Value)
		}
		for _, h := range ts.Histograms {
			var fh *histogram.FloatHistogram
			if h.IsFloatHistogram() {
				fh = h.ToFloatHistogram()
			}
			t, ok := normalised(h.Timestamp, 0, int32(h.ResetHint), h.ToIntHistogram(), fh)
			if !ok {
				return p, false
			}
			s += t
		}
		for _, e := range ts.Exemplars {
			s += exemplarText(e.Timestamp, e.Value, referenceExemplar(v1Pairs(e.Labels)))
		}
		p.Series = append(p.Series, s)
	}
	for _, m := range req.Metadata {
		p.Metadata = append(p.Metadata, fmt.Sprintf("%q", Metadata{
			Family: m.MetricFamilyName, Type: metricType(uint64(m.Type)), Help: m.Help, Unit: m.Unit,
		}))
	}
	return p, true
}

func v1Pairs(ls []prompb.Label) [][2]string {
	var pairs [][2]string
	for _, l := range ls {
		pairs = append(pairs, [2]string{l.Name, l.Value})
	}
	return pairs
}

// referenceExemplar is empty for labels that will be refused.
func referenceExemplar(pairs [][2]string) labels.Labels {
	l := exemplarLabels{builder: &labels.ScratchBuilder{}}
	for _, p := range pairs {
		l.add(pair{name: []byte(p[0]), value: []byte(p[1]), invalid: !validUTF8(p[0]) || !validUTF8(p[1])})
	}
	ls := referenceLabels(pairs)
	if _, dup := ls.HasDuplicateLabelNames(); dup || l.reason != accepted {
		return labels.EmptyLabels()
	}
	return ls
}

func validUTF8(s string) bool { return strings.ToValidUTF8(s, "") == s }

func referenceV2(req *writev2.Request) (p plain, ok bool) {
	for _, ts := range req.Timeseries {
		pairs, ok := v2Pairs(ts.LabelsRefs, req.Symbols)
		if !ok {
			return p, false
		}
		if len(ts.Samples)+len(ts.Histograms)+len(ts.Exemplars) == 0 {
			continue
		}
		s := fmt.Sprintf("%q\n", referenceLabels(pairs).String())
		for _, f := range ts.Samples {
			s += floatText(f.Timestamp, f.StartTimestamp, f.Value)
		}
		for _, h := range ts.Histograms {
			var fh *histogram.FloatHistogram
			if h.IsFloatHistogram() {
				fh = h.ToFloatHistogram()
			}
			t, ok := normalised(h.Timestamp, h.StartTimestamp, int32(h.ResetHint), h.ToIntHistogram(), fh)
			if !ok {
				return p, false
			}
			s += t
		}
		for _, e := range ts.Exemplars {
			pairs, ok := v2Pairs(e.LabelsRefs, req.Symbols)
			if !ok {
				return p, false
			}
			s += exemplarText(e.Timestamp, e.Value, referenceExemplar(pairs))
		}
		p.Series = append(p.Series, s)
	}
	return p, true
}

func v2Pairs(refs []uint32, symbols []string) (pairs [][2]string, ok bool) {
	if len(refs)%2 != 0 {
		return nil, false
	}
	for i := 0; i < len(refs); i += 2 {
		if int(refs[i]) >= len(symbols) || int(refs[i+1]) >= len(symbols) {
			return nil, false
		}
		pairs = append(pairs, [2]string{symbols[refs[i]], symbols[refs[i+1]]})
	}
	return pairs, true
}

// generator makes random but valid requests.
type generator struct{ *rand.Rand }

func newGenerator(seed uint64) *generator { return &generator{rand.New(rand.NewPCG(seed, 1))} }

func (g *generator) value() float64 {
	switch g.IntN(8) {
	case 0:
		return math.Float64frombits(value.StaleNaN)
	case 1:
		return math.Inf(1 - 2*g.IntN(2))
	case 2:
		return math.Copysign(0, -1)
	case 3:
		return math.Float64frombits(g.Uint64())
	case 4:
		return 0
	}
	return float64(g.IntN(1000))
}

func (g *generator) time() int64 { return testNow - g.Int64N(1<<40) + 1<<20*int64(g.IntN(2))>>2 }

func (g *generator) word(limit int) string {
	const alphabet = "abcdefghij_äλ☃"
	runes := []rune(alphabet)
	var s strings.Builder
	for range 1 + g.IntN(limit) {
		s.WriteRune(runes[g.IntN(len(runes))])
	}
	return s.String()
}

// labels are sorted, and sometimes not.
func (g *generator) labels() [][2]string {
	m := map[string]string{"__name__": g.word(12)}
	for range g.IntN(12) {
		limit := 20
		if g.IntN(10) == 0 {
			limit = 300
		}
		m[g.word(10)] = g.word(limit)
	}
	if g.IntN(4) == 0 {
		m[g.word(10)+"z"] = ""
	}
	var pairs [][2]string
	for k, v := range m {
		pairs = append(pairs, [2]string{k, v})
	}
	slices.SortFunc(pairs, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	if g.IntN(4) == 0 {
		g.Shuffle(len(pairs), func(i, j int) { pairs[i], pairs[j] = pairs[j], pairs[i] })
	}
	return pairs
}

func (g *generator) spans(custom bool) (spans []histogram.Span, n int) {
	for i := range g.IntN(4) {
		s := histogram.Span{Offset: int32(g.IntN(5)), Length: uint32(g.IntN(6))}
		if i == 0 && !custom {
			s.Offset = int32(g.IntN(100) - 50)
		}
		n += int(s.Length)
		spans = append(spans, s)
	}
	return spans, n
}

func (g *generator) intHistogram() *histogram.Histogram {
	h := &histogram.Histogram{
		CounterResetHint: histogram.CounterResetHint(g.IntN(4)), Schema: int32(g.IntN(14) - 4),
		ZeroThreshold: 0.001, ZeroCount: g.Uint64N(10), Sum: float64(g.IntN(100)),
	}
	h.Count = h.ZeroCount
	fill := func(n int) (deltas []int64) {
		last := int64(0)
		for range n {
			c := g.Int64N(1000)
			deltas = append(deltas, c-last)
			last = c
			h.Count += uint64(c)
		}
		return deltas
	}
	if g.IntN(4) == 0 {
		h.Schema, h.ZeroCount, h.ZeroThreshold, h.Count = histogram.CustomBucketsSchema, 0, 0, 0
		var n int
		h.PositiveSpans, n = g.spans(true)
		h.PositiveBuckets = fill(n)
		h.CustomValues = []float64{-1}
		for range 64 {
			h.CustomValues = append(h.CustomValues, h.CustomValues[len(h.CustomValues)-1]+1+float64(g.IntN(2)))
		}
		return h
	}
	var n int
	h.PositiveSpans, n = g.spans(false)
	h.PositiveBuckets = fill(n)
	h.NegativeSpans, n = g.spans(false)
	h.NegativeBuckets = fill(n)
	return h
}

func (g *generator) exemplarPairs() [][2]string {
	pairs := [][2]string{{"trace_id", g.word(20)}, {"a", g.word(5)}}
	return pairs[:g.IntN(3)]
}

func (g *generator) v1() *prompb.WriteRequest {
	req := &prompb.WriteRequest{}
	toLabels := func(pairs [][2]string) (ls []prompb.Label) {
		for _, p := range pairs {
			ls = append(ls, prompb.Label{Name: p[0], Value: p[1]})
		}
		return ls
	}
	for range g.IntN(20) {
		ts := prompb.TimeSeries{Labels: toLabels(g.labels())}
		for range g.IntN(4) {
			ts.Samples = append(ts.Samples, prompb.Sample{Timestamp: g.time(), Value: g.value()})
		}
		for range g.IntN(3) {
			h := g.intHistogram()
			if g.IntN(2) == 0 {
				ts.Histograms = append(ts.Histograms, prompb.FromIntHistogram(g.time(), h))
			} else {
				ts.Histograms = append(ts.Histograms, prompb.FromFloatHistogram(g.time(), h.ToFloat(nil)))
			}
		}
		for range g.IntN(2) {
			ts.Exemplars = append(ts.Exemplars, prompb.Exemplar{Labels: toLabels(g.exemplarPairs()), Timestamp: g.time(), Value: g.value()})
		}
		req.Timeseries = append(req.Timeseries, ts)
	}
	for range g.IntN(3) {
		req.Metadata = append(req.Metadata, prompb.MetricMetadata{
			Type: prompb.MetricMetadata_MetricType(g.IntN(8)), MetricFamilyName: g.word(9), Help: g.word(40), Unit: g.word(3),
		})
	}
	return req
}

func (g *generator) v2() *writev2.Request {
	req := &writev2.Request{}
	symbols := writev2.NewSymbolTable()
	refs := func(pairs [][2]string) (out []uint32) {
		for _, p := range pairs {
			out = append(out, symbols.Symbolize(p[0]), symbols.Symbolize(p[1]))
		}
		return out
	}
	for range g.IntN(20) {
		ts := writev2.TimeSeries{LabelsRefs: refs(g.labels())}
		for range 1 + g.IntN(4) {
			ts.Samples = append(ts.Samples, writev2.Sample{Timestamp: g.time(), Value: g.value(), StartTimestamp: g.time() * int64(g.IntN(2))})
		}
		for range g.IntN(3) {
			h := g.intHistogram()
			if g.IntN(2) == 0 {
				ts.Histograms = append(ts.Histograms, writev2.FromIntHistogram(g.time(), g.time(), h))
			} else {
				ts.Histograms = append(ts.Histograms, writev2.FromFloatHistogram(0, g.time(), h.ToFloat(nil)))
			}
		}
		for range g.IntN(2) {
			ts.Exemplars = append(ts.Exemplars, writev2.Exemplar{LabelsRefs: refs(g.exemplarPairs()), Timestamp: g.time(), Value: g.value()})
		}
		if g.IntN(2) == 0 {
			ts.Metadata = writev2.Metadata{
				Type: writev2.Metadata_MetricType(g.IntN(8)), HelpRef: symbols.Symbolize(g.word(30)), UnitRef: symbols.Symbolize(g.word(3)),
			}
		}
		req.Timeseries = append(req.Timeseries, ts)
	}
	req.Symbols = symbols.Symbols()
	return req
}

// message builds protobuf by hand, for what no generated code would write.
type message []byte

func (m message) bytes(num protowire.Number, v []byte) message {
	return protowire.AppendBytes(protowire.AppendTag(m, num, protowire.BytesType), v)
}

func (m message) str(num protowire.Number, v string) message { return m.bytes(num, []byte(v)) }

func (m message) varint(num protowire.Number, v uint64) message {
	return protowire.AppendVarint(protowire.AppendTag(m, num, protowire.VarintType), v)
}

func (m message) double(num protowire.Number, v float64) message {
	return protowire.AppendFixed64(protowire.AppendTag(m, num, protowire.Fixed64Type), math.Float64bits(v))
}

func label(name, value string) message { return message{}.str(1, name).str(2, value) }

func sample(t int64, v float64) message { return message{}.double(1, v).varint(2, uint64(t)) }

// seriesV1 is a TimeSeries of version 1 with labels and, behind them, what else is given.
func seriesV1(pairs []string, rest message) message {
	var m message
	for i := 0; i < len(pairs); i += 2 {
		m = m.bytes(1, label(pairs[i], pairs[i+1]))
	}
	return append(m, rest...)
}

func pack(body []byte) []byte { return snappy.Encode(nil, body) }

type marshaler interface{ Marshal() ([]byte, error) }

func marshal(t testing.TB, m marshaler) []byte {
	t.Helper()
	b, err := m.Marshal()
	require.NoError(t, err)
	return b
}

// decodeAll decodes a body without any limit, as a replay without refusals does.
func decodeAll(p Protocol, body []byte) (*Batch, error) {
	return DecodeRecord(append(AppendRecordHeader(nil, p, nil), pack(body)...), nil)
}

// replicaRequest is floatRequest with its labels cluster and prometheus as those of replicas.
func replicaRequest(b testing.TB, series int) (bodies map[Protocol][]byte, names HA, known *acceptedSeries) {
	b.Helper()
	v1, v2 := floatRequest(series)
	bodies = map[Protocol][]byte{V1: pack(v1), V2: pack(v2)}
	batch, err := DecodeRecord(append(appendReplicasHeader(nil, V1, replicaLabels{replica: "prometheus", cluster: "cluster"}, nil), bodies[V1]...), nil)
	require.NoError(b, err)
	defer batch.Release()
	return bodies, HA{ReplicaLabel: "prometheus", ClusterLabel: "cluster", Failover: time.Minute}, acceptedIn(batch)
}

// knows is an Appender that knows series.
type knows struct {
	discard
	known Known
}

func (k knows) Known() Known { return k.known }

// discard is an Appender that keeps nothing.
type discard struct{}

func (discard) Append(context.Context, []byte, []byte, *Batch) error { return nil }
func (discard) Known() Known                                         { return nil }
