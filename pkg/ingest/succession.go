package ingest

// succession finds a request's series by what followed what in earlier ones. Senders tell their series in much the same order every time, and to
// compare a series with the one that it should be takes a third of the time that it takes to hash it and to look the hash up.
type succession struct {
	known  Known // nil if nothing is guessed
	hash   uint64
	ref    uint32 // of the series before; 0 if that is not known
	misses int    // beyond the hits
}

// maxMisses is how many more guesses may be wrong than right before a request's series are no longer guessed.
const maxMisses = 64

func (s *succession) begin(k Known) { *s = succession{known: k} }

// guess returns what the open series may be.
func (s *succession) guess() (KnownSeries, bool) {
	if s.ref == 0 || s.misses > maxMisses {
		return KnownSeries{}, false
	}
	return s.known.After(s.hash, s.ref)
}

// right says that the guess was.
func (s *succession) right(is KnownSeries) {
	s.misses = max(s.misses-1, 0)
	s.hash, s.ref = is.Hash, is.Ref
}

// wrong says which series it was instead.
func (s *succession) wrong(hash uint64, ref uint32) {
	if s.ref > 0 {
		s.misses++
		s.known.Follow(s.hash, s.ref, KnownSeries{Hash: hash, Ref: ref})
	}
	s.hash, s.ref = hash, ref
}
