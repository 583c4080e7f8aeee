package wal

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// maxSpare is the largest buffer in bytes that is kept for the next group.
const maxSpare = 8 << 20

// Log is an open write-ahead log. See the package comment for what it guarantees and which lock guards what.
type Log struct {
	dir string
	id  uint64
	o   Options

	token chan struct{} // full while somebody writes

	// Guarded by the token.
	number   uint64 // of the newest segment that was tried
	end      mark   // of the good frames, in the whole log
	segments int
	stuck    bool // the current segment is full and a new one could not be made: said once

	mu      sync.Mutex
	pending *group
	spare   []byte
	index   uint64
	closed  bool
	cur     *segment // changed only with the token
	risk    error    // the first failed fsync after which acknowledged records were at risk

	size  atomic.Int64
	dirty chan struct{} // wakes the background goroutine
	stop  chan struct{}
	done  sync.WaitGroup
}

// mark is a position in the whole log: bytes of frames and records before it.
type mark struct {
	pos int64
	seq uint64
}

// group is what is written with one call.
type group struct {
	log  *Log
	buf  []byte // frames, their headers still to be filled
	ends []int  // where each frame ends in buf
	done chan struct{}
	err  error // set before done is closed
}

// Ticket stands for a record whose index is settled and which is not yet known to be written.
type Ticket struct {
	group *group
	index uint64
	err   error
}

// Index is the record's position in the order of acceptance. A record that failed has used up its index.
func (t Ticket) Index() uint64 { return t.index }

// Wait returns when the record was handed to the kernel (with SyncEvery: when it is on disk). After an error the record is not
// in the log. It may be called more than once and by several goroutines.
func (t Ticket) Wait() error {
	if t.group == nil {
		return t.err
	}
	l := t.group.log
	select {
	case <-t.group.done:
		return t.group.err
	case l.token <- struct{}{}:
	}
	defer l.release()
	select {
	case <-t.group.done: // somebody else was faster
	default:
		l.flush()
	}
	return t.group.err
}

// Append writes a record, whose bytes are parts one after the other, and returns its index. It is Enqueue and Wait.
func (l *Log) Append(parts ...[]byte) (index uint64, err error) {
	t := l.Enqueue(parts...)
	return t.index, t.Wait()
}

// Enqueue settles the index of a record, whose bytes are parts one after the other, and copies them; it does no I/O. Records are
// written in the order of their indexes. The ticket of a record that is too large, or of a closed log, has its error already.
func (l *Log) Enqueue(parts ...[]byte) Ticket {
	var size int64
	for _, p := range parts {
		size += int64(len(p))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t := Ticket{index: l.index}
	l.index++
	switch {
	case l.closed:
		t.err = ErrClosed
	case size > l.o.MaxRecordSize:
		t.err = &RecordTooLargeError{Size: size, Max: l.o.MaxRecordSize}
	default:
		t.group = l.pending
		t.group.add(parts)
	}
	return t
}

// Size is the number of bytes that the log takes on disk.
func (l *Log) Size() int64 { return l.size.Load() }

// Sync writes what is enqueued and makes everything durable that was written so far. It returns an error if that is not known of
// every acknowledged record, also because of an earlier failure (see SyncError).
func (l *Log) Sync() error {
	l.acquire()
	defer l.release()
	return l.syncAll()
}

func (l *Log) syncAll() error {
	ferr := l.flush()
	l.mu.Lock()
	seg := l.cur
	l.mu.Unlock()
	if seg != nil {
		if err := l.syncSegment(seg); err != nil {
			_ = l.replace(seg, l.end) // reported there and kept as l.risk
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(ferr, l.risk)
}

// Close writes and syncs what is left and ends the log; its error is that of Sync. Closing again does nothing.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	close(l.stop)
	l.done.Wait()
	l.acquire()
	defer l.release()
	err := l.syncAll()
	if l.cur != nil {
		l.leave(l.cur)
	}
	l.o.Metrics.segments.Sub(float64(l.segments))
	l.segments = 0
	return err
}

func (l *Log) acquire() { l.token <- struct{}{} }
func (l *Log) release() { <-l.token }

func newGroup(l *Log, buf []byte) *group {
	return &group{log: l, buf: buf[:0], done: make(chan struct{})}
}

func (g *group) add(parts [][]byte) {
	var header [frameHeaderSize]byte
	g.buf = append(g.buf, header[:]...)
	for _, p := range parts {
		g.buf = append(g.buf, p...)
	}
	g.ends = append(g.ends, len(g.buf))
}

func (g *group) seal(id uint64, attempt uint16, seq uint64) {
	from := 0
	for i, end := range g.ends {
		sealFrame(id, attempt, seq+uint64(i), g.buf[from:end])
		from = end
	}
}

// flush writes the pending group, if it is not empty, and wakes whoever waits for it. The caller holds the token.
func (l *Log) flush() error {
	l.mu.Lock()
	g := l.pending
	if len(g.ends) == 0 {
		l.mu.Unlock()
		return nil
	}
	l.pending, l.spare = newGroup(l, l.spare), nil
	l.mu.Unlock()

	if err := l.commit(g); err != nil {
		l.o.Metrics.writeFailures.Inc()
		g.err = fmt.Errorf("append to write-ahead log %s: %w", l.dir, err)
	}
	buf := g.buf
	g.buf, g.ends = nil, nil // tickets may keep the group for long
	close(g.done)

	if cap(buf) <= maxSpare {
		l.mu.Lock()
		l.spare = buf
		l.mu.Unlock()
	}
	return g.err
}

// commit writes a group, and syncs it with SyncEvery. After an error nothing of it is in the log.
func (l *Log) commit(g *group) error {
	seg, err := l.segment()
	if err != nil {
		return err
	}
	before := l.end
	g.seal(l.id, seg.attempt, before.seq)
	if err := writeFull(seg.f, g.buf, seg.off); err != nil {
		l.cutBack(seg)
		return fmt.Errorf("write %d records to segment %s: %w", len(g.ends), seg.name, err)
	}
	l.o.Metrics.writes.Inc()
	l.size.Add(int64(len(g.buf)))
	l.mu.Lock()
	seg.off += int64(len(g.buf))
	seg.seq += uint64(len(g.ends))
	l.mu.Unlock()
	l.end = mark{before.pos + int64(len(g.buf)), before.seq + uint64(len(g.ends))}

	if l.o.SyncEvery {
		if err := l.syncSegment(seg); err != nil {
			if err := l.replace(seg, before); err != nil {
				return err
			}
		}
	} else {
		l.wake()
	}
	l.o.Metrics.records.Add(float64(len(g.ends)))
	l.o.Metrics.bytes.Add(float64(len(g.buf)))
	return nil
}

func (l *Log) wake() {
	select {
	case l.dirty <- struct{}{}:
	default:
	}
}

// syncLoop syncs what was written, SyncInterval after it was. When fsync fails, it takes its time: every failure costs a segment.
func (l *Log) syncLoop() {
	defer l.done.Done()
	delay := l.o.SyncInterval
	for {
		select {
		case <-l.stop:
			return
		case <-l.dirty:
		}
		select {
		case <-l.stop:
			return
		case <-time.After(delay):
		}
		if l.syncCurrent() {
			delay = l.o.SyncInterval
		} else {
			delay = min(2*delay, max(maxSyncDelay, l.o.SyncInterval))
		}
	}
}

// syncCurrent syncs the current segment while others go on writing. It tells whether that worked at once.
func (l *Log) syncCurrent() bool {
	l.mu.Lock()
	seg := l.cur
	l.mu.Unlock()
	if seg == nil || l.syncSegment(seg) == nil {
		return true
	}
	l.acquire()
	defer l.release()
	_ = l.replace(seg, l.end) // reported there and kept as l.risk
	return false
}
