package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

// foldersFile remembers which folders the engine of this data path has made buckets of. One of them that is missing later is a disk
// that is not mounted: it must neither count as empty nor be made anew.
const foldersFile = "bucket-folders.json"

// bucketFolder is the first use of a bucket in a folder. It is used by whoever lists the bucket, one at a time.
type bucketFolder struct {
	dir      *block.DirBucket
	file     string
	prepared bool
	logger   *slog.Logger
}

// newBucketFolder is nil for a bucket that is no folder.
func newBucketFolder(path string, bkt objstore.Bucket, logger *slog.Logger) *bucketFolder {
	dir, ok := bkt.(*block.DirBucket)
	if !ok {
		return nil
	}
	return &bucketFolder{dir: dir, file: filepath.Join(path, foldersFile), logger: logger}
}

// prepare makes the folder a bucket where that has never been done, and remembers it. Made first, remembered then: a crash in between
// makes it once more.
func (f *bucketFolder) prepare(ctx context.Context) error {
	if f == nil || f.prepared {
		return nil
	}
	folders, err := readFolders(f.file)
	if err != nil {
		f.dir.ExpectMade() // rather than to take a mount point for the bucket
		return err
	}
	known := slices.Contains(folders.Made, f.dir.Root())
	if known {
		f.dir.ExpectMade()
	}
	_, missing := os.Stat(f.dir.Root())
	if err := f.dir.Init(ctx); err != nil {
		if known {
			return fmt.Errorf("%w (if it is lost for good, stop Millrace and remove %s: it then begins anew)", err, f.file)
		}
		return err
	}
	if errors.Is(missing, os.ErrNotExist) {
		f.logger.Info("made the bucket's folder", "path", f.dir.Root()) // it may be a slip of the pen
	}
	if !known {
		folders.Made = append(folders.Made, f.dir.Root())
		if err := writeFolders(f.file, folders); err != nil {
			return err
		}
	}
	f.prepared = true
	return nil
}

// madeFolders is the content of foldersFile.
type madeFolders struct {
	Version int      `json:"version"`
	Made    []string `json:"made"` // absolute paths
}

const foldersVersion = 1

func readFolders(name string) (madeFolders, error) {
	f := madeFolders{Version: foldersVersion}
	raw, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return f, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &f)
	}
	if err == nil && f.Version != foldersVersion {
		err = fmt.Errorf("has format version %d, this version of Millrace reads %d", f.Version, foldersVersion)
	}
	if err != nil {
		return f, fmt.Errorf("read which folders are buckets from %s: %w", name, err)
	}
	return f, nil
}

func writeFolders(name string, f madeFolders) error {
	raw, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode the list of folders: %w", err)
	}
	return writeFile(name, raw)
}
