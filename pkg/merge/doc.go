// Package merge is the one definition of which sample wins.
//
// Everything that joins samples of one series, in memory, for a query or when blocks are compacted, does it here, so that
// the answer never depends on which layer happens to hold the data. Inputs are given in order of precedence: where two of
// them have a sample with the same timestamp, the later input's sample is the result's, whatever the types are. The result
// is the union of all other samples in order of time. Because only the order of the inputs counts, merging is associative:
// merging neighbours first and their results afterwards gives the same samples.
//
// Histograms say how they relate to the sample before them (counter reset hints). Where the merged series has another
// neighbour than the input had, the hint becomes "unknown", unless it is a gauge, so that a reader detects resets by itself.
//
// Nothing in this package locks, starts goroutines or keeps what it was given beyond the life of the returned value; no
// value may be used by two goroutines at once. Chunks that are passed through share their bytes with the input: whoever owns
// the input keeps its memory alive until the result has been used.
package merge
