package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/speed"
	"github.com/millrace/millrace/pkg/wal"
)

// replay reads a generation back from its log, which stays closed. A log whose header is damaged is read all the same, as a generation that can only be
// sealed; one that cannot be read at all is moved aside for the user to look at, and nil is returned.
func (e *Engine) replay(ctx context.Context, l *unreadLog) (*generation, error) {
	dir, number := e.logDir(l.number), l.number
	o := e.data.walOptions
	o.SkipUnreadable = e.unreadable[number] >= patience
	g, err := e.replayLog(ctx, l, dir, o)
	if _, damaged := errors.AsType[*wal.CorruptHeaderError](err); damaged {
		e.logger.Error("the header of a log is damaged; its records are read without it", "generation", number, "err", err)
		o.IgnoreHeader = true
		g, err = e.replayLog(ctx, l, dir, o)
		if _, io := errors.AsType[*fs.PathError](err); err != nil && !io && ctx.Err() == nil {
			return nil, e.quarantine(dir, err)
		}
	}
	if err != nil {
		if io, ok := errors.AsType[*fs.PathError](err); ok && io.Op == "read" {
			e.unreadable[number]++
		}
		return nil, fmt.Errorf("replay log of generation %d: %w", number, err)
	}
	return g, nil
}

// patience is how many replays of a log may fail because the disk cannot read it before it is read without the parts in question. Some errors of disks, and most
// of file systems on a network, go away.
const patience = 10

func (e *Engine) replayLog(ctx context.Context, l *unreadLog, dir string, o wal.Options) (*generation, error) {
	var r *replayer
	begin := func(h header) {
		g := e.wireGeneration(h, nil)
		e.exemplars.forget(h.Number)
		g.dir, g.damaged = dir, o.IgnoreHeader
		g.deleted = e.data.deletions.of(g.stored)
		r = e.newReplayer(ctx, l, g)
	}
	if o.IgnoreHeader {
		h, err := newHeader(l.number, time.Now())
		if err != nil {
			return nil, err
		}
		begin(h)
	}
	ended := false
	defer func() { // After a panic its workers would wait for ever, with what was read.
		if r != nil && !ended {
			r.wait()
		}
	}()
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
	ended = true
	if err != nil {
		return nil, err
	}
	if r.unknown.Load() {
		return nil, fmt.Errorf("%w: a later version of Millrace wrote it, and has to read it", ingest.ErrUnknownRecord)
	}
	if stats.Lost != (wal.Lost{}) || undecodable > 0 {
		r.g.damaged = true
		err := fmt.Errorf("generation %d: %d records in %d damaged regions with %d bytes were skipped, %d could not be decoded", l.number,
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
	run         work // that is being gathered
	work        chan work
	wg          sync.WaitGroup
	undecodable atomic.Int64
	unknown     atomic.Bool // a later version wrote some of the records

	log   *unreadLog // is told what was read, roughly, as frames are not counted
	shown time.Time
}

// work is a run of records of floats that follow one another, or one record of another kind.
type work struct {
	index   uint64 // of the first record
	records []*[]byte
	floats  []speed.Floats // nil if it is of another kind
	size    int            // in bytes
}

// A run is long enough that the workers, who must keep to the order, seldom wait for each other.
const (
	runRecords = 16
	runBytes   = 1 << 20
)

// buffers are for copies of what the log's own holds.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

func (e *Engine) newReplayer(ctx context.Context, l *unreadLog, g *generation) *replayer {
	workers := runtime.GOMAXPROCS(0)
	r := &replayer{e: e, g: g, ctx: ctx, log: l, floats: speed.NewRecordReader(g.mem), work: make(chan work, 2*workers)}
	g.replayedSize = l.size
	l.read.Store(0)
	l.mem.Store(g.mem)
	for range workers {
		r.wg.Go(r.worker)
	}
	return r
}

func (r *replayer) add(record []byte) error {
	if r.ctx.Err() != nil {
		return r.ctx.Err()
	}
	buf, _ := buffers.Get().(*[]byte)
	*buf = append((*buf)[:0], record...)
	if len(record) > 0 && record[0] == speed.RecordFloats {
		r.addFloats(buf)
	} else {
		r.hand()
		r.work <- work{index: r.g.replayed, records: []*[]byte{buf}}
	}
	r.g.replayed++
	r.log.read.Add(int64(len(record)))
	r.showProgress()
	return nil
}

// addFloats adds a record of floats to the run. Its definitions are read here, where the order is that of the log.
func (r *replayer) addFloats(buf *[]byte) {
	floats, err := r.floats.Define(*buf)
	if err != nil {
		r.hand()
		r.g.mem.Skip(r.g.replayed)
		r.undecoded(r.g.replayed, 1, err)
		return
	}
	if len(r.run.records) == 0 {
		r.run.index = r.g.replayed
	}
	r.run.records, r.run.floats = append(r.run.records, buf), append(r.run.floats, floats)
	if r.run.size += len(*buf); len(r.run.records) >= runRecords || r.run.size >= runBytes {
		r.hand()
	}
}

// hand gives the run to the workers.
func (r *replayer) hand() {
	if len(r.run.records) > 0 {
		r.work <- r.run
		r.run = work{}
	}
}

func (r *replayer) showProgress() {
	if time.Since(r.shown) < time.Second/2 {
		return
	}
	r.shown = time.Now()
	r.e.showReplay(r.log, r.g.replayed)
}

func (e *Engine) showReplay(l *unreadLog, requests uint64) {
	read := l.read.Load()
	e.setProgress("replaying the log of generation %d: %d %% (%d requests)", l.number, 100*read/max(l.size, read, 1), requests)
}

func (r *replayer) worker() {
	for w := range r.work {
		if failed, err := r.apply(w); err != nil {
			r.undecoded(w.index, failed, err)
		}
		for _, buf := range w.records {
			buffers.Put(buf)
		}
	}
}

// apply returns how many records could not be applied as they should, and why.
func (r *replayer) apply(w work) (failed int, err error) {
	if w.floats != nil {
		failed = len(w.floats) // should there be a panic
		err = guard(func() (err error) {
			failed, err = r.g.mem.Apply(w.index, w.floats)
			return err
		})
		return failed, err
	}
	var b *ingest.Batch
	err = guard(func() (err error) {
		b, err = ingest.DecodeRecord(*w.records[0], r.g.mem)
		return err
	})
	if err != nil {
		r.g.mem.Skip(w.index)
		return 1, err
	}
	defer b.Release()
	return 1, guard(func() error {
		r.e.apply(r.g, w.index, b)
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

func (r *replayer) undecoded(index uint64, records int, err error) {
	r.undecodable.Add(int64(records))
	if errors.Is(err, ingest.ErrUnknownRecord) {
		r.unknown.Store(true)
	}
	r.e.metrics.replayUndecodable.Add(float64(records))
	r.e.logger.Error("records of the log cannot be decoded", "generation", r.g.Number, "from_record", index, "records", records, "err", err)
}

// wait returns when everything is applied, and how many records could not be decoded.
func (r *replayer) wait() int64 {
	r.hand()
	close(r.work)
	r.wg.Wait()
	return r.undecodable.Load()
}
