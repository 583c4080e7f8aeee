package engine

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/serving"
)

// warnings are those of an instant query of a layer.
func warnings(t *testing.T, e *Engine, layer serving.Layer) annotations.Annotations {
	t.Helper()
	ctx := serving.WithLayer(t.Context(), layer)
	q, err := e.queries.NewInstantQuery(ctx, e.queryable, nil, `m{series="a"}`, time.Now())
	require.NoError(t, err)
	defer q.Close()
	res := q.Exec(ctx)
	require.NoError(t, res.Err)
	return res.Warnings
}

// labelWarnings are those of requests for names and values of labels, and for series.
func labelWarnings(t *testing.T, e *Engine) []annotations.Annotations {
	t.Helper()
	now := time.Now().UnixMilli()
	q, err := e.queryable.Querier(now-dayMillis, now)
	require.NoError(t, err)
	defer q.Close()
	_, names, err := q.LabelNames(t.Context(), nil)
	require.NoError(t, err)
	_, values, err := q.LabelValues(t.Context(), "series", nil)
	require.NoError(t, err)
	set := q.Select(t.Context(), false, nil, labels.MustNewMatcher(labels.MatchEqual, "series", "a"))
	for set.Next() {
		continue
	}
	require.NoError(t, set.Err())
	return []annotations.Annotations{names, values, set.Warnings()}
}

// removeAllBut removes what a block has replaced, which would answer in its place.
func removeAllBut(t *testing.T, dir, id string) {
	t.Helper()
	folders, err := filepath.Glob(filepath.Join(dir, "*", block.MetaFilename))
	require.NoError(t, err)
	for _, f := range folders {
		if folder := filepath.Dir(f); filepath.Base(folder) != id {
			require.NoError(t, os.RemoveAll(folder))
		}
	}
}

func TestAnswersWarnOfABrokenBlock(t *testing.T) {
	path, dir := t.TempDir(), filepath.Join(t.TempDir(), "bucket")
	now := time.Now().UnixMilli()
	e := startEngine(t, folderConfig(t, path, dir))
	write(t, e, "a", point{now - 2*dayMillis, 1})
	require.NoError(t, e.RunBatch(t.Context()))
	id := e.Layers().Blocks[0].ULID.String()
	require.Empty(t, warnings(t, e, serving.Merged))
	stopEngine(t, e)
	removeAllBut(t, dir, id)
	meta := filepath.Join(dir, id, block.MetaFilename)
	whole, err := os.ReadFile(meta)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(meta, []byte("{\n"), 0o600))

	e = startEngine(t, folderConfig(t, path, dir))
	write(t, e, "a", point{now, 2})
	for _, layer := range []serving.Layer{serving.Merged, serving.Batch} {
		require.ErrorContains(t, errors.Join(warnings(t, e, layer).AsErrors()...), id)
	}
	require.Empty(t, warnings(t, e, serving.Speed))
	for _, ws := range labelWarnings(t, e) {
		require.ErrorContains(t, errors.Join(ws.AsErrors()...), id)
	}
	require.Contains(t, problem(e, "bucket blocks"), id)
	require.Equal(t, []point{{now, 2}}, read(t, e, serving.Merged, "a", now, 72*time.Hour), "what is known answers")

	require.NoError(t, os.WriteFile(meta, whole, 0o600))
	eventually(t, "the block is mended", func() bool { return problem(e, "bucket blocks") == "" })
	eventually(t, "nothing is missing", func() bool { return len(warnings(t, e, serving.Merged)) == 0 })
	require.Equal(t, []point{{now - 2*dayMillis, 1}, {now, 2}}, read(t, e, serving.Merged, "a", now, 72*time.Hour))
}

func TestAnswersWarnOfABlockInQuarantine(t *testing.T) {
	path, dir := t.TempDir(), filepath.Join(t.TempDir(), "bucket")
	now := time.Now().UnixMilli()
	e := startEngine(t, folderConfig(t, path, dir))
	write(t, e, "a", point{now - 2*dayMillis, 1})
	require.NoError(t, e.RunBatch(t.Context()))
	write(t, e, "a", point{now, 2})
	id := e.Layers().Blocks[0].ULID
	removeAllBut(t, dir, id.String())

	require.NoError(t, block.Quarantine(t.Context(), e.data.bucket, id, "byte 7 of index"))
	eventually(t, "the block is left out", func() bool { return len(read(t, e, serving.Merged, "a", now, 72*time.Hour)) == 1 })
	require.Contains(t, problem(e, "bucket blocks"), "quarantine: byte 7 of index")
	q, err := e.queryable.Querier(now-3*dayMillis, now)
	require.NoError(t, err)
	_, ws, err := q.LabelNames(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, q.Close())
	require.ErrorContains(t, errors.Join(ws.AsErrors()...), id.String())
	require.Empty(t, warnings(t, e, serving.Merged), "an answer that needs nothing of the block's times is complete")

	require.NoError(t, block.Release(t.Context(), e.data.bucket, id))
	eventually(t, "the block is back", func() bool { return len(read(t, e, serving.Merged, "a", now, 72*time.Hour)) == 2 })
	require.Empty(t, problem(e, "bucket blocks"))
}

// What a block in quarantine has replaced, and what is still there, answers in its place.
func TestABlockInQuarantineHidesNothingThatIsWhole(t *testing.T) {
	now := time.Now().UnixMilli()
	e := startEngine(t, folderConfig(t, t.TempDir(), t.TempDir()))
	samples := []point{{now - 3*dayMillis, 1}, {now - 2*dayMillis, 2}, {now - dayMillis, 3}}
	write(t, e, "a", samples...)
	require.NoError(t, e.RunBatch(t.Context()))
	listed, err := e.data.lister.List(t.Context())
	require.NoError(t, err)
	compacted := e.data.synced.metas()
	require.Len(t, compacted, 3)
	for _, m := range compacted {
		id := m.ULID
		require.NoError(t, block.Quarantine(t.Context(), e.data.bucket, id, "byte 7 of index"))
		require.NoError(t, e.syncBucket(t.Context()))
		require.Equal(t, samples, read(t, e, serving.Merged, "a", now, 96*time.Hour), "one of several outputs of a job")
		require.Contains(t, problem(e, "bucket blocks"), id.String(), "the damage is told")
		require.NoError(t, block.Release(t.Context(), e.data.bucket, id))
	}
	for id, l := range listed {
		if l.Meta.Level() > 0 {
			require.NoError(t, block.Quarantine(t.Context(), e.data.bucket, id, "byte 7 of index"))
		}
	}
	require.NoError(t, e.syncBucket(t.Context()))
	require.Equal(t, samples, read(t, e, serving.Merged, "a", now, 96*time.Hour), "all of them")
}

func TestOnlyBrokenBlocksThatAreMissedCount(t *testing.T) {
	missed, replaced, local, downsampled := ulid.Make(), ulid.Make(), ulid.Make(), ulid.Make()
	var merged block.Meta
	merged.SetExtension(1, 1, 1, replaced)
	broken := brokenBlocks(map[ulid.ULID]error{
		missed: block.ErrUnusable, replaced: block.ErrUnusable, local: block.ErrUnusable, downsampled: block.ErrDownsampled,
	}, map[ulid.ULID]block.Listed{ulid.Make(): {Meta: merged}}, map[ulid.ULID]bool{local: true})
	require.Len(t, broken, 1)
	require.Equal(t, missed, broken[0].id)
}
