package retention

import (
	"math"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	for _, row := range []struct{ text, want, err string }{
		{text: `{job="debug"}: 3d`, want: `{job="debug"}: 3d`},
		{text: `{job="debug"}:3d`, want: `{job="debug"}: 3d`},
		{text: ` { job = 'debug' , } : 1d12h `, want: `{job="debug"}: 1d12h`},
		{text: `up: 1w`, want: `{__name__="up"}: 1w`},
		{text: `job:up:rate5m: 2h`, want: `{__name__="job:up:rate5m"}: 2h`},
		{text: `up{b="2",a="1"}: 1d`, want: `{__name__="up",a="1",b="2"}: 1d`},
		{text: `{a="1",a="1",b!~"x"}: 1d`, want: `{a="1",b!~"x"}: 1d`},
		{text: `{a="x, y}: 5d",b="\"{"}: 1d, {c=~"d{1,2}"}: 2d`, want: `{a="x, y}: 5d",b="\"{"}: 1d, {c=~"d{1,2}"}: 2d`},
		{text: "{a=`\\`}: 1d, up: 2d", want: `{a="\\"}: 1d, {__name__="up"}: 2d`},
		{text: `{"a.b"="c"}: 1d`, want: `{"a.b"="c"}: 1d`},
		{text: `{a="1"}: 30d, {a="2"}: 3d, {a="3"}: 7d`, want: `{a="2"}: 3d, {a="3"}: 1w, {a="1"}: 30d`},
		{text: `{job="debug"}`, err: `must be a selector of series and an age`},
		{text: `3d`, err: `must be a selector of series and an age`},
		{text: `{job="debug"}: soon`, err: `age of "{job=\"debug\"}: soon"`},
		{text: `{job="debug"}: 3`, err: `age of`},
		{text: `{job="debug"}=3d`, err: `must be a selector`},
		{text: `{job="debug"}: 3d,`, err: `must be a selector`},
		{text: `{job=debug}: 3d`, err: `selector {job=debug}`},
		{text: `{job!="x"}: 3d`, want: `{job!="x"}: 3d`},
		{text: `{}: 3d`, err: `selector {}: it has no matcher`},
		{text: `sum(up): 3d`, err: `selector sum(up)`},
		{text: ``, err: `is empty`},
	} {
		var rules Rules
		err := rules.Set(row.text)
		if row.err != "" {
			require.ErrorContains(t, err, row.err, row.text)
			continue
		}
		require.NoError(t, err, row.text)
		require.Equal(t, row.want, rules.String())
		var again Rules
		require.NoError(t, again.Set(rules.String()))
		require.Equal(t, rules.String(), again.String(), "what is written is read again")
	}
}

func parsed(t *testing.T, texts ...string) (rules Rules) {
	t.Helper()
	for _, text := range texts {
		require.NoError(t, rules.Set(text))
	}
	return rules
}

func TestValidate(t *testing.T) {
	for _, row := range []struct {
		rules string
		whole time.Duration
		err   string
	}{
		{rules: `{a="1"}: 2h`},
		{rules: `{a="1"}: 10y`},
		{rules: `{a="1"}: 10d`, whole: 240 * time.Hour},
		{rules: `{a="1"}: 119m`, err: `{a="1"}: 1h59m: the age must be at least 2h`},
		{rules: `{a="1"}: 3d, {a="2"}: 11d`, whole: 240 * time.Hour, err: `{a="2"}: 11d: nothing is kept for longer than the retention of all series, 10d`},
		{rules: `{a="1",cluster="x"}: 3d`, err: `cluster is an external label`},
	} {
		err := parsed(t, row.rules).Validate(row.whole, map[string]string{"cluster": "x"})
		if row.err == "" {
			require.NoError(t, err, row.rules)
		} else {
			require.ErrorContains(t, err, row.err)
		}
	}
}

// The rule that the receiver finds for a series, and what queries hide of it, are the same.
func TestTheSmallestAgeDecides(t *testing.T) {
	rules := parsed(t, `{job="a"}: 30d`, `{env=~"dev|test"}: 7d`, `{job="a",env="dev"}: 10d, {job="c",env=""}: 3d`)
	now := time.Date(2024, 5, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	for _, row := range []struct {
		series labels.Labels
		age    time.Duration // 0 is for ever
	}{
		{labels.FromStrings("job", "a"), 30 * 24 * time.Hour},
		{labels.FromStrings("job", "a", "env", "dev"), 7 * 24 * time.Hour},
		{labels.FromStrings("job", "b", "env", "test"), 7 * 24 * time.Hour},
		{labels.FromStrings("job", "c"), 3 * 24 * time.Hour},
		{labels.FromStrings("job", "c", "env", "prod"), 0},
		{labels.FromStrings("job", "b"), 0},
	} {
		rule, hidden := rules.Of(row.series.Get), rules.Expired(now)
		if row.age == 0 {
			require.Nil(t, rule)
			require.False(t, hidden.Deletes(row.series, math.MinInt64))
			continue
		}
		require.Equal(t, row.age, rule.Age, row.series)
		horizon := rule.Horizon(now)
		require.Equal(t, now-row.age.Milliseconds(), horizon)
		require.False(t, hidden.Deletes(row.series, horizon))
		require.True(t, hidden.Deletes(row.series, horizon-1))
		require.True(t, hidden.Deletes(row.series, math.MinInt64))
	}
	require.Equal(t, now-(72*time.Hour).Milliseconds(), rules.Newest(now))
	require.Equal(t, int64(math.MinInt64), Rules(nil).Newest(now))
	require.Nil(t, Rules(nil).Expired(now))
}

// The selector alone tells rules apart for batch jobs.
func TestID(t *testing.T) {
	rules := parsed(t, `{a="1",b="2"}: 3d`, `{b="2",a="1"}: 4d`, `{a="1"}: 4d`)
	require.Equal(t, rules[0].ID, rules[1].ID)
	require.NotEqual(t, rules[0].ID, rules[2].ID)
}
