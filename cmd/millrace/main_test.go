package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/prometheus/common/version"
	"github.com/stretchr/testify/require"
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

func TestVersion(t *testing.T) {
	number, revision := version.Version, version.Revision
	t.Cleanup(func() { version.Version, version.Revision = number, revision })
	version.Version, version.Revision = "1.2.3", "abcdef"
	text := versionText()
	require.Contains(t, text, "millrace, version 1.2.3 (revision: abcdef)\n")
	require.Contains(t, text, "go version:")
	require.NotContains(t, text, "build user", "it is not known")

	out, _, code := millrace(t, "version")
	require.Zero(t, code)
	require.Regexp(t, `^millrace, version \S+ \(revision: \S+\)\n`, out, "a build without flags knows something, too")
}
