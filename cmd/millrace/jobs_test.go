package main

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"
)

const docs = "../../docs"

// commandLine finds lines that are, or hold, a command line of millrace.
var commandLine = regexp.MustCompile(`(?m)^(?:ExecStart=|[-0-9*/ ]+ millrace )?(?:/usr/local/bin/)?millrace ((?:batch|bucket|serve|import|version)\b[^#\n]*)`)

// documented returns the command lines in the documentation, by file, without the executable.
func documented(t *testing.T) map[string][][]string {
	t.Helper()
	found := map[string][][]string{}
	err := filepath.WalkDir(docs, func(name string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		raw, err := os.ReadFile(name)
		if err != nil || strings.HasPrefix(http.DetectContentType(raw), "image/") {
			return err
		}
		for _, m := range commandLine.FindAllStringSubmatch(strings.ReplaceAll(string(raw), "\\\n", " "), -1) {
			found[name] = append(found[name], strings.Fields(strings.ReplaceAll(m[1], "…", "")))
		}
		return nil
	})
	require.NoError(t, err)
	return found
}

// cronJob is what is looked at of the manifest.
type cronJob struct {
	Kind string
	Spec struct {
		JobTemplate struct {
			Spec struct {
				Template struct {
					Spec struct {
						Containers []struct {
							Command      []string
							VolumeMounts []struct {
								Name      string
								MountPath string `yaml:"mountPath"`
							} `yaml:"volumeMounts"`
						}
						Volumes []struct {
							Name     string
							Secret   *struct{}
							EmptyDir *struct {
								SizeLimit string `yaml:"sizeLimit"`
							} `yaml:"emptyDir"`
						}
					}
				}
			}
		} `yaml:"jobTemplate"`
	}
}

// Every command line that the documentation shows is one that millrace understands.
func TestDocumentedCommandLines(t *testing.T) {
	found := documented(t)
	for _, name := range []string{"bucket.md", "jobs/crontab", "jobs/millrace-batch.service"} {
		require.NotEmpty(t, found[filepath.Join(docs, name)], name)
	}
	found["jobs/cronjob.yaml"] = [][]string{readCronJob(t).Spec.JobTemplate.Spec.Template.Spec.Containers[0].Command[1:]}
	for name, lines := range found {
		for _, args := range lines {
			// With --help nothing is run; a flag that does not exist is an error all the same.
			_, stderr, code := millrace(t, append(args, "--help")...)
			require.Zero(t, code, "%s: %s: %s", name, args, stderr)
			require.NotContains(t, stderr, "unknown", "%s: %s", name, args)
		}
	}
	_, _, code := millrace(t, "batch", "run", "--no-such-flag", "--help")
	require.NotZero(t, code, "this test must be able to fail")
}

func readCronJob(t *testing.T) (c cronJob) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(docs, "jobs", "cronjob.yaml"))
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(raw, &c))
	return c
}

// What the command of the manifest names is mounted.
func TestTheCronJobMountsWhatItsCommandNames(t *testing.T) {
	c := readCronJob(t)
	require.Equal(t, "CronJob", c.Kind)
	pod := c.Spec.JobTemplate.Spec.Template.Spec
	mounts := map[string]string{}
	for _, m := range pod.Containers[0].VolumeMounts {
		mounts[m.Name] = m.MountPath
	}
	flags := strings.Join(pod.Containers[0].Command, " ")
	for _, v := range pod.Volumes {
		switch {
		case v.Secret != nil:
			require.Contains(t, flags, "--objstore.config-file="+mounts[v.Name]+"/")
		case v.EmptyDir != nil:
			require.NotEmpty(t, v.EmptyDir.SizeLimit)
			require.Contains(t, flags, "--batch.scratch-path="+mounts[v.Name]+"/")
		}
	}
	require.Len(t, mounts, 2)
}

// Every command takes the bucket's configuration as 'millrace serve' does, and as Thanos's do.
func TestTheBucketsConfigurationIsAFileOrAText(t *testing.T) {
	content := "{type: FILESYSTEM, config: {directory: " + t.TempDir() + "}}"
	config := file(t, content)
	for _, flag := range []string{"--objstore.config-file=" + config, "--bucket.config-file=" + config, "--objstore.config=" + content} {
		out, stderr, code := millrace(t, "batch", "run", flag)
		require.Zero(t, code, stderr)
		require.Contains(t, out, "0 jobs done")
	}
	out, _, _ := millrace(t, "batch", "run", "--help")
	require.NotContains(t, out, "--bucket.config-file")
	for _, command := range [][]string{{"batch", "run"}, {"batch", "recompute", "--min-time=0", "--max-time=1"}, {"bucket", "ls"}, {"bucket", "verify"}, {"import", "openmetrics"}} {
		_, stderr, code := millrace(t, append(command, "--objstore.config-file="+config, "--objstore.config="+content)...)
		require.Equal(t, 1, code)
		require.Equal(t, "millrace: --objstore.config-file and --objstore.config exclude each other\n", stderr)
	}
}

// No blocks are deleted at once, as queries may read them; 0 is not taken for what is not set.
func TestBatchRunRefusesToDeleteAtOnce(t *testing.T) {
	for value, says := range map[string]string{"0s": "--batch.deletion-delay=0s: must be above 0", "1s": "deletion delay 1s must be at least 4m"} {
		config := file(t, "type: FILESYSTEM\nconfig: {directory: "+t.TempDir()+"}\n")
		_, stderr, code := millrace(t, "batch", "run", "--objstore.config-file="+config, "--batch.deletion-delay="+value)
		require.Equal(t, exitFailed, code)
		require.Contains(t, stderr, says)
	}
}

// A signal ends a run that waits for its bucket, with a code of its own and nothing left in its scratch space.
func TestASignalEndsBatchRun(t *testing.T) {
	asked, done := make(chan struct{}, 100), make(chan struct{})
	store := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-done
	}))
	defer store.Close()
	defer close(done)
	config := file(t, "type: S3\nconfig: {bucket: metrics, region: r, insecure: true, access_key: a, secret_key: b, endpoint: "+
		strings.TrimPrefix(store.URL, "http://")+"}\n")
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		var stderr bytes.Buffer
		temporary := t.TempDir()
		cmd := exec.CommandContext(t.Context(), os.Args[0], "batch", "run", "--objstore.config-file="+config)
		cmd.Env = append(os.Environ(), actAsMillrace+"=1", "TMPDIR="+temporary)
		cmd.Stderr = &stderr
		require.NoError(t, cmd.Start())
		<-asked
		require.NoError(t, cmd.Process.Signal(signal))
		failed, ok := errors.AsType[*exec.ExitError](cmd.Wait())
		require.True(t, ok, stderr.String())
		require.Equal(t, exitInterrupted, failed.ExitCode(), stderr.String())
		require.Contains(t, stderr.String(), "interrupted; what is in the bucket is consistent")
		left, err := os.ReadDir(temporary)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}
