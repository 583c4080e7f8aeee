// Command millrace runs the engine as a server of its own, and batch jobs and inspections against its bucket.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/version"

	"github.com/millrace/millrace/pkg/batch"
	"github.com/millrace/millrace/pkg/engine"
)

func main() {
	useBuildInfo()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process as it would any other
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	ended := ctx.Err() != nil
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "millrace:", err)
		os.Exit(exitCode(err, ended))
	}
}

// Exit codes. What ended by a signal is as if it had not been begun, and can be run again.
const (
	exitFailed      = 1
	exitElsewhere   = 75  // another process does what is due; sysexits.h has it for what may be tried again later
	exitInterrupted = 130 // what a shell has for commands that Ctrl-C ended
)

func exitCode(err error, signalled bool) int {
	if signalled && errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	if errors.Is(err, batch.ErrElsewhere) {
		return exitElsewhere
	}
	return exitFailed
}

// run carries out the command line args. It returns when the command is done or ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	app := kingpin.New(filepath.Base(os.Args[0]), "A metrics store for Grafana: remote write in, PromQL out, years in a bucket.")
	app.HelpFlag.Short('h')
	app.UsageWriter(stdout)
	app.ErrorWriter(stderr)

	var cfg engine.Config
	serve := app.Command("serve", "Run the engine and its HTTP API.")
	cfg.Flags(serve)
	batchCmd := app.Command("batch", "Batch jobs against the bucket.")
	batchRun := batchCmd.Command("run", "Run all jobs that are due, then end.")
	batchRecompute := batchCmd.Command("recompute", "Build compacted blocks again from the level-0 blocks that are kept, and swap those that differ.")
	bucketCmd := app.Command("bucket", "Look into the bucket.")
	ls := bucketCmd.Command("ls", "List the blocks.")
	verify := bucketCmd.Command("verify", "Read every block whole and check it.")
	var b bucketCommand
	for _, c := range []*kingpin.CmdClause{batchRun, batchRecompute, ls, verify} {
		b.flags(c)
	}
	b.runFlags(batchRun)
	b.recomputeFlags(batchRecompute)
	b.verifyFlags(verify)
	var imp importCommand
	imports := imp.commands(app)
	versionCmd := app.Command("version", "Print the version.")

	expanded, err := engine.ParseArgs(args)
	if err != nil {
		return err
	}
	if len(expanded) == 0 {
		app.UsageWriter(stderr).Usage(nil)
		return errors.New("no command is given")
	}
	if expanded[0] == "--version" { // where many look for it; kingpin's own flag ends the process
		expanded[0] = versionCmd.FullCommand()
	}
	command, err := app.Parse(expanded)
	if err != nil {
		return fmt.Errorf("%w; try '%s --help'", err, understood(app, expanded))
	}
	if do, ok := imports[command]; ok {
		return imp.run(ctx, do, stdout, stderr)
	}
	switch command {
	case serve.FullCommand():
		return runServe(ctx, cfg, stdout, stderr)
	case batchRun.FullCommand():
		return b.run(ctx, stdout, stderr)
	case batchRecompute.FullCommand():
		return b.recompute(ctx, stdout, stderr)
	case ls.FullCommand():
		return b.list(ctx, stdout)
	case verify.FullCommand():
		return b.verify(ctx, stdout)
	case versionCmd.FullCommand():
		fmt.Fprint(stdout, versionText())
	}
	return nil
}

// understood is the part of a command line with a mistake that names a command, whose help lists what it takes.
func understood(app *kingpin.Application, args []string) string {
	parsed, _ := app.ParseContext(args) // the error is known
	if parsed == nil || parsed.SelectedCommand == nil {
		return "millrace"
	}
	return "millrace " + parsed.SelectedCommand.FullCommand()
}

// useBuildInfo takes the version from the module where the build did not set it: 'go install …@version' does not know our flags. The revision
// needs nothing of the kind: the version package finds it itself.
func useBuildInfo() {
	if info, ok := debug.ReadBuildInfo(); ok && version.Version == "" {
		version.Version = info.Main.Version
	}
}

// versionText is what is known of the build, without the lines of what is not.
func versionText() string {
	var known strings.Builder
	first := strings.NewReplacer("branch: , ", "", " (branch: , revision: unknown)", "", ", revision: unknown)", ")")
	for line := range strings.Lines(version.Print("millrace")) {
		_, value, isPair := strings.Cut(line, ": ")
		if value = strings.TrimSpace(value); isPair && (value == "" || value == "unknown") {
			continue
		}
		known.WriteString(strings.TrimRight(first.Replace(line), "\n") + "\n")
	}
	return known.String()
}

func newLogger(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	_ = l.UnmarshalText([]byte(level)) // the flag allows only levels
	o := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
