// Package block writes and reads immutable blocks: Prometheus TSDB blocks in the Thanos layout, on local disk or in
// an object-storage bucket.
//
// The one idea: a block never changes, so everything about it can be cached for ever, and it exists exactly as long as
// its meta.json does. Write makes a block in a temporary folder and renames it; Upload puts meta.json last; Delete takes
// it away first. What a crash leaves behind is therefore never a block.
//
// The same Block type reads from a mapped folder and from a bucket. Both stand behind the small seam rangeReader; the
// index is decoded by our own tsdb.IndexReader, made per query so that it carries the query's context and budget.
//
// Local copies of indexes are mapped, too. Headers and views that are of one pin it, so that it can be removed at any time.
//
// Concurrency: a Block may be used by any number of goroutines. Its only lock guards the header (symbols, postings offset
// table), which is loaded on first use by one goroutine while the others wait for it. Cache has one lock for the list of
// fetches under way; it is never held during a request. Queriers belong to one goroutine each. Lister has one lock over
// its cache of metas, not held during requests.
//
// Memory: label strings are copies and outlive everything. Chunk bytes of a local block are those of the mapped file, and
// valid until Block.Close, which the caller must not call while a query uses the block. Chunk bytes from a bucket are
// ordinary memory.
package block
