package engine

import (
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// fallbackMemory is assumed where the system does not tell.
const fallbackMemory = 4 << 30

// fullBytes is the memory with which a generation is sealed early. Several may be in memory at once: one that is filled and some that are written.
func (e *Engine) fullBytes() int64 { return e.cfg.Speed.MemoryLimit / 4 }

func (e *Engine) full(g *generation) bool { return g.mem.Stats().Bytes > e.fullBytes() }

// memoryRefusal says why writes have to wait for memory, or nil. Sealed generations pile up when blocks cannot be written, or not as fast as
// samples arrive, and while logs are replayed. What is kept of a generation that has become blocks only spares memory as long as there is enough: it goes first.
func (e *Engine) memoryRefusal() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	held, sealed := e.expectedMemory(), 0
	for _, g := range e.generations {
		held += g.mem.Stats().Bytes
		if g.sealed {
			sealed++
		}
	}
	limit := e.cfg.Speed.MemoryLimit
	if len(e.generations) > 0 { // The others inherit from one that is counted itself.
		if oldest := e.generations[0].mem; held+oldest.Stats().Inherited > limit {
			oldest.Disinherit()
		}
	}
	if held <= limit {
		return nil
	}
	if n := len(e.unread); n > 0 {
		return fmt.Errorf("%d generations, %d of them in logs that are not replayed yet, will hold more memory than --speed.memory-limit=%s",
			len(e.generations)+n, n, sizeText(limit))
	}
	return fmt.Errorf("%d generations, %d of them sealed and not blocks yet, hold more memory than --speed.memory-limit=%s",
		len(e.generations), sealed, sizeText(limit))
}

// setMemoryLimit gives the runtime a soft limit, unless GOMEMLIMIT did, and returns the limit in force, in bytes. Without one the collector would
// let the heap grow to twice of what is live, whatever the machine has.
func setMemoryLimit(limit int64) int64 {
	if inForce := debug.SetMemoryLimit(-1); limit == 0 && inForce != math.MaxInt64 {
		return inForce
	}
	if limit == 0 {
		limit = availableMemory() / 10 * 9
	}
	debug.SetMemoryLimit(limit)
	return limit
}

// availableMemory is what the container or else the machine has.
func availableMemory() int64 {
	least := int64(math.MaxInt64)
	for _, name := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if raw, err := os.ReadFile(name); err == nil {
			if n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64); err == nil && n > 0 {
				least = min(least, n)
			}
		}
	}
	if raw, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(raw)) {
			rest, ok := strings.CutPrefix(line, "MemTotal:")
			if !ok {
				continue
			}
			if kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64); err == nil {
				least = min(least, kb<<10)
			}
		}
	}
	if least == math.MaxInt64 {
		return fallbackMemory
	}
	return least
}
