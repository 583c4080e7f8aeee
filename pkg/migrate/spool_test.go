package migrate

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/merge"
)

func floatChunk(t *testing.T, from int64, values ...float64) chunks.Meta {
	t.Helper()
	e := merge.NewEncoder(merge.EncodeOptions{})
	for i, v := range values {
		_, full, err := e.Float(0, from+int64(i), v)
		require.NoError(t, err)
		require.False(t, full)
	}
	c, ok := e.Flush()
	require.True(t, ok)
	return c
}

// drain writes down the chunks of a set.
func drain(t *testing.T, set storage.ChunkSeriesSet) (out []string, err error) {
	t.Helper()
	for set.Next() {
		it := set.At().Iterator(nil)
		for it.Next() {
			c := it.At()
			out = append(out, fmt.Sprintf("%s %d-%d %x", set.At().Labels(), c.MinTime, c.MaxTime, c.Chunk.Bytes()))
		}
	}
	return out, set.Err()
}

// What goes into a spool comes out in order of labels, whatever order it came in, by time, and without sections that were taken back.
func TestSpoolGivesBackWhatItWasGiven(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 2))
		im := &Importer{scratch: t.TempDir()}
		s, err := im.newSpool()
		require.NoError(t, err)
		for range 1 + r.IntN(3) {
			aborted := s.begin()
			require.NoError(t, s.add(aborted, labels.FromStrings("a", "gone"), floatChunk(t, 1, 1)))
			require.NoError(t, s.abort(aborted))

			names := r.Perm(20)[:1+r.IntN(19)]
			if r.IntN(2) == 0 {
				slices.Sort(names)
			}
			sec := s.begin()
			var want []string
			for _, n := range names {
				lset := labels.FromStrings("a", fmt.Sprintf("%02d", n), "b", "ü")
				for i := range 1 + r.IntN(3) {
					c := floatChunk(t, int64(i*100), r.Float64(), 2)
					require.NoError(t, s.add(sec, lset, c))
					if i >= 1 {
						want = append(want, fmt.Sprintf("%s %d-%d %x", lset, c.MinTime, c.MaxTime, c.Chunk.Bytes()))
					}
				}
			}
			require.NoError(t, s.end(sec))
			slices.Sort(want)
			got, err := drain(t, (&spooled{f: s.f, sec: sec}).series(span{100, 1000}))
			require.NoError(t, err)
			require.Equal(t, want, got, "seed %d", seed)
		}
		require.NoError(t, s.close())
		require.NoFileExists(t, filepath.Join(im.scratch, filepath.Base(s.f.Name())))
	}
}

func TestSpoolRefusesWhatNoBlockMayHave(t *testing.T) {
	im := &Importer{scratch: t.TempDir()}
	s, err := im.newSpool()
	require.NoError(t, err)
	defer s.close()
	a, b := labels.FromStrings("a", "1"), labels.FromStrings("a", "2")
	sec := s.begin()
	require.NoError(t, s.add(sec, b, floatChunk(t, 1, 1, 2)))
	require.ErrorContains(t, s.add(sec, b, floatChunk(t, 2, 1)), "do not follow")
	require.NoError(t, s.add(sec, a, floatChunk(t, 1, 1)))
	require.NoError(t, s.add(sec, b, floatChunk(t, 9, 1)))
	require.NoError(t, s.end(sec))
	_, err = drain(t, (&spooled{f: s.f, sec: sec}).series(sec.span))
	require.ErrorContains(t, err, "came twice")
	require.ErrorContains(t, (&spooled{f: s.f, sec: sec}).Symbols().Err(), "came twice")
}

func FuzzSpool(f *testing.F) {
	im := &Importer{scratch: f.TempDir()}
	s, err := im.newSpool()
	require.NoError(f, err)
	sec := s.begin()
	e := merge.NewEncoder(merge.EncodeOptions{})
	_, _, err = e.Float(0, 1, 1)
	require.NoError(f, err)
	c, _ := e.Flush()
	require.NoError(f, s.add(sec, labels.FromStrings("a", "1"), c))
	require.NoError(f, s.end(sec))
	seed, err := os.ReadFile(s.f.Name())
	require.NoError(f, err)
	f.Add(seed, true)
	f.Add(seed, false)
	f.Add([]byte{5, 1, 1, 'a', 200, 1}, true)
	f.Fuzz(func(t *testing.T, raw []byte, sorted bool) {
		name := filepath.Join(t.TempDir(), "spool")
		require.NoError(t, os.WriteFile(name, raw, 0o600))
		file, err := os.Open(name)
		require.NoError(t, err)
		defer file.Close()
		in := &spooled{f: file, sec: &section{n: int64(len(raw)), span: span{minTime, maxTime}, sorted: sorted}}
		_, first := drain(t, in.series(in.sec.span))
		_, second := drain(t, in.series(in.sec.span))
		require.Equal(t, first, second)
	})
}
