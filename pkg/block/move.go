package block

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
)

// MastersPrefix is the folder of a bucket below which superseded level-0 blocks are kept, for building compacted blocks again.
// No query looks there, neither ours nor those of others that read the bucket; a lifecycle rule of the store may
// move what is there to a cheaper storage class.
const MastersPrefix = "masters"

// Masters returns the part of a bucket that holds kept level-0 blocks.
func Masters(bkt objstore.Bucket) objstore.Bucket {
	return objstore.NewPrefixedBucket(bkt, MastersPrefix)
}

// KeepMaster moves a block below MastersPrefix. When it ends without an error, the block is there and nowhere else; after an
// error it is in one place at least, and the call can be repeated.
func KeepMaster(ctx context.Context, bkt objstore.Bucket, m Meta) error {
	there, err := bkt.Exists(ctx, path.Join(MastersPrefix, m.ULID.String(), MetaFilename))
	if err == nil && !there {
		if mover, ok := bkt.(interface{ move(from, to string) error }); ok {
			err = mover.move(m.ULID.String(), path.Join(MastersPrefix, m.ULID.String()))
		} else {
			err = copyBlock(ctx, bkt, Masters(bkt), m)
		}
	}
	if err == nil {
		err = Delete(ctx, bkt, m.ULID)
	}
	if err != nil {
		return fmt.Errorf("move block %s below %s: %w", m.ULID, MastersPrefix, err)
	}
	return nil
}

// copyBlock copies a block's files to another bucket, each with its size checked, meta.json last.
func copyBlock(ctx context.Context, from, to objstore.Bucket, m Meta) error {
	var names []string
	err := from.Iter(ctx, m.ULID.String()+objstore.DirDelim, func(name string) error {
		switch name = slashed(name); path.Base(name) {
		case MetaFilename, DeletionMarkFilename:
		default:
			names = append(names, name)
		}
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil {
		return fmt.Errorf("list its files: %w", err)
	}
	for _, name := range append(names, path.Join(m.ULID.String(), MetaFilename)) {
		if err := copyObject(ctx, from, to, name); err != nil {
			return fmt.Errorf("copy %s: %w", name, err)
		}
	}
	return nil
}

func copyObject(ctx context.Context, from, to objstore.Bucket, name string) (err error) {
	want, err := from.Attributes(ctx, name)
	if err != nil {
		return fmt.Errorf("size: %w", err)
	}
	body, err := from.Get(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	if err := to.Upload(ctx, name, body); err != nil {
		return err
	}
	got, err := to.Attributes(ctx, name)
	if err != nil {
		return fmt.Errorf("size of the copy: %w", err)
	}
	if got.Size != want.Size {
		return fmt.Errorf("%d bytes arrived of %d", got.Size, want.Size)
	}
	return nil
}

// move renames a folder of the bucket, whose disk so needs no room for a copy. Others may do the same: a block that is at to already is not touched, and what is
// not whole there is moved out of the way first.
func (b *DirBucket) move(from, to string) error {
	if err := b.Available(); err != nil {
		return err
	}
	source, target := b.LocalPath(from), b.LocalPath(to)
	if err := os.MkdirAll(filepath.Dir(target), 0o777); err != nil {
		return err
	}
	err := os.Rename(source, target)
	if err != nil && !isWhole(target) && isWhole(source) {
		if err = b.moveAway(target); err == nil {
			err = os.Rename(source, target)
		}
	}
	if err != nil && !isWhole(target) {
		return err
	}
	for _, dir := range []string{filepath.Dir(target), b.root} {
		if err := syncFolder(dir); err != nil {
			return err
		}
	}
	// The mark said when the block might go from where it was.
	return ignoreMissing(os.Remove(filepath.Join(target, DeletionMarkFilename)))
}

// isWhole says whether a folder holds a block.
func isWhole(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, MetaFilename))
	return err == nil
}

// moveAway removes a folder that is no block. Should it have become one in this moment, it is put back.
func (b *DirBucket) moveAway(dir string) error {
	away, err := os.MkdirTemp(b.root, uploadPrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(away) // only if it is empty
	aside := filepath.Join(away, "block")
	if err := os.Rename(dir, aside); err != nil {
		return ignoreMissing(err)
	}
	if isWhole(aside) {
		return os.Rename(aside, dir)
	}
	return os.RemoveAll(aside)
}

// MasterIDs lists the blocks below MastersPrefix that are whole.
func MasterIDs(ctx context.Context, bkt objstore.Bucket) (map[ulid.ULID]struct{}, error) {
	shown, err := (&Lister{bkt: Masters(bkt)}).scan(ctx)
	if err != nil {
		return nil, err
	}
	ids := map[ulid.ULID]struct{}{}
	for id, f := range shown {
		if f.meta {
			ids[id] = struct{}{}
		}
	}
	return ids, nil
}
