package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// What failed before it did anything has nothing to sum up.
func TestFailureWithoutWorkHasNoSummary(t *testing.T) {
	away := filepath.Join(t.TempDir(), "bucket.yaml")
	require.NoError(t, os.WriteFile(away, []byte("type: S3\nconfig: {endpoint: \"127.0.0.1:1\", bucket: b, access_key: a, secret_key: s, insecure: true, max_retries: 1}\n"), 0o600))
	path := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(path, "bucket"), 0o750))
	for _, args := range [][]string{
		{"batch", "run", "--objstore.config-file=" + away},
		{"batch", "recompute", "--min-time=0", "--max-time=1", "--objstore.config-file=" + away},
		{"import", "openmetrics", "--storage.path=" + path, "--import.scratch-path=" + t.TempDir(), filepath.Join(path, "none")},
	} {
		out, errs, code := millrace(t, args...)
		require.NotZero(t, code)
		require.NotEmpty(t, errs)
		require.Empty(t, out)
	}
}
