package batch

import (
	"crypto/sha256"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
)

// testMeta makes the meta of a block whose id begins with the time of creation and follows from the name.
func testMeta(name string, level int, minGen, maxGen uint64, created, mint, maxt time.Time) block.Meta {
	var m block.Meta
	m.Version = block.MetaVersion
	sum := sha256.Sum256([]byte(name))
	_ = m.ULID.SetTime(uint64(created.UnixMilli()))
	_ = m.ULID.SetEntropy(sum[:10])
	m.MinTime, m.MaxTime = mint.UnixMilli(), maxt.UnixMilli()
	m.Thanos.Labels = writerA
	m.SetExtension(level, minGen, maxGen)
	return m
}

// TestPlan reads its cases from testdata/plan.txt, whose head explains the format.
func TestPlan(t *testing.T) {
	raw, err := os.ReadFile("testdata/plan.txt")
	require.NoError(t, err)
	cases := strings.Split(string(raw), "\n=== ")
	for _, text := range cases[1:] {
		title, body, _ := strings.Cut(text, "\n")
		given, want, ok := strings.Cut(body, "----\n")
		require.True(t, ok, title)
		t.Run(strings.TrimSpace(title), func(t *testing.T) {
			c := parsePlanCase(t, given)
			jobs := plan(c.listed, c.now, c.config, c.force, limits{
				held:       func(m *block.Meta) bool { return c.held[m.ULID] },
				incomplete: func(m *block.Meta) bool { return c.incomplete[m.ULID] },
				void:       c.void,
				sure:       c.now.UnixMilli(),
			})
			require.Equal(t, strings.TrimSpace(want), c.format(jobs))
			for _, j := range jobs {
				same := slices.DeleteFunc(visible(c.listed), func(m block.Meta) bool { return writer(&m) != writer(&j.Inputs[0]) })
				require.True(t, gapless(j.Inputs, same), "job %s", j.ID)
			}
		})
	}
}

type planCase struct {
	now    time.Time
	force  bool
	config Config
	listed []block.Listed
	held   map[ulid.ULID]bool

	incomplete map[ulid.ULID]bool
	void       map[pair]bool
	names      map[ulid.ULID]string
}

func parsePlanCase(t *testing.T, text string) *planCase {
	c := &planCase{config: DefaultConfig(), held: map[ulid.ULID]bool{}, incomplete: map[ulid.ULID]bool{}, void: map[pair]bool{}, names: map[ulid.ULID]string{}}
	ids := map[string]ulid.ULID{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case f[0] == "now":
			c.now = parseTime(t, f[1])
			c.force = slices.Contains(f, "force")
			if slices.Contains(f, "next-month") {
				c.now = c.now.AddDate(0, 1, 0)
			}
		case f[0] == "retention":
			d, err := time.ParseDuration(f[1])
			require.NoError(t, err)
			c.config.Retention = d
		case f[0] == "rule":
			require.NoError(t, c.config.Rules.Set(strings.Join(f[1:], " ")))
		case f[0] == "max-inputs":
			n, err := strconv.Atoi(f[1])
			require.NoError(t, err)
			c.config.MaxInputs = n
		case f[0] == "memory":
			n, err := strconv.ParseInt(f[1], 10, 64)
			require.NoError(t, err)
			c.config.MemoryLimit = n
		case f[0] == "max-size":
			n, err := strconv.ParseInt(f[1], 10, 64)
			require.NoError(t, err)
			c.config.MaxBlockSize = n
		default:
			c.addBlock(t, ids, f)
		}
	}
	return c
}

// addBlock parses NAME LEVEL GENERATIONS CREATED MIN MAX [key=value…].
func (c *planCase) addBlock(t *testing.T, ids map[string]ulid.ULID, f []string) {
	level, err := strconv.Atoi(f[1])
	require.NoError(t, err)
	lo, hi, isRange := strings.Cut(f[2], "-")
	if !isRange {
		hi = lo
	}
	minGen, err := strconv.ParseUint(lo, 10, 64)
	require.NoError(t, err)
	maxGen, err := strconv.ParseUint(hi, 10, 64)
	require.NoError(t, err)
	m := testMeta(f[0], level, minGen, maxGen, parseTime(t, f[3]), parseTime(t, f[4]), parseTime(t, f[5]))
	l := block.Listed{}
	for _, option := range f[6:] {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "writer":
			m.Thanos.Labels = map[string]string{"writer": value}
		case "parents":
			for name := range strings.SplitSeq(value, ",") {
				m.Compaction.Parents = append(m.Compaction.Parents, tsdb.BlockDesc{ULID: ids[name]})
			}
		case "replaces":
			for name := range strings.SplitSeq(value, ",") {
				e := m.Thanos.Extensions.Millrace
				e.Replaces = append(e.Replaces, ids[name])
			}
		case "samples":
			n, err := strconv.ParseUint(value, 10, 64)
			require.NoError(t, err)
			m.Stats.NumSamples = n
		case "size":
			n, err := strconv.ParseInt(value, 10, 64)
			require.NoError(t, err)
			m.Thanos.Files = []block.File{{RelPath: block.IndexFilename, SizeBytes: n}}
		case "sources":
			for name := range strings.SplitSeq(value, ",") {
				m.Compaction.Sources = append(m.Compaction.Sources, ids[name])
			}
		case "dropped":
			e := m.Thanos.Extensions.Millrace
			e.Dropped = append(e.Dropped, value)
		case "void":
			for _, r := range c.config.Rules {
				if r.Series == value {
					c.void[pair{r.ID, m.ULID}] = true
				}
			}
		case "foreign":
			m.Thanos.Extensions.Millrace = nil
		case "marked":
			l.DeletionMark = &block.DeletionMark{ID: m.ULID}
		case "held":
			c.held[m.ULID] = true
		case "incomplete":
			c.incomplete[m.ULID] = true
		default:
			t.Fatalf("unknown option %s", option)
		}
	}
	ids[f[0]] = m.ULID
	c.names[m.ULID] = f[0]
	l.Meta = m
	c.listed = append(c.listed, l)
}

func parseTime(t *testing.T, s string) time.Time {
	when, err := time.Parse("02T15:04", s)
	require.NoError(t, err)
	return when.AddDate(2024, 0, 0)
}

func (c *planCase) format(jobs []Job) string {
	var out []string
	for _, j := range jobs {
		line := fmt.Sprintf("%s:", j.Kind)
		for _, m := range j.Inputs {
			line += " " + c.names[m.ULID]
		}
		if len(j.Leftovers) > 0 {
			line += " and replaces"
		}
		for _, m := range j.Leftovers {
			line += " " + c.names[m.ULID]
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func TestGapless(t *testing.T) {
	at := func(h int) time.Time { return time.UnixMilli(0).Add(time.Duration(h) * time.Hour) }
	b := func(name string, minGen, maxGen uint64, from, to int) block.Meta {
		return testMeta(name, 1, minGen, maxGen, at(0), at(from), at(to))
	}
	low, high := b("low", 1, 2, 0, 2), b("high", 5, 6, 2, 4)
	for _, tc := range []struct {
		name  string
		other block.Meta
		want  bool
	}{
		{"below all inputs", b("x", 0, 1, 0, 2), true},
		{"above all inputs", b("x", 3, 7, 0, 2), true},
		{"between, overlapping the lower input", b("x", 3, 3, 0, 1), false},
		{"between, overlapping the higher input", b("x", 3, 3, 3, 4), false},
		{"between, at another time", b("x", 3, 3, 4, 6), true},
		{"between, ends where an input begins", b("x", 3, 3, -2, 0), true},
		{"same highest generation, more below", b("x", 3, 6, 2, 4), false},
		{"same highest generation, fewer below", b("x", 6, 6, 2, 4), true},
		{"same lowest input, more above", b("x", 1, 3, 0, 2), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			all := []block.Meta{tc.other, low, high}
			require.Equal(t, tc.want, gapless([]block.Meta{low, high}, all))
			require.Equal(t, tc.want, gapless([]block.Meta{high, low}, all), "the order of the inputs is of no matter")
		})
	}
}

func TestWindowAt(t *testing.T) {
	const w = windowMillis
	for _, tc := range []struct {
		t    int64
		want window
	}{
		{0, window{0, w}},
		{w - 1, window{0, w}},
		{w, window{w, 2 * w}},
		{-1, window{-w, 0}},
		{-w, window{-w, 0}},
		{-w - 1, window{-2 * w, -w}},
	} {
		require.Equal(t, tc.want, windowAt(tc.t, w), "t=%d", tc.t)
	}
	const maxT, minT = 1<<63 - 1, -1 << 63
	last := windowAt(maxT, w)
	require.Equal(t, int64(maxT), last.max)
	require.Zero(t, last.min%w)
	first := windowAt(minT, w)
	require.Equal(t, int64(minT), first.min)
	require.Zero(t, first.max%w)
	require.Equal(t, first, windowAt(first.max-1, w))
}

func TestOutputsAreDerivedFromInputs(t *testing.T) {
	at := func(h int) time.Time { return time.UnixMilli(0).Add(time.Duration(h) * time.Hour) }
	a := testMeta("a", 0, 1, 1, at(3), at(0), at(2))
	b := testMeta("b", 0, 2, 2, at(4), at(-40), at(2))
	c := testMeta("c", 0, 2, 2, at(4), at(2), at(4))
	j := newJob(level0, []block.Meta{a, b, c}, DefaultConfig())
	w := window{0, windowMillis}
	m := j.outputMeta(w, nil)
	require.Equal(t, m, j.outputMeta(w, nil))
	require.Equal(t, b.ULID.Time(), m.ULID.Time(), "time of the newest input")
	require.Equal(t, 1, m.Level())
	require.Equal(t, 2, m.Compaction.Level)
	lo, hi := m.Generations()
	require.Equal(t, []uint64{1, 2}, []uint64{lo, hi})
	require.ElementsMatch(t, []ulid.ULID{m.ULID, a.ULID}, m.Compaction.Sources, "b is not contained whole")
	require.Equal(t, []ulid.ULID{a.ULID, b.ULID}, parentsOf(&m), "c has nothing in the window")
	require.Empty(t, m.Replaces())

	commit := j.outputMeta(w, j.Replaces())
	require.NotEqual(t, m.ULID, commit.ULID)
	require.Equal(t, []ulid.ULID{a.ULID, b.ULID, c.ULID}, commit.Replaces())

	other := j.outputMeta(window{windowMillis, 2 * windowMillis}, nil)
	require.NotEqual(t, m.ULID, other.ULID)
	smaller := newJob(level0, []block.Meta{a, b}, DefaultConfig())
	require.Equal(t, m.ULID, smaller.outputMeta(w, nil).ULID, "same contributors, same block")
	require.NotEqual(t, j.ID, smaller.ID)
}

func TestConfigValidate(t *testing.T) {
	require.NoError(t, DefaultConfig().Validate())
	for _, tc := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Delay = -1 }, "negative"},
		{func(c *Config) { c.Retention = time.Hour }, "at least 2h"},
		{func(c *Config) { c.Retention = -time.Hour }, "at least 2h"},
		{func(c *Config) { c.SyncInterval = 0 }, "above 0"},
		{func(c *Config) { c.DeletionDelay = 3 * time.Minute }, "at least 4m0s"},
		{func(c *Config) { c.PartialAge = time.Minute }, "at least 1h"},
		{func(c *Config) { c.MaxInputs = 1 }, "at least 2 inputs"},
		{func(c *Config) { c.RetentionSize = -1 }, "negative"},
		{func(c *Config) { c.MemoryLimit = 1 << 20 }, "memory limit"},
		{func(c *Config) { c.MaxBlockSize = -1 }, "size of blocks"},
		{func(c *Config) { c.LateMergeShare = -0.1 }, "above 0 and at most 1"},
		{func(c *Config) { c.LateMergeShare = 1.1 }, "above 0 and at most 1"},
		{func(c *Config) { c.LateMergeShare = math.NaN() }, "above 0 and at most 1"},
		{func(c *Config) { c.LateMergeAge = -1 }, "age of late samples"},
	} {
		c := DefaultConfig()
		tc.change(&c)
		require.ErrorContains(t, c.Validate(), tc.want)
	}
}

func parentsOf(m *block.Meta) []ulid.ULID {
	var out []ulid.ULID
	for _, p := range m.Compaction.Parents {
		out = append(out, p.ULID)
	}
	return out
}
