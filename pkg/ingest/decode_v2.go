package ingest

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

const (
	fieldsRequestV2  = 1<<4 | 1<<5
	fieldsSeriesV2   = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5
	fieldsSampleV2   = 1<<1 | 1<<2 | 1<<3
	fieldsMetadataV2 = 1<<1 | 1<<3 | 1<<4
)

// symbol is an entry of a 2.0 request's table of strings, as bounds in the body.
type symbol struct {
	start uint32
	end   uint32 // with symbolInvalid
	// family is 1 + where the metadata of the metric of this name is gathered; 0
	// if it was not met.
	family uint32
}

// symbolInvalid marks a symbol that is not valid UTF-8. Bodies are smaller than
// maxSize, so the bit is free.
const symbolInvalid = 1 << 31

const metricNameLabel = model.MetricNameLabel

// requestV2 goes over the request twice: symbols first, since they may stand
// anywhere, then the series.
func (d *decoder) requestV2(b []byte) error {
	d.symbols = d.symbols[:0]
	if err := d.eachV2(b, 4, func(s, e int) error {
		if !d.spend(8) {
			return errTooLarge
		}
		sym := symbol{start: uint32(s), end: uint32(e)}
		if !utf8.Valid(b[s:e]) {
			sym.end |= symbolInvalid
		}
		d.symbols = append(d.symbols, sym)
		return nil
	}); err != nil {
		return fmt.Errorf("write request: %w", err)
	}
	if d.judge != nil && len(d.symbols) > 0 && d.symbols[0].end != d.symbols[0].start { // logs of earlier builds may hold such
		return fmt.Errorf("write request: %w", errFirstSymbol)
	}
	series := 0
	return d.eachV2(b, 5, func(s, e int) error {
		if err := d.seriesV2(b[s:e]); err != nil {
			return fmt.Errorf("timeseries %d: %w", series, err)
		}
		series++
		return nil
	})
}

// eachV2 calls f with the bounds of every occurrence of a field of the request.
func (d *decoder) eachV2(b []byte, field uint64, f func(s, e int) error) error {
	for i := 0; i < len(b); {
		t, j := readTag(b, i)
		if j < 0 {
			return wireError(j)
		}
		if t != 4<<3|wireBytes && t != 5<<3|wireBytes {
			// Fields 1 and 3 are those of a 1.0 request.
			d.foreign = d.foreign || t == 1<<3|wireBytes || t == 3<<3|wireBytes
			if i = skipField(b, j, t, fieldsRequestV2); i < 0 {
				return wireError(i)
			}
			continue
		}
		d.known = true
		s, e := readBytes(b, j)
		if e < 0 {
			return wireError(e)
		}
		if t>>3 == field {
			if err := f(s, e); err != nil {
				return err
			}
		}
		i = e
	}
	return nil
}

// metadataV2 is a series' metadata while it is decoded; repeated messages merge.
type metadataV2 struct {
	seen       bool
	typ        uint64
	help, unit uint64
}

func (d *decoder) seriesV2(b []byte) error {
	d.openSeries()
	var meta metadataV2
	for i := 0; i < len(b); {
		t, j := readTag(b, i)
		if j < 0 {
			return wireError(j)
		}
		if t == 1<<3|wireVarint {
			if i = d.addRef(&d.refs, b, j); i < 0 {
				return d.refError(i)
			}
			continue
		}
		if t >= 6<<3 || t&7 != wireBytes {
			if i = skipField(b, j, t, fieldsSeriesV2); i < 0 {
				return wireError(i)
			}
			continue
		}
		s, e := readBytes(b, j)
		if e < 0 {
			return wireError(e)
		}
		i = e
		if err := d.seriesFieldV2(t>>3, b[s:e], &meta); err != nil {
			return err
		}
	}
	m, err := d.resolveMetadata(meta)
	if err != nil {
		return err
	}
	about := &m
	if m.Type == model.MetricTypeUnknown && m.Help == "" && m.Unit == "" {
		about = nil
	}
	s, ok, dropped := d.findV2()
	if dropped {
		return d.closeDropped(d.number())
	}
	if ok && (about != nil || d.hasItems()) {
		return d.closeKnown(s, about)
	}
	if d.pairs, err = d.resolve(d.pairs, d.refs); err != nil {
		return err
	}
	return d.closeSeries(nil, about)
}

// maxKnownKey is the size in bytes up to which a key is built only to look it up.
const maxKnownKey = 4 << 10

// findV2 looks up the series of d.refs by the key that they make if nothing has
// to be changed but for the label of its replica. dropped says that it is one of
// a replica that is not elected.
func (d *decoder) findV2() (s Series, ok, dropped bool) {
	if d.b.Known == nil || len(d.refs) == 0 || len(d.refs)%2 != 0 {
		return s, false, false
	}
	size := 0
	for _, ref := range d.refs {
		if ref >= uint32(len(d.symbols)) {
			return s, false, false
		}
		size += len(d.bytes(d.symbols[ref])) + 8
	}
	if size > maxKnownKey {
		return s, false, false
	}
	leave := -1
	if d.pairing.labels.on() {
		var v verdict
		if v, leave, ok = d.pairUpV2(); !ok || v == verdictDrop {
			return s, false, ok
		}
	}
	if d.lookups -= int64(size); d.lookups < 0 {
		return s, false, false
	}
	b := d.b
	if len(b.exemplars) == d.exemplars { // These are kept with their series' labels.
		// It is charged for the key that Detach may have to build.
		if is, ok := d.order.guess(); ok && d.refsEqual(is.Labels, leave) && d.spend(size) {
			d.order.right(is)
			return Series{Hash: is.Hash, Ref: is.Ref}, true, false
		}
	}
	start := len(b.keys)
	for i := 0; i < len(d.refs); i += 2 {
		if i == leave {
			continue
		}
		b.keys = appendLabel(b.keys, d.bytes(d.symbols[d.refs[i]]), d.bytes(d.symbols[d.refs[i+1]]))
	}
	s = Series{Key: b.keys[start:len(b.keys):len(b.keys)]}
	if !d.identify(&s) || !d.spend(len(s.Key)) {
		b.keys = b.keys[:start]
		return Series{}, false, false
	}
	return s, true, false
}

// refsEqual says whether the open series' references name a label set, in its order, but for the label at leave. It may be false where a closer look
// would say otherwise.
func (d *decoder) refsEqual(l labels.Labels, leave int) bool {
	flat := flatten(&l)
	for i, ref := range d.refs {
		if i&^1 == leave {
			continue
		}
		s := d.bytes(d.symbols[ref])
		if len(s) >= longString || len(flat) <= len(s) || int(flat[0]) != len(s) || flat[1:1+len(s)] != string(s) {
			return false
		}
		flat = flat[1+len(s):]
	}
	return flat == ""
}

func (d *decoder) seriesFieldV2(field uint64, b []byte, meta *metadataV2) error {
	switch field {
	case 1:
		for i := 0; i < len(b); {
			if i = d.addRef(&d.refs, b, i); i < 0 {
				return d.refError(i)
			}
		}
	case 2:
		f, err := parseSample(b, fieldsSampleV2)
		if err != nil {
			return fmt.Errorf("sample: %w", err)
		}
		return d.addFloat(f)
	case 3:
		if err := d.histogram(b); err != nil {
			return fmt.Errorf("histogram: %w", err)
		}
	case 4:
		if err := d.exemplarV2(b); err != nil {
			return fmt.Errorf("exemplar: %w", err)
		}
	case 5:
		if err := meta.parse(b); err != nil {
			return fmt.Errorf("metadata: %w", err)
		}
	}
	return nil
}

// codeTooMany is an index that says there are more references than allowed.
const codeTooMany = -100

func (*decoder) addRef(refs *[]uint32, b []byte, i int) int {
	v, i := readVarint(b, i)
	if i < 0 {
		return i
	}
	if len(*refs) == 2*maxSeriesLabels {
		return codeTooMany
	}
	*refs = append(*refs, uint32(v))
	return i
}

func (*decoder) refError(code int) error {
	if code == codeTooMany {
		return errTooLarge
	}
	return fmt.Errorf("label references: %w", wireError(code))
}

// resolve appends to dst what pairs of references stand for.
func (d *decoder) resolve(dst []pair, refs []uint32) ([]pair, error) {
	if len(refs)%2 != 0 {
		return dst, fmt.Errorf("odd number of label references (%d)", len(refs))
	}
	dst = slices.Grow(dst, len(refs)/2)
	for ; len(refs) > 0; refs = refs[2:] {
		if int64(max(refs[0], refs[1])) >= int64(len(d.symbols)) {
			return dst, fmt.Errorf("label reference %d=%d is outside of the symbols table (%d entries)",
				refs[0], refs[1], len(d.symbols))
		}
		name, value := d.symbols[refs[0]], d.symbols[refs[1]]
		dst = append(dst, pair{
			name: d.bytes(name), value: d.bytes(value),
			invalid: (name.end|value.end)&symbolInvalid != 0,
		})
	}
	return dst, nil
}

func (d *decoder) bytes(s symbol) []byte {
	end := s.end &^ symbolInvalid
	return d.b.body[s.start:end:end]
}

func (m *metadataV2) parse(b []byte) error {
	m.seen = true
	for i := 0; i < len(b); {
		t, j := readTag(b, i)
		switch {
		case t == 1<<3|wireVarint:
			m.typ, i = readVarint(b, j)
		case t == 3<<3|wireVarint:
			m.help, i = readVarint(b, j)
		case t == 4<<3|wireVarint:
			m.unit, i = readVarint(b, j)
		case j < 0:
			i = j
		default:
			i = skipField(b, j, t, fieldsMetadataV2)
		}
		if i < 0 {
			return wireError(i)
		}
	}
	return nil
}

// resolveMetadata looks up the metadata's strings. What is not valid UTF-8 is
// left out: it must not cost the samples, and cannot be shown.
func (d *decoder) resolveMetadata(m metadataV2) (Metadata, error) {
	out := Metadata{Type: model.MetricTypeUnknown}
	if !m.seen {
		return out, nil
	}
	out.Type = metricType(m.typ)
	var err error
	if out.Help, err = d.lookUp("help", uint32(m.help)); err != nil {
		return out, err
	}
	out.Unit, err = d.lookUp("unit", uint32(m.unit))
	return out, err
}

func (d *decoder) lookUp(what string, ref uint32) (string, error) {
	if int64(ref) >= int64(len(d.symbols)) {
		return "", fmt.Errorf("metadata's %s reference %d is outside of the symbols table (%d entries)",
			what, ref, len(d.symbols))
	}
	s := d.symbols[ref]
	if s.end&symbolInvalid != 0 {
		return "", nil
	}
	return text(d.bytes(s)), nil
}

func (d *decoder) exemplarV2(b []byte) error {
	var e Exemplar
	// The series' own references may still be incomplete; those of an exemplar
	// stand behind them for the moment.
	from := len(d.refs)
	for i := 0; i < len(b); {
		t, j := readTag(b, i)
		var v uint64
		switch {
		case t == 1<<3|wireVarint:
			i = d.addRef(&d.refs, b, j)
		case t == 1<<3|wireBytes:
			var s int
			if s, i = readBytes(b, j); i < 0 {
				break
			}
			for end := i; s < end; {
				if s = d.addRef(&d.refs, b[:end], s); s < 0 {
					i = s
					break
				}
			}
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
			return d.refError(i)
		}
	}
	refs := d.refs[from:]
	d.refs = d.refs[:from]
	d.builder.Reset()
	set := exemplarLabels{builder: &d.builder}
	var err error
	if d.exPairs, err = d.resolve(d.exPairs[:0], refs); err != nil {
		return err
	}
	for _, p := range d.exPairs {
		set.add(p)
	}
	return d.addExemplar(e, &set)
}

// describe notes what the request says about the open series' metric: once per
// family, as a rule, though it is said with every series.
func (d *decoder) describe(m Metadata) error {
	name := d.nameSymbol()
	if at := name.family; at > 0 {
		if old := &d.b.Metadata[at-1]; old.Type == m.Type && old.Help == m.Help && old.Unit == m.Unit {
			return nil
		}
	}
	m.Family = familyName(d.bytes(*name), m.Type)
	at, err := d.gather(m)
	name.family = uint32(at) + 1
	return err
}

// nameSymbol finds the metric's name among the open series' labels.
func (d *decoder) nameSymbol() *symbol {
	for i := 0; i < len(d.refs); i += 2 {
		if name := &d.symbols[d.refs[i+1]]; name.start < name.end && string(d.bytes(d.symbols[d.refs[i]])) == metricNameLabel {
			return name
		}
	}
	return &symbol{}
}

// familyName is the name under which a series' metadata is known: 2.0 sends it
// with every series, also with those of a classic histogram or summary.
func familyName(metric []byte, t model.MetricType) string {
	name := text(metric)
	suffixes := []string(nil)
	switch t {
	case model.MetricTypeHistogram:
		suffixes = []string{"_bucket", "_count", "_sum"}
	case model.MetricTypeGaugeHistogram:
		suffixes = []string{"_bucket", "_gcount", "_gsum"}
	case model.MetricTypeSummary:
		suffixes = []string{"_count", "_sum"}
	}
	for _, s := range suffixes {
		if base, ok := strings.CutSuffix(name, s); ok && base != "" {
			return base
		}
	}
	return name
}

// gather notes a family's metadata once per request; the last one counts. It
// returns where.
func (d *decoder) gather(m Metadata) (int, error) {
	if i, ok := d.families[m.Family]; ok {
		d.b.Metadata[i] = m
		return i, nil
	}
	if !d.spend(2 * metadataSize) {
		return 0, errTooLarge
	}
	d.families[m.Family] = len(d.b.Metadata)
	d.b.Metadata = append(d.b.Metadata, m)
	return len(d.b.Metadata) - 1, nil
}
