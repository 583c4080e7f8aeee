package ingest

import (
	"bytes"
	"iter"
	"sync"
	"unsafe"

	"github.com/prometheus/prometheus/model/labels"
)

// Tags of the canonical form: field 1 of TimeSeries (a label), fields 1 and 2 of
// Label (name and value), all length-delimited.
const (
	tagLabel = 1<<3 | wireBytes
	tagName  = 1<<3 | wireBytes
	tagValue = 2<<3 | wireBytes
)

// KeyPairs yields the names and values of a key, in the order of names, without
// allocating. The slices alias the key. What follows a malformed byte is not
// yielded; keys of a Batch are never malformed.
func KeyPairs(key []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		for i := 0; i < len(key); {
			t, j := readTag(key, i)
			if t != tagLabel {
				return
			}
			s, e := readBytes(key, j)
			if e < 0 {
				return
			}
			p, _, err := parseLabel(key[s:e])
			if err != nil || !yield(p.name, p.value) {
				return
			}
			i = e
		}
	}
}

// IsKey says whether key is the key of a label set.
func IsKey(key []byte) bool {
	var last []byte
	for i := 0; i < len(key); {
		t, j := readTag(key, i)
		s, e := readBytes(key, j)
		if t != tagLabel || e < 0 {
			return false
		}
		p, short, err := parseLabel(key[s:e])
		if err != nil || !short || s-i != 1+varintLen(uint64(e-s)) || len(p.value) == 0 || i > 0 && bytes.Compare(last, p.name) >= 0 {
			return false
		}
		last, i = p.name, e
	}
	return true
}

// labelsBuilders hold what the labels of a key are gathered in, of which there may be a million at once.
var labelsBuilders = sync.Pool{New: func() any {
	b := &labels.ScratchBuilder{}
	b.SetUnsafeAdd(true) // So it copies strings, whatever package labels was built with.
	return b
}}

// KeyLabels returns the label set of a key. Its strings are copies.
func KeyLabels(key []byte) labels.Labels {
	b, _ := labelsBuilders.Get().(*labels.ScratchBuilder)
	defer labelsBuilders.Put(b)
	b.Reset()
	for name, value := range KeyPairs(key) {
		b.Add(text(name), text(value))
	}
	return b.Labels()
}

// LabelsKey appends the key of a label set to dst: the inverse of KeyLabels.
// Labels with an empty value are left out.
func LabelsKey(dst []byte, l labels.Labels) []byte {
	l.Range(func(l labels.Label) {
		if l.Value == "" {
			return
		}
		dst = appendLabel(dst, l.Name, l.Value)
	})
	return dst
}

// KeyEquals says whether key, which may be any bytes, is the key of a label set. It does not allocate for labels of ordinary
// length.
func KeyEquals(key []byte, l labels.Labels) bool {
	flat := flatten(&l)
	for len(key) > 0 {
		// A label whose lengths take a byte each: name and value, with their lengths before them, are the same bytes in both.
		if len(key) < 6 || key[1] >= 0x80 {
			return rareKeyEquals(key, flat)
		}
		name := 4 + int(key[3]) // its end
		end := 2 + int(key[1])
		if end > len(key) || name+2 > end || len(flat) < end-4 || name+2+int(key[name+1]) != end ||
			key[0] != tagLabel || key[2] != tagName || key[name] != tagValue ||
			string(key[3:name]) != flat[:name-3] || string(key[name+1:end]) != flat[name-3:end-4] {
			return false
		}
		key, flat = key[end:], flat[end-4:]
	}
	return flat == ""
}

func rareKeyEquals(key []byte, flat string) bool {
	var buf [1 << 10]byte
	return bytes.Equal(key, LabelsKey(buf[:0], unflatten(flat)))
}

// flatten returns what a label set is in memory with the build tags that this module is built with: each name and value behind
// its length, which is one byte below 255.
func flatten(l *labels.Labels) string { return *(*string)(unsafe.Pointer(l)) }

// longString is the length from which on a string's length takes more than one byte there.
const longString = 0xff

func unflatten(s string) labels.Labels { return *(*labels.Labels)(unsafe.Pointer(&s)) }

// Does not compile where label sets are something else.
var _ [unsafe.Sizeof("")]struct{} = [unsafe.Sizeof(labels.Labels{})]struct{}{}

func appendLabel[S string | []byte](dst []byte, name, value S) []byte {
	n := labelSize(len(name), len(value))
	if n < 0x80 { // all three lengths take one byte
		dst = append(dst, tagLabel, byte(n), tagName, byte(len(name)))
		dst = append(dst, name...)
		dst = append(dst, tagValue, byte(len(value)))
		return append(dst, value...)
	}
	dst = append(dst, tagLabel)
	dst = appendVarint(dst, uint64(n))
	dst = append(dst, tagName)
	dst = appendVarint(dst, uint64(len(name)))
	dst = append(dst, name...)
	dst = append(dst, tagValue)
	dst = appendVarint(dst, uint64(len(value)))
	return append(dst, value...)
}

// labelSize is the length of a Label message in canonical form, without its own
// tag and length.
func labelSize(name, value int) int {
	return 2 + varintLen(uint64(name)) + name + varintLen(uint64(value)) + value
}

// pair is a label while its series is being decoded. The slices alias the body.
type pair struct {
	name, value []byte
	invalid     bool // one of the two is not valid UTF-8
}
