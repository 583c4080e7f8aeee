package batch

import (
	"cmp"
	"math"
	"slices"

	"github.com/oklog/ulid/v2"

	"github.com/millrace/millrace/pkg/block"
)

// tier is a kind of compacted blocks: what lies in one aligned window of its width and has no higher level goes together.
type tier struct {
	kind  Kind
	level int
	width int64
}

var (
	level0     = tier{CompactLevel0, 1, windowMillis}
	windows    = tier{MergeWindow, 1, windowMillis}
	days       = tier{CompactDay, 2, dayMillis}
	fortnights = tier{CompactFortnight, 3, fortnightMillis}
)

const (
	// maxIndexSize keeps merged indexes well within what the format can address: 64 GiB of series, 4 GiB of symbols.
	maxIndexSize = 16 << 30
	// minBlocks is how many blocks of 14 d must fit into the retention time, or there would be none of them: as blocks go when
	// their last sample is old enough, the first ones stay longer by a block's width.
	minBlocks = 10
)

// tiers plans the merges of compacted blocks. busy are jobs that are due: what their inputs overlap is planned when they are
// done. Days come first, as what a fortnight is made of; then fortnights; and windows of 2 h whose day is not over or too
// large.
func (p *planner) tiers(settled, visible []block.Meta, busy []Job) []Job {
	var (
		jobs    []Job
		working []block.Meta
		inDays  = map[ulid.ULID]bool{}
	)
	for _, j := range busy {
		working = append(working, j.Inputs...)
	}
	plan := func(t tier, g group) {
		if slices.ContainsFunc(working, func(b block.Meta) bool { return g.overlaps(&b) }) {
			return
		}
		for _, j := range p.merge(t, g.blocks, visible) {
			jobs, working = append(jobs, j), append(working, j.Inputs...)
		}
	}
	for _, g := range p.groups(days, settled) {
		if days.begun(g.blocks) || p.fits(g.blocks) {
			for _, m := range g.blocks {
				inDays[m.ULID] = true
			}
			plan(days, g)
		}
	}
	if r := p.config.Retention.Milliseconds(); r == 0 || r >= minBlocks*fortnightMillis {
		for _, g := range p.groups(fortnights, settled) {
			plan(fortnights, g)
		}
	}
	for _, g := range p.groups(windows, slices.DeleteFunc(slices.Clone(settled), func(m block.Meta) bool { return inDays[m.ULID] })) {
		plan(windows, g)
	}
	return jobs
}

// group is what lies in one window, in order of precedence.
type group struct {
	window
	blocks []block.Meta
}

// groups gathers the blocks of t, or on their way to it, by windows that are over, in order of time.
func (p *planner) groups(t tier, settled []block.Meta) []group {
	byWindow := map[window]int{}
	var out []group
	for _, m := range settled {
		w := windowAt(m.MinTime, t.width)
		if m.Level() < 1 || m.Level() > t.level || !w.holds(&m) || !p.over(w, t) {
			continue
		}
		i, ok := byWindow[w]
		if !ok {
			i = len(out)
			byWindow[w] = i
			out = append(out, group{window: w})
		}
		out[i].blocks = append(out[i].blocks, m)
	}
	slices.SortFunc(out, func(a, b group) int { return cmp.Compare(a.min, b.min) })
	return out
}

// over says whether w ended: long enough ago or, by force, at all. Windows of 2 h need not even have ended then.
func (p *planner) over(w window, t tier) bool {
	switch {
	case p.force && t == windows:
		return true
	case p.force:
		return w.max <= p.now
	}
	return w.max <= p.now-p.config.Delay.Milliseconds()
}

// begun says whether the tier's window has a block of the tier already, so that what else is in it came late.
func (t tier) begun(blocks []block.Meta) bool {
	return slices.ContainsFunc(blocks, func(m block.Meta) bool { return m.Level() == t.level })
}

// merge plans what becomes of the blocks of one window. Where none of them is of the tier, all go together, also if there is
// only one. Otherwise as many as are worth it, beginning with the smallest: what came late is gathered before it is merged
// with what is much larger, and of blocks that wait each is much larger than all of those below it together, so that they
// remain few.
func (p *planner) merge(t tier, blocks, visible []block.Meta) []Job {
	if !t.begun(blocks) {
		if !p.fits(blocks) {
			return nil
		}
		return p.jobs(t, blocks, visible, 1)
	}
	bySize := slices.Clone(blocks)
	slices.SortStableFunc(bySize, func(a, b block.Meta) int { return cmp.Compare(b.Stats.NumSamples, a.Stats.NumSamples) })
	for i := range len(bySize) - 1 {
		set := bySize[i:]
		// By force, late samples become one block, but a block of 14 d is not made anew for a few of them.
		forced := p.force && (t != fortnights || i > 0)
		if !forced && !p.worth(t, set) || !p.fits(set) {
			continue
		}
		set = slices.Clone(set)
		slices.SortFunc(set, block.Compare)
		if jobs := p.jobs(t, set, visible, 2); len(jobs) > 0 {
			return jobs
		}
	}
	return nil
}

// worth says whether the first block of set, the largest, should be written anew for the sake of the others: they have a
// fair share of its samples, or have waited for long.
func (p *planner) worth(t tier, set []block.Meta) bool {
	var late uint64
	oldest := int64(math.MaxInt64)
	for _, m := range set[1:] {
		late, oldest = late+m.Stats.NumSamples, min(oldest, since(&m))
	}
	wait := p.config.LateMergeAge.Milliseconds() * max(1, t.width/dayMillis)
	return float64(late) >= p.config.LateMergeShare*float64(set[0].Stats.NumSamples) || oldest <= p.now-wait
}

// since is when the oldest block that went into m was begun.
func since(m *block.Meta) int64 {
	oldest := m.ULID.Time()
	for _, id := range m.Compaction.Sources {
		oldest = min(oldest, id.Time())
	}
	return int64(min(oldest, math.MaxInt64))
}

// fits says whether blocks may become one.
func (p *planner) fits(blocks []block.Meta) bool {
	var size, index int64
	for _, m := range blocks {
		size, index = size+m.Size(), index+indexSize(&m)
	}
	return size <= p.config.MaxBlockSize && index <= maxIndexSize
}

// indexSize is the size of a block's index in bytes, as far as its meta tells.
func indexSize(m *block.Meta) (n int64) {
	for _, f := range m.Thanos.Files {
		if f.RelPath == block.IndexFilename {
			n += f.SizeBytes
		}
	}
	return n
}

// jobs plans a job for each gapless run of at least least blocks.
func (p *planner) jobs(t tier, blocks, visible []block.Meta, least int) []Job {
	var near []block.Meta
	for _, b := range visible {
		if overlapsAny(&b, blocks) {
			near = append(near, b)
		}
	}
	var jobs []Job
	for _, run := range runs(blocks, near, p.config.opens) {
		if len(run) >= least {
			jobs = append(jobs, newJob(t, run, p.config))
		}
	}
	return jobs
}
