// Package serving is the merge of all layers: one storage.Queryable over generations, local blocks and the bucket's blocks, and
// the PromQL engine that queries it within limits.
//
// The one idea: what can be queried is a Set of sources, an immutable list that is replaced as a whole. A query pins the list
// as it is when it begins and reads nothing else until it ends, so an answer never mixes two states: a block comes in by the
// step in which its generation leaves. A sample that several sources have is decided by pkg/merge in the order of generations.
// An error of any source is the query's error; an answer is never silently incomplete.
//
// # Limits
//
// A query is stopped before it spends what it may not. Before it runs, the parsed expression says how often each part of it will be
// evaluated; that must fit --query.max-samples. While series are found, each is charged to the query's Budget with what the
// engine will hold for it; budgets draw on one MemoryPool for the whole process. See plan.go for the estimate.
//
// # Concurrency
//
// Set, Queryable, Engine and MemoryPool are safe for concurrent use; queriers and queries belong to one goroutine, as
// Prometheus's do, except that sets of one querier may be read by different ones. Set has one lock over the list and its
// counts; release functions are called outside of it. MemoryPool has one lock, a leaf. Goroutines that read ahead belong to a
// querier: Close cancels them, waits, closes what was opened, and unpins last. Strings of labels outlive Close, chunks do not.
package serving
