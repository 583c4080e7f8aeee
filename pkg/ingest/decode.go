package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"github.com/cespare/xxhash/v2"
	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/retention"
)

// Sizes of the arenas' elements in bytes.
const (
	seriesSize    = int(unsafe.Sizeof(Series{}))
	metadataSize  = int(unsafe.Sizeof(Metadata{}))
	floatSize     = int(unsafe.Sizeof(Float{}))
	histogramSize = int(unsafe.Sizeof(Histogram{}))
	exemplarSize  = int(unsafe.Sizeof(Exemplar{}))
	intSize       = int(unsafe.Sizeof(histogram.Histogram{}))
	fltSize       = int(unsafe.Sizeof(histogram.FloatHistogram{}))
)

// Bounds of the format. A request beyond them is refused as a whole, so nothing
// in the log is beyond them either, whatever the limits were.
const (
	maxSize         = 1 << 30 // of a body, before and after decompression, in bytes
	maxSeriesLabels = 1 << 16 // labels of one series or exemplar
	maxBuckets      = 1 << 20 // spans, buckets or bounds on one side of a histogram
	// maxExpansion is how much larger than the decompressed request its decoded
	// form may become: two bytes can announce a series, and a symbol can be
	// named by thousands of series. Real requests stay below 8 at twelve labels a
	// series, one sample each (2.0), and below 2 (1.0).
	maxExpansion = 8
	// maxLookups is by how much the keys of a 2.0 request's series may be larger
	// than the request before they are no longer looked up: symbols are named by
	// any number of series.
	maxLookups = 64
)

var (
	errSnappy      = errors.New("corrupt snappy block")
	errFirstSymbol = errors.New("the first symbol is not the empty string, as remote write 2.0 wants it")
	errTooLarge    = errors.New("too large when decoded")
)

// decoder decodes one request into a batch. Its fields are scratch that is kept
// in a pool.
//
// Items are numbered (ordinals) in the order in which they are completed: a v1
// metadata entry is one item; a series is one, followed by its floats,
// histograms and exemplars, in this order. With judge (a request that arrives)
// the decoder asks it about every item and notes what it refused in rejected;
// without (a record from the log) it drops what rejected says.
type decoder struct {
	b        *Batch
	judge    *judge
	rejected Rejected
	cursor   int    // next entry of rejected, on replay
	next     uint32 // next ordinal
	budget   int64  // bytes that the arenas may still take
	credit   int64  // bytes that may yet be borrowed for them; 0 on replay
	loan     *loan  // nil on replay
	starved  bool   // nothing more was lent
	lookups  int64  // bytes of keys that may still be built only to look them up
	v2       bool

	known, foreign bool // fields of this protocol, of the other one, were seen

	// The series that is being decoded.
	pairs      []pair
	refs       []uint32
	floats     int // where its items begin
	histograms int
	exemplars  int
	exReasons  []reason // of its exemplars
	exPairs    []pair   // of one of them
	ruled      bool     // its retention rule is known to the judge

	order    succession
	pairing  pairing
	hist     histogramScratch
	symbols  []symbol
	families map[string]int
	builder  labels.ScratchBuilder

	verdict judge // what judge points to, if set
}

var decoderPool = sync.Pool{New: func() any {
	return &decoder{families: map[string]int{}, builder: labels.NewScratchBuilder(8)}
}}

func (d *decoder) release() {
	clear(d.pairs[:cap(d.pairs)])
	clear(d.exPairs[:cap(d.exPairs)])
	if len(d.families) > 1<<12 {
		d.families = map[string]int{} // clearing takes as long as the map is large
	}
	clear(d.families)
	d.builder.Reset()
	d.b, d.judge, d.loan = nil, nil, nil
	d.order = succession{}
	d.credit, d.starved = 0, false
	d.hist.lastCustom = nil
	d.verdict.messages = nil
	d.pairing.release()
	if cap(d.symbols) <= maxPooled/8 && cap(d.pairs)+cap(d.exPairs) <= 1<<12 && d.hist.footprint() <= maxPooled/8 {
		decoderPool.Put(d)
	}
}

// decompress fills the batch's body. No size is believed before it is checked:
// not the one that the block claims, nor one that its bytes cannot hold.
func (b *Batch) decompress(block []byte, limit int64) error {
	n, err := snappy.DecodedLen(block)
	if err != nil {
		return fmt.Errorf("%w: no length at its start", errSnappy)
	}
	if int64(n) > limit {
		return &sizeError{what: "decompressed", size: int64(n), limit: limit, flag: flagDecompressed}
	}
	// The densest element of the format makes 64 bytes of 3.
	if n > 22*len(block)+64 {
		return fmt.Errorf("%w: it claims %d bytes, more than its %d bytes can hold", errSnappy, n, len(block))
	}
	if cap(b.body) < n {
		b.body = make([]byte, n+n/4)
	}
	if b.body, err = snappy.Decode(b.body[:cap(b.body)], block); err != nil {
		return errSnappy
	}
	return nil
}

// run decodes the batch's body.
func (d *decoder) run(p Protocol) error {
	d.next, d.cursor = 0, 0
	d.known, d.foreign = false, false
	d.lookups = maxLookups * int64(len(d.b.body))
	d.order.begin(d.b.Known)
	d.v2 = p == V2
	var err error
	if d.v2 {
		err = d.requestV2(d.b.body)
	} else {
		err = d.requestV1(d.b.body)
	}
	if err != nil {
		return err
	}
	if d.foreign && !d.known {
		return errForeign
	}
	return nil
}

// errForeign: a body in the other protocol decodes to nothing, and a sender that
// is told 204 would never learn that it loses everything.
var errForeign = errors.New("the body is not of the protobuf message that Content-Type names; " +
	"it looks like the other version of remote write")

// spend takes n bytes from the budget and says whether they were there.
func (d *decoder) spend(n int) bool {
	d.budget -= int64(n)
	return d.budget >= 0 || d.borrow()
}

// borrowAtOnce is the least that is borrowed, in bytes: it concerns all other requests.
const borrowAtOnce = 1 << 20

// borrow balances the budget.
func (d *decoder) borrow() bool {
	if d.loan == nil || -d.budget > d.credit || d.starved {
		return false
	}
	n := min(max(-d.budget, borrowAtOnce), d.credit)
	if d.starved = !d.loan.take(n); d.starved {
		return false
	}
	d.budget, d.credit = d.budget+n, d.credit-n
	return true
}

func (d *decoder) openSeries() {
	d.pairs = d.pairs[:0]
	d.refs = d.refs[:0]
	d.exReasons = d.exReasons[:0]
	d.pairing.current = 0
	d.floats = len(d.b.floats)
	d.histograms = len(d.b.histograms)
	d.exemplars = len(d.b.exemplars)
}

func (d *decoder) addFloat(f Float) error {
	if !d.spend(floatSize) {
		return errTooLarge
	}
	d.b.floats = append(d.b.floats, f)
	return nil
}

// closeSeries decides about the series whose labels are in d.pairs and whose
// items stand at the arenas' ends, and adds what is left to the batch. key is
// its labels' bytes on the wire if they may be canonical, else nil.
func (d *decoder) closeSeries(key []byte, meta *Metadata) error {
	base := d.number()
	canonical, unique := d.sortLabels()
	if d.pairing.labels.on() {
		switch v, at := d.pairUp(); v {
		case verdictKeep:
			canonical = false
		case verdictDrop:
			return d.closeDropped(base)
		case verdictLong, verdictFull:
			d.refuse(base, replicaReasons[v], at)
			return nil
		}
	}
	if d.refuseSeries(base, unique, meta != nil) {
		return nil
	}
	if !canonical {
		key = nil
	}
	s := Series{Key: key}
	return d.addSeries(base, s, meta)
}

// closeKnown is closeSeries for a series whose labels need not be looked at.
func (d *decoder) closeKnown(s Series, meta *Metadata) error {
	base := d.number()
	// What is known now need not have been when the request came, and what is dropped may be known from another replica.
	if d.judge == nil && d.replayed(base) {
		d.truncate()
		return nil
	}
	return d.addSeries(base, s, meta)
}

// number gives ordinals to the open series and its items and returns the first.
func (d *decoder) number() uint32 {
	base := d.next
	b := d.b
	d.next += uint32(1 + len(b.floats) - d.floats + len(b.histograms) - d.histograms + len(b.exemplars) - d.exemplars)
	return base
}

// hasItems says whether the open series has samples or exemplars.
func (d *decoder) hasItems() bool {
	b := d.b
	return len(b.floats)+len(b.histograms)+len(b.exemplars) > d.floats+d.histograms+d.exemplars
}

// addSeries adds an accepted series, without those items that are refused, to
// the batch, if anything is left of it. Its key is built from d.pairs if there
// is none yet.
func (d *decoder) addSeries(base uint32, s Series, meta *Metadata) error {
	b := d.b
	if d.hasItems() {
		if err := d.refuseItems(base, &s); err != nil {
			return err
		}
	}
	if meta != nil {
		if err := d.describe(*meta); err != nil {
			return err
		}
	}
	s.Floats = b.floats[d.floats:len(b.floats):len(b.floats)]
	s.Histograms = b.histograms[d.histograms:len(b.histograms):len(b.histograms)]
	s.Exemplars = b.exemplars[d.exemplars:len(b.exemplars):len(b.exemplars)]
	if len(s.Floats)+len(s.Histograms)+len(s.Exemplars) == 0 {
		return nil
	}
	if s.Key == nil && s.Ref == 0 {
		var ok bool
		if s.Key, ok = d.buildKey(); !ok {
			return errTooLarge
		}
	}
	if !d.spend(seriesSize) {
		return errTooLarge
	}
	if s.Ref == 0 {
		s.Hash = xxhash.Sum64(s.Key)
	}
	b.Series = append(b.Series, s)
	if p := &d.pairing; p.current > 0 {
		p.uses[p.current-1].stored, p.kept = true, true
	}
	b.written.Samples += len(s.Floats)
	b.written.Histograms += len(s.Histograms)
	b.written.Exemplars += len(s.Exemplars)
	return nil
}

// labels returns the labels of the open series; those of a known one are found
// out when they are asked for.
func (d *decoder) labels(s *Series) []pair {
	if len(d.pairs) == 0 {
		key := s.Key
		if key == nil && s.Ref > 0 {
			key = LabelsKey(nil, d.b.Known.Labels(s.Hash, s.Ref))
		}
		for name, value := range KeyPairs(key) {
			d.pairs = append(d.pairs, pair{name: name, value: value})
		}
	}
	return d.pairs
}

// sortLabels drops labels without a value and sorts the rest. canonical is false
// if something had to be changed, unique if no name appears twice.
func (d *decoder) sortLabels() (canonical, unique bool) {
	canonical = true
	kept := 0
	for i := range d.pairs {
		if len(d.pairs[i].value) == 0 {
			canonical = false
			continue
		}
		if kept != i {
			d.pairs[kept] = d.pairs[i]
		}
		kept++
	}
	d.pairs = d.pairs[:kept]
	sorted, unique := order(d.pairs)
	if !sorted {
		canonical = false
		slices.SortStableFunc(d.pairs, func(a, b pair) int { return bytes.Compare(a.name, b.name) })
		_, unique = order(d.pairs)
	}
	return canonical, unique
}

func order(pairs []pair) (sorted, unique bool) {
	unique = true
	for i := 1; i < len(pairs); i++ {
		switch c := bytes.Compare(pairs[i-1].name, pairs[i].name); {
		case c > 0:
			return false, false
		case c == 0:
			unique = false
		}
	}
	return true, unique
}

// refuseSeries says whether the whole series goes, and sees to it.
func (d *decoder) refuseSeries(base uint32, unique, hasMeta bool) bool {
	if d.judge == nil {
		gone := d.replayed(base)
		if gone {
			d.truncate()
		}
		return gone
	}
	r, at := d.judge.labels(d.pairs, unique)
	if r == accepted && d.v2 && !d.hasItems() && !hasMeta {
		r = reasonNoSamples
	}
	if r == accepted {
		return false
	}
	d.refuse(base, r, at)
	return true
}

// refuse refuses the open series with all its items.
func (d *decoder) refuse(base uint32, r reason, at int) {
	b := d.b
	samples := len(b.floats) - d.floats + len(b.histograms) - d.histograms
	d.rejected = append(d.rejected, base)
	d.judge.refuseSeries(r, at, d.pairs, samples, len(b.exemplars)-d.exemplars)
	d.truncate()
}

// truncate takes the items of the series out of the arenas.
func (d *decoder) truncate() {
	b := d.b
	b.floats = b.floats[:d.floats]
	clear(b.histograms[d.histograms:])
	b.histograms = b.histograms[:d.histograms]
	clear(b.exemplars[d.exemplars:])
	b.exemplars = b.exemplars[:d.exemplars]
}

// replayed says whether the ordinal is the next rejected one of the record.
func (d *decoder) replayed(ordinal uint32) bool {
	if d.cursor < len(d.rejected) && d.rejected[d.cursor] == ordinal {
		d.cursor++
		return true
	}
	return false
}

// refuseItems removes the refused items of an accepted series and brings the
// histograms that stay to a schema that chunks can hold.
func (d *decoder) refuseItems(base uint32, s *Series) error {
	b := d.b
	from := len(d.rejected)
	if d.judge != nil {
		d.judgeItems(base, s)
	} else {
		from = d.cursor
		for d.cursor < len(d.rejected) && d.rejected[d.cursor] < d.next {
			d.cursor++
		}
	}
	if gone := d.rejected[from:d.end()]; len(gone) > 0 {
		ord := base + 1
		b.floats, gone, ord = drop(b.floats, d.floats, gone, ord)
		b.histograms, gone, ord = drop(b.histograms, d.histograms, gone, ord)
		b.exemplars, _, _ = drop(b.exemplars, d.exemplars, gone, ord)
	}
	if d.judge != nil {
		return nil
	}
	for _, h := range b.histograms[d.histograms:] {
		if err := normalise(h); err != nil {
			return err
		}
	}
	return nil
}

// end is the end of the rejected ordinals that are known so far.
func (d *decoder) end() int {
	if d.judge != nil {
		return len(d.rejected)
	}
	return d.cursor
}

// judgeItems asks the judge about every item of the series at the arenas' ends.
func (d *decoder) judgeItems(base uint32, s *Series) {
	b, j := d.b, d.judge
	d.ruled = false
	ord := base + 1
	for _, f := range b.floats[d.floats:] {
		if r := j.time(f.T); r != accepted && d.refuses(r, f.T, s) {
			d.rejected = append(d.rejected, ord)
			j.refuseSample(r, d.labels(s), f.T, nil)
		}
		ord++
	}
	for _, h := range b.histograms[d.histograms:] {
		r, err := j.time(h.T), error(nil)
		if r == accepted || !d.refuses(r, h.T, s) {
			r, err = j.histogram(h)
		}
		if r != accepted {
			d.rejected = append(d.rejected, ord)
			j.refuseSample(r, d.labels(s), h.T, err)
		}
		ord++
	}
	for i, e := range b.exemplars[d.exemplars:] {
		r := d.exReasons[i]
		if r == accepted && e.T != 0 {
			if r = j.time(e.T); r != accepted && !d.refuses(r, e.T, s) {
				r = accepted
			}
		}
		if r != accepted {
			d.rejected = append(d.rejected, ord)
			j.exemplars[r]++
		}
		ord++
	}
}

// refuses says whether what the judge found about a timestamp holds for the series.
func (d *decoder) refuses(r reason, t int64, s *Series) bool {
	if r != reasonRule {
		return true
	}
	rule := d.rule(s)
	return rule != nil && t < rule.Horizon(d.judge.window.now)
}

// rule returns the retention rule of the series, nil if it has none. Labels are looked at once, and only for samples that are old enough
// for one of the rules.
func (d *decoder) rule(s *Series) *retention.Rule {
	j := d.judge
	if d.ruled {
		return j.rule
	}
	d.ruled = true
	if s.Ref > 0 {
		lset := d.b.Known.Labels(s.Hash, s.Ref)
		j.rule = j.limits.Rules.Of(func(name string) string { return lset.Get(name) })
		return j.rule
	}
	pairs := d.labels(s)
	j.rule = j.limits.Rules.Of(func(name string) string {
		for i := range pairs {
			if string(pairs[i].name) == name {
				return text(pairs[i].value)
			}
		}
		return ""
	})
	return j.rule
}

// drop removes from arena[from:] the elements whose ordinals, counted from ord,
// are in gone. It returns what of gone lies behind.
func drop[T any](arena []T, from int, gone []uint32, ord uint32) ([]T, []uint32, uint32) {
	kept := from
	for i := from; i < len(arena); i++ {
		if len(gone) > 0 && gone[0] == ord {
			gone = gone[1:]
		} else {
			if kept != i {
				arena[kept] = arena[i]
			}
			kept++
		}
		ord++
	}
	clear(arena[kept:])
	return arena[:kept], gone, ord
}

// buildKey appends the key of d.pairs to the batch's arena; false if it is too large.
func (d *decoder) buildKey() ([]byte, bool) {
	size := 0
	for i := range d.pairs {
		n := labelSize(len(d.pairs[i].name), len(d.pairs[i].value))
		size += 1 + varintLen(uint64(n)) + n
	}
	if !d.spend(size) {
		return nil, false
	}
	b := d.b
	if cap(b.keys)-len(b.keys) < size {
		// Keys that were built before keep the old arena alive; nothing is copied.
		b.keys = make([]byte, 0, max(2*cap(b.keys), size, 4<<10))
	}
	start := len(b.keys)
	for i := range d.pairs {
		b.keys = appendLabel(b.keys, d.pairs[i].name, d.pairs[i].value)
	}
	return b.keys[start:len(b.keys):len(b.keys)], true
}

// text returns a string over bytes of the body, valid as long as the batch.
func text(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b))
}
