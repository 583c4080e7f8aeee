package wal

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Defaults of Options.
const (
	DefaultSegmentSize   = 64 << 20
	DefaultMaxRecordSize = 64 << 20
	DefaultSyncInterval  = 100 * time.Millisecond
)

// MaxHeaderSize is the largest header that Create takes, in bytes.
const MaxHeaderSize = 1 << 20

// maxSyncDelay bounds how rarely the background goroutine tries to sync on a disk whose fsync keeps failing: every failure
// costs a new segment.
const maxSyncDelay = 10 * time.Second

// Options configure a log. The zero value is ready for use.
type Options struct {
	// SegmentSize is the size in bytes from which on a new segment is begun. A group of records is never split, so that a segment may
	// be larger by one group.
	SegmentSize int64
	// MaxRecordSize is the largest record in bytes. Replay skips larger ones and counts them as lost: never lower it
	// below what a log was written with.
	MaxRecordSize int64
	// SyncEvery makes Wait return after fsync instead of after write.
	SyncEvery bool
	// SyncInterval is the time between a write and the fsync that covers it, without SyncEvery.
	SyncInterval time.Duration
	// FirstIndex is the index of the first record that is enqueued after Create or Open.
	FirstIndex uint64
	// IgnoreHeader lets Replay read the records of a log whose header is damaged or missing. Stats.HeaderDamaged then says so, and
	// the header function is not called.
	IgnoreHeader bool
	// SkipUnreadable makes Replay treat what the disk cannot read as damaged, page by page. Without it an I/O error
	// ends the replay, because it may be gone with the next try.
	SkipUnreadable bool
	// OnSyncFailure, if set, hears of every fsync that failed, after the log has dealt with it. If the records were not rewritten, the way to
	// safety is to seal the generation, which writes them to a block from memory. It is called with the log's token held and must
	// not call the log's methods, Size excepted.
	OnSyncFailure func(*SyncError)
	// Metrics are shared by all logs of a process; nil means metrics that nobody sees.
	Metrics *Metrics
	// Logger is for what an operator must see; nil discards it.
	Logger *slog.Logger
	// FS is the file system, OS if nil.
	FS FS

	id uint64 // the log's id; 0 means a random one (tests need a fixed one)
}

func (o Options) withDefaults() Options {
	if o.SegmentSize <= 0 {
		o.SegmentSize = DefaultSegmentSize
	}
	if o.MaxRecordSize <= 0 {
		o.MaxRecordSize = DefaultMaxRecordSize
	}
	o.MaxRecordSize = min(o.MaxRecordSize, maxFramePayload)
	if o.SyncInterval <= 0 {
		o.SyncInterval = DefaultSyncInterval
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.FS == nil {
		o.FS = OS
	}
	return o
}

// ErrClosed is what tickets say that were taken after Close.
var ErrClosed = errors.New("write-ahead log is closed")

// RecordTooLargeError says that a record is larger than MaxRecordSize; sizes in bytes.
type RecordTooLargeError struct {
	Size, Max int64
}

func (e *RecordTooLargeError) Error() string {
	return fmt.Sprintf("record of %d bytes is larger than the write-ahead log takes (%d bytes)", e.Size, e.Max)
}

// CorruptHeaderError says that the header of a log is damaged or missing. The records may still be readable: see
// Options.IgnoreHeader.
type CorruptHeaderError struct {
	Dir    string
	Reason string
}

func (e *CorruptHeaderError) Error() string {
	return fmt.Sprintf("header of write-ahead log %s is damaged: %s", e.Dir, e.Reason)
}

// UnsupportedVersionError says that a log was written by a newer version of Millrace.
type UnsupportedVersionError struct {
	Dir          string
	Version, Max uint32
}

func (e *UnsupportedVersionError) Error() string {
	return fmt.Sprintf("write-ahead log %s has version %d of the format, this program reads versions up to %d", e.Dir, e.Version, e.Max)
}

// SyncError describes a failed fsync.
type SyncError struct {
	Dir     string
	Segment string
	// Records and Bytes are what was written to the segment since its last good fsync.
	Records uint64
	Bytes   int64
	// Rewritten is true if those records were written to a new segment and synced there: nothing is at risk. Otherwise they are lost
	// if the machine dies, or, with SyncEvery, their callers were told that they failed.
	Rewritten bool
	Err       error
}

func (e *SyncError) Error() string {
	what := "at risk"
	if e.Rewritten {
		what = "rewritten"
	}
	return fmt.Sprintf("sync segment %s of write-ahead log %s (%d records, %d bytes %s): %v",
		e.Segment, e.Dir, e.Records, e.Bytes, what, e.Err)
}

func (e *SyncError) Unwrap() error { return e.Err }
