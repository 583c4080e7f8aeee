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
type calls struct {
	mu  sync.Mutex
	all []*batch.JobStatus
}

func (c *calls) begin(now time.Time) *batch.JobStatus {
	s := &batch.JobStatus{ID: ulid.Make().String(), Kind: callKind, State: batch.Running, Started: now, Inputs: []ulid.ULID{}, Outputs: []ulid.ULID{}}
	c.mu.Lock()
	defer c.mu.Unlock()
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
