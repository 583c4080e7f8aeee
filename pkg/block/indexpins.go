package block

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"
)

// refuseFor is how long no copy is made of an index that was wrong when it was copied. What was wrong may have been one transfer, or the bucket
// may be mended, so that it does not last.
const refuseFor = time.Hour

// pin returns the mapped copy of a block's index, nil if there is none. It stays mapped until unpin, whatever becomes of the file and of the block.
func (s *IndexStore) pin(id ulid.ULID, tag uint32, size int64) *indexCopy {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.mapped[id]
	if c == nil {
		if s.sizes[id] == 0 {
			return nil
		}
		var err error
		if c, err = openCopy(s.name(id)); err == nil && (c.id != id || c.tag != tag || c.size != size) {
			err = errors.Join(fmt.Errorf("%w: it is of another block", ErrUnusable), c.close())
		}
		if err != nil {
			s.discardFile(id, err)
			return nil
		}
		c.store = s
		s.mapped[id] = c
	}
	if c.tag != tag || c.size != size {
		return nil // somebody uses it for a block that had this name before
	}
	c.users++
	return c
}

// pinAgain adds a user to a copy that has one; false if it has none any more, or is not to be used.
func (c *indexCopy) pinAgain() bool {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if c.users == 0 || c.gone {
		return false
	}
	c.users++
	return true
}

// unpin ends a use. The last one takes the mapping away, and with it the bytes on disk if the file was removed.
func (c *indexCopy) unpin() {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	c.store.release(c)
}

func (c *indexCopy) isGone() bool {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	return c.gone
}

// release is unpin for who holds the lock.
func (s *IndexStore) release(c *indexCopy) {
	if c.users--; c.users > 0 {
		return
	}
	if c.gone {
		s.leaving -= c.fileSize()
	} else {
		delete(s.mapped, c.id)
	}
	if err := c.close(); err != nil {
		s.o.Logger.Warn("unmapping a local copy of an index failed", "block", c.id, "err", err)
	}
	s.measure()
}

// discard removes a copy that is damaged.
func (s *IndexStore) discard(c *indexCopy, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeDamaged(c, cause)
}

// refuse removes a copy that is as it was received, and wrong. None takes its place for some time: the block is read from the bucket, where the
// fault may be.
func (s *IndexStore) refuse(c *indexCopy, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[c.id] = time.Now().Add(refuseFor)
	s.removeDamaged(c, fmt.Errorf("it was wrong when it was copied: %w", cause))
}

// removeDamaged removes a copy, once.
func (s *IndexStore) removeDamaged(c *indexCopy, cause error) {
	if !c.gone {
		s.discardFile(c.id, cause)
	}
}

func (s *IndexStore) discardFile(id ulid.ULID, cause error) {
	s.o.Metrics.damaged.Inc()
	s.o.Logger.Warn("a local copy of an index cannot be used", "block", id, "err", cause)
	if err := s.removeFile(id); err != nil {
		s.o.Logger.Warn("removing a local copy of an index failed", "block", id, "err", err)
	}
}

// leave takes a copy from those that are handed out. Its bytes count until its last user is done.
func (s *IndexStore) leave(id ulid.ULID) {
	if c := s.mapped[id]; c != nil {
		c.gone = true
		s.leaving += c.fileSize()
		delete(s.mapped, id)
	}
}

// isRefused says whether no copy of a block's index is to be made now.
func (s *IndexStore) isRefused(id ulid.ULID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.refused[id]
	if ok && !time.Now().Before(until) {
		delete(s.refused, id)
		return false
	}
	return ok
}

// copyReader reads the header of a block's index from a copy.
type copyReader struct {
	*bucketReader
	c *indexCopy
}

func (r copyReader) mapped(file int) bool { return file == indexFile }

func (r copyReader) loadOnce(ctx context.Context, file int, s span) ([]byte, error) {
	if file == indexFile {
		if err := checkSpans(IndexFilename, r.c.size, []span{s}); err != nil {
			return nil, err
		}
		if b, ok := r.c.bytes(s); ok {
			return b, nil
		}
		if r.c.bad.Load() {
			return nil, errDamagedCopy
		}
	}
	return r.bucketReader.loadOnce(ctx, file, s)
}

// errDamagedCopy says that a copy is no longer what was received.
var errDamagedCopy = fmt.Errorf("%w: a checksum of the copy is wrong", ErrCorrupt)

// giveUp discards a copy if it is damaged.
func (c *indexCopy) giveUp() {
	if c.bad.Load() {
		c.store.discard(c, errDamagedCopy)
	}
}

// loadHeader reads the header of the index from the local copy if there is one that is good, and else from the bucket. With a copy, the header is
// pinned to it.
func (r *bucketReader) loadHeader(ctx context.Context, m *Meta) (*header, error) {
	c := r.copied()
	if c == nil {
		return loadHeader(ctx, r, m)
	}
	h, err := loadHeader(ctx, copyReader{bucketReader: r, c: c}, m)
	if err == nil {
		h.from = c
		return h, nil
	}
	defer c.unpin()
	if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnusable) {
		return nil, err
	}
	if c.giveUp(); !c.isGone() {
		c.store.refuse(c, err)
	}
	return loadHeader(ctx, r, m)
}
