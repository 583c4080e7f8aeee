package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	s3Bucket = "metrics"
	s3Access = "millrace"
	s3Secret = "millrace-secret"
)

// s3Server is a real S3 server over a folder, in which an object is a file. It can be killed and started again.
type s3Server struct {
	t       *testing.T
	root    string // one folder a bucket
	address string
	running *process
}

func startS3(t *testing.T) *s3Server {
	t.Helper()
	s := &s3Server{t: t, root: t.TempDir(), address: freeAddress(t)}
	require.NoError(t, os.Mkdir(s.folder(), 0o750))
	s.start()
	return s
}

func (s *s3Server) start() {
	s.t.Helper()
	s.running = start(s.t, binaries.versitygw, "--port", s.address, "--access", s3Access, "--secret", s3Secret, "--quiet", "posix", s.root)
	eventually(s.t, 20*time.Second, func() error {
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

func (s *s3Server) kill() { s.running.signal(syscall.SIGKILL) }

// folder is where the bucket's objects are.
func (s *s3Server) folder() string { return filepath.Join(s.root, s3Bucket) }

// config is the file that leads to the bucket, through address.
func (s *s3Server) config(address string) string {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "bucket.yaml")
	text := fmt.Sprintf("type: S3\nconfig:\n  bucket: %s\n  endpoint: %s\n  insecure: true\n  access_key: %s\n  secret_key: %s\n", s3Bucket, address, s3Access, s3Secret)
	require.NoError(s.t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

// startMillrace runs a server on the bucket. What a test would have to wait for comes at once.
func (s *s3Server) startMillrace(path, config string, args ...string) *server {
	s.t.Helper()
	return startMillrace(s.t, path, freeAddress(s.t), append([]string{
		"--objstore.config-file=" + config, "--objstore.sync-interval=500ms", "--query.timeout=20s", "--batch.deletion-delay=22s",
	}, args...)...)
}

// verify lets the command read every block whole, and returns what it printed.
func (s *s3Server) verify() string {
	s.t.Helper()
	out, err := exec.Command(binaries.millrace, "bucket", "verify", "--objstore.config-file="+s.config(s.address)).CombinedOutput()
	require.NoError(s.t, err, string(out))
	return string(out)
}

// blockFiles is the part of a block's meta.json that says which files it has.
type blockFiles struct {
	Thanos struct {
		Files []struct {
			Path string `json:"rel_path"`
			Size int64  `json:"size_bytes"`
		} `json:"files"`
	} `json:"thanos"`
}

// partialBlock looks past the S3 server into its folder, for a block that is visible and not whole. The number is that of the visible ones.
func (s *s3Server) partialBlock() (int, error) {
	found, err := filepath.Glob(filepath.Join(s.folder(), "*", "meta.json"))
	if err != nil {
		return 0, err
	}
	for _, name := range found {
		// One that is being deleted loses its meta.json first.
		err := incomplete(name)
		if _, gone := os.Stat(name); err != nil && !errors.Is(gone, os.ErrNotExist) {
			return 0, err
		}
	}
	return len(found), nil
}

func incomplete(meta string) error {
	raw, err := os.ReadFile(meta)
	if err != nil {
		return err
	}
	var m blockFiles
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("%s: %w", meta, err)
	}
	if len(m.Thanos.Files) == 0 {
		return fmt.Errorf("%s names no files", meta)
	}
	for _, f := range m.Thanos.Files {
		name := filepath.Join(filepath.Dir(meta), filepath.FromSlash(f.Path))
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		if f.Size > 0 && info.Size() != f.Size {
			return fmt.Errorf("%s has %d bytes, not %d", name, info.Size(), f.Size)
		}
	}
	return nil
}

// dropLeases takes away what processes that were killed have left, instead of waiting for minutes until it has lapsed.
func (s *s3Server) dropLeases() {
	s.t.Helper()
	require.NoError(s.t, os.RemoveAll(filepath.Join(s.folder(), "millrace", "compactors")))
}

// watchBlocks looks for partial blocks until the test ends.
func (s *s3Server) watchBlocks() {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := s.partialBlock(); err != nil {
				s.t.Errorf("a block that is not whole is visible: %v", err)
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	s.t.Cleanup(func() {
		close(stop)
		<-done
	})
}
