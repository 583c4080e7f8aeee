package ingest

import (
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
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
	f.Fuzz(func(t *testing.T, body []byte) {
		fuzzLive(t, V1, body)
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
	f.Fuzz(func(t *testing.T, body []byte) {
		fuzzLive(t, V2, body)
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

func newLive(body []byte) *live {
	l := &live{decoder: decoderPool.New().(*decoder), limits: DefaultLimits(), block: pack(body)}
	l.limits.MaxDecompressed, l.limits.MaxBuckets = 64<<10, 100
	l.b = new(Batch) // not from the pool: its size is what is looked at
	l.judge = &l.verdict
	l.judge.reset(&l.limits, time.UnixMilli(testNow))
	l.budget = maxExpansion * l.limits.MaxDecompressed
	return l
}

func (l *live) decode(p Protocol) error {
	if err := l.b.decompress(l.block, l.limits.MaxDecompressed); err != nil {
		return err
	}
	return l.run(p)
}

// fuzzLive takes a body as a request with small limits.
func fuzzLive(t *testing.T, p Protocol, body []byte) {
	d := newLive(body)
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
	if rec := append(AppendRecordHeader(nil, p, d.rejected), d.block...); !d.b.Empty() {
		require.Equal(t, plainOf(d.b), replayed(t, rec))
	}
	requireSameAgain(t, p, body, d)
}

// requireSameAgain checks that a request whose series are known gets the same verdict as the first time.
func requireSameAgain(t *testing.T, p Protocol, body []byte, first *live) {
	t.Helper()
	again := newLive(body)
	known := acceptedIn(first.b)
	again.b.Known = known
	require.NoError(t, again.decode(p))
	require.Equal(t, plainOf(first.b), plainOf(again.b))
	require.Equal(t, first.rejected, again.rejected)
	require.Equal(t, first.b.written, again.b.written)
	require.Equal(t, first.verdict.messages, again.verdict.messages)
	require.Equal(t, first.verdict.refusals, again.verdict.refusals)
	for _, s := range again.b.Series {
		require.Equal(t, xxhash.Sum64(s.Key), s.Hash)
		if s.Ref != 0 {
			require.Equal(t, known[string(s.Key)], s.Ref)
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
