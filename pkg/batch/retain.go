package batch

import (
	"fmt"
	"math"
	"slices"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/retention"
	"github.com/millrace/millrace/pkg/tombstone"
)

// Retention rules hide samples one by one, as the clock goes. Blocks lose them all at once, and for good, so by a time that is sure (see clock): an output that
// has become too old for a rule as a whole, when the job is planned, is made without the series that match, and says so in its meta.json. What is too old only in part stays whole.
// So what a block holds depends on which rules it has outlived, not on the minute of the plan, and a rule makes a block be written anew once.

// drop is a retention rule in a job: outputs that end at its time or before are made without the series that match.
type drop struct {
	retention.Rule
	before int64 // ms
}

// setDrops tells a job the rules as they stand at a time that is sure.
func (j *Job) setDrops(rules retention.Rules, sure int64) {
	for i := range rules {
		if r := rules[i]; !slices.ContainsFunc(j.drops, func(d drop) bool { return d.ID == r.ID }) { // of the same series the first has the smallest age
			j.drops = append(j.drops, drop{r, r.Horizon(sure)})
		}
	}
}

// dropsFrom returns the rules whose series do not go into an output for w, but for those that all contributors are without already.
func (j *Job) dropsFrom(w window, contributors []block.Meta) []drop {
	var out []drop
	for _, d := range j.drops {
		if w.max <= d.before && slices.ContainsFunc(contributors, func(m block.Meta) bool { return !slices.Contains(m.Dropped(), d.Series) }) {
			out = append(out, d)
		}
	}
	return out
}

// dropped returns the selectors of which no series is in an output for w. It is sorted.
func (j *Job) dropped(w window, contributors []block.Meta) []string {
	out := slices.Clone(contributors[0].Dropped())
	for _, m := range contributors[1:] {
		out = slices.DeleteFunc(out, func(s string) bool { return !slices.Contains(m.Dropped(), s) })
	}
	for _, d := range j.dropsFrom(w, contributors) {
		out = append(out, d.Series)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// dropKey is what ids of outputs depend on beside the inputs: which series were dropped.
func (j *Job) dropKey(w window, contributors []block.Meta) []byte {
	drops := j.dropsFrom(w, contributors)
	if len(drops) == 0 {
		return nil // as it was before there were rules
	}
	texts := make([]string, 0, len(drops))
	for _, d := range drops {
		texts = append(texts, d.Series)
	}
	slices.Sort(texts)
	key := []byte("dropped\x00")
	for _, text := range texts {
		key = append(append(key, text...), 0)
	}
	return key
}

// takes returns what is taken out of an input for w: what was deleted, and what retention rules drop.
func (j *Job) takes(m *block.Meta, w window) []*tombstone.Tombstone {
	all := j.erases(m)
	for _, d := range j.dropsFrom(w, []block.Meta{*m}) {
		all = append(all, d.Deletes(math.MaxInt64))
	}
	return all
}

// outlived says whether all of a block is too old for a rule that was not applied to it.
func (p *planner) outlived(m *block.Meta) bool {
	return slices.ContainsFunc(p.config.Rules, func(r retention.Rule) bool {
		return m.MaxTime <= r.Horizon(p.sure) && !slices.Contains(m.Dropped(), r.Series) && !p.void[pair{r.ID, m.ULID}]
	})
}

// dropAgain lets a job that makes old anew drop what was dropped from it, whether there still is a rule for it or not.
func (j *Job) dropAgain(old *block.Meta) error {
	for _, series := range old.Dropped() {
		r, err := retention.New(series, 0)
		if err != nil {
			return fmt.Errorf("what was dropped from it: %w", err)
		}
		j.drops = append(j.drops, drop{r, math.MaxInt64})
	}
	return nil
}
