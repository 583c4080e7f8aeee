package speed

import "encoding/binary"

// A block is a cache line: the reference of the next block of its chain, and data. Chunks that are still growing are such
// chains, since to grow a chain nothing is copied, and what one chain gives back fits every other.
const (
	blockSize = 64
	blockNext = 4 // Bytes of the reference; 0 ends a chain.
	blockData = blockSize - blockNext

	blockPageBits = 10
	blockPageSize = 1 << blockPageBits
)

// blocks is a pool of blocks. References count up from 1. It holds no pointers but those to its pages, and never shrinks: it
// goes with its generation.
type blocks struct {
	pages []*[blockPageSize][blockSize]byte
	used  uint32
	free  uint32 // Head of the chain of those given back.
}

func (b *blocks) at(ref uint32) *[blockSize]byte {
	ref--
	return &b.pages[ref>>blockPageBits][ref&(blockPageSize-1)]
}

// take returns a block that ends a chain, whose data may be anything.
func (b *blocks) take() uint32 {
	if ref := b.free; ref != 0 {
		line := b.at(ref)
		b.free = next(line)
		setNext(line, 0)
		return ref
	}
	if int(b.used) == len(b.pages)<<blockPageBits {
		b.pages = append(b.pages, new([blockPageSize][blockSize]byte))
	}
	b.used++
	return b.used
}

// give takes a chain back.
func (b *blocks) give(first, last uint32) {
	setNext(b.at(last), b.free)
	b.free = first
}

func next(line *[blockSize]byte) uint32 { return binary.LittleEndian.Uint32(line[:]) }

func setNext(line *[blockSize]byte, ref uint32) { binary.LittleEndian.PutUint32(line[:], ref) }
