package batch

import (
	"maps"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/tombstone"
)

// Plan returns the jobs that are due, in the order in which they should run. Their inputs are disjoint, so they do not
// depend on each other; when they are done, planning again finds what their outputs make due, until there is nothing.
//
// metas are all blocks of a bucket that are not marked for deletion. Blocks of other writers (external labels) are planned
// apart from each other; blocks that other tools wrote are left alone.
//
// Level-0 blocks are due when their generation was begun before the end of the last window that is over, and with them
// all of lower generations; with force, all are due. A window of any width is over when it ended at least c.Delay ago; with
// force, those of 2 h need not be over, and longer ones need only to have ended. Of blocks that come to a window which has its
// block, see worth. It is not sure of any time, so that retention rules drop nothing.
func Plan(metas []block.Meta, now time.Time, c Config, force bool) []Job {
	listed := make([]block.Listed, 0, len(metas))
	for _, m := range metas {
		listed = append(listed, block.Listed{Meta: m})
	}
	return plan(listed, now, c, force, limits{})
}

// limits are what a plan must do without.
type limits struct {
	// held blocks are no inputs, but are in the way of others.
	held func(*block.Meta) bool
	// incomplete level-0 blocks are of a generation of which others may still be on their way to the bucket. They are held;
	// and, as it is better to wait for the whole window, due ones keep the others waiting.
	incomplete func(*block.Meta) bool
	// tombstones are the deletions in force, and void what they have no effect on.
	tombstones []*tombstone.Tombstone
	void       map[pair]bool
	// sure is the time by which retention rules drop series; see clock.
	sure int64
}

// plan is Plan with marked blocks, which take part in nothing but still replace what they replace, and with limits.
func plan(listed []block.Listed, now time.Time, c Config, force bool, l limits) []Job {
	none := func(*block.Meta) bool { return false }
	if l.held == nil {
		l.held = none
	}
	if l.incomplete == nil {
		l.incomplete = none
	}
	p := &planner{now: now.UnixMilli(), config: c, force: force, limits: l}
	byWriter := map[string][]block.Meta{}
	for _, m := range visible(listed) {
		key := writer(&m)
		byWriter[key] = append(byWriter[key], m)
	}
	writers := make([]string, 0, len(byWriter))
	for key := range byWriter {
		writers = append(writers, key)
	}
	slices.Sort(writers)
	var jobs []Job
	for _, key := range writers {
		jobs = append(jobs, p.writer(byWriter[key])...)
	}
	return jobs
}

// visible returns the blocks of ours which neither a job replaced nor somebody marked for deletion, and those from which a block in quarantine can
// be made again.
func visible(listed []block.Listed) []block.Meta {
	metas := make([]block.Meta, 0, len(listed))
	marked := map[ulid.ULID]bool{}
	for _, l := range listed {
		metas = append(metas, l.Meta)
		marked[l.Meta.ULID] = l.DeletionMark != nil
	}
	live := ids(block.Visible(metas))
	maps.Copy(live, restored(listed))
	return slices.DeleteFunc(metas, func(m block.Meta) bool { return !live[m.ULID] || !ours(&m) || marked[m.ULID] })
}

// ours says whether jobs may touch the block: its generations must be known, and its samples be raw.
func ours(m *block.Meta) bool { return m.Own() && m.Thanos.Downsample.Resolution == 0 }

func writer(m *block.Meta) string { return m.ExternalLabels().String() }

// gapless says whether inputs may be merged: no block of all which is not an input itself and overlaps one of them in time
// stands between them in precedence. Merged, the inputs take the place of the highest one; a block in between would lose
// against the samples of those below it, or win against those above it. A block that was merged from some of the inputs and
// from nothing else is not in the way, since they hold all of its samples.
func gapless(inputs, all []block.Meta) bool {
	lowest, highest := inputs[0], inputs[0]
	taken := ids(inputs)
	for _, m := range inputs {
		if block.Compare(m, lowest) < 0 {
			lowest = m
		}
		if block.Compare(m, highest) > 0 {
			highest = m
		}
	}
	return !slices.ContainsFunc(all, func(b block.Meta) bool {
		return !taken[b.ULID] && block.Compare(lowest, b) < 0 && block.Compare(b, highest) < 0 &&
			overlapsAny(&b, inputs) && !mergedFrom(&b, taken)
	})
}

// mergedFrom says whether every block that m was merged from is among ids.
func mergedFrom(m *block.Meta, ids map[ulid.ULID]bool) bool {
	return len(m.Compaction.Parents) > 0 && !slices.ContainsFunc(m.Compaction.Parents, func(p tsdb.BlockDesc) bool { return !ids[p.ULID] })
}

func ids(metas []block.Meta) map[ulid.ULID]bool {
	set := make(map[ulid.ULID]bool, len(metas))
	for _, m := range metas {
		set[m.ULID] = true
	}
	return set
}

func overlapsAny(b *block.Meta, metas []block.Meta) bool {
	return slices.ContainsFunc(metas, func(m block.Meta) bool { return m.MinTime < b.MaxTime && b.MinTime < m.MaxTime })
}

type planner struct {
	now    int64
	config Config
	force  bool
	limits
}

// writer plans the jobs of one writer from its visible blocks.
func (p *planner) writer(metas []block.Meta) []Job {
	slices.SortFunc(metas, block.Compare)
	settled, leftovers := split(metas)
	settled = slices.DeleteFunc(settled, func(m block.Meta) bool { return expired(&m, p.now, p.config.Retention) || p.held(&m) })

	jobs := p.level0(settled, metas)
	jobs = append(jobs, p.tiers(settled, metas, jobs)...)
	if len(jobs) == 0 {
		jobs = p.erase(settled)
	}
	for i := range jobs {
		jobs[i].setDrops(p.config.Rules, p.sure)
		jobs[i].setTombstones(p.tombstones)
		jobs[i].Leftovers = leftoversOf(&jobs[i], leftovers)
	}
	return jobs
}

// split sets the outputs of jobs that are not committed apart: blocks that were merged from one that is still visible.
func split(metas []block.Meta) (settled, leftovers []block.Meta) {
	seen := ids(metas)
	for _, m := range metas {
		if slices.ContainsFunc(m.Compaction.Parents, func(p tsdb.BlockDesc) bool { return seen[p.ULID] }) {
			leftovers = append(leftovers, m)
		} else {
			settled = append(settled, m)
		}
	}
	return settled, leftovers
}

// leftoversOf finds the leftovers whose samples are all in inputs of j, and which are not outputs of an earlier attempt at
// j. Those with a parent elsewhere must stay, even if that was replaced: what replaced it may be a leftover in the eyes of
// a job that another runner is doing now, and if each hid the other's output, samples would be lost. They become ordinary
// inputs when their last parent has gone.
func leftoversOf(j *Job, leftovers []block.Meta) []block.Meta {
	inputs := ids(j.Inputs)
	var out []block.Meta
	for _, m := range leftovers {
		w := windowAt(m.MinTime, j.Width)
		if mergedFrom(&m, inputs) && m.ULID != j.outputID(w, j.contributors(w), nil) {
			out = append(out, m)
		}
	}
	return out
}

// expired says whether all samples of m have reached the end of retention, so that m waits for its deletion mark.
func expired(m *block.Meta, now int64, retention time.Duration) bool {
	return retention > 0 && m.MaxTime <= now-retention.Milliseconds()
}

// level0 plans the compaction of due level-0 blocks: everything up to the newest due generation, so that nothing is left
// between them.
func (p *planner) level0(settled, visible []block.Meta) []Job {
	boundary := windowAt(p.now-p.config.Delay.Milliseconds(), windowMillis).min
	var newest uint64
	due := false
	for _, m := range settled {
		_, gen := m.Generations()
		switch {
		case m.Level() != 0 || !p.force && int64(m.ULID.Time()) >= boundary:
		case !p.incomplete(&m):
			newest, due = max(newest, gen), true
		case !p.force:
			return nil
		}
	}
	if !due {
		return nil
	}
	var inputs []block.Meta
	for _, m := range settled {
		if _, gen := m.Generations(); m.Level() == 0 && gen <= newest && !p.incomplete(&m) {
			inputs = append(inputs, m)
		}
	}
	var jobs []Job
	for _, run := range runs(inputs, visible, p.config.opens) {
		jobs = append(jobs, newJob(level0, run, p.config))
	}
	return jobs
}

// runs divides inputs, which are in order of precedence, into gapless runs of no more blocks than opens
// says that one job may open of them.
func runs(inputs, all []block.Meta, opens func([]block.Meta) int) [][]block.Meta {
	var out [][]block.Meta
	for len(inputs) > 0 {
		n := opens(inputs)
		if !gapless(inputs[:n], all) {
			n = 1
			for n < len(inputs) && gapless(inputs[:n+1], all) {
				n++
			}
		}
		out = append(out, inputs[:n])
		inputs = inputs[n:]
	}
	return out
}

// hull is the range of time from the first to the last sample of metas.
func hull(metas []block.Meta) window {
	w := window{min: metas[0].MinTime, max: metas[0].MaxTime}
	for _, m := range metas {
		w.min, w.max = min(w.min, m.MinTime), max(w.max, m.MaxTime)
	}
	return w
}
