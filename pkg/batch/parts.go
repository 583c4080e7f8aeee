package batch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/oklog/ulid/v2"

	"github.com/millrace/millrace/pkg/block"
)

// parts makes one block of more inputs than may be open at once: a block of 14 d has hundreds of level-0 blocks. Runs of them, which follow
// one another in precedence, are merged to parts: blocks in the scratch folder that stand for their run. These are merged in the same
// way, until what is left may be open at once. As merging is associative, the samples are the same as if all had been merged
// together; chunks may be cut elsewhere. It belongs to one goroutine.
type parts struct {
	*execution
	output block.Meta
	stock  map[ulid.ULID]stored
	made   map[ulid.ULID]string // folders of parts that are there
	count  uint64               // of parts so far
}

// inParts says whether a job cannot have all that it merges for w open at once.
func (c Config) inParts(j *Job, w window) bool {
	in := j.contributors(w)
	return c.opens(in) < len(in)
}

// write makes the output. No part outlives it.
func (p *parts) write(ctx context.Context, digest *block.Digest) (m block.Meta, err error) {
	defer func() {
		for id := range p.made {
			err = errors.Join(err, p.remove(id))
		}
	}()
	blocks := p.job.contributors(p.window())
	for p.config.opens(blocks) < len(blocks) {
		if blocks, err = p.round(ctx, blocks); err != nil {
			return block.Meta{}, err
		}
	}
	return p.merge(ctx, p.output, blocks, digest)
}

func (p *parts) window() window { return window{min: p.output.MinTime, max: p.output.MaxTime} }

// round merges blocks, of which there are too many, as many at a time as may be open, and returns what there is in their place: fewer
// blocks, as two at least become one.
func (p *parts) round(ctx context.Context, blocks []block.Meta) (fewer []block.Meta, err error) {
	for len(blocks) > 0 {
		run := blocks[:p.config.opens(blocks)]
		blocks = blocks[len(run):]
		if len(run) == 1 {
			fewer = append(fewer, run[0]) // the last one; nothing would be won by writing it
			continue
		}
		m, err := p.merge(ctx, p.part(), run, nil)
		switch {
		case errors.Is(err, block.ErrEmpty):
			continue
		case err != nil:
			return nil, err
		}
		p.made[m.ULID] = filepath.Join(p.o.ScratchDir, m.ULID.String())
		fewer = append(fewer, m)
	}
	return fewer, nil
}

// part is the meta of the next part. All tombstones count as applied to it, and all that is dropped from the output as dropped, as level-0 blocks are read through
// their filters.
func (p *parts) part() block.Meta {
	var m block.Meta
	m.Version = block.MetaVersion
	m.ULID = p.partID()
	m.MinTime, m.MaxTime = p.output.MinTime, p.output.MaxTime
	m.Thanos.Labels = p.output.Thanos.Labels
	minGen, maxGen := p.output.Generations()
	m.SetExtension(p.job.Level, minGen, maxGen)
	for _, t := range p.job.Tombstones {
		m.Thanos.Extensions.Millrace.Applied = append(m.Thanos.Extensions.Millrace.Applied, t.ID)
	}
	slices.SortFunc(m.Thanos.Extensions.Millrace.Applied, ulid.ULID.Compare)
	m.Thanos.Extensions.Millrace.Dropped = p.output.Dropped()
	return m
}

// partID is an id, by which what a crash leaves in the scratch folder is known for a block.
func (p *parts) partID() ulid.ULID {
	p.count++
	buf := append([]byte("millrace part\x00"), p.output.ULID[:]...)
	return derivedID(p.output.ULID.Time(), binary.BigEndian.AppendUint64(buf, p.count))
}

// merge writes the block m of blocks, which are open meanwhile and no longer. Those of them that are parts are removed then.
func (p *parts) merge(ctx context.Context, m block.Meta, blocks []block.Meta, digest *block.Digest) (_ block.Meta, err error) {
	j := *p.job
	j.Inputs = blocks
	e := &execution{run: p.run, job: &j, listed: p.listed, tracker: p.tracker, open: map[ulid.ULID]*block.Block{}}
	defer func() {
		for id := range e.open {
			err = errors.Join(err, e.close(id))
		}
		for _, in := range blocks {
			err = errors.Join(err, p.remove(in.ULID))
		}
	}()
	for _, in := range blocks {
		b, err := p.openBlock(ctx, in)
		if err != nil {
			return block.Meta{}, err
		}
		e.open[in.ULID] = b
	}
	return e.write(ctx, m, p.window(), digest)
}

// openBlock opens a part, or a level-0 block where it is.
func (p *parts) openBlock(ctx context.Context, m block.Meta) (*block.Block, error) {
	if dir, ok := p.made[m.ULID]; ok {
		return block.OpenLocal(dir)
	}
	bkt := p.o.Bucket
	if p.stock[m.ULID].kept {
		bkt = block.Masters(bkt)
	}
	return block.OpenBucketMeta(ctx, bkt, m, p.o.Cache)
}

// remove removes a part; what is none stays.
func (p *parts) remove(id ulid.ULID) error {
	dir, ok := p.made[id]
	if !ok {
		return nil
	}
	delete(p.made, id)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove a part: %w", err)
	}
	return nil
}
