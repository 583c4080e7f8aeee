package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/ingest"
)

// writeExemplars sends exemplars of the series m{series}, beside a sample, in either version of remote write.
func writeExemplars(t *testing.T, e *Engine, p ingest.Protocol, series string, es ...exemplar.Exemplar) {
	t.Helper()
	at := es[0].Ts
	var raw []byte
	var err error
	if p == ingest.V1 {
		ts := prompb.TimeSeries{
			Labels:  []prompb.Label{{Name: "__name__", Value: "m"}, {Name: "series", Value: series}},
			Samples: []prompb.Sample{{Timestamp: at, Value: 1}},
		}
		for _, ex := range es {
			ts.Exemplars = append(ts.Exemplars, prompb.Exemplar{Labels: prompb.FromLabels(ex.Labels, nil), Value: ex.Value, Timestamp: ex.Ts})
		}
		raw, err = (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{ts}}).Marshal()
	} else {
		symbols := writev2.NewSymbolTable()
		ts := writev2.TimeSeries{
			LabelsRefs: symbols.SymbolizeLabels(labels.FromStrings("__name__", "m", "series", series), nil),
			Samples:    []writev2.Sample{{Timestamp: at, Value: 1}},
		}
		for _, ex := range es {
			ts.Exemplars = append(ts.Exemplars, writev2.Exemplar{LabelsRefs: symbols.SymbolizeLabels(ex.Labels, nil), Value: ex.Value, Timestamp: ex.Ts})
		}
		raw, err = (&writev2.Request{Symbols: symbols.Symbols(), Timeseries: []writev2.TimeSeries{ts}}).Marshal()
	}
	require.NoError(t, err)
	_, err = e.receiver.Ingest(t.Context(), p, snappy.Encode(nil, raw))
	require.NoError(t, err)
}

func someExemplar(at int64, v float64, trace string) exemplar.Exemplar {
	return exemplar.Exemplar{Labels: labels.FromStrings("trace_id", trace), Value: v, Ts: at, HasTs: true}
}

// readExemplars asks for all exemplars, by series.
func readExemplars(t *testing.T, e *Engine) map[string][]exemplar.Exemplar {
	t.Helper()
	q, err := e.ExemplarQueryable().ExemplarQuerier(t.Context())
	require.NoError(t, err)
	res, err := q.Select(math.MinInt64, math.MaxInt64, []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "__name__", "m")})
	require.NoError(t, err)
	out := map[string][]exemplar.Exemplar{}
	for _, r := range res {
		out[r.SeriesLabels.Get("series")] = r.Exemplars
	}
	return out
}

func flushAll(t *testing.T, e *Engine) {
	t.Helper()
	require.NoError(t, e.rotate())
	require.NoError(t, e.flushSealed(t.Context()))
}

// copyOf is what a process that is killed now leaves behind, but for blocks, which are on their way to the bucket.
func copyOf(t *testing.T, path string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(filepath.Join(dir, walDir), os.DirFS(filepath.Join(path, walDir))))
	raw, err := os.ReadFile(filepath.Join(path, exemplarsFile))
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, exemplarsFile), raw, 0o600))
	}
	return dir
}

func TestExemplarsOutliveTheLogsThatTheyCameWith(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	want := map[string][]exemplar.Exemplar{
		"v1": {someExemplar(now-2000, 1, "a"), someExemplar(now-1000, 2, "b"), someExemplar(now-1000, 3, "c")},
		"v2": {someExemplar(now-2000, 4, "d"), someExemplar(now-1000, 5, "é")},
	}
	writeExemplars(t, e, ingest.V1, "v1", want["v1"]...)
	writeExemplars(t, e, ingest.V2, "v2", want["v2"]...)
	require.Equal(t, want, readExemplars(t, e))
	flushAll(t, e)

	for range 2 {
		stopEngine(t, e)
		e = startEngine(t, testConfig(t, path))
		require.Equal(t, want, readExemplars(t, e))
	}
	last := someExemplar(now, 6, "f")
	writeExemplars(t, e, ingest.V1, "v1", last)
	want["v1"] = append(want["v1"], last)
	stopEngine(t, e)
	e = startEngine(t, testConfig(t, path)) // from the file and the log
	require.Equal(t, want, readExemplars(t, e))
}

// However many generations bring exemplars while logs are replayed, three rings hold them, and in the end they are in the order of arrival.
func TestExemplarsOfManyLogsAreInFewRings(t *testing.T) {
	const logs = 10
	x, err := newExemplars(2*logs, prometheus.NewRegistry())
	require.NoError(t, err)
	bring := func(generation uint64) {
		key := ingest.LabelsKey(nil, labels.FromStrings("series", strconv.FormatUint(generation, 10)))
		require.True(t, x.add(generation, &ingest.Batch{Series: []ingest.Series{{Key: key, Exemplars: []ingest.Exemplar{{T: 1, V: float64(generation)}}}}}, nil))
		require.LessOrEqual(t, len(x.apart), 3)
	}
	x.keepApart(logs)
	for n := uint64(logs); n > 0; n-- { // newest first
		bring(n)
		x.wasRead(n)
		if n%2 == 0 {
			bring(logs + 1 + (logs-n)/2) // arrives meanwhile
		}
	}
	x.join()
	var got []float64
	for _, e := range x.all() {
		got = append(got, e.Value)
	}
	require.Len(t, got, logs+logs/2)
	require.IsIncreasing(t, got)
}

func TestExemplarsOfAKilledProcess(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	want := map[string][]exemplar.Exemplar{}
	check := func(when string) {
		t.Helper()
		again := startEngine(t, testConfig(t, copyOf(t, path)))
		require.Equal(t, want, readExemplars(t, again), when)
		require.Empty(t, problem(again, "exemplars"))
		stopEngine(t, again)
	}
	for round := range 3 {
		for s := range 3 {
			series := strconv.Itoa(s)
			es := []exemplar.Exemplar{someExemplar(now+int64(1000*round), 1, "a"), someExemplar(now+int64(1000*round), 2, "b")}
			writeExemplars(t, e, ingest.V2, series, es...)
			want[series] = append(want[series], es...)
		}
		check("all that is new is in the log")
		require.NoError(t, e.exemplars.save(path))
		check("all is in the file, and the log is there")
		flushAll(t, e)
		check("the log has gone")
	}
}

func TestASmallerRingKeepsTheNewestExemplars(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	for i := range 10 {
		writeExemplars(t, e, ingest.V1, "s", someExemplar(now+int64(i), float64(i), "t"))
	}
	flushAll(t, e)
	stopEngine(t, e)

	e = startEngine(t, testConfig(t, path, "--speed.max-exemplars=2"))
	require.Equal(t, map[string][]exemplar.Exemplar{"s": {someExemplar(now+8, 8, "t"), someExemplar(now+9, 9, "t")}}, readExemplars(t, e))
	stopEngine(t, e)

	before, err := os.ReadFile(filepath.Join(path, exemplarsFile))
	require.NoError(t, err)
	e = startEngine(t, testConfig(t, path, "--speed.max-exemplars=0"))
	writeExemplars(t, e, ingest.V1, "s", someExemplar(now+10, 10, "t"))
	require.Empty(t, readExemplars(t, e))
	flushAll(t, e)
	after, err := os.ReadFile(filepath.Join(path, exemplarsFile))
	require.NoError(t, err)
	require.Equal(t, before, after, "switched off, the file is left alone")
}

// sealed appends the checksum that a file of exemplars ends with.
func sealed(content []byte) []byte {
	return binary.BigEndian.AppendUint32(bytes.Clone(content), crc32.Checksum(content, castagnoli))
}

func encoded(t testing.TB, all ...seriesExemplar) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, encodeExemplars(&b, all))
	return b.Bytes()
}

func TestAFileOfExemplarsThatCannotBeReadIsMovedAside(t *testing.T) {
	now := time.Now().UnixMilli()
	whole := encoded(t, seriesExemplar{someExemplar(now, 1, "a"), labels.FromStrings("__name__", "m", "series", "old")})
	newer := bytes.Clone(whole[:len(whole)-crc32.Size])
	newer[exemplarsHead-1]++
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	for _, row := range []struct {
		name, why string
		raw       []byte
	}{
		{"empty", "", nil},
		{"something else", "no file of exemplars", []byte("something else altogether, and long enough for it")},
		{"cut off", "wrong checksum", whole[:len(whole)-1]},
		{"cut off early", "no file of exemplars", whole[:exemplarsHead]},
		{"a bit flipped", "wrong checksum", flipped},
		{"of a newer version", "has format version 2, this version of Millrace reads 1", sealed(newer)},
		{"malformed", "malformed", sealed(append(bytes.Clone(whole[:len(whole)-crc32.Size]), 7))},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(path, exemplarsFile), row.raw, 0o600))
			var logged bytes.Buffer
			reg := prometheus.NewRegistry()
			e, err := New(testConfig(t, path), reg, reg, slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelError})))
			require.NoError(t, err)
			e.Start(http.NotFoundHandler())
			t.Cleanup(func() { stopEngine(t, e) })
			<-e.Opened()
			require.Contains(t, problem(e, "exemplars"), row.why)
			aside, err := os.ReadFile(filepath.Join(path, lostDir, exemplarsFile))
			require.NoError(t, err)
			require.Equal(t, string(row.raw), string(aside))

			want := map[string][]exemplar.Exemplar{"new": {someExemplar(now, 2, "b")}}
			writeExemplars(t, e, ingest.V1, "new", want["new"]...)
			flushAll(t, e)
			require.Empty(t, problem(e, "exemplars"), "there is a good file again")
			stopEngine(t, e)
			require.Equal(t, 1, strings.Count(logged.String(), "\n"), logged.String())
			e = startEngine(t, testConfig(t, path))
			require.Contains(t, readExemplars(t, e), "new")
			require.Equal(t, want["new"], readExemplars(t, e)["new"])
		})
	}
}

// FuzzExemplarsFile: no content makes the decoder panic, and what it accepts can be written and read back.
func FuzzExemplarsFile(f *testing.F) {
	strip := func(raw []byte) []byte { return raw[exemplarsHead : len(raw)-crc32.Size] }
	a, b := labels.FromStrings("__name__", "m", "le", "0.5"), labels.FromStrings("__name__", "n", "long", strings.Repeat("x", 300))
	f.Add(strip(encoded(f)))
	f.Add(strip(encoded(f, seriesExemplar{someExemplar(1, math.NaN(), "a"), a}, seriesExemplar{someExemplar(math.MaxInt64, 0, "b"), b},
		seriesExemplar{someExemplar(math.MinInt64, math.Inf(1), ""), a}, seriesExemplar{exemplar.Exemplar{}, labels.EmptyLabels()})))
	head := append([]byte(exemplarsMagic), exemplarsVersion)
	decode := func(raw []byte) (all []seriesExemplar, err error) {
		err = decodeExemplars(raw, func(e seriesExemplar) { all = append(all, e) })
		return all, err
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		_, _ = decode(content)
		all, err := decode(sealed(append(bytes.Clone(head), content...)))
		if err != nil {
			return
		}
		first := encoded(t, all...)
		again, err := decode(first)
		require.NoError(t, err)
		require.Len(t, again, len(all))
		require.Equal(t, first, encoded(t, again...)) // as bytes, since NaN is not equal to itself
	})
}
