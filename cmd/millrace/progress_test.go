package main

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/batch"
)

func TestProgressInOneLine(t *testing.T) {
	left := 75.4
	running := batch.JobStatus{Kind: "compact-1d", State: batch.Running, Progress: 0.426, Windows: 12, WindowsDone: 5, Rate: 118_300, Remaining: &left}
	young := running
	young.Remaining = nil
	long := running
	long.Kind = batch.Kind(strings.Repeat("long", 30))
	for name, row := range map[string]struct {
		jobs []batch.JobStatus
		want string
	}{
		"none":            {nil, ""},
		"none that runs":  {[]batch.JobStatus{{State: batch.Done}, {State: batch.Planned}}, ""},
		"no estimate yet": {[]batch.JobStatus{young}, "compact-1d  43 %, 5 of 12 blocks, 118k series/s"},
		"more wait": {
			[]batch.JobStatus{running, {State: batch.Planned}, {State: batch.Planned}},
			"compact-1d  43 %, 5 of 12 blocks, 118k series/s, 1m15s left; 2 more jobs",
		},
		"too long": {[]batch.JobStatus{long}, strings.Repeat("long", 30)[:lineWidth]},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, row.want, progressText(row.jobs)) })
	}
}

// Log lines stand above the line that is redrawn, whole.
func TestLogLinesStandAboveTheStatusLine(t *testing.T) {
	var out bytes.Buffer
	line := &statusLine{w: &out}
	_, err := line.Write([]byte("first\n"))
	require.NoError(t, err)
	line.draw("10 %")
	line.draw("10 %")
	_, err = line.Write([]byte("second\n"))
	require.NoError(t, err)
	line.draw("")
	require.Equal(t, "first\n"+clearLine+"10 %"+clearLine+"second\n10 %"+clearLine, out.String())
}

func TestProgressElsewhereIsLogged(t *testing.T) {
	var out bytes.Buffer
	left := 3.0
	logProgress(slog.New(slog.NewTextHandler(&out, nil)), []batch.JobStatus{
		{Kind: "compact-2h", State: batch.Running, Progress: 0.5, Windows: 4, WindowsDone: 2, SeriesDone: 700, Rate: 100.2, Remaining: &left}, {State: batch.Planned},
	})
	require.Equal(t, 1, strings.Count(out.String(), " time=")+strings.Count("\n"+out.String(), "\ntime="), "the key of the line's own time")
	require.Contains(t, out.String(), "progress=50% blocks_done=2 blocks=4 series_done=700 series_per_second=100 remaining=3s waiting=1\n")
	file, err := os.Create(t.TempDir() + "/log")
	require.NoError(t, err)
	defer file.Close()
	require.False(t, isTerminal(file))
	require.False(t, isTerminal(&out))
}

func TestNumbersInFewCharacters(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 999: "999", 1000: "1k", 118_300: "118k", 2_340_000: "2.3M"} {
		require.Equal(t, want, countText(n))
	}
	require.Equal(t, (1e9 * time.Second).String(), secondsText(1e300))
}
