package claim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
)

// Folder is where writers' claims are in a bucket. It is no block's name, so that readers of blocks pass it over.
const Folder = "millrace/writers"

const (
	recordVersion = 1
	// maxRecord bounds what is read of an object, in bytes.
	maxRecord = 64 << 10
	// termDigits is the length of a term in a name. It is part of the format, as are the names: a version that cannot read an object still sees
	// its term.
	termDigits = 20
)

// record is the content of a claim's object.
type record struct {
	Version  int               `json:"version"`
	Labels   map[string]string `json:"labels"`
	Instance string            `json:"instance"`
	Place    string            `json:"place,omitempty"`
	Host     string            `json:"host"`
	PID      int               `json:"pid"`
	Since    time.Time         `json:"since"`    // for people: nobody compares it with a clock
	Renewed  time.Time         `json:"renewed"`  // for people, too
	Renewals uint64            `json:"renewals"` // so that a renewal is a change even if the time of day stands still
	Released bool              `json:"released,omitempty"`

	term uint64
}

func newRecord(o *Options, term uint64) record {
	now := time.Now()
	return record{
		Version: recordVersion, Labels: o.Labels, Instance: o.Identity.Instance, Place: o.Identity.Place, Host: o.Identity.Host, PID: o.Identity.PID,
		Since: now, Renewed: now, term: term,
	}
}

// object is a claim as a look found it.
type object struct {
	name string
	term uint64
	raw  string
	rec  record
}

// sight is since when an object has been seen unchanged, and whether it ever changed while it was watched.
type sight struct {
	raw     string
	since   time.Time
	changed bool
}

// folder is where claims of these labels are, below that of all claims of their kind.
func folder(kind string, labels map[string]string) string {
	raw, _ := json.Marshal(labels) // a map of strings, sorted by name: it cannot fail
	sum := sha256.Sum256(raw)
	return path.Join(kind, hex.EncodeToString(sum[:16]))
}

func (c *Claimant) objectName(term uint64) string {
	return path.Join(c.dir, fmt.Sprintf("%0*d-%s.json", termDigits, term, c.session))
}

// parseName is the inverse of objectName.
func parseName(name string) (term uint64, session ulid.ULID, ok bool) {
	name, isJSON := strings.CutSuffix(path.Base(strings.ReplaceAll(name, `\`, "/")), ".json")
	digits, id, found := strings.Cut(name, "-")
	if !isJSON || !found || len(digits) != termDigits {
		return 0, ulid.ULID{}, false
	}
	term, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, ulid.ULID{}, false
	}
	session, err = ulid.ParseStrict(id)
	return term, session, err == nil
}

// look reads the others' objects and notes since when each has been as it is. What was noted before is of no worth if it was too long ago: the
// others may have been cut off from the bucket, too.
func (c *Claimant) look(ctx context.Context) (map[string]*object, error) {
	if c.o.Now().Sub(c.looked) > c.o.Times.Valid {
		clear(c.seen)
	}
	others := map[string]*object{}
	err := c.o.Bucket.Iter(ctx, c.dir+objstore.DirDelim, func(name string) error {
		if term, session, ok := parseName(name); ok && session != c.session {
			name = path.Join(c.dir, path.Base(strings.ReplaceAll(name, `\`, "/")))
			others[name] = &object{name: name, term: term}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the claims of writers: %w", err)
	}
	for name, o := range others {
		if o.raw, err = c.get(ctx, name); c.o.Bucket.IsObjNotFoundErr(err) {
			delete(others, name)
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read the claim %s: %w", name, err)
		}
		o.rec = parseRecord(o.raw)
	}
	c.note(others)
	return others, nil
}

func (c *Claimant) note(others map[string]*object) {
	c.looked = c.o.Now()
	for name := range c.seen {
		if others[name] == nil {
			delete(c.seen, name)
		}
	}
	for name, o := range others {
		if was, known := c.seen[name]; !known || was.raw != o.raw {
			c.seen[name] = sight{raw: o.raw, since: c.looked, changed: known}
		}
	}
}

// parseRecord returns what can be understood of an object. One of a later version, or a damaged one, is a claim like others, only that nobody knows
// whose.
func parseRecord(raw string) record {
	var r record
	if err := json.Unmarshal([]byte(raw), &r); err != nil || r.Version != recordVersion {
		return record{}
	}
	return r
}

func (c *Claimant) get(ctx context.Context, name string) (_ string, err error) {
	body, err := c.o.Bucket.Get(ctx, name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	raw, err := io.ReadAll(io.LimitReader(body, maxRecord))
	return string(raw), err
}

func (c *Claimant) put(ctx context.Context, name string, r record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the claim of the external labels: %w", err)
	}
	if err := c.o.Bucket.Upload(ctx, name, bytes.NewReader(raw)); err != nil {
		return fmt.Errorf("write the claim of the external labels: %w", err)
	}
	return nil
}

func (c *Claimant) remove(ctx context.Context, name string) error {
	if err := c.o.Bucket.Delete(ctx, name); err != nil && !c.o.Bucket.IsObjNotFoundErr(err) {
		return fmt.Errorf("remove the claim %s: %w", name, err)
	}
	return nil
}
