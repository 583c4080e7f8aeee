package engine

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/serving"
)

// writeDescribed sends a sample of a counter with its help text.
func writeDescribed(t *testing.T, e *Engine, metric, help string, at int64) {
	t.Helper()
	raw, err := (&prompb.WriteRequest{
		Timeseries: []prompb.TimeSeries{{
			Labels: []prompb.Label{{Name: "__name__", Value: metric}}, Samples: []prompb.Sample{{Timestamp: at, Value: 1}},
		}},
		Metadata: []prompb.MetricMetadata{{Type: prompb.MetricMetadata_COUNTER, MetricFamilyName: metric, Help: help, Unit: "bytes"}},
	}).Marshal()
	require.NoError(t, err)
	_, err = e.receiver.Ingest(t.Context(), ingest.V1, snappy.Encode(nil, raw))
	require.NoError(t, err)
}

func counter(help string) metadata.Metadata {
	return metadata.Metadata{Type: model.MetricTypeCounter, Help: help, Unit: "bytes"}
}

// The bucket is all that is left: metadata comes back from the blocks there, merged and not.
func TestMetadataComesBackFromTheBucket(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	writeDescribed(t, e, "old_total", "only in the past", now-40*dayMillis)
	writeDescribed(t, e, "a_total", "before", now-1000)
	require.NoError(t, e.RunBatch(t.Context()))
	writeDescribed(t, e, "a_total", "after", now)
	require.NoError(t, e.RunBatch(t.Context()))
	writeDescribed(t, e, "b_total", "in a block of a generation", now)
	flushAll(t, e)
	require.NoError(t, e.uploadOnce(t.Context()))
	stopEngine(t, e)
	for _, m := range e.data.synced.metas() {
		require.Positive(t, m.FamiliesSize(), "block of level %d", m.Level())
	}

	onlyBucket := filepath.Join(t.TempDir(), bucketDir)
	require.NoError(t, os.Rename(filepath.Join(path, bucketDir), onlyBucket))
	path = filepath.Dir(onlyBucket)
	e = startEngine(t, testConfig(t, path))
	writeDescribed(t, e, "b_total", "newer than any block", now)
	want := map[string]metadata.Metadata{
		"old_total": counter("only in the past"), "a_total": counter("after"), "b_total": counter("newer than any block"),
	}
	eventually(t, "the blocks were asked", func() bool { return !e.metadata.isIncomplete() })
	require.Equal(t, want, e.Metadata())
	require.NoError(t, e.State().Err)
	flushAll(t, e)
	stopEngine(t, e)

	require.NoError(t, os.Rename(onlyBucket, onlyBucket+"-gone"))
	e = startEngine(t, testConfig(t, path))
	require.Equal(t, want, e.Metadata(), "once restored it is saved, and the bucket is not needed for it")
}

func TestMetadataComesBackWhenTheBucketDoes(t *testing.T) {
	b := newMovableBucket(t)
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, b.config(path))
	writeDescribed(t, e, "a_total", "help", now)
	require.NoError(t, e.RunBatch(t.Context()))
	stopEngine(t, e)

	b.away()
	e = startEngine(t, b.config(t.TempDir()))
	require.Empty(t, e.Metadata())
	require.True(t, e.metadata.isIncomplete())
	b.back()
	eventually(t, "the blocks were asked", func() bool { return !e.metadata.isIncomplete() })
	require.Equal(t, map[string]metadata.Metadata{"a_total": counter("help")}, e.Metadata())
}

func TestBlocksWhoseMetadataCannotBeReadArePassedOver(t *testing.T) {
	path := t.TempDir()
	now := time.Now().UnixMilli()
	e := startEngine(t, testConfig(t, path))
	for i, metric := range []string{"a_total", "b_total", "c_total"} {
		writeDescribed(t, e, metric, "help", now-int64(i)*dayMillis)
	}
	require.NoError(t, e.RunBatch(t.Context()))
	metas := e.data.synced.metas()
	require.Len(t, metas, 3)
	stopEngine(t, e)
	file := func(i int) string { return filepath.Join(path, bucketDir, metas[i].ULID.String(), "metadata.json") }
	require.NoError(t, os.WriteFile(file(0), []byte("nonsense"), 0o600))
	require.NoError(t, os.Remove(file(1)))
	require.NoError(t, os.WriteFile(filepath.Join(path, metadataFile), []byte("nonsense"), 0o600))

	e = startEngine(t, testConfig(t, path))
	eventually(t, "the blocks were asked", func() bool { return !e.metadata.isIncomplete() })
	require.Len(t, e.Metadata(), 1)
	require.NoError(t, e.State().Err)
	_, err := tryRead(t.Context(), e, serving.Batch, "x", now)
	require.NoError(t, err)
}
