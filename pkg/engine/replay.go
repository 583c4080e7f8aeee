package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/speed"
	"github.com/millrace/millrace/pkg/wal"
)

// replay reads a generation back from its log, which stays closed. A log whose header is damaged is read all the same, as a generation that can only be
// sealed; one that cannot be read at all is moved aside for the user to look at, and nil is returned.
func (e *Engine) replay(ctx context.Context, number uint64) (*generation, error) {
	dir := filepath.Join(e.data.path, walDir, fmt.Sprintf("%020d", number))
	o := e.data.walOptions
	o.SkipUnreadable = e.unreadable[number] >= patience
	g, err := e.replayLog(ctx, dir, number, o)
	if _, damaged := errors.AsType[*wal.CorruptHeaderError](err); damaged {
		e.logger.Error("the header of a log is damaged; its records are read without it", "generation", number, "err", err)
		o.IgnoreHeader = true
		if g, err = e.replayLog(ctx, dir, number, o); err != nil && ctx.Err() == nil {
			return nil, e.quarantine(dir, err)
		}
	}
	if err != nil {
		if _, io := errors.AsType[*fs.PathError](err); io {
			e.unreadable[number]++
		}
		return nil, fmt.Errorf("replay log of generation %d: %w", number, err)
	}
	return g, nil
}

// patience is how many replays of a log may fail because the disk cannot read it before it is read without the parts in question. Some errors of disks, and most
// of file systems on a network, go away.
const patience = 10

func (e *Engine) replayLog(ctx context.Context, dir string, number uint64, o wal.Options) (*generation, error) {
	var r *replayer
	begin := func(h header) {
		g := e.wireGeneration(h, nil)
		g.dir, g.damaged = dir, o.IgnoreHeader
		r = e.newReplayer(ctx, g)
	}
	if o.IgnoreHeader {
		h, err := newHeader(number, time.Now())
		if err != nil {
			return nil, err
		}
		begin(h)
	}
	stats, err := wal.Replay(dir, o, func(raw []byte) error {
		h, err := parseHeader(raw)
		if err == nil {
			begin(h)
		}
		return err
	}, func(record []byte) error { return r.add(record) })
	if r == nil {
		return nil, err
	}
	undecodable := r.wait()
	if err != nil {
		return nil, err
	}
	if r.unknown.Load() {
		return nil, fmt.Errorf("%w: a later version of Millrace wrote it, and has to read it", ingest.ErrUnknownRecord)
	}
	if stats.Lost != (wal.Lost{}) || undecodable > 0 {
		r.g.damaged = true
		err := fmt.Errorf("generation %d: %d records in %d damaged regions with %d bytes were skipped, %d could not be decoded", number,
			stats.Lost.Records, stats.Lost.Regions, stats.Lost.Bytes, undecodable)
		e.logger.Error("parts of a log are lost", "err", err)
		e.report("log replay", err)
	}
	return r.g, nil
}

// replayer decodes and applies records in parallel. Their indexes, given out by the one goroutine that reads the log, decide the order in which a shard of the
// generation applies them.
type replayer struct {
	e           *Engine
	g           *generation
	ctx         context.Context
	floats      *speed.RecordReader
	records     chan indexed
	wg          sync.WaitGroup
	undecodable atomic.Int64
	unknown     atomic.Bool // a later version wrote some of the records

	read  int64 // of the log, in bytes; roughly, as frames are not counted
	shown time.Time
}

type indexed struct {
	index  uint64
	floats speed.Floats // of a record of floats, for which record is nil
	record []byte       // of any other
}

func (e *Engine) newReplayer(ctx context.Context, g *generation) *replayer {
	workers := runtime.GOMAXPROCS(0)
	r := &replayer{e: e, g: g, ctx: ctx, floats: speed.NewRecordReader(g.mem), records: make(chan indexed, 4*workers)}
	g.replayedSize = dirSize(g.dir)
	for range workers {
		r.wg.Go(r.work)
	}
	return r
}

func (r *replayer) add(record []byte) error {
	if r.ctx.Err() != nil {
		return r.ctx.Err()
	}
	if err := r.hand(r.g.replayed, slices.Clone(record)); err != nil { // the log's buffer is its own
		r.g.mem.Skip(r.g.replayed)
		r.undecoded(r.g.replayed, err)
	}
	r.g.replayed++
	r.read += int64(len(record))
	r.showProgress()
	return nil
}

func (r *replayer) showProgress() {
	if time.Since(r.shown) < time.Second/2 {
		return
	}
	r.shown = time.Now()
	r.e.setProgress("replaying the log of generation %d: %d %% (%d requests)", r.g.Number, 100*r.read/max(r.g.replayedSize, r.read), r.g.replayed)
}

// hand gives a record to the workers. The definitions in records of floats are read here, where the order is that of the log.
func (r *replayer) hand(index uint64, record []byte) error {
	in := indexed{index: index}
	if len(record) > 0 && record[0] == speed.RecordFloats {
		var err error
		if in.floats, err = r.floats.Define(record); err != nil {
			return err
		}
	} else {
		in.record = record
	}
	r.records <- in
	return nil
}

func (r *replayer) work() {
	for in := range r.records {
		if err := r.apply(in); err != nil {
			r.undecoded(in.index, err)
		}
	}
}

func (r *replayer) apply(in indexed) error {
	if in.record == nil {
		return guard(func() error { return in.floats.Apply(in.index) })
	}
	var b *ingest.Batch
	err := guard(func() (err error) {
		b, err = ingest.DecodeRecord(in.record, r.g.mem)
		return err
	})
	if err != nil {
		r.g.mem.Skip(in.index)
		return err
	}
	defer b.Release()
	return guard(func() error {
		r.e.apply(r.g, in.index, b)
		return nil
	})
}

// guard turns a panic into an error: a record that cannot be applied, for a reason that nobody has thought of, must not keep the engine from ever opening
// again.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

func (r *replayer) undecoded(index uint64, err error) {
	r.undecodable.Add(1)
	if errors.Is(err, ingest.ErrUnknownRecord) {
		r.unknown.Store(true)
	}
	r.e.metrics.replayUndecodable.Inc()
	r.e.logger.Error("a record of the log cannot be decoded", "generation", r.g.Number, "record", index, "err", err)
}

// wait returns when everything is applied, and how many records could not be decoded.
func (r *replayer) wait() int64 {
	close(r.records)
	r.wg.Wait()
	return r.undecodable.Load()
}
