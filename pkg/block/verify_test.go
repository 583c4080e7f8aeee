package block

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/prometheus/common/promslog"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

func TestVerifyFindsNothing(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(41, 1)), 500, 0, 2*hour)
	dir, m := writeBlock(t, in)
	for name, bkt := range buckets(t) {
		require.NoError(t, Upload(t.Context(), bkt, dir))
		got, err := Verify(t.Context(), bkt, m.ULID)
		require.NoError(t, err, name)
		require.Empty(t, got, name)
	}
	parent := t.TempDir()
	m, err := Write(t.Context(), parent, testMeta(t, 0, 2*hour, 1, 1, 1), []Input{in}, WriteOptions{SegmentSize: 32 << 10})
	require.NoError(t, err)
	got, err := Verify(t.Context(), uploaded(t, filepath.Join(parent, m.ULID.String())), m.ULID)
	require.NoError(t, err)
	require.Empty(t, got)
	_, err = Verify(t.Context(), objstore.NewInMemBucket(), m.ULID)
	require.ErrorIs(t, err, ErrGone)
}

// TestOneDamagedByte flips one byte in every region of every file. Verify says so, and a query of everything, local or in a
// bucket, gives the answer of the sound block or an error, never another answer and never a panic.
func TestOneDamagedByte(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(42, 1)), 60, 0, hour)
	dir, m := writeBlock(t, in)
	want := in.dump()
	sound := uploaded(t, dir)
	ix := sound.Objects()[m.ULID.String()+"/"+IndexFilename]
	toc, err := index.NewTOCFromByteSlice(byteSlice(ix))
	require.NoError(t, err)
	type region struct {
		file       string
		begin, end int
	}
	regions := map[string]region{
		"index magic":        {IndexFilename, 0, 4},
		"index version":      {IndexFilename, 4, 5},
		"symbols length":     {IndexFilename, int(toc.Symbols), int(toc.Symbols) + 4},
		"symbols count":      {IndexFilename, int(toc.Symbols) + 4, int(toc.Symbols) + 8},
		"symbols":            {IndexFilename, int(toc.Symbols) + 8, int(toc.Series) - 20},
		"series":             {IndexFilename, int(toc.Series) + 16, int(toc.LabelIndices)},
		"postings":           {IndexFilename, int(toc.Postings), int(toc.PostingsTable)},
		"table length":       {IndexFilename, int(toc.PostingsTable), int(toc.PostingsTable) + 4},
		"table count":        {IndexFilename, int(toc.PostingsTable) + 4, int(toc.PostingsTable) + 8},
		"table":              {IndexFilename, int(toc.PostingsTable) + 8, len(ix) - tocSize},
		"table of contents":  {IndexFilename, len(ix) - tocSize, len(ix)},
		"segment magic":      {"chunks/000001", 0, 5},
		"first chunk length": {"chunks/000001", 8, 9},
		"chunks":             {"chunks/000001", 8, int(m.Thanos.Files[0].SizeBytes)},
	}
	rnd := rand.New(rand.NewPCG(43, 1))
	for name, r := range regions {
		t.Run(name, func(t *testing.T) {
			for range 6 {
				at := r.begin + rnd.IntN(r.end-r.begin)
				object := m.ULID.String() + "/" + r.file
				damaged := bytes.Clone(sound.Objects()[object])
				damaged[at] ^= byte(1 + rnd.IntN(255))
				bkt := copyBucket(t, sound)
				require.NoError(t, bkt.Upload(t.Context(), object, bytes.NewReader(damaged)))

				requireAnswerOrError(t, bkt, m, want)
				findings, err := Verify(t.Context(), bkt, m.ULID)
				require.NoError(t, err)
				if padding := r.file == IndexFilename && isPadding(ix, toc, at); !padding {
					require.NotEmpty(t, findings, "byte %d of %s", at, r.file)
					require.Equal(t, m.ULID, findings[0].Block)
					require.NotEmpty(t, findings[0].String())
				}
			}
		})
	}
}

// isPadding says whether a byte of an index is one that nothing refers to.
func isPadding(sound []byte, toc *index.TOC, at int) bool {
	if uint64(at) >= toc.Series && uint64(at) < toc.LabelIndices {
		return isSeriesPadding(sound, int(toc.Series), at)
	}
	return sound[at] == 0 && bytes.Equal(sound[max(0, at-1):at+1], []byte{0, 0}[:min(2, at+1)]) ||
		sound[at] == 0 && at+1 < len(sound) && (at+1)%4 == 0
}

// isSeriesPadding walks over the entries of series: a length, as much content, a checksum, and zeros up to a multiple of 16.
func isSeriesPadding(sound []byte, section, at int) bool {
	aligned := func(n int) int { return (n + 15) / 16 * 16 }
	for entry := aligned(section); entry <= at; {
		n, size := binary.Uvarint(sound[entry:])
		end := entry + size + int(n) + crc32.Size
		if at < aligned(end) {
			return at >= end
		}
		entry = aligned(end)
	}
	return true
}

func copyBucket(t *testing.T, from *objstore.InMemBucket) *objstore.InMemBucket {
	t.Helper()
	to := objstore.NewInMemBucket()
	for name, b := range from.Objects() {
		require.NoError(t, to.Upload(t.Context(), name, bytes.NewReader(b)))
	}
	return to
}

func requireAnswerOrError(t *testing.T, bkt objstore.Bucket, m Meta, want []string) {
	t.Helper()
	files, err := NewDirBucket(t.TempDir())
	require.NoError(t, err)
	copyObjects(t, bkt, files)
	for _, from := range []objstore.Bucket{bkt, files} {
		b, err := OpenBucketMeta(t.Context(), from, m, nil)
		require.NoError(t, err)
		q, err := b.ChunkQuerier(math.MinInt64, math.MaxInt64)
		require.NoError(t, err)
		for _, ms := range [][]*labels.Matcher{{everything}, {re("series", ".+")}} {
			got, err := tryDump(q.Select(t.Context(), true, nil, ms...))
			if err == nil {
				require.Equal(t, want, got)
			}
		}
		_, _, _ = q.LabelValues(t.Context(), "instance", nil, eq("job", "job1"))
		_, _, _ = q.LabelNames(t.Context(), nil, eq("job", "job1"))
		require.NoError(t, q.Close())
		require.NoError(t, b.Close())
	}
}

func copyObjects(t *testing.T, from, to objstore.Bucket) {
	t.Helper()
	require.NoError(t, from.Iter(t.Context(), "", func(name string) error {
		body, err := from.Get(t.Context(), name)
		if err != nil {
			return err
		}
		defer body.Close()
		return to.Upload(t.Context(), name, body)
	}, objstore.WithRecursiveIter()))
}

func TestVerifyFindsWhatChecksumsDoNot(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(44, 1)), 40, 0, hour)
	dir, m := writeBlock(t, in)
	for _, c := range []struct {
		name   string
		change func(m *Meta)
		want   string
	}{
		{"range", func(m *Meta) { m.MaxTime = m.MinTime + 10 }, "outside of the block's range"},
		{"samples", func(m *Meta) { m.Stats.NumSamples++ }, "statistics"},
		{"series", func(m *Meta) { m.Stats.NumSeries = 1 }, "statistics"},
		{"size", func(m *Meta) { m.Thanos.Files[1].SizeBytes++ }, "file has"},
		{"missing file", func(m *Meta) { m.Thanos.Files[1].RelPath = "chunks/000002" }, "missing"},
		{"other block", func(m *Meta) { m.ULID[3]++ }, "is of block"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bkt := uploaded(t, dir)
			changed, err := ReadMeta(dir)
			require.NoError(t, err)
			c.change(&changed)
			b, err := changed.Marshal()
			require.NoError(t, err)
			require.NoError(t, bkt.Upload(t.Context(), m.ULID.String()+"/"+MetaFilename, bytes.NewReader(b)))
			findings, err := Verify(t.Context(), bkt, m.ULID)
			require.NoError(t, err)
			require.NotEmpty(t, findings)
			require.LessOrEqual(t, len(findings), maxFindings)
			require.Contains(t, fmt.Sprint(findings), c.want)
		})
	}
}

func TestVerifyReportsBucketErrors(t *testing.T) {
	bkt, m, _ := largeBlock(t, 50)
	for at := int64(2); at < 8; at++ {
		bkt.requests.Store(0)
		bkt.fault = func(request int64, _ string, _, _ int64) (io.ReadCloser, error) {
			if request == at {
				return nil, errTest
			}
			return nil, nil
		}
		findings, err := Verify(t.Context(), bkt, m.ULID)
		if bkt.requests.Load() < at {
			break
		}
		require.ErrorIs(t, err, errTest, "request %d", at)
		require.Empty(t, findings)
	}
}

// TestBlocksOfPrometheus reads what Prometheus has written, without any section of ours or Thanos's.
func TestBlocksOfPrometheus(t *testing.T) {
	var series []storage.Series
	for i := range 50 {
		series = append(series, storage.NewListSeries(
			labels.FromStrings("__name__", "m", "i", fmt.Sprint(i)),
			[]chunks.Sample{modelSample{sample{t: 1000, v: 1}}, modelSample{sample{t: 2000, v: 2}}}))
	}
	dir, err := tsdb.CreateBlock(series, t.TempDir(), hour, promslog.NewNopLogger())
	require.NoError(t, err)
	want := prometheusDump(t, dir, 0, hour, everything)
	b := openLocal(t, dir)
	require.Len(t, want, 50)
	require.Equal(t, want, dumpAll(t, b))

	files, err := NewDirBucket(filepath.Dir(dir))
	require.NoError(t, err)
	bkt := objstore.NewInMemBucket()
	copyObjects(t, files, bkt)
	id := b.Meta().ULID
	findings, err := Verify(t.Context(), bkt, id)
	require.NoError(t, err)
	require.Empty(t, findings)
	remote, err := OpenBucket(t.Context(), bkt, id, nil)
	require.NoError(t, err)
	require.Equal(t, want, dumpAll(t, remote))

	compacted, err := Write(t.Context(), t.TempDir(), testMeta(t, 0, hour, 1, 0, 1), []Input{remote}, WriteOptions{})
	require.NoError(t, err)
	require.Contains(t, compacted.Compaction.Sources, id)
}
