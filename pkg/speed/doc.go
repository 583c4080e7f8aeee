// Package speed holds the newest samples in memory. The one idea: a generation is everything that arrived between two
// seals, whatever its event time, and is complete in itself: series registry, inverted index and chunks. Nothing is ever
// evicted from it; it is served until blocks take its place, and then freed as a whole.
//
// # Order
//
// Every accepted request has an index, its position in the generation's log. The write accepted last wins, so requests must
// take effect in the order of their indexes although they are applied by many goroutines. Series are divided over shards by
// the hash of their labels, and each shard has a turn: the index whose request it is to take next. Append visits the shards
// one after another, always in the same order, waits at each for its turn, applies that shard's part and passes the turn on,
// also where it has nothing to apply. So requests follow each other through the shards like items on an assembly line.
//
// This cannot deadlock: a request never holds anything while it waits for a turn, and it waits only for requests with lower
// indexes. The lowest index that has not passed all shards waits for nobody, so it goes on, whatever the others do; by
// induction all do. (That holds for any order in which shards are visited; the common one is for throughput.) What it needs
// from the caller is that every index is given to Append or Skip, exactly once, and not from behind a limit on concurrency
// that waiting requests could fill up while a lower index stands outside. After a panic while a part is applied, the
// request gives up its turns at the shards behind.
//
// # Locks
//
// The lock of a shard's registry guards all of the shard: registry, index, series and chunks. Append holds it for writing
// while it applies one request's part, and Resolve while it registers a series, out of turn and before the request is in the log: should it never get there,
// the series stays, without samples; readers hold it for reading while they copy slice headers and the bytes of open
// chunks, never while they evaluate matchers, sort or encode. What can be reached without it is never changed again: closed
// chunks, labels, and the elements of the append-only lists below the length that was seen under the lock. At most one
// shard's lock is held at a time. Series are found without it (see registry): while a request is decoded, and in the previous
// generation on a series' first sample.
//
// # Samples
//
// A sample newer than its series' last one goes to the open chunk, which is cut at 120 samples, at multiples of 2 h of event time
// and where the type changes. A repetition of the last sample, equal to the bit, is dropped. Everything else is late: it is
// put into the series' late buffer, which when full becomes a late chunk. Precedence at equal timestamps is: in-order chunks,
// late chunks in the order in which they were made, the late buffer in the order of arrival; last wins. Readers merge.
//
// # Memory
//
// Labels are strings of the garbage collector: they outlive the generation where a query or the next generation still uses
// them. Closed chunks are slices of pages without pointers, equally kept alive by those who read them; open ones are chains of
// blocks in such pages, which readers copy. So nothing needs to be closed; a generation is freed when nobody refers to it any
// more.
package speed
