package engine

import (
	"os"
	"runtime/debug"
	"sync"
)

// The collector lets garbage grow to a percentage of what is live before it collects. That is a matter of the whole process, so whoever wants another one
// for a while shares it with others; where wishes differ, that for less memory counts.
var collector gcPercent

const (
	// usualPercent is less than Go's own: most of what is live are samples, which never become garbage one by one.
	usualPercent = 75
	// thriftyPercent is for making blocks: beside a generation that fills the memory, what that leaves behind must not become as much again.
	thriftyPercent = 40
	// lavishPercent is for reading logs: almost nothing becomes garbage that is worth to be collected before all of it is read.
	lavishPercent = 400
)

type gcPercent struct {
	mu              sync.Mutex
	thrifty, lavish int // who wants it
	usual           int // while there is somebody
}

// setUsual sets the percentage of a process that has no GOGC in its environment.
func (g *gcPercent) setUsual() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if os.Getenv("GOGC") == "" && g.thrifty+g.lavish == 0 {
		debug.SetGCPercent(usualPercent)
	}
}

// save makes the collector thrifty until the returned function is called.
func (g *gcPercent) save() (end func()) { return g.want(&g.thrifty) }

// spend makes it lavish, unless somebody saves.
func (g *gcPercent) spend() (end func()) { return g.want(&g.lavish) }

func (g *gcPercent) want(count *int) (end func()) {
	g.change(count, 1)
	return func() { g.change(count, -1) }
}

func (g *gcPercent) change(count *int, by int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.thrifty+g.lavish == 0 {
		g.usual = debug.SetGCPercent(-1)
	}
	*count += by
	percent := g.usual
	switch {
	case g.usual < 0: // it was turned off, in favour of the limit of memory
	case g.thrifty > 0:
		percent = min(g.usual, thriftyPercent)
	case g.lavish > 0:
		percent = max(g.usual, lavishPercent)
	}
	debug.SetGCPercent(percent)
}
