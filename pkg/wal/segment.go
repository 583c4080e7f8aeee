package wal

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// segment is a file that is being written.
type segment struct {
	number uint64
	name   string
	f      File
	base   mark // of its first frame
	// attempt counts the failed writes that were cut back; with the token.
	attempt uint16

	// Guarded by Log.mu, changed with the token: the end of the good frames in this file, and the sequence number there.
	off int64
	seq uint64

	mu sync.Mutex
	// Guarded by mu.
	synced    int64  // the part of off that is durable
	syncedSeq uint64 // the part of seq that is durable
	linked    bool   // the folder's entry is durable
	failed    error  // of the first fsync that failed: the kernel's word is worth nothing from then on
	closed    bool
}

// at translates a position in this segment's file to one in the log.
func (s *segment) at(off int64, seq uint64) mark {
	return mark{s.base.pos + max(0, off-segmentHeaderSize), seq}
}

// segment returns the segment to write to, a new one if the current one is full or there is none. The caller holds the token.
func (l *Log) segment() (*segment, error) {
	if l.cur != nil && l.cur.off < l.o.SegmentSize {
		return l.cur, nil
	}
	if old := l.cur; old != nil {
		if err := l.syncSegment(old); err != nil {
			_ = l.replace(old, l.end) // reported there; the log goes on in any case
			if l.cur != nil {
				return l.cur, nil
			}
		}
	}
	seg, err := l.create()
	if l.cur != nil && errors.Is(err, errNoFile) {
		// The size of a segment is a wish, not a limit.
		if !l.stuck {
			l.o.Logger.Warn("write-ahead log goes on in a full segment", "dir", l.dir, "segment", l.cur.name, "err", err)
		}
		l.stuck = true
		return l.cur, nil
	}
	// Once there was a file with a header that says where this segment ends, even if it is deleted again, nothing may be
	// added to this segment: a power cut can bring the file back.
	if l.cur != nil {
		l.leave(l.cur)
	}
	if err != nil {
		return nil, err
	}
	l.stuck = false
	l.enter(seg)
	return seg, nil
}

// create makes the next segment's file.
func (l *Log) create() (*segment, error) {
	l.number++
	seg, err := l.createFile(segmentName(l.number), l.end)
	if err != nil {
		return nil, fmt.Errorf("begin segment %s: %w", segmentName(l.number), err)
	}
	l.size.Add(segmentHeaderSize)
	return seg, nil
}

// errNoFile says that not even the file of a segment could be made.
var errNoFile = errors.New("cannot create the file")

// createFile makes a file with the segment header for number l.number that begins at base. After an error there is no file.
func (l *Log) createFile(name string, base mark) (*segment, error) {
	path := filepath.Join(l.dir, name)
	f, err := l.o.FS.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoFile, err)
	}
	h := segmentHeader{number: l.number, id: l.id, start: base.pos, seq: base.seq}
	if err := writeFull(f, h.encode(), 0); err != nil {
		return nil, errors.Join(err, f.Close(), l.o.FS.Remove(path))
	}
	return &segment{
		number: l.number, name: name, f: f, base: base,
		off: segmentHeaderSize, seq: base.seq, syncedSeq: base.seq,
	}, nil
}

// enter makes seg the current segment.
func (l *Log) enter(seg *segment) {
	l.mu.Lock()
	l.cur = seg
	l.mu.Unlock()
	l.segments++
	l.o.Metrics.segments.Inc()
}

// leave closes a segment that is synced or given up; the background goroutine may still be syncing it.
func (l *Log) leave(seg *segment) {
	l.mu.Lock()
	if l.cur == seg {
		l.cur = nil
	}
	l.mu.Unlock()
	seg.mu.Lock()
	defer seg.mu.Unlock()
	if seg.closed {
		return
	}
	seg.closed = true
	if err := seg.f.Close(); err != nil {
		l.o.Logger.Warn("closing a segment of the write-ahead log failed", "dir", l.dir, "segment", seg.name, "err", err)
	}
}

// cutBack removes what a failed write left behind the good part of the current segment. If that fails, the segment is left: the next
// one will say where the good part ended.
func (l *Log) cutBack(seg *segment) {
	err := seg.f.Truncate(seg.off)
	if err == nil && seg.attempt < math.MaxUint16 {
		seg.attempt++
		return
	}
	l.o.Logger.Warn("cutting back the write-ahead log failed, it goes on in a new segment", "dir", l.dir, "segment", seg.name, "err", err)
	if err := l.syncSegment(seg); err != nil {
		_ = l.replace(seg, l.end) // reported there; it leaves the segment, too
		return
	}
	l.leave(seg)
}

// syncSegment makes durable what is in seg when it is called. It needs no token.
func (l *Log) syncSegment(seg *segment) error {
	seg.mu.Lock()
	defer seg.mu.Unlock()
	l.mu.Lock()
	off, seq := seg.off, seg.seq
	l.mu.Unlock()
	switch {
	case seg.failed != nil:
		return seg.failed
	case seg.closed || seg.synced == off:
		return nil
	}
	begin := time.Now()
	err := seg.f.Sync()
	l.o.Metrics.syncDuration.Observe(time.Since(begin).Seconds())
	if err == nil && !seg.linked {
		err = l.o.FS.SyncDir(l.dir)
	}
	if err != nil {
		seg.failed = err
		l.o.Metrics.syncFailures.Inc()
		return err
	}
	seg.synced, seg.syncedSeq, seg.linked = off, seq, true
	return nil
}

// replace deals with a failed fsync of seg: what is not synced is written to a new segment, which becomes the current one. If that fails, seg
// is left, cut at keep (which is the log's end, or what was there before the group that nobody has been told of yet), and the error is
// returned. The caller holds the token.
func (l *Log) replace(seg *segment, keep mark) error {
	if l.cur != seg {
		return nil // somebody else has done it
	}
	seg.mu.Lock()
	from, fromSeq, cause := seg.synced, seg.syncedSeq, seg.failed
	seg.mu.Unlock()
	from = max(from, segmentHeaderSize)

	next, err := l.rewrite(seg, from, fromSeq)
	failure := &SyncError{
		Dir: l.dir, Segment: seg.name, Err: cause, Rewritten: err == nil,
		Records: seg.seq - fromSeq, Bytes: seg.off - from,
	}
	if err == nil {
		l.leave(seg)
		l.enter(next)
		l.o.Metrics.rewritten.Add(float64(failure.Records))
		l.o.Logger.Warn("fsync failed, what was not synced is synced in a new segment", "err", failure)
	} else {
		failure.Err = errors.Join(cause, fmt.Errorf("write it again: %w", err))
		l.giveUp(seg, keep, fromSeq, failure)
	}
	if l.o.OnSyncFailure != nil {
		l.o.OnSyncFailure(failure)
	}
	if failure.Rewritten {
		return nil
	}
	return failure
}

// giveUp leaves a segment that cannot be synced, whose part up to keep stays in the log and whose part up to fromSeq is durable.
func (l *Log) giveUp(seg *segment, keep mark, fromSeq uint64, failure *SyncError) {
	l.end = keep
	cut := segmentHeaderSize + keep.pos - seg.base.pos
	if cut < seg.off {
		// Nothing acknowledged is behind keep. The next segment's header cuts it off in any case.
		_ = seg.f.Truncate(cut)
		l.size.Add(cut - seg.off)
	}
	l.leave(seg)
	if keep.pos == seg.base.pos && l.o.FS.Remove(filepath.Join(l.dir, seg.name)) == nil {
		l.segments--
		l.o.Metrics.segments.Dec()
		l.size.Add(-segmentHeaderSize)
	}
	atRisk := keep.seq - min(keep.seq, fromSeq) // acknowledged and not durable
	if atRisk == 0 {
		l.o.Logger.Error("fsync of the write-ahead log failed, what it was for is refused", "err", failure)
		return
	}
	l.o.Metrics.atRisk.Add(float64(atRisk))
	l.o.Logger.Error("fsync of the write-ahead log failed, acknowledged records are lost if this machine dies now", "err", failure)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.risk == nil {
		l.risk = failure
	}
}

// rewrite copies the frames of seg from off on to a new segment and syncs it. The copy gets its name when it is whole: from then on it
// is what counts, because its header says where it begins.
func (l *Log) rewrite(seg *segment, off int64, seq uint64) (*segment, error) {
	l.number++
	name := segmentName(l.number)
	path := filepath.Join(l.dir, name)
	next, err := l.createFile(name+tmpSuffix, seg.at(off, seq))
	if err != nil {
		return nil, err
	}
	err = l.copyFrames(next, seg, off)
	if err == nil {
		err = next.f.Sync()
	}
	// Windows does not rename open files.
	if err = errors.Join(err, next.f.Close()); err != nil {
		return nil, errors.Join(err, l.o.FS.Remove(path+tmpSuffix))
	}
	if err := l.o.FS.Rename(path+tmpSuffix, path); err != nil {
		return nil, errors.Join(err, l.o.FS.Remove(path+tmpSuffix))
	}
	if next.f, err = l.o.FS.OpenFile(path, os.O_RDWR); err != nil {
		return nil, errors.Join(err, l.o.FS.Remove(path))
	}
	if err := l.o.FS.SyncDir(l.dir); err != nil {
		return nil, errors.Join(err, next.f.Close(), l.o.FS.Remove(path))
	}
	next.name, next.linked, next.synced, next.syncedSeq = name, true, next.off, next.seq
	l.size.Add(next.off)
	return next, nil
}

// copyFrames appends the frames of seg from off on to next, checking each: the kernel may have dropped what it could not write.
func (l *Log) copyFrames(next, seg *segment, off int64) error {
	s := scanner{r: seg.f, id: l.id, pos: off, end: seg.off, max: l.o.MaxRecordSize}
	var buf []byte
	for {
		f, ok, err := s.next()
		switch {
		case err != nil:
			return err
		case f.bad.size() > 0:
			return fmt.Errorf("%d bytes at offset %d read back damaged", f.bad.size(), f.bad.from)
		case ok:
			from := len(buf)
			buf = append(buf, make([]byte, frameHeaderSize)...)
			buf = append(buf, f.record...)
			sealFrame(l.id, next.attempt, f.seq, buf[from:])
			next.seq++
		}
		if len(buf) >= readAhead || !ok {
			if err := writeFull(next.f, buf, next.off); err != nil {
				return err
			}
			next.off += int64(len(buf))
			buf = buf[:0]
		}
		if !ok {
			break
		}
	}
	if next.seq != seg.seq {
		return fmt.Errorf("read back up to record %d instead of %d", next.seq, seg.seq)
	}
	return nil
}

func writeFull(w io.WriterAt, b []byte, off int64) error {
	n, err := w.WriteAt(b, off)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}
