package batch

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"path"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/merge"
)

// damagingBucket stores other bytes than it is given in files with a name that ends so.
type damagingBucket struct {
	objstore.Bucket
	suffix string
	at     float64 // of the file
}

func (b *damagingBucket) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	content, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if strings.HasSuffix(name, b.suffix) {
		content[int(float64(len(content))*b.at)] ^= 1
	}
	return b.Bucket.Upload(ctx, name, bytes.NewReader(content), o...)
}

// TestDamagedOnTheWay has a bucket store something else than was uploaded: the job fails, and nothing is replaced.
func TestDamagedOnTheWay(t *testing.T) {
	for _, suffix := range []string{"/index", "chunks/000001"} {
		for _, at := range []float64{0, 0.3, 0.6, 0.95} {
			bkt := objstore.NewInMemBucket()
			w := newWorld(t, bkt, testStart)
			w.generation([]string{"a", "b", "h"}, 0, minute)
			w.generation([]string{"a", "c"}, 0, 30*minute)
			before := ids2names(w.visible())
			r := w.runner(func(o *Options) { o.Bucket = &damagingBucket{Bucket: bkt, suffix: suffix, at: at} })
			s, err := r.Run(context.Background(), true)
			require.ErrorIs(t, err, block.ErrMismatch, "%s at %v", suffix, at)
			require.Equal(t, 1, s.Failed)
			require.Zero(t, s.Marked+s.Written)
			require.InDelta(t, 1, testutil.ToFloat64(r.metrics.mismatches), 0)
			require.Equal(t, before, ids2names(w.visible()))
			require.Empty(t, r.Quarantined(), "the inputs are not to blame")
			w.check()
			w.run(w.runner(), true) // with a bucket that works
			require.Equal(t, []string{"L1 10T08:00-10T10:00"}, w.shape())
			w.check()
			w.verify()
		}
	}
}

// TestInputGivesLess has an input whose meta.json tells of more than is read of it.
func TestInputGivesLess(t *testing.T) {
	for name, change := range map[string]func(*block.Meta){
		"series":  func(m *block.Meta) { m.Stats.NumSeries++ },
		"chunks":  func(m *block.Meta) { m.Stats.NumChunks++ },
		"samples": func(m *block.Meta) { m.Stats.NumSamples++ },
	} {
		t.Run(name, func(t *testing.T) {
			bkt := objstore.NewInMemBucket()
			w := newWorld(t, bkt, testStart)
			id := w.generation([]string{"a"}, 0, minute)[0]
			w.generation([]string{"b"}, 0, minute)
			metaName := path.Join(id.String(), block.MetaFilename)
			var m block.Meta
			require.NoError(t, json.Unmarshal(bkt.Objects()[metaName], &m))
			change(&m)
			raw, err := m.Marshal()
			require.NoError(t, err)
			require.NoError(t, bkt.Upload(context.Background(), metaName, bytes.NewReader(raw)))
			r := w.runner()
			_, err = r.Run(context.Background(), true)
			require.ErrorIs(t, err, merge.ErrDiffers)
			require.ErrorContains(t, err, id.String())
			require.Len(t, w.listed(), 2)
			_, err = r.Run(context.Background(), true)
			require.Error(t, err)
			require.Len(t, r.Quarantined(), 1, "failed twice, the inputs are looked at")
			w.check()
		})
	}
}
