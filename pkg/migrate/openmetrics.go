package migrate

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"

	"github.com/millrace/millrace/pkg/block"
)

const (
	// batchBytes is about how much text is parsed at once, in whole lines.
	batchBytes = 256 << 10
	// maxLine bounds a line of text, in bytes.
	maxLine = 4 << 20
	eofLine = "# EOF"
)

// OpenMetrics imports text in the OpenMetrics format, which may be compressed with gzip, as 'promtool tsdb create-blocks-from openmetrics'
// reads it: every sample needs a timestamp, and the text has to end with # EOF. Samples may come in any order; of two of one series with
// the same timestamp, the later line counts. Types, help texts and units are kept, exemplars are not.
//
// name is what errors call the text, and size the number of bytes in r, 0 if that is not known. The text is read to its end before
// anything is written.
func (im *Importer) OpenMetrics(ctx context.Context, r io.Reader, name string, size int64) (err error) {
	im.progress.begin("reading "+name, float64(size), false)
	s, err := im.newSpool()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	t := &text{im: im, spool: s, run: newRun(), days: map[span][]*section{}, families: block.Families{}}
	source, err := t.readAll(ctx, io.TeeReader(r, progressWriter{&im.progress}))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	total := uint64(0)
	var parts []part
	for day, sections := range t.days {
		p := part{source: source, partial: t.partial, name: name, span: span{day.to, day.from}}
		for _, sec := range sections {
			p.span.from, p.span.to = min(p.span.from, sec.span.from), max(p.span.to, sec.span.to)
			p.samples += float64(sec.samples)
			p.bytes += sec.n
			p.inputs = append(p.inputs, &spooled{f: s.f, sec: sec, families: t.families})
		}
		if len(im.missingWindows(source, p.span, day)) > 0 {
			total += uint64(p.samples)
			parts = append(parts, p)
		}
	}
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.span.from, b.span.from) })
	im.progress.begin("importing "+name, float64(total), true)
	for _, p := range parts {
		if err := im.write(ctx, aligned(p.span.from, dayMillis), []part{p}); err != nil {
			return err
		}
	}
	return nil
}

// progressWriter tells the progress of bytes.
type progressWriter struct{ p *Progress }

func (w progressWriter) Write(b []byte) (int, error) {
	w.p.add(float64(len(b)), 0)
	return len(b), nil
}

// text is one text on its way to the spool.
type text struct {
	im       *Importer
	spool    *spool
	run      *run
	days     map[span][]*section
	families block.Families
	partial  bool // series were passed over

	line   int              // number of the line that is being parsed
	family model.MetricType // type of the family to which the lines belong
}

// readAll reads everything, and returns what identifies the text.
func (t *text) readAll(ctx context.Context, r io.Reader) (identity, error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	if magic, _ := buffered.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) { // an error comes again
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return identity{}, fmt.Errorf("decompress: %w", err)
		}
		buffered = bufio.NewReaderSize(z, 64<<10)
	}
	lines := &lineReader{r: buffered, sum: sha256.New()}
	for !lines.done {
		if err := ctx.Err(); err != nil {
			return identity{}, err
		}
		batch, err := lines.batch()
		if err != nil {
			return identity{}, fmt.Errorf("line %d: %w", lines.line, err)
		}
		if err := t.parse(batch); err != nil {
			return identity{}, fmt.Errorf("line %d: %w", t.line, err)
		}
	}
	if !lines.eof {
		return identity{}, fmt.Errorf("line %d: data does not end with %s", lines.line, eofLine)
	}
	if err := t.flush(); err != nil {
		return identity{}, err
	}
	return identify("openmetrics", string(lines.sum.Sum(nil))), nil
}

// lineReader cuts a text into batches of whole lines.
type lineReader struct {
	r    *bufio.Reader
	sum  hash.Hash
	buf  []byte
	line int  // lines read so far
	eof  bool // the line that ends the text was read
	done bool // everything was read
}

// batch returns the next lines, without the one that ends the text; they are valid until the next call.
func (l *lineReader) batch() ([]byte, error) {
	l.buf = l.buf[:0]
	for len(l.buf) < batchBytes {
		start := len(l.buf)
		if err := l.readLine(); err != nil {
			return nil, err
		}
		line := l.buf[start:]
		_, _ = l.sum.Write(line) // never fails
		switch {
		case len(line) == 0:
			return l.buf, nil
		case l.eof:
			return nil, errors.New("unexpected data after " + eofLine)
		case string(bytes.TrimSuffix(line, []byte("\n"))) == eofLine:
			l.eof = true
			l.buf = l.buf[:start]
		}
	}
	return l.buf, nil
}

// readLine appends a line to buf, or sets done if there is none.
func (l *lineReader) readLine() error {
	start := len(l.buf)
	for {
		part, err := l.r.ReadSlice('\n')
		if start == len(l.buf) && len(part) > 0 {
			l.line++
		}
		l.buf = append(l.buf, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull) && len(l.buf)-start <= maxLine:
			continue
		case errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("the line has more than %d bytes", maxLine)
		case errors.Is(err, io.EOF):
			l.done = len(l.buf) == start
			return nil
		}
		return err
	}
}

// parse takes up a batch. Prometheus's parser wants a whole text, so that each batch is given an end, and a beginning with the type that
// the lines before have left.
func (t *text) parse(batch []byte) error {
	if len(batch) == 0 {
		return nil
	}
	whole := make([]byte, 0, len(batch)+100)
	if t.family != "" {
		whole = fmt.Appendf(whole, "# TYPE x %s\n", t.family)
		t.line--
	}
	whole = append(whole, batch...)
	if !bytes.HasSuffix(batch, []byte("\n")) {
		whole = append(whole, '\n')
	}
	whole = append(whole, eofLine+"\n"...)
	p := textparse.NewOpenMetricsParser(whole, nil)
	carried := t.family != ""
	for {
		t.line++ // every line is an entry
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			t.line--
			return nil
		}
		if err != nil {
			return err
		}
		if carried {
			carried = false
			continue
		}
		if err := t.entry(p, entry); err != nil {
			return err
		}
	}
}

func (t *text) entry(p textparse.Parser, entry textparse.Entry) error {
	switch entry {
	case textparse.EntryType:
		name, typ := p.Type()
		t.family = typ
		t.run.nextFamily()
		md := t.families[string(name)]
		md.Type = typ
		t.families[string(name)] = md
	case textparse.EntryHelp:
		name, help := p.Help()
		md := t.families[string(name)]
		md.Help = string(help)
		t.families[string(name)] = md
	case textparse.EntryUnit:
		name, unit := p.Unit()
		md := t.families[string(name)]
		md.Unit = string(unit)
		t.families[string(name)] = md
	case textparse.EntrySeries:
		return t.sample(p)
	}
	return nil
}

func (t *text) sample(p textparse.Parser) error {
	raw, ts, v := p.Series()
	s, known := t.run.byText[string(raw)]
	if !known || ts == nil {
		var lset labels.Labels
		p.Labels(&lset)
		if ts == nil {
			return fmt.Errorf("expected timestamp for series %s, got none", lset)
		}
		ok, err := t.im.accept(lset)
		if err != nil {
			return err
		}
		if ok {
			s = t.run.series(lset)
		} else {
			t.partial = true
			t.im.summary.InvalidSeries++
		}
		t.run.remember(raw, s)
	}
	if *ts < minTime || *ts > maxTime {
		return fmt.Errorf("timestamp %g is not in the years 1 to 9999; timestamps are in seconds", float64(*ts)/1000)
	}
	if s == nil || *ts < t.im.bounds.from || *ts >= t.im.bounds.to {
		return nil
	}
	t.run.add(s, *ts, v)
	t.im.progress.add(0, 1)
	if t.run.bytes < t.im.o.memoryLimit {
		return nil
	}
	return t.flush()
}

// flush moves what is in memory to the spool.
func (t *text) flush() error {
	days, err := t.run.spool(t.spool)
	if err != nil {
		return err
	}
	for _, day := range slices.SortedFunc(maps.Keys(days), func(a, b span) int { return cmp.Compare(a.from, b.from) }) {
		t.days[day] = append(t.days[day], days[day])
	}
	t.run = newRun()
	return nil
}
