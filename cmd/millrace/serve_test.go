package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func file(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file.yml")
	require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	return name
}

func takenAddress(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// Who starts a server with settings that cannot work sees it end, with one line that says which.
func TestServeEndsWhereOnlyTheUserHelps(t *testing.T) {
	taken := takenAddress(t)
	misspelt := file(t, "http_server_config:\n  http2: true\nbasic_auth_user:\n  a: b\n")
	broken, empty := file(t, "basic_auth_users: [\n"), file(t, "")
	s3 := file(t, "type: S3\nconfig:\n  bucket: abc\n  endpoint: 127.0.0.1:1\n  acces_key: a\n")
	unnamed := file(t, "type: S3\nconfig:\n  endpoint: 127.0.0.1:1\n")
	for _, row := range []struct {
		name string
		args []string
		says []string
	}{
		{"a port that is taken", []string{"--web.listen-address=" + taken}, []string{"--web.listen-address=" + taken, "in use"}},
		{"no port", []string{"--web.listen-address=127.0.0.1:99999"}, []string{"--web.listen-address=127.0.0.1:99999", "port"}},
		{"an unknown key in the web file", []string{"--web.config.file=" + misspelt}, []string{"--web.config.file=" + misspelt, "line 3", `no setting "basic_auth_user"`}},
		{"the same, and others reach it", []string{"--web.listen-address=0.0.0.0:0", "--web.config.file=" + misspelt}, []string{misspelt, "line 3", `no setting "basic_auth_user"`}},
		{"a web file that is not YAML", []string{"--web.config.file=" + broken}, []string{"--web.config.file=" + broken, "line 1"}},
		{"a web file that is not there", []string{"--web.config.file=" + broken + "x"}, []string{"--web.config.file=" + broken + "x", "no such file"}},
		{"a web file without users", []string{"--web.listen-address=0.0.0.0:0", "--web.config.file=" + empty}, []string{"no authentication"}},
		{"a bucket's file that is not there", []string{"--objstore.config-file=" + s3 + "x"}, []string{"--objstore.config-file=" + s3 + "x", "no such file"}},
		{"an unknown key in the bucket's file", []string{"--objstore.config-file=" + s3}, []string{"--objstore.config-file=" + s3, `no setting "acces_key"`}},
		{"a bucket without a name", []string{"--objstore.config-file=" + unnamed}, []string{"--objstore.config-file=" + unnamed, `"bucket" is missing`}},
		{"an unknown type of bucket", []string{"--objstore.config={type: NONE}"}, []string{"--objstore.config", "NONE is not supported"}},
		{"a bucket that is not YAML", []string{"--objstore.config=type: ["}, []string{"--objstore.config", "line 1"}},
		{"a data path that cannot be", []string{"--storage.path=/dev/null/x"}, []string{"--storage.path=/dev/null/x"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			args := []string{"serve"}
			for _, standard := range []string{"--storage.path=" + t.TempDir(), "--web.listen-address=127.0.0.1:0"} {
				if name, _, _ := strings.Cut(standard, "="); !strings.Contains(strings.Join(row.args, " "), name) {
					args = append(args, standard)
				}
			}
			stdout, stderr, code := millrace(t, append(args, row.args...)...)
			require.Equal(t, 1, code, stderr)
			require.Empty(t, stdout)
			require.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
			for _, text := range row.says {
				require.Contains(t, stderr, text)
			}
		})
	}
}

// serveOn runs a server until the test ends, and returns the channel of its error.
func serveOn(t *testing.T, address string, args ...string) <-chan error {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		var out, errs bytes.Buffer
		ended <- run(ctx, append([]string{"serve", "--web.listen-address=" + address}, args...), &out, &errs)
	}()
	t.Cleanup(func() { stop(); <-stopped })
	return ended
}

func answers(t *testing.T, url string) bool {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	require.NoError(t, err)
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	return err == nil && resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

func freeAddress(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// A bucket that does not answer is an outage: the server takes writes, and waits. Some kinds are asked when the bucket is opened, some later.
func TestServeOutlivesABucketThatIsAway(t *testing.T) {
	for name, config := range map[string]string{
		"S3":    `{type: S3, config: {bucket: abc, endpoint: "127.0.0.1:1", access_key: a, secret_key: b, insecure: true}}`,
		"Swift": `{type: SWIFT, config: {auth_url: "http://127.0.0.1:1/v3", username: a, password: b, container_name: c, retries: 1}}`,
	} {
		t.Run(name, func(t *testing.T) {
			address := freeAddress(t)
			ended := serveOn(t, address, "--storage.path="+t.TempDir(), "--objstore.config="+config, "--self.scrape-interval=0s")
			require.Eventually(t, func() bool { return answers(t, "http://"+address+"/-/healthy") }, 30*time.Second, 20*time.Millisecond)
			require.Empty(t, ended)
		})
	}
}

func TestServeEndsWhenTheDataPathIsAnothers(t *testing.T) {
	path, address := t.TempDir(), freeAddress(t)
	serveOn(t, address, "--storage.path="+path)
	require.Eventually(t, func() bool { return answers(t, "http://"+address+"/-/ready") }, 30*time.Second, 20*time.Millisecond)
	_, stderr, code := millrace(t, "serve", "--storage.path="+path, "--web.listen-address=127.0.0.1:0")
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "--storage.path="+path)
	require.Contains(t, stderr, "in use by another process")
}
