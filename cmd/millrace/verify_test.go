package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

// imported is the data path of a bucket with three blocks.
func imported(t *testing.T) (path string, ids []ulid.ULID) {
	t.Helper()
	path = t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(path, "bucket"), 0o750))
	text := file(t, "# TYPE m gauge\nm 1 1000000000\nm 2 1000086400\nm 3 1000172800\n# EOF\n")
	_, errs, code := millrace(t, "import", "openmetrics", "--storage.path="+path, "--import.scratch-path="+t.TempDir(), text)
	require.Zero(t, code, errs)
	for _, m := range metas(t, path) {
		ids = append(ids, m.ULID)
	}
	require.Len(t, ids, 3)
	return path, ids
}

// deleting is a bucket in which a job deletes a block as soon as somebody has begun to read it.
type deleting struct {
	objstore.Bucket
	id ulid.ULID
}

func (b *deleting) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := b.Bucket.Get(ctx, name)
	if strings.HasPrefix(name, b.id.String()) && err == nil && !strings.HasPrefix(name, block.MastersPrefix) {
		err = block.Delete(ctx, b.Bucket, b.id)
	}
	return r, err
}

// What jobs delete while it is looked at is not bad, and does not end the look at the others.
func TestVerifyWhileBlocksAreDeleted(t *testing.T) {
	path, ids := imported(t)
	dir, err := block.NewDirBucket(filepath.Join(path, "bucket"))
	require.NoError(t, err)
	var out bytes.Buffer
	v := verification{stdout: &out, quarantine: true}
	for _, id := range ids[:2] {
		findings, gone, err := check(t.Context(), &deleting{dir, id}, id)
		require.NoError(t, err)
		require.True(t, gone, "%v", findings)
	}
	require.NoError(t, v.blocks(t.Context(), &deleting{dir, ids[2]}, ""))
	require.Contains(t, out.String(), ids[2].String()+"  was deleted meanwhile\n")
	require.Equal(t, "1 blocks, 0 bad, 1 deleted meanwhile", v.sum())
}

// A damaged block is no reason to worry any more when it has been replaced.
func TestVerifyTellsBlocksApartThatNobodyNeeds(t *testing.T) {
	path, ids := imported(t)
	bkt, err := block.NewDirBucket(filepath.Join(path, "bucket"))
	require.NoError(t, err)
	name := filepath.Join(path, "bucket", ids[0].String(), "chunks", "000001")
	raw, err := os.ReadFile(name)
	require.NoError(t, err)
	raw[len(raw)/2] ^= 0xff
	require.NoError(t, os.WriteFile(name, raw, 0o600))

	out, _, code := millrace(t, "bucket", "verify", "--storage.path="+path)
	require.Equal(t, 1, code)
	require.Contains(t, out, "3 blocks, 1 bad\n")
	require.NoError(t, block.MarkForDeletion(t.Context(), bkt, ids[0], "swapped"))
	out, errs, code := millrace(t, "bucket", "verify", "--storage.path="+path, "--quarantine")
	require.Zero(t, code, errs)
	require.Contains(t, out, ids[0].String()+"  bad, but replaced or marked for deletion  ")
	require.Contains(t, out, "3 blocks, 0 bad, 1 bad that nobody needs any more\n")
	require.NotContains(t, out, "put in quarantine")
}
