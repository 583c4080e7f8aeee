package serving

import (
	"slices"
	"sync"

	"github.com/oklog/ulid/v2"

	"github.com/millrace/millrace/pkg/tombstone"
)

// deleted is what is hidden of members: those of which the same is hidden share it, as most do. It does not change. nil is nothing.
type deleted struct {
	by     []*tombstone.Tombstone // in order of their ids
	filter func() *tombstone.Filter
}

func deletedBy(by []*tombstone.Tombstone) *deleted {
	if len(by) == 0 {
		return nil
	}
	return &deleted{by: by, filter: sync.OnceValue(func() *tombstone.Filter { return tombstone.FilterOf(by) })}
}

// Filter is made when the first query wants it.
func (d *deleted) Filter() *tombstone.Filter {
	if d == nil {
		return nil
	}
	return d.filter()
}

// effective returns which of the tombstones have an effect on a source. What they do to it never changes.
func effective(s Source, all []*tombstone.Tombstone) (own []*tombstone.Tombstone) {
	for _, t := range all {
		if s.DeletedBy(t) != tombstone.None {
			own = append(own, t)
		}
	}
	return own
}

// change is what becomes of deletions when tombstones come and go: each source is asked for those that come, and nothing else.
type change struct {
	come []*tombstone.Tombstone
	gone map[ulid.ULID]bool
	made map[changed]*deleted
}

// changed is what a change makes of one state for members on which the same tombstones that come have an effect.
type changed struct {
	before *deleted
	come   string // their ids
}

// changeOf compares two lists in order of ids.
func changeOf(before, after []*tombstone.Tombstone) *change {
	c := &change{gone: map[ulid.ULID]bool{}, made: map[changed]*deleted{}}
	for _, t := range before {
		if _, stays := slices.BinarySearchFunc(after, t, tombstone.Compare); !stays {
			c.gone[t.ID] = true
		}
	}
	for _, t := range after {
		if _, known := slices.BinarySearchFunc(before, t, tombstone.Compare); !known {
			c.come = append(c.come, t)
		}
	}
	return c
}

func (c *change) apply(s Source, before *deleted) *deleted {
	come := effective(s, c.come)
	if len(come) == 0 && (before == nil || len(c.gone) == 0) {
		return before
	}
	key := changed{before, keyOf(come)}
	after, known := c.made[key]
	if !known {
		after = deletedBy(c.merged(before, come))
		c.made[key] = after
	}
	return after
}

func (c *change) merged(before *deleted, come []*tombstone.Tombstone) []*tombstone.Tombstone {
	all := slices.Clone(come)
	if before != nil {
		all = slices.Concat(before.by, come)
	}
	all = slices.DeleteFunc(all, func(t *tombstone.Tombstone) bool { return c.gone[t.ID] })
	slices.SortFunc(all, tombstone.Compare)
	return all
}

func keyOf(ts []*tombstone.Tombstone) string {
	key := make([]byte, 0, len(ts)*len(ulid.ULID{}))
	for _, t := range ts {
		key = append(key, t.ID[:]...)
	}
	return string(key)
}
