package migrate

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
)

const (
	windowMillis = int64(2 * time.Hour / time.Millisecond)
	dayMillis    = int64(24 * time.Hour / time.Millisecond)

	// keyVersion is part of every key. It changes when the same source would give other samples.
	keyVersion = 1
)

// Timestamps outside of the years 1 to 9999 are units gone wrong, and refused as the server refuses them.
const (
	minTime = -62135596800000
	maxTime = 253402300799999
)

// span is the range of time [from, to), in milliseconds.
type span struct{ from, to int64 }

func (s span) empty() bool { return s.from >= s.to }

func (s span) clip(o span) span { return span{max(s.from, o.from), min(s.to, o.to)} }

func (s span) overlaps(o span) bool { return !s.clip(o).empty() }

// share is the part of s that lies in o, between 0 and 1.
func (s span) share(o span) float64 {
	if s.empty() || !s.overlaps(o) {
		return 0
	}
	c := s.clip(o)
	return float64(c.to-c.from) / float64(s.to-s.from)
}

func (s span) String() string {
	return fmt.Sprintf("%s to %s", stamp(s.from), stamp(s.to))
}

func stamp(t int64) string { return time.UnixMilli(t).UTC().Format("2006-01-02T15:04:05.999Z") }

// aligned is the span of the given width, at a multiple of it, in which t lies.
func aligned(t, width int64) span {
	r := t % width
	if r < 0 {
		r += width
	}
	return span{t - r, t - r + width}
}

// windows are the 2 h windows that s touches.
func (s span) windows() []span {
	var out []span
	for w := aligned(s.from, windowMillis); w.from < s.to; w = aligned(w.to, windowMillis) {
		out = append(out, w)
	}
	return out
}

// identity stands for the content of a source: two sources that say the same have the same one.
type identity [sha256.Size]byte

func identify(kind string, parts ...string) identity {
	h := sha256.New()
	for _, p := range append([]string{kind}, parts...) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		_, _ = h.Write(n[:]) // never fails
		_, _ = h.Write([]byte(p))
	}
	return identity(h.Sum(nil))
}

// keys makes the keys of one writer.
type keys struct{ writer string }

func newKeys(external map[string]string) keys { return keys{labels.FromMap(external).String()} }

// of is the key of what a source says about s.
func (k keys) of(source identity, s span) ulid.ULID {
	sum := identify("millrace import", fmt.Sprint(keyVersion), k.writer, string(source[:]), fmt.Sprint(s.from), fmt.Sprint(s.to))
	return derivedID(sum, s.to)
}

// block is the id of the block of window w that is made of what has the keys in.
func (k keys) block(w span, level int, in []ulid.ULID) ulid.ULID {
	parts := []string{fmt.Sprint(keyVersion), k.writer, fmt.Sprint(level), fmt.Sprint(w.from), fmt.Sprint(w.to)}
	for _, id := range in {
		parts = append(parts, string(id[:]))
	}
	return derivedID(identify("millrace import block", parts...), w.to)
}

// derivedID is an id with the time t, as far as ids can tell it.
func derivedID(sum identity, t int64) ulid.ULID {
	var id ulid.ULID
	_ = id.SetTime(uint64(max(t, 0))) // ids go beyond maxTime
	_ = id.SetEntropy(sum[:10])       // has the right length
	return id
}
