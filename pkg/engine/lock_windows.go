//go:build windows

package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// fileLock keeps other processes out of the data path. The kernel lets go of it when the process ends, however it ends.
type fileLock struct{ f *os.File }

func lockPath(name string) (*fileLock, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("lock data path: %w", err)
	}
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &windows.Overlapped{})
	if err != nil {
		f.Close()
		if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
			return nil, fmt.Errorf("data path is in use by another process, which holds %s", name)
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return &fileLock{f}, nil
}

func (l *fileLock) release() { _ = l.f.Close() }

// identity is not known here; the path stands for it.
func (*fileLock) identity() string { return "" }

// device is the volume in a file's name.
func device(name string) string { return filepath.VolumeName(name) }

// freeBytes tells how much the user may still write below path, and the size of its volume.
func freeBytes(path string) (free, total int64, err error) {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, 0, fmt.Errorf("ask for free space of %s: %w", path, err)
	}
	var f, t uint64
	if err := windows.GetDiskFreeSpaceEx(p, &f, &t, nil); err != nil {
		return 0, 0, fmt.Errorf("ask for free space of %s: %w", path, err)
	}
	return int64(f), int64(t), nil
}

// syncDir has nothing to do: the file system keeps a journal of renames.
func syncDir(string) error { return nil }
