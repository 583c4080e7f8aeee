package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// binaries are built once for all tests.
var binaries struct {
	dir, millrace, prometheus, promtool, versitygw string
}

func TestMain(m *testing.M) {
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "millrace-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	b := &binaries
	b.dir, b.millrace = dir, filepath.Join(dir, "millrace")
	b.prometheus, b.promtool, b.versitygw = filepath.Join(dir, "prometheus"), filepath.Join(dir, "promtool"), filepath.Join(dir, "versitygw")
	if err := build("../..", b.millrace, "./cmd/millrace"); err != nil {
		return 0, err
	}
	// Without service discovery, which no test needs and whose clients are most of what there is to compile.
	if err := build("..", b.prometheus, "-tags=remove_all_sd", "github.com/prometheus/prometheus/cmd/prometheus"); err != nil {
		return 0, err
	}
	if err := build("..", b.promtool, "-tags=remove_all_sd", "github.com/prometheus/prometheus/cmd/promtool"); err != nil {
		return 0, err
	}
	if err := build("..", b.versitygw, "github.com/versity/versitygw/cmd/versitygw"); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

func build(dir, out string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-o", out}, args...)...)
	cmd.Dir = dir
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", args, err, msg)
	}
	return nil
}

// process is a program that a test has started.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	log  *buffer
	done chan struct{}
}

// buffer keeps what a program prints, for the case that a test fails.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.b.String()
	if len(s) > 6000 {
		s = "…" + s[len(s)-6000:]
	}
	return s
}

func start(t *testing.T, program string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: filepath.Base(program), cmd: exec.Command(program, args...), log: &buffer{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	require.NoError(t, p.cmd.Start())
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.signal(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("%s printed:\n%s", p.name, p.log)
		}
	})
	return p
}

// signal sends s and waits for the process to end.
func (p *process) signal(s syscall.Signal) {
	_ = p.cmd.Process.Signal(s)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
		p.t.Errorf("%s did not end within 20 s of signal %v", p.name, s)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// server is a Millrace or a Prometheus.
type server struct {
	*process
	base string
}

func startMillrace(t *testing.T, path, address string, args ...string) *server {
	t.Helper()
	args = append([]string{
		"serve", "--storage.path=" + path, "--web.listen-address=" + address, "--self.scrape-interval=0s", "--batch.interval=0s",
	}, args...)
	s := &server{start(t, binaries.millrace, args...), "http://" + address}
	s.awaitReady()
	return s
}

func (s *server) awaitReady() {
	s.t.Helper()
	eventually(s.t, time.Minute, func() error {
		code, body, err := s.do(http.MethodGet, "/-/ready", nil)
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("%d %s", code, body)
		}
		return err
	})
}

// do sends a request; a form makes it a POST body.
func (s *server) do(method, path string, form url.Values) (int, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, s.base+path, body)
	if err != nil {
		return 0, "", err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), err
}

// answer is the envelope of every answer of the Prometheus API.
type answer struct {
	Status    string          `json:"status"`
	Data      json.RawMessage `json:"data"`
	ErrorType string          `json:"errorType"`
	Error     string          `json:"error"`
	Warnings  []string        `json:"warnings"`
}

// ask returns the data of an answer, or its error.
func (s *server) ask(path string, form url.Values) (json.RawMessage, error) {
	_, raw, err := s.do(http.MethodPost, path, form)
	if err != nil {
		return nil, err
	}
	var a answer
	if err := json.Unmarshal([]byte(raw), &a); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", path, err, raw)
	}
	if a.Status != "success" {
		return nil, fmt.Errorf("%s: %s: %s", path, a.ErrorType, a.Error)
	}
	return a.Data, nil
}

// eventually repeats f until it returns nil, and fails with its last error after limit.
func eventually(t *testing.T, limit time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			require.NoError(t, err, "still so after %s", limit)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// layers is the part of /api/v1/layers that tests look at.
type layers struct {
	Bucket struct {
		Reachable bool `json:"reachable"`
	} `json:"bucket"`
	Generations []struct {
		State   string `json:"state"`
		Samples int64  `json:"samples"`
	} `json:"generations"`
	Blocks []struct {
		ULID     string `json:"ulid"`
		Level    int    `json:"level"`
		Location string `json:"location"`
		Samples  int64  `json:"samples"`
	} `json:"blocks"`
}

func (s *server) layers() layers {
	s.t.Helper()
	code, raw, err := s.do(http.MethodGet, "/api/v1/layers", nil)
	require.NoError(s.t, err)
	require.Equal(s.t, http.StatusOK, code, raw)
	var a struct {
		Data layers `json:"data"`
	}
	require.NoError(s.t, json.Unmarshal([]byte(raw), &a))
	return a.Data
}

// counts tells how many samples lie where.
func (l layers) counts() map[string]int64 {
	n := map[string]int64{}
	for _, g := range l.Generations {
		n[g.State] += g.Samples
	}
	for _, b := range l.Blocks {
		if b.Level == 0 {
			n["level0"] += b.Samples
		} else {
			n["compacted"] += b.Samples
		}
	}
	return n
}

// runBatch asks for all batch work and returns the status and body of the answer.
func (s *server) runBatch() (int, string) {
	s.t.Helper()
	code, raw, err := s.do(http.MethodPost, "/api/v1/batch/run", nil)
	require.NoError(s.t, err)
	return code, raw
}
