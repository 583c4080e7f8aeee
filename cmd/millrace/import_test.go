package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/require"
)

// push writes a sample of the metric m by remote write.
func push(t *testing.T, root string, at int64, value float64) {
	t.Helper()
	raw, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{
		Labels: []prompb.Label{{Name: "__name__", Value: "m"}}, Samples: []prompb.Sample{{Timestamp: at * 1000, Value: value}},
	}}}).Marshal()
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, root+"/api/v1/write", bytes.NewReader(snappy.Encode(nil, raw)))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Content-Encoding", "snappy")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusNoContent, resp.StatusCode)
}

func post(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, http.NoBody)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, string(body))
	return string(body)
}

// A running server answers with what is imported; what it was sent itself wins, before and after compactions.
func TestImportBesideARunningServer(t *testing.T) {
	path, address := t.TempDir(), freeAddress(t)
	serveOn(t, address, "--storage.path="+path, "--objstore.sync-interval=1s")
	root := "http://" + address
	require.Eventually(t, func() bool { return answers(t, root+"/-/ready") }, 30*time.Second, 20*time.Millisecond)
	at := time.Now().Unix() - 3600
	push(t, root, at, 1)
	text := file(t, fmt.Sprintf("# TYPE m gauge\nm 2 %d\nm 2 %d\nm 3 1000000000\n# EOF\n", at-60, at))
	imported := []string{"import", "openmetrics", "--storage.path=" + path, "--import.scratch-path=" + t.TempDir(), text}
	out, errs, code := millrace(t, imported...)
	require.Zero(t, code, errs)
	require.Contains(t, out, "3 samples")
	require.Contains(t, out, "--objstore.sync-interval")

	ask := func(expr string) string { return post(t, root+"/api/v1/query?query="+url.QueryEscape(expr)) }
	want := fmt.Sprintf(`"values":[[%d,"2"],[%d,"1"]]`, at-60, at)
	require.Eventually(t, func() bool { return strings.Contains(ask("m[2h]"), want) }, 30*time.Second, 100*time.Millisecond)
	require.Contains(t, ask("m @ 1000000000"), `"3"]`)
	post(t, root+"/api/v1/batch/run")
	require.Contains(t, ask("m[2h]"), want)
	require.Contains(t, ask("m @ 1000000000"), `"3"]`)

	out, errs, code = millrace(t, imported...)
	require.Zero(t, code, errs)
	require.Contains(t, out, "0 blocks written")
}

// Who stops an import finds nothing of it, not even while it waits for more of a pipe.
func TestImportIsInterrupted(t *testing.T) {
	path, scratch := t.TempDir(), t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(path, "bucket"), 0o750))
	var errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), os.Args[0], "import", "openmetrics", "--storage.path="+path, "--import.scratch-path="+scratch, "-")
	cmd.Env, cmd.Stderr = append(os.Environ(), actAsMillrace+"=1"), &errs
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.WriteString(stdin, "m 1 1\n")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		found, err := filepath.Glob(filepath.Join(scratch, "*", "spool-*"))
		return err == nil && len(found) > 0
	}, 30*time.Second, 10*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	failed, ok := errors.AsType[*exec.ExitError](cmd.Wait())
	require.True(t, ok, errs.String())
	require.Equal(t, exitInterrupted, failed.ExitCode(), errs.String())
	require.Contains(t, errs.String(), "interrupted; what is in the bucket is consistent")
	for _, dir := range []string{scratch, filepath.Join(path, "bucket")} {
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

func TestImportRefusesWhatItCannotUse(t *testing.T) {
	path := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(path, "bucket"), 0o750))
	for _, row := range []struct {
		args []string
		says string
	}{
		{[]string{"blocks"}, "required argument 'directory'"},
		{[]string{"blocks", path}, "has no blocks"},
		{[]string{"blocks", "--min-time=yesterday", path}, "must be a time such as"},
		{[]string{"blocks", "--min-time=10", "--max-time=5", path}, "the range of time is empty"},
		{[]string{"openmetrics", path + "/none"}, "no such file"},
		{[]string{"remote-read", "http://127.0.0.1:1"}, "--min-time"},
		{[]string{"remote-read", "--match={", "http://127.0.0.1:1"}, "--match={"},
		{[]string{"remote-read", "--http.config.file=" + path + "/none", "http://127.0.0.1:1"}, "--http.config.file="},
	} {
		args := append([]string{"import"}, row.args...)
		_, errs, code := millrace(t, append(args, "--storage.path="+path, "--import.scratch-path="+t.TempDir())...)
		require.Equal(t, 1, code)
		require.Contains(t, errs, row.says)
	}
}
