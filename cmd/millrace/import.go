package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/config"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/millrace/millrace/pkg/engine"
	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/migrate"
)

// importCommand brings the history of others into the bucket.
type importCommand struct {
	bucket      bucketCommand
	labels      map[string]string
	scratch     string
	skipInvalid bool
	limits      ingest.Limits
	from, to    boundValue

	directory, text string
	remote          remoteFlags
}

// remoteFlags say what to read from another server.
type remoteFlags struct {
	url, match, httpFile string
	labels               map[string]string
	timeout              time.Duration
}

// boundValue is the value of a flag for a moment, which may be left out.
type boundValue struct{ ms *int64 }

// Set implements kingpin.Value.
func (b *boundValue) Set(s string) error {
	var t timeValue
	if err := t.Set(s); err != nil {
		return err
	}
	b.ms = (*int64)(&t)
	return nil
}

func (b *boundValue) String() string {
	if b.ms == nil {
		return ""
	}
	return (*timeValue)(b.ms).String()
}

// commands registers the kinds of imports and what runs them, by full name.
func (c *importCommand) commands(app *kingpin.Application) map[string]func(context.Context, *migrate.Importer) error {
	parent := app.Command("import", "Bring history from elsewhere into the bucket. What a server has accepted itself always wins over it. Can be stopped, and goes on when run again.")
	blocks := parent.Command("blocks", "Import the blocks of a Prometheus server.")
	blocks.Arg("directory", "Data directory of the server, or a snapshot of it.").Required().StringVar(&c.directory)
	text := parent.Command("openmetrics", "Import text in the OpenMetrics format, with timestamps, compressed with gzip or not.")
	text.Arg("file", "File with the text; without it, or with -, it is read from the standard input.").StringVar(&c.text)
	remote := parent.Command("remote-read", "Import what a Prometheus server answers to remote reads. --min-time must be given.")
	c.remote.flags(remote)
	for _, cmd := range []*kingpin.CmdClause{blocks, text, remote} {
		c.flags(cmd)
	}
	return map[string]func(context.Context, *migrate.Importer) error{
		blocks.FullCommand(): func(ctx context.Context, im *migrate.Importer) error { return im.Blocks(ctx, c.directory) },
		text.FullCommand():   c.importText,
		remote.FullCommand(): c.remote.run,
	}
}

func (c *importCommand) flags(cmd *kingpin.CmdClause) {
	c.bucket.flags(cmd)
	engine.Named(cmd.Flag("external-label", "Label that names the server in the bucket, as name=value; repeatable. As given to 'millrace serve', so that the history joins what it has."),
		(*engine.Labels)(&c.labels))
	cmd.Flag("import.scratch-path", "Existing folder for temporary files; by default the system's. It needs room for a day's samples, or for a text's.").Default(os.TempDir()).StringVar(&c.scratch)
	cmd.Flag("skip-invalid", "Pass over series with labels that the server would refuse, and count them.").BoolVar(&c.skipInvalid)
	engine.Named(cmd.Flag("min-time", "Import only samples from this time on: 2026-01-31T00:00:00Z, or seconds since 1970."), &c.from)
	engine.Named(cmd.Flag("max-time", "Import only samples up to this time."), &c.to)
	engine.LabelLimitFlags(cmd, &c.limits)
}

func (r *remoteFlags) flags(cmd *kingpin.CmdClause) {
	cmd.Arg("url", "The server, such as http://prometheus:9090; or, ending in /read, where remote reads go.").Required().StringVar(&r.url)
	cmd.Flag("match", "Selector of the series, such as {job=\"node\"}; all if not given.").StringVar(&r.match)
	cmd.Flag("http.config.file", "File with authentication, TLS and proxy for the server, in the format of promtool.").StringVar(&r.httpFile)
	engine.Named(cmd.Flag("remote-read.external-label", "External label of the server, as name=value; repeatable. It adds these to what it answers; they are taken away again."),
		(*engine.Labels)(&r.labels))
	engine.Named(cmd.Flag("remote-read.timeout", "Longest time a request may take; after it, less is asked for.").Default("5m"), (*engine.Duration)(&r.timeout))
}

func (r *remoteFlags) run(ctx context.Context, im *migrate.Importer) error {
	from := migrate.RemoteRead{URL: r.url, HTTP: config.DefaultHTTPClientConfig, Timeout: r.timeout, ExternalLabels: r.labels}
	if r.httpFile != "" {
		c, _, err := config.LoadHTTPConfigFile(r.httpFile)
		if err != nil {
			return fmt.Errorf("--http.config.file=%s: %w", r.httpFile, err)
		}
		from.HTTP = *c
	}
	if r.match != "" {
		var err error
		if from.Matchers, err = parser.NewParser(parser.Options{}).ParseMetricSelector(r.match); err != nil {
			return fmt.Errorf("--match=%s: %w", r.match, err)
		}
	}
	return im.RemoteRead(ctx, from)
}

func (c *importCommand) importText(ctx context.Context, im *migrate.Importer) error {
	if c.text == "" || c.text == "-" {
		return im.OpenMetrics(ctx, interruptible(ctx, os.Stdin), "standard input", 0)
	}
	f, err := os.Open(c.text)
	if err != nil {
		return err
	}
	defer f.Close()
	size := int64(0)
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		size = info.Size()
	}
	return im.OpenMetrics(ctx, f, c.text, size)
}

// interruptible ends reading with ctx. What waits for more of a pipe does not hear of signals; that goroutine ends with the process.
func interruptible(ctx context.Context, r io.Reader) io.Reader {
	out, in := io.Pipe()
	go func() {
		_, err := io.Copy(in, r)
		_ = in.CloseWithError(err) // never fails
	}()
	context.AfterFunc(ctx, func() { _ = out.CloseWithError(ctx.Err()) }) // never fails
	return out
}

// run does one import and says what it did.
func (c *importCommand) run(ctx context.Context, do func(context.Context, *migrate.Importer) error, stdout, stderr io.Writer) (err error) {
	bkt, err := c.bucket.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bkt.Close()) }()
	terminal := asTerminal(stderr)
	log := newLogger(clearing(stderr, terminal), "info", "logfmt")
	im, err := migrate.Open(ctx, migrate.Options{
		Bucket: bkt, Labels: engine.WriterLabels(c.labels), ScratchDir: c.scratch, Limits: c.limits, SkipInvalid: c.skipInvalid,
		MinTime: c.from.ms, MaxTime: c.to.ms, Logger: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	err = reporting(ctx, im.Progress(), terminal, log, func() error { return do(ctx, im) })
	if err == nil || im.Summary() != (migrate.Summary{}) {
		fmt.Fprintln(stdout, im.Summary())
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted; what is in the bucket is consistent, and the same command goes on from there: %w", ctx.Err())
	case err == nil && im.Summary().Blocks > 0:
		fmt.Fprintln(stdout, "A running server sees it after its next look at the bucket, within --objstore.sync-interval (1m if not set).")
	}
	return err
}

// reporting does something and reports its progress meanwhile.
func reporting(ctx context.Context, p *migrate.Progress, terminal io.Writer, log *slog.Logger, do func() error) error {
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(ctx)
	wg.Go(func() { p.Report(ctx, terminal, log) })
	err := do()
	stop()
	wg.Wait()
	return err
}

// asTerminal returns w if a person sees it as it is written, nil otherwise.
func asTerminal(w io.Writer) io.Writer {
	if f, ok := w.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			return w
		}
	}
	return nil
}

// clearing puts what is logged in the place of a terminal's line of progress.
func clearing(w, terminal io.Writer) io.Writer {
	if terminal == nil {
		return w
	}
	return clearingWriter{terminal}
}

type clearingWriter struct{ io.Writer }

func (c clearingWriter) Write(b []byte) (int, error) {
	if _, err := c.Writer.Write(append([]byte("\r\x1b[K"), b...)); err != nil {
		return 0, err
	}
	return len(b), nil
}
