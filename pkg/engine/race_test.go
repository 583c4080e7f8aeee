//go:build race

package engine

// raceDetector says that the tests run several times slower than they would.
const raceDetector = true
