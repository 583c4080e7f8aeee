package speed

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"github.com/millrace/millrace/pkg/ingest"
)

// RecordFloats is the first byte of a record of floats by reference. Requests say the labels of every series with every sample; a
// record says them once per log. It holds what a request's floats come to, after validation and without start timestamps:
//
//	kind         byte    2
//	definitions  uvarint number; each: uvarint id, uvarint length of the key, key
//	series       uvarint number; each: varint id less that of the one before,
//	             uvarint number of floats, each: varint time in ms less that of the one before, value (8 bytes, little endian)
//
// Ids count from 1 and mean the same in the whole log, also when the generation is continued after it was read back. A record
// defines every id that it uses and that no record defines which was in the log before it was encoded; so whoever reads the log in
// order knows them all. Should a definition be lost, so are the samples that refer to it, up to the next one: all series are defined
// anew in every epoch of the log.
const RecordFloats = 2

// CanRecord says whether a record of floats holds all of a batch that is to be kept, but for its metadata.
func (g *Generation) CanRecord(b *ingest.Batch) bool {
	if w := b.Written(); w.Histograms+w.Exemplars > 0 {
		return false
	}
	if g.startTimestamps {
		for i := range b.Series {
			if slices.ContainsFunc(b.Series[i].Floats, func(f ingest.Float) bool { return f.ST != 0 }) {
				return false
			}
		}
	}
	return true
}

// Resolve sets the references of a batch's series, registering those that the generation does not know. Until a sample follows, such
// a series is seen only by label queries, and not by these either once a request was skipped.
func (g *Generation) Resolve(b *ingest.Batch) {
	if b.Known != ingest.Known(g) {
		b.Detach()
		b.Known = g
	}
	for i := range b.Series {
		if in := &b.Series[i]; in.Ref == 0 {
			in.Ref = g.register(in)
		}
	}
}

func (g *Generation) register(in *ingest.Series) uint32 {
	if ref, ok := g.Find(in.Hash, in.Key); ok {
		return ref
	}
	sh := &g.shards[in.Hash>>g.regs.shift]
	sh.reg.mu.Lock()
	defer sh.reg.mu.Unlock()
	if ref, ok := g.Find(in.Hash, in.Key); ok {
		return ref
	}
	var w writer
	w.MinTime, w.MaxTime = math.MaxInt64, math.MinInt64
	ref := sh.create(g, in, &w) + 1
	g.account(&writer{}, &w)
	g.metrics.count(&w.AppendStats)
	return ref
}

// Record is a record of floats on its way to the log.
type Record struct {
	Bytes   []byte // Of buf.
	buf     []byte
	key     []byte // Scratch.
	epoch   uint32
	defines []*identity
}

var recordPool = sync.Pool{New: func() any { return &Record{} }}

// maxPooledRecord is the size in bytes up to which a record's memory is used again.
const maxPooledRecord = 1 << 20

// Record encodes a batch for which CanRecord and that went through Resolve. The record is to be released.
func (g *Generation) Record(b *ingest.Batch) *Record {
	r, _ := recordPool.Get().(*Record)
	r.epoch = g.epoch.Load()
	start := r.define(g, b)
	dst := binary.AppendUvarint(r.buf, uint64(len(b.Series)))
	id, t := int64(0), int64(0)
	for i := range b.Series {
		in := &b.Series[i]
		next := int64(g.identity(in).id.Load())
		dst = binary.AppendVarint(dst, next-id)
		dst = binary.AppendUvarint(dst, uint64(len(in.Floats)))
		id = next
		for _, f := range in.Floats {
			dst = binary.AppendVarint(dst, f.T-t)
			dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(f.V))
			t = f.T
		}
	}
	r.buf, r.Bytes = dst, dst[start:]
	return r
}

// define begins the record with the series that no record defines yet, and returns where in buf it begins.
func (r *Record) define(g *Generation, b *ingest.Batch) int {
	var head [1 + binary.MaxVarintLen64]byte
	r.buf = append(r.buf[:0], head[:]...) // Room for the kind and the number.
	for i := range b.Series {
		in := &b.Series[i]
		id := g.identity(in)
		if id.recorded.Load() == r.epoch {
			continue
		}
		if id.id.Load() == 0 {
			id.id.CompareAndSwap(0, g.ids.Add(1)) // or somebody else has
		}
		key := in.Key
		if key == nil {
			r.key = ingest.LabelsKey(r.key[:0], id.labels)
			key = r.key
		}
		r.defines = append(r.defines, id)
		r.buf = binary.AppendUvarint(r.buf, uint64(id.id.Load()))
		r.buf = binary.AppendUvarint(r.buf, uint64(len(key)))
		r.buf = append(r.buf, key...)
	}
	head[0] = RecordFloats
	n := 1 + binary.PutUvarint(head[1:], uint64(len(r.defines)))
	start := len(head) - n
	copy(r.buf[start:], head[:n])
	return start
}

// Written says that the record is in the log: later ones need not define its series.
func (r *Record) Written() {
	for _, id := range r.defines {
		id.recorded.Store(r.epoch)
	}
}

// DefineFrom begins an epoch, unless it has begun: records define their series once in each. Epochs rise from 1.
func (g *Generation) DefineFrom(epoch uint32) {
	if old := g.epoch.Load(); old < epoch {
		g.epoch.CompareAndSwap(old, epoch)
	}
}

// Release gives the record's memory back.
func (r *Record) Release() {
	clear(r.defines)
	r.defines = r.defines[:0]
	if cap(r.buf) <= maxPooledRecord {
		recordPool.Put(r)
	}
}

func (g *Generation) identity(in *ingest.Series) *identity {
	return g.regs.at(in.Hash, in.Ref-1)
}

// RecordReader reads a log's records of floats. Define is for one goroutine, which reads the log in order; what it returns may be
// applied by others.
type RecordReader struct {
	g       *Generation
	pages   []*definitionPage // By id; nil where nothing is defined.
	records uint64
	slab    []definition // That are not used yet.
	keys    []byte       // Where there may be room for more.
}

type definitionPage [1 << 10]atomic.Pointer[definition]

// definition is a series as a record defines it.
type definition struct {
	from  uint64        // The record that defines it, counted.
	place atomic.Uint64 // In the reader's generation, once a record used it: shard, and reference + 1; 0 before.
	key   []byte
	id    uint32
}

// NewRecordReader returns a reader for a generation that is being replayed.
func NewRecordReader(g *Generation) *RecordReader { return &RecordReader{g: g} }

var (
	// ErrRecord means that a record of floats makes no sense. Nothing of it was applied.
	ErrRecord = errors.New("corrupt record of floats")
	// ErrUndefined means that the definition of some of a record's series is lost. The others were applied.
	ErrUndefined = errors.New("record of floats of series whose definitions are lost")
)

// Floats are what a record holds beside its definitions.
type Floats struct {
	pages  []*definitionPage
	record uint64
	rec    cursor
}

// Define takes over the definitions of a record, which must not change until its floats are applied.
func (r *RecordReader) Define(rec []byte) (Floats, error) {
	r.records++
	c := cursor{b: rec}
	kind := c.bytes(1)
	if c.bad || kind[0] != RecordFloats {
		return Floats{}, fmt.Errorf("%w: of another kind", ErrRecord)
	}
	for n := c.uvarint(); n > 0 && !c.bad; n-- {
		id := c.uvarint()
		key := c.bytes(c.uvarint())
		if c.bad || id == 0 || id > math.MaxUint32 || !r.define(uint32(id), key) {
			return Floats{}, fmt.Errorf("%w: definition of series %d", ErrRecord, id)
		}
	}
	if c.bad {
		return Floats{}, fmt.Errorf("%w: it ends within its definitions", ErrRecord)
	}
	return Floats{pages: r.pages, record: r.records, rec: c}, nil
}

// define says whether the key is one, and the id does not mean another series already.
func (r *RecordReader) define(id uint32, key []byte) bool {
	at := int(id) / len(definitionPage{})
	if at < len(r.pages) && r.pages[at] != nil {
		if old := r.pages[at][int(id)%len(definitionPage{})].Load(); old != nil {
			return bytes.Equal(old.key, key)
		}
	}
	if !ingest.IsKey(key) {
		return false
	}
	if missing := at + 1 - len(r.pages); missing > 0 {
		r.pages = append(r.pages, make([]*definitionPage, missing)...)
	}
	if r.pages[at] == nil {
		r.pages = slices.Clone(r.pages) // Whoever has the list so far does not need the page.
		r.pages[at] = &definitionPage{}
	}
	r.pages[at][int(id)%len(definitionPage{})].Store(r.newDefinition(id, key))
	r.g.ids.Store(max(r.g.ids.Load(), id))
	return true
}

// newDefinition takes a definition from a slab; there are as many as series. The key is copied: it must not keep the whole record.
func (r *RecordReader) newDefinition(id uint32, key []byte) *definition {
	if len(r.slab) == 0 {
		r.slab = make([]definition, len(definitionPage{}))
	}
	if len(r.keys)+len(key) > cap(r.keys) {
		r.keys = make([]byte, 0, max(definitionKeys, len(key)))
	}
	start := len(r.keys)
	r.keys = append(r.keys, key...)
	d := &r.slab[0]
	r.slab = r.slab[1:]
	d.id, d.from, d.key = id, r.records, r.keys[start:len(r.keys):len(r.keys)]
	return d
}

// definitionKeys is the number of bytes of keys that are allocated at once.
const definitionKeys = 64 << 10

// replayed is what was read from records.
type replayed struct {
	parts   [][]float // By shard.
	passage passage
}

var replayedPool = sync.Pool{New: func() any { return &replayed{passage: newPassage()} }}

// Apply gives the floats of records that follow one another in the log to the generation, as the requests from index on, one for each. It uses these
// indexes up, whatever it returns: the number of records of which something is lost, and why. The more records at once, the less the goroutines that
// apply them wait for each other.
func (g *Generation) Apply(index uint64, records []Floats) (failed int, err error) {
	r, _ := replayedPool.Get().(*replayed)
	given := false
	defer func() {
		if !given {
			for k := range records {
				g.Skip(index + uint64(k))
			}
		}
	}()
	r.begin(len(g.shards))
	var errs []error
	for _, f := range records {
		if err := r.decode(g, f); err != nil {
			errs = append(errs, err)
		}
	}
	given = true
	w := writer{startTimestamps: g.startTimestamps}
	g.inTurn(index, uint64(len(records)), r.passage, &w, func(i int) {
		if len(r.parts[i]) > 0 {
			g.shards[i].applyFloats(r.parts[i], &w)
		}
	})
	replayedPool.Put(r)
	return len(errs), errors.Join(errs...)
}

func (r *replayed) begin(shards int) {
	if len(r.parts) != shards {
		r.parts = make([][]float, shards)
	}
	for i := range r.parts {
		r.parts[i] = r.parts[i][:0]
	}
}

// decode adds a record's floats, all or nothing of them but for those of series that are not defined.
func (r *replayed) decode(g *Generation, f Floats) error {
	if err := f.check(); err != nil {
		return err
	}
	c := f.rec
	id, t, lost := uint64(0), int64(0), 0
	for n := c.uvarint(); n > 0; n-- {
		id += uint64(c.varint())
		d := f.definition(id)
		var part *[]float
		var ref uint32
		if d != nil {
			place := g.place(d)
			part, ref = &r.parts[place>>32], uint32(place)-1
		}
		for k := c.uvarint(); k > 0; k-- {
			t += c.varint()
			v := math.Float64frombits(c.fixed64())
			if d == nil {
				lost++
				continue
			}
			*part = append(*part, float{ref: ref, t: t, v: v})
		}
	}
	if lost > 0 {
		return fmt.Errorf("%w: %d samples", ErrUndefined, lost)
	}
	return nil
}

// check says whether the record can be decoded, for nothing is to be registered for one that cannot.
func (f Floats) check() error {
	c := f.rec
	for n := c.uvarint(); n > 0 && !c.bad; n-- {
		c.uvarint()
		k := c.uvarint()
		if k == 0 && !c.bad {
			return fmt.Errorf("%w: a series has no samples", ErrRecord)
		}
		for ; k > 0 && !c.bad; k-- {
			c.uvarint()
			c.bytes(8)
		}
	}
	if c.bad || len(c.b) > 0 {
		return fmt.Errorf("%w: it does not end with its samples", ErrRecord)
	}
	return nil
}

// place returns where a series is, and registers it if need be.
func (g *Generation) place(d *definition) uint64 {
	if p := d.place.Load(); p > 0 {
		return p
	}
	in := ingest.Series{Key: d.key, Hash: xxhash.Sum64(d.key)}
	in.Ref = g.register(&in)
	g.identity(&in).id.CompareAndSwap(0, d.id)
	p := in.Hash>>g.regs.shift<<32 | uint64(in.Ref)
	d.place.Store(p)
	return p
}

// definition returns what an id means in the record; nil if nothing. What a later record says of it does not count: where a
// definition was lost, the id may have been given again.
func (f Floats) definition(id uint64) *definition {
	at := id / uint64(len(definitionPage{}))
	if at >= uint64(len(f.pages)) || f.pages[at] == nil {
		return nil
	}
	if d := f.pages[at][id%uint64(len(definitionPage{}))].Load(); d != nil && d.from <= f.record {
		return d
	}
	return nil
}

// cursor reads from b; once something is not there, it is bad and everything is zero.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uvarint() uint64 {
	if len(c.b) > 0 && c.b[0] < 0x80 {
		v := uint64(c.b[0])
		c.b = c.b[1:]
		return v
	}
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) varint() int64 {
	u := c.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (c *cursor) bytes(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.bad, c.b = true, nil
		return nil
	}
	out := c.b[:n:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) fixed64() uint64 {
	raw := c.bytes(8)
	if c.bad {
		return 0
	}
	return binary.LittleEndian.Uint64(raw)
}
