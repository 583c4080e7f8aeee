package engine

import (
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/millrace/millrace/pkg/batch"
)

// callKind is that of a call for batch work among the jobs. What it does in the bucket are jobs of their own.
const callKind batch.Kind = "run"

// callsKept is how many calls are remembered, so that whoever made one finds out how it ended.
const callsKept = 100

// calls are the calls for batch work, oldest first. The lock guards all that is in them.
//
// Those that nobody waits for are worked on one after the other, and at most one waits for its turn: whoever calls meanwhile wants nothing that it will
// not do, and joins it.
type calls struct {
	mu   sync.Mutex
	all  []*batch.JobStatus
	next *batch.JobStatus // waits for its turn
	busy bool             // there is a goroutine that works on them
}

// join returns the call that waits for its turn, a new one if there is none, and whether a goroutine has to be started that works on it.
func (c *calls) join(now time.Time) (s *batch.JobStatus, start bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = c.add(now)
	}
	start, c.busy = !c.busy, true
	return c.next, start
}

// take returns the call whose turn it is; nil, and the goroutine has to end, if there is none.
func (c *calls) take() *batch.JobStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.next
	c.next, c.busy = nil, s != nil
	return s
}

func (c *calls) begin(now time.Time) *batch.JobStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.add(now)
}

// add is called with the lock.
func (c *calls) add(now time.Time) *batch.JobStatus {
	s := &batch.JobStatus{ID: ulid.Make().String(), Kind: callKind, State: batch.Running, Started: now, Inputs: []ulid.ULID{}, Outputs: []ulid.ULID{}}
	c.all = append(c.all, s)
	for i := 0; len(c.all) > callsKept && i < len(c.all); {
		if c.all[i].State == batch.Running {
			i++ // it has to be found as long as it runs
			continue
		}
		c.all = slices.Delete(c.all, i, i+1)
	}
	return s
}

func (c *calls) detail(s *batch.JobStatus, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Detail = text
}

func (c *calls) end(s *batch.JobStatus, now time.Time, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.State, s.Finished = batch.Done, now
	if err != nil {
		s.State, s.Error = batch.Failed, err.Error()
		return
	}
	s.Progress, s.Detail = 1, ""
}

// status returns what is known of the calls, newest first.
func (c *calls) status() []batch.JobStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]batch.JobStatus, 0, len(c.all))
	for _, s := range slices.Backward(c.all) {
		out = append(out, *s)
	}
	return out
}
