package tombstone

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var writer = map[string]string{"millrace": "test"}

func eq(name, value string) *labels.Matcher {
	return labels.MustNewMatcher(labels.MatchEqual, name, value)
}

func re(name, value string) *labels.Matcher {
	return labels.MustNewMatcher(labels.MatchRegexp, name, value)
}

func example(t testing.TB) *Tombstone {
	s, err := New(7, math.MinInt64, 1_700_000_000_000, []Selector{
		{eq("__name__", "up"), labels.MustNewMatcher(labels.MatchNotRegexp, "job", "a|b<>&\u2028\"")},
		{labels.MustNewMatcher(labels.MatchNotEqual, "job", "")},
	}, writer, map[string]string{"dc": "x"})
	require.NoError(t, err)
	return s
}

func requireSame(t testing.TB, want, got *Tombstone) {
	t.Helper()
	require.True(t, want.Same(got))
	require.Equal(t, want.ID, got.ID)
	require.Equal(t, want.Created, got.Created)
}

func TestWhatIsMarshalledIsParsed(t *testing.T) {
	want := example(t)
	raw, err := want.Marshal()
	require.NoError(t, err)
	got, err := Parse(raw)
	require.NoError(t, err)
	requireSame(t, want, got)
}

// A file of another build must go on to be read.
func TestFormatOfVersion1(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("testdata", "v1.json"))
	require.NoError(t, err)
	got, err := Parse(raw)
	require.NoError(t, err)
	want := example(t)
	want.ID, want.Created = ulid.MustParse("01HF7YAT00TESTTESTTESTTEST"), 1_700_000_000_000
	requireSame(t, want, got)
}

// Damage is an error, or changes nothing: it never makes a tombstone that deletes something else.
func TestDamageIsFound(t *testing.T) {
	want := example(t)
	raw, err := want.Marshal()
	require.NoError(t, err)
	for i := range raw {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			if got, err := Parse(raw); err == nil {
				requireSame(t, want, got)
			} else {
				require.ErrorIs(t, err, ErrCorrupt)
			}
			raw[i] ^= 1 << bit
		}
	}
	for n := range len(raw) - 1 {
		_, err := Parse(raw[:n])
		require.ErrorIs(t, err, ErrCorrupt)
	}
	_, err = Parse([]byte(strings.Replace(string(raw), `"version":1`, `"version":2`, 1)))
	require.ErrorContains(t, err, "format version 2")
	_, err = Parse(make([]byte, MaxSize+1))
	require.ErrorIs(t, err, ErrCorrupt)
}

func FuzzParse(f *testing.F) {
	raw, err := example(f).Marshal()
	require.NoError(f, err)
	f.Add(raw)
	f.Add([]byte(`{"version":1,"crc32c":0}`))
	f.Add([]byte(`{"version":1,"crc32c":2432014819,"tombstone":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := Parse(raw)
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		again, err := got.Marshal()
		require.NoError(t, err)
		same, err := Parse(again)
		require.NoError(t, err)
		requireSame(t, got, same)
	})
}

func TestWhatCannotBeATombstone(t *testing.T) {
	good := []Selector{{eq("a", "b")}}
	for name, tc := range map[string]struct {
		mint, maxt int64
		selectors  []Selector
		writer     map[string]string
		matchers   bool
	}{
		"times":           {2, 1, good, writer, false},
		"no selector":     {1, 2, nil, writer, false},
		"no matcher":      {1, 2, []Selector{{}}, writer, false},
		"no writer":       {1, 2, good, nil, false},
		"not UTF-8":       {1, 2, []Selector{{eq("a", "\xff")}}, writer, true},
		"too long":        {1, 2, []Selector{{eq("a", strings.Repeat("x", MaxMatchers))}}, writer, true},
		"too long in all": {1, 2, []Selector{{eq("a", strings.Repeat("x", MaxMatchers/2))}, {eq("a", strings.Repeat("x", MaxMatchers/2))}}, writer, true},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(1, tc.mint, tc.maxt, tc.selectors, tc.writer, nil)
			require.Error(t, err)
			if tc.matchers {
				require.ErrorIs(t, err, ErrMatchers)
			}
		})
	}
	// The longest that is taken can also be read back.
	s, err := New(1, 1, 2, []Selector{{eq("a", strings.Repeat("\x01", MaxMatchers-1))}}, writer, nil)
	require.NoError(t, err)
	raw, err := s.Marshal()
	require.NoError(t, err)
	_, err = Parse(raw)
	require.NoError(t, err)
}

func TestOn(t *testing.T) {
	s := example(t)
	for name, tc := range map[string]struct {
		stored Stored
		want   Effect
	}{
		"older":                    {Stored{Writer: writer, MinGeneration: 3, MaxGeneration: 7}, Whole},
		"later":                    {Stored{Writer: writer, MinGeneration: 8, MaxGeneration: 8}, None},
		"applied":                  {Stored{Writer: writer, MinGeneration: 3, MaxGeneration: 7, Applied: []ulid.ULID{s.ID}}, None},
		"applied, later merged in": {Stored{Writer: writer, MinGeneration: 3, MaxGeneration: 9, Applied: []ulid.ULID{s.ID}}, None},
		"renumbered":               {Stored{Writer: writer, MinGeneration: 9, MaxGeneration: 9, Deleted: []ulid.ULID{s.ID}}, Whole},
		"renumbered and applied":   {Stored{Writer: writer, MinGeneration: 9, MaxGeneration: 9, Deleted: []ulid.ULID{s.ID}, Applied: []ulid.ULID{s.ID}}, None},
		"mixed":                    {Stored{Writer: writer, MinGeneration: 7, MaxGeneration: 8}, Mixed},
		"another writer":           {Stored{Writer: map[string]string{"millrace": "other"}, MinGeneration: 3, MaxGeneration: 7}, None},
		"another one was applied":  {Stored{Writer: writer, MinGeneration: 3, MaxGeneration: 7, Applied: []ulid.ULID{ulid.Make()}}, Whole},
		"at other times":           {Stored{Writer: writer, MinGeneration: 3, MaxGeneration: 7, MinTime: 1_700_000_000_001, MaxTime: 1_700_000_000_002}, None},
		"mixed, at other times":    {Stored{Writer: writer, MinGeneration: 3, MaxGeneration: 9, MinTime: 1_700_000_000_001, MaxTime: 1_700_000_000_002}, None},
		"imported before":          {Stored{Writer: writer, Made: s.Created}, Whole},
		"imported later":           {Stored{Writer: writer, Made: s.Created + 1}, None},
		"imported, merged":         {Stored{Writer: writer, MaxGeneration: 7, Made: s.Created + 1}, Whole},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tc.want, s.On(tc.stored)) })
	}
}

// Many short matchers take more room encoded than MaxMatchers lets expect: what could not be read again is refused before anything is kept.
func TestWhatCannotBeReadAgainIsRefused(t *testing.T) {
	var s Selector
	for range 30_000 {
		s = append(s, labels.MustNewMatcher(labels.MatchEqual, "a", "b"))
	}
	_, err := New(1, 0, 1, []Selector{s}, map[string]string{"a": "b"}, nil)
	require.ErrorIs(t, err, ErrMatchers)
}
