package migrate

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestProgressTellsRateAndWhatRemains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Progress
		require.Equal(t, "listing the bucket", p.String())
		p.begin("reading", 0, false)
		time.Sleep(10 * time.Second)
		p.add(5, 2000)
		p.read(1) // is of another kind of phase
		require.Equal(t, "reading, 2000 samples (200/s)", p.String(), "without a total nobody knows what remains")
		p.begin("importing", 400, true)
		time.Sleep(10 * time.Second)
		p.read(100)
		require.Equal(t, "importing 25 %, 100 samples (10/s), about 30s left", p.String())
		p.read(1000)
		require.Equal(t, "importing 100 %, 1100 samples (110/s)", p.String(), "estimates may be too low")
	})
}

func TestProgressIsReported(t *testing.T) {
	for _, row := range []struct {
		name           string
		terminal       bool
		screen, logged string
	}{
		{"on a terminal", true, "\r\x1b[Kreading 50 %\r\x1b[K", ""},
		{"in a log", false, "", "level=INFO msg=importing progress=\"reading 50 %, about 30s left\"\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var (
					p           Progress
					screen, log bytes.Buffer
				)
				p.begin("reading", 2, false)
				p.add(1, 0)
				ctx, stop := context.WithCancel(t.Context())
				logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
					if a.Key == slog.TimeKey {
						return slog.Attr{}
					}
					return a
				}}))
				go func() {
					if row.terminal {
						p.Report(ctx, &screen, logger)
					} else {
						p.Report(ctx, nil, logger)
					}
				}()
				if row.terminal {
					time.Sleep(terminalInterval)
				} else {
					time.Sleep(logInterval)
				}
				synctest.Wait()
				stop()
				synctest.Wait()
				require.Equal(t, row.screen, screen.String())
				require.Equal(t, row.logged, log.String())
			})
		})
	}
}
