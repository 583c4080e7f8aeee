package block

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/stretchr/testify/require"
)

// memReader is a rangeReader of files in memory.
type memReader [][]byte

func (r memReader) files() int          { return len(r) }
func (r memReader) size(file int) int64 { return int64(len(r[file])) }
func (r memReader) stable() bool        { return false }
func (r memReader) mapped(int) bool     { return false }
func (r memReader) close() error        { return nil }
func (r memReader) forget(int, span)    {}

func (r memReader) open(context.Context, string) (io.ReadCloser, error) { return nil, ErrGone }

func (r memReader) load(ctx context.Context, file int, spans []span) (*view, error) {
	if err := checkSpans("file", r.size(file), spans); err != nil {
		return nil, err
	}
	return &view{ctx: ctx, runs: []run{{data: r[file]}}}, nil
}

func (r memReader) loadOnce(_ context.Context, file int, s span) ([]byte, error) {
	if err := checkSpans("file", r.size(file), []span{s}); err != nil {
		return nil, err
	}
	return slices.Clone(r[file][s.off:s.end()]), nil
}

// smallIndex is the index of a block of a few series, and its chunks.
func smallIndex(t testing.TB) memReader {
	t.Helper()
	dir, _ := writeBlock(t, randomInput(rand.New(rand.NewPCG(51, 1)), 9, 0, hour))
	ix, err := os.ReadFile(filepath.Join(dir, IndexFilename))
	require.NoError(t, err)
	chunks, err := os.ReadFile(filepath.Join(dir, ChunksDirname, "000001"))
	require.NoError(t, err)
	return memReader{ix, chunks}
}

func TestHeaderOfPrometheus(t *testing.T) {
	r := smallIndex(t)
	h, err := loadHeader(t.Context(), r, &Meta{})
	require.NoError(t, err)
	want, err := index.NewReader(byteSlice(r[0]), index.DecodePostingsRaw)
	require.NoError(t, err)
	ranges, err := want.PostingsRanges()
	require.NoError(t, err)
	require.Len(t, h.tablePos, len(ranges))
	for l, rng := range ranges {
		i := h.find(l.Name, l.Value)
		require.GreaterOrEqual(t, i, 0)
		s := h.postingsSpan(i)
		require.Equal(t, rng.Start-4, s.off)
		require.GreaterOrEqual(t, s.end(), rng.End)
	}
	for _, l := range []labels.Label{{Name: "job", Value: ""}, {Name: "job", Value: "zzz"}, {Name: "zzz", Value: "a"}} {
		require.Equal(t, -1, h.find(l.Name, l.Value))
	}
	names, err := want.LabelNames(t.Context())
	require.NoError(t, err)
	require.Equal(t, names, h.labelNames())
}

func TestHeaderRefuses(t *testing.T) {
	for _, n := range []int{0, 1, 5, tocSize - 1, tocSize, 100} {
		_, err := loadHeader(t.Context(), memReader{make([]byte, n)}, &Meta{})
		require.Error(t, err, "%d zeros", n)
	}
	r := smallIndex(t)
	r[0][4] = 1
	_, err := loadHeader(t.Context(), r, &Meta{})
	require.ErrorIs(t, err, ErrUnusable, "version 1")
}

func TestGuessSize(t *testing.T) {
	for _, c := range []struct {
		largest, total int64
		count          uint64
		want           int64
	}{
		{0, 0, 0, 8256},
		{0, 1000, 10, 264},
		{150, 1000, 10, 150},
		{4096, 1000, 10, 4096},
		{1 << 20, 1000, 10, 264},
		{0, 1 << 30, 10, maxGuess},
	} {
		require.Equal(t, c.want, guessSize(c.largest, c.total, c.count), "%+v", c)
	}
}

// sealed puts right the checksums of what a fuzzer has changed in an index, so that it gets past them.
func sealed(ix []byte) []byte {
	ix = slices.Clone(ix)
	if len(ix) < tocSize {
		return ix
	}
	seal := func(begin, end int) {
		if begin >= 0 && begin <= end && end+crc32.Size <= len(ix) {
			binary.BigEndian.PutUint32(ix[end:], crc32.Checksum(ix[begin:end], castagnoli))
		}
	}
	seal(len(ix)-tocSize, len(ix)-crc32.Size)
	toc, err := index.NewTOCFromByteSlice(byteSlice(ix))
	if err != nil {
		return ix
	}
	for _, off := range []uint64{toc.Symbols, toc.PostingsTable} {
		if off < uint64(len(ix)-4) {
			n := int64(binary.BigEndian.Uint32(ix[off:]))
			if end := int64(off) + 4 + n; end < int64(len(ix)) {
				seal(int(off)+4, int(end))
			}
		}
	}
	seal(len(ix)-tocSize, len(ix)-crc32.Size)
	return ix
}

func FuzzIndex(f *testing.F) {
	r := smallIndex(f)
	f.Add(r[0], true)
	f.Add(r[0][:len(r[0])/2], false)
	f.Fuzz(func(t *testing.T, ix []byte, seal bool) {
		if seal {
			ix = sealed(ix)
		}
		files := memReader{ix, r[1]}
		b := newBlock(Meta{}, files)
		b.meta.MaxTime = 1 << 60
		q, err := b.ChunkQuerier(0, 1<<60)
		require.NoError(t, err)
		_, _ = tryDump(q.Select(t.Context(), true, nil, everything))
		_, _ = tryDump(q.Select(t.Context(), true, nil, re("job", "job.*")))
		_, _, _ = q.LabelValues(t.Context(), "instance", nil, eq("job", "job1"))
		_, _, _ = q.LabelNames(t.Context(), nil, neq("job", "job1"))
		require.NoError(t, q.Close())
		for it := b.Symbols(); it.Next(); {
			_ = it.At()
		}
	})
}

// FuzzSeries decodes series entries whose checksums are right.
func FuzzSeries(f *testing.F) {
	r := smallIndex(f)
	h, err := loadHeader(f.Context(), r, &Meta{})
	require.NoError(f, err)
	first := r[0][(h.toc.Series+seriesAlign-1)/seriesAlign*seriesAlign:]
	n, _ := seriesFraming.length(first)
	content, err := seriesFraming.content(first[:n])
	require.NoError(f, err)
	f.Add(content)
	f.Fuzz(func(t *testing.T, b []byte) {
		ix := newIndexReader(t.Context(), r, h)
		s := &seriesSet{ctx: t.Context(), ix: ix, maxt: 1 << 60}
		e, ok, err := s.decodeEntry(b)
		if err == nil && ok {
			require.Len(t, e.ends, len(e.chks))
			for i := range e.chks {
				require.Positive(t, s.guess(&e, i))
			}
		}
		_ = ix.labelsOf(b, func(string, string) {})
	})
}
