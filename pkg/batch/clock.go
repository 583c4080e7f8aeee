package batch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"
)

// A clock that is far ahead looks like any other until somebody has put it back. So what is gone for good goes by a time that is sure: runs of batch jobs have read
// the clock again and again since, over a day, and it was not put back. The readings are in the bucket, for runs in all processes. The one whose clock is behind takes back
// what others read: no time is sure that a clock has not reached which was read within a day. Of two that write at once one is lost: a
// reading, which the next run takes, or that one was taken back, which the next run does again. To become sure so, it would have to be lost in every run of a day.

const (
	// clockObject is where a bucket holds what runs have read of the clock. It is beside writers' claims and leases, which readers of blocks pass over.
	clockObject  = "millrace/clock.json"
	clockVersion = 1
	// maxClockObject is how many bytes are read of it; it has some 150.
	maxClockObject = 4096
	// A reading is sure when so many later ones were taken, each a part of the grace after the one before. With fewer, two jumps ahead would do for a
	// clock that is wrong; with more, runs that are days apart would wait for longer.
	confirmations = 5
	readingGap    = clockGrace / confirmations
)

// clock is what runs have read of the clock, in milliseconds since 1970.
type clock struct {
	Version int `json:"version"`
	// Sure is the latest reading that is sure; 0 is none, and no clock's time.
	Sure int64 `json:"sure"`
	// Readings are those that are not sure yet, the oldest first. None is before Sure, and there is one at least.
	Readings []int64 `json:"readings"`
}

// parseClock is the inverse of what is stored.
func parseClock(raw []byte) (clock, error) {
	var c clock
	if err := json.Unmarshal(raw, &c); err != nil {
		return clock{}, fmt.Errorf("decode %s: %w", clockObject, err)
	}
	switch n := len(c.Readings); {
	case c.Version != clockVersion:
		return clock{}, fmt.Errorf("%s has version %d, not %d", clockObject, c.Version, clockVersion)
	case n == 0 || n > confirmations || c.Sure < 0 || c.Sure > c.Readings[0] || !slices.IsSorted(c.Readings):
		return clock{}, fmt.Errorf("%s is damaged: its readings are not in order", clockObject)
	}
	return c, nil
}

// read returns what is known when the clock says now.
func (c clock) read(now int64) clock {
	next := clock{Version: clockVersion}
	if c.Sure <= now { // or it was put back by a day and more
		next.Sure = c.Sure
	}
	next.Readings = slices.DeleteFunc(slices.Clone(c.Readings), func(t int64) bool { return t > now })
	if n := len(next.Readings); n == 0 || now-next.Readings[n-1] >= readingGap.Milliseconds() {
		next.Readings = append(next.Readings, now)
	}
	if len(next.Readings) > confirmations {
		next.Sure, next.Readings = next.Readings[0], next.Readings[1:]
	}
	return next
}

// keepsClock says whether something of the settings goes by a time that is sure: what retention rules drop, and blocks beyond a retention of a day or more.
func (u *run) keepsClock() bool { return len(u.config.Rules) > 0 || u.config.Retention >= clockGrace }

// behindFor is from when on a clock that is behind is told of: that of two hosts always differs by a little.
const behindFor = time.Minute

// readClock finds out up to which time the clock is sure. With dry it writes nothing. After an error nothing is sure.
func (u *run) readClock(ctx context.Context, dry bool) error {
	before, err := u.storedClock(ctx)
	if err != nil {
		return err
	}
	now := u.now().UnixMilli()
	c := before.read(now)
	if n := len(before.Readings); n > 0 && before.Readings[n-1]-now > behindFor.Milliseconds() {
		u.log.Warn("the clock is behind what a run has read of it before: what retention does not keep is removed when it has gone on for a day",
			"now", time.UnixMilli(now).UTC(), "before", time.UnixMilli(before.Readings[n-1]).UTC())
	}
	if !dry && !slices.Equal(c.Readings, before.Readings) { // nothing else changes alone
		if err := u.storeClock(ctx, c); err != nil {
			return err
		}
	}
	u.sure = c.Sure
	return nil
}

// storedClock returns what earlier runs have read, which is nothing where that cannot be understood.
func (u *run) storedClock(ctx context.Context) (clock, error) {
	body, err := u.o.Bucket.Get(ctx, clockObject)
	if u.o.Bucket.IsObjNotFoundErr(err) {
		return clock{}, nil
	}
	if err != nil {
		return clock{}, fmt.Errorf("get %s: %w", clockObject, err)
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, maxClockObject))
	if err != nil {
		return clock{}, fmt.Errorf("get %s: %w", clockObject, err)
	}
	c, err := parseClock(raw)
	if err != nil {
		u.log.Warn("what earlier runs have read of the clock is begun anew: what retention does not keep is removed in a day", "err", err)
	}
	return c, nil
}

func (u *run) storeClock(ctx context.Context, c clock) error {
	raw, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode %s: %w", clockObject, err)
	}
	if err := u.o.Bucket.Upload(ctx, clockObject, bytes.NewReader(raw)); err != nil {
		return fmt.Errorf("put %s: %w", clockObject, err)
	}
	return nil
}
