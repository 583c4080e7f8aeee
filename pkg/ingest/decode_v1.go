package ingest

import (
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/common/model"
)

// Field numbers that a message knows, as bits.
const (
	fieldsRequestV1  = 1<<1 | 1<<3
	fieldsSeriesV1   = 1<<1 | 1<<2 | 1<<3 | 1<<4
	fieldsLabel      = 1<<1 | 1<<2
	fieldsSampleV1   = 1<<1 | 1<<2
	fieldsExemplar   = 1<<1 | 1<<2 | 1<<3
	fieldsMetadataV1 = 1<<1 | 1<<2 | 1<<4 | 1<<5
)

func (d *decoder) requestV1(b []byte) error {
	series := 0
	for i := 0; i < len(b); {
		t, j := readTag(b, i)
		if j < 0 {
			return fmt.Errorf("write request: %w", wireError(j))
		}
		switch t {
		case 1<<3 | wireBytes, 3<<3 | wireBytes:
			s, e := readBytes(b, j)
			if e < 0 {
				return fmt.Errorf("write request: %w", wireError(e))
			}
			d.known = true
			i = e
			if t == 3<<3|wireBytes {
				if err := d.metadataV1(b[s:e]); err != nil {
					return fmt.Errorf("metadata: %w", err)
				}
				continue
			}
			if err := d.seriesV1(b[s:e]); err != nil {
				return fmt.Errorf("timeseries %d: %w", series, err)
			}
			series++
		default:
			// Fields 4 and 5 are those of a 2.0 request.
			d.foreign = d.foreign || t == 4<<3|wireBytes || t == 5<<3|wireBytes
			if i = skipField(b, j, t, fieldsRequestV1); i < 0 {
				return fmt.Errorf("write request: %w", wireError(i))
			}
		}
	}
	return nil
}

func (d *decoder) seriesV1(b []byte) error {
	if d.b.Known != nil {
		if done, err := d.knownV1(b); done {
			return err
		}
	}
	d.openSeries()
	keyStart, keyEnd, canonical := 0, -1, true
	for i := 0; i < len(b); {
		start := i
		t, j := readTag(b, i)
		if j < 0 {
			return wireError(j)
		}
		if t != tagLabel {
			var err error
			if i, err = d.fieldV1(b, j, t); err != nil {
				return err
			}
			continue
		}
		s, e := readBytes(b, j)
		if e < 0 {
			return wireError(e)
		}
		i = e
		p, short, err := parseLabel(b[s:e])
		if err != nil {
			return fmt.Errorf("label: %w", err)
		}
		if len(d.pairs) == maxSeriesLabels {
			return errTooLarge
		}
		d.pairs = append(d.pairs, p)
		// The labels' bytes are the key if each is written in the short form
		// and they stand side by side.
		if keyEnd < 0 {
			keyStart, keyEnd = start, start
		}
		if !short || keyEnd != start || s-start != 1+varintLen(uint64(e-s)) {
			canonical = false
		}
		keyEnd = e
	}
	var key []byte
	if canonical && keyEnd >= 0 {
		key = b[keyStart:keyEnd:keyEnd]
	}
	return d.closeSeries(key, nil)
}

// knownV1 decodes a series that was accepted before and whose labels stand at
// its beginning, as those of every sender do. done is false if it is not such a
// series; then nothing has been done.
func (d *decoder) knownV1(b []byte) (done bool, err error) {
	end := 0
	for end+1 < len(b) && b[end] == tagLabel && b[end+1] < 0x80 {
		end += 2 + int(b[end+1])
	}
	if end == 0 || end > len(b) {
		return false, nil
	}
	d.openSeries()
	s := Series{Key: b[:end:end]}
	v, built := verdictJudge, len(d.b.keys)
	if d.pairing.labels.on() {
		if v, done = d.pairUpV1(&s); !done {
			return false, nil
		}
	}
	if v != verdictDrop {
		if !d.identify(&s) {
			d.b.keys = d.b.keys[:built]
			return false, nil
		}
	}
	for i := end; i < len(b); {
		t, j := readTag(b, i)
		if j < 0 {
			return true, wireError(j)
		}
		if t == tagLabel { // More labels, behind something else.
			d.truncate()
			d.b.keys = d.b.keys[:built]
			return false, nil
		}
		if i, err = d.fieldV1(b, j, t); err != nil {
			return true, err
		}
	}
	if v == verdictDrop {
		return true, d.closeDropped(d.number())
	}
	if v == verdictKeep && !d.spend(len(s.Key)) {
		return true, errTooLarge
	}
	return true, d.closeKnown(s, nil)
}

// identify looks a series up by its key.
func (d *decoder) identify(s *Series) bool {
	if is, ok := d.order.guess(); ok && KeyEquals(s.Key, is.Labels) {
		s.Hash, s.Ref = is.Hash, is.Ref
		d.order.right(is)
		return true
	}
	s.Hash = xxhash.Sum64(s.Key)
	ref, ok := d.b.Known.Find(s.Hash, s.Key)
	if ok {
		s.Ref = ref
		d.order.wrong(s.Hash, ref)
	}
	return ok
}

// fieldV1 decodes a field of a series that is not a label, and returns the index behind it.
func (d *decoder) fieldV1(b []byte, i int, tag uint64) (int, error) {
	if tag >= 5<<3 || tag&7 != wireBytes {
		if i = skipField(b, i, tag, fieldsSeriesV1); i < 0 {
			return 0, wireError(i)
		}
		return i, nil
	}
	s, e := readBytes(b, i)
	if e < 0 {
		return 0, wireError(e)
	}
	switch tag >> 3 {
	case 2:
		f, err := parseSample(b[s:e], fieldsSampleV1)
		if err != nil {
			return 0, fmt.Errorf("sample: %w", err)
		}
		if err := d.addFloat(f); err != nil {
			return 0, err
		}
	case 3:
		if err := d.exemplarV1(b[s:e]); err != nil {
			return 0, fmt.Errorf("exemplar: %w", err)
		}
	case 4:
		if err := d.histogram(b[s:e]); err != nil {
			return 0, fmt.Errorf("histogram: %w", err)
		}
	}
	return e, nil
}

// parseLabel reads a Label message. short says that it is written as this
// package would write it.
func parseLabel(b []byte) (p pair, short bool, err error) {
	// The form that every sender uses, with lengths of one byte.
	if len(b) > 4 && b[0] == tagName && b[1] > 0 && b[1] < 0x80 {
		n := 2 + int(b[1])
		if n+2 < len(b) && b[n] == tagValue && b[n+1] < 0x80 && n+2+int(b[n+1]) == len(b) {
			// Tags and lengths are ASCII, so one look covers name and value.
			return pair{name: b[2:n:n], value: b[n+2 : len(b) : len(b)], invalid: !utf8.Valid(b)}, true, nil
		}
	}
	return parseRareLabel(b)
}

func parseRareLabel(b []byte) (p pair, short bool, err error) {
	fields := 0
	inOrder := true
	for i := 0; i < len(b); {
		t, j := readTag(b, i)
		if j < 0 {
			return p, false, wireError(j)
		}
		if t != tagName && t != tagValue {
			if i = skipField(b, j, t, fieldsLabel); i < 0 {
				return p, false, wireError(i)
			}
			inOrder = false
			continue
		}
		s, e := readBytes(b, j)
		if e < 0 {
			return p, false, wireError(e)
		}
		if t == tagName {
			p.name = b[s:e:e]
			inOrder = inOrder && fields == 0
		} else {
			p.value = b[s:e:e]
			inOrder = inOrder && fields == 1
		}
		fields++
		i = e
	}
	p.invalid = !utf8.Valid(p.name) || !utf8.Valid(p.value)
	short = inOrder && fields == 2 && len(b) == labelSize(len(p.name), len(p.value))
	return p, short, nil
}

// parseSample reads a Sample message of either protocol; known tells whether it
// has a start timestamp.
func parseSample(b []byte, known uint64) (f Float, err error) {
	for i := 0; i < len(b); {
		t, j := readTag(b, i)
		var v uint64
		switch {
		case t == 1<<3|wireFixed64:
			v, i = readFixed64(b, j)
			f.V = math.Float64frombits(v)
		case t == 2<<3|wireVarint:
			v, i = readVarint(b, j)
			f.T = int64(v)
		case t == 3<<3|wireVarint && known>>3&1 == 1:
			v, i = readVarint(b, j)
			f.ST = int64(v)
		case j < 0:
			i = j
		default:
			i = skipField(b, j, t, known)
		}
		if i < 0 {
			return f, wireError(i)
		}
	}
	return f, nil
}

func (d *decoder) exemplarV1(b []byte) error {
	var e Exemplar
	d.builder.Reset()
	set := exemplarLabels{builder: &d.builder}
	for i := 0; i < len(b); {
		t, j := readTag(b, i)
		var v uint64
		switch {
		case t == 1<<3|wireBytes:
			var s int
			if s, i = readBytes(b, j); i < 0 {
				break
			}
			p, _, err := parseLabel(b[s:i])
			if err != nil {
				return fmt.Errorf("label: %w", err)
			}
			set.add(p)
		case t == 2<<3|wireFixed64:
			v, i = readFixed64(b, j)
			e.V = math.Float64frombits(v)
		case t == 3<<3|wireVarint:
			v, i = readVarint(b, j)
			e.T = int64(v)
		case j < 0:
			i = j
		default:
			i = skipField(b, j, t, fieldsExemplar)
		}
		if i < 0 {
			return wireError(i)
		}
	}
	return d.addExemplar(e, &set)
}

var metadataTypes = [...]model.MetricType{
	model.MetricTypeUnknown, model.MetricTypeCounter, model.MetricTypeGauge, model.MetricTypeHistogram,
	model.MetricTypeGaugeHistogram, model.MetricTypeSummary, model.MetricTypeInfo, model.MetricTypeStateset,
}

// metricType translates the enumeration, which is the same in both protocols.
func metricType(v uint64) model.MetricType {
	if n := uint32(v); int(n) < len(metadataTypes) {
		return metadataTypes[n]
	}
	return model.MetricTypeUnknown
}

func (d *decoder) metadataV1(b []byte) error {
	m := Metadata{Type: model.MetricTypeUnknown}
	for i := 0; i < len(b); {
		t, j := readTag(b, i)
		var v uint64
		var s int
		switch {
		case t == 1<<3|wireVarint:
			v, i = readVarint(b, j)
			m.Type = metricType(v)
		case t == 2<<3|wireBytes:
			if s, i = readBytes(b, j); i >= 0 {
				m.Family = text(b[s:i])
			}
		case t == 4<<3|wireBytes:
			if s, i = readBytes(b, j); i >= 0 {
				m.Help = text(b[s:i])
			}
		case t == 5<<3|wireBytes:
			if s, i = readBytes(b, j); i >= 0 {
				m.Unit = text(b[s:i])
			}
		case j < 0:
			i = j
		default:
			i = skipField(b, j, t, fieldsMetadataV1)
		}
		if i < 0 {
			return wireError(i)
		}
	}
	ordinal := d.next
	d.next++
	if d.judge == nil {
		if d.replayed(ordinal) {
			return nil
		}
	} else if m.Family == "" || !utf8.ValidString(m.Family) || !utf8.ValidString(m.Help) || !utf8.ValidString(m.Unit) {
		d.rejected = append(d.rejected, ordinal)
		d.judge.metadata++
		return nil
	}
	if !d.spend(metadataSize) {
		return errTooLarge
	}
	d.b.Metadata = append(d.b.Metadata, m)
	return nil
}
