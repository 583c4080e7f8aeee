package batch

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
)

// State is where a job stands.
type State string

// The states of a job.
const (
	Planned State = "planned"
	Running State = "running"
	Done    State = "done"
	Failed  State = "failed"
	// Abandoned jobs found that others had done their work.
	Abandoned State = "abandoned"
)

// historySize is how many ended jobs are remembered.
const historySize = 100

// JobStatus is what is known of a job. Times are zero where they are not known.
type JobStatus struct {
	ID      string      `json:"id"`
	Kind    Kind        `json:"kind"`
	State   State       `json:"state"`
	Inputs  []ulid.ULID `json:"inputs"`
	Outputs []ulid.ULID `json:"outputs"`
	// Detail says which time the job is about, and what it does just now.
	Detail   string    `json:"detail,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	// Progress is from 0 to 1.
	Progress float64 `json:"progress"`
	// Windows are the blocks that the job makes; 0 while that is not known.
	Windows     int64 `json:"windows"`
	WindowsDone int64 `json:"windowsDone"`
	// SeriesDone counts series that were read; one that several inputs or windows have counts in each. Rate is so many a second.
	SeriesDone int64   `json:"seriesDone"`
	Rate       float64 `json:"rate"`
	// Remaining is the estimated time to the end in seconds, null while there is none.
	Remaining *float64 `json:"remaining"`
	Error     string   `json:"error,omitempty"`
}

// QuarantinedBlock is a block that takes part in no job for now.
type QuarantinedBlock struct {
	ID ulid.ULID `json:"id"`
	// Until is when it is tried again.
	Until time.Time `json:"until"`
	Error string    `json:"error"`
}

// tracker is the progress of one job; the counters are written by the job and read by Status.
type tracker struct {
	status JobStatus // guarded by Runner.mu

	windows, windowsDone atomic.Int64
	series, seriesDone   atomic.Int64 // of the window at hand
	seriesBefore         atomic.Int64 // of the windows before it
}

// nextWindow begins to count the series of another window.
func (t *tracker) nextWindow(series int64) {
	t.seriesBefore.Add(t.seriesDone.Swap(0))
	t.series.Store(series)
}

// measure fills in what the counters tell at this moment. It is called with Runner.mu.
func (t *tracker) measure(s *JobStatus, now time.Time) {
	s.Progress = t.progress()
	s.Windows, s.WindowsDone = t.windows.Load(), t.windowsDone.Load()
	s.SeriesDone = t.seriesBefore.Load() + t.seriesDone.Load()
	seconds := now.Sub(s.Started).Seconds()
	if seconds <= 0 {
		return
	}
	s.Rate = float64(s.SeriesDone) / seconds
	if s.State == Running && s.Progress > 0 {
		remaining := seconds * (1 - s.Progress) / s.Progress
		s.Remaining = &remaining
	}
}

func (t *tracker) progress() float64 {
	windows := t.windows.Load()
	if windows == 0 {
		return 0
	}
	p := float64(t.windowsDone.Load())
	if n := t.series.Load(); n > 0 {
		p += min(1, float64(t.seriesDone.Load())/float64(n))
	}
	return min(1, p/float64(windows))
}

// Status returns planned and running jobs and the latest ones that have ended, newest first.
func (r *Runner) Status() []JobStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]JobStatus, 0, len(r.planned)+len(r.history)+1)
	if r.running != nil {
		s := r.running.status
		s.Outputs = slices.Clone(s.Outputs)
		r.running.measure(&s, r.now())
		out = append(out, s)
	}
	out = append(out, r.planned...)
	for _, v := range slices.Backward(r.history) {
		out = append(out, v)
	}
	return out
}

// Quarantined returns the blocks that take part in no job because they could not be read, in order of their ids.
func (r *Runner) Quarantined() []QuarantinedBlock {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]QuarantinedBlock, 0, len(r.quarantine))
	for _, q := range r.quarantine {
		out = append(out, q)
	}
	slices.SortFunc(out, func(a, b QuarantinedBlock) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	return out
}

// setPlanned replaces the list of jobs that wait.
func (r *Runner) setPlanned(jobs []Job) {
	planned := make([]JobStatus, 0, len(jobs))
	for i := range jobs {
		planned = append(planned, newStatus(&jobs[i], Planned))
	}
	r.mu.Lock()
	r.planned = planned
	r.mu.Unlock()
}

func newStatus(j *Job, state State) JobStatus {
	s := JobStatus{ID: j.ID, Kind: j.Kind, State: state, Detail: hull(j.Inputs).String(), Outputs: []ulid.ULID{}}
	for _, m := range j.Inputs {
		s.Inputs = append(s.Inputs, m.ULID)
	}
	return s
}

func (r *Runner) begin(j *Job) *tracker {
	t := &tracker{status: newStatus(j, Running)}
	t.status.Started = r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.planned = slices.DeleteFunc(r.planned, func(s JobStatus) bool { return s.ID == j.ID })
	r.running = t
	return t
}

// end files a job under history.
func (r *Runner) end(t *tracker, state State, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t.status.State, t.status.Finished = state, r.now()
	t.measure(&t.status, t.status.Finished)
	if state == Done {
		t.status.Progress = 1
		delete(r.failures, t.status.ID)
	}
	if err != nil {
		t.status.Error = err.Error()
	}
	r.running = nil
	r.history = append(r.history, t.status)
	if n := len(r.history) - historySize; n > 0 {
		r.history = slices.Delete(r.history, 0, n)
	}
}

func (r *Runner) addOutput(t *tracker, id ulid.ULID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t.status.Outputs = append(t.status.Outputs, id)
}
