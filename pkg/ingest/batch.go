// Package ingest turns remote write requests into samples. The one idea: a
// request is decoded in a single pass into flat, pooled arenas (a Batch), and
// the bytes that came over the wire are at the same time the identity of a
// series (its Key) and a record that can go to the log. Labels that are already
// known are never looked at, nor turned into strings.
//
// What was refused is decided once, when the request arrives, and stored beside
// the request as a list of ordinals (Rejected). Reading the log back decodes the
// same bytes and drops the same ordinals: it depends on no limit and no clock.
// The same list holds what was dropped because another replica of the sender is
// elected (see HA), and the record the labels by which that was known.
//
// Concurrency: a Receiver may be used by any number of goroutines and holds no
// lock but, for moments, that of the table of elected replicas. A Batch belongs
// to whoever got it until Release; once its Refs are set, it may be read by many
// goroutines in between, written by none. A decoder belongs to one call. The
// Receiver lends header, body and Batch to Appender.Append for the length of the
// call and takes them back afterwards; Batches made by DecodeRecord are released
// by the caller.
package ingest

import (
	"sync"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
)

// Protocol says how a body is encoded, after decompression.
type Protocol uint8

const (
	// V1 is prometheus.WriteRequest, remote write 1.0.
	V1 Protocol = 1
	// V2 is io.prometheus.write.v2.Request, remote write 2.0.
	V2 Protocol = 2
)

// String returns the name used in metrics and logs.
func (p Protocol) String() string {
	switch p {
	case V1:
		return "v1"
	case V2:
		return "v2"
	}
	return "unknown"
}

// Batch is one decoded request. Everything in it, strings included, is valid
// until Release only; copy what is to live longer. Exceptions, owned by the
// garbage collector: Exemplar.Labels and the CustomValues of histograms.
type Batch struct {
	// Series holds every series that has at least one float, histogram or
	// exemplar left after validation, in the order of the request. A series may
	// appear more than once.
	Series []Series
	// Metadata holds v1's metadata entries, or v2's gathered per metric family.
	Metadata []Metadata
	// Known is what the Refs of Series refer to; nil if there are none.
	Known Known

	written  Written
	released bool

	body       []byte // decompressed request; keys, metadata and symbols alias it
	keys       []byte // keys that had to be built
	floats     []Float
	histograms []Histogram
	exemplars  []Exemplar
	ints       []histogram.Histogram
	flts       []histogram.FloatHistogram
	spans      []histogram.Span
	deltas     []int64
	counts     []float64
}

// Series is the part of a request that belongs to one label set.
type Series struct {
	// Key is the label set in canonical form: the protobuf bytes of remote write
	// 1.0's labels (field 1 of TimeSeries, repeated), sorted by name, without
	// duplicates, without empty values, lengths as short varints. It is nil where
	// Ref says enough; see Detach.
	Key []byte
	// Hash is the xxhash64 of Key.
	Hash uint64
	// Ref is what Known said of the series; 0 if it did not know it.
	Ref        uint32
	Floats     []Float
	Histograms []Histogram
	Exemplars  []Exemplar
}

// Known finds series that were accepted before. Their keys are canonical and need not be judged again. Its methods are called concurrently.
type Known interface {
	// Find finds a series by its key, which may be any bytes and is not to be kept. References are above 0.
	Find(hash uint64, key []byte) (ref uint32, ok bool)
	// After returns the series that came behind another when Follow was last told. It is a guess: the caller compares the labels.
	After(hash uint64, ref uint32) (KnownSeries, bool)
	// Follow says that in a request a series came behind another.
	Follow(hash uint64, ref uint32, next KnownSeries)
	// Labels returns the labels of a series.
	Labels(hash uint64, ref uint32) labels.Labels
}

// KnownSeries is a series that Known has found. Hash is that of its key.
type KnownSeries struct {
	Labels labels.Labels
	Hash   uint64
	Ref    uint32
}

// Float is a sample. T and ST are in milliseconds; ST, the start timestamp, is 0
// where none was given. Stale markers keep their bits.
type Float struct {
	T, ST int64
	V     float64
}

// Histogram is a native histogram sample: exactly one of H and FH is set. T and
// ST are as in Float. Spans and buckets may be changed in place by the holder of
// the Batch; CustomValues must not be (they may be shared, and may be kept).
type Histogram struct {
	T, ST int64
	H     *histogram.Histogram
	FH    *histogram.FloatHistogram
}

// Exemplar is an exemplar of a series; T is in milliseconds, 0 if none was given.
type Exemplar struct {
	Labels labels.Labels
	T      int64
	V      float64
}

// Metadata describes a metric family.
type Metadata struct {
	Family string
	Type   model.MetricType
	Help   string
	Unit   string
}

// Detach makes the batch independent of what Known: every series gets its key, and none has a reference.
func (b *Batch) Detach() {
	for i := range b.Series {
		s := &b.Series[i]
		if s.Key == nil {
			start := len(b.keys) // Keys that were built before stay where they are if this has to move.
			b.keys = LabelsKey(b.keys, b.Known.Labels(s.Hash, s.Ref))
			s.Key = b.keys[start:len(b.keys):len(b.keys)]
		}
		s.Ref = 0
	}
	b.Known = nil
}

// Written counts what was accepted of a request.
type Written struct {
	Samples, Histograms, Exemplars int
}

// Written counts the items in the batch.
func (b *Batch) Written() Written { return b.written }

// Empty says that there is nothing to store.
func (b *Batch) Empty() bool { return len(b.Series) == 0 && len(b.Metadata) == 0 }

// maxPooled is the capacity in bytes above which a batch is left to the garbage
// collector instead of the pool: a rare giant must not be held for ever.
const maxPooled = 16 << 20

var batchPool = sync.Pool{New: func() any { return new(Batch) }}

func newBatch() *Batch {
	b, _ := batchPool.Get().(*Batch)
	b.released = false
	return b
}

// Release gives the batch back to the pool. The batch and all that was read from
// it must not be used afterwards; a second Release is ignored.
func (b *Batch) Release() {
	if b.released {
		return
	}
	b.released = true
	// What holds pointers is cleared, so that a pooled batch keeps nothing alive.
	clear(b.Series)
	clear(b.Metadata)
	clear(b.histograms)
	clear(b.exemplars)
	clear(b.ints)
	clear(b.flts)
	b.Series = b.Series[:0]
	b.Metadata = b.Metadata[:0]
	b.Known = nil
	b.written = Written{}
	b.keys = b.keys[:0]
	b.floats = b.floats[:0]
	b.histograms = b.histograms[:0]
	b.exemplars = b.exemplars[:0]
	b.ints = b.ints[:0]
	b.flts = b.flts[:0]
	b.spans = b.spans[:0]
	b.deltas = b.deltas[:0]
	b.counts = b.counts[:0]
	if b.footprint() <= maxPooled {
		batchPool.Put(b)
	}
}

// footprint is the memory that the arenas hold, in bytes.
func (b *Batch) footprint() int {
	return cap(b.body) + cap(b.keys) +
		cap(b.Series)*seriesSize + cap(b.Metadata)*metadataSize +
		cap(b.floats)*floatSize + cap(b.histograms)*histogramSize + cap(b.exemplars)*exemplarSize +
		cap(b.ints)*intSize + cap(b.flts)*fltSize +
		(cap(b.spans)+cap(b.deltas)+cap(b.counts))*8
}
