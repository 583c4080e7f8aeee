package tombstone

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"
)

const (
	// Folder is where tombstones are in a bucket: beside the blocks, under a name that no reader of blocks takes for one.
	Folder      = "tombstones"
	suffix      = ".json"
	stateSuffix = ".state" + suffix
	// fetches is how many tombstones are read at the same time.
	fetches = 16
)

// FileName is the name of a tombstone's file or object in its folder.
func FileName(id ulid.ULID) string { return id.String() + suffix }

// ParseFileName is the reverse of FileName; ok is false for other names.
func ParseFileName(name string) (id ulid.ULID, ok bool) {
	text, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return id, false
	}
	id, err := ulid.ParseStrict(text)
	return id, err == nil && id.String() == text
}

func objectName(id ulid.ULID) string { return path.Join(Folder, FileName(id)) }
func stateName(id ulid.ULID) string  { return path.Join(Folder, id.String()+stateSuffix) }

// Store is the tombstones of a bucket. It is safe for concurrent use.
type Store struct {
	bkt objstore.Bucket

	mu    sync.Mutex
	known map[ulid.ULID]*Tombstone // of the latest listing
}

// NewStore makes no request.
func NewStore(bkt objstore.Bucket) *Store { return &Store{bkt: bkt} }

// List returns all tombstones of the bucket in order of their ids, for one listing and a request for each that was not there at the last
// call. One that cannot be read is an error, since what it deletes would come back: no answer and no block may be made without it.
func (s *Store) List(ctx context.Context) ([]*Tombstone, error) {
	var ids []ulid.ULID
	err := s.bkt.Iter(ctx, Folder+objstore.DirDelim, func(name string) error {
		if id, ok := ParseFileName(path.Base(strings.ReplaceAll(name, `\`, "/"))); ok {
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list tombstones: %w", err)
	}
	s.mu.Lock()
	known := s.known
	s.mu.Unlock()
	var (
		mu   sync.Mutex
		next = make(map[ulid.ULID]*Tombstone, len(ids))
	)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetches)
	for _, id := range ids {
		if t, ok := known[id]; ok {
			mu.Lock()
			next[id] = t
			mu.Unlock()
			continue
		}
		g.Go(func() error {
			t, err := s.get(gctx, id)
			if err != nil || t == nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			next[id] = t
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.known = next
	s.mu.Unlock()
	return slices.SortedFunc(maps.Values(next), Compare), nil
}

// Compare orders tombstones by their ids.
func Compare(a, b *Tombstone) int { return a.ID.Compare(b.ID) }

// get returns nil for a tombstone that has just gone.
func (s *Store) get(ctx context.Context, id ulid.ULID) (*Tombstone, error) {
	name := objectName(id)
	raw, err := s.read(ctx, name)
	if err != nil {
		if s.bkt.IsObjNotFoundErr(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	t, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", name, err)
	}
	if t.ID != id {
		return nil, fmt.Errorf("object %s: %w: it is tombstone %s", name, ErrCorrupt, t.ID)
	}
	return t, nil
}

func (s *Store) read(ctx context.Context, name string) ([]byte, error) {
	body, err := s.bkt.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, MaxSize+1))
}

// Put brings a tombstone into the bucket. After an error the call can be repeated.
func (s *Store) Put(ctx context.Context, t *Tombstone) error {
	raw, err := t.Marshal()
	if err != nil {
		return err
	}
	if err := s.bkt.Upload(ctx, objectName(t.ID), bytes.NewReader(raw)); err != nil {
		return fmt.Errorf("put %s: %w", objectName(t.ID), err)
	}
	return nil
}

// Delete takes a tombstone and its state out of the bucket.
func (s *Store) Delete(ctx context.Context, id ulid.ULID) error {
	for _, name := range []string{objectName(id), stateName(id)} {
		if err := s.bkt.Delete(ctx, name); err != nil && !s.bkt.IsObjNotFoundErr(err) {
			return fmt.Errorf("delete %s: %w", name, err)
		}
	}
	return nil
}

// State is what the batch layer has found out about a tombstone.
type State struct {
	Version int `json:"version"`
	// Void are blocks in which no series matches the tombstone.
	Void []ulid.ULID `json:"void,omitempty"`
	// Settled is since when nothing is left of what the tombstone deletes, in milliseconds since 1970; 0 is not yet.
	Settled int64 `json:"settled,omitempty"`
}

// State returns what is known of a tombstone. What cannot be decoded is as good as nothing: it will be found out again.
func (s *Store) State(ctx context.Context, id ulid.ULID) (State, error) {
	raw, err := s.read(ctx, stateName(id))
	if err != nil {
		if s.bkt.IsObjNotFoundErr(err) {
			return State{}, nil
		}
		return State{}, fmt.Errorf("get %s: %w", stateName(id), err)
	}
	var st State
	if json.Unmarshal(raw, &st) != nil || st.Version != Version {
		return State{}, nil
	}
	return st, nil
}

// PutState replaces what is known of a tombstone.
func (s *Store) PutState(ctx context.Context, id ulid.ULID, st State) error {
	st.Version = Version
	raw, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode state of tombstone %s: %w", id, err)
	}
	if err := s.bkt.Upload(ctx, stateName(id), bytes.NewReader(raw)); err != nil {
		return fmt.Errorf("put %s: %w", stateName(id), err)
	}
	return nil
}
