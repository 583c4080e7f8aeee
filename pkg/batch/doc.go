// Package batch turns many small blocks in the bucket into few large ones, and removes what is no longer needed.
//
// The one idea: a job is a function from blocks to blocks. Its inputs never change, its outputs have ids that are derived
// from the inputs, and its last upload, whose meta.json names the blocks that the job replaces, is its commit. Until then
// the inputs count, and what was uploaded before is seen beside them without harm; afterwards the outputs count. A job
// that dies at any point is therefore simply planned again, and finds what it had already uploaded.
//
// Which blocks may be merged. Blocks of one writer have a precedence (block.Compare): the later one wins where two hold a
// sample of the same series and time. A job's output takes the place of its highest input, so no other visible block that
// overlaps the inputs in time may stand between them; see gapless. Outputs of jobs that were not committed hold nothing
// that other visible blocks do not hold: they are never inputs, and the job that replaces the last of their inputs
// replaces them too.
//
// What is merged when. Level 0 becomes blocks of 2 h, those a block of a day, those one of 14 d, each when its window is over.
// What comes late for a window that has its block is gathered beside it, and merged with it when it is worth writing that
// block anew; see planner.merge. Blocks that wait are ordinary ones: queries read them, and the rule above holds for them.
//
// Generations must be whole: a writer uploads them in order, but one of several blocks each, and a merge of half a generation
// would claim to hold all of it. Level-0 blocks therefore wait until the writer says that their generation is in the bucket
// (Options.Uploaded), or a block of a later one has been seen in an earlier listing, or hours have passed, or the caller
// forces it and vouches for it.
//
// An output is compared with its inputs before it counts: the writer copies chunks as they are, with their checksums, or checks the
// merge of their samples (merge.Comparer), what was read of whole inputs is counted, and between the upload of its files and that of its
// meta.json the block is read back from the bucket (block.ReadBack). So neither a fault of the merge, nor of the disk, nor of the bucket can replace anything.
//
// A block that cannot be read is quarantined: it takes part in no job until the quarantine ends, but still stands between
// the blocks before and after it, which are then merged separately as far as they overlap it. Nothing is hidden by that;
// queries still meet the bad block and say so.
//
// What age alone condemns, the series that retention rules do not keep and blocks beyond retention, is erased by a time that is sure: one of which runs over
// a day have found that the clock was not wrong about it; see clock. What is hidden meanwhile is not for this package to say.
//
// Concurrency: Plan is pure. A Runner may be used by any number of goroutines; Run calls take turns (Runner.turn, a
// channel of capacity one, so that waiting can be cancelled), Status needs only Runner.mu, which guards the history of
// jobs and the quarantine and is never held during I/O. Runners in other processes need not be locked out: two at work on
// the same bucket may leave duplicates, which later jobs merge, but never lose a sample. A lease (Options.Lease) saves them the work. The Runner owns its scratch
// folder and closes nothing that it was given.
package batch
