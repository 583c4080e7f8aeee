// Package migrate brings the history of others into the bucket: blocks of a Prometheus server, text in the OpenMetrics
// format, and what another server gives out over remote read.
//
// The one idea: history becomes blocks of generation 0, aligned to UTC days (level 2), or to windows of 2 h (level 1) where a
// day is too much for one step. Everything that a server here has accepted itself has a generation from 1 on. So an import has the
// lowest precedence there is, in queries and in every compaction, whenever it is done: it fills gaps and never changes what is
// there. Batch jobs merge its blocks with the others as soon as both are in the bucket.
//
// An import can be stopped at any point and run again. What a source has to say about a window has a key, derived from the
// source's content, the window and the external labels. A block lists the keys of what went into it among its sources, and a
// compacted block lists those of its inputs; whatever key the bucket shows, at whichever level, is skipped. The ids of blocks are
// derived from keys, too, so that a second attempt at an interrupted upload completes the first.
//
// Of two imports that say different things about the same moment of the same series, the one that comes later in the order
// of block.Compare wins: for blocks of one level, the one with the higher id. What has been compacted together with a server's own
// blocks takes their place in that order, and wins over what is imported later.
//
// Once series were passed over because of limits, the limits belong to the key, too: with higher ones the source is imported again,
// which changes nothing about the samples that are there.
//
// A deletion hides what was imported before it. A block lists those that were there when its import began as applied. What a failed
// import has uploaded of a block is never removed here, as another import of the same source may be making the same block.
//
// Blocks are streamed, and what comes in another order than blocks need is sorted in parts that go to a scratch folder: of a text,
// memoryLimit bytes at once. A day is then merged from as many parts as have samples of it, each with a buffer of 256 kB and the names and
// values of its labels: all of the text's parts where it has one series after the other over many days. In this, memory grows with
// the size of a text. An import keeps a lock on that folder, and clears it when it begins and ends.
//
// Concurrency: an Importer belongs to one goroutine. Progress may be read by any; its lock is a leaf.
package migrate
