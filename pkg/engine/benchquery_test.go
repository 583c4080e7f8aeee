package engine

import (
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/ingest"
)

// BenchmarkQuery asks the active generation.
func BenchmarkQuery(b *testing.B) {
	e := benchEngine(b)
	at := time.Now().Add(-time.Hour)
	for scrape := range 60 {
		for _, body := range benchBodies(b, ingest.V1, scrape, at.UnixMilli()+int64(scrape)*15_000) {
			_, err := e.receiver.Ingest(b.Context(), ingest.V1, body)
			require.NoError(b, err)
		}
	}
	end := at.Add(59 * 15 * time.Second)
	for name, c := range map[string]struct {
		query string
		span  time.Duration
	}{
		"all series, instant":     {`count({__name__=~"node_.+"})`, 0},
		"a metric, range":         {`node_subsystem0_measure1_total`, 15 * time.Minute},
		"rate of a metric, range": {`rate(node_subsystem0_measure1_total[5m])`, 15 * time.Minute},
		"an instance, range":      {`{instance="host-00007.eu-west-1.example.internal:9100"}`, 15 * time.Minute},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var q promql.Query
				var err error
				if c.span == 0 {
					q, err = e.queries.NewInstantQuery(b.Context(), e.queryable, nil, c.query, end)
				} else {
					q, err = e.queries.NewRangeQuery(b.Context(), e.queryable, nil, c.query, end.Add(-c.span), end, 15*time.Second)
				}
				require.NoError(b, err)
				require.NoError(b, q.Exec(b.Context()).Err)
				q.Close()
			}
		})
	}
}
