package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// promtoolReads lets promtool, today's and Debian's, list and dump the blocks of the default bucket below path.
func promtoolReads(t *testing.T, path string) {
	t.Helper()
	bucket := filepath.Join(path, "bucket")
	for name, promtool := range map[string]string{"today's": binaries.promtool, "Debian's": "/usr/bin/promtool"} {
		out, err := exec.Command(promtool, "tsdb", "list", bucket).CombinedOutput()
		require.NoError(t, err, "%s promtool: %s", name, out)
		require.Contains(t, string(out), "BLOCK ULID")
		require.Greater(t, strings.Count(string(out), "\n"), 1, "%s promtool lists no block: %s", name, out)
		out, err = exec.Command(promtool, "tsdb", "dump", `--match={__name__="up",job=~".+-v1"}`, bucket).Output()
		require.NoError(t, err, "%s promtool", name)
		require.Greater(t, strings.Count(string(out), `__name__="up"`), 100, "%s promtool dumps too little", name)
	}
}
