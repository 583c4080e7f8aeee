package main

import (
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
)

// A user recomputes what a server has compacted, while it runs, and is told what cannot be had once level-0 blocks are gone.
func TestRecomputeCommand(t *testing.T) {
	path, address := t.TempDir(), freeAddress(t)
	serveOn(t, address, "--storage.path="+path, "--self.scrape-interval=100ms")
	require.Eventually(t, func() bool { return answers(t, "http://"+address+"/-/ready") }, 30*time.Second, 20*time.Millisecond)
	require.Eventually(t, func() bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/api/v1/batch/run", http.NoBody)
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		out, errs, code := millrace(t, "bucket", "ls", "--storage.path="+path)
		require.Zero(t, code, errs)
		return len(out) > 0 && resp.StatusCode == http.StatusOK && len(metas(t, path)) > 1
	}, 30*time.Second, 100*time.Millisecond)

	all := []string{"batch", "recompute", "--storage.path=" + path, "--min-time=0", "--max-time=2100-01-01T00:00:00Z"}
	out, errs, code := millrace(t, all...)
	require.Zero(t, code, errs)
	require.Contains(t, out, "is what its level-0 blocks give\n")
	require.Contains(t, out, "0 of them cannot be built again\n")

	// A damaged block is found and taken out of answers, and let back in when it is whole again.
	for _, m := range block.Visible(slices.Collect(maps.Values(metas(t, path)))) {
		name := filepath.Join(path, "bucket", m.ULID.String(), "chunks", "000001")
		whole, err := os.ReadFile(name)
		require.NoError(t, err)
		raw := append([]byte(nil), whole...)
		raw[len(raw)/2] ^= 0xff
		require.NoError(t, os.WriteFile(name, raw, 0o600))
		out, _, code = millrace(t, "bucket", "verify", "--storage.path="+path, "--quarantine")
		require.Equal(t, 1, code)
		require.Regexp(t, m.ULID.String()+"  BAD  .*chunks/000001", out)
		require.Contains(t, out, m.ULID.String()+"  put in quarantine")
		require.NoError(t, os.WriteFile(name, whole, 0o600))
		out, errs, code = millrace(t, "bucket", "verify", "--storage.path="+path, "--quarantine")
		require.Zero(t, code, errs)
		require.Contains(t, out, m.ULID.String()+"  released from quarantine")
		break
	}

	for dir, m := range metas(t, path) {
		if m.Level() == 0 {
			require.NoError(t, os.RemoveAll(dir))
		}
	}
	out, errs, code = millrace(t, append(all, "--dry-run")...)
	require.Equal(t, 1, code, errs)
	require.Contains(t, out, "CANNOT be built again: ")
	require.Contains(t, errs, "cannot be built again")
}

// metas reads the metas in the default bucket of a data path, by folder.
func metas(t *testing.T, path string) map[string]block.Meta {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(path, "bucket", "*", block.MetaFilename))
	require.NoError(t, err)
	all := map[string]block.Meta{}
	for _, name := range found {
		m, err := block.ReadMeta(filepath.Dir(name))
		require.NoError(t, err)
		all[filepath.Dir(name)] = m
	}
	return all
}

func TestRecomputeRefusesTimes(t *testing.T) {
	for _, row := range []struct{ min, max, says string }{
		{"yesterday", "0", "must be a time such as"},
		{"10", "10", "is not before"},
		{"2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", "--min-time=2026-01-02T00:00:00Z is not before --max-time=2026-01-01T00:00:00Z"},
	} {
		_, errs, code := millrace(t, "batch", "recompute", "--min-time="+row.min, "--max-time="+row.max)
		require.Equal(t, 1, code)
		require.Contains(t, errs, row.says)
	}
}
