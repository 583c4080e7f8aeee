// Package retention says how long samples of some series are kept, where that is shorter than for all others.
//
// The one idea: a rule is a deletion that moves with the clock. At any time it hides, of the series that it matches, what is older than its
// age; queries, the receiver and batch jobs ask the same rule, so that a sample is gone in all layers in the same moment. Of several rules
// that match a series the one with the smallest age decides, and none of them has a larger one than the retention of the whole store.
//
// Rules look at series as they are stored: with the labels that their sender gave them, without external labels.
//
// Concurrency: rules never change.
package retention
