package engine

// What is in a log that was not read back yet counts for the limits of memory and disk as what it is expected to take. Were that nothing, a process that is killed while it
// reads would leave as much as the limit allows each time, for the next one to read on top of all before.

// Memory that takes the place of a byte of log, before anything was read: as much as series of few labels with one sample take. Those of a node exporter took 2.2 with one
// sample, 1.0 with 30 and 0.4 with 120. What is measured replaces the guess as more is read than may wait to be applied.
const (
	guessedRatio  = 8
	guessedWeight = 8 << 20 // bytes of log
)

// memoryRatio is the memory for a byte of log, by what this start has read. The caller holds mu.
func (e *Engine) memoryRatio() float64 {
	read, held := int64(guessedWeight), int64(guessedWeight*guessedRatio)
	for _, g := range e.generations {
		if g.replayed > 0 {
			read, held = read+g.logSize(), held+g.mem.Stats().Bytes
		}
	}
	for _, l := range e.unread {
		read, held = read+l.read.Load(), held+l.bytes()
	}
	return float64(held) / float64(read)
}

// expectedMemory is what the logs that were not read back yet will take. The caller holds mu.
func (e *Engine) expectedMemory() (bytes int64) {
	if len(e.unread) == 0 {
		return 0 // as each write asks
	}
	ratio := e.memoryRatio()
	for _, l := range e.unread {
		bytes += l.expected(ratio, e.fullBytes()*3/2) // it is full some time before it is sealed
	}
	return bytes
}

// expected is the memory that a log's generation will take: no more than a generation gets before it is sealed, unless it has more already.
func (l *unreadLog) expected(ratio float64, most int64) int64 {
	held, left := l.bytes(), max(0, l.size-l.read.Load())
	return max(held, min(most, held+int64(ratio*float64(left))))
}
