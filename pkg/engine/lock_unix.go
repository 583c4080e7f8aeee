//go:build unix

package engine

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// fileLock keeps other processes out of the data path. The kernel lets go of it when the process ends, however it ends.
type fileLock struct{ f *os.File }

func lockPath(name string) (*fileLock, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("lock data path: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data path is in use by another process, which holds %s", name)
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return &fileLock{f}, nil
}

func (l *fileLock) release() { _ = l.f.Close() }

// identity names the file on this system, whatever path leads to it; empty if that is not known.
func (l *fileLock) identity() string {
	var s unix.Stat_t
	if err := unix.Fstat(int(l.f.Fd()), &s); err != nil {
		return ""
	}
	return fmt.Sprintf("%x %x", s.Dev, s.Ino)
}

// device names the file system that a file is on; empty if that is not known.
func device(name string) string {
	var s unix.Stat_t
	if err := unix.Stat(name, &s); err != nil {
		return ""
	}
	return fmt.Sprintf("%x", s.Dev)
}

// freeBytes tells how much a user without privileges may still write below path, and the size of its file system.
func freeBytes(path string) (free, total int64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, 0, fmt.Errorf("ask for free space of %s: %w", path, err)
	}
	size := int64(s.Bsize) //nolint:unconvert // its type differs between systems
	return int64(s.Bavail) * size, int64(s.Blocks) * size, nil
}

// syncDir makes renames in a folder last.
func syncDir(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
