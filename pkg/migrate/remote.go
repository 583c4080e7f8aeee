package migrate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/millrace/millrace/pkg/merge"
)

const (
	// readPath is where a Prometheus server answers remote reads.
	readPath = "/api/v1/read"
	// frameLimit bounds a frame of a streamed answer, in bytes, as Prometheus does.
	frameLimit = 50e6
	// quickly is the time within which a request must be answered if the next one is to ask for twice the time.
	quickly = 10 * time.Second
	// leastRequest is the shortest range of time that is asked for, in ms, and attempts how often that is tried.
	leastRequest = int64(time.Minute / time.Millisecond)
	attempts     = 4
	// dials is how often a server that cannot be reached is asked, each time after twice as long.
	dials = 5
)

// RemoteRead says what to import from another server.
type RemoteRead struct {
	// URL of a Prometheus server, or of where something else answers remote reads.
	URL  string
	HTTP config.HTTPClientConfig
	// Timeout of a request, 5 minutes if 0.
	Timeout time.Duration
	// Matchers select the series; all if there are none.
	Matchers []*labels.Matcher
	// ExternalLabels of the server: it adds them to answers, and they are taken away again.
	ExternalLabels map[string]string

	retryAfter time.Duration // 0 is a second
}

// RemoteRead imports what another server answers to remote reads. Options.MinTime must be given; without MaxTime it is up to now. A day is read
// in as few requests as the server answers quickly: where one fails, it is tried again with half the time. What was read of a day is
// lost when the import is stopped, unless the day is a large one.
func (im *Importer) RemoteRead(ctx context.Context, r RemoteRead) (err error) {
	if im.o.MinTime == nil {
		return errors.New("--min-time must say from when on the history is to be read")
	}
	if im.o.MaxTime == nil {
		im.bounds.to = min(im.bounds.to, time.Now().UnixMilli()+1)
	}
	if im.bounds.empty() {
		return fmt.Errorf("there is no time between %s and %s", stamp(im.bounds.from), stamp(im.bounds.to))
	}
	im.progress.begin("reading from "+r.name(), 0, false)
	f, err := im.newReader(r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	var todo []span
	total := 0.0
	for _, w := range im.missingWindows(f.source, im.bounds, im.bounds) {
		total += float64(w.clip(im.bounds).to - w.clip(im.bounds).from)
		if n := len(todo); n > 0 && todo[n-1].to == w.from && aligned(todo[n-1].from, dayMillis).to > w.from {
			todo[n-1].to = w.to
		} else {
			todo = append(todo, w)
		}
	}
	im.progress.begin("reading from "+r.name(), total, false)
	for _, s := range todo {
		if err := f.day(ctx, s); err != nil {
			return fmt.Errorf("read from %s: %w", r.name(), err)
		}
	}
	return nil
}

// name is the URL without secrets.
func (r *RemoteRead) name() string {
	u, err := url.Parse(r.URL)
	if err != nil {
		return "the server"
	}
	return u.Redacted()
}

// endpoint is the URL to which requests go.
func (r *RemoteRead) endpoint() (*url.URL, error) {
	u, err := url.Parse(r.URL)
	if err != nil {
		return nil, fmt.Errorf("URL of the server: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("URL of the server: %q is not like http://prometheus:9090", u.Redacted())
	}
	if !strings.HasSuffix(u.Path, "/read") {
		u.Path = strings.TrimSuffix(u.Path, "/") + readPath
	}
	return u, nil
}

// reader reads from a server into the spool.
type reader struct {
	im     *Importer
	r      RemoteRead
	client *remote.Client
	query  prompb.Query
	source identity
	spool  *spool
	width  int64 // of the next request, in ms

	invalid  map[uint64]bool // hashes of series that were passed over
	sections []*section      // of the day that is being read
	samples  uint64          // in them
}

func (im *Importer) newReader(r RemoteRead) (*reader, error) {
	u, err := r.endpoint()
	if err != nil {
		return nil, err
	}
	if r.Timeout == 0 {
		r.Timeout = 5 * time.Minute
	}
	if r.retryAfter == 0 {
		r.retryAfter = time.Second
	}
	client, err := remote.NewReadClient("millrace import", &remote.ClientConfig{
		URL: &config.URL{URL: u}, Timeout: model.Duration(r.Timeout), HTTPClientConfig: r.HTTP, ChunkedReadLimit: frameLimit,
	})
	if err != nil {
		return nil, fmt.Errorf("client of %s: %w", r.name(), err)
	}
	f := &reader{im: im, r: r, width: windowMillis, invalid: map[uint64]bool{}}
	f.client, _ = client.(*remote.Client) // is what NewReadClient makes
	matchers := slices.Clone(r.Matchers)
	if len(matchers) == 0 {
		matchers = append(matchers, labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+"))
	}
	parts := []string{u.Redacted(), labels.FromMap(r.ExternalLabels).String()}
	for _, m := range matchers {
		parts = append(parts, m.String())
	}
	slices.Sort(parts[2:])
	f.source = identify("remote read", parts...)
	for name, value := range r.ExternalLabels {
		matchers = append(matchers, labels.MustNewMatcher(labels.MatchEqual, name, value))
	}
	if f.query.Matchers, err = remote.ToLabelMatchers(matchers); err != nil {
		return nil, fmt.Errorf("selection of series: %w", err)
	}
	f.spool, err = im.newSpool()
	return f, err
}

func (f *reader) close() error {
	f.client.Client.CloseIdleConnections()
	return f.spool.close()
}

// day imports s, which is whole windows of one day.
func (f *reader) day(ctx context.Context, s span) error {
	written := s.from
	for at := s.clip(f.im.bounds).from; at < s.clip(f.im.bounds).to; {
		next, err := f.request(ctx, span{at, s.clip(f.im.bounds).to})
		if err != nil {
			return err
		}
		f.im.progress.add(float64(next-at), 0)
		at = next
		// A large day goes to the bucket as it comes, in windows that are complete.
		if done := aligned(at, windowMillis).from; float64(f.samples) > f.im.o.daySamples && done > written && at < s.clip(f.im.bounds).to {
			if err := f.write(ctx, span{written, done}, at > done); err != nil {
				return err
			}
			written = done
		}
	}
	return f.write(ctx, span{written, s.to}, false)
}

// write makes blocks of what was read of s. With more, the spool also has something of what follows.
func (f *reader) write(ctx context.Context, s span, more bool) error {
	p := part{source: f.source, partial: len(f.invalid) > 0, name: f.r.name(), span: s.clip(f.im.bounds), samples: float64(f.samples)}
	for _, sec := range f.sections {
		p.bytes += sec.n
		p.inputs = append(p.inputs, &spooled{f: f.spool.f, sec: sec})
	}
	if err := f.im.write(ctx, s, []part{p}); err != nil {
		return err
	}
	if more {
		f.sections = slices.DeleteFunc(f.sections, func(sec *section) bool { return sec.span.to <= s.to })
	} else {
		f.sections = nil
	}
	f.samples = 0
	for _, sec := range f.sections {
		f.samples += sec.samples
	}
	if len(f.sections) > 0 {
		return nil
	}
	return f.spool.reset()
}

// request reads from the beginning of s as far as one request goes, and returns where that is.
func (f *reader) request(ctx context.Context, s span) (next int64, err error) {
	for failed, dialed, pause := 0, 0, f.r.retryAfter; ; {
		asked := span{s.from, min(s.to, s.from+f.width)}
		began := time.Now()
		sec := f.spool.begin()
		err := f.fetch(ctx, asked, sec)
		if err == nil {
			err = f.spool.end(sec)
		}
		if err == nil {
			f.add(sec)
			if time.Since(began) < quickly && float64(sec.samples) < f.im.o.daySamples/12 {
				f.width = min(2*f.width, dayMillis)
			}
			return asked.to, nil
		}
		if aborted := f.spool.abort(sec); aborted != nil {
			return 0, errors.Join(err, aborted)
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		switch {
		case unreached(err): // which asking for less does not change
			if dialed++; dialed == dials {
				return 0, fmt.Errorf("the server cannot be reached: %w", err)
			}
			if dialed > 1 {
				pause *= 2
			}
			f.im.log.Warn("the server cannot be reached and is tried again", "in", pause, "err", err)
		case !worthTrying(err):
			return 0, fmt.Errorf("%s: %w", asked, err)
		default:
			if f.width <= leastRequest {
				failed++
			}
			if failed == attempts {
				return 0, fmt.Errorf("%s: %w", asked, err)
			}
			pause = f.r.retryAfter
			text := "a request failed and is tried again"
			if f.width > leastRequest {
				text += " for a shorter time"
			}
			f.width = max(leastRequest, f.width/2)
			f.im.log.Warn(text, "asked", asked, "next", time.Duration(f.width)*time.Millisecond, "err", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

func (f *reader) add(sec *section) {
	if sec.samples == 0 {
		return
	}
	f.sections = append(f.sections, sec)
	f.samples += sec.samples
	f.im.progress.add(0, sec.samples)
}

// errRefused says that a series cannot be imported, so that asking again is of no use.
var errRefused = errors.New("refused")

// refusal finds answers that will not change: unauthorized, forbidden, and no such path. Limits are 400, 413, 422 and 429.
var refusal = regexp.MustCompile(`returned http status 40[13456]\b`)

// unreached tells whether a request has failed before it got to the server.
func unreached(err error) bool {
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
		return true
	}
	_, ok := errors.AsType[*net.DNSError](err)
	return ok
}

func worthTrying(err error) bool {
	return !errors.Is(err, errRefused) && !refusal.MatchString(err.Error())
}

// fetch reads s into a section.
func (f *reader) fetch(ctx context.Context, s span, sec *section) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends an answer that is not read to its end
	q := f.query
	q.StartTimestampMs, q.EndTimestampMs = s.from, s.to-1
	set, err := f.client.Read(ctx, &q, true)
	if err != nil {
		return err
	}
	var it chunkenc.Iterator
	for set.Next() {
		if it, err = f.series(set.At(), s, sec, it); err != nil {
			return err
		}
	}
	return set.Err()
}

// series moves a series to the spool.
func (f *reader) series(series storage.Series, s span, sec *section, it chunkenc.Iterator) (chunkenc.Iterator, error) {
	lset := f.stored(series.Labels())
	ok, err := f.im.accept(lset)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	if !ok {
		if h := lset.Hash(); !f.invalid[h] {
			f.invalid[h] = true
			f.im.summary.InvalidSeries++
		}
		return it, nil
	}
	it = series.Iterator(it)
	enc := merge.Encode(merge.Limit(it, s.from, s.to-1), merge.EncodeOptions{})
	for enc.Next() {
		if err := f.spool.add(sec, lset, enc.At()); err != nil {
			return nil, err
		}
	}
	if err := enc.Err(); err != nil {
		return nil, fmt.Errorf("series %s: %w", lset, err)
	}
	return it, nil
}

// stored are a series' labels without those that the server adds to all.
func (f *reader) stored(lset labels.Labels) labels.Labels {
	if len(f.r.ExternalLabels) == 0 {
		return lset
	}
	b := labels.NewBuilder(lset)
	for name, value := range f.r.ExternalLabels {
		if lset.Get(name) == value {
			b.Del(name)
		}
	}
	return b.Labels()
}
