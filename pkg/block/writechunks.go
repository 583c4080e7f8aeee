package block

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
)

const (
	// defaultSegment is the size of chunk files where none is given, Prometheus's own.
	defaultSegment = 512 << 20
	// chunkBuffer is how many bytes of chunks are written at a time, if they do not come as more.
	chunkBuffer = 128 << 10
	// chunksVersion is that of chunk files.
	chunksVersion = 1
)

// placedChunk is a chunk of a block that is being written.
type placedChunk struct {
	mint, maxt int64
	ref        chunks.ChunkRef // as soon as it is written
	size       int64           // in its file, all told
	samples    int
	histogram  bool
}

// next decodes what an index says of a chunk, given the one before it, if there is one.
func (c *placedChunk) next(b *cursor, first bool) {
	if first {
		c.mint = b.varint()
	} else {
		c.mint = c.maxt + int64(b.uvarint())
	}
	c.maxt = c.mint + int64(b.uvarint())
	if first {
		c.ref = chunks.ChunkRef(b.uvarint())
	} else {
		c.ref += chunks.ChunkRef(b.varint())
	}
}

// appendFrame appends a chunk as it is in a file: length, encoding, data, checksum of both.
func appendFrame(b []byte, e chunkenc.Encoding, data []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(data)))
	begin := len(b)
	b = append(b, byte(e))
	b = append(b, data...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[begin:], castagnoli))
}

// chunkWriter writes the chunk files of a block, each of which has a header and the frames of its chunks.
type chunkWriter struct {
	dir  string
	size int64 // of a file

	file *os.File // nil before the first chunk
	buf  *bufio.Writer
	pos  int64
	sum  xxhash.Digest
	sums []uint64 // of the files that are done
}

// write writes chunks, of which frames has the bytes, and sets their references. A chunk lies in one file.
func (w *chunkWriter) write(frames []byte, chks []placedChunk) error {
	var n int64 // of bytes that go to the present file
	for i := range chks {
		c := &chks[i]
		if w.file == nil || w.pos+n+c.size > w.size && w.pos+n > chunks.SegmentHeaderSize {
			if err := w.append(frames[:n]); err != nil {
				return err
			}
			frames, n = frames[n:], 0
			if err := w.cut(); err != nil {
				return err
			}
		}
		c.ref = chunks.ChunkRef(chunks.NewBlockChunkRef(uint64(len(w.sums)), uint64(w.pos+n)))
		n += c.size
	}
	return w.append(frames[:n])
}

// cut ends the file and begins the next one.
func (w *chunkWriter) cut() error {
	if err := w.close(); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(w.dir, fmt.Sprintf("%06d", len(w.sums)+1)))
	if err != nil {
		return fmt.Errorf("begin chunks: %w", err)
	}
	if w.buf == nil {
		w.buf = bufio.NewWriterSize(f, chunkBuffer)
	} else {
		w.buf.Reset(f)
	}
	w.file, w.pos = f, 0
	w.sum.Reset()
	return w.append(append(binary.BigEndian.AppendUint32(nil, chunks.MagicChunks), chunksVersion, 0, 0, 0))
}

func (w *chunkWriter) append(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	w.pos += int64(len(b))
	_, _ = w.sum.Write(b) // never fails
	if _, err := w.buf.Write(b); err != nil {
		return fmt.Errorf("write chunks: %w", err)
	}
	return nil
}

// close syncs the last file and closes it. It may be called again.
func (w *chunkWriter) close() error {
	if w.file == nil {
		return nil
	}
	f := w.file
	w.file = nil
	w.sums = append(w.sums, w.sum.Sum64())
	if err := errors.Join(w.buf.Flush(), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("end chunks: %w", err)
	}
	return nil
}
