package ingest

import (
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"
)

// FuzzV1: never panics, never takes much more memory than the budget, says what
// the reference decoder says, and what was stored can be read back.
func FuzzV1(f *testing.F) {
	for seed := range uint64(8) {
		g := newGenerator(seed)
		body := marshal(f, g.v1())
		f.Add(body)
		f.Add(shuffle(g.Rand, body, 1))
	}
	f.Add(replicasBody(f, V1))
	f.Fuzz(func(t *testing.T, body []byte) {
		fuzzLive(t, V1, body)
		fuzzReplicas(t, V1, body)
		var req prompb.WriteRequest
		if req.Unmarshal(body) != nil {
			return
		}
		if want, ok := referenceV1(&req); ok {
			fuzzCompare(t, V1, body, want)
		}
	})
}

// FuzzV2 is FuzzV1 for version 2.0.
func FuzzV2(f *testing.F) {
	for seed := range uint64(8) {
		g := newGenerator(seed)
		body := marshal(f, g.v2())
		f.Add(body)
		f.Add(shuffle(g.Rand, body, 5))
	}
	f.Add(replicasBody(f, V2))
	f.Fuzz(func(t *testing.T, body []byte) {
		fuzzLive(t, V2, body)
		fuzzReplicas(t, V2, body)
		var req writev2.Request
		if req.Unmarshal(body) != nil {
			return
		}
		if want, ok := referenceV2(&req); ok {
			fuzzCompare(t, V2, body, want)
		}
	})
}

// fuzzCompare holds a body that the reference decoder accepts against it. It
// reads packed fields beyond their end, references to metadata without looking
// them up, and anything as anything; there we refuse.
func fuzzCompare(t *testing.T, p Protocol, body []byte, want plain) {
	b, err := decodeAll(p, body)
	if err != nil {
		for _, known := range []string{errTruncated.Error(), errForeign.Error(), "metadata's"} {
			if strings.Contains(err.Error(), known) {
				return
			}
		}
		t.Fatalf("the reference decoder accepts what is refused with %q", err)
	}
	defer b.Release()
	got := plainOf(b)
	require.Equal(t, want.Series, got.Series)
	if p == V1 {
		require.Equal(t, want.Metadata, got.Metadata)
	}
}

// live is what a request with small limits is decoded with.
type live struct {
	*decoder
	limits Limits
	block  []byte
}

func newLive(body []byte, r *replicas) *live {
	l := &live{decoder: decoderPool.New().(*decoder), limits: DefaultLimits(), block: pack(body)}
	l.limits.MaxDecompressed, l.limits.MaxBuckets = 64<<10, 100
	l.b = new(Batch) // not from the pool: its size is what is looked at
	l.judge = &l.verdict
	l.judge.reset(&l.limits, time.UnixMilli(testNow))
	l.budget = maxExpansion * l.limits.MaxDecompressed
	l.pairing.begin(r)
	return l
}

// record is what the log gets.
func (l *live) record(p Protocol) []byte {
	header := AppendRecordHeader(nil, p, l.rejected)
	if l.pairing.kept {
		header = appendReplicasHeader(nil, p, l.pairing.labels, l.rejected)
	}
	return append(header, l.block...)
}

func (l *live) decode(p Protocol) error {
	if err := l.b.decompress(l.block, l.limits.MaxDecompressed); err != nil {
		return err
	}
	return l.run(p)
}

// fuzzLive takes a body as a request with small limits.
func fuzzLive(t *testing.T, p Protocol, body []byte) {
	fuzzDecoder(t, p, body, newLive(body, nil))
}

// replicasBody holds series of replicas, in order and not, and others.
func replicasBody(f *testing.F, p Protocol) []byte {
	f.Helper()
	body, err := snappy.Decode(nil, bodyOf(p,
		[]string{"__name__", "m", "c", "x", "r", "a"}, []string{"r", "b", "__name__", "m", "c", "x"}, []string{"__name__", "m", "c", "x", "r", "b"},
		[]string{"__name__", "m", "c", "y", "r", "b"}, []string{"__name__", "m", "c", "y"}, []string{"__name__", "m", "r", "b"},
		[]string{"__name__", "m", "c", "x", "r", "a", "r", "b"}, []string{"c", "x", "r", "a"}))
	require.NoError(f, err)
	return body
}

// fuzzReplicas is fuzzLive with the labels c and r for replicas.
func fuzzReplicas(t *testing.T, p Protocol, body []byte) {
	d := newLive(body, newTestReplicas(newClock().now))
	fuzzDecoder(t, p, body, d)
	for _, s := range d.b.Series {
		l := KeyLabels(s.Key)
		require.False(t, l.Has("c") && l.Has("r"))
	}
	if len(d.pairing.uses) == 0 && d.judge.refusals == 0 {
		without := newLive(body, nil)
		_ = without.decode(p)
		require.Equal(t, plainOf(without.b), plainOf(d.b), "no series is a replica's")
	}
}

func fuzzDecoder(t *testing.T, p Protocol, body []byte, d *live) {
	t.Helper()
	err := d.decode(p)
	if size := d.b.footprint(); size > 3*maxExpansion*int(d.limits.MaxDecompressed) {
		t.Fatalf("%d bytes for a request of %d", size, len(body))
	}
	if err != nil {
		require.Contains(t, []int{400, 413}, StatusOf(refuseDecoding(p, &d.limits, err)))
		return
	}
	require.LessOrEqual(t, len(d.judge.messages), maxMessages)
	require.Equal(t, d.judge.refusals > 0, len(d.judge.messages) > 0)
	for _, s := range d.b.Series {
		require.Equal(t, LabelsKey(nil, KeyLabels(s.Key)), s.Key)
		require.True(t, KeyEquals(s.Key, KeyLabels(s.Key)))
		require.NotZero(t, len(s.Floats)+len(s.Histograms)+len(s.Exemplars))
	}
	if !d.b.Empty() {
		require.Equal(t, plainOf(d.b), replayed(t, d.record(p)))
	}
	requireSameAgain(t, p, body, d)
}

// requireSameAgain checks that a request whose series are known gets the same verdict as the first time.
func requireSameAgain(t *testing.T, p Protocol, body []byte, first *live) {
	t.Helper()
	var r *replicas
	if first.pairing.table != nil {
		r = newTestReplicas(first.pairing.table.now)
	}
	known := acceptedIn(first.b)
	for range 2 { // The second time it is known what comes after what, too.
		again := newLive(body, r)
		again.b.Known = known
		require.NoError(t, again.decode(p))
		require.Equal(t, plainOf(first.b), plainOf(again.b))
		require.Equal(t, first.rejected, again.rejected)
		require.Equal(t, first.b.written, again.b.written)
		require.Equal(t, first.pairing.dropped, again.pairing.dropped)
		require.Equal(t, first.pairing.kept, again.pairing.kept)
		require.Equal(t, first.verdict.messages, again.verdict.messages)
		require.Equal(t, first.verdict.refusals, again.verdict.refusals)
		requireReferences(t, again.b, known)
		again.b.Detach()
		require.Equal(t, plainOf(first.b), plainOf(again.b))
		for _, s := range again.b.Series {
			require.Zero(t, s.Ref)
			require.Equal(t, xxhash.Sum64(s.Key), s.Hash)
		}
	}
}

func requireReferences(t *testing.T, b *Batch, known *acceptedSeries) {
	t.Helper()
	for _, s := range b.Series {
		if s.Ref != 0 {
			known.check(s.Hash, s.Ref)
			require.True(t, s.Key == nil || known.refs[string(s.Key)] == s.Ref)
			require.True(t, s.Key != nil || len(s.Exemplars) == 0)
		} else {
			require.Equal(t, xxhash.Sum64(s.Key), s.Hash)
		}
	}
}

// FuzzDecodeRecord: a damaged record is an error, never a panic.
func FuzzDecodeRecord(f *testing.F) {
	for seed := range uint64(4) {
		g := newGenerator(seed)
		f.Add(append(AppendRecordHeader(nil, V1, Rejected{0, 3, 900}), pack(marshal(f, g.v1()))...))
		f.Add(append(AppendRecordHeader(nil, V2, Rejected{2}), pack(marshal(f, g.v2()))...))
	}
	for _, p := range []Protocol{V1, V2} {
		f.Add(append(appendReplicasHeader(nil, p, replicaLabels{"r", "c"}, Rejected{2}), pack(replicasBody(f, p))...))
	}
	f.Add([]byte{recordRequest, 1, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte{recordRequest, 1, 0, 0xff, 0xff, 0xff, 0xff, 0x03, 0})
	f.Fuzz(func(t *testing.T, rec []byte) {
		b, err := DecodeRecord(rec, nil)
		if err != nil {
			return
		}
		defer b.Release()
		for _, s := range b.Series {
			KeyLabels(s.Key)
		}
		require.Equal(t, plainOf(b), replayed(t, rec))
	})
}
