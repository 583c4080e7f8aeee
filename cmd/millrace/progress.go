package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/millrace/millrace/pkg/batch"
)

const (
	// redrawEvery is for the line on a terminal, logEvery for log lines elsewhere.
	redrawEvery = 500 * time.Millisecond
	logEvery    = 30 * time.Second
	// lineWidth is that of the narrowest terminal on which the line is not broken, in characters.
	lineWidth = 79
	clearLine = "\r\x1b[K"
)

// isTerminal tells whether somebody may be looking at w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// statusLine is a terminal whose last line is redrawn; what else is written to it goes above that line. It may be used by several goroutines.
type statusLine struct {
	mu   sync.Mutex
	w    io.Writer
	line string
}

// Write implements io.Writer.
func (s *statusLine) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.line == "" {
		return s.w.Write(b)
	}
	out := append([]byte(clearLine), b...)
	if bytes.HasSuffix(b, []byte("\n")) {
		out = append(out, s.line...)
	}
	if _, err := s.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// draw puts a line in the place of the one before.
func (s *statusLine) draw(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if line == s.line {
		return
	}
	s.line = line
	fmt.Fprint(s.w, clearLine, line)
}

// showProgress tells of running jobs until stop is called: on a terminal in one line that is redrawn, elsewhere in log lines. The logger is
// for all that is logged meanwhile.
func showProgress(stderr io.Writer, status func() []batch.JobStatus) (logger *slog.Logger, stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	repeat := func(every time.Duration, do func()) {
		wg.Go(func() {
			t := time.NewTicker(every)
			defer t.Stop()
			for {
				select {
				case <-done:
					return
				case <-t.C:
					do()
				}
			}
		})
	}
	if !isTerminal(stderr) {
		logger = newLogger(stderr, "info", "logfmt")
		repeat(logEvery, func() { logProgress(logger, status()) })
		return logger, func() { close(done); wg.Wait() }
	}
	line := &statusLine{w: stderr}
	repeat(redrawEvery, func() { line.draw(progressText(status())) })
	return newLogger(line, "info", "logfmt"), func() { close(done); wg.Wait(); line.draw("") }
}

// progressText is one line about the job that runs and how many wait; empty where none does.
func progressText(jobs []batch.JobStatus) string {
	text, planned := "", 0
	for _, j := range jobs {
		switch j.State {
		case batch.Running:
			text = fmt.Sprintf("%s %3.0f %%, %d of %d blocks, %s series/s", j.Kind, 100*j.Progress, j.WindowsDone, j.Windows, countText(j.Rate))
			if j.Remaining != nil {
				text += ", " + secondsText(*j.Remaining) + " left"
			}
		case batch.Planned:
			planned++
		}
	}
	if text != "" && planned > 0 {
		text += fmt.Sprintf("; %d more jobs", planned)
	}
	return text[:min(len(text), lineWidth)]
}

func logProgress(logger *slog.Logger, jobs []batch.JobStatus) {
	planned := 0
	for _, j := range jobs {
		if j.State == batch.Planned {
			planned++
		}
	}
	for _, j := range jobs {
		if j.State != batch.Running {
			continue
		}
		remaining := "unknown"
		if j.Remaining != nil {
			remaining = secondsText(*j.Remaining)
		}
		logger.Info("batch job runs", "kind", j.Kind, "job", j.ID, "detail", j.Detail, "progress", fmt.Sprintf("%.0f%%", 100*j.Progress),
			"blocks_done", j.WindowsDone, "blocks", j.Windows, "series_done", j.SeriesDone, "series_per_second", int64(j.Rate), "remaining", remaining, "waiting", planned)
	}
}

func secondsText(s float64) string {
	return (time.Duration(min(s, 1e9)) * time.Second).String()
}

// countText writes a number in three or four characters.
func countText(n float64) string {
	switch {
	case n >= 1e6:
		return fmt.Sprintf("%.1fM", n/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.0fk", n/1e3)
	}
	return fmt.Sprintf("%.0f", n)
}
