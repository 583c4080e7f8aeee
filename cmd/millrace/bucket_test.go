package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
)

// A block whose meta.json cannot be used is no block less: the commands name it. Why it cannot be used stands below the table, which it would break.
func TestBucketCommandsNameBrokenBlocks(t *testing.T) {
	id := ulid.Make().String()
	for _, row := range []struct {
		name, meta string
		code       int
		ls, verify string
	}{
		{"torn", "{\n", 1, "broken", "BAD"},
		{"of another block", `{"version":1,"ulid":"` + ulid.Make().String() + `"}`, 1, "broken", "BAD"},
		{"downsampled", `{"version":1,"ulid":"` + id + `","thanos":{"downsample":{"resolution":300000}}}`, 0, "downsampled", "not checked"},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := t.TempDir()
			dir := filepath.Join(path, "bucket", id)
			require.NoError(t, os.MkdirAll(dir, 0o750))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "meta.json"), []byte(row.meta), 0o600))
			out, errs, code := millrace(t, "bucket", "ls", "--storage.path="+path)
			require.Zero(t, code, errs)
			require.Regexp(t, `(?m)^`+id+`( +-){7} +`+row.ls+` +-$`, out)
			if row.ls == "broken" {
				require.Regexp(t, `(?m)^`+id+`  broken: block (cannot be used|is corrupt): `, out)
			}
			out, errs, code = millrace(t, "bucket", "verify", "--storage.path="+path)
			require.Equal(t, row.code, code, errs)
			require.Regexp(t, id+"  "+row.verify+"  .*", out)
			require.Contains(t, out, fmt.Sprintf("1 blocks, %d bad\n", row.code))
		})
	}
}
