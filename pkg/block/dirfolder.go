package block

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
)

// ErrUnavailable says that a bucket in a folder is not there. It may come back: nothing is gone.
var ErrUnavailable = errors.New("the bucket is unavailable")

const (
	// markerFilename is the file that Init leaves in the folder. It is how a bucket without blocks is told from the empty
	// folder that a disk would be mounted on.
	markerFilename = "bucket.json"
	markerContent  = `{"version":1}` + "\n"
	// leftoverAge is the age from which a file that is being uploaded is taken for a killed process's: another one may be
	// writing just now.
	leftoverAge = 24 * time.Hour
	// cleanInterval is how often leftovers are looked for.
	cleanInterval = time.Hour
)

// Init makes the folder a bucket: it creates it and puts a marker there, as far as they are missing. It is for whoever uses
// the bucket for the first time; who has used it before calls ExpectMade first, and then an absent folder stays absent.
func (b *DirBucket) Init(ctx context.Context) error {
	if b.made.Load() {
		if err := b.Available(); err != nil {
			return err
		}
	} else if err := os.MkdirAll(b.root, 0o777); err != nil {
		return fmt.Errorf("make the bucket's folder: %w", err)
	}
	if _, err := os.Stat(b.LocalPath(markerFilename)); errors.Is(err, fs.ErrNotExist) {
		if err := b.Upload(ctx, markerFilename, strings.NewReader(markerContent)); err != nil {
			return fmt.Errorf("mark the bucket's folder: %w", err)
		}
	}
	b.made.Store(true)
	return nil
}

// ExpectMade says that Init has been here, in this process or another. From then on a folder that has neither Init's marker nor
// a block is not the bucket but the place where it should be mounted.
func (b *DirBucket) ExpectMade() { b.made.Store(true) }

// Root is the bucket's folder, as an absolute path.
func (b *DirBucket) Root() string { return b.root }

// Available says why the bucket cannot be used, with ErrUnavailable, or nil.
func (b *DirBucket) Available() error {
	info, err := os.Stat(b.root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// Without the cause: an object that is missing is another thing.
		return fmt.Errorf("%w: folder %s does not exist: is it mounted?", ErrUnavailable, b.root)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case !info.IsDir():
		return fmt.Errorf("%w: %s is not a folder", ErrUnavailable, b.root)
	case !b.made.Load():
		return nil
	}
	_, err = os.Stat(b.LocalPath(markerFilename))
	if errors.Is(err, fs.ErrNotExist) {
		return b.holdsBlocks()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// holdsBlocks lets a folder pass whose marker is missing but which is clearly the bucket, as one copied by hand.
func (b *DirBucket) holdsBlocks() error {
	entries, err := os.ReadDir(b.root)
	if err != nil {
		return fmt.Errorf("%w: read folder: %w", ErrUnavailable, err)
	}
	for _, e := range entries {
		if _, err := ulid.ParseStrict(e.Name()); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(b.root, e.Name(), MetaFilename)); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: folder %s has neither blocks nor the %s that was put there when it became a bucket: is it mounted?",
		ErrUnavailable, b.root, markerFilename)
}

// Iter implements objstore.BucketReader.
func (b *DirBucket) Iter(ctx context.Context, dir string, f func(string) error, o ...objstore.IterOption) error {
	return b.whileAvailable(func() error { return b.Bucket.Iter(ctx, dir, f, o...) })
}

// IterWithAttributes implements objstore.BucketReader.
func (b *DirBucket) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, o ...objstore.IterOption) error {
	return b.whileAvailable(func() error { return b.Bucket.IterWithAttributes(ctx, dir, f, o...) })
}

// whileAvailable looks before and after: a folder that goes away in between looks like one with fewer objects.
func (b *DirBucket) whileAvailable(do func() error) error {
	if err := b.Available(); err != nil {
		return err
	}
	return cmp.Or(do(), b.Available())
}

// Get implements objstore.BucketReader.
func (b *DirBucket) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := b.Bucket.Get(ctx, name)
	return r, b.because(err)
}

// GetRange implements objstore.BucketReader.
func (b *DirBucket) GetRange(ctx context.Context, name string, off, length int64) (io.ReadCloser, error) {
	r, err := b.Bucket.GetRange(ctx, name, off, length)
	return r, b.because(err)
}

// Attributes implements objstore.BucketReader.
func (b *DirBucket) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	a, err := b.Bucket.Attributes(ctx, name)
	return a, b.because(err)
}

// because replaces the error of a request by that of the whole bucket: an object is not gone because its bucket is.
func (b *DirBucket) because(err error) error {
	if err == nil {
		return nil
	}
	return cmp.Or(b.Available(), err)
}

// Exists implements objstore.BucketReader.
func (b *DirBucket) Exists(ctx context.Context, name string) (bool, error) {
	there, err := b.Bucket.Exists(ctx, name)
	if there {
		return true, err
	}
	return false, cmp.Or(b.Available(), err)
}

// Delete implements objstore.Bucket.
func (b *DirBucket) Delete(ctx context.Context, name string) error {
	return b.whileAvailable(func() error { return b.Bucket.Delete(ctx, name) })
}

// cleanOnce removes leftovers at the first upload, and now and then later.
func (b *DirBucket) cleanOnce(now time.Time) {
	last := b.cleaned.Load()
	if now.UnixNano()-last < int64(cleanInterval) || !b.cleaned.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	b.removeLeftovers(now)
}

// removeLeftovers removes the files of uploads that a killed process has left. They only take room: what cannot be removed is
// tried again the next time.
func (b *DirBucket) removeLeftovers(now time.Time) {
	entries, err := os.ReadDir(b.root)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasPrefix(e.Name(), uploadPrefix) {
			continue
		}
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > leftoverAge {
			_ = os.Remove(b.LocalPath(e.Name()))
		}
	}
}
