package ingest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// checker compares every batch with what was sent, which stands in the context.
type checker struct{ t testing.TB }

type wantKey struct{}

func (checker) Known() Known { return nil }

func (c checker) Append(ctx context.Context, header, body []byte, b *Batch) error {
	want := ctx.Value(wantKey{}).(plain)
	if got := plainOf(b); fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	// The record must be readable while the batch is in use: they share nothing.
	if got := replayed(c.t, append(append([]byte(nil), header...), body...)); fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Errorf("record: got %v, want %v", got, want)
	}
	return nil
}

// TestPooling: batches of concurrent requests share no memory, and what one left
// in the pool does not show in the next.
func TestPooling(t *testing.T) {
	r := newTestReceiver(t, checker{t}, nil)
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for w := range uint64(8) {
		wg.Go(func() {
			for i := range uint64(40) {
				g := newGenerator(w*1000 + i)
				p, body := V1, marshal(t, g.v1())
				if i%2 == 0 {
					p, body = V2, marshal(t, g.v2())
				}
				b, err := decodeAll(p, body)
				if err != nil {
					errs <- err
					return
				}
				want := plainOf(b)
				b.Release()
				if _, err := r.Ingest(context.WithValue(t.Context(), wantKey{}, want), p, pack(body)); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
}

// TestReleaseClears: a batch in the pool holds no pointers to what it held.
func TestReleaseClears(t *testing.T) {
	b, err := decodeAll(V1, marshal(t, newGenerator(3).v1()))
	require.NoError(t, err)
	require.False(t, b.Empty())
	b.Release()
	b.Release()
	require.True(t, b.Empty())
	for _, s := range b.Series[:cap(b.Series)] {
		require.Zero(t, s)
	}
	for _, h := range b.ints[:cap(b.ints)] {
		require.Zero(t, h)
	}
}

// TestLateStrings: what the documentation says may be kept is not touched when
// the batch's memory is used again.
func TestLateStrings(t *testing.T) {
	var body message
	body = body.bytes(1, seriesV1(up, message{}.bytes(3, message{}.bytes(1, label("trace_id", "abc")))))
	b, err := decodeAll(V1, body)
	require.NoError(t, err)
	ls, ex := KeyLabels(b.Series[0].Key), b.Series[0].Exemplars[0].Labels
	clear(b.body)
	b.Release()
	require.Equal(t, `{__name__="up", job="a"}`, ls.String())
	require.Equal(t, `{trace_id="abc"}`, ex.String())
}

// floatRequest is what a Prometheus sends: series with twelve labels, one sample each.
func floatRequest(series int) (v1, v2 []byte) {
	var m1, m2 message
	symbols := []string{""}
	for _, n := range []string{"__name__", "cluster", "container", "endpoint", "instance", "job", "le", "namespace", "pod", "prometheus", "service", "zone"} {
		symbols = append(symbols, n, "value-of-"+n)
	}
	for i := range series {
		var pairs []string
		var refs message
		for j := 1; j < len(symbols[:25]); j += 2 {
			value := symbols[j+1]
			ref := uint64(j + 1)
			if j == 9 {
				value = fmt.Sprintf("10.0.%d.%d:9100", i/256, i%256)
				ref = uint64(len(symbols))
				symbols = append(symbols, value)
			}
			pairs = append(pairs, symbols[j], value)
			refs = appendVarint(appendVarint(refs, uint64(j)), ref)
		}
		float := message{}.bytes(2, sample(testNow, float64(i)))
		m1 = m1.bytes(1, seriesV1(pairs, float))
		m2 = m2.bytes(5, append(message{}.bytes(1, refs), float...))
	}
	return m1, append(v2Request(symbols), m2...)
}

// decodeOnce is what Ingest does up to the Appender.
func decodeOnce(r *Receiver, p Protocol, block []byte) error {
	d, _ := decoderPool.Get().(*decoder)
	d.b = newBatch()
	defer d.b.Release()
	defer d.release()
	d.judge = &d.verdict
	d.judge.reset(&r.limits, time.UnixMilli(testNow))
	d.rejected = d.rejected[:0]
	d.budget = maxExpansion * r.limits.MaxDecompressed
	if err := d.b.decompress(block, r.limits.MaxDecompressed); err != nil {
		return err
	}
	return d.run(p)
}
