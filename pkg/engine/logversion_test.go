package engine

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
	"github.com/millrace/millrace/pkg/wal"
)

// What a later version wrote is not damage: nothing is given up, and the engine waits for that version.
func TestALogOfALaterVersionIsLeftAlone(t *testing.T) {
	path := t.TempDir()
	e := startEngine(t, testConfig(t, path))
	write(t, e, "a", point{time.Now().UnixMilli(), 1})
	g := e.activeGeneration()
	_, err := g.log.Append([]byte{99, 1, 0})
	require.NoError(t, err)
	stopEngine(t, e)

	e = newEngine(t, testConfig(t, path))
	e.Start(http.NotFoundHandler())
	t.Cleanup(func() { stopEngine(t, e) })
	eventually(t, "the engine says why it does not get ready", func() bool { return problem(e, "replay") != "" })
	require.ErrorContains(t, e.State().Err, "later version")
	eventually(t, "it takes writes all the same", func() bool { return e.State().Phase == Replaying })
	write(t, e, "a", point{time.Now().UnixMilli(), 2})
	require.ErrorContains(t, e.Await(t.Context()), "later version", "nobody waits in vain")
	require.DirExists(t, filepath.Join(path, walDir, g.name()))
	require.NoDirExists(t, filepath.Join(path, lostDir))
}

// A log of version 1, of requests as they came, is read, but what is accepted now goes to a log of the present version.
func TestALogOfTheFirstVersionIsReadAndNotContinued(t *testing.T) {
	path := t.TempDir()
	now := time.Now()
	h, err := newHeader(7, now)
	require.NoError(t, err)
	h.Version = 1
	raw, err := json.Marshal(h)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(path, walDir), 0o750))
	log, err := wal.Create(filepath.Join(path, walDir, (&generation{header: h}).name()), raw, wal.Options{})
	require.NoError(t, err)
	body, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{
		Labels:  []prompb.Label{{Name: "__name__", Value: "m"}, {Name: "series", Value: "a"}},
		Samples: []prompb.Sample{{Timestamp: now.UnixMilli(), Value: 1}},
	}}}).Marshal()
	require.NoError(t, err)
	_, err = log.Append(ingest.AppendRecordHeader(nil, ingest.V1, nil), snappy.Encode(nil, body))
	require.NoError(t, err)
	require.NoError(t, log.Close())

	e := startEngine(t, testConfig(t, path))
	require.Equal(t, []point{{now.UnixMilli(), 1}}, read(t, e, serving.Merged, "a", now.UnixMilli(), time.Minute))
	require.EqualValues(t, 8, e.activeGeneration().Number)
}
