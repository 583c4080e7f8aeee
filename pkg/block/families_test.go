package block

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

// describedInput is an input that knows of families.
type describedInput struct {
	memInput

	families Families
	err      error
}

func (in describedInput) Families(context.Context) (Families, error) { return in.families, in.err }

// metricsInput has a sample at t of each metric.
func metricsInput(t int64, names ...string) memInput {
	var in memInput
	for _, name := range names {
		in = append(in, memSeries{labels: labels.FromStrings(model.MetricNameLabel, name, "zone", "b"), samples: []sample{{t: t, v: 1}}})
		in = append(in, memSeries{labels: labels.FromStrings("Area", "a", model.MetricNameLabel, name), samples: []sample{{t: t, v: 1}}})
	}
	sortSeries(in)
	return in
}

func described(kind model.MetricType, help string) metadata.Metadata {
	return metadata.Metadata{Type: kind, Help: help, Unit: "seconds"}
}

func TestWhatIsKnownOfFamiliesGoesAlong(t *testing.T) {
	in := describedInput{
		memInput: metricsInput(1000, "a", "h_bucket", "h_count", "h_sum", "c_total", "undescribed"),
		families: Families{
			"a": described("gauge", `with "quotes" and é`), "h": described("histogram", "h"), "c": described("counter", ""),
			"c_total": described("counter", "both names are in use"), "other": described("gauge", "of no metric in the block"), "h_max": {},
		},
	}
	want := Families{"a": in.families["a"], "h": in.families["h"], "c": in.families["c"], "c_total": in.families["c_total"]}
	dir, m := writeBlock(t, in)
	require.Positive(t, m.FamiliesSize())
	require.Equal(t, []string{"chunks/000001", "index", "meta.json", "metadata.json"}, relPaths(m))
	got, err := openLocal(t, dir).Families(t.Context())
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.Equal(t, in.dump(), prometheusDump(t, dir, math.MinInt64, math.MaxInt64, everything), "Prometheus passes the file over")

	for name, bkt := range buckets(t) {
		require.NoError(t, Upload(t.Context(), bkt, dir))
		b, err := OpenBucket(t.Context(), bkt, m.ULID, nil)
		require.NoError(t, err, name)
		got, err := b.Families(t.Context())
		require.NoError(t, err, name)
		require.Equal(t, want, got, name)
		findings, err := Verify(t.Context(), bkt, m.ULID)
		require.NoError(t, err, name)
		require.Empty(t, findings, name)
		require.NoError(t, b.Close())

		require.NoError(t, Delete(t.Context(), bkt, m.ULID))
		require.NoError(t, bkt.Iter(t.Context(), m.ULID.String()+"/", func(object string) error {
			return errors.New(object + " is left")
		}), name)
		_, err = b.Families(t.Context())
		require.ErrorIs(t, err, ErrGone, name)
	}
}

func relPaths(m Meta) (names []string) {
	for _, f := range m.Thanos.Files {
		names = append(names, f.RelPath)
	}
	return names
}

func TestABlockOfWhichNothingIsKnownHasNoSuchFile(t *testing.T) {
	dir, m := writeBlock(t, describedInput{memInput: metricsInput(1, "a"), families: Families{"b": described("gauge", "")}})
	require.Equal(t, []string{"chunks/000001", "index", "meta.json"}, relPaths(m))
	require.NoFileExists(t, filepath.Join(dir, MetadataFilename))
	got, err := openLocal(t, dir).Families(t.Context())
	require.NoError(t, err)
	require.Nil(t, got)
}

func TestMergedBlocksKeepTheNewerMetadataOfWhatIsInThem(t *testing.T) {
	older, _ := writeBlock(t, describedInput{memInput: metricsInput(1000, "a", "b", "late"), families: Families{
		"a": described("gauge", "old"), "b": described("gauge", "old"),
	}})
	both := append(metricsInput(2000, "a"), metricsInput(3*hour, "later")...)
	sortSeries(both)
	newer, _ := writeBlock(t, describedInput{memInput: both, families: Families{
		"a": described("counter", "new"), "later": described("gauge", "beyond the window"),
	}})
	inputs := []Input{openLocal(t, older), metricsInput(1500, "a"), openLocal(t, newer)}
	merged := func() Families {
		parent := t.TempDir()
		m, err := Write(t.Context(), parent, testMeta(t, 0, 2*hour, 1, 1, 2), inputs, WriteOptions{})
		require.NoError(t, err)
		got, err := openLocal(t, filepath.Join(parent, m.ULID.String())).Families(t.Context())
		require.NoError(t, err)
		return got
	}
	require.Equal(t, Families{"a": described("counter", "new"), "b": described("gauge", "old")}, merged())

	// What cannot be read does not keep samples from being merged.
	require.NoError(t, os.Remove(filepath.Join(newer, MetadataFilename)))
	require.Equal(t, Families{"a": described("gauge", "old"), "b": described("gauge", "old")}, merged())
	for _, err := range []error{ErrCorrupt, ErrUnusable} {
		inputs[2] = describedInput{memInput: metricsInput(1, "a"), err: err}
		require.Equal(t, Families{"a": described("gauge", "old"), "b": described("gauge", "old")}, merged())
	}
	inputs[2] = describedInput{memInput: metricsInput(1, "a"), err: context.DeadlineExceeded}
	_, err := Write(t.Context(), t.TempDir(), testMeta(t, 0, 2*hour, 1, 1, 2), inputs, WriteOptions{})
	require.ErrorIs(t, err, context.DeadlineExceeded, "another time it may be read")
}

func TestDamagedMetadataIsFound(t *testing.T) {
	dir, m := writeBlock(t, describedInput{memInput: metricsInput(1000, "a"), families: Families{"a": described("gauge", "help")}})
	sound := uploaded(t, dir)
	name := m.ULID.String() + "/" + MetadataFilename
	raw := sound.Objects()[name]
	for what, content := range map[string][]byte{
		"cut off": raw[:len(raw)-1], "longer": append(bytes.Clone(raw), ' '), "not JSON": bytes.Repeat([]byte("x"), len(raw)),
		"of another version": bytes.Replace(raw, []byte(`"version":1`), []byte(`"version":2`), 1),
	} {
		bkt := copyBucket(t, sound)
		require.NoError(t, bkt.Upload(t.Context(), name, bytes.NewReader(content)))
		findings, err := Verify(t.Context(), bkt, m.ULID)
		require.NoError(t, err, what)
		require.Len(t, findings, 1, what)
		require.Equal(t, MetadataFilename, findings[0].File, what)
		b, err := OpenBucketMeta(t.Context(), bkt, m, nil)
		require.NoError(t, err, what)
		_, err = b.Families(t.Context())
		require.Error(t, err, what)
	}
	m.Thanos.Files[3].SizeBytes = maxFamiliesSize + 1
	b, err := OpenBucketMeta(t.Context(), objstore.WithNoopInstr(sound), m, nil)
	require.NoError(t, err)
	_, err = b.Families(t.Context())
	require.ErrorIs(t, err, ErrUnusable, "nothing is read that large")
}

// FuzzFamilies: content that is not ours is an error of two kinds, never a panic.
func FuzzFamilies(f *testing.F) {
	f.Add([]byte(`{"version":1,"families":{"a":{"type":"gauge","unit":"seconds","help":"a"}}}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := parseFamilies(raw); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnusable) {
			t.Fatal(err)
		}
	})
}
