package wal

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

var errDead = errors.New("the machine is dead")

// memFS is a file system in memory that knows what is durable and what only the kernel has, fills up, and fails on demand.
type memFS struct {
	mu       sync.Mutex
	root     *memNode
	dead     bool
	life     int   // operations before it dies, plus one; 0 is no limit
	capacity int64 // bytes of all files; 0 is no limit
	// fault is asked before every operation ("open", "create", "mkdir", "read", "write", "sync", "truncate", "close", "rename", "remove",
	// "readdir", "syncdir"); a shortWrite lets a write get so far.
	fault func(op, name string) error
	// forgetful: after a failed sync reads see what is on disk, not what was written.
	forgetful bool
}

type shortWrite int

func (shortWrite) Error() string { return "short write" }

type memNode struct {
	dir bool

	data, disk []byte
	writes     []memWrite // since the last sync, in order

	children, diskChildren map[string]*memNode
	changes                []map[string]*memNode // since the last sync; each is one step; nil removes
}

// memWrite is a write at off, or with nil data a truncation to off.
type memWrite struct {
	off  int64
	data []byte
}

func (w memWrite) apply(to []byte) []byte {
	if w.data == nil {
		return to[:min(int64(len(to)), w.off)]
	}
	if n := w.off + int64(len(w.data)) - int64(len(to)); n > 0 {
		to = append(to, make([]byte, n)...)
	}
	copy(to[w.off:], w.data)
	return to
}

func newMemFS() *memFS { return &memFS{root: newMemDir()} }

func newMemDir() *memNode {
	return &memNode{dir: true, children: map[string]*memNode{}, diskChildren: map[string]*memNode{}}
}

// kill returns the file system as the next process finds it; the old one is dead to the process that was killed.
func (m *memFS) kill() *memFS { return m.next(nil) }

// crash returns the file system after a power cut: what was not synced is there, or not, or in parts.
func (m *memFS) crash(rng *rand.Rand) *memFS { return m.next(rng) }

func (m *memFS) next(rng *rand.Rand) *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	root := m.root // nobody changes it any more through a dead file system
	if rng != nil {
		root = root.clone(rng)
	}
	return &memFS{root: root, capacity: m.capacity, forgetful: m.forgetful}
}

func (n *memNode) clone(rng *rand.Rand) *memNode {
	if !n.dir {
		data := n.afterCrash(rng)
		return &memNode{data: data, disk: slices.Clone(data)}
	}
	c := newMemDir()
	children := maps.Clone(n.diskChildren)
	for _, change := range n.changes[:rng.IntN(len(n.changes)+1)] {
		applyChange(children, change)
	}
	for name, child := range children {
		c.children[name] = child.clone(rng)
		c.diskChildren[name] = c.children[name]
	}
	return c
}

// afterCrash is the file with some of its unsynced writes, some of them in part, in some cases with zeros where the data should be.
func (n *memNode) afterCrash(rng *rand.Rand) []byte {
	data := slices.Clone(n.disk)
	for _, w := range n.writes {
		switch rng.IntN(4) {
		case 0: // lost
		case 1:
			data = w.apply(data)
		case 2:
			if w.data != nil {
				w.data = w.data[:rng.IntN(len(w.data)+1)]
			}
			data = w.apply(data)
		case 3: // the size made it to disk, some sectors did not
			if w.data != nil {
				w.data = slices.Clone(w.data)
				from := rng.IntN(len(w.data) + 1)
				clear(w.data[from:min(len(w.data), from+sector*(1+rng.IntN(4)))])
			}
			data = w.apply(data)
		}
	}
	return data
}

func applyChange(to, change map[string]*memNode) {
	for name, node := range change {
		if node == nil {
			delete(to, name)
		} else {
			to[name] = node
		}
	}
}

func (n *memNode) change(change map[string]*memNode) {
	applyChange(n.children, change)
	n.changes = append(n.changes, change)
}

func (n *memNode) size() int64 {
	size := int64(len(n.data))
	for _, c := range n.children {
		size += c.size()
	}
	return size
}

func (m *memFS) check(op, name string) error {
	if m.life > 0 {
		m.life--
		m.dead = m.dead || m.life == 0
	}
	if m.dead {
		return errDead
	}
	if m.fault == nil {
		return nil
	}
	if err := m.fault(op, name); err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

// find returns a node, its folder and its name; the node is nil if it is not there.
func (m *memFS) find(path string) (node, parent *memNode, name string, err error) {
	node = m.root
	parts := strings.SplitSeq(strings.Trim(filepath.ToSlash(path), "/"), "/")
	for part := range parts {
		if node == nil || !node.dir {
			return nil, nil, "", &fs.PathError{Op: "find", Path: path, Err: fs.ErrNotExist}
		}
		if part == "" {
			continue
		}
		parent, name = node, part
		node = node.children[part]
	}
	return node, parent, name, nil
}

func (m *memFS) existing(path string) (node, parent *memNode, name string, err error) {
	node, parent, name, err = m.find(path)
	if err == nil && node == nil {
		err = &fs.PathError{Op: "find", Path: path, Err: fs.ErrNotExist}
	}
	return node, parent, name, err
}

func (m *memFS) Mkdir(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("mkdir", path); err != nil {
		return err
	}
	node, parent, name, err := m.find(path)
	if err != nil {
		return err
	}
	if node != nil {
		return &fs.PathError{Op: "mkdir", Path: path, Err: fs.ErrExist}
	}
	parent.change(map[string]*memNode{name: newMemDir()})
	return nil
}

func (m *memFS) OpenFile(path string, flag int) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	op := "open"
	if flag&os.O_CREATE != 0 {
		op = "create"
	}
	if err := m.check(op, path); err != nil {
		return nil, err
	}
	node, parent, name, err := m.find(path)
	switch {
	case err != nil:
		return nil, err
	case node == nil && flag&os.O_CREATE == 0:
		return nil, &fs.PathError{Op: op, Path: path, Err: fs.ErrNotExist}
	case node == nil:
		node = &memNode{}
		parent.change(map[string]*memNode{name: node})
	case flag&os.O_EXCL != 0:
		return nil, &fs.PathError{Op: op, Path: path, Err: fs.ErrExist}
	}
	return &memFile{fs: m, node: node, name: path}, nil
}

func (m *memFS) ReadDir(path string) ([]fs.DirEntry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("readdir", path); err != nil {
		return nil, err
	}
	node, _, _, err := m.existing(path)
	if err != nil {
		return nil, err
	}
	var entries []fs.DirEntry
	for name, c := range node.children {
		entries = append(entries, fs.FileInfoToDirEntry(memInfo{name, c}))
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

func (m *memFS) Stat(path string) (fs.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return nil, errDead
	}
	node, _, name, err := m.existing(path)
	if err != nil {
		return nil, err
	}
	return memInfo{name, node}, nil
}

func (m *memFS) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("rename", to); err != nil {
		return err
	}
	node, parent, name, err := m.existing(from)
	if err != nil {
		return err
	}
	_, toParent, toName, err := m.find(to)
	if err != nil {
		return err
	}
	if toParent != parent {
		return errors.New("rename across folders")
	}
	parent.change(map[string]*memNode{name: nil, toName: node})
	return nil
}

func (m *memFS) Remove(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.remove(path)
}

func (m *memFS) remove(path string) error {
	if err := m.check("remove", path); err != nil {
		return err
	}
	_, parent, name, err := m.existing(path)
	if err != nil {
		return err
	}
	parent.change(map[string]*memNode{name: nil})
	return nil
}

// RemoveAll deletes the files one by one, as the real one does.
func (m *memFS) RemoveAll(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, _, _, err := m.existing(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for name := range node.children {
		if err := m.remove(filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return m.remove(path)
}

func (m *memFS) SyncDir(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("syncdir", path); err != nil {
		return err
	}
	node, _, _, err := m.existing(path)
	if err != nil {
		return err
	}
	for _, change := range node.changes {
		applyChange(node.diskChildren, change)
	}
	node.changes = nil
	return nil
}

type memInfo struct {
	name string
	node *memNode
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return int64(len(i.node.data)) }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return i.node.dir }
func (i memInfo) Sys() any           { return nil }
func (i memInfo) Mode() fs.FileMode {
	if i.node.dir {
		return fs.ModeDir
	}
	return 0
}

type memFile struct {
	fs     *memFS
	node   *memNode
	name   string
	closed bool
}

func (f *memFile) check(op string) error {
	if f.closed {
		return fs.ErrClosed
	}
	return f.fs.check(op, f.name)
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.check("read"); err != nil {
		return 0, err
	}
	if off >= int64(len(f.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.node.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	n, err := len(p), f.check("write")
	if err != nil {
		n = 0
		if short, ok := errors.AsType[shortWrite](err); ok {
			n = min(int(short), len(p))
		}
	}
	if f.fs.capacity > 0 {
		room := f.fs.capacity - f.fs.root.size() + max(0, int64(len(f.node.data))-off)
		if int64(n) > room {
			n, err = int(max(0, room)), &fs.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
		}
	}
	if n > 0 {
		w := memWrite{off, slices.Clone(p[:n])}
		f.node.data = w.apply(f.node.data)
		f.node.writes = append(f.node.writes, w)
	}
	return n, err
}

func (f *memFile) Truncate(size int64) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if err := f.check("truncate"); err != nil {
		return err
	}
	w := memWrite{off: size}
	f.node.data = w.apply(f.node.data)
	f.node.writes = append(f.node.writes, w)
	return nil
}

// Sync makes the content durable. If it fails, what was not durable never will be: the kernel has marked the pages clean.
func (f *memFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.check("sync")
	if errors.Is(err, errDead) {
		return err
	}
	if err == nil {
		for _, w := range f.node.writes {
			f.node.disk = w.apply(f.node.disk)
		}
	} else if f.fs.forgetful {
		f.node.data = slices.Clone(f.node.disk)
	}
	f.node.writes = nil
	return err
}

func (f *memFile) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.check("close")
	f.closed = true
	return err
}

func (f *memFile) Stat() (fs.FileInfo, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return memInfo{filepath.Base(f.name), f.node}, nil
}
