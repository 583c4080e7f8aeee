package migrate

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

// compacted lets a database make blocks of all that it has, those of late samples too.
func compacted(t *testing.T, db *tsdb.DB) {
	t.Helper()
	db.EnableCompactions()
	require.NoError(t, db.Compact(t.Context()))
	require.NoError(t, db.CompactOOOHead(t.Context()))
	require.NotEmpty(t, db.Blocks())
}

func TestBlocksAnswerAsTheirServer(t *testing.T) {
	for _, row := range []struct {
		name  string
		dir   func(t *testing.T, db *tsdb.DB) string
		fine  bool
		level int
		all   bool // snapshots have all of the head but what is late
	}{
		{"a snapshot, by the day", func(t *testing.T, db *tsdb.DB) string {
			dir := t.TempDir()
			require.NoError(t, db.Snapshot(dir, true))
			return dir
		}, false, 2, false},
		{"a snapshot, in windows of 2h", func(t *testing.T, db *tsdb.DB) string {
			dir := t.TempDir()
			require.NoError(t, db.Snapshot(dir, true))
			return dir
		}, true, 1, false},
		{"a snapshot with blocks that overlap", func(t *testing.T, db *tsdb.DB) string {
			compacted(t, db)
			dir := t.TempDir()
			require.NoError(t, db.Snapshot(dir, true))
			return dir
		}, false, 2, true},
		{"after a deletion", func(t *testing.T, db *tsdb.DB) string {
			compacted(t, db)
			for _, m := range []*labels.Matcher{
				labels.MustNewMatcher(labels.MatchEqual, "job", "a"),
				labels.MustNewMatcher(labels.MatchEqual, "__name__", "latency"),
			} {
				require.NoError(t, db.Delete(t.Context(), begin+3*hour+1000, begin+30*hour-500, m))
			}
			dir := t.TempDir()
			require.NoError(t, db.Snapshot(dir, true))
			// Snapshots leave out what was deleted from the head, and have the tombstones of blocks.
			return dir
		}, false, 2, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			db := newDB(t)
			from, to := begin-5*hour, begin+43*hour
			fill(t, db, from, to)
			dir := row.dir(t, db)
			bkt := objstore.NewInMemBucket()
			fine := func(o *Options) {
				if row.fine {
					o.daySamples = 10
				}
			}
			s, err := importInto(t, bkt, fine, blocksOf(dir))
			require.NoError(t, err)
			require.Positive(t, s.Blocks)
			requireVerified(t, bkt)
			want := answers(t, blocksOnly(t, dir), from, to)
			requireSame(t, want, answers(t, served(t, bkt), from, to))
			if row.all {
				requireSame(t, answers(t, db, from, to), want)
			}

			listed, err := block.List(t.Context(), bkt)
			require.NoError(t, err)
			for _, l := range listed {
				require.Equal(t, row.level, l.Meta.Level())
				lo, hi := l.Meta.Generations()
				require.Zero(t, lo+hi)
				require.Equal(t, writer, l.Meta.Thanos.Labels)
			}
			before := content(bkt)
			again, err := importInto(t, bkt, fine, blocksOf(dir))
			require.NoError(t, err)
			require.Zero(t, again.Blocks)
			require.Positive(t, again.Windows)
			requireSame(t, before, content(bkt))

			if row.fine {
				require.Positive(t, compact(t, bkt).Jobs)
				requireSame(t, want, answers(t, served(t, bkt), from, to))
				again, err := importInto(t, bkt, nil, blocksOf(dir))
				require.NoError(t, err)
				require.Zero(t, again.Blocks, "compacted blocks tell what went into them")
			}
		})
	}
}

func TestBlocksWithinBounds(t *testing.T) {
	db := newDB(t)
	fill(t, db, begin, begin+30*hour)
	dir := t.TempDir()
	require.NoError(t, db.Snapshot(dir, true))
	bkt := objstore.NewInMemBucket()
	from, to := begin+5*hour+77, begin+26*hour+99
	bounded := func(o *Options) { o.MinTime, o.MaxTime = &from, &to }
	_, err := importInto(t, bkt, bounded, blocksOf(dir))
	require.NoError(t, err)
	requireVerified(t, bkt)
	requireSame(t, samplesOf(t, querier(t, blocksOnly(t, dir), from, to)), samplesOf(t, querier(t, served(t, bkt), begin, begin+30*hour)))

	_, err = importInto(t, bkt, nil, blocksOf(dir))
	require.NoError(t, err)
	requireSame(t, answers(t, blocksOnly(t, dir), begin, begin+30*hour), answers(t, served(t, bkt), begin, begin+30*hour)) // the rest follows
}

func TestBlocksAreLeftAloneWhereOneIsDamaged(t *testing.T) {
	for _, row := range []struct {
		name, file string
		damage     func([]byte) []byte
	}{
		{"a chunk", "chunks/000001", func(b []byte) []byte { b[len(b)/2] ^= 1; return b }},
		{"the index", "index", func(b []byte) []byte { return b[:len(b)-100] }},
		{"the meta", "meta.json", func([]byte) []byte { return []byte("{") }},
	} {
		t.Run(row.name, func(t *testing.T) {
			db := newDB(t)
			fill(t, db, begin, begin+10*hour)
			dir := t.TempDir()
			require.NoError(t, db.Snapshot(dir, true))
			entries, err := os.ReadDir(dir)
			require.NoError(t, err)
			name := filepath.Join(dir, entries[0].Name(), row.file)
			raw, err := os.ReadFile(name)
			require.NoError(t, err)
			require.NoError(t, os.Remove(name)) // may be a link
			require.NoError(t, os.WriteFile(name, row.damage(raw), 0o600))
			bkt := objstore.NewInMemBucket()
			_, err = importInto(t, bkt, nil, blocksOf(dir))
			require.ErrorContains(t, err, entries[0].Name())
			require.Empty(t, bkt.Objects())
		})
	}
}

func TestBlocksWithLabelsBeyondTheLimits(t *testing.T) {
	db := newDB(t)
	app := db.Appender(t.Context())
	for _, value := range []string{"fine", strings.Repeat("x", 5000)} {
		_, err := app.Append(0, labels.FromStrings("__name__", "m", "l", value), begin, 1)
		require.NoError(t, err)
	}
	require.NoError(t, app.Commit())
	dir := t.TempDir()
	require.NoError(t, db.Snapshot(dir, true))
	bkt := objstore.NewInMemBucket()
	_, err := importInto(t, bkt, nil, blocksOf(dir))
	require.ErrorContains(t, err, "--ingest.max-label-value-length=4096")
	require.ErrorContains(t, err, `__name__="m"`)
	require.Empty(t, bkt.Objects())

	s, err := importInto(t, bkt, func(o *Options) { o.SkipInvalid = true }, blocksOf(dir))
	require.NoError(t, err)
	require.Equal(t, 1, s.InvalidSeries)
	require.EqualValues(t, 1, s.Samples)
	requireVerified(t, bkt)
}

func TestBlocksSayWhatIsNotImported(t *testing.T) {
	db := newDB(t)
	fill(t, db, begin, begin+hour)
	_, err := importInto(t, objstore.NewInMemBucket(), nil, blocksOf(db.Dir()))
	require.ErrorContains(t, err, "has no blocks")

	compacted(t, db)
	var log strings.Builder
	_, err = importInto(t, objstore.NewInMemBucket(), func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) }, blocksOf(db.Dir()))
	require.NoError(t, err)
	require.Contains(t, log.String(), filepath.Join(db.Dir(), "wal"))
	require.Contains(t, log.String(), filepath.Join(db.Dir(), "chunks_head"))
	require.Contains(t, log.String(), "snapshot")
}

func TestBlocksKilledAnywhere(t *testing.T) {
	db := newDB(t)
	fill(t, db, begin+21*hour, begin+25*hour)
	dir := t.TempDir()
	require.NoError(t, db.Snapshot(dir, true))
	killEverywhere(t, func(o *Options) { o.daySamples = 200 }, blocksOf(dir))
}

// What a killed import leaves in its scratch folder, the next one removes; an import that runs is left alone.
func TestScratchIsTakenAndCleared(t *testing.T) {
	scratch := t.TempDir()
	left := filepath.Join(scratch, scratchName, ulid.Make().String(), "index")
	require.NoError(t, os.MkdirAll(filepath.Dir(left), 0o700))
	require.NoError(t, os.WriteFile(left, []byte("x"), 0o600))
	o := Options{Bucket: objstore.NewInMemBucket(), Labels: writer, ScratchDir: scratch}
	im, err := Open(t.Context(), o)
	require.NoError(t, err)
	require.NoFileExists(t, left)
	_, err = Open(t.Context(), o)
	require.ErrorContains(t, err, "another import")
	require.DirExists(t, im.scratch)
	require.NoError(t, im.Close())
	require.NoDirExists(t, im.scratch)
}

// What the server has accepted wins over an import, whether that comes before or after, and after compactions too.
func TestOwnSamplesWin(t *testing.T) {
	theirs, own := newDB(t), newDB(t)
	add := func(db *tsdb.DB, v float64, hours ...int64) {
		app := db.Appender(t.Context())
		for _, h := range hours {
			_, err := app.Append(0, labels.FromStrings("__name__", "m"), begin+h*hour, v)
			require.NoError(t, err)
		}
		require.NoError(t, app.Commit())
	}
	add(theirs, 1, 0, 1, 2, 3, 4, 30)
	add(own, 2, 1, 3, 5)
	dir := t.TempDir()
	require.NoError(t, theirs.Snapshot(dir, true))
	want := []string{`{__name__="m"} 0h=1 1h=2 2h=1 3h=2 4h=1 5h=2 30h=1`}
	check := func(t *testing.T, bkt objstore.Bucket) {
		require.Equal(t, want, byHour(t, querier(t, served(t, bkt), begin, begin+31*hour)))
	}
	doImport := func(t *testing.T, bkt objstore.Bucket) {
		_, err := importInto(t, bkt, nil, blocksOf(dir))
		require.NoError(t, err)
	}
	doOwn := func(t *testing.T, bkt objstore.Bucket) { ownBlock(t, bkt, 1, own, begin, begin+6*hour) }
	doCompact := func(t *testing.T, bkt objstore.Bucket) { compact(t, bkt) }
	for name, steps := range map[string][]func(*testing.T, objstore.Bucket){
		"import first":                {doImport, doOwn},
		"own first":                   {doOwn, doImport},
		"own compacted before import": {doOwn, doCompact, doImport},
		"import compacted before own": {doImport, doCompact, doOwn},
	} {
		t.Run(name, func(t *testing.T) {
			bkt := objstore.NewInMemBucket()
			for _, step := range steps {
				step(t, bkt)
			}
			check(t, bkt)
			require.Positive(t, compact(t, bkt).Jobs)
			check(t, bkt)
			live := 0
			listed, err := block.List(t.Context(), bkt)
			require.NoError(t, err)
			for _, l := range listed {
				if l.DeletionMark == nil {
					live++
				}
			}
			require.Equal(t, 1, live, "one block of 14 days")
			s, err := importInto(t, bkt, nil, blocksOf(dir))
			require.NoError(t, err)
			require.Zero(t, s.Blocks)
		})
	}
}

func TestImportsOfTheSameMomentAreOrderedAlikeEverywhere(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	for v := range 4 {
		db := newDB(t)
		app := db.Appender(t.Context())
		_, err := app.Append(0, labels.FromStrings("__name__", "m"), begin, float64(v))
		require.NoError(t, err)
		require.NoError(t, app.Commit())
		dir := t.TempDir()
		require.NoError(t, db.Snapshot(dir, true))
		_, err = importInto(t, bkt, nil, blocksOf(dir))
		require.NoError(t, err)
	}
	before := byHour(t, querier(t, served(t, bkt), begin, begin+hour))
	require.Positive(t, compact(t, bkt).Jobs)
	require.Equal(t, before, byHour(t, querier(t, served(t, bkt), begin, begin+hour)))
}

func TestImportStopsWithItsContext(t *testing.T) {
	db := newDB(t)
	fill(t, db, begin, begin+5*hour)
	dir := t.TempDir()
	require.NoError(t, db.Snapshot(dir, true))
	ctx, cancel := context.WithCancel(t.Context())
	bkt := objstore.NewInMemBucket()
	_, err := importWith(ctx, t, bkt, nil, func(ctx context.Context, im *Importer) error {
		cancel()
		return im.Blocks(ctx, dir)
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, bkt.Objects())
}

// Two imports of one source make the same block. The one that fails must leave what the other has uploaded of it.
func TestAFailingImportLeavesTheBlockOfAnother(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	do := textOf(fmt.Sprintf("m{a=\"1\"} 7 %d\n# EOF\n", begin/1000))
	failed := false
	first := &faultBucket{Bucket: bkt, on: func(_ int, what string) error {
		if strings.HasPrefix(what, "upload") && strings.HasSuffix(what, block.MetaFilename) {
			_, err := importInto(t, &faultBucket{Bucket: bkt, on: func(_ int, what string) error {
				if strings.HasPrefix(what, "upload") && strings.HasSuffix(what, block.IndexFilename) {
					failed = true
					return errKilled
				}
				return nil
			}}, nil, do)
			require.ErrorIs(t, err, errKilled)
		}
		return nil
	}}
	s, err := importInto(t, first, nil, do)
	require.NoError(t, err)
	require.True(t, failed)
	require.Equal(t, 1, s.Blocks)
	requireVerified(t, bkt)
	require.Equal(t, map[string]float64{fmt.Sprintf(`{__name__="m", a="1"} at %d`, begin): 7}, floatsOf(t, bkt))
}
