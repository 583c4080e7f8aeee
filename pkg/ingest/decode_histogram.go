package ingest

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
)

// Field 17, the start timestamp, is 2.0's; all others are the same in both.
const fieldsHistogramV1 = 1<<17 - 2

// histogramScratch collects the repeated fields of one histogram, which may be
// interleaved on the wire, before they go to the arenas.
type histogramScratch struct {
	sides      [2]side // negative, positive
	custom     []float64
	lastCustom []float64 // custom values of the histogram before, which may be shared
}

type side struct {
	spans  []histogram.Span
	deltas []int64
	counts []float64
}

func (s *histogramScratch) reset() {
	for i := range s.sides {
		s.sides[i].spans = s.sides[i].spans[:0]
		s.sides[i].deltas = s.sides[i].deltas[:0]
		s.sides[i].counts = s.sides[i].counts[:0]
	}
	s.custom = s.custom[:0]
}

func (s *histogramScratch) footprint() int {
	n := cap(s.custom)
	for i := range s.sides {
		n += cap(s.sides[i].spans) + cap(s.sides[i].deltas) + cap(s.sides[i].counts)
	}
	return n * 8
}

// scalars are the single fields of a histogram. Of a pair of alternatives the
// one that comes last on the wire counts.
type scalars struct {
	count, zeroCount       uint64
	isFloat, zeroIsFloat   bool
	sum, zeroThreshold     float64
	schema                 int32
	hint                   histogram.CounterResetHint
	timestamp, startMillis int64
}

func (d *decoder) histogram(b []byte) error {
	d.hist.reset()
	var h scalars
	for i := 0; i < len(b); {
		t, j := readTag(b, i)
		if j < 0 {
			return wireError(j)
		}
		switch num := t >> 3; {
		case num >= 8 && num <= 13 || num == 16:
			var err error
			if i, err = d.hist.repeated(b, j, t); err != nil {
				return err
			}
		default:
			if i = h.scalar(b, j, t, d.v2); i < 0 {
				return wireError(i)
			}
		}
	}
	return d.addHistogram(&h)
}

// scalar reads a single field whose tag is t and whose value begins at i.
func (h *scalars) scalar(b []byte, i int, t uint64, v2 bool) int {
	var v uint64
	switch t {
	case 1<<3 | wireVarint:
		h.count, i = readVarint(b, i)
		h.isFloat = false
	case 2<<3 | wireFixed64:
		h.count, i = readFixed64(b, i)
		h.isFloat = true
	case 3<<3 | wireFixed64:
		v, i = readFixed64(b, i)
		h.sum = math.Float64frombits(v)
	case 4<<3 | wireVarint:
		v, i = readVarint(b, i)
		h.schema = zigzag32(v)
	case 5<<3 | wireFixed64:
		v, i = readFixed64(b, i)
		h.zeroThreshold = math.Float64frombits(v)
	case 6<<3 | wireVarint:
		h.zeroCount, i = readVarint(b, i)
		h.zeroIsFloat = false
	case 7<<3 | wireFixed64:
		h.zeroCount, i = readFixed64(b, i)
		h.zeroIsFloat = true
	case 14<<3 | wireVarint:
		v, i = readVarint(b, i)
		h.hint = histogram.UnknownCounterReset
		if uint32(v) <= uint32(histogram.GaugeType) {
			h.hint = histogram.CounterResetHint(v)
		}
	case 15<<3 | wireVarint:
		v, i = readVarint(b, i)
		h.timestamp = int64(v)
	case 17<<3 | wireVarint:
		v, i = readVarint(b, i)
		if v2 {
			h.startMillis = int64(v)
		}
	default:
		known := uint64(fieldsHistogramV1)
		if v2 {
			known |= 1 << 17
		}
		i = skipField(b, i, t, known)
	}
	return i
}

// repeated reads spans (8, 11), deltas (9, 12), counts (10, 13) or custom
// values (16), packed or not.
func (s *histogramScratch) repeated(b []byte, i int, t uint64) (int, error) {
	num, typ := t>>3, t&7
	end := i
	if typ == wireBytes {
		if i, end = readBytes(b, i); end < 0 {
			return 0, wireError(end)
		}
	}
	sd := &s.sides[0]
	if num >= 11 {
		sd = &s.sides[1]
	}
	switch {
	case (num == 8 || num == 11) && typ == wireBytes:
		span, err := parseSpan(b[i:end])
		if err != nil {
			return 0, fmt.Errorf("bucket span: %w", err)
		}
		if len(sd.spans) == maxBuckets {
			return 0, errTooLarge
		}
		sd.spans = append(sd.spans, span)
		return end, nil
	case num == 9 || num == 12:
		return readDeltas(&sd.deltas, b, i, end, typ)
	case num == 10 || num == 13:
		return readDoubles(&sd.counts, b, i, end, typ)
	case num == 16:
		return readDoubles(&s.custom, b, i, end, typ)
	}
	return 0, errWireType
}

func readDeltas(dst *[]int64, b []byte, i, end int, typ uint64) (int, error) {
	switch typ {
	case wireVarint:
		v, i := readVarint(b, i)
		if i < 0 {
			return 0, wireError(i)
		}
		if len(*dst) == maxBuckets {
			return 0, errTooLarge
		}
		*dst = append(*dst, zigzag64(v))
		return i, nil
	case wireBytes:
		for i < end {
			var v uint64
			if v, i = readVarint(b[:end], i); i < 0 {
				return 0, wireError(i)
			}
			if len(*dst) == maxBuckets {
				return 0, errTooLarge
			}
			*dst = append(*dst, zigzag64(v))
		}
		return end, nil
	}
	return 0, errWireType
}

func readDoubles(dst *[]float64, b []byte, i, end int, typ uint64) (int, error) {
	switch typ {
	case wireFixed64:
		end = i + 8
	case wireBytes:
	default:
		return 0, errWireType
	}
	for i < end {
		v, next := readFixed64(b[:min(end, len(b))], i)
		if next < 0 {
			return 0, wireError(next)
		}
		if len(*dst) == maxBuckets {
			return 0, errTooLarge
		}
		*dst = append(*dst, math.Float64frombits(v))
		i = next
	}
	return end, nil
}

func parseSpan(b []byte) (s histogram.Span, err error) {
	for i := 0; i < len(b); {
		t, j := readTag(b, i)
		var v uint64
		switch {
		case t == 1<<3|wireVarint:
			v, i = readVarint(b, j)
			s.Offset = zigzag32(v)
		case t == 2<<3|wireVarint:
			v, i = readVarint(b, j)
			s.Length = uint32(v)
		case j < 0:
			i = j
		default:
			i = skipField(b, j, t, 1<<1|1<<2)
		}
		if i < 0 {
			return s, wireError(i)
		}
	}
	return s, nil
}

// addHistogram moves the histogram from the scratch to the arenas.
func (d *decoder) addHistogram(s *scalars) error {
	b, neg, pos := d.b, &d.hist.sides[0], &d.hist.sides[1]
	custom, err := d.customValues()
	if err != nil {
		return err
	}
	out := Histogram{T: s.timestamp, ST: s.startMillis}
	spans := (len(neg.spans) + len(pos.spans)) * 8
	if s.isFloat {
		if !d.spend(histogramSize + fltSize + spans + (len(neg.counts)+len(pos.counts))*8) {
			return errTooLarge
		}
		h := histogram.FloatHistogram{
			CounterResetHint: s.hint, Schema: s.schema, ZeroThreshold: s.zeroThreshold, Sum: s.sum,
			Count:         math.Float64frombits(s.count),
			NegativeSpans: stow(&b.spans, neg.spans), NegativeBuckets: stow(&b.counts, neg.counts),
			PositiveSpans: stow(&b.spans, pos.spans), PositiveBuckets: stow(&b.counts, pos.counts),
			CustomValues: custom,
		}
		if s.zeroIsFloat {
			h.ZeroCount = math.Float64frombits(s.zeroCount)
		}
		b.flts = append(b.flts, h)
		out.FH = &b.flts[len(b.flts)-1]
	} else {
		if !d.spend(histogramSize + intSize + spans + (len(neg.deltas)+len(pos.deltas))*8) {
			return errTooLarge
		}
		h := histogram.Histogram{
			CounterResetHint: s.hint, Schema: s.schema, ZeroThreshold: s.zeroThreshold, Sum: s.sum,
			Count:         s.count,
			NegativeSpans: stow(&b.spans, neg.spans), NegativeBuckets: stow(&b.deltas, neg.deltas),
			PositiveSpans: stow(&b.spans, pos.spans), PositiveBuckets: stow(&b.deltas, pos.deltas),
			CustomValues: custom,
		}
		if !s.zeroIsFloat {
			h.ZeroCount = s.zeroCount
		}
		b.ints = append(b.ints, h)
		out.H = &b.ints[len(b.ints)-1]
	}
	b.histograms = append(b.histograms, out)
	return nil
}

// stow copies src to the end of the arena. The result cannot grow into what
// follows it; it is nil if there is nothing to copy.
func stow[T any](arena *[]T, src []T) []T {
	if len(src) == 0 {
		return nil
	}
	start := len(*arena)
	*arena = append(*arena, src...)
	return (*arena)[start:len(*arena):len(*arena)]
}

// customValues returns the bounds of custom buckets in memory of their own:
// Prometheus's code takes them to be immutable and keeps them. Histograms of one
// request that have the same bounds share them.
func (d *decoder) customValues() ([]float64, error) {
	custom := d.hist.custom
	if len(custom) == 0 {
		return nil, nil
	}
	if slices.EqualFunc(custom, d.hist.lastCustom, sameBits) {
		return d.hist.lastCustom, nil
	}
	if !d.spend(len(custom) * 8) {
		return nil, errTooLarge
	}
	d.hist.lastCustom = slices.Clone(custom)
	return d.hist.lastCustom, nil
}

func sameBits(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) }

// normalise brings a histogram of a finer schema than chunks can hold to the
// finest that they can, as Prometheus does.
func normalise(h Histogram) error {
	switch {
	case h.H != nil && tooFine(h.H.Schema):
		return h.H.ReduceResolution(histogram.ExponentialSchemaMax)
	case h.FH != nil && tooFine(h.FH.Schema):
		return h.FH.ReduceResolution(histogram.ExponentialSchemaMax)
	}
	return nil
}

func tooFine(schema int32) bool {
	return histogram.IsExponentialSchemaReserved(schema) && schema > histogram.ExponentialSchemaMax
}

// exemplarLabels collects an exemplar's labels up to what OpenMetrics allows;
// beyond that it only remembers that they were too long.
type exemplarLabels struct {
	builder *labels.ScratchBuilder
	runes   int
	count   int
	reason  reason
}

func (l *exemplarLabels) add(p pair) {
	l.runes += utf8.RuneCount(p.name) + utf8.RuneCount(p.value)
	l.count++
	switch {
	case p.invalid:
		l.reason = reasonExemplarUTF8
	case l.runes > exemplar.ExemplarMaxLabelSetLength || l.count > exemplar.ExemplarMaxLabelSetLength:
		l.reason = reasonExemplarLength
	case len(p.value) > 0:
		l.builder.Add(text(p.name), text(p.value))
	}
}

// addExemplar keeps the place of an exemplar that is not acceptable: its ordinal
// must exist.
func (d *decoder) addExemplar(e Exemplar, set *exemplarLabels) error {
	if !d.spend(exemplarSize + 2*min(set.runes, exemplar.ExemplarMaxLabelSetLength)) {
		return errTooLarge
	}
	if set.reason == accepted && set.count > 0 {
		set.builder.Sort()
		ls := set.builder.Labels()
		if _, dup := ls.HasDuplicateLabelNames(); dup {
			set.reason = reasonExemplarDuplicate
		} else {
			e.Labels = cloneLabels(ls)
		}
	}
	d.b.exemplars = append(d.b.exemplars, e)
	d.exReasons = append(d.exReasons, set.reason)
	return nil
}

// cloneLabels is a no-op for builds of package labels that copy strings into one
// when a set is built; others would keep the request's bytes.
func cloneLabels(ls labels.Labels) labels.Labels {
	if copiesStrings {
		return ls
	}
	b := labels.NewScratchBuilder(ls.Len())
	ls.Range(func(l labels.Label) { b.Add(strings.Clone(l.Name), strings.Clone(l.Value)) })
	return b.Labels()
}

var copiesStrings = func() bool {
	raw := []byte("ab")
	b := labels.NewScratchBuilder(1)
	b.Add(text(raw[:1]), text(raw[1:]))
	ls := b.Labels()
	raw[1] = 'c'
	return ls.Get("a") == "b"
}()
