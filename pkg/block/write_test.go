package block

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/merge"
)

const hour = int64(3600_000)

// openPrometheus opens a block with Prometheus's own reader.
func openPrometheus(t testing.TB, dir string) *tsdb.Block {
	t.Helper()
	b, err := tsdb.OpenBlock(nil, dir, nil, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func prometheusDump(t testing.TB, dir string, mint, maxt int64, ms ...*labels.Matcher) []string {
	t.Helper()
	q, err := tsdb.NewBlockChunkQuerier(openPrometheus(t, dir), mint, maxt)
	require.NoError(t, err)
	defer q.Close()
	return dump(t, q.Select(context.Background(), true, &storage.SelectHints{Start: mint, End: maxt, DisableTrimming: true}, ms...))
}

func TestWriteRoundTrip(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			in := randomInput(rand.New(rand.NewPCG(seed, 1)), 300, 10*hour, 12*hour)
			dir, m := writeBlock(t, in)
			require.Equal(t, in.dump(), dumpAll(t, openLocal(t, dir)))
			require.Equal(t, in.dump(), prometheusDump(t, dir, math.MinInt64, math.MaxInt64, everything))
			onDisk, err := ReadMeta(dir)
			require.NoError(t, err)
			require.Equal(t, m, onDisk)
			requireStats(t, in, m)
		})
	}
}

// requireStats compares a meta with the samples that it is of.
func requireStats(t *testing.T, in memInput, m Meta) {
	t.Helper()
	var floats, histograms uint64
	mint, maxt := int64(math.MaxInt64), int64(math.MinInt64)
	for _, s := range in {
		for _, p := range s.samples {
			mint, maxt = min(mint, p.t), max(maxt, p.t)
			if p.h == nil && p.fh == nil {
				floats++
			} else {
				histograms++
			}
		}
	}
	require.Equal(t, uint64(len(in)), m.Stats.NumSeries)
	require.Equal(t, floats, m.Stats.NumFloatSamples)
	require.Equal(t, histograms, m.Stats.NumHistogramSamples)
	require.Equal(t, floats+histograms, m.Stats.NumSamples)
	require.Equal(t, mint, m.MinTime)
	require.Equal(t, maxt+1, m.MaxTime)
}

func TestWriteSplitsIntoWindows(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(7, 1)), 200, hour, 9*hour)
	parent := t.TempDir()
	for w := range int64(5) {
		lo, hi := w*2*hour, (w+1)*2*hour
		m, err := Write(t.Context(), parent, testMeta(t, lo, hi, 1, 1, 1), []Input{in}, WriteOptions{})
		require.NoError(t, err)
		require.Equal(t, []int64{lo, hi}, []int64{m.MinTime, m.MaxTime}, "a compacted block keeps the window it is for")
		dir := filepath.Join(parent, m.ULID.String())
		require.Equal(t, in.limit(lo, hi).dump(), prometheusDump(t, dir, math.MinInt64, math.MaxInt64, everything))
	}
}

func TestWriteMergesLaterWins(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 3))
	var (
		inputs []Input
		all    []memInput
	)
	for g := range 3 {
		in := randomInput(rnd, 120, 0, 2*hour)
		// Whole multiples of ten seconds collide often.
		for i := range in {
			for j := range in[i].samples {
				in[i].samples[j].t -= in[i].samples[j].t % 10_000
			}
			in[i].samples = dedupe(in[i].samples)
		}
		all = append(all, in)
		if g == 1 {
			inputs = append(inputs, in)
			continue
		}
		dir, _ := writeBlock(t, in)
		inputs = append(inputs, openLocal(t, dir))
	}
	parent := t.TempDir()
	m, err := Write(t.Context(), parent, testMeta(t, 0, 2*hour, 1, 0, 2), inputs, WriteOptions{Encode: merge.EncodeOptions{JoinBelow: 100}})
	require.NoError(t, err)
	want := union(all...).dump()
	dir := filepath.Join(parent, m.ULID.String())
	require.Equal(t, want, dumpAll(t, openLocal(t, dir)))
	require.Equal(t, want, prometheusDump(t, dir, math.MinInt64, math.MaxInt64, everything))
	require.Len(t, m.Compaction.Parents, 2, "inputs that are blocks")
	require.Len(t, m.Compaction.Sources, 3, "the block itself and the blocks that it contains whole")
	require.Equal(t, 2, m.Compaction.Level)
}

// dedupe keeps the first of samples with one timestamp.
func dedupe(in []sample) (out []sample) {
	for _, p := range in {
		if len(out) == 0 || out[len(out)-1].t != p.t {
			out = append(out, p)
		}
	}
	return out
}

// union is the model of a merge: the last input with a sample at a time wins.
func union(ins ...memInput) memInput {
	bySeries := map[string]map[int64]sample{}
	byLabels := map[string]labels.Labels{}
	for _, in := range ins {
		for _, s := range in {
			k := s.labels.String()
			byLabels[k] = s.labels
			if bySeries[k] == nil {
				bySeries[k] = map[int64]sample{}
			}
			for _, p := range s.samples {
				bySeries[k][p.t] = p
			}
		}
	}
	var out memInput
	for k, ls := range byLabels {
		s := memSeries{labels: ls}
		for _, p := range bySeries[k] {
			s.samples = append(s.samples, p)
		}
		sortSamples(s.samples)
		out = append(out, s)
	}
	sortSeries(out)
	return out
}

func TestWriteNothingInRange(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(1, 1)), 10, 0, hour)
	parent := t.TempDir()
	_, err := Write(t.Context(), parent, testMeta(t, 5*hour, 6*hour, 0, 1, 1), []Input{in}, WriteOptions{})
	require.ErrorIs(t, err, ErrEmpty)
	requireEmptyDir(t, parent)
	_, err = Write(t.Context(), parent, testMeta(t, 6*hour, 6*hour, 0, 1, 1), []Input{in}, WriteOptions{})
	require.ErrorContains(t, err, "is empty")
	requireEmptyDir(t, parent)
}

func requireEmptyDir(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestWriteLeavesOutSymbolsOfOtherWindows(t *testing.T) {
	in := memInput{
		{labels: labels.FromStrings("a", "late"), samples: []sample{{t: 1}}},
		{labels: labels.FromStrings("a", "now"), samples: []sample{{t: 100}}},
	}
	parent := t.TempDir()
	m, err := Write(t.Context(), parent, testMeta(t, 50, 200, 0, 1, 1), []Input{in}, WriteOptions{})
	require.NoError(t, err)
	b := openLocal(t, filepath.Join(parent, m.ULID.String()))
	var got []string
	it := b.Symbols()
	for it.Next() {
		got = append(got, it.At())
	}
	require.NoError(t, it.Err())
	require.Equal(t, []string{"a", "now"}, got)
}

func TestWriteAgainReturnsTheBlock(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(1, 1)), 10, 0, hour)
	dir, m := writeBlock(t, in)
	again, err := Write(t.Context(), filepath.Dir(dir), m, []Input{failing{}}, WriteOptions{})
	require.NoError(t, err)
	require.Equal(t, m, again)

	// What a crash has left under that name is no block and is replaced.
	require.NoError(t, os.Remove(filepath.Join(dir, MetaFilename)))
	_, err = Write(t.Context(), filepath.Dir(dir), m, []Input{in}, WriteOptions{})
	require.NoError(t, err)
	require.Equal(t, in.dump(), dumpAll(t, openLocal(t, dir)))
}

// TestWriteAfterACrash finds the folder that a process left when it was killed before the rename.
func TestWriteAfterACrash(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(1, 1)), 10, 0, hour)
	dir, m := writeBlock(t, in)
	require.NoError(t, os.Rename(dir, dir+tmpSuffix))
	_, err := OpenLocal(dir)
	require.ErrorIs(t, err, ErrGone)
	_, err = Write(t.Context(), filepath.Dir(dir), m, []Input{in}, WriteOptions{})
	require.NoError(t, err)
	require.Equal(t, in.dump(), dumpAll(t, openLocal(t, dir)))
	require.NoDirExists(t, dir+tmpSuffix)
}

var errTest = errors.New("test error")

// failing is an input whose series end in an error.
type failing struct{ memInput }

func (f failing) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return failingQuerier{&memQuerier{in: f.memInput, mint: mint, maxt: maxt}}, nil
}

type failingQuerier struct{ *memQuerier }

func (q failingQuerier) Select(ctx context.Context, s bool, h *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	set := q.memQuerier.Select(ctx, s, h, ms...)
	if h != nil && h.Func == "series" {
		return set
	}
	return failingSet{set}
}

type failingSet struct{ storage.ChunkSeriesSet }

func (failingSet) Err() error                        { return errTest }
func (failingSet) Warnings() annotations.Annotations { return nil }

func TestWriteFailsWithoutTrace(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(1, 1)), 50, 0, hour)
	parent := t.TempDir()
	_, err := Write(t.Context(), parent, testMeta(t, 0, hour, 0, 1, 1), []Input{failing{in}}, WriteOptions{})
	require.ErrorIs(t, err, errTest)
	requireEmptyDir(t, parent)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Write(ctx, parent, testMeta(t, 0, hour, 0, 1, 1), []Input{in}, WriteOptions{})
	require.ErrorIs(t, err, context.Canceled)
	requireEmptyDir(t, parent)
}

func TestWriteSeveralSegments(t *testing.T) {
	in := randomInput(rand.New(rand.NewPCG(9, 1)), 400, 0, 2*hour)
	parent := t.TempDir()
	m, err := Write(t.Context(), parent, testMeta(t, 0, 2*hour, 1, 1, 1), []Input{in}, WriteOptions{SegmentSize: 16 << 10})
	require.NoError(t, err)
	require.Greater(t, len(m.Thanos.SegmentFiles), 3)
	dir := filepath.Join(parent, m.ULID.String())
	require.Equal(t, in.dump(), dumpAll(t, openLocal(t, dir)))
	b, err := OpenBucket(t.Context(), uploaded(t, dir), m.ULID, NewCache(1, nil))
	require.NoError(t, err)
	require.Equal(t, in.dump(), dumpAll(t, b))
}

func TestSymbolUnion(t *testing.T) {
	require.Equal(t, []string{"", "a", "b", "c"}, unionOf([]string{"a", "c"}, []string{"", "a"}, nil, []string{"b"}))
	require.Empty(t, unionOf())
}
