package merge

import (
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// Merger does what Chunks does for one series after another, and is faster where nothing has to be encoded. The zero value is
// ready; it is for one goroutine, and keeps buffers from series to series.
type Merger struct {
	its    chunks.Iterator
	chunks chunkMerger
}

// Append appends to dst the chunks that Chunks would yield, and returns the longer slice.
func (m *Merger) Append(dst []chunks.Meta, series []storage.ChunkSeries, mint, maxt int64, o EncodeOptions) ([]chunks.Meta, error) {
	if out, ok, err := m.copies(dst, series, mint, maxt, o); ok || err != nil {
		return out, err
	}
	m.chunks.reset(series, mint, maxt, o)
	for m.chunks.Next() {
		dst = append(dst, m.chunks.At())
	}
	return dst, m.chunks.Err()
}

// copies appends the chunks of series if all of them can be passed through in the order in which they come: ok is false otherwise.
func (m *Merger) copies(dst []chunks.Meta, series []storage.ChunkSeries, mint, maxt int64, o EncodeOptions) (out []chunks.Meta, ok bool, err error) {
	out = dst
	p := NewPassage(mint, maxt, o)
	for _, s := range series {
		m.its = s.Iterator(m.its)
		first := true
		for m.its.Next() {
			c := m.its.At()
			if c.MaxTime < mint {
				continue
			}
			if c.MinTime > maxt {
				break
			}
			if c.Chunk == nil || !p.Next(c.MinTime, c.MaxTime, c.Chunk.Encoding(), c.Chunk.NumSamples()) {
				return dst, false, nil
			}
			if first {
				if c, err = forgetReset(c); err != nil {
					return dst, false, err
				}
			}
			first = false
			out = append(out, c)
		}
		if err := m.its.Err(); err != nil {
			return dst, false, err
		}
	}
	return out, true, nil
}
