package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/version"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/batch"
)

// actAsMillrace makes the test's executable be millrace.
const actAsMillrace = "MILLRACE_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(actAsMillrace) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// millrace runs a command to its end, as a user does.
func millrace(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), actAsMillrace+"=1")
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), errs.String(), failed.ExitCode()
	}
	require.NoError(t, err)
	return out.String(), errs.String(), 0
}

func TestHelpHasSizesAsErrorsHaveThem(t *testing.T) {
	out, _, code := millrace(t, "serve", "--help")
	require.Zero(t, code)
	require.Contains(t, out, "--ingest.max-body-size=32MB")
	require.Contains(t, out, "--storage.local-limit=20GB")
	require.NotContains(t, out, "iB")
}

func TestExitCodes(t *testing.T) {
	elsewhere := fmt.Errorf("%w: process 7", batch.ErrElsewhere)
	require.Equal(t, exitElsewhere, exitCode(elsewhere, false))
	require.Equal(t, exitFailed, exitCode(errors.New("no bucket"), false))
	require.Equal(t, exitInterrupted, exitCode(fmt.Errorf("interrupted: %w", context.Canceled), true))
	require.Equal(t, exitFailed, exitCode(fmt.Errorf("the store gave up: %w", context.Canceled), false))
}

// The help that an error points to lists what the user was looking for.
func TestAMistakePointsToTheHelpOfItsCommand(t *testing.T) {
	for _, row := range []struct {
		args []string
		help string
	}{
		{[]string{"serve", "--query.timeot=5m"}, "try 'millrace serve --help'"},
		{[]string{"serve", "--log.level=loud"}, "try 'millrace serve --help'"},
		{[]string{"bucket", "ls", "--nonsense"}, "try 'millrace bucket ls --help'"},
		{[]string{"serf"}, "try 'millrace --help'"},
		{[]string{"--nonsense"}, "try 'millrace --help'"},
	} {
		_, stderr, code := millrace(t, row.args...)
		require.Equal(t, 1, code)
		require.Contains(t, stderr, row.help)
	}
}

// Who forgot the command, as in a unit or a container, must not take its end for success.
func TestNoCommandIsAMistake(t *testing.T) {
	out, stderr, code := millrace(t)
	require.Equal(t, 1, code)
	require.Empty(t, out)
	require.Contains(t, stderr, "usage: ")
	require.True(t, strings.HasSuffix(stderr, "millrace: no command is given\n"), stderr)
	for _, asked := range []string{"help", "--help"} {
		out, stderr, code := millrace(t, asked)
		require.Zero(t, code)
		require.Contains(t, out, "usage: ")
		require.Empty(t, stderr)
	}
}

// A value by itself does not tell where it was given.
func TestABadValueIsNamedWithItsFlag(t *testing.T) {
	for _, row := range [][]string{ // the last is the flag
		{"serve", "--query.timeout=x"},
		{"batch", "recompute", "--max-time=1", "--min-time=x"},
		{"batch", "recompute", "--min-time=1", "--max-time=x"},
		{"batch", "run", "--storage.retention.time=x"},
		{"batch", "run", "--storage.retention.size=x"},
		{"batch", "run", "--storage.retention.rule=x"},
		{"import", "openmetrics", "--min-time=x"},
		{"import", "openmetrics", "--external-label=x"},
		{"import", "openmetrics", "--ingest.max-labels=x"},
		{"import", "remote-read", "http://a", "--remote-read.timeout=x"},
		{"import", "remote-read", "http://a", "--remote-read.external-label=x"},
	} {
		_, stderr, code := millrace(t, row...)
		require.Equal(t, 1, code)
		require.True(t, strings.HasPrefix(stderr, "millrace: "+row[len(row)-1]+": "), stderr)
	}
}

func TestSettingsThatCannotWorkEndServe(t *testing.T) {
	config := file(t, "\nquery.timeout: abc\n")
	small := file(t, "memory.limit: 1MB\n")
	for _, row := range [][]string{ // the last is what the error says
		{"--storage.path=", "--storage.path="},
		{"--config.file=" + config, "--config.file=" + config + `: line 2: query.timeout: "abc": `},
		{"--config.file=" + small, "--memory.limit=1MB: must be 0 or at least 64MB (settings of the command line and of --config.file=" + small + ")"},
	} {
		_, stderr, code := millrace(t, "serve", row[0])
		require.Equal(t, 1, code)
		require.Contains(t, stderr, row[1])
		require.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
	}
}

func TestTheBannerHasAURLThatWorks(t *testing.T) {
	text := banner("https://10.0.0.1:9393", false)
	require.Contains(t, text, "curl 'https://10.0.0.1:9393/api/v1/layers'")
	require.NotContains(t, text, "on this machine")
	text = banner("http://127.0.0.1:9393", true)
	require.Contains(t, text, "http://127.0.0.1:9393 (on this machine)")
	require.Contains(t, text, "url: http://127.0.0.1:9393/api/v1/write")
}

// An error names the flag of the limit, and has the status and the type that clients of Prometheus know.
func TestTheAPINamesTheLimitThatAQueryMet(t *testing.T) {
	const sum = "vector(time())%2Bvector(time())"
	for _, row := range []struct {
		flag, end       string
		query           string
		status          int
		errorType, text string
	}{
		{"--query.max-samples=100", "80", sum, http.StatusUnprocessableEntity, "execution", "--query.max-samples=100"},
		{"--query.timeout=1ms", "10000", sum + strings.Repeat("%2Bvector(time())", 200), http.StatusServiceUnavailable, "timeout", "--query.timeout=1ms"},
	} {
		t.Run(row.flag, func(t *testing.T) {
			address := freeAddress(t)
			serveOn(t, address, "--storage.path="+t.TempDir(), row.flag)
			require.Eventually(t, func() bool { return answers(t, "http://"+address+"/-/ready") }, 30*time.Second, 20*time.Millisecond)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/api/v1/query_range?start=0&step=1&end="+row.end+"&query="+row.query, http.NoBody)
			require.NoError(t, err)
			resp, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, row.status, resp.StatusCode, string(body))
			require.Contains(t, string(body), `"errorType":"`+row.errorType+`"`)
			require.Contains(t, string(body), row.text)
		})
	}
}

func TestVersion(t *testing.T) {
	number, revision := version.Version, version.Revision
	t.Cleanup(func() { version.Version, version.Revision = number, revision })
	version.Version, version.Revision = "1.2.3", "abcdef"
	text := versionText()
	require.Contains(t, text, "millrace, version 1.2.3 (revision: abcdef)\n")
	require.Contains(t, text, "go version:")
	require.NotContains(t, text, "build user", "it is not known")

	require.NotContains(t, text, "tags", "they are not known either")

	out, _, code := millrace(t, "version")
	flag, _, _ := millrace(t, "--version")
	require.Equal(t, out, flag)
	require.Zero(t, code)
	require.Regexp(t, `^millrace, version \S+( \(revision: \S+\))?\n  go version: `, out, "a build without flags knows something, too")
	require.NotContains(t, out, "unknown")
}

func TestAMistakeIsQuotedOnce(t *testing.T) {
	for _, flag := range []string{"--storage.retention.time=abc", "--storage.retention.rule=abc", "--external-label=abc"} {
		_, errs, code := millrace(t, "serve", flag)
		require.NotZero(t, code)
		require.Equal(t, 1, strings.Count(errs, "abc"), errs)
	}
}
