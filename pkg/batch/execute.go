package batch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/oklog/ulid/v2"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/merge"
)

// errAbandoned says that a job is not worth doing any more: others did its work.
var errAbandoned = errors.New("others did this work")

// errNoEffect says that a job is due although it was done.
var errNoEffect = errors.New("the job stays due although it was done; an output of it is in the bucket but cannot be used")

// errNoRoom says that a job was not begun for want of room on the local disk.
var errNoRoom = errors.New("too little room on the local disk")

// execution is one attempt at a job. It belongs to one goroutine.
type execution struct {
	*run
	job     *Job
	listed  *listing
	tracker *tracker
	open    map[ulid.ULID]*block.Block
}

// do writes and uploads the outputs, window by window, the commit last. Only one output is in the scratch folder at a time.
func (e *execution) do(ctx context.Context) (err error) {
	defer func() {
		for id := range e.open {
			err = errors.Join(err, e.close(id))
		}
	}()
	windows, err := e.windows(ctx)
	if err != nil {
		return err
	}
	if len(windows) == 0 {
		return e.markEmpty(ctx)
	}
	if err := e.checkRoom(); err != nil {
		return err
	}
	e.tracker.windows.Store(int64(len(windows)))
	for len(windows) > 1 {
		w := windows[0]
		if err := e.output(ctx, w, nil); err != nil && !errors.Is(err, block.ErrEmpty) {
			return err
		}
		if err := e.closeBefore(windows[1].min); err != nil {
			return err
		}
		windows = windows[1:]
	}
	return e.commit(ctx, windows)
}

// checkRoom fails a job that would take the disk from others, or fill it half-way. Outputs are about as large as inputs; each is made in
// the scratch folder, and where the bucket is a folder of the same disk they all are there a second time.
func (e *execution) checkRoom() error {
	if e.o.Room == nil {
		return nil
	}
	room, known := e.o.Room()
	need := int64(0)
	for _, m := range e.job.Inputs {
		need += m.Size() // an output is not larger, and there is one at a time
	}
	_, folder := e.o.Bucket.(*block.DirBucket) // as a rule on the same disk, where outputs take their room a second time
	// Parts are there beside what is made of them, but gone before that is uploaded.
	if folder || e.job.Kind == Recompute && e.config.inParts(e.job, hull(e.job.Inputs)) {
		need *= 2
	}
	if !known || need <= room {
		return nil
	}
	e.metrics.noRoom.Inc()
	return fmt.Errorf("%w: the job may need %d bytes in %s, which has %d to give beyond what is kept free; it is tried again at the next run",
		errNoRoom, need, e.o.ScratchDir, max(0, room))
}

// commit uploads the block that replaces the inputs: that of the last window. Should it turn out to have no samples, although
// the inputs' metas made believe so, the ones before it are tried, which then are written a second time.
func (e *execution) commit(ctx context.Context, windows []window) error {
	replaces := e.job.Replaces()
	w := windows[len(windows)-1]
	err := e.output(ctx, w, replaces)
	if !errors.Is(err, block.ErrEmpty) {
		return err
	}
	all, err := e.windows(ctx)
	if err != nil {
		return err
	}
	for _, w := range slices.Backward(all[:len(all)-1]) {
		if err := e.output(ctx, w, replaces); !errors.Is(err, block.ErrEmpty) {
			return err
		}
	}
	return e.markEmpty(ctx)
}

// markEmpty ends a job whose inputs have not a single sample, so that no output can carry their replacement.
func (e *execution) markEmpty(ctx context.Context) error {
	for _, id := range e.job.Replaces() {
		if err := block.MarkForDeletion(ctx, e.o.Bucket, id, "the block has no samples"); err != nil {
			return err
		}
		e.summary.Marked++
		e.metrics.marked.WithLabelValues(reasonEmpty).Inc()
	}
	return nil
}

// output brings one output into the bucket, unless it is there already.
func (e *execution) output(ctx context.Context, w window, replaces []ulid.ULID) error {
	e.setDetail(w)
	m := e.job.outputMeta(w, replaces)
	there, err := e.done(ctx, m.ULID)
	if err != nil {
		return err
	}
	if !there {
		var digest block.Digest
		defer os.RemoveAll(filepath.Join(e.o.ScratchDir, m.ULID.String()))
		if m, err = e.write(ctx, m, w, &digest); err != nil {
			return e.noteMismatch(err)
		}
		if err := e.upload(ctx, m, &digest); err != nil {
			return err
		}
	}
	e.addOutput(e.tracker, m.ULID)
	e.tracker.windowsDone.Add(1)
	return nil
}

// done says whether an earlier attempt has brought an output into the bucket. What is there counts only if it is whole: the commit is about to replace the inputs by it.
func (e *execution) done(ctx context.Context, id ulid.ULID) (bool, error) {
	there, err := e.o.Bucket.Exists(ctx, path.Join(id.String(), block.MetaFilename))
	if err != nil || !there {
		return false, err
	}
	findings, err := block.Verify(ctx, e.o.Bucket, id)
	if err != nil || len(findings) == 0 {
		return err == nil, err
	}
	e.log.Warn("an output of an earlier attempt is damaged and is made again", "block", id, "finding", findings[0])
	return false, block.Delete(ctx, e.o.Bucket, id)
}

// noteMismatch counts an output that is not what its inputs make of it. It is the job's end: nothing is replaced.
func (e *execution) noteMismatch(err error) error {
	if errors.Is(err, block.ErrMismatch) || errors.Is(err, merge.ErrDiffers) {
		e.metrics.mismatches.Inc()
	}
	return err
}

// write makes the block of window w. What is read of each input that lies in w whole must be as much as its meta tells.
func (e *execution) write(ctx context.Context, m block.Meta, w window, digest *block.Digest) (block.Meta, error) {
	var (
		inputs []block.Input
		counts []*inputCount
		series uint64
	)
	for _, in := range e.job.contributors(w) {
		b, err := e.input(ctx, in)
		if err != nil {
			return block.Meta{}, err
		}
		count := &inputCount{meta: in, whole: w.holds(&in)}
		counts = append(counts, count)
		inputs = append(inputs, e.job.filtered(countedInput{Block: b, seen: &e.tracker.seriesDone, count: count}, &in, w))
		series += in.Stats.NumSeries
	}
	e.tracker.nextWindow(int64(series))
	defer e.tracker.series.Store(0)
	ctx = block.WithReadAhead(ctx, e.config.readAhead(len(inputs)))
	m, err := block.Write(ctx, e.o.ScratchDir, m, inputs, block.WriteOptions{
		Encode: merge.EncodeOptions{StartTimestamps: e.job.StartTimestamps, JoinBelow: joinBelow},
		Check:  true,
		Digest: digest,
	})
	if err != nil && !errors.Is(err, block.ErrEmpty) {
		return m, err
	}
	for _, c := range counts {
		if err := c.check(); err != nil {
			return m, err
		}
	}
	return m, err
}

// joinBelow is the number of samples below which chunks are joined with their neighbours. Part of codeVersion.
const joinBelow = 100

// upload brings a block into the bucket if it is still wanted.
func (e *execution) upload(ctx context.Context, m block.Meta, digest *block.Digest) error {
	if err := e.stillWanted(ctx); err != nil {
		return err
	}
	// Marks without a block are left from a deletion that was interrupted, or whose bucket forgot it; they are not meant for what is uploaded now.
	for _, mark := range []string{block.DeletionMarkFilename, block.QuarantineMarkFilename} {
		if err := e.removeMark(ctx, path.Join(m.ULID.String(), mark)); err != nil {
			return err
		}
	}
	if err := e.uploadChecked(ctx, filepath.Join(e.o.ScratchDir, m.ULID.String()), digest); err != nil {
		return err
	}
	e.summary.Written++
	e.summary.Samples += m.Stats.NumSamples
	e.metrics.written.WithLabelValues(strconv.Itoa(e.job.Level)).Inc()
	e.metrics.writtenBytes.Add(float64(m.Size()))
	e.metrics.samples.Add(float64(m.Stats.NumSamples))
	return nil
}

func (e *execution) removeMark(ctx context.Context, mark string) error {
	there, err := e.o.Bucket.Exists(ctx, mark)
	if err != nil {
		return fmt.Errorf("look for %s: %w", mark, err)
	}
	if !there {
		return nil
	}
	if err := e.o.Bucket.Delete(ctx, mark); err != nil && !e.o.Bucket.IsObjNotFoundErr(err) {
		return fmt.Errorf("remove the old %s: %w", mark, err)
	}
	return nil
}

// uploadChecked brings the block in dir into the bucket. Before its meta.json, which is what makes it count and replace others, its
// files are read back and compared with the digest of what was made of the inputs.
func (e *execution) uploadChecked(ctx context.Context, dir string, digest *block.Digest) error {
	return e.noteMismatch(block.UploadChecked(ctx, e.o.Bucket, dir, func(ctx context.Context, m block.Meta) error {
		return block.ReadBack(ctx, e.o.Bucket, m, digest)
	}))
}

// stillWanted looks at the bucket again when that was long ago: outputs whose inputs were meanwhile replaced by others would
// only be duplicates, and those that others are deleting just now must not be uploaded again.
func (e *execution) stillWanted(ctx context.Context) error {
	if e.now().Sub(e.listed.at) <= staleAfter {
		return nil
	}
	l, err := e.list(ctx, nil)
	if err != nil {
		return err
	}
	live := ids(visible(l.blocks))
	for _, m := range e.job.Inputs {
		if !live[m.ULID] {
			return fmt.Errorf("%w: block %s was replaced or marked for deletion", errAbandoned, m.ULID)
		}
	}
	e.listed = l
	return nil
}

// input opens a block once for all windows.
func (e *execution) input(ctx context.Context, m block.Meta) (*block.Block, error) {
	if b, ok := e.open[m.ULID]; ok {
		return b, nil
	}
	b, err := block.OpenBucketMeta(ctx, e.o.Bucket, m, e.o.Cache)
	if err != nil {
		return nil, err
	}
	e.open[m.ULID] = b
	return b, b.Preload(ctx)
}

// closeBefore closes inputs that have nothing from t on.
func (e *execution) closeBefore(t int64) error {
	for id, b := range e.open {
		if m := b.Meta(); m.MaxTime <= t {
			if err := e.close(id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *execution) close(id ulid.ULID) error {
	b := e.open[id]
	delete(e.open, id)
	return b.Close()
}

func (e *execution) setDetail(w window) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tracker.status.Detail = fmt.Sprintf("%s, at %s", hull(e.job.Inputs), w)
}
