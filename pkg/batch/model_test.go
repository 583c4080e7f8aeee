package batch

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/rand"
	"slices"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/retention"
	"github.com/millrace/millrace/pkg/tombstone"
)

// The model: a bucket of blocks that are maps, a writer that uploads generations, and runners that compact, die and delete,
// one step at a time and in any order. After every step the merged answer must be what was accepted last.

type modelKey struct {
	series int
	t      int64
}

type modelBlock struct {
	meta    block.Meta
	marked  bool
	samples map[modelKey]int // value: position in the order of acceptance
}

func (b *modelBlock) String() string {
	lo, hi := b.meta.Generations()
	at := func(t int64) string { return time.UnixMilli(t).UTC().Format("02T15:04") }
	return fmt.Sprintf("%s L%d %d-%d [%s,%s) %v", b.meta.ULID, b.meta.Level(), lo, hi, at(b.meta.MinTime), at(b.meta.MaxTime), b.samples)
}

type model struct {
	t        *testing.T
	r        *rand.Rand
	now      time.Time
	bucket   map[ulid.ULID]*modelBlock
	uploaded []*modelBlock // of generations, as they were
	uploads  []*modelBlock // of sealed generations, in order

	// deleted are the tombstones in force: all that queries know; inBucket are those that runners find.
	deleted  []*tombstone.Tombstone
	inBucket []*tombstone.Tombstone
	ever     []*tombstone.Tombstone // those that are settled, too
	deletes  bool                   // whether there are any

	rules retention.Rules
	last  bool // runners go by the model's clock and rules

	gen      uint64
	accepted int
	runners  [2]*modelRunner
	history  []string
}

// modelRunner is a job under way.
type modelRunner struct {
	job           Job
	windows, done []window // still to do; done
}

func newModel(t *testing.T, seed int64) *model {
	return &model{
		t: t, r: rand.New(rand.NewSource(seed)),
		now:     time.Date(2024, 1, 17, 0, 0, 0, 0, time.UTC), // a fortnight ends on the 18th
		bucket:  map[ulid.ULID]*modelBlock{},
		deletes: seed%3 > 0,
		rules:   modelRules(seed),
	}
}

// modelRules are none, or one or two of one or both series.
func modelRules(seed int64) (rules retention.Rules) {
	texts := []string{`{series="0"}: 20h`, `{series=~".*"}: 45h`, `{series!~"0"}: 2h`}
	for i, text := range texts {
		if seed>>i&1 > 0 {
			_ = rules.Set(text)
		}
	}
	return rules
}

// kept are the samples that retention rules do not hide.
func (m *model) kept(samples map[modelKey]int) map[modelKey]int {
	hidden := m.rules.Expired(m.now.UnixMilli())
	maps.DeleteFunc(samples, func(k modelKey, _ int) bool { return hidden.Deletes(seriesOf(k), k.t) })
	return samples
}

func (m *model) log(format string, args ...any) {
	m.history = append(m.history, fmt.Sprintf(format, args...))
}

// seal makes a generation: samples of the running window and, now and then, of days before; its blocks as the engine cuts
// them; many windows for few samples, so that blocks overlap with nothing in common.
func (m *model) seal() {
	created := m.now
	m.gen++
	m.now = m.now.Add(time.Duration(m.r.Intn(100)) * time.Minute)
	recent := windowAt(created.UnixMilli(), windowMillis).min - windowMillis
	blocks := map[int64]*modelBlock{}
	for range 1 + m.r.Intn(6) {
		k := modelKey{series: m.r.Intn(2), t: m.now.UnixMilli() - int64(m.r.Intn(4))*windowMillis/2}
		if m.r.Intn(3) == 0 {
			k.t -= int64(m.r.Intn(30)) * windowMillis
		}
		k.t -= k.t % (windowMillis / 2) // so that samples meet
		w := windowAt(k.t, windowMillis)
		if k.t < recent {
			w = window{min: k.t, max: recent}
		}
		b := blocks[w.max]
		if b == nil {
			b = &modelBlock{samples: map[modelKey]int{}}
			b.meta = testMeta(fmt.Sprint(m.gen, w.max), 0, m.gen, m.gen, created, time.UnixMilli(w.min), time.UnixMilli(w.max))
			blocks[w.max] = b
		}
		b.meta.MinTime = min(b.meta.MinTime, k.t)
		m.accepted++
		b.samples[k] = m.accepted
		b.meta.Stats.NumSamples = uint64(len(b.samples))
	}
	order := slices.Collect(maps.Values(blocks))
	slices.SortFunc(order, func(a, b *modelBlock) int { return a.meta.ULID.Compare(b.meta.ULID) })
	m.uploads = append(m.uploads, order...)
	m.log("seal generation %d in %d blocks", m.gen, len(order))
}

func (m *model) upload() {
	if len(m.uploads) == 0 {
		return
	}
	b := m.uploads[0]
	_, gen := b.meta.Generations()
	if slices.ContainsFunc(m.deleted[len(m.inBucket):], func(t *tombstone.Tombstone) bool { return t.Generation < gen }) {
		m.uploadTombstones()
	}
	m.uploads = m.uploads[1:]
	m.bucket[b.meta.ULID] = b
	m.uploaded = append(m.uploaded, b)
	m.log("upload %s", b)
}

// delete makes a tombstone for what was accepted until now: of one series, or of both, at all times or around some.
func (m *model) delete() {
	selector := tombstone.Selector{labels.MustNewMatcher(labels.MatchRegexp, "series", []string{"0", "1", ".*"}[m.r.Intn(3)])}
	mint, maxt := int64(math.MinInt64), int64(math.MaxInt64)
	if m.r.Intn(3) > 0 {
		mint = m.now.UnixMilli() - int64(m.r.Intn(30))*windowMillis/2
		maxt = mint + int64(m.r.Intn(40))*windowMillis/2
	}
	s, err := tombstone.New(m.gen, mint, maxt, []tombstone.Selector{selector}, writerA, nil)
	require.NoError(m.t, err)
	// So that a seed always makes the same history.
	s.ID, s.Created = ulid.ULID{}, m.now.UnixMilli()
	s.ID[15], s.ID[14] = byte(m.gen), byte(len(m.history))
	m.deleted, m.ever = append(m.deleted, s), append(m.ever, s)
	m.log("delete %s up to generation %d as %s", selector, m.gen, s.ID)
}

func (m *model) uploadTombstones() {
	m.inBucket = slices.Clone(m.deleted)
	m.log("%d tombstones are in the bucket", len(m.inBucket))
}

// hides says whether a tombstone deletes a sample, if it concerns it.
func hides(t *tombstone.Tombstone, k modelKey) bool {
	return tombstone.FilterOf([]*tombstone.Tombstone{t}).Deletes(seriesOf(k), k.t)
}

func seriesOf(k modelKey) labels.Labels { return labels.FromStrings("series", fmt.Sprint(k.series)) }

// without returns the samples that none of the tombstones deletes.
func without(samples map[modelKey]int, deleted []*tombstone.Tombstone) map[modelKey]int {
	out := map[modelKey]int{}
	for k, v := range samples {
		if !slices.ContainsFunc(deleted, func(t *tombstone.Tombstone) bool { return hides(t, k) }) {
			out[k] = v
		}
	}
	return out
}

// expected is what was accepted last and not deleted since.
func (m *model) expected() map[modelKey]int {
	out := map[modelKey]int{}
	for _, b := range m.uploaded {
		_, gen := b.meta.Generations()
		for k, v := range b.samples {
			if !slices.ContainsFunc(m.ever, func(t *tombstone.Tombstone) bool { return t.Generation >= gen && hides(t, k) }) {
				out[k] = v
			}
		}
	}
	return out
}

func (m *model) listed() []block.Listed {
	var out []block.Listed
	for _, id := range slices.SortedFunc(maps.Keys(m.bucket), ulid.ULID.Compare) {
		l := block.Listed{Meta: m.bucket[id].meta}
		if m.bucket[id].marked {
			l.DeletionMark = &block.DeletionMark{ID: id}
		}
		out = append(out, l)
	}
	return out
}

// complete is the highest generation of which a runner may know that all of its blocks are in the bucket: because the writer
// says so, or because it has seen one of the next generation.
func (m *model) complete() uint64 {
	if len(m.uploads) == 0 {
		return m.gen
	}
	_, next := m.uploads[0].meta.Generations()
	if m.r.Intn(2) == 0 {
		return next - 1
	}
	var newest uint64
	for _, b := range m.bucket {
		_, gen := b.meta.Generations()
		newest = max(newest, gen)
	}
	return max(newest, 1) - 1
}

// start lets runner i plan, holding some blocks back as if they could not be read, and take any of the jobs.
func (m *model) start(i int, force bool, held func(*block.Meta) bool) bool {
	listed := m.listed()
	complete := m.complete()
	incomplete := func(b *block.Meta) bool {
		_, gen := b.Generations()
		return gen > complete
	}
	c := DefaultConfig()
	c.LateMergeShare = 0.3 // blocks of a few samples, too, wait for others
	tombstones := slices.Clone(m.inBucket)
	if m.r.Intn(2) == 0 {
		tombstones = slices.Clone(m.deleted) // it has listed blocks first and tombstones later
	}
	planned := m.now
	if c.Rules = m.rules; !m.last {
		planned = planned.Add(-time.Duration(m.r.Intn(3)) * time.Hour) // another clock, or a plan that was made long ago
		if m.r.Intn(5) == 0 {
			c.Rules = nil // a command that was not told
		}
	}
	jobs := plan(listed, planned, c, force, limits{held: held, incomplete: incomplete, tombstones: tombstones, sure: planned.UnixMilli()})
	taken := map[ulid.ULID]bool{}
	for _, j := range jobs {
		require.True(m.t, gapless(j.Inputs, visible(listed)))
		require.True(m.t, slices.IsSortedFunc(j.Inputs, block.Compare))
		for _, in := range j.Inputs {
			require.False(m.t, taken[in.ULID], "jobs of one plan are disjoint")
			taken[in.ULID] = true
		}
	}
	if len(jobs) == 0 {
		return false
	}
	r := &modelRunner{job: jobs[m.r.Intn(len(jobs))]}
	seen := map[window]bool{}
	for _, in := range r.job.Inputs {
		for k := range m.bucket[in.ULID].samples {
			seen[windowAt(k.t, r.job.Width)] = true
		}
	}
	if in := r.job.Inputs[0]; r.job.Kind == Erase {
		seen = map[window]bool{{in.MinTime, in.MaxTime}: true}
	}
	r.windows = slices.SortedFunc(maps.Keys(seen), func(a, b window) int { return int((a.min - b.min) / windowMillis) })
	m.runners[i] = r
	m.log("runner %d starts %s %s with %d windows, replaces %v", i, r.job.Kind, r.job.ID, len(r.windows), r.job.Replaces())
	return true
}

// work lets runner i do one output.
func (m *model) work(i int) {
	r := m.runners[i]
	w := r.windows[0]
	if r.windows = r.windows[1:]; len(r.windows) > 0 {
		m.output(i, r, w, nil)
		return
	}
	m.runners[i] = nil
	for _, w := range slices.Backward(append(r.done, w)) {
		if m.output(i, r, w, r.job.Replaces()) {
			return
		}
	}
	for _, id := range r.job.Replaces() {
		if b := m.bucket[id]; b != nil {
			b.marked = true
		}
	}
	m.log("runner %d marks what has no samples", i)
}

// output writes one output; it is false where that would have no samples.
func (m *model) output(i int, r *modelRunner, w window, replaces []ulid.ULID) bool {
	r.done = append(r.done, w)
	b := &modelBlock{meta: r.job.outputMeta(w, replaces), samples: map[modelKey]int{}}
	for _, in := range r.job.contributors(w) {
		src, ok := m.bucket[in.ULID]
		if !ok {
			m.log("runner %d gives up, %s is gone", i, in.ULID)
			m.runners[i] = nil
			return true
		}
		for k, v := range without(src.samples, r.job.takes(&in, w)) {
			if k.t >= w.min && k.t < w.max {
				b.samples[k] = v
			}
		}
	}
	b.meta.Stats.NumSamples = uint64(len(b.samples))
	if len(b.samples) == 0 {
		return false
	}
	if there, ok := m.bucket[b.meta.ULID]; ok {
		require.Equal(m.t, there.samples, b.samples, "blocks of the same id are the same")
	} else {
		m.bucket[b.meta.ULID] = b
	}
	m.log("runner %d writes %s, commit %v", i, b, replaces != nil)
	return true
}

// settle forgets tombstones of which nothing is left, when no job that was begun before can be under way.
func (m *model) settle() {
	if m.runners != [2]*modelRunner{} {
		return
	}
	l := &listing{writers: map[string]writerState{}}
	var newest uint64
	for _, b := range m.listed() {
		l.all = append(l.all, b.Meta)
		_, gen := b.Meta.Generations()
		newest = max(newest, gen)
	}
	l.writers[""] = writerState{labels: writerA, newest: newest}
	n := len(m.inBucket)
	settled := func(t *tombstone.Tombstone) bool {
		return slices.Contains(m.inBucket, t) && l.uploadedAfter(t) && !l.left(t)
	}
	m.deleted = slices.DeleteFunc(m.deleted, settled)
	m.inBucket = slices.DeleteFunc(m.inBucket, settled)
	m.log("%d tombstones are settled", n-len(m.inBucket))
}

func (m *model) mark() {
	for _, id := range superseded(m.listed()) {
		m.bucket[id].marked = true
	}
}

func (m *model) deleteOne() {
	for _, id := range slices.SortedFunc(maps.Keys(m.bucket), ulid.ULID.Compare) {
		if m.bucket[id].marked && m.r.Intn(2) == 0 {
			delete(m.bucket, id)
			m.log("delete %s", id)
			return
		}
	}
}

// answer merges blocks as queries do.
func (m *model) answer(metas []block.Meta) map[modelKey]int {
	metas = slices.Clone(metas)
	slices.SortFunc(metas, block.Compare)
	out := map[modelKey]int{}
	for _, meta := range metas {
		maps.Copy(out, without(m.bucket[meta.ULID].samples, m.concerning(&meta)))
	}
	return out
}

// concerning are the tombstones that queries apply to a block.
func (m *model) concerning(b *block.Meta) (ts []*tombstone.Tombstone) {
	for _, t := range m.deleted {
		effect := t.On(b.Stored())
		require.NotEqual(m.t, tombstone.Mixed, effect, "%s is older than some of %s", t.ID, b.ULID)
		if effect == tombstone.Whole {
			ts = append(ts, t)
		}
	}
	return ts
}

func (m *model) check() {
	var all []block.Meta
	for _, l := range m.listed() {
		all = append(all, l.Meta)
	}
	require.Equal(m.t, m.kept(m.expected()), m.kept(m.answer(block.Visible(all))), "what is visible")
	require.Equal(m.t, m.kept(m.expected()), m.kept(m.answer(all)), "replaced blocks do no harm")
}

func (m *model) step() {
	i := m.r.Intn(2)
	switch n := m.r.Intn(23); {
	case n < 3:
		m.seal()
	case n < 7:
		m.upload()
	case n < 14:
		if m.runners[i] == nil {
			bad := m.r.Intn(60)
			m.start(i, m.r.Intn(3) == 0, func(b *block.Meta) bool { return int(b.ULID[15])%60 == bad })
		} else {
			m.work(i)
		}
	case n < 15:
		if m.runners[i] != nil {
			m.log("runner %d dies", i)
		}
		m.runners[i] = nil
	case n < 16:
		m.mark()
	case n < 17:
		m.deleteOne()
	case n < 18:
		m.now = m.now.Add(time.Duration(m.r.Intn(5)) * time.Hour)
	case n < 21 && m.deletes:
		m.delete()
	case n < 22:
		m.uploadTombstones()
	case n < 23:
		m.settle()
	}
}

// finish plans and works until nothing is due and everything that was replaced is gone.
func (m *model) finish() {
	m.last, m.now = true, m.now.Add(48*time.Hour)
	for len(m.uploads) > 0 {
		m.upload()
	}
	m.uploadTombstones()
	m.runners = [2]*modelRunner{}
	for n := 0; m.start(0, true, nil); n++ {
		require.Less(m.t, n, 1000, "planning comes to an end")
		for m.runners[0] != nil {
			m.work(0)
			m.check()
		}
	}
	m.mark()
	for _, l := range m.listed() {
		if l.DeletionMark != nil {
			delete(m.bucket, l.Meta.ULID)
		}
	}
	m.check()
	m.checkCompact()
	m.checkDropped()
	m.settle()
	for _, t := range m.deleted {
		for _, l := range m.listed() {
			_, gen := l.Meta.Generations()
			require.LessOrEqual(m.t, gen, t.Generation, "of tombstones that are older than a block nothing is left")
		}
	}
	m.check()
}

// checkDropped expects nothing of series for whose rule a block is too old as a whole.
func (m *model) checkDropped() {
	for _, b := range m.bucket {
		for i := range m.rules {
			if r := &m.rules[i]; b.meta.MaxTime <= r.Horizon(m.now.UnixMilli()) {
				require.Contains(m.t, b.meta.Dropped(), r.Series)
				require.Equal(m.t, b.samples, without(b.samples, []*tombstone.Tombstone{r.Deletes(math.MaxInt64)}))
			}
		}
	}
}

// checkCompact expects one block for a day, and for a fortnight one and what waits to be merged with it: more than one block
// only where the large one stands between them.
func (m *model) checkCompact() {
	byWindow := map[window][]block.Meta{}
	for _, l := range m.listed() {
		w := windowAt(l.Meta.MinTime, fortnightMillis)
		level := fortnights.level
		if w.max > m.now.UnixMilli() {
			w, level = windowAt(l.Meta.MinTime, dayMillis), days.level
		}
		require.Equal(m.t, level, l.Meta.Level())
		byWindow[w] = append(byWindow[w], l.Meta)
	}
	for w, metas := range byWindow {
		if w.max-w.min == dayMillis {
			require.Len(m.t, metas, 1, "one block a day is left")
			continue
		}
		largest := slices.MaxFunc(metas, func(a, b block.Meta) int { return cmp.Compare(a.Stats.NumSamples, b.Stats.NumSamples) })
		rest := slices.DeleteFunc(slices.Clone(metas), func(b block.Meta) bool { return b.ULID == largest.ULID })
		if len(rest) > 1 {
			slices.SortFunc(rest, block.Compare)
			require.False(m.t, gapless(rest, metas), "late samples of %s are gathered", w)
		}
	}
}

func TestAnyInterleavingKeepsTheAnswer(t *testing.T) {
	runs, first := 150, int64(1)
	if testing.Short() || !thorough {
		runs = 30
	}
	for seed := first; seed < first+int64(runs); seed++ {
		ok := t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			m := newModel(t, seed)
			defer func() {
				if t.Failed() {
					for _, line := range m.history {
						t.Log(line)
					}
				}
			}()
			for range 150 {
				m.step()
				m.check()
			}
			m.finish()
		})
		if !ok {
			return
		}
	}
}
