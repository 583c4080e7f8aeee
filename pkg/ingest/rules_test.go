package ingest

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/retention"
)

func rules(t testing.TB, text string) retention.Rules {
	t.Helper()
	r, err := retention.Parse(text)
	require.NoError(t, err)
	return r
}

// TestRetentionRules: what a series' rule does not keep is refused, whether the series is known or not, and nothing else of it is.
func TestRetentionRules(t *testing.T) {
	const day = 86400_000
	floats := message{}.bytes(2, sample(testNow-3*day-1, 1)).bytes(2, sample(testNow-3*day, 2)).bytes(2, sample(testNow, 3))
	older, newer := message{}.varint(15, uint64(testNow-4*day)), message{}.varint(15, uint64(testNow-2*day)) // histograms
	v1 := pack(message{}.bytes(1, seriesV1(up, floats.bytes(4, older).bytes(4, newer))))
	v2 := pack(v2Request(upSymbols, upV2(floats.bytes(3, older).bytes(3, newer))))
	all, err := DecodeRecord(append(AppendRecordHeader(nil, V1, nil), v1...), nil)
	require.NoError(t, err)
	defer all.Release()
	for _, c := range []struct {
		rules   string
		refused int
		text    string
	}{
		{`{job="a"}: 3d`, 2, `: timestamp is older than what the retention rule {job="a"}: 3d keeps, which begins at `},
		{`up{job=~"a|b"}: 3d, {job="a"}: 1w`, 2, `{__name__="up",job=~"a|b"}: 3d`},
		{`up: 1d, {job="a"}: 3d`, 4, `{__name__="up"}: 1d`},
		{`{job="b"}: 1d, {job="a",zone!=""}: 1d`, 0, ""},
		{`{job="a"}: 1w`, 0, ""},
	} {
		for _, known := range []Known{nil, acceptedIn(all)} {
			for p, body := range map[Protocol][]byte{V1: v1, V2: v2} {
				t.Run(fmt.Sprintf("%s, %s, known: %t", c.rules, p, known != nil), func(t *testing.T) {
					r := newTestReceiver(t, knows{known: known}, func(l *Limits) { l.Rules = rules(t, c.rules) })
					written, err := r.Ingest(t.Context(), p, body)
					require.Equal(t, 5-c.refused, written.Samples+written.Histograms)
					require.Equal(t, float64(c.refused), testutil.ToFloat64(r.metrics.rejectedSamples[reasonRule]))
					if c.refused == 0 {
						require.NoError(t, err)
						return
					}
					require.Equal(t, http.StatusBadRequest, StatusOf(err))
					require.ErrorContains(t, err, `series up{job="a"}, timestamp `)
					require.ErrorContains(t, err, c.text)
				})
			}
		}
	}
}

// TestRulesOfReplicas: a rule sees the labels that are stored.
func TestRulesOfReplicas(t *testing.T) {
	bodies, names, known := replicaRequest(t, 10)
	for p, body := range bodies {
		for _, app := range []knows{{known: known}, {}} {
			r := newTestReceiver(t, app, func(l *Limits) {
				l.HA, l.Rules = names, rules(t, `{prometheus!=""}: 2h, {cluster="value-of-cluster",prometheus=""}: 3h`)
			})
			r.now = func() time.Time { return time.UnixMilli(testNow).Add(150 * time.Minute) }
			w, err := r.Ingest(t.Context(), p, body)
			require.NoError(t, err)
			require.Equal(t, 10, w.Samples)
			r.now = func() time.Time { return time.UnixMilli(testNow).Add(181 * time.Minute) }
			_, err = r.Ingest(t.Context(), p, body)
			require.ErrorContains(t, err, `{cluster="value-of-cluster",prometheus=""}: 3h`)
		}
	}
}
