package tombstone

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/merge"
)

const (
	// Version is the version of the format. A tombstone of a higher one is not read.
	Version = 1
	// MaxSize bounds an encoded tombstone, in bytes.
	MaxSize = 1 << 20
	// MaxMatchers bounds the names and values of a tombstone's matchers together, in bytes.
	MaxMatchers = 64 << 10
)

var (
	// ErrCorrupt says that the bytes are not those of a tombstone that this program can read.
	ErrCorrupt = errors.New("tombstone cannot be read")
	// ErrMatchers says that no tombstone can have such matchers: longer than MaxMatchers, or not of valid UTF-8.
	ErrMatchers = errors.New("the matchers cannot be kept")
)

// Tombstone is one deletion.
type Tombstone struct {
	ID ulid.ULID `json:"id"`
	// Generation is the last one that the tombstone concerns.
	Generation uint64 `json:"generation"`
	// MinTime and MaxTime bound the samples that are deleted, both inclusive, in milliseconds.
	MinTime int64 `json:"minTime"`
	MaxTime int64 `json:"maxTime"`
	// Selectors say which series are meant: those that one of them matches.
	Selectors []Selector `json:"selectors"`
	// Writer is whose samples are deleted: the external labels of its blocks.
	Writer map[string]string `json:"writer"`
	// Answered are the labels that answers added to every stored series without one of that name. Matchers see series as answered.
	Answered map[string]string `json:"answered,omitempty"`
	// Created is when the deletion was asked for, in milliseconds since 1970. It tells what is older only where there is no generation.
	Created int64 `json:"created"`
	// Instance names the data path in which the deletion was asked for: that of a writer which counts the generations that wait for their upload
	// by itself.
	Instance string `json:"instance,omitempty"`
}

// Selector is matchers that must all match.
type Selector []*labels.Matcher

// matcher is a labels.Matcher in JSON.
type matcher struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Value string `json:"value"`
}

var matchTypes = map[string]labels.MatchType{
	"=": labels.MatchEqual, "!=": labels.MatchNotEqual, "=~": labels.MatchRegexp, "!~": labels.MatchNotRegexp,
}

// MarshalJSON implements json.Marshaler.
func (s Selector) MarshalJSON() ([]byte, error) {
	out := make([]matcher, 0, len(s))
	for _, m := range s {
		out = append(out, matcher{m.Name, m.Type.String(), m.Value})
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *Selector) UnmarshalJSON(raw []byte) error {
	var in []matcher
	if err := json.Unmarshal(raw, &in); err != nil {
		return err
	}
	*s = make(Selector, 0, len(in))
	for _, m := range in {
		typ, ok := matchTypes[m.Type]
		if !ok {
			return fmt.Errorf("matcher of label %q has the unknown type %q", m.Name, m.Type)
		}
		made, err := labels.NewMatcher(typ, m.Name, m.Value)
		if err != nil {
			return fmt.Errorf("matcher of label %q: %w", m.Name, err)
		}
		*s = append(*s, made)
	}
	return nil
}

// String is the selector as in PromQL.
func (s Selector) String() string {
	parts := make([]string, 0, len(s))
	for _, m := range s {
		parts = append(parts, m.String())
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// New returns a tombstone with an id of its own, made now.
func New(generation uint64, mint, maxt int64, selectors []Selector, writer, answered map[string]string) (*Tombstone, error) {
	now := time.Now()
	t := &Tombstone{
		ID: ulid.MustNewDefault(now), Generation: generation, MinTime: mint, MaxTime: maxt, Selectors: selectors,
		Writer: writer, Answered: answered, Created: now.UnixMilli(),
	}
	_, err := t.Marshal()
	return t, err
}

func (t *Tombstone) validate() error {
	switch {
	case t.ID == (ulid.ULID{}):
		return errors.New("no id")
	case t.MinTime > t.MaxTime:
		return fmt.Errorf("minTime %d is after maxTime %d", t.MinTime, t.MaxTime)
	case len(t.Selectors) == 0:
		return errors.New("no selector")
	case len(t.Writer) == 0:
		return errors.New("no writer")
	}
	size := 0
	for _, s := range t.Selectors {
		if len(s) == 0 {
			return errors.New("a selector has no matcher")
		}
		for _, m := range s {
			if !utf8.ValidString(m.Name) || !utf8.ValidString(m.Value) {
				return fmt.Errorf("%w: that of label %q is not valid UTF-8", ErrMatchers, m.Name)
			}
			if size += len(m.Name) + len(m.Value); size > MaxMatchers {
				return fmt.Errorf("%w: together they are longer than %d bytes", ErrMatchers, MaxMatchers)
			}
		}
	}
	return nil
}

// Interval is the range of time of the tombstone.
func (t *Tombstone) Interval() merge.Interval {
	return merge.Interval{MinTime: t.MinTime, MaxTime: t.MaxTime}
}

// Same says whether t and o delete the same.
func (t *Tombstone) Same(o *Tombstone) bool {
	return t.Generation == o.Generation && t.Interval() == o.Interval() && maps.Equal(t.Writer, o.Writer) && maps.Equal(t.Answered, o.Answered) &&
		slices.EqualFunc(t.Selectors, o.Selectors, func(a, b Selector) bool { return a.String() == b.String() })
}

// Effect is what a tombstone does to a source.
type Effect int

const (
	// None says that all of the source is later, or at other times, or another writer's, or that what is deleted has been erased.
	None Effect = iota
	// Whole says that what the tombstone selects is deleted, whatever generation of the source it came with.
	Whole
	// Mixed says that the source was merged from older and from later samples, and its maker did not know the tombstone. By the order in which a
	// writer uploads that cannot be; a version of Millrace from before there were tombstones may do it. Which samples are older nobody
	// can tell any more: what the tombstone selects is hidden, so that nothing deleted comes back, and never erased.
	Mixed
)

// Stored is what On needs to know of a source.
type Stored struct {
	// Writer are the external labels of the source's writer.
	Writer map[string]string
	// MinTime and MaxTime bound the source's samples, both inclusive, in milliseconds.
	MinTime, MaxTime int64
	// MinGeneration and MaxGeneration are the range of generations in the source. Where the latter is 0, as of what was imported and of
	// other programs' blocks, Applied and Made decide.
	MinGeneration, MaxGeneration uint64
	// Made is when a source without generations was made, in milliseconds since 1970; 0 where all tombstones that came before are in Applied.
	Made int64
	// Applied are the tombstones whose samples were erased.
	Applied []ulid.ULID
	// Deleted are tombstones that concern all of the source whatever the numbers of its generations, which are not those that it had then.
	Deleted []ulid.ULID
	// Instance is the data path in which the source waits for its upload; empty for what is in the bucket. Another one's tombstones do not concern
	// it: their numbers are not of its sequence, and it will get higher ones.
	Instance string
}

// Elsewhere says whether the deletion was asked for in another data path than the given one.
func (t *Tombstone) Elsewhere(instance string) bool {
	return t.Instance != "" && t.Instance != instance
}

// On decides what the tombstone does to a source.
func (t *Tombstone) On(s Stored) Effect {
	switch {
	case !t.Interval().Overlaps(s.MinTime, s.MaxTime) || slices.Contains(s.Applied, t.ID):
		return None
	case slices.Contains(s.Deleted, t.ID):
		return Whole
	case s.Instance != "" && t.Elsewhere(s.Instance):
		return None
	case s.MinGeneration > t.Generation || !maps.Equal(t.Writer, s.Writer):
		return None
	case s.MaxGeneration == 0 && s.Made > t.Created:
		return None
	case s.MaxGeneration > t.Generation:
		return Mixed
	}
	return Whole
}

// envelope is a tombstone as it stands in a file: a bit that flips in a matcher must not bring samples back.
type envelope struct {
	Version   int             `json:"version"`
	CRC32C    uint32          `json:"crc32c"` // of the bytes of Tombstone
	Tombstone json.RawMessage `json:"tombstone"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Marshal encodes the tombstone as it stands in files.
func (t *Tombstone) Marshal() ([]byte, error) {
	err := t.validate()
	if err != nil {
		return nil, fmt.Errorf("encode tombstone %s: %w", t.ID, err)
	}
	e := envelope{Version: Version}
	if e.Tombstone, err = json.Marshal(t); err != nil {
		return nil, fmt.Errorf("encode tombstone %s: %w", t.ID, err)
	}
	e.CRC32C = crc32.Checksum(e.Tombstone, castagnoli)
	raw, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode tombstone %s: %w", t.ID, err)
	}
	if len(raw) >= MaxSize { // and nobody could read it again
		return nil, fmt.Errorf("%w: encoded they have %d bytes, at most %d", ErrMatchers, len(raw), MaxSize)
	}
	return append(raw, '\n'), nil
}

// Parse decodes what Marshal has encoded. Its errors are ErrCorrupt.
func Parse(raw []byte) (*Tombstone, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrCorrupt, MaxSize)
	}
	var e envelope
	if err := json.Unmarshal(raw, &e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if e.Version != Version {
		return nil, fmt.Errorf("%w: it has format version %d, this version of Millrace reads %d", ErrCorrupt, e.Version, Version)
	}
	if crc32.Checksum(e.Tombstone, castagnoli) != e.CRC32C {
		return nil, fmt.Errorf("%w: it is not what was written: wrong checksum", ErrCorrupt)
	}
	t := &Tombstone{}
	if err := json.Unmarshal(e.Tombstone, t); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if err := t.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return t, nil
}
