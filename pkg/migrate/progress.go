package migrate

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/millrace/millrace/pkg/block"
)

// Progress says how far an import is. It is safe for concurrent use.
type Progress struct {
	mu      sync.Mutex
	phase   string
	done    float64
	total   float64 // 0 if it is not known
	samples uint64  // in this phase
	reads   bool    // samples that are read from inputs of blocks are what is done
	began   time.Time
}

// begin starts a phase that is over when total, of whatever unit, is done. With reads, it is the samples that blocks are made of.
func (p *Progress) begin(phase string, total float64, reads bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase, p.total, p.done, p.samples, p.reads, p.began = phase, total, 0, 0, reads, time.Now()
}

// read counts samples that went into blocks.
func (p *Progress) read(samples uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reads {
		p.done += float64(samples)
		p.samples += samples
	}
}

func (p *Progress) add(done float64, samples uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += done
	p.samples += samples
}

// String is one line for people: the phase, its share that is done, samples, their rate, and the time that remains.
func (p *Progress) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == "" {
		return "listing the bucket"
	}
	took := time.Since(p.began)
	out := p.phase
	share := 0.0
	if p.total > 0 {
		share = min(1, p.done/p.total)
		out += fmt.Sprintf(" %.0f %%", 100*share)
	}
	if p.samples > 0 {
		out += fmt.Sprintf(", %d samples (%.0f/s)", p.samples, float64(p.samples)/max(took.Seconds(), 0.001))
	}
	if share > 0 && share < 1 && took > time.Second {
		left := time.Duration(float64(took) * (1 - share) / share).Round(time.Second)
		out += fmt.Sprintf(", about %s left", model.Duration(left))
	}
	return out
}

// Times between two reports.
const (
	terminalInterval = time.Second
	logInterval      = 30 * time.Second
)

// Report tells of the progress until ctx ends: to a terminal in one line that is written again and again, and removed in the end;
// to a log otherwise.
func (p *Progress) Report(ctx context.Context, terminal io.Writer, log *slog.Logger) {
	interval := logInterval
	if terminal != nil {
		interval = terminalInterval
	}
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			if terminal != nil {
				fmt.Fprint(terminal, "\r\x1b[K")
			}
			return
		case <-t.C:
		}
		if terminal != nil {
			fmt.Fprintf(terminal, "\r\x1b[K%s", p)
		} else {
			log.Info("importing", "progress", p.String())
		}
	}
}

// countedInput tells the progress of the samples that are read.
type countedInput struct {
	block.Input
	progress *Progress
}

// Families implements what blocks learn the families of metrics from.
func (c countedInput) Families(ctx context.Context) (block.Families, error) {
	if d, ok := c.Input.(interface {
		Families(ctx context.Context) (block.Families, error)
	}); ok {
		return d.Families(ctx)
	}
	return nil, nil
}

// ChunkQuerier implements storage.ChunkQueryable.
func (c countedInput) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	q, err := c.Input.ChunkQuerier(mint, maxt)
	if err != nil {
		return nil, err
	}
	return countedQuerier{ChunkQuerier: q, progress: c.progress}, nil
}

type countedQuerier struct {
	storage.ChunkQuerier
	progress *Progress
}

func (q countedQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.ChunkSeriesSet {
	return countedSet{ChunkSeriesSet: q.ChunkQuerier.Select(ctx, sorted, hints, ms...), progress: q.progress}
}

type countedSet struct {
	storage.ChunkSeriesSet
	progress *Progress
}

func (s countedSet) At() storage.ChunkSeries { return countedSeries{s.ChunkSeriesSet.At(), s.progress} }

type countedSeries struct {
	storage.ChunkSeries
	progress *Progress
}

func (s countedSeries) Iterator(it chunks.Iterator) chunks.Iterator {
	if c, ok := it.(*countedIterator); ok {
		it = c.Iterator
	}
	return &countedIterator{s.ChunkSeries.Iterator(it), s.progress}
}

type countedIterator struct {
	chunks.Iterator
	progress *Progress
}

func (i *countedIterator) Next() bool {
	if !i.Iterator.Next() {
		return false
	}
	if c := i.At().Chunk; c != nil {
		i.progress.read(uint64(c.NumSamples()))
	}
	return true
}
