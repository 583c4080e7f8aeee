package wal

import (
	"io"
	"io/fs"
	"os"
)

// FS is what a log needs of a file system; tests put faults and crashes in here. Names are paths as for package os, and errors
// answer errors.Is as those of package os do.
type FS interface {
	// Mkdir makes one folder; its parent exists.
	Mkdir(name string) error
	// OpenFile opens or creates a file with the flags of os.OpenFile.
	OpenFile(name string, flag int) (File, error)
	// ReadDir lists a folder, sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Stat describes a file or folder.
	Stat(name string) (fs.FileInfo, error)
	// Rename moves a file or folder within its folder, in one step.
	Rename(from, to string) error
	// Remove deletes a file.
	Remove(name string) error
	// RemoveAll deletes a folder and all in it; a folder that is not there is no error.
	RemoveAll(name string) error
	// SyncDir makes the entries of a folder durable.
	SyncDir(name string) error
}

// File is an open file. WriteAt may write less than it is given, then with an error.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes content and size durable.
	Sync() error
	// Truncate cuts the file to size bytes.
	Truncate(size int64) error
	// Stat describes the file.
	Stat() (fs.FileInfo, error)
}

// OS is the operating system's file system.
var OS FS = osFS{}

type osFS struct{}

func (osFS) Mkdir(name string) error                    { return os.Mkdir(name, 0o750) }
func (osFS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }
func (osFS) Stat(name string) (fs.FileInfo, error)      { return os.Stat(name) }
func (osFS) Rename(from, to string) error               { return os.Rename(from, to) }
func (osFS) Remove(name string) error                   { return os.Remove(name) }
func (osFS) RemoveAll(name string) error                { return os.RemoveAll(name) }
func (osFS) SyncDir(name string) error                  { return syncDir(name) }

func (osFS) OpenFile(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, 0o640)
	if err != nil {
		return nil, err // not f: a nil *os.File in an interface is not nil
	}
	return f, nil
}
