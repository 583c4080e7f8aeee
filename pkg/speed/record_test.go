package speed

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/ingest"
)

// floatsBatch is a batch of a few of many series, some of them twice.
func floatsBatch(r *rand.Rand, at int64) *ingest.Batch {
	b := &ingest.Batch{}
	for range 1 + r.Intn(20) {
		var samples []sample
		for range 1 + r.Intn(3) {
			samples = append(samples, sample{t: at + r.Int63n(1000) - 500, v: math.Float64frombits(r.Uint64() &^ (1 << 62))})
		}
		b.Series = append(b.Series, in(lset("__name__", "m", "series", fmt.Sprint(r.Intn(100))), samples...))
	}
	return b
}

// logged appends batches to a generation and returns their records.
func logged(g *Generation, batches ...*ingest.Batch) [][]byte {
	var log [][]byte
	for i, b := range batches {
		g.Resolve(b)
		rec := g.Record(b)
		log = append(log, bytes.Clone(rec.Bytes))
		rec.Written()
		rec.Release()
		g.Append(uint64(i), b)
	}
	return log
}

// apply reads one record into the reader's generation.
func apply(r *RecordReader, index uint64, rec []byte) error {
	floats, err := r.Define(rec)
	if err != nil {
		return err
	}
	_, err = r.g.Apply(index, []Floats{floats})
	return err
}

func TestRecordsSayWhatWasAppended(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for round := range 20 {
		g := NewGeneration(Options{Shards: 4})
		var batches []*ingest.Batch
		for i := range 50 {
			batches = append(batches, floatsBatch(r, int64(i)*1000))
		}
		log := logged(g, batches...)
		again := NewGeneration(Options{Shards: 1 << (round % 5)})
		reader := NewRecordReader(again)
		var wg sync.WaitGroup
		var run []Floats
		for i, rec := range log {
			floats, err := reader.Define(rec)
			require.NoError(t, err)
			run = append(run, floats)
			if len(run) <= i%5 && i+1 < len(log) {
				continue
			}
			first, records := uint64(i+1-len(run)), run
			run = nil
			wg.Go(func() {
				_, err := again.Apply(first, records)
				assert.NoError(t, err)
			})
		}
		wg.Wait()
		require.Equal(t, query(t, g, minTime, maxTime, all()), query(t, again, minTime, maxTime, all()))
	}
}

// A generation that was read back goes on in the same log.
func TestRecordsOfAContinuedGeneration(t *testing.T) {
	r := rand.New(rand.NewSource(2))
	var log [][]byte
	var batches []*ingest.Batch
	for range 3 {
		g := NewGeneration(Options{})
		reader := NewRecordReader(g)
		for i, rec := range log {
			require.NoError(t, apply(reader, uint64(i), rec))
		}
		want := NewGeneration(Options{})
		for i, b := range batches {
			b.Known = nil
			want.Append(uint64(i), b)
		}
		require.Equal(t, query(t, want, minTime, maxTime, all()), query(t, g, minTime, maxTime, all()))
		for range 10 {
			b := floatsBatch(r, int64(len(batches))*1000)
			g.Resolve(b)
			rec := g.Record(b)
			g.Append(uint64(len(log)), b)
			log, batches = append(log, bytes.Clone(rec.Bytes)), append(batches, b)
			rec.Written()
			rec.Release()
		}
	}
}

func TestRecordDefinesASeriesUntilItIsWritten(t *testing.T) {
	g := NewGeneration(Options{})
	b := batch(in(lset("__name__", "m"), sample{t: 1, v: 1}))
	g.Resolve(b)
	first, second := g.Record(b), g.Record(b)
	require.Equal(t, first.Bytes, second.Bytes, "the first may yet be lost")
	second.Written()
	third := g.Record(b)
	require.Less(t, len(third.Bytes), len(first.Bytes))

	reader := NewRecordReader(NewGeneration(Options{}))
	require.ErrorIs(t, apply(reader, 0, third.Bytes), ErrUndefined)
	require.NoError(t, apply(reader, 1, second.Bytes))
	require.NoError(t, apply(reader, 2, third.Bytes), "the index of what could not be applied was given up")
}

// Where a definition was lost and the id was given to another series, records from before speak of neither.
func TestLateDefinitionIsNotUsedByEarlierRecords(t *testing.T) {
	records := func(series string) (defines, uses []byte) {
		g := NewGeneration(Options{})
		log := logged(g, batch(in(lset("__name__", series), sample{t: 1, v: 1})), batch(in(lset("__name__", series), sample{t: 2, v: 2})))
		return log[0], log[1]
	}
	_, lost := records("lost")
	defines, _ := records("other")
	g := NewGeneration(Options{})
	reader := NewRecordReader(g)
	before, err := reader.Define(defines[:0:0])
	require.ErrorIs(t, err, ErrRecord)
	require.Zero(t, before)
	early, err := reader.Define(lost)
	require.NoError(t, err)
	late, err := reader.Define(defines)
	require.NoError(t, err)
	_, err = g.Apply(0, []Floats{late})
	require.NoError(t, err)
	failed, err := g.Apply(1, []Floats{early})
	require.ErrorIs(t, err, ErrUndefined)
	require.Equal(t, 1, failed)
	require.Len(t, query(t, g, minTime, maxTime, all())[`{__name__="other"}`], 1)
}

// A lost definition costs the samples of its series, and only until the log's next epoch.
func TestLostDefinition(t *testing.T) {
	sampleAt := func(series string, at int64) ingest.Series { return in(lset("__name__", series), sample{t: at, v: 1}) }
	g := NewGeneration(Options{})
	log := logged(g, batch(sampleAt("a", 1)), batch(sampleAt("a", 2), sampleAt("b", 2)), batch(sampleAt("b", 3), sampleAt("a", 3)))
	g.DefineFrom(2)
	next := batch(sampleAt("a", 4), sampleAt("b", 4))
	g.Resolve(next)
	rec := g.Record(next)
	log = append(log, rec.Bytes)

	again := NewGeneration(Options{FirstIndex: 1})
	reader := NewRecordReader(again)
	var errs []error
	for i, rec := range log[1:] {
		errs = append(errs, apply(reader, uint64(i+1), rec))
	}
	require.ErrorIs(t, errs[0], ErrUndefined)
	require.ErrorIs(t, errs[1], ErrUndefined)
	require.NoError(t, errs[2])
	require.Equal(t, map[string][]sample{
		`{__name__="a"}`: {{t: 4, v: 1}}, `{__name__="b"}`: {{t: 2, v: 1}, {t: 3, v: 1}, {t: 4, v: 1}},
	}, query(t, again, minTime, maxTime, all()))
}

// A record's memory is free once its floats are applied, also if it defined something.
func TestDefinitionsOutliveTheirRecords(t *testing.T) {
	one := func(at int64) *ingest.Batch { return batch(in(lset("__name__", "m"), sample{t: at, v: 1})) }
	log := logged(NewGeneration(Options{}), one(1), one(2))
	g := NewGeneration(Options{})
	reader := NewRecordReader(g)
	for i, rec := range log {
		require.NoError(t, apply(reader, uint64(i), rec))
		clear(rec)
	}
	require.Equal(t, map[string][]sample{`{__name__="m"}`: {{t: 1, v: 1}, {t: 2, v: 1}}}, query(t, g, minTime, maxTime, all()))
}

func TestResolveOfAnotherGenerationsReferences(t *testing.T) {
	old, g := NewGeneration(Options{}), NewGeneration(Options{})
	for i := range 300 { // So that references differ.
		old.Append(uint64(i), batch(in(lset("__name__", "other", "i", fmt.Sprint(i)), sample{t: 1})))
	}
	b := batch(in(lset("__name__", "m"), sample{t: 1, v: 1}))
	old.Resolve(b)
	g.Resolve(b)
	g.Append(0, b)
	require.Len(t, query(t, g, minTime, maxTime, all()), 1)
	require.EqualValues(t, 1, g.Stats().Series)
}

// A series is registered once, whoever comes first, and every record can be read.
func TestResolveConcurrently(t *testing.T) {
	g := NewGeneration(Options{})
	var mu sync.Mutex
	var log [][]byte
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewSource(int64(worker)))
			for range 100 {
				b := floatsBatch(r, int64(worker)*1e6)
				g.Resolve(b)
				rec := g.Record(b)
				mu.Lock()
				index := uint64(len(log))
				log = append(log, bytes.Clone(rec.Bytes))
				mu.Unlock()
				rec.Written()
				rec.Release()
				g.Append(index, b)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 100, g.Stats().Series)
	again := NewGeneration(Options{})
	reader := NewRecordReader(again)
	for i, rec := range log {
		require.NoError(t, apply(reader, uint64(i), rec))
	}
	require.Equal(t, query(t, g, minTime, maxTime, all()), query(t, again, minTime, maxTime, all()))
}

func TestCanRecord(t *testing.T) {
	withST := batch(in(lset("__name__", "m"), sample{t: 2, st: 1, v: 1}))
	require.True(t, NewGeneration(Options{}).CanRecord(withST), "start timestamps are not kept anyway")
	require.False(t, NewGeneration(Options{StartTimestamps: true}).CanRecord(withST))
	require.True(t, NewGeneration(Options{StartTimestamps: true}).CanRecord(batch(in(lset("__name__", "m"), sample{t: 2, v: 1}))))
}

// FuzzRecordReader: a damaged record is an error, and what is read is a batch of series with keys.
func FuzzRecordReader(f *testing.F) {
	r := rand.New(rand.NewSource(1))
	for _, rec := range logged(NewGeneration(Options{}), floatsBatch(r, 0), floatsBatch(r, 1000), floatsBatch(r, 2000)) {
		f.Add(rec, rec)
	}
	withoutSamples := []byte{RecordFloats, 1, 1, 12, 0x0a, 10, 0x0a, 5, 'l', 'a', 'b', 'e', 'l', 0x12, 1, 'v', 1, 2, 0}
	f.Add(withoutSamples, withoutSamples)
	f.Fuzz(func(t *testing.T, first, second []byte) {
		g := NewGeneration(Options{Shards: 1})
		reader := NewRecordReader(g)
		for i, rec := range [][]byte{first, second} {
			floats, err := reader.Define(rec)
			if err != nil {
				require.ErrorIs(t, err, ErrRecord)
				g.Skip(uint64(i))
				continue
			}
			if _, err := g.Apply(uint64(i), []Floats{floats}); err != nil && !errors.Is(err, ErrUndefined) {
				require.ErrorIs(t, err, ErrRecord)
			}
		}
		query(t, g, minTime, maxTime, all())
	})
}
