package migrate

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/tombstone"
)

func textOf(text string) func(context.Context, *Importer) error {
	return func(ctx context.Context, im *Importer) error {
		return im.OpenMetrics(ctx, strings.NewReader(text), "text", int64(len(text)))
	}
}

// randomText has families of several types, whose samples come in any order, some twice, over some days.
func randomText(r *rand.Rand, samples int) string {
	var b strings.Builder
	types := []string{"counter", "gauge", "histogram", "unknown", "summary"}
	for b.Len() == 0 || r.IntN(5) > 0 {
		n := r.IntN(9)
		name, typ := fmt.Sprintf("m%d", n), types[n%len(types)]
		fmt.Fprintf(&b, "# TYPE %s %s\n# HELP %s help of \\\"%d\n", name, typ, name, n)
		for range r.IntN(samples) {
			ts := float64(begin)/1000 + float64(r.IntN(60*3600*1000))/1000
			value := fmt.Sprint(r.NormFloat64())
			series := fmt.Sprintf(`%s{l="%d"}`, name, r.IntN(5))
			switch typ {
			case "counter":
				series = fmt.Sprintf(`%s_total{b="%d",a="x\"y"}`, name, r.IntN(3))
			case "histogram":
				series = fmt.Sprintf(`%s_bucket{le="%d"}`, name, r.IntN(3)) // becomes 1.0
			case "unknown":
				series = name
			}
			fmt.Fprintf(&b, "%s %s %.3f\n", series, value, ts)
		}
	}
	return b.String() + "# EOF\n"
}

// parsed is what Prometheus's parser, given the whole text, says; the later sample wins.
func parsed(t *testing.T, text string) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	p := textparse.NewOpenMetricsParser([]byte(text), nil)
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err)
		if entry == textparse.EntrySeries {
			var lset labels.Labels
			p.Labels(&lset)
			_, ts, v := p.Series()
			out[fmt.Sprintf("%s at %d", lset, *ts)] = v
		}
	}
}

func floatsOf(t *testing.T, bkt objstore.Bucket) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	set := querier(t, served(t, bkt), minTime, maxTime).Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
	for set.Next() {
		it := set.At().Iterator(nil)
		for it.Next() != 0 {
			ts, v := it.At()
			out[fmt.Sprintf("%s at %d", set.At().Labels(), ts)] = v
		}
		require.NoError(t, it.Err())
	}
	require.NoError(t, set.Err())
	return out
}

// However the text is cut into parts by the limit of memory, the bucket has what a parser that sees it whole says.
func TestOpenMetricsInPartsIsAsItIsWhole(t *testing.T) {
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 1))
		text := randomText(r, 3000)
		for _, memory := range []int{1 << 30, 20_000} {
			bkt := objstore.NewInMemBucket()
			_, err := importInto(t, bkt, func(o *Options) { o.memoryLimit, o.daySamples = memory, float64(1+r.IntN(1000)) }, textOf(text))
			require.NoError(t, err, "seed %d", seed)
			requireVerified(t, bkt)
			require.Equal(t, parsed(t, text), floatsOf(t, bkt), "seed %d, memory %d", seed, memory)
		}
	}
}

func TestOpenMetricsIsIdempotentByContent(t *testing.T) {
	text := randomText(rand.New(rand.NewPCG(1, 1)), 100)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := z.Write([]byte(text))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	bkt := objstore.NewInMemBucket()
	first, err := importInto(t, bkt, func(*Options) {}, textOf(text))
	require.NoError(t, err)
	require.Positive(t, first.Blocks)
	before := content(bkt)
	again, err := importInto(t, bkt, nil, textOf(packed.String()))
	require.NoError(t, err)
	require.Zero(t, again.Blocks)
	require.Positive(t, again.Windows)
	requireSame(t, before, content(bkt))

	_, err = importInto(t, bkt, nil, textOf(packed.String()[:packed.Len()-20]))
	require.ErrorContains(t, err, "unexpected EOF")
}

func TestOpenMetricsThatCannotBe(t *testing.T) {
	long := strings.Repeat("a_metric 1 1\n", 2*batchBytes/13)
	for _, row := range []struct{ name, text, says string }{
		{"no end", "a 1 1\n", "line 1: data does not end with # EOF"},
		{"nothing", "", "line 0: data does not end with # EOF"},
		{"no end after a part of a line", "a 1 1\nb 2", "line 2: "},
		{"more after the end", "a 1 1\n# EOF\nb 1 1\n", "line 3: unexpected data after # EOF"},
		{"no timestamp", "# TYPE a gauge\na 1 1\na{b=\"c\"} 2\n# EOF\n", `line 3: expected timestamp for series {__name__="a", b="c"}, got none`},
		{"no timestamp of a known series", "a 1 1\na 1\n# EOF\n", `line 2: expected timestamp`},
		{"garbage", "a 1 1\n\n# EOF\n", "line 2: "},
		{"garbage far behind", "# TYPE a gauge\n" + long + "{\n# EOF\n", fmt.Sprintf("line %d: ", 2+strings.Count(long, "\n"))},
		{"milliseconds", "a 1 1767916800000\n# EOF\n", "line 1: timestamp 1.7679168e+12 is not in the years 1 to 9999"},
		{"labels beyond the limits", "a{b=\"" + strings.Repeat("x", 5000) + "\"} 1 1\n# EOF\n", "line 1: series"},
		{"a line without an end", strings.Repeat("a", maxLine+100_000), "line 1: the line has more than"},
	} {
		t.Run(row.name, func(t *testing.T) {
			bkt := objstore.NewInMemBucket()
			_, err := importInto(t, bkt, nil, textOf(row.text))
			require.ErrorContains(t, err, "text: "+row.says)
			require.Empty(t, bkt.Objects())
		})
	}
}

func TestOpenMetricsPassesOverInvalidSeries(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	bad := `a{b="` + strings.Repeat("x", 5000) + `"}`
	s, err := importInto(t, bkt, func(o *Options) { o.SkipInvalid = true }, textOf(bad+" 1 1\n"+bad+" 1 2\na 1 1\n# EOF\n"))
	require.NoError(t, err)
	require.Equal(t, 1, s.InvalidSeries)
	require.EqualValues(t, 1, s.Samples)
}

// What an import passes over is imported by a later one with higher limits; with the same ones there is nothing left to do.
func TestWhatWasPassedOverCanStillBeImported(t *testing.T) {
	db := newDB(t)
	app := db.Appender(t.Context())
	text := ""
	for _, value := range []string{"fine", strings.Repeat("x", 5000)} {
		_, err := app.Append(0, labels.FromStrings("__name__", "m", "l", value), begin, 1)
		require.NoError(t, err)
		text += fmt.Sprintf("m{l=%q} 1 %d\n", value, begin/1000)
	}
	require.NoError(t, app.Commit())
	dir := t.TempDir()
	require.NoError(t, db.Snapshot(dir, true))
	url := promServer{}.start(t, db)
	for name, do := range map[string]func(context.Context, *Importer) error{
		"blocks":      blocksOf(dir),
		"text":        textOf(text + "# EOF\n"),
		"remote read": readFrom(RemoteRead{URL: url}),
	} {
		t.Run(name, func(t *testing.T) {
			bkt := objstore.NewInMemBucket()
			run := func(longest int, skip bool) (Summary, error) {
				return importInto(t, bkt, func(o *Options) {
					between(begin, begin+hour)(o)
					o.Limits.MaxLabelValue, o.SkipInvalid = longest, skip
				}, do)
			}
			for _, row := range []struct {
				longest             int
				blocks, skipped, is int
			}{
				{10, 1, 1, 1},
				{10, 0, -1, 1},
				{20, 1, 1, 1},
				{10000, 1, 0, 2},
				{10000, 0, 0, 2},
				{30, 0, -1, 2},
			} {
				s, err := run(row.longest, true)
				require.NoError(t, err)
				require.Equal(t, row.blocks, s.Blocks, "%+v", row)
				if row.skipped >= 0 {
					require.Equal(t, row.skipped, s.InvalidSeries, "%+v", row)
				}
				require.Len(t, floatsOf(t, bkt), row.is, "%+v", row)
			}
			compact(t, bkt)
			require.Len(t, floatsOf(t, bkt), 2)
			s, err := run(10000, false)
			require.NoError(t, err)
			require.Zero(t, s.Blocks)
		})
	}
}

func TestOpenMetricsKeepsWhatIsKnownOfFamilies(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	_, err := importInto(t, bkt, nil, textOf("# TYPE a_seconds counter\n# UNIT a_seconds seconds\n# HELP a_seconds time \\\\ spent\na_seconds_total 1 1\n# EOF\n"))
	require.NoError(t, err)
	listed, err := block.List(t.Context(), bkt)
	require.NoError(t, err)
	require.Len(t, listed, 1)
	for id := range listed {
		b, err := block.OpenBucket(t.Context(), bkt, id, nil)
		require.NoError(t, err)
		families, err := b.Families(t.Context())
		require.NoError(t, err)
		require.Equal(t, block.Families{"a_seconds": metadata.Metadata{Type: model.MetricTypeCounter, Unit: "seconds", Help: `time \ spent`}}, families)
		require.NoError(t, b.Close())
	}
}

func TestOpenMetricsWithinBounds(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	from, to := int64(2000), int64(3000)
	_, err := importInto(t, bkt, func(o *Options) { o.MinTime, o.MaxTime = &from, &to }, textOf("a 1 1.999\na 2 2\na 3 3\na 4 3.001\n# EOF\n"))
	require.NoError(t, err)
	require.Equal(t, map[string]float64{`{__name__="a"} at 2000`: 2, `{__name__="a"} at 3000`: 3}, floatsOf(t, bkt))
}

func TestOpenMetricsKilledAnywhere(t *testing.T) {
	killEverywhere(t, func(o *Options) { o.daySamples = 1 }, textOf("a 1 1\na 2 7201\nb 3 100000\n# EOF\n")) // two windows and a day
}

func FuzzOpenMetrics(f *testing.F) {
	f.Add("# TYPE a histogram\na_bucket{le=\"1\"} 1 1\n# EOF\n")
	f.Add("# HELP a b\n{\"ü\",b=\"c\"} NaN 1e3 # {x=\"y\"} 1\n# EOF")
	f.Add("a 1 1\na 1 2")
	f.Fuzz(func(t *testing.T, text string) {
		bkt := objstore.NewInMemBucket()
		_, err := importInto(t, bkt, func(o *Options) { o.memoryLimit = 500 }, textOf(text))
		if err != nil {
			require.Empty(t, bkt.Objects())
			return
		}
		p := textparse.NewOpenMetricsParser([]byte(text), nil)
		for {
			if _, err := p.Next(); err != nil {
				require.ErrorIs(t, err, io.EOF, "Prometheus's parser does not take what was imported")
				return
			}
		}
	})
}

// An import is accepted when it is made, whatever the age of its samples: deletions that came before do not hide it, later ones do. A repeated
// import changes nothing of that.
func TestDeletionsBeforeAndAfterAnImport(t *testing.T) {
	for name, text := range map[string]string{
		"past":           randomText(rand.New(rand.NewPCG(1, 1)), 100),
		"current window": fmt.Sprintf("m 7 %d\n# EOF\n", time.Now().Unix()),
		"future":         fmt.Sprintf("m 7 %d\n# EOF\n", time.Now().Unix()+1e6),
	} {
		t.Run(name, func(t *testing.T) {
			bkt := objstore.NewInMemBucket()
			put := func(blocks bool) {
				t.Helper()
				s, err := importInto(t, bkt, nil, textOf(text))
				require.NoError(t, err)
				require.Equal(t, blocks, s.Blocks > 0)
			}
			deleteEverything(t, bkt)
			put(true)
			require.Equal(t, parsed(t, text), floatsOf(t, bkt))
			compact(t, bkt)
			require.Equal(t, parsed(t, text), floatsOf(t, bkt), "compacted")
			deleteEverything(t, bkt)
			require.Empty(t, floatsOf(t, bkt))
			put(false)
			require.Empty(t, floatsOf(t, bkt), "imported again")
			compact(t, bkt)
			require.Empty(t, floatsOf(t, bkt), "erased")
		})
	}
}

// What an interrupted import had left to do is accepted when that is done.
func TestADeletionBetweenAnInterruptedImportAndItsRepetition(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	text := fmt.Sprintf("m 7 %d\n# EOF\n", time.Now().Unix())
	_, err := importInto(t, &faultBucket{Bucket: bkt, on: func(_ int, what string) error {
		if strings.HasPrefix(what, "upload") && strings.HasSuffix(what, block.MetaFilename) {
			return errKilled
		}
		return nil
	}}, nil, textOf(text))
	require.ErrorIs(t, err, errKilled)
	deleteEverything(t, bkt)
	_, err = importInto(t, bkt, nil, textOf(text))
	require.NoError(t, err)
	require.Equal(t, parsed(t, text), floatsOf(t, bkt))
	deleteEverything(t, bkt)
	require.Empty(t, floatsOf(t, bkt))
}

func deleteEverything(t *testing.T, bkt objstore.Bucket) {
	t.Helper()
	all := tombstone.Selector{labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+")}
	s, err := tombstone.New(5, math.MinInt64, math.MaxInt64, []tombstone.Selector{all}, writer, nil)
	require.NoError(t, err)
	require.NoError(t, tombstone.NewStore(bkt).Put(t.Context(), s))
}
