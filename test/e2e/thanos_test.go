//go:build interop

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// thanos builds Thanos, which takes minutes the first time. The test is behind a build tag for that.
func thanos(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "thanos")
	require.NoError(t, build("../../tools/thanos", program, "-tags=slicelabels", "github.com/thanos-io/thanos/cmd/thanos"))
	return program
}

// TestThanosReadsTheBucket lets Thanos check the bucket, answer from it, and go on compacting it.
func TestThanosReadsTheBucket(t *testing.T) {
	program := thanos(t)
	h := newHistory(t, "--external-label=site=north")
	bucket := "--objstore.config-file=" + h.s3.config(h.s3.address)

	out, err := exec.Command(program, "tools", "bucket", "verify", bucket).CombinedOutput()
	require.NoError(t, err, string(out))
	require.NotContains(t, string(out), "level=warn", "what it finds it warns of")
	require.NotContains(t, string(out), "level=error")

	query := startThanosQuery(t, program, bucket)
	h.mustAgree(query, questions...)

	ours := map[string]bool{}
	for _, b := range h.layers().Blocks {
		ours[b.ULID] = true
	}
	// Thanos's compactor takes the bucket over, and both go on answering alike.
	out, err = exec.Command(program, "compact", bucket, "--data-dir="+t.TempDir(), "--http-address="+freeAddress(t), "--consistency-delay=0s",
		"--delete-delay=0s", "--compact.enable-vertical-compaction").CombinedOutput()
	require.NoError(t, err, string(out))
	eventually(t, time.Minute, func() error {
		for _, b := range h.layers().Blocks {
			if !ours[b.ULID] {
				return nil
			}
		}
		return fmt.Errorf("no block of Thanos shows: %+v", h.layers().Blocks)
	})
	h.mustAgree(startThanosQuery(t, program, bucket), questions...)
}

// startThanosQuery starts a store gateway and a querier that asks it.
func startThanosQuery(t *testing.T, program, bucket string) *server {
	t.Helper()
	grpc := freeAddress(t)
	httpOfStore := freeAddress(t)
	store := &server{start(t, program, "store", bucket, "--data-dir="+t.TempDir(), "--http-address="+httpOfStore, "--grpc-address="+grpc,
		"--consistency-delay=0s", "--ignore-deletion-marks-delay=0s"), "http://" + httpOfStore}
	store.awaitReady()
	address := freeAddress(t)
	query := &server{start(t, program, "query", "--http-address="+address, "--grpc-address="+freeAddress(t), "--endpoint-strict="+grpc), "http://" + address}
	query.awaitReady()
	return query
}
