package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// Create makes a new log in the folder dir, which must not exist while its parent must. header is kept for Replay; it and the folder are
// durable when Create returns. After an error, or a crash on the way, there is no log.
func Create(dir string, header []byte, o Options) (*Log, error) {
	o = o.withDefaults()
	if len(header) > MaxHeaderSize {
		return nil, fmt.Errorf("create write-ahead log %s: header of %d bytes is larger than %d", dir, len(header), MaxHeaderSize)
	}
	if o.id == 0 {
		o.id = rand.Uint64() // seeded by the system, not to be guessed from outside
	}
	if err := createDir(o.FS, dir, encodeHeader(o.id, header)); err != nil {
		return nil, fmt.Errorf("create write-ahead log %s: %w", dir, err)
	}
	return start(dir, o, mark{}, nil), nil
}

// createDir makes the folder with the header beside its place, and moves it there.
func createDir(fsys FS, dir string, header []byte) error {
	if _, err := fsys.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, fs.ErrExist)
	}
	parent, base := filepath.Split(filepath.Clean(dir))
	parent = filepath.Clean(parent)
	tmp := filepath.Join(parent, createPrefix+base)
	if err := fsys.RemoveAll(tmp); err != nil {
		return err
	}
	if err := fsys.Mkdir(tmp); err != nil {
		return err
	}
	err := writeSynced(fsys, filepath.Join(tmp, headerName), header)
	if err == nil {
		err = fsys.SyncDir(tmp)
	}
	if err == nil {
		err = fsys.Rename(tmp, dir)
	}
	if err != nil {
		return errors.Join(err, fsys.RemoveAll(tmp))
	}
	if err := fsys.SyncDir(parent); err != nil {
		return errors.Join(err, fsys.RemoveAll(dir))
	}
	return nil
}

func writeSynced(fsys FS, name string, b []byte) error {
	f, err := fsys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	err = writeFull(f, b, 0)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Open goes on with a log that exists, in a new segment; the next index is o.FirstIndex. What an earlier process wrote without syncing it
// is synced. A damaged header is a CorruptHeaderError.
func Open(dir string, o Options) (*Log, error) {
	o = o.withDefaults()
	id, _, err := readHeader(o.FS, dir)
	if err != nil {
		return nil, err // names the log
	}
	o.id = id
	list, err := listSegments(dir, o)
	if err != nil {
		return nil, fmt.Errorf("open write-ahead log %s: %w", dir, err)
	}
	end, err := list.end(dir, o)
	if err != nil {
		return nil, fmt.Errorf("open write-ahead log %s: %w", dir, err)
	}
	for _, name := range list.leftovers {
		if err := o.FS.Remove(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("open write-ahead log %s: %w", dir, err)
		}
	}
	l := start(dir, o, end, list)
	if err := l.syncLast(list); err != nil {
		return nil, errors.Join(fmt.Errorf("open write-ahead log %s: %w", dir, err), l.Close())
	}
	return l, nil
}

// syncLast makes the last segment of an existing log durable: the process that wrote it may not have come to it. The others were synced before
// they were left.
func (l *Log) syncLast(list *segmentList) error {
	if len(list.segments) == 0 {
		return nil
	}
	last := list.segments[len(list.segments)-1]
	f, err := l.o.FS.OpenFile(filepath.Join(l.dir, last.name), os.O_RDWR)
	if err != nil {
		return err
	}
	if !last.ok {
		return errors.Join(f.Sync(), f.Close(), l.o.FS.SyncDir(l.dir))
	}
	seg := &segment{number: last.number, name: last.name, f: f, base: mark{last.header.start, last.header.seq}}
	seg.off, seg.seq = segmentHeaderSize+l.end.pos-seg.base.pos, l.end.seq
	seg.syncedSeq = seg.base.seq

	l.acquire()
	defer l.release()
	l.mu.Lock()
	l.cur = seg
	l.mu.Unlock()
	if l.syncSegment(seg) != nil {
		_ = l.replace(seg, l.end) // reported there and kept as l.risk
		return nil
	}
	l.leave(seg)
	return nil
}

func start(dir string, o Options, end mark, list *segmentList) *Log {
	l := &Log{
		dir: dir, id: o.id, o: o, end: end, index: o.FirstIndex,
		token: make(chan struct{}, 1), dirty: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	l.pending = newGroup(l, nil)
	if list != nil {
		l.number, l.segments = list.highest, len(list.segments)
		for _, s := range list.segments {
			l.size.Add(s.size)
		}
		o.Metrics.segments.Add(float64(l.segments))
	}
	if !o.SyncEvery {
		l.done.Add(1)
		go l.syncLoop()
	}
	return l
}

// Remove deletes a log that is not open. The log is gone in one step: a crash on the way leaves all of it, or a folder that
// RemoveTemporary deletes. A log that does not exist is no error.
func Remove(dir string) error { return remove(OS, dir) }

func remove(fsys FS, dir string) error {
	parent, base := filepath.Split(filepath.Clean(dir))
	parent = filepath.Clean(parent)
	tmp := filepath.Join(parent, removePrefix+base)
	steps := []func() error{
		func() error { return fsys.RemoveAll(tmp) },
		func() error { return fsys.Rename(dir, tmp) },
		func() error { return fsys.SyncDir(parent) }, // else its files might go before its name
		func() error { return fsys.RemoveAll(tmp) },
		func() error { return fsys.SyncDir(parent) },
	}
	if _, err := fsys.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("remove write-ahead log %s: %w", dir, err)
		}
	}
	return nil
}

// RemoveTemporary deletes what crashes during Create and Remove left in the folder that holds the logs. No log in it is
// being created or removed meanwhile.
func RemoveTemporary(parent string) error { return removeTemporary(OS, parent) }

func removeTemporary(fsys FS, parent string) error {
	entries, err := fsys.ReadDir(parent)
	if err != nil {
		return fmt.Errorf("remove temporary write-ahead logs in %s: %w", parent, err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), createPrefix) && !strings.HasPrefix(e.Name(), removePrefix) {
			continue
		}
		if err := fsys.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
			return fmt.Errorf("remove temporary write-ahead logs in %s: %w", parent, err)
		}
	}
	return nil
}
