package block

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/thanos-io/objstore"
)

// ErrMismatch says that a block in a bucket is not what was to be written.
var ErrMismatch = errors.New("the block in the bucket is not what was written")

// Digest is of the series of a block in their order: their labels, and times, encoding and data of their chunks. The zero value
// is that of no series.
type Digest struct {
	hash   xxhash.Digest
	begun  bool
	buf    []byte
	series uint64
}

// add takes the next series.
func (d *Digest) add(lset labels.Labels, chks []chunks.Meta) {
	d.begin(lset, len(chks))
	for _, c := range chks {
		d.chunk(c, c.Chunk.Encoding(), c.Chunk.Bytes())
	}
}

func (d *Digest) begin(lset labels.Labels, chks int) {
	if !d.begun {
		d.begun = true
		d.hash.Reset()
	}
	d.series++
	d.buf = lset.Bytes(d.buf[:0])
	d.buf = binary.BigEndian.AppendUint64(d.buf, uint64(chks))
	_, _ = d.hash.Write(d.buf) // never fails
}

func (d *Digest) chunk(c chunks.Meta, e chunkenc.Encoding, data []byte) {
	d.buf = binary.BigEndian.AppendUint64(d.buf[:0], uint64(c.MinTime))
	d.buf = binary.BigEndian.AppendUint64(d.buf, uint64(c.MaxTime))
	d.buf = binary.BigEndian.AppendUint32(d.buf, uint32(len(data)))
	d.buf = append(d.buf, byte(e))
	_, _ = d.hash.Write(d.buf)
	_, _ = d.hash.Write(data)
}

// Sum returns the digest so far.
func (d *Digest) Sum() uint64 {
	if !d.begun {
		return 0
	}
	return d.hash.Sum64()
}

// ReadBack reads the files of the block of m whole, which need not have its meta.json yet, and checks all of what Verify does but the samples
// in the chunks: instead of decoding these it compares the block's digest. What does not agree is an ErrMismatch; other errors are
// the bucket's.
func ReadBack(ctx context.Context, bkt objstore.BucketReader, m Meta, want uint64) error {
	v := &verifier{ctx: ctx, bkt: bkt, id: m.ULID, meta: m, digest: &Digest{}}
	err := v.content()
	switch {
	case err != nil && !errors.Is(err, errEnough):
		return fmt.Errorf("read back block %s: %w", m.ULID, err)
	case len(v.findings) > 0:
		return fmt.Errorf("%w: %s", ErrMismatch, v.findings[0])
	case v.digest.Sum() != want:
		return fmt.Errorf("%w: block %s: the digest of its series is %016x, not %016x", ErrMismatch, m.ULID, v.digest.Sum(), want)
	}
	return nil
}
