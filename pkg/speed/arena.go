package speed

import (
	"encoding/binary"
	"fmt"

	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

// chunkRef is a closed chunk of an arena. It holds no pointers.
type chunkRef struct {
	mint, maxt int64
	page, off  uint32
	size       uint32
	enc        chunkenc.Encoding
}

func (c chunkRef) overlaps(mint, maxt int64) bool { return c.mint <= maxt && mint <= c.maxt }

const chunkRefBytes = 40

// Pages double from the first size to the last. A chunk that is larger than a page gets one to itself.
const (
	minArenaPage = 4 << 10
	maxArenaPage = 256 << 10
)

// arena stores the bytes of closed chunks one after another in pages. What was written is never changed.
type arena struct {
	pages [][]byte
}

// add copies a chunk's bytes. It returns by how many bytes the arena grew.
func (a *arena) add(data []byte, enc chunkenc.Encoding, mint, maxt int64) (chunkRef, int) {
	grown := 0
	last := len(a.pages) - 1
	if last < 0 || cap(a.pages[last])-len(a.pages[last]) < len(data) {
		size := minArenaPage
		if last >= 0 {
			size = min(max(2*cap(a.pages[last]), minArenaPage), maxArenaPage)
		}
		grown = max(size, len(data))
		a.pages = append(a.pages, make([]byte, 0, grown))
		last++
	}
	page := a.pages[last]
	ref := chunkRef{mint: mint, maxt: maxt, page: uint32(last), off: uint32(len(page)), size: uint32(len(data)), enc: enc}
	a.pages[last] = append(page, data...)
	return ref, grown
}

// samples is the number of samples of a chunk of floats.
func (a *arena) samples(c chunkRef) int {
	return int(binary.BigEndian.Uint16(a.pages[c.page][c.off:]))
}

// open opens a chunk without copying it; its bytes may be read after the lock was given back.
func (a *arena) open(c chunkRef) (chunks.Meta, error) {
	end := c.off + c.size
	return openChunk(a.pages[c.page][c.off:end:end], c.enc, c.mint, c.maxt)
}

func openChunk(data []byte, enc chunkenc.Encoding, mint, maxt int64) (chunks.Meta, error) {
	chk, err := chunkenc.FromData(enc, data)
	if err != nil {
		return chunks.Meta{}, fmt.Errorf("open chunk at %d: %w", mint, err)
	}
	return chunks.Meta{Chunk: chk, MinTime: mint, MaxTime: maxt}, nil
}
