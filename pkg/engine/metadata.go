package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/metadata"

	"github.com/millrace/millrace/pkg/ingest"
)

const (
	metadataFile = "metadata.json"
	// maxFamilies bounds the store against senders that make names up.
	maxFamilies = 200_000
)

// metadataStore keeps the newest type, help text and unit of every metric family. It is saved whenever a log is about to go, so that a restart,
// which reads the file and then replays the logs, finds all of it.
type metadataStore struct {
	mu      sync.RWMutex
	known   map[string]metadata.Metadata
	changed bool
}

func newMetadataStore() *metadataStore {
	return &metadataStore{known: map[string]metadata.Metadata{}}
}

// differs says whether add would change anything.
func (s *metadataStore) differs(b *ingest.Batch) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i := range b.Metadata {
		if _, news := s.compare(&b.Metadata[i]); news {
			return true
		}
	}
	return false
}

// compare says whether a request's metadata is news. The caller holds the lock.
func (s *metadataStore) compare(m *ingest.Metadata) (md metadata.Metadata, news bool) {
	md = metadata.Metadata{Type: m.Type, Help: m.Help, Unit: m.Unit}
	if md.Type == "" {
		md.Type = model.MetricTypeUnknown
	}
	old, known := s.known[m.Family]
	return md, (known || len(s.known) < maxFamilies) && old != md
}

func (s *metadataStore) add(b *ingest.Batch) {
	for i := range b.Metadata {
		m := &b.Metadata[i]
		s.mu.RLock()
		md, news := s.compare(m)
		s.mu.RUnlock()
		if !news {
			continue
		}
		s.mu.Lock()
		// The request's strings live as long as the request.
		md.Help, md.Unit, md.Type = strings.Clone(md.Help), strings.Clone(md.Unit), model.MetricType(strings.Clone(string(md.Type)))
		s.known[strings.Clone(m.Family)], s.changed = md, true
		s.mu.Unlock()
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
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	families := map[string]metadata.Metadata{}
	if err == nil {
		err = json.Unmarshal(raw, &families)
	}
	if err != nil {
		return fmt.Errorf("load metadata of metrics: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.known, families)
	return nil
}
