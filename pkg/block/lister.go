package block

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"
)

// Lister lists the blocks of a bucket. A call costs one listing and a request for each block and mark not seen before.
// It is safe for concurrent use; mu guards the results of the latest call and is not held during requests.
type Lister struct {
	bkt objstore.BucketReader

	mu      sync.Mutex
	known   map[ulid.ULID]Listed
	bad     map[ulid.ULID]error
	partial []ulid.ULID
}

// NewLister returns a lister without knowledge.
func NewLister(bkt objstore.BucketReader) *Lister {
	return &Lister{bkt: bkt}
}

// List returns the blocks of a bucket. See Lister.List.
func List(ctx context.Context, bkt objstore.BucketReader) (map[ulid.ULID]Listed, error) {
	return NewLister(bkt).List(ctx)
}

// found is what a listing shows of a block.
type found struct{ files, meta, mark, quarantine bool }

// List returns all blocks that can be used, marked ones and replaced ones too. Blocks without meta.json do not exist (see
// Partial); such as cannot be used are left out and returned by Bad. An error means that nothing is known.
//
// A listing of many pages is not one moment: it may show the last upload of a job without an earlier one. So a bucket in which a job has newly been
// committed is listed again, and what is returned holds all outputs of every job that it shows committed.
func (l *Lister) List(ctx context.Context) (map[ulid.ULID]Listed, error) {
	for {
		l.mu.Lock()
		before := l.known
		l.mu.Unlock()
		now, err := l.list(ctx)
		if err != nil {
			return nil, err
		}
		if !newlyCommitted(before, now) {
			return now, nil
		}
	}
}

func newlyCommitted(before, now map[ulid.ULID]Listed) bool {
	for id, b := range now {
		if _, known := before[id]; !known && len(b.Meta.Replaces()) > 0 {
			return true
		}
	}
	return false
}

// list lists the bucket once.
func (l *Lister) list(ctx context.Context) (map[ulid.ULID]Listed, error) {
	shown, err := l.scan(ctx)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	known := l.known
	l.mu.Unlock()

	var (
		mu   sync.Mutex
		next = make(map[ulid.ULID]Listed, len(shown))
		bad  = map[ulid.ULID]error{}
		part []ulid.ULID
	)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxParallel)
	for id, f := range shown {
		if !f.meta {
			part = append(part, id)
			continue
		}
		if old, ok := known[id]; ok && (old.DeletionMark != nil) == f.mark && (old.QuarantineMark != nil) == f.quarantine {
			mu.Lock()
			next[id] = old
			mu.Unlock()
			continue
		}
		g.Go(func() error {
			b, err := l.get(gctx, id, f, known)
			mu.Lock()
			defer mu.Unlock()
			return sortOut(next, bad, id, b, err)
		})
	}
	if err := g.Wait(); err != nil {
		// What was read is kept, so that a large bucket behind a slow network is listed in several attempts.
		l.mu.Lock()
		maps.Copy(next, l.known)
		l.known = next
		l.mu.Unlock()
		return nil, fmt.Errorf("list blocks: %w", err)
	}
	slices.SortFunc(part, ulid.ULID.Compare)
	l.mu.Lock()
	l.known, l.bad, l.partial = next, bad, part
	l.mu.Unlock()
	return maps.Clone(next), nil
}

// sortOut files a block under good, bad or gone meanwhile; the error is one of the bucket's.
func sortOut(good map[ulid.ULID]Listed, bad map[ulid.ULID]error, id ulid.ULID, b Listed, err error) error {
	switch {
	case err == nil:
		good[id] = b
	case errors.Is(err, ErrGone):
	case errors.Is(err, ErrUnusable), errors.Is(err, ErrCorrupt):
		bad[id] = err
	default:
		return err
	}
	return nil
}

// get reads the meta and the marks of a block, as far as they are not known.
func (l *Lister) get(ctx context.Context, id ulid.ULID, f found, known map[ulid.ULID]Listed) (Listed, error) {
	b, ok := known[id]
	b.DeletionMark, b.QuarantineMark = nil, nil
	if !ok {
		m, err := fetchMeta(ctx, l.bkt, id)
		if err == nil {
			err = readable(&m)
		}
		if err != nil {
			return Listed{}, err
		}
		b.Meta = m
	}
	if f.mark {
		// A mark that was written in part is none yet: who marked the block will do so again.
		mark, err := readMark(ctx, l.bkt, id)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return Listed{}, err
		}
		b.DeletionMark = mark
	}
	if f.quarantine {
		mark, err := readQuarantine(ctx, l.bkt, id)
		if err != nil {
			return Listed{}, err
		}
		b.QuarantineMark = mark
	}
	return b, nil
}

// Bad returns the blocks that the latest List left out because their meta.json cannot be used, and why.
// What they hold is missing from answers.
func (l *Lister) Bad() map[ulid.ULID]error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.bad)
}

// Partial returns folders that the latest List found without meta.json: uploads under way, or what an interrupted upload or
// deletion has left.
func (l *Lister) Partial() []ulid.ULID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.partial)
}

// errPastBlocks ends a listing: no name that is still to come belongs to a block.
var errPastBlocks = errors.New("past the blocks")

// scan lists the bucket once. Names that do not belong to a block are passed over. A bucket lists names in order (objstore.Bucket), ULIDs
// begin with digits, and folders such as masters, which may hold more than all blocks, with letters: these are not listed at all.
func (l *Lister) scan(ctx context.Context) (map[ulid.ULID]found, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends what would go on listing
	out := map[ulid.ULID]found{}
	err := l.bkt.Iter(ctx, "", func(name string) error {
		if name >= "A" {
			return errPastBlocks
		}
		dir, rest, ok := strings.Cut(slashed(name), "/")
		if !ok {
			return nil
		}
		id, err := ulid.ParseStrict(dir)
		if err != nil || id.String() != dir {
			return nil
		}
		f := out[id]
		f.files = true
		f.meta = f.meta || rest == MetaFilename
		f.mark = f.mark || rest == DeletionMarkFilename
		f.quarantine = f.quarantine || rest == QuarantineMarkFilename
		out[id] = f
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil && !errors.Is(err, errPastBlocks) {
		return nil, fmt.Errorf("list blocks: %w", err)
	}
	return out, nil
}
