package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/claim"
)

// A writer's claim in the bucket keeps a second live writer with the same external labels from uploading: generations of two sequences under one
// set of labels would have no order of acceptance. While another writer is in the way, writes are refused too, for the sender to keep them: what is stored in
// the wrong place is found by nobody. Before the bucket has told, as when it is away at the start, they are accepted; so they are while the
// claim of this very data path, from elsewhere, is waited for.

const (
	// instanceFile names the data path, wherever it is moved to.
	instanceFile    = "instance.json"
	instanceVersion = 1
	// releaseTime is how long an engine that stops tries to give up its claim: it has a second for all.
	releaseTime = 500 * time.Millisecond
	// refusedFor is after how long senders are asked to come again while another writer is in the way.
	refusedFor = 30 * time.Second
)

// instance is the content of instanceFile.
type instance struct {
	Version int       `json:"version"`
	ID      ulid.ULID `json:"instance"`
}

// openClaim makes the claimant of a data path whose lock is held.
func (e *Engine) openClaim(d *dataPath) error {
	id, err := readInstance(filepath.Join(d.path, instanceFile))
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		e.logger.Warn("the host's name is not known; the claim in the bucket does not tell it", "err", err)
	}
	times := e.cfg.claims
	if times == (claim.Times{}) {
		times = claim.DefaultTimes()
	}
	d.identity = claim.Identity{Instance: id, Place: placeOf(d, host), Host: host, PID: os.Getpid()}
	d.claim = claim.New(claim.Options{
		Bucket: d.bucket, Labels: e.cfg.Storage.externalLabels(), Times: times, Now: e.cfg.clock, Identity: d.identity,
	})
	return nil
}

// withinDataPath is the place of all whose bucket is a part of their data path: where that is copied or moved, the bucket goes along.
const withinDataPath = "the data path that the bucket is in"

// placeOf names the lock that this process holds, such that a process which held the one of that name earlier is dead: a file of this running
// system, or where that is not known a path of this host.
func placeOf(d *dataPath, host string) string {
	if dir, ok := d.bucket.(*block.DirBucket); ok && partOf(dir.Root(), d.path) {
		return withinDataPath
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if id := d.lock.identity(); err == nil && id != "" {
		return strings.TrimSpace(string(boot)) + " " + id
	}
	if host == "" {
		return ""
	}
	return host + " " + d.path
}

// partOf tells whether a folder, which may not have been made yet, is below another, on the same disk, and not elsewhere by a link.
func partOf(dir, path string) bool {
	target, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, os.ErrNotExist) {
		_, err = os.Lstat(dir)
		return errors.Is(err, os.ErrNotExist) && within(dir, path)
	}
	if err != nil {
		return false
	}
	path, err = filepath.EvalSymlinks(path)
	return err == nil && within(target, path) && device(target) == device(path)
}

// readInstance reads the data path's name, or gives it one.
func readInstance(name string) (string, error) {
	i := instance{Version: instanceVersion, ID: ulid.Make()}
	raw, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		if raw, err = json.Marshal(i); err != nil {
			return "", fmt.Errorf("encode the data path's name: %w", err)
		}
		return i.ID.String(), writeFile(name, raw)
	}
	if err == nil {
		err = json.Unmarshal(raw, &i)
	}
	if err == nil && i.Version != instanceVersion {
		err = fmt.Errorf("has format version %d, this version of Millrace reads %d", i.Version, instanceVersion)
	}
	if err != nil {
		return "", fmt.Errorf("read the data path's name from %s (without the file, it gets a new one): %w", name, err)
	}
	return i.ID.String(), nil
}

// claimOnSchedule renews the claim, or looks whether it may be had, until ctx ends. Two that try at the same time withdraw both; the time
// in between is not the same for them.
func (e *Engine) claimOnSchedule(ctx context.Context) {
	every := claim.DefaultTimes().Renew
	if t := e.cfg.claims.Renew; t != 0 {
		every = t
	}
	for ctx.Err() == nil {
		sleep(ctx, time.Duration((0.8+0.2*rand.Float64())*float64(every)))
		if err := e.stepClaim(ctx); err != nil && ctx.Err() == nil {
			e.logger.Warn("the writer's claim in the bucket could not be looked after", "err", err)
		}
	}
}

// stepClaim renews the claim, or looks whether it may be had, and lets health, writes and metrics know.
func (e *Engine) stepClaim(ctx context.Context) error {
	err := e.data.claim.Step(ctx)
	e.publishClaim() // whatever has become of the step: another may have found out more meanwhile
	return err
}

// publishClaim lets health, writes and metrics know how the claim stands. Several goroutines take steps; as each asks for the state only when it has the
// turn to publish, none puts an earlier one in the place of a later one.
func (e *Engine) publishClaim() {
	e.publishing.Lock()
	defer e.publishing.Unlock()
	state, problem := e.data.claim.Standing()
	if state != e.published {
		e.logger.Info("the writer's claim in the bucket", "state", state, "before", e.published)
		e.published = state
	}
	switch state {
	case claim.Refused:
		e.refusal.Store(&problem)
		e.report("writer", problem)
	case claim.Waiting:
		e.refusal.Store(nil)
		e.report("writer", problem)
	default: // what else is in the way is the bucket's problem
		e.refusal.Store(nil)
		e.report("writer", nil)
	}
	held := 0.0
	if state == claim.Held {
		held = 1
		signal(e.uploadable)
	}
	e.metrics.claimHeld.Set(held)
}

// errNotHeld is why nothing is uploaded without a claim.
var errNotHeld = errors.New("nothing is uploaded")

// holdClaim returns a context for uploads, which ends when the claim does. number changes whenever others may have uploaded in between. What waits is
// uploaded after a renewal only: a virtual machine that stood still, with all its clocks, cannot tell otherwise.
func (e *Engine) holdClaim(ctx context.Context) (held context.Context, done func(), number uint64, err error) {
	c := e.data.claim
	var failed error
	if _, err := c.Held(); err != nil || e.firstLocal() != nil {
		failed = e.stepClaim(ctx)
	}
	held, done, number, err = c.Hold(ctx)
	switch {
	case err == nil: // though a renewal may have failed: the upload will show whether the bucket is there
		return held, done, number, nil
	case failed != nil:
		return nil, nil, 0, failed
	}
	return nil, nil, 0, fmt.Errorf("%w: %w", errNotHeld, err)
}

// stillHeld tells whether a claim is the one that was held, and did not come back meanwhile.
func (e *Engine) stillHeld(number uint64) error {
	now, err := e.data.claim.Held()
	if err == nil && now != number {
		err = errors.New("others may have written to the bucket in between")
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errNotHeld, err)
	}
	return nil
}

// mayCompact tells whether batch jobs may be run: not under labels that another writer has, who runs them.
func (e *Engine) mayCompact() bool {
	s := e.data.claim.Status().State
	return s != claim.Refused && s != claim.Waiting
}

// releaseClaim lets the next writer begin at once. It must be called when nothing is being uploaded any more; where an upload was cut off, a part of it may still
// arrive, and the claim is left to expire.
func (e *Engine) releaseClaim() {
	if e.data == nil || e.data.cutOff.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	if err := e.data.claim.Release(ctx); err != nil {
		e.logger.Warn("the writer's claim in the bucket could not be given up; another data path has to wait for its end", "err", err)
	}
}
