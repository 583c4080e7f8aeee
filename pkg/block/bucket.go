package block

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
)

// maxMarkSize bounds what is read of a deletion-mark.json.
const maxMarkSize = 1 << 20

// slashed returns a name as object names are, whatever the operating system: the filesystem bucket gives paths.
func slashed(name string) string { return strings.ReplaceAll(name, `\`, "/") }

// Upload copies the block in dir to a bucket: all files with their sizes checked, meta.json last, so that the block exists
// when it is complete. A block that the bucket already has is left as it is; after an error the call can be repeated.
func Upload(ctx context.Context, bkt objstore.Bucket, dir string) error {
	return UploadChecked(ctx, bkt, dir, func(context.Context, Meta) error { return nil })
}

// UploadChecked is Upload with a check of what is in the bucket before meta.json makes it a block. Its error ends the upload. It is
// not called for a block that the bucket already has.
func UploadChecked(ctx context.Context, bkt objstore.Bucket, dir string, check func(context.Context, Meta) error) error {
	m, err := ReadMeta(dir)
	if err != nil {
		return fmt.Errorf("upload block in %s: %w", dir, err)
	}
	if len(m.Thanos.Labels) == 0 {
		return fmt.Errorf("upload block %s: it has no external labels", m.ULID)
	}
	if err := upload(ctx, bkt, dir, &m, check); err != nil {
		return fmt.Errorf("upload block %s: %w", m.ULID, err)
	}
	return nil
}

func upload(ctx context.Context, bkt objstore.Bucket, dir string, m *Meta, check func(context.Context, Meta) error) error {
	metaName := path.Join(m.ULID.String(), MetaFilename)
	if there, err := bkt.Exists(ctx, metaName); err != nil || there {
		return err
	}
	segments, sizes, indexSize, ok := segmentNames(m)
	if !ok {
		return fmt.Errorf("%s does not list the sizes of all files", MetaFilename)
	}
	for i, name := range segments {
		if err := uploadFile(ctx, bkt, dir, m.ULID, name, sizes[i]); err != nil {
			return err
		}
	}
	if err := uploadFile(ctx, bkt, dir, m.ULID, IndexFilename, indexSize); err != nil {
		return err
	}
	if size := m.FamiliesSize(); size > 0 {
		if err := uploadFile(ctx, bkt, dir, m.ULID, MetadataFilename, size); err != nil {
			return err
		}
	}
	if err := check(ctx, *m); err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(dir, MetaFilename))
	if err != nil {
		return fmt.Errorf("read meta: %w", err)
	}
	if err := bkt.Upload(ctx, metaName, bytes.NewReader(raw)); err != nil {
		return fmt.Errorf("put %s: %w", metaName, err)
	}
	return nil
}

// uploadFile copies one file and asks for the size of what arrived.
func uploadFile(ctx context.Context, bkt objstore.Bucket, dir string, id ulid.ULID, rel string, size int64) error {
	f, err := os.Open(filepath.Join(dir, filepath.FromSlash(rel)))
	if err != nil {
		return fmt.Errorf("open %s: %w", rel, err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() != size {
		if err != nil {
			return fmt.Errorf("size of %s: %w", rel, err)
		}
		return fmt.Errorf("%w: %s has %d bytes, %s says %d", ErrCorrupt, rel, st.Size(), MetaFilename, size)
	}
	name := path.Join(id.String(), rel)
	if err := bkt.Upload(ctx, name, f); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	got, err := bkt.Attributes(ctx, name)
	if err != nil {
		return fmt.Errorf("size of %s in the bucket: %w", name, err)
	}
	if got.Size != size {
		return fmt.Errorf("put %s: %d bytes arrived of %d", name, got.Size, size)
	}
	return nil
}

// MarkForDeletion writes a block's deletion-mark.json. A mark that is there already stays, with its time, unless it cannot
// be read.
func MarkForDeletion(ctx context.Context, bkt objstore.Bucket, id ulid.ULID, reason string) error {
	name := path.Join(id.String(), DeletionMarkFilename)
	old, err := readMark(ctx, bkt, id)
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("mark block %s for deletion: %w", id, err)
	}
	if old != nil {
		return nil
	}
	b, err := json.Marshal(DeletionMark{ID: id, Version: 1, Details: reason, DeletionTime: time.Now().Unix()})
	if err != nil {
		return fmt.Errorf("mark block %s for deletion: %w", id, err)
	}
	if err := bkt.Upload(ctx, name, bytes.NewReader(b)); err != nil {
		return fmt.Errorf("mark block %s for deletion: %w", id, err)
	}
	return nil
}

// Unmark takes a block's deletion mark back. Doing that to a block without one is no error.
func Unmark(ctx context.Context, bkt objstore.Bucket, id ulid.ULID) error {
	if err := deleteObject(ctx, bkt, path.Join(id.String(), DeletionMarkFilename)); err != nil {
		return fmt.Errorf("unmark block %s: %w", id, err)
	}
	return nil
}

// readMark returns a block's deletion mark, nil if there is none.
func readMark(ctx context.Context, bkt objstore.BucketReader, id ulid.ULID) (*DeletionMark, error) {
	body, err := bkt.Get(ctx, path.Join(id.String(), DeletionMarkFilename))
	if err != nil {
		if bkt.IsObjNotFoundErr(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("get deletion mark of block %s: %w", id, err)
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, maxMarkSize))
	if err != nil {
		return nil, fmt.Errorf("read deletion mark of block %s: %w", id, err)
	}
	var mark DeletionMark
	if err := json.Unmarshal(b, &mark); err != nil {
		return nil, fmt.Errorf("%w: deletion mark of block %s: %w", ErrCorrupt, id, err)
	}
	if mark.ID != id || mark.Version != 1 {
		return nil, fmt.Errorf("%w: deletion mark of block %s is version %d of block %s", ErrCorrupt, id, mark.Version, mark.ID)
	}
	return &mark, nil
}

// Delete removes a block from a bucket: meta.json first, so that what an interruption leaves is no block, and the deletion
// mark last, so that the rest is still known to go. What is not there is no error.
func Delete(ctx context.Context, bkt objstore.Bucket, id ulid.ULID) error {
	if err := deleteObject(ctx, bkt, path.Join(id.String(), MetaFilename)); err != nil {
		return fmt.Errorf("delete block %s: %w", id, err)
	}
	mark := path.Join(id.String(), DeletionMarkFilename)
	var names []string
	err := bkt.Iter(ctx, id.String()+objstore.DirDelim, func(name string) error {
		if name = slashed(name); name != mark {
			names = append(names, name)
		}
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil {
		return fmt.Errorf("delete block %s: list its files: %w", id, err)
	}
	for _, name := range append(names, mark) {
		if err := deleteObject(ctx, bkt, name); err != nil {
			return fmt.Errorf("delete block %s: %w", id, err)
		}
	}
	return nil
}

func deleteObject(ctx context.Context, bkt objstore.Bucket, name string) error {
	there, err := bkt.Exists(ctx, name)
	if err != nil {
		return fmt.Errorf("look for %s: %w", name, err)
	}
	if !there {
		return nil
	}
	if err := bkt.Delete(ctx, name); err != nil && !bkt.IsObjNotFoundErr(err) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}
