package merge

import (
	"math"

	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// Passage finds out whether Chunks would pass on all chunks of a series, for who has them in some other form. See NewPassage.
type Passage struct {
	mint, maxt int64
	o          EncodeOptions
	end        int64 // of the chunk before
	small      bool  // the chunk before may be joined with the next
}

// NewPassage begins a series of which the chunks in [mint, maxt] are wanted.
func NewPassage(mint, maxt int64, o EncodeOptions) Passage {
	return Passage{mint: mint, maxt: maxt, o: o, end: math.MinInt64}
}

// Next says whether the next chunk can be passed on after those before it, which all were.
func (p *Passage) Next(mint, maxt int64, e chunkenc.Encoding, samples int) bool {
	small := samples < p.o.JoinBelow
	if mint < p.mint || maxt > p.maxt || mint <= p.end && p.end != math.MinInt64 || small && p.small || !p.o.StartTimestamps && hasST(e) {
		return false
	}
	p.end, p.small = maxt, small
	return true
}
