// Package wal is the write-ahead log of one generation: an append-only list of opaque records in a directory of its
// own. The position of a record in the log is the order of acceptance, and replay gives the records back in that order.
//
// # The one idea
//
// A record is acknowledged when the kernel has it (with SyncEvery: when the disk has it), and nothing that goes wrong
// with one record ever touches another. A write that fails is cut back to the last good byte before anything else is
// written, or a new segment is begun that says where the good part of its predecessor ended; a record that is damaged
// on disk is skipped, and replay goes on behind it and counts what is missing.
//
// # On disk
//
//	DIR/header          once, before the first record: the owner's opaque bytes and the log's random id
//	DIR/00000001.wal    segments: 48 bytes of segment header, then frames; numbers grow, and may leave gaps
//	DIR/00000007.wal.tmp  a segment being rewritten; ignored, removed by Open
//
// A frame is 24 bytes (sync marker, length of the record, attempt, sequence number of the record in this log, CRC-32C of the
// record, CRC-32C of all these) and the record. Both checksums start from the log's id, so that bytes which a client sends
// can never be taken for a frame, not even by the search for the next frame behind a damaged one. As the frame's
// header has a checksum of its own, a damaged record is skipped by its length; only where the header itself is damaged is the
// next frame searched for. A length is used only after its checksum was found right and it is within MaxRecordSize and the
// file. Empty records are allowed.
//
// A segment's header carries the position (bytes of frames before it, in the whole log) and the sequence number of its
// first record. So replay knows what a missing or shortened segment held, and ignores what stands behind the good
// part of a segment. The attempt counts the failed writes in a segment: should a power cut undo the truncation behind one of them, its frames
// are known by it. The sequence number counts records that were written; indexes, which Enqueue gives out, also count those
// that failed, and are not on disk.
//
// Create builds the log beside its final place and renames it: a crash leaves a whole log or a folder whose name begins with
// ".tmp-", which RemoveTemporary deletes.
//
// # What a failed fsync means
//
// After a failed fsync the kernel may have dropped the pages and will report success the next time. So the segment is never
// synced again: what was not yet synced is read back, checked, and written to a new segment, which is synced. If that works,
// nothing happened but a line in the log. If it does not, then with SyncEvery the group's callers get the error and its records
// are cut off; without it those records were acknowledged already and are at risk until the generation is in a block:
// that is logged, counted, handed to Options.OnSyncFailure, and returned by every later Sync and Close. The log goes on in
// a new segment.
//
// # What a failed append means
//
// The record is not in the log, with one exception that no log can exclude: when the write failed or could not be synced, and
// cutting it off failed or was itself not yet synced, and then the machine died, replay may give the record all
// the same. To the sender it is a request without an answer.
//
// # Concurrency
//
// All methods of Log and Ticket may be called by any goroutine. Three things are locked, in this order:
//
//   - the token (a channel of capacity 1) belongs to whoever writes: it guards the choice of the current segment, the end of the log and all
//     calls that change files. Wait takes it for one group (the leader of that group), Sync and Close for their duration,
//     the background goroutine only after a failed fsync.
//   - segment.mu is held during an fsync and guards what is synced of that segment, and closing its file. Writers do not need it
//     until they leave the segment, so that writing goes on while the background goroutine syncs.
//   - Log.mu is held for moments only and guards the group that gathers records, the next index, and the fields of the current segment that
//     both the writer and the background goroutine read.
//
// Enqueue takes Log.mu alone: it settles the index and copies the record into the gathering group. Whoever waits first for a
// ticket of that group gets the token, takes the whole group, writes it with one call, syncs it with SyncEvery, and
// wakes all the others. A ticket that nobody waits for is written with the next group, or by Sync or Close.
//
// Without SyncEvery one background goroutine per log syncs, SyncInterval after the first write that is not synced. Close ends it.
// Close belongs to the owner; tickets taken before it are served, Enqueue after it gives tickets with ErrClosed.
// Replay and Remove are for logs that are not open.
package wal
