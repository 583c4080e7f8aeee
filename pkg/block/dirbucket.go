package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/tsdb/fileutil"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"
)

// DirBucket is objstore's filesystem bucket with uploads that a power failure cannot tear or lose: an object is written
// beside its place, synced, and renamed, so that a block whose local copy goes after Upload is really there. Blocks opened
// from it are mapped instead of being read through the cache.
//
// A folder that is not there is no empty bucket: it may be a disk that is not mounted. Requests then fail with ErrUnavailable,
// and nothing but Init ever makes the folder.
type DirBucket struct {
	*filesystem.Bucket

	root    string
	made    atomic.Bool  // Init was here once, so that a folder without blocks and marker is not the bucket
	cleaned atomic.Int64 // when leftovers of uploads were last looked for, ns since 1970
}

var _ objstore.Bucket = (*DirBucket)(nil)

// uploadPrefix begins the names of files that are being uploaded. They are in the root folder, where no block is looked for.
const uploadPrefix = ".upload-"

// NewDirBucket returns the bucket in the folder root. It makes no request and creates nothing; see Init.
func NewDirBucket(root string) (*DirBucket, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	b, err := filesystem.NewBucket(abs)
	if err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	return &DirBucket{Bucket: b, root: abs}, nil
}

// LocalPath returns where an object is in the file system.
func (b *DirBucket) LocalPath(name string) string {
	return filepath.Join(b.root, filepath.FromSlash(name))
}

// Upload implements objstore.Bucket.
func (b *DirBucket) Upload(ctx context.Context, name string, r io.Reader, _ ...objstore.ObjectUploadOption) error {
	err := b.Available()
	if err == nil {
		b.cleanOnce(time.Now())
		err = b.upload(ctx, b.LocalPath(name), r)
	}
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	return nil
}

func (b *DirBucket) upload(ctx context.Context, final string, r io.Reader) (err error) {
	f, err := os.CreateTemp(b.root, uploadPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), ignoreMissing(os.Remove(f.Name())))
		}
	}()
	// CreateTemp is for secrets; objects are read by whoever may read the folder.
	if err := f.Chmod(0o644); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if _, err := io.Copy(f, &contextReader{ctx: ctx, r: r}); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return b.place(f.Name(), final)
}

// place renames a file to its name in the bucket and syncs the folders on its way. A deletion beside it may take away a
// folder that has just been made, since it was still empty.
func (b *DirBucket) place(tmp, final string) (err error) {
	for range 10 {
		if err = os.MkdirAll(filepath.Dir(final), 0o777); err != nil {
			continue
		}
		if err = os.Rename(tmp, final); err == nil || !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return err
	}
	for dir := filepath.Dir(final); ; dir = filepath.Dir(dir) {
		if err := ignoreMissing(syncFolder(dir)); err != nil {
			return err
		}
		if dir == b.root || len(dir) <= len(b.root) {
			return nil
		}
	}
}

func syncFolder(dir string) error {
	f, err := fileutil.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}

// ignoreMissing passes over files that are not there (any more).
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return err
}

// contextReader ends reading with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// localPather is a bucket whose objects are files.
type localPather interface {
	LocalPath(name string) string
	Available() error
}
