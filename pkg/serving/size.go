package serving

import (
	"fmt"

	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// sizeOf returns the bytes of one point of a chunk in the engine's memory: for histograms, of the first one.
func sizeOf(meta chunks.Meta) (int64, error) {
	if meta.Chunk == nil {
		return pointSize, nil
	}
	switch meta.Chunk.Encoding() {
	case chunkenc.EncXOR, chunkenc.EncXOR2:
		return pointSize, nil
	}
	it := meta.Chunk.Iterator(nil)
	if it.Next() == chunkenc.ValNone {
		if err := it.Err(); err != nil {
			return 0, fmt.Errorf("read chunk at %d: %w", meta.MinTime, err)
		}
		return pointSize, nil
	}
	_, fh := it.AtFloatHistogram(nil)
	return pointSize + int64(fh.Size()), nil
}
