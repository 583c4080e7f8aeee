package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/metadata"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/speed"
)

const (
	metadataFile = "metadata.json"
	// maxFamilies bounds the store against senders that make names up.
	maxFamilies = 200_000
	// maxRestoredBlocks and maxRestoredBytes bound what a start without the file reads: more than two months, where a block holds a day.
	maxRestoredBlocks = 64
	maxRestoredBytes  = 64 << 20
)

// metadataStore keeps the newest type, help text and unit of every metric family. It is saved whenever a log is about to go, so that a restart,
// which reads the file and then replays the logs, finds all of it. Blocks have what concerns their metrics; from there it comes back where the file
// is missing.
type metadataStore struct {
	mu         sync.RWMutex
	known      map[string]metadata.Metadata
	changed    bool
	incomplete bool // the file was missing, and the blocks have not been asked yet
	// told says, while logs are replayed, which generation brought what is known: an older log, read later, is no news. nil afterwards.
	told map[string]uint64
}

func newMetadataStore() *metadataStore {
	return &metadataStore{known: map[string]metadata.Metadata{}}
}

// noteGenerations keeps apart what generations tell, until allTold.
func (s *metadataStore) noteGenerations() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = map[string]uint64{}
}

// allTold says that nothing older will come.
func (s *metadataStore) allTold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = nil
}

// differs says whether add would change anything.
func (s *metadataStore) differs(generation uint64, b *ingest.Batch) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i := range b.Metadata {
		if _, news := s.compare(generation, &b.Metadata[i]); news {
			return true
		}
	}
	return false
}

// compare says whether a request's metadata is news. The caller holds the lock.
func (s *metadataStore) compare(generation uint64, m *ingest.Metadata) (md metadata.Metadata, news bool) {
	md = metadata.Metadata{Type: m.Type, Help: m.Help, Unit: m.Unit}
	if md.Type == "" {
		md.Type = model.MetricTypeUnknown
	}
	old, known := s.known[m.Family]
	if !known && len(s.known) >= maxFamilies {
		return md, false
	}
	if s.told != nil {
		if told := s.told[m.Family]; told != generation {
			return md, told < generation
		}
	}
	return md, old != md
}

func (s *metadataStore) add(generation uint64, b *ingest.Batch) {
	for i := range b.Metadata {
		m := &b.Metadata[i]
		s.mu.RLock()
		_, news := s.compare(generation, m)
		s.mu.RUnlock()
		if news {
			s.put(generation, m)
		}
	}
}

func (s *metadataStore) put(generation uint64, m *ingest.Metadata) {
	s.mu.Lock()
	defer s.mu.Unlock()
	md, news := s.compare(generation, m)
	if !news {
		return
	}
	// The request's strings live as long as the request.
	md.Help, md.Unit, md.Type = strings.Clone(md.Help), strings.Clone(md.Unit), model.MetricType(strings.Clone(string(md.Type)))
	family := strings.Clone(m.Family)
	s.known[family], s.changed = md, true
	if s.told != nil {
		s.told[family] = generation
	}
}

// families returns a copy of what is known, by name.
func (s *metadataStore) families() map[string]metadata.Metadata {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make(map[string]metadata.Metadata, len(s.known))
	maps.Copy(out, s.known)
	return out
}

func (s *metadataStore) save(path string) error {
	s.mu.Lock()
	changed := s.changed
	s.changed = false
	s.mu.Unlock()
	if !changed {
		return nil
	}
	raw, err := json.Marshal(s.families())
	if err == nil {
		err = writeFile(filepath.Join(path, metadataFile), raw)
	}
	if err != nil {
		s.mu.Lock()
		s.changed = true
		s.mu.Unlock()
		return fmt.Errorf("save metadata of metrics: %w", err)
	}
	return nil
}

func (s *metadataStore) load(path string) error {
	raw, err := os.ReadFile(filepath.Join(path, metadataFile))
	families := map[string]metadata.Metadata{}
	if err == nil {
		err = json.Unmarshal(raw, &families)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.incomplete = err != nil; !s.incomplete {
		maps.Copy(s.known, families)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("load metadata of metrics: %w", err)
	}
	return nil
}

// fill adds families that are not known.
func (s *metadataStore) fill(families block.Families) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, md := range families {
		if _, known := s.known[name]; !known && len(s.known) < maxFamilies {
			s.known[name], s.changed = md, true
		}
	}
}

func (s *metadataStore) isIncomplete() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.incomplete
}

func (s *metadataStore) setComplete() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.incomplete = false
}

// describedGeneration is a generation as a block is made of it: what is known of its metrics goes along.
type describedGeneration struct {
	*speed.Generation

	metadata *metadataStore
}

// Families returns all that is known; the block takes what it has metrics of.
func (g describedGeneration) Families(context.Context) (block.Families, error) {
	return g.metadata.families(), nil
}

// restoreMetadata fills in what the newest blocks tell, where the file below the data path was missing. Newer blocks win, and senders before all of them.
func (e *Engine) restoreMetadata(ctx context.Context) error {
	if !e.metadata.isIncomplete() || !e.data.synced.wasListed() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout*6)
	defer cancel()
	blocks, bytes := maxRestoredBlocks, int64(maxRestoredBytes)
	for _, s := range slices.Backward(e.set.Sources()) {
		b, ok := s.(*blockSource)
		if !ok || b.meta.FamiliesSize() == 0 {
			continue
		}
		if bytes -= b.meta.FamiliesSize(); blocks == 0 || bytes < 0 {
			break
		}
		blocks--
		families, err := b.Families(ctx)
		switch {
		case errors.Is(err, block.ErrGone) || errors.Is(err, block.ErrCorrupt) || errors.Is(err, block.ErrUnusable):
			e.logger.Warn("metadata of metrics in a block cannot be read", "err", err)
		case err != nil:
			return err // tried again after the next listing
		}
		e.metadata.fill(families)
	}
	e.metadata.setComplete()
	return nil
}
