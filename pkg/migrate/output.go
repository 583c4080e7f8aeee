package migrate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/merge"
	"github.com/millrace/millrace/pkg/tombstone"
)

const (
	// joinBelow is the number of samples below which chunks are joined with their neighbours, as compactions do.
	joinBelow = 100
	// minSegment and maxSegment bound the size of chunk files, whose space is taken when they are begun.
	minSegment = 4 << 20
	maxSegment = 512 << 20
)

// part is what one source has to say about a day or less.
type part struct {
	source  identity
	partial bool   // series were passed over
	name    string // for errors
	span    span   // of its samples
	samples float64
	bytes   int64
	inputs  []block.Input // in order of precedence
}

// output is a block to be made.
type output struct {
	window span
	level  int
	parts  []part
	keys   []ulid.ULID
	spans  []span // of the keys
}

// state is what is known of what a source says about a window.
type state int

const (
	outside state = iota // nothing of it is imported
	present              // the bucket has it
	missing
)

// state tells whether the bucket has what a source says about the window w, as far as that is imported at all. With
// Options.SkipInvalid, what the same limits let pass is enough.
func (im *Importer) state(source identity, of, w span) state {
	w = w.clip(im.bounds)
	switch {
	case !w.overlaps(of):
		return outside
	case im.known[im.keys.of(source, w)], im.o.SkipInvalid && im.known[im.keys.of(im.limited(source), w)]:
		return present
	}
	return missing
}

// key is that of what p says about the window w.
func (im *Importer) key(p part, w span) ulid.ULID {
	source := p.source
	if p.partial {
		source = im.limited(source)
	}
	return im.keys.of(source, w.clip(im.bounds))
}

// missingWindows are the 2 h windows of s of which something is missing. It counts the others.
func (im *Importer) missingWindows(source identity, of, s span) []span {
	var out []span
	for _, w := range s.windows() {
		switch im.state(source, of, w) {
		case missing:
			out = append(out, w)
		case present:
			im.summary.Windows++
			im.warnOfQuarantine(source, w)
		case outside:
		}
	}
	return out
}

// warnOfQuarantine tells, once for each such block, that what is there already of the window w is in a block without which queries answer.
func (im *Importer) warnOfQuarantine(source identity, w span) {
	w = w.clip(im.bounds)
	for _, s := range []identity{source, im.limited(source)} {
		id, ok := im.quarantined[im.keys.of(s, w)]
		if !ok {
			continue
		}
		im.log.Warn("what the bucket has of a time is in a block in quarantine, which answers go without; it is not imported again as long as the block is there",
			"block", id, "window", w)
		maps.DeleteFunc(im.quarantined, func(_, b ulid.ULID) bool { return b == id })
	}
}

// write brings what parts, in order of precedence, say about s into the bucket: as one block if s is a day of which the bucket has
// nothing and which is no more than is worth losing when the import is stopped, otherwise as one for each 2 h window.
func (im *Importer) write(ctx context.Context, s span, parts []part) error {
	whole := s == aligned(s.from, dayMillis)
	samples := 0.0
	var fine []output
	for _, w := range s.windows() {
		o := output{window: w, level: 1}
		for _, p := range parts {
			switch im.state(p.source, p.span, w) {
			case missing:
				o.add(p, im.key(p, w), p.span.clip(w).clip(im.bounds))
				samples += p.samples * p.span.share(w)
			case present:
				whole = false
			case outside:
			}
		}
		if len(o.keys) > 0 {
			fine = append(fine, o)
		}
	}
	if whole && samples <= im.o.daySamples && len(fine) > 0 {
		return im.put(ctx, oneDay(s, parts, fine))
	}
	for _, o := range fine {
		if err := im.put(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

func (o *output) add(p part, key ulid.ULID, s span) {
	o.parts, o.keys, o.spans = append(o.parts, p), append(o.keys, key), append(o.spans, s)
}

// oneDay is one output for all of a day's windows.
func oneDay(day span, parts []part, windows []output) output {
	o := output{window: day, level: 2, parts: parts}
	for _, w := range windows {
		o.keys, o.spans = append(o.keys, w.keys...), append(o.spans, w.spans...)
	}
	return o
}

// meta says where the block comes from. Its sources and parents are keys, never the ids of a Prometheus server's blocks: that would
// delete its own ones if it ever met this.
func (im *Importer) meta(o output) block.Meta {
	var m block.Meta
	m.Version = block.MetaVersion
	m.ULID = im.keys.block(o.window, o.level, o.keys)
	m.MinTime, m.MaxTime = o.window.from, o.window.to
	m.Thanos.Labels = im.o.Labels
	m.Compaction.Sources = append([]ulid.ULID{m.ULID}, o.keys...)
	slices.SortFunc(m.Compaction.Sources, ulid.ULID.Compare)
	for i, key := range o.keys {
		m.Compaction.Parents = append(m.Compaction.Parents, tsdb.BlockDesc{ULID: key, MinTime: o.spans[i].from, MaxTime: o.spans[i].to})
	}
	m.SetExtension(o.level, 0, 0)
	for _, t := range im.deleted {
		if t.On(m.Stored()) != tombstone.None {
			m.Thanos.Extensions.Millrace.Applied = append(m.Thanos.Extensions.Millrace.Applied, t.ID)
		}
	}
	return m
}

// put makes a block and uploads it.
func (im *Importer) put(ctx context.Context, o output) error {
	var (
		inputs []block.Input
		bytes  float64
		names  []string
	)
	for _, p := range o.parts {
		for _, in := range p.inputs {
			inputs = append(inputs, countedInput{Input: in, progress: &im.progress})
		}
		bytes += float64(p.bytes) * p.span.share(o.window)
		names = append(names, p.name)
	}
	m, err := block.Write(ctx, im.scratch, im.meta(o), inputs, block.WriteOptions{
		SegmentSize: min(maxSegment, max(minSegment, int64(bytes)+int64(bytes)/8)),
		Encode:      merge.EncodeOptions{JoinBelow: joinBelow},
	})
	if errors.Is(err, block.ErrEmpty) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("import %s from %v: %w", o.window, slices.Compact(names), err)
	}
	dir := filepath.Join(im.scratch, m.ULID.String())
	// What fails here leaves a part of a block, which nobody sees. It must stay: another import of the same source makes the same block, and
	// may have uploaded all of it but meta.json. Batch jobs remove it when nobody has touched it for long.
	if err := block.Upload(ctx, im.o.Bucket, dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("clear scratch folder: %w", err)
	}
	for _, key := range m.Compaction.Sources {
		im.known[key] = true
	}
	im.summary.Blocks++
	im.summary.Samples += m.Stats.NumSamples
	im.summary.Series = max(im.summary.Series, m.Stats.NumSeries)
	im.summary.Bytes += uint64(m.Size())
	return nil
}
