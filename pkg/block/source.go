package block

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/prometheus/tsdb/fileutil"
)

// indexFile is the number of the index among a block's files; chunk segment i is file i+1.
const indexFile = 0

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// span is a range of bytes [off, off+n) of a file.
type span struct {
	off, n int64
}

func (s span) end() int64 { return s.off + s.n }

// rangeReader gives bytes of a block's files. It is safe for concurrent use.
type rangeReader interface {
	// files returns the number of files, and size the bytes of one.
	files() int
	size(file int) int64
	// load makes spans of a file readable; those in bounds only. What it holds is charged to the context's budget until
	// the view is released.
	load(ctx context.Context, file int, spans []span) (*view, error)
	// loadOnce is load past the cache, for what is kept elsewhere anyway. The bytes are not charged.
	loadOnce(ctx context.Context, file int, s span) ([]byte, error)
	// open opens another file of the block to be read from its beginning, also after close.
	open(ctx context.Context, name string) (io.ReadCloser, error)
	// forget drops a span that turned out to be damaged from the cache. Views of local copies are refused instead.
	forget(file int, s span)
	// mapped says that loadOnce makes neither a request nor a copy of that file's bytes.
	mapped(file int) bool
	// stable says that the bytes of views stay valid, at no cost, until the reader is closed.
	stable() bool
	close() error
}

// view holds loaded bytes of a file. Released, it must not be used any more.
type view struct {
	ctx   context.Context
	runs  []run      // sorted, disjoint
	bytes int64      // charged
	copy  *indexCopy // pinned, where the runs are of one
}

type run struct {
	off  int64
	data []byte
}

func (r run) end() int64 { return r.off + int64(len(r.data)) }

// from returns the loaded bytes from off on, up to the end of what is loaded contiguously.
func (v *view) from(off int64) []byte {
	i, ok := slices.BinarySearchFunc(v.runs, off, func(r run, off int64) int {
		switch {
		case r.off+int64(len(r.data)) <= off:
			return -1
		case r.off > off:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return v.runs[i].data[off-v.runs[i].off:]
}

func (v *view) release() {
	if v == nil {
		return
	}
	discharge(v.ctx, v.bytes)
	if v.copy != nil {
		v.copy.unpin()
	}
	v.bytes, v.runs, v.copy = 0, nil, nil
}

// checkSpans refuses what lies outside of a file, so that nothing is allocated for it.
func checkSpans(name string, size int64, spans []span) error {
	for _, s := range spans {
		if s.off < 0 || s.n < 0 || s.off > size || s.n > size-s.off {
			return fmt.Errorf("%w: bytes %d to %d of %s, which has %d", ErrCorrupt, s.off, s.end(), name, size)
		}
	}
	return nil
}

// segmentNames returns the chunk files of a meta.json in the order of their numbers, with their sizes, and the size of the
// index; ok is false where the meta does not list them.
func segmentNames(m *Meta) (names []string, sizes []int64, indexSize int64, ok bool) {
	var segments []File
	for _, f := range m.Thanos.Files {
		switch dir, name := filepath.Split(filepath.FromSlash(f.RelPath)); {
		case f.RelPath == IndexFilename:
			indexSize = f.SizeBytes
		case filepath.Clean(dir) == ChunksDirname && isSegment(name):
			segments = append(segments, f)
		}
	}
	slices.SortFunc(segments, func(a, b File) int { return compareSegments(a.RelPath, b.RelPath) })
	ok = indexSize > 0
	for _, f := range segments {
		names = append(names, f.RelPath)
		sizes = append(sizes, f.SizeBytes)
		ok = ok && f.SizeBytes > 0
	}
	return names, sizes, indexSize, ok
}

// isSegment says whether a file in the folder of chunks is one of them: Prometheus ignores all names that are no numbers.
func isSegment(name string) bool {
	_, err := strconv.ParseUint(name, 10, 64)
	return err == nil
}

// compareSegments orders chunk files as Prometheus numbers them: by name.
func compareSegments(a, b string) int { return strings.Compare(a, b) }

// mmapReader reads the mapped files of a folder.
type mmapReader struct {
	dir   string
	names []string
	maps  []*fileutil.MmapFile
}

// openMmap maps the index and the chunks of the block in dir.
func openMmap(dir string, m *Meta) (*mmapReader, error) {
	r := &mmapReader{dir: dir, names: []string{IndexFilename}}
	segments, err := localSegments(dir)
	if err != nil {
		return nil, err
	}
	r.names = append(r.names, segments...)
	expected := make(map[string]int64, len(m.Thanos.Files))
	for _, f := range m.Thanos.Files {
		expected[f.RelPath] = f.SizeBytes
	}
	for _, name := range r.names {
		f, err := fileutil.OpenMmapFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("map %s: %w", name, err), r.close())
		}
		r.maps = append(r.maps, f)
		if want := expected[name]; want > 0 && int64(len(f.Bytes())) != want {
			return nil, errors.Join(
				fmt.Errorf("%w: %s has %d bytes, %s says %d", ErrCorrupt, name, len(f.Bytes()), MetaFilename, want), r.close())
		}
	}
	return r, nil
}

// localSegments lists the chunk files of a block's folder as relative paths with slashes, in order.
func localSegments(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, ChunksDirname))
	if err != nil {
		return nil, fmt.Errorf("list chunks: %w", err)
	}
	var out []string
	for _, e := range entries {
		if isSegment(e.Name()) {
			out = append(out, ChunksDirname+"/"+e.Name())
		}
	}
	slices.SortFunc(out, compareSegments)
	return out, nil
}

func (r *mmapReader) files() int   { return len(r.maps) }
func (r *mmapReader) stable() bool { return true }

func (r *mmapReader) forget(int, span) {}

func (r *mmapReader) mapped(int) bool { return true }

func (r *mmapReader) size(file int) int64 { return int64(len(r.maps[file].Bytes())) }

func (r *mmapReader) load(ctx context.Context, file int, spans []span) (*view, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkSpans(r.names[file], r.size(file), spans); err != nil {
		return nil, err
	}
	return &view{ctx: ctx, runs: []run{{data: r.maps[file].Bytes()}}}, nil
}

func (r *mmapReader) loadOnce(ctx context.Context, file int, s span) ([]byte, error) {
	v, err := r.load(ctx, file, []span{s})
	if err != nil {
		return nil, err
	}
	return v.from(s.off)[:s.n:s.n], nil
}

func (r *mmapReader) open(_ context.Context, name string) (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(r.dir, filepath.FromSlash(name)))
	return f, goneIfMissing(err)
}

func (r *mmapReader) close() error {
	var errs []error
	for _, f := range r.maps {
		errs = append(errs, f.Close())
	}
	r.maps = nil
	return errors.Join(errs...)
}

// goneIfMissing turns a missing local file into ErrGone.
func goneIfMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}
