// Package tombstone is the one definition of what a deletion of series hides.
//
// The one idea: a tombstone says which samples are gone by two things alone, what they are (matchers and a range of time) and when they
// were accepted, which the number of their generation tells: it hides what generations up to its own number hold, and nothing that
// came later. So it can be applied to each generation and each block by itself, before any merge, at any time and any number of times,
// and always hides the same samples. A block from which they were erased lists the tombstone as applied.
//
// Tombstone.On decides what a tombstone does to one source; a Filter is several tombstones as they concern one source, and its Querier
// shows that source without what they hide, to queries and to compactions alike.
//
// # In the bucket
//
// A tombstone is an object tombstones/ULID.json, which never changes. Its writer puts it there before any block of a later generation.
// Who lists blocks first and tombstones afterwards therefore knows each tombstone that concerns some of the generations it has seen but not
// all of them, and never merges such without applying it. An object tombstones/ULID.state.json beside it holds what runs of
// the batch layer have found out about it; to lose that costs work, nothing else. There are such objects for retention rules, too, of which there are no others.
//
// Concurrency: a Tombstone never changes; a Filter neither. A Querier may be used as the querier that it was made of. A Store has one lock,
// a leaf, which guards what it has read before.
package tombstone
