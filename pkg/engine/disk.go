package engine

import (
	"fmt"
	"io/fs"
	"path/filepath"
)

// diskSpace asks the system; tests put another disk in its place.
var diskSpace = freeBytes

// reserveBytes stay free on the disk whatever the limit says, so that sealing, and others on the same disk, can go on.
const reserveBytes = 256 << 20

// diskUsage is what waits below the data path, and what it may take, measured every second.
type diskUsage struct {
	used, limit int64 // log and local blocks
	pending     int64 // what the generations in memory and in logs will need as blocks, beside these logs
	free        int64 // of the file system; -1 where it is not known
	reserve     int64
}

// refusal says why writes have to wait, or nil.
func (u *diskUsage) refusal() error {
	if u.used+u.pending > u.limit {
		return fmt.Errorf("local disk holds %d bytes that wait for the bucket, --storage.local-limit is %d", u.used, u.limit)
	}
	if u.free >= 0 && u.free < u.reserve+u.pending {
		return fmt.Errorf("the disk of the data path has %d bytes left, %d are kept free", u.free, u.reserve+u.pending)
	}
	return nil
}

// scratchRoom tells batch jobs how much of the disk they may take: not what is kept free, nor what generations will need.
func (e *Engine) scratchRoom() (bytes int64, known bool) {
	e.measureDisk() // the job before has just written
	u := e.disk.Load()
	return u.free - u.reserve - u.pending, u.free >= 0
}

// roomBelow is the same for a folder without an engine.
func roomBelow(dir string) (bytes int64, known bool) {
	free, total, err := diskSpace(dir)
	return free - reserved(total), err == nil
}

// reserved is what stays free on a disk of that size: a small one cannot keep a quarter of a gigabyte free.
func reserved(total int64) int64 { return min(reserveBytes, total/20) }

func (e *Engine) measureDisk() {
	u := &diskUsage{limit: e.cfg.Storage.LocalLimit}
	e.mu.Lock()
	active := int64(0)
	for _, g := range e.generations {
		stats := g.mem.Stats()
		own := stats.Bytes / 2
		u.pending += own
		log := g.logSize()
		u.used += log
		own += log
		if !g.sealed && stats.Samples > 0 {
			active = own
		}
	}
	for _, l := range e.unread {
		u.used += l.size
	}
	u.pending += e.expectedMemory() / 2
	for _, b := range e.local {
		u.used += b.size
	}
	e.mu.Unlock()
	// What waits for the next seal cannot leave for the bucket: it must not be that which fills the disk.
	if active > u.limit/4 && u.used+u.pending > u.limit/2 {
		e.data.sealNow.Store(true)
		signal(e.data.full)
	}
	free, total, err := diskSpace(e.data.path)
	if err != nil {
		e.report("disk", err)
		free = -1
	}
	u.reserve, u.free = reserved(total), free
	e.disk.Store(u)
	e.metrics.localBytes.Set(float64(u.used))
	if err == nil {
		e.report("disk", u.refusal())
	}
	e.report("memory", e.memoryRefusal())
}

func dirSize(dir string) int64 {
	var n int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // a file that has gone meanwhile counts for nothing
		}
		if info, err := d.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	return n
}
