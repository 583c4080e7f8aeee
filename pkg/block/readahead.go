package block

import "context"

// portions is how much one Select holds at a time.
type portions struct {
	series int   // entries of the index that are decoded at a time
	chunks int64 // bytes of chunks that are fetched at a time
}

// readAheadKey is the context's key for the bytes of WithReadAhead.
type readAheadKey struct{}

// minReadAhead is what a Select holds however little it is told to.
const minReadAhead = 256 << 10

// WithReadAhead bounds the bytes of series and chunks that a Select of ctx holds at a time, for who reads many blocks beside each
// other. Less than 256 kB is taken for that; one series is always held whole.
func WithReadAhead(ctx context.Context, bytes int64) context.Context {
	return context.WithValue(ctx, readAheadKey{}, max(bytes, minReadAhead))
}

// portionsOf returns what Selects of ctx may hold of a block. A quarter each goes to entries of the index, to chunks that are being
// fetched, to their copies, and to those of the batch before, which may still be in use.
func portionsOf(ctx context.Context, m *Meta) portions {
	a := portions{series: seriesBatch, chunks: maxChunkBatch}
	n, ok := ctx.Value(readAheadKey{}).(int64)
	if !ok {
		return a
	}
	chunksPerSeries := m.Stats.NumChunks/max(1, m.Stats.NumSeries) + 1
	size := seriesOverhead + typicalLabels + int64(chunksPerSeries)*chunkOverhead
	a.series = int(max(1, min(seriesBatch, n/4/size)))
	a.chunks = min(maxChunkBatch, n/4)
	return a
}

// typicalLabels is what labels of a series take, in bytes.
const typicalLabels = 300
