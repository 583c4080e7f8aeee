package migrate

import (
	"cmp"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/merge"
)

// run is a part of a text in memory: samples in order of lines, which leave it sorted.
type run struct {
	byText   map[string]*runSeries // of the family that is being read; nil for a series that is passed over
	byLabels map[string]*runSeries
	all      []*runSeries
	bytes    int // about what it takes
	key      []byte
}

type runSeries struct {
	lset    labels.Labels
	samples []runSample
}

type runSample struct {
	t int64
	v float64
}

const (
	// sampleBytes is what a sample takes in a slice that has just grown.
	sampleBytes = 32
	// seriesBytes is what a series takes besides its labels, of which there are three copies.
	seriesBytes = 300
)

func newRun() *run {
	return &run{byText: map[string]*runSeries{}, byLabels: map[string]*runSeries{}}
}

// nextFamily forgets how series were written: in a family of another type the same text may mean another one.
func (r *run) nextFamily() { r.byText = map[string]*runSeries{} }

func (r *run) remember(text []byte, s *runSeries) {
	r.byText[string(text)] = s
	r.bytes += len(text)
}

func (r *run) series(lset labels.Labels) *runSeries {
	r.key = lset.Bytes(r.key)
	if s, ok := r.byLabels[string(r.key)]; ok {
		return s
	}
	s := &runSeries{lset: lset}
	r.byLabels[string(r.key)] = s
	r.all = append(r.all, s)
	r.bytes += seriesBytes + 2*len(r.key)
	return s
}

func (r *run) add(s *runSeries, t int64, v float64) {
	s.samples = append(s.samples, runSample{t, v})
	r.bytes += sampleBytes
}

// piece is what a series has of one day.
type piece struct {
	day     span
	series  int
	samples []runSample
}

// spool writes a section for each day.
func (r *run) spool(s *spool) (map[span]*section, error) {
	slices.SortFunc(r.all, func(a, b *runSeries) int { return labels.Compare(a.lset, b.lset) })
	var pieces []piece
	for i, series := range r.all {
		pieces = append(pieces, series.pieces(i)...)
	}
	slices.SortFunc(pieces, func(a, b piece) int {
		return cmp.Or(cmp.Compare(a.day.from, b.day.from), cmp.Compare(a.series, b.series))
	})
	out := map[span]*section{}
	for len(pieces) > 0 {
		day := pieces[0].day
		sec := s.begin()
		for len(pieces) > 0 && pieces[0].day == day {
			if err := pieces[0].spool(s, sec, r.all[pieces[0].series].lset); err != nil {
				return nil, err
			}
			pieces = pieces[1:]
		}
		if err := s.end(sec); err != nil {
			return nil, err
		}
		out[day] = sec
	}
	return out, nil
}

// pieces sorts the samples, the latest of those with the same timestamp only, and cuts them into days.
func (s *runSeries) pieces(series int) []piece {
	slices.SortStableFunc(s.samples, func(a, b runSample) int { return cmp.Compare(a.t, b.t) })
	kept := s.samples[:0]
	for _, x := range s.samples {
		if n := len(kept); n > 0 && kept[n-1].t == x.t {
			kept[n-1] = x
			continue
		}
		kept = append(kept, x)
	}
	var out []piece
	for len(kept) > 0 {
		day := aligned(kept[0].t, dayMillis)
		n, _ := slices.BinarySearchFunc(kept, day.to, func(x runSample, t int64) int { return cmp.Compare(x.t, t) })
		out = append(out, piece{day: day, series: series, samples: kept[:n]})
		kept = kept[n:]
	}
	return out
}

// spool encodes the samples.
func (p *piece) spool(s *spool, sec *section, lset labels.Labels) error {
	enc := merge.NewEncoder(merge.EncodeOptions{})
	for _, x := range p.samples {
		c, full, err := enc.Float(0, x.t, x.v)
		if err != nil {
			return err
		}
		if full {
			if err := s.add(sec, lset, c); err != nil {
				return err
			}
		}
	}
	if c, ok := enc.Flush(); ok {
		return s.add(sec, lset, c)
	}
	return nil
}
