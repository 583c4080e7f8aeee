package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// promtoolReads lets promtool, today's and Debian's, list and dump the blocks of the default bucket below path. It works on a copy: promtool wants the
// folder of a Prometheus, which has a log, too.
func promtoolReads(t *testing.T, path string) {
	t.Helper()
	bucket := filepath.Join(t.TempDir(), "data")
	require.NoError(t, os.CopyFS(bucket, os.DirFS(filepath.Join(path, "bucket"))))
	require.NoError(t, os.Mkdir(filepath.Join(bucket, "wal"), 0o750))
	for name, promtool := range map[string]string{"today's": binaries.promtool, "Debian's": "/usr/bin/promtool"} {
		out, err := exec.Command(promtool, "tsdb", "list", bucket).CombinedOutput()
		require.NoError(t, err, "%s promtool: %s", name, out)
		require.Contains(t, string(out), "BLOCK ULID")
		require.Greater(t, strings.Count(string(out), "\n"), 1, "%s promtool lists no block: %s", name, out)
		out, err = exec.Command(promtool, "tsdb", "dump", `--match={__name__="up",job=~".+-v1"}`, bucket).CombinedOutput()
		require.NoError(t, err, "%s promtool: %s", name, out)
		require.Greater(t, strings.Count(string(out), `__name__="up"`), 100, "%s promtool dumps too little", name)
	}
}
