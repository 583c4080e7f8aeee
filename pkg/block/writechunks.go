package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/prometheus/prometheus/tsdb/chunks"
)

const (
	// defaultSegment is the size of chunk files where none is given, Prometheus's own.
	defaultSegment = 512 << 20
	// chunkBuffer is how many bytes of chunks are written at a time.
	chunkBuffer = 1 << 20
	// chunksVersion is that of chunk files.
	chunksVersion = 1
)

// chunkWriter writes the chunk files of a block: what Prometheus's writer does, with a smaller buffer and one copy.
type chunkWriter struct {
	dir  string
	size int64 // of a file

	file *os.File // nil before the first chunk
	n    int      // of files
	pos  int64    // in the file, with what is in buf
	buf  []byte
}

// write appends chunks and sets their references. A chunk lies in one file.
func (w *chunkWriter) write(chks []chunks.Meta) error {
	for i := range chks {
		data := chks[i].Chunk.Bytes()
		n := chunkSize(len(data))
		if w.file == nil || w.pos+n > w.size && w.pos > chunks.SegmentHeaderSize {
			if err := w.cut(); err != nil {
				return err
			}
		}
		chks[i].Ref = chunks.ChunkRef(chunks.NewBlockChunkRef(uint64(w.n-1), uint64(w.pos)))
		w.buf = binary.AppendUvarint(w.buf, uint64(len(data)))
		begin := len(w.buf)
		w.buf = append(w.buf, byte(chks[i].Chunk.Encoding()))
		w.buf = append(w.buf, data...)
		w.buf = binary.BigEndian.AppendUint32(w.buf, crc32.Checksum(w.buf[begin:], castagnoli))
		w.pos += n
		if len(w.buf) >= chunkBuffer {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// cut ends the file and begins the next one.
func (w *chunkWriter) cut() error {
	if err := w.close(); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(w.dir, fmt.Sprintf("%06d", w.n+1)))
	if err != nil {
		return fmt.Errorf("begin chunks: %w", err)
	}
	w.file, w.n, w.pos = f, w.n+1, chunks.SegmentHeaderSize
	w.buf = binary.BigEndian.AppendUint32(w.buf[:0], chunks.MagicChunks)
	w.buf = append(w.buf, chunksVersion, 0, 0, 0)
	return nil
}

func (w *chunkWriter) flush() error {
	_, err := w.file.Write(w.buf)
	w.buf = w.buf[:0]
	if err != nil {
		return fmt.Errorf("write chunks: %w", err)
	}
	return nil
}

// close writes what is left, syncs the last file and closes it. It may be called again.
func (w *chunkWriter) close() error {
	if w.file == nil {
		return nil
	}
	f := w.file
	err := w.flush()
	if err == nil {
		err = f.Sync()
	}
	w.file = nil
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("end chunks: %w", err)
	}
	return nil
}
