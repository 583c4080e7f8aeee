package block

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/merge"
)

// names and values of labels that sort between, before and behind one another, are names and values both, or differ late.
var awkward = []string{
	"__name__", "__a", "A", "Z", "a", "aa", "a_", "ab", "b", "instance", "job", "job_", "jobs", "zone", "ä", "日本", "日本語", "\u007f", "\U0001f600", "1", "10", "2",
	strings.Repeat("long", 40), strings.Repeat("long", 40) + "er",
}

// awkwardInput has series with such labels, some of which others have, too, and samples in [lo, hi).
func awkwardInput(r *rand.Rand, series int, own string, lo, hi int64) (in memInput) {
	seen := map[string]bool{}
	for range series {
		pairs := map[string]string{}
		for range 1 + r.IntN(5) {
			value := awkward[r.IntN(len(awkward))]
			if r.IntN(3) == 0 {
				value = fmt.Sprint(own, r.IntN(50))
			}
			pairs[awkward[r.IntN(len(awkward))]] = value
		}
		s := memSeries{labels: labels.FromMap(pairs)}
		if seen[s.labels.String()] {
			continue
		}
		seen[s.labels.String()] = true
		for t := lo + r.Int64N(hi-lo); t < hi; t += 1 + r.Int64N((hi-lo)/8) {
			s.samples = append(s.samples, sample{t: t, v: float64(r.IntN(100))})
		}
		in = append(in, s)
	}
	sortSeries(in)
	return in
}

// However many series there are, they are read again about once for each label that a series has, not once for so many references.
func TestSeriesAreReadAgainOncePerLabel(t *testing.T) {
	const labelsOfEach = 12
	for _, series := range []uint32{1_000, 10_000, 100_000} {
		w := &indexWriter{ahead: 1_000, series: series}
		sorted := []*labelPair{{series: series}} // all
		for name := range uint32(labelsOfEach) {
			for range name + 1 {
				sorted = append(sorted, &labelPair{name: name, series: series / (name + 1)})
			}
		}
		passes := 0
		for ; len(sorted) > 0; passes++ {
			n, total := w.nextLabels(sorted)
			require.LessOrEqual(t, total, max(w.ahead, series))
			sorted = sorted[n:]
		}
		require.LessOrEqual(t, passes, 2*(labelsOfEach+1))
	}
}

// TestIndexIsPrometheus writes an index with Prometheus's writer, too: the bytes are the same, also where postings are sorted in many steps.
func TestIndexIsPrometheus(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		in := awkwardInput(r, r.IntN(300), "own", 0, hour)
		var symbols []string
		for it := in.Symbols(); it.Next(); {
			symbols = append(symbols, it.At())
		}
		dir := t.TempDir()
		want, err := index.NewWriter(t.Context(), filepath.Join(dir, "want"))
		require.NoError(t, err)
		got, err := newIndexWriter(filepath.Join(dir, "got"), symbols)
		require.NoError(t, err)
		got.ahead = uint32(1 + r.IntN(400))
		for _, s := range symbols {
			require.NoError(t, want.AddSymbol(s))
		}
		at := chunks.ChunkRef(8)
		for i, s := range in {
			var (
				refs  []uint32
				metas []chunks.Meta
				chks  []placedChunk
				ts    = r.Int64N(math.MaxInt32) - math.MaxInt32/2
			)
			s.labels.Range(func(l labels.Label) {
				for _, s := range []string{l.Name, l.Value} {
					n, _ := slices.BinarySearch(symbols, s)
					refs = append(refs, uint32(n))
				}
			})
			for range 1 + r.IntN(200) {
				c := placedChunk{mint: ts, maxt: ts + r.Int64N(1e7), ref: at}
				ts = c.maxt + 1 + r.Int64N(1e5)
				at += chunks.ChunkRef(r.IntN(2000))
				if r.IntN(100) == 0 {
					at += 1 << 32
				}
				chks = append(chks, c)
				metas = append(metas, chunks.Meta{MinTime: c.mint, MaxTime: c.maxt, Ref: c.ref})
			}
			require.NoError(t, want.AddSeries(storage.SeriesRef(i), s.labels, metas...))
			require.NoError(t, got.addSeries(refs, chks))
		}
		if len(in) == 0 { // which Prometheus's writer does not write
			require.NoError(t, got.close())
			continue
		}
		require.NoError(t, want.Close())
		require.NoError(t, got.finish(t.Context()))
		require.True(t, bytes.Equal(readFile(t, dir, "want"), readFile(t, dir, "got")), "seed %d", seed)
	}
}

// TestIndexOnADiskThatForgets changes a series in the file before its postings are written, which are made of what is read from there.
func TestIndexOnADiskThatForgets(t *testing.T) {
	entry := int64(0)
	for at := int64(0); at == 0 || at < entry; at++ {
		w, err := newIndexWriter(filepath.Join(t.TempDir(), IndexFilename), []string{"a", "b", "c"})
		require.NoError(t, err)
		require.NoError(t, w.addSeries([]uint32{0, 1}, []placedChunk{{mint: 1, maxt: 2, ref: 8}}))
		require.NoError(t, w.flush())
		entry = w.largest
		f, err := os.OpenFile(w.file.Name(), os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte{0xff}, w.pos-entry+at)
		require.NoError(t, errors.Join(err, f.Close()))
		require.Error(t, w.finish(t.Context()), "byte %d", at)
	}
}

func readFile(t *testing.T, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	require.NoError(t, err)
	return b
}

// TestMergeIndexes merges blocks with symbols and series in common or of their own, mapped ones, ones of a bucket and inputs with strings, whole
// and in part. The samples are those of the model, and the index is the one that Prometheus's writer makes of what is read of it.
func TestMergeIndexes(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 2))
			var (
				inputs []Input
				all    []memInput
			)
			for i := range 1 + r.IntN(5) {
				lo := r.Int64N(3) * hour
				in := awkwardInput(r, 1+r.IntN(100), fmt.Sprintf("in%d-", i%3), lo, lo+hour)
				all = append(all, in)
				dir, m := writeBlock(t, in)
				switch r.IntN(3) {
				case 0:
					inputs = append(inputs, in)
				case 1:
					inputs = append(inputs, openLocal(t, dir))
				default:
					b, err := OpenBucketMeta(t.Context(), uploaded(t, dir), m, NewCache(0, nil))
					require.NoError(t, err)
					inputs = append(inputs, b)
				}
			}
			hi := (1 + r.Int64N(3)) * hour
			want := union(all...).limit(0, hi)
			var d Digest
			ctx := WithReadAhead(t.Context(), 1) // as little as can be at a time
			parent := t.TempDir()
			m, err := Write(ctx, parent, testMeta(t, 0, hi, 1, 1, 1), inputs,
				WriteOptions{Check: true, Digest: &d, SegmentSize: 4 << 10, Encode: merge.EncodeOptions{JoinBelow: r.IntN(2) * 100}})
			if len(want) == 0 {
				require.ErrorIs(t, err, ErrEmpty)
				return
			}
			require.NoError(t, err)
			dir := filepath.Join(parent, m.ULID.String())
			require.Equal(t, want.dump(), dumpAll(t, openLocal(t, dir)))
			require.Equal(t, want.dump(), prometheusDump(t, dir, math.MinInt64, math.MaxInt64, everything))
			require.True(t, bytes.Equal(indexOfPrometheus(t, dir), readFile(t, dir, IndexFilename)))
			require.NoError(t, ReadBack(t.Context(), uploaded(t, dir), m, &d))
			findings, err := Verify(t.Context(), uploaded(t, dir), m.ULID)
			require.NoError(t, err)
			require.Empty(t, findings)
		})
	}
}

// indexOfPrometheus is what Prometheus's writer makes of what its reader reads of a block's index.
func indexOfPrometheus(t *testing.T, dir string) []byte {
	t.Helper()
	r, err := index.NewFileReader(filepath.Join(dir, IndexFilename), index.DecodePostingsRaw)
	require.NoError(t, err)
	defer r.Close()
	out := filepath.Join(t.TempDir(), "again")
	w, err := index.NewWriter(t.Context(), out)
	require.NoError(t, err)
	symbols := r.Symbols()
	for symbols.Next() {
		require.NoError(t, w.AddSymbol(symbols.At()))
	}
	require.NoError(t, symbols.Err())
	name, value := index.AllPostingsKey()
	p, err := r.Postings(t.Context(), name, value)
	require.NoError(t, err)
	for p.Next() {
		var (
			b    labels.ScratchBuilder
			chks []chunks.Meta
		)
		require.NoError(t, r.Series(p.At(), &b, &chks))
		require.NoError(t, w.AddSeries(p.At(), b.Labels(), chks...))
	}
	require.NoError(t, p.Err())
	require.NoError(t, w.Close())
	return readFile(t, out)
}

// TestSymbolsMissing has an input whose labels are not among its symbols.
func TestSymbolsMissing(t *testing.T) {
	in := memInput{{labels: labels.FromStrings("a", "b"), samples: []sample{{t: 1}}}}
	_, err := Write(t.Context(), t.TempDir(), testMeta(t, 0, hour, 1, 1, 1), []Input{forgetful{in, Meta{}}}, WriteOptions{})
	require.ErrorContains(t, err, "not among the input's symbols")
}

// forgetful is a block, to go by its meta, that does not tell its symbols.
type forgetful struct {
	memInput
	meta Meta
}

func (f forgetful) Meta() Meta              { return f.meta }
func (forgetful) Symbols() index.StringIter { return index.NewStringListIter(nil) }

// TestReadBackFindsEveryDamage changes one byte after the other, here and there in each file.
func TestReadBackFindsEveryDamage(t *testing.T) {
	ctx := context.Background()
	dir, m, d := writtenForReadBack(t)
	r := rand.New(rand.NewPCG(1, 1))
	for _, f := range m.Thanos.Files {
		if f.RelPath == MetaFilename {
			continue
		}
		content := readFile(t, dir, filepath.FromSlash(f.RelPath))
		bkt := uploaded(t, dir)
		for range 150 {
			at := r.IntN(len(content))
			content[at] ^= 1 << r.IntN(8)
			require.NoError(t, bkt.Upload(ctx, m.ULID.String()+"/"+f.RelPath, strings.NewReader(string(content))))
			require.ErrorIs(t, ReadBack(ctx, bkt, m, &d), ErrMismatch, "byte %d of %s", at, f.RelPath)
			content = readFile(t, dir, filepath.FromSlash(f.RelPath))
		}
		require.NoError(t, bkt.Upload(ctx, m.ULID.String()+"/"+f.RelPath, strings.NewReader(string(content))))
		require.NoError(t, ReadBack(ctx, bkt, m, &d))
	}
}

func writtenForReadBack(t *testing.T) (dir string, m Meta, d Digest) {
	t.Helper()
	parent := t.TempDir()
	in := randomInput(rand.New(rand.NewPCG(4, 1)), 100, 10*hour, 12*hour)
	m, err := Write(t.Context(), parent, testMeta(t, 10*hour, 12*hour, 1, 1, 1), []Input{in}, WriteOptions{Digest: &d, SegmentSize: 64 << 10})
	require.NoError(t, err)
	return filepath.Join(parent, m.ULID.String()), m, d
}

// TestReadBackReadsTheIndex has indexes that are what was written, byte for byte, but not of the series that were merged.
func TestReadBackReadsTheIndex(t *testing.T) {
	dir, m, d := writtenForReadBack(t)
	raw := readFile(t, dir, IndexFilename)
	toc, err := index.NewTOCFromByteSlice(byteSlice(raw))
	require.NoError(t, err)
	for name, change := range map[string]func(b []byte){
		"another series in the last list of postings": func(b []byte) {
			content := b[toc.Postings:toc.PostingsTable]
			begin := len(content) - 12
			for int(binary.BigEndian.Uint32(content[begin:])) != len(content)-begin-8 {
				begin -= 4
			}
			list := content[begin+4 : len(content)-4]
			binary.BigEndian.PutUint32(list[len(list)-4:], math.MaxUint32)
			binary.BigEndian.PutUint32(content[len(content)-4:], crc32.Checksum(list, castagnoli))
		},
		"another time of a chunk": func(b []byte) {
			at := int(toc.Series+seriesAlign-1) / seriesAlign * seriesAlign
			n, _ := seriesFraming.length(b[at:])
			entry := b[at : at+int(n)]
			content := entry[uvarintLen(entry) : len(entry)-4]
			c := cursor{b: content}
			for k := 2 * c.uvarint(); k > 0; k-- {
				c.uvarint()
			}
			c.uvarint() // number of chunks
			content[len(content)-len(c.b)] ^= 2
			binary.BigEndian.PutUint32(entry[len(entry)-4:], crc32.Checksum(content, castagnoli))
		},
	} {
		t.Run(name, func(t *testing.T) {
			changed := slices.Clone(raw)
			change(changed)
			require.NotEqual(t, raw, changed)
			bkt := uploaded(t, dir)
			require.NoError(t, bkt.Upload(t.Context(), m.ULID.String()+"/"+IndexFilename, strings.NewReader(string(changed))))
			want := d
			want.index = xxhash.Sum64(changed)
			require.ErrorIs(t, ReadBack(t.Context(), bkt, m, &want), ErrMismatch)
		})
	}
}
