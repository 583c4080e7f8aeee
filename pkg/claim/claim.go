// Package claim lets one writer at a time bring blocks with the same external labels to a bucket. Two of them would each count generations by
// itself, and the order of acceptance, by which a duplicate sample is decided, would be lost. Leases of batch jobs are claims, too, in a folder of their own.
//
// The one idea: object stores have no lock, but what was written is listed. So every process writes an object of its own only, named after a term
// and after itself, and looks at the others' after it has written. Of two that claim at the same time, whichever writes last sees the other; a
// claim is held by who saw nobody else. It is renewed now and then, by writing it once more and looking again, and lets its holder act for
// Times.Valid from then on. Who finds another's claim watches it. One that does not change for longer than that, while the watcher could reach the
// bucket all the time, has a holder that does not act any more: it may be taken over, in a higher term. A holder that sees a higher term has lost.
//
// So two never act at once. Let A hold and B take over. B found A's object unchanged from one look to another, Times.Expire apart: A's latest
// renewal began before the first of them, and what it allowed had ended by the second. If A renews after that, A looks after it has
// written, and so does B: one of them sees what the other wrote, as the store executes one after the other. B withdraws when A's object has changed; A has
// lost when it sees B's. (A change that says that A has given up is none; nor is any of a predecessor, see below, whose last request may arrive
// late.) This rests on clocks that run (that of one process is
// never compared with another's; a machine that was suspended is told so by its time of day), and on a store whose listing shows every write that
// has ended, as those of S3, GCS, Azure and of a folder do. On a store that promises less it is an attempt.
//
// Objects that were removed by hand are no claims any more: remove none while its writer runs.
//
// A process that ends in good order leaves its claim behind as released. A predecessor in the same place (Identity.Place), which cannot be
// alive, need not be waited for. The data path may also have been moved, or have been copied while its original lives: a claim that was made with
// the same data path elsewhere is watched for Times.Inherit.
//
// # Concurrency
//
// A Claimant may be used by any number of goroutines. Steps take turns (turn, held during requests); mu guards what they found out, and is held
// for no request. There are no goroutines but those that Hold starts, which end with the context that it returns.
package claim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
)

// Identity says who claims.
type Identity struct {
	// Instance is the data path's: random, made once and kept in it.
	Instance string
	// Place is the same for two processes only where a lock has made sure that the earlier one is dead. Empty matches nothing.
	Place string
	// Host and PID are for people.
	Host string
	PID  int
}

// Times are how long things take. Valid must be shorter than Inherit and Expire by what a request may last after it was given up.
type Times struct {
	Renew   time.Duration // from one step to the next
	Valid   time.Duration // how long a renewal lets its writer act
	Inherit time.Duration // how long a claim of the same data path elsewhere must not have changed to be taken over
	Expire  time.Duration // how long one of another data path must not have
	Ask     time.Duration // how long one step may last
	Poll    time.Duration // how often the context of Hold looks at the clock
}

// DefaultTimes returns what is right for a store that is far away.
func DefaultTimes() Times {
	return Times{
		Renew: 30 * time.Second, Valid: 90 * time.Second, Inherit: 2 * time.Minute, Expire: 10 * time.Minute,
		Ask: 20 * time.Second, Poll: time.Second,
	}
}

// Options are what a claimant needs.
type Options struct {
	Bucket   objstore.Bucket
	Labels   map[string]string // what is claimed: the external labels of the blocks
	Folder   string            // where claims of its kind are in the bucket, Folder if empty
	Identity Identity
	Times    Times
	// Now is a clock that is not set back, time.Now if nil.
	Now func() time.Time
	// Wall is the time of day, time.Now if nil. Unlike Now it goes on while the machine is suspended.
	Wall func() time.Time
}

// State is how a claim stands.
type State string

// The states of a claim.
const (
	Unknown State = "unknown" // the bucket has not been reached yet
	Held    State = "held"
	Lapsed  State = "lapsed"  // ours as far as is known, but not renewed for so long that another may have taken it over
	Waiting State = "waiting" // for the claim of the same data path elsewhere, or for others who tried at the same time
	Refused State = "refused" // another writer has it, or had it so recently that it may be alive
)

// Holder is who has a claim that is in the way, as its object says.
type Holder struct {
	Instance string    `json:"instance"`
	Host     string    `json:"host"`
	PID      int       `json:"pid"`
	Since    time.Time `json:"since"` // by that writer's clock
	// Alive says that the claim was renewed while it was watched.
	Alive bool `json:"alive"`
}

// Status is what is known of a claim.
type Status struct {
	State  State             `json:"state"`
	Labels map[string]string `json:"labels"`
	// Instance is one's own.
	Instance string     `json:"instance"`
	Since    *time.Time `json:"since"` // when it became one's own, null if it is not
	// Holder is who is in the way, null if nobody is.
	Holder *Holder `json:"holder"`
	// Until is when the holder's claim may be taken over if it is not renewed before.
	Until *time.Time `json:"until"`
}

// Claimant is one process's attempt to hold the claim of its labels.
type Claimant struct {
	o       Options
	dir     string
	session ulid.ULID

	turn   chan struct{} // held by the one who takes a step, who alone uses what follows
	closed bool
	name   string // of the own object, while it is believed to stand
	own    record
	seen   map[string]sight // by name of the object
	looked time.Time        // when the latest look ended

	mu       sync.Mutex
	holding  bool
	verified time.Time // when the latest renewal began
	day      time.Time // the same by the time of day
	holds    uint64    // how often the claim has become one's own
	since    time.Time // by the time of day
	state    State     // while it is not held
	holder   *Holder
	until    time.Time
}

// New returns a claimant that has asked for nothing yet.
func New(o Options) *Claimant {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Wall == nil {
		o.Wall = time.Now
	}
	return &Claimant{o: o, dir: folder(cmp.Or(o.Folder, Folder), o.Labels), session: ulid.Make(), turn: make(chan struct{}, 1), seen: map[string]sight{}, state: Unknown}
}

// Step renews the claim if it is one's own, and else looks whether it may be had. An error is one of the bucket; whether the claim is held is to
// be asked of Held.
func (c *Claimant) Step(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.o.Times.Ask)
	defer cancel()
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer c.leave()
	if c.closed {
		return errReleased
	}
	if c.name != "" {
		lost, err := c.renew(ctx)
		if !lost {
			return err
		}
		return errors.Join(err, c.acquire(ctx))
	}
	return c.acquire(ctx)
}

var errReleased = errors.New("the claim of the external labels was released")

func (c *Claimant) enter(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another look at the claims: %w", ctx.Err())
	}
}

func (c *Claimant) leave() { <-c.turn }

// renew writes the own object once more and then looks whether another has taken over.
func (c *Claimant) renew(ctx context.Context) (lost bool, err error) {
	began, day := c.o.Now(), c.timeOfDay()
	c.own.Renewals++
	c.own.Renewed = time.Now()
	if err := c.put(ctx, c.name, c.own); err != nil {
		return false, err
	}
	others, err := c.look(ctx)
	if err != nil {
		return false, err
	}
	for _, o := range others {
		if o.term > c.own.term {
			name := c.name
			c.name = ""
			c.mu.Lock()
			c.holding, c.state = false, Unknown
			c.mu.Unlock()
			return true, c.remove(ctx, name)
		}
	}
	c.mu.Lock()
	c.verified, c.day = began, day
	c.mu.Unlock()
	return false, c.tidy(ctx, others)
}

// acquire claims the labels unless another's claim is in the way.
func (c *Claimant) acquire(ctx context.Context) error {
	now, day := c.o.Now(), c.timeOfDay()
	before, err := c.look(ctx)
	if err != nil {
		return err
	}
	var (
		term     uint64
		inTheWay *object
	)
	for _, o := range before {
		term = max(term, o.term)
		if !c.over(o, now) && (inTheWay == nil || o.term > inTheWay.term) {
			inTheWay = o
		}
	}
	if inTheWay != nil {
		c.wait(inTheWay)
		return nil
	}
	r := newRecord(&c.o, term+1)
	name := c.objectName(term + 1)
	if err := c.put(ctx, name, r); err != nil {
		return errors.Join(err, c.withdraw(ctx, name))
	}
	after, err := c.look(ctx)
	if err != nil {
		return errors.Join(err, c.withdraw(ctx, name))
	}
	for _, o := range after {
		if was, ok := before[o.name]; (!ok || was.raw != o.raw) && !c.dead(o) {
			c.wait(o)
			return c.withdraw(ctx, name)
		}
	}
	c.name, c.own = name, r
	c.mu.Lock() // What the claim allows counts from before it was written, as that of a renewal does.
	c.holding, c.verified, c.day, c.since, c.holder = true, now, day, r.Since, nil
	c.holds++
	c.mu.Unlock()
	return c.tidy(ctx, after)
}

// over tells whether the writer of a claim does not act any more.
func (c *Claimant) over(o *object, now time.Time) bool {
	return c.dead(o) || now.Sub(c.seen[o.name].since) >= c.patience(o)
}

// dead tells whether the writer of a claim is known not to act any more, even if the object has just changed: the last request of a process may arrive
// when that has given it up, or is gone.
func (c *Claimant) dead(o *object) bool { return o.rec.Released || c.predecessor(o) }

// predecessor tells whether a lock has made sure that the writer of a claim is dead.
func (c *Claimant) predecessor(o *object) bool {
	return c.sameDataPath(o) && o.rec.Place == c.o.Identity.Place && o.rec.Place != ""
}

func (c *Claimant) sameDataPath(o *object) bool { return o.rec.Instance == c.o.Identity.Instance }

func (c *Claimant) patience(o *object) time.Duration {
	if c.sameDataPath(o) {
		return c.o.Times.Inherit
	}
	return c.o.Times.Expire
}

// wait notes whose claim is in the way.
func (c *Claimant) wait(o *object) {
	s := c.seen[o.name]
	h := &Holder{Instance: o.rec.Instance, Host: o.rec.Host, PID: o.rec.PID, Since: o.rec.Since, Alive: s.changed}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holder, c.until = h, time.Now().Add(c.patience(o)-c.o.Now().Sub(s.since))
	c.state = Refused
	if c.sameDataPath(o) && !s.changed {
		c.state = Waiting
	}
}

// withdrawTime is short, as a process that stops waits for it. What cannot be removed is watched by the others for Times.Expire.
const withdrawTime = 2 * time.Second

// withdraw removes an object that did not become a claim, whether or not it was written.
func (c *Claimant) withdraw(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
	defer cancel()
	return c.remove(ctx, name)
}

// tidy removes what a holder knows to be over: earlier terms, and what others left behind who died while they claimed.
func (c *Claimant) tidy(ctx context.Context, others map[string]*object) error {
	var errs []error
	for _, o := range others {
		if o.term < c.own.term || c.o.Now().Sub(c.seen[o.name].since) >= c.o.Times.Expire {
			errs = append(errs, c.remove(ctx, o.name))
		}
	}
	return errors.Join(errs...)
}

// Release gives the claim up, so that another need not wait for its end. Nothing must act on it any more. No step is taken afterwards.
func (c *Claimant) Release(ctx context.Context) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer c.leave()
	held := c.name != "" && !c.closed
	c.closed = true
	c.mu.Lock()
	c.holding, c.state = false, Unknown
	c.mu.Unlock()
	if !held {
		return nil
	}
	c.own.Released = true
	return c.put(ctx, c.name, c.own)
}

// Held returns nil while one may act on the claim, else why not. number says how often it has become one's own: where that has changed, others may
// have acted in between.
func (c *Claimant) Held() (number uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.holds, c.problem(c.stateNow())
}

// Standing returns the state and, unless that is Held, what is in the way, both of the same moment.
func (c *Claimant) Standing() (State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := c.stateNow()
	return state, c.problem(state)
}

// problem is called with mu.
func (c *Claimant) problem(state State) error {
	switch state {
	case Held:
		return nil
	case Unknown:
		return errors.New("whether another writer has the same external labels is not known yet: the bucket has not told")
	case Lapsed:
		return fmt.Errorf("the claim of the external labels could not be renewed for %s", c.sinceVerified().Round(time.Second))
	default:
		return c.inTheWay(state)
	}
}

// stateNow is called with mu.
func (c *Claimant) stateNow() State {
	switch {
	case !c.holding:
		return c.state
	case c.sinceVerified() >= c.o.Times.Valid:
		return Lapsed
	}
	return Held
}

// sinceVerified is called with mu. Now stands still on most systems while they are suspended, so the time of day counts, too, where it has gone
// on further. At worst, when it is set forward, a claim lapses until it is renewed.
func (c *Claimant) sinceVerified() time.Duration {
	return max(c.o.Now().Sub(c.verified), c.timeOfDay().Sub(c.day))
}

// timeOfDay is without the reading of a clock that stands still.
func (c *Claimant) timeOfDay() time.Time { return c.o.Wall().Round(0) }

func (c *Claimant) inTheWay(state State) error {
	until := fmt.Sprintf("if nothing is heard of it, it is taken for dead at %s", c.until.UTC().Format(time.TimeOnly+" MST"))
	who := fmt.Sprintf("on host %q (process %d) since %s", c.holder.Host, c.holder.PID, c.holder.Since.UTC().Format(time.RFC3339))
	switch {
	case state == Waiting:
		return fmt.Errorf("a process with this data path or a copy of it held the bucket %s; %s", who, until)
	case c.holder.Instance == c.o.Identity.Instance:
		return fmt.Errorf("a copy of this data path is in use %s and writes to the same bucket; stop one of the two and give it an empty data path", who)
	case c.holder.Alive:
		return fmt.Errorf("another writer with the same external labels %s writes to the bucket %s; each writer of a bucket needs an --external-label of its own",
			labelsText(c.o.Labels), who)
	}
	return fmt.Errorf("another writer with the same external labels %s held the bucket %s; %s", labelsText(c.o.Labels), who, until)
}

// Status returns what is known of the claim.
func (c *Claimant) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{State: c.stateNow(), Labels: maps.Clone(c.o.Labels), Instance: c.o.Identity.Instance}
	if c.holding {
		since := c.since
		s.Since = &since
	} else if c.holder != nil && c.state != Unknown {
		holder, until := *c.holder, c.until
		s.Holder, s.Until = &holder, &until
	}
	return s
}

// Hold returns a context for acting on the claim: it ends when the claim is not held any more. number is that of Held.
func (c *Claimant) Hold(ctx context.Context) (held context.Context, done func(), number uint64, err error) {
	number, err = c.Held()
	if err != nil {
		return nil, nil, number, err
	}
	held, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(c.o.Times.Poll)
		defer t.Stop()
		for {
			select {
			case <-held.Done():
				return
			case <-t.C:
			}
			if now, err := c.Held(); err != nil || now != number {
				cancel(cmp.Or(err, errLost))
				return
			}
		}
	})
	return held, func() { cancel(nil); wg.Wait() }, number, nil
}

var errLost = errors.New("the claim of the external labels was lost")

func labelsText(l map[string]string) string {
	text := ""
	for _, name := range slices.Sorted(maps.Keys(l)) {
		if text != "" {
			text += ", "
		}
		text += fmt.Sprintf("%s=%q", name, l[name])
	}
	return "{" + text + "}"
}
