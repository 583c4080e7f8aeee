package block

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/metadata"
)

const (
	// MetadataFilename is that of the file with what is known of the block's metric families. Other readers of blocks pass it over.
	MetadataFilename = "metadata.json"

	familiesVersion = 1
	// maxFamiliesSize bounds what is written and read of it; 10,000 families take about 1 MB.
	maxFamiliesSize = 32 << 20
)

// Families are type, help text and unit of metric families, by name.
type Families map[string]metadata.Metadata

// describer is an Input that knows of metric families; of more than its own, maybe.
type describer interface {
	Families(ctx context.Context) (Families, error)
}

// familiesFile is what metadata.json holds.
type familiesFile struct {
	Version  int      `json:"version"`
	Families Families `json:"families"`
}

// familySuffixes are those that a metric's name may have beyond its family's.
var familySuffixes = []string{"_bucket", "_count", "_sum", "_gcount", "_gsum", "_total", "_created", "_info"}

// ofMetric calls f with the names of the families that a metric may belong to.
func ofMetric(name string, f func(family string)) {
	f(name)
	for _, s := range familySuffixes {
		if base, ok := strings.CutSuffix(name, s); ok && base != "" {
			f(base)
		}
	}
}

// FamiliesSize is the size of the file that Families reads, in bytes; 0 if the block has none.
func (m *Meta) FamiliesSize() int64 {
	for _, f := range m.Thanos.Files {
		if f.RelPath == MetadataFilename {
			return f.SizeBytes
		}
	}
	return 0
}

// Families returns what is known of the block's metric families; nil if the block does not tell. It takes one request, and
// does not need the block to be open still.
func (b *Block) Families(ctx context.Context) (Families, error) {
	size := b.meta.FamiliesSize()
	if size == 0 {
		return nil, nil
	}
	raw, err := b.readFile(ctx, MetadataFilename, size)
	if err != nil {
		return nil, fmt.Errorf("read metadata of block %s: %w", b.meta.ULID, err)
	}
	f, err := parseFamilies(raw)
	if err != nil {
		return nil, fmt.Errorf("metadata of block %s: %w", b.meta.ULID, err)
	}
	return f, nil
}

func (b *Block) readFile(ctx context.Context, name string, size int64) ([]byte, error) {
	if size > maxFamiliesSize {
		return nil, fmt.Errorf("%w: %s has %d bytes, more than %d", ErrUnusable, name, size, maxFamiliesSize)
	}
	f, err := b.r.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, size+1))
	if err == nil && int64(len(raw)) != size {
		err = fmt.Errorf("%w: %s does not have the %d bytes that %s says", ErrCorrupt, name, size, MetaFilename)
	}
	return raw, err
}

func parseFamilies(raw []byte) (Families, error) {
	var file familiesFile
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, fmt.Errorf("%w: parse %s: %w", ErrCorrupt, MetadataFilename, err)
	}
	if file.Version != familiesVersion {
		return nil, fmt.Errorf("%w: %s has version %d, this program reads %d", ErrUnusable, MetadataFilename, file.Version, familiesVersion)
	}
	return file.Families, nil
}

// writeFamilies writes what the inputs know of the families of the metrics written; the later input wins.
func (w *writer) writeFamilies() error {
	known := Families{}
	for _, in := range w.inputs {
		d, ok := in.(describer)
		if !ok {
			continue
		}
		families, err := d.Families(w.ctx)
		// Samples are worth more than what is lost of their description.
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnusable) && !errors.Is(err, ErrGone) {
			return err
		}
		for name := range w.metrics {
			ofMetric(name, func(family string) {
				if md, ok := families[family]; ok {
					known[family] = md
				}
			})
		}
	}
	if len(known) == 0 {
		return nil
	}
	raw, err := json.Marshal(familiesFile{Version: familiesVersion, Families: known})
	if err != nil {
		return fmt.Errorf("encode metadata: %w", err)
	}
	if len(raw) > maxFamiliesSize {
		return nil
	}
	w.described = true
	return writeSynced(filepath.Join(w.dir, MetadataFilename), raw)
}

// noteMetric remembers the name of a series' metric.
func (w *writer) noteMetric(labels []uint32) {
	for i := 0; i < len(labels); i += 2 {
		name := labels[i+1]
		if w.symbols[labels[i]] == model.MetricNameLabel {
			if len(w.metrics) == 0 || name != w.lastMetric {
				w.lastMetric = name
				w.metrics[strings.Clone(w.symbols[name])] = struct{}{}
			}
			return
		}
	}
}
