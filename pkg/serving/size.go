package serving

import (
	"fmt"

	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// extraSize returns the bytes that one point of a chunk takes in the engine's memory beside a float's: those of the first histogram.
func extraSize(meta chunks.Meta) (int64, error) {
	if meta.Chunk == nil {
		return 0, nil
	}
	switch meta.Chunk.Encoding() {
	case chunkenc.EncXOR, chunkenc.EncXOR2:
		return 0, nil
	}
	it := meta.Chunk.Iterator(nil)
	if it.Next() == chunkenc.ValNone {
		if err := it.Err(); err != nil {
			return 0, fmt.Errorf("read chunk at %d: %w", meta.MinTime, err)
		}
		return 0, nil
	}
	_, fh := it.AtFloatHistogram(nil)
	return int64(fh.Size()), nil
}
