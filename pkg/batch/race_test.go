//go:build race

package batch

// thorough says that tests which try every moment do so; with the race detector they take samples, as each is several times slower.
const thorough = false
