package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A cron job applies the retention rules that it is given, and says which of them make no sense.
func TestBatchRunAppliesRetentionRules(t *testing.T) {
	path, text := t.TempDir(), filepath.Join(t.TempDir(), "history.om")
	history := "# TYPE m gauge\n"
	for _, job := range []string{"debug", "prod"} {
		for day := range 3 {
			history += fmt.Sprintf("m{job=%q} %d %d\n", job, day, time.Now().Add(time.Duration(day-8)*24*time.Hour).Unix())
		}
	}
	require.NoError(t, os.WriteFile(text, []byte(history+"# EOF\n"), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(path, "bucket"), 0o750))
	_, errs, code := millrace(t, "import", "openmetrics", "--storage.path="+path, "--import.scratch-path="+t.TempDir(), text)
	require.Zero(t, code, errs)

	run := []string{"batch", "run", "--storage.path=" + path, "--batch.deletion-delay=4m", `--storage.retention.rule={job="debug"}: 3d`}
	_, errs, code = millrace(t, run...)
	require.Zero(t, code, errs)
	for _, m := range metas(t, path) {
		require.Empty(t, m.Dropped(), "not by a clock that was read once")
	}
	readings := ""
	for hours := 25; hours > 0; hours -= 5 { // as runs over a day would have read it
		readings += fmt.Sprintf(",%d", time.Now().Add(-time.Duration(hours)*time.Hour).UnixMilli())
	}
	clock := filepath.Join(path, "bucket", "millrace", "clock.json")
	require.FileExists(t, clock)
	require.NoError(t, os.WriteFile(clock, []byte(`{"version":1,"sure":0,"readings":[`+readings[1:]+`]}`), 0o600))
	_, errs, code = millrace(t, run...)
	require.Zero(t, code, errs)
	found := 0
	for _, m := range metas(t, path) {
		if len(m.Replaces()) > 0 {
			require.Equal(t, []string{`{job="debug"}`}, m.Dropped())
			require.Equal(t, uint64(1), m.Stats.NumSeries)
			found++
		}
	}
	require.Positive(t, found)
	out, errs, code := millrace(t, "bucket", "verify", "--storage.path="+path)
	require.Zero(t, code, out, errs)
	out, errs, code = millrace(t, run...)
	require.Zero(t, code, errs)
	require.Contains(t, out, "0 jobs done", "once is enough")

	_, errs, code = millrace(t, append(run, "--storage.retention.time=2d")...)
	require.Equal(t, 1, code)
	require.Contains(t, errs, `millrace: --storage.retention.rule={job="debug"}: 3d: nothing is kept for longer than the retention of all series, 2d`)
	_, errs, code = millrace(t, append(run, "--storage.retention.rule=up")...)
	require.NotZero(t, code)
	require.Contains(t, errs, "must be a selector of series and an age")
}
