package engine

import (
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/millrace/millrace/pkg/batch"
	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/claim"
	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/speed"
)

// Layers is what /api/v1/layers shows. Times are in milliseconds since 1970, sizes in bytes.
type Layers struct {
	Phase       Phase              `json:"phase"`
	Replay      *ReplayInfo        `json:"replay"` // null when there is nothing to be replayed
	Generations []GenerationInfo   `json:"generations"`
	Blocks      []BlockInfo        `json:"blocks"`
	Watermarks  Watermarks         `json:"watermarks"`
	Jobs        []batch.JobStatus  `json:"jobs"`
	Bucket      BucketInfo         `json:"bucket"`
	Local       LocalInfo          `json:"local"`
	Tombstones  Tombstones         `json:"tombstones"`
	HAClusters  []ingest.HACluster `json:"haClusters"` // the last 1,000 of which something was stored
	Writer      claim.Status       `json:"writer"`
	// Leases of batch jobs that run or wait here, and of those that the latest run left to another process.
	Leases   []claim.Status    `json:"leases"`
	Problems map[string]string `json:"problems"`
}

// ReplayInfo says how far the replay of logs is. Until it is done, writes are taken, and the batch layer answers queries; others wait.
type ReplayInfo struct {
	Logs     int    `json:"logs"`  // that are still to be read
	Bytes    int64  `json:"bytes"` // of these
	Read     int64  `json:"read"`  // of these bytes, about
	Progress string `json:"progress"`
}

// GenerationInfo is one generation in memory.
type GenerationInfo struct {
	Number  uint64 `json:"number"`
	State   string `json:"state"` // active, sealed or, while its log is read back and no query sees it, replaying
	Series  int64  `json:"series"`
	Samples int64  `json:"samples"`
	Late    int64  `json:"lateSamples"`
	MinTime *int64 `json:"minTime"` // null while there is no sample
	MaxTime *int64 `json:"maxTime"`
	Bytes   int64  `json:"bytes"`
	Created int64  `json:"created"`
}

// BlockInfo is one block, on local disk or in the bucket.
type BlockInfo struct {
	ULID        ulid.ULID         `json:"ulid"`
	Level       int               `json:"level"`
	Location    string            `json:"location"` // local or bucket
	MinTime     int64             `json:"minTime"`
	MaxTime     int64             `json:"maxTime"`
	Series      uint64            `json:"series"`
	Samples     uint64            `json:"samples"`
	Bytes       int64             `json:"bytes"`
	Generations block.Generations `json:"generations"`
}

// Watermarks say how far each layer has come, as generation numbers and times.
type Watermarks struct {
	Accepting uint64 `json:"accepting"` // the active generation
	Uploaded  uint64 `json:"uploaded"`  // all up to it are in the bucket
	Compacted uint64 `json:"compacted"` // all up to it are in blocks of level 1 or higher
	// The newest sample of all, of the speed and of the batch layer, in ms; null where there is none. See newestIn for how exact the last one is.
	NewestSample      *int64 `json:"newestSample"`
	NewestSpeedSample *int64 `json:"newestSpeedSample"`
	NewestBatchSample *int64 `json:"newestBatchSample"`
	Horizon           *int64 `json:"horizon"` // retention; null is for ever
	// Rules are the retention rules.
	Rules []RuleInfo `json:"rules,omitempty"`
}

// RuleInfo says what a retention rule keeps just now.
type RuleInfo struct {
	Match   string `json:"match"`
	Horizon int64  `json:"horizon"` // ms
}

// BucketInfo says how the bucket is.
type BucketInfo struct {
	Reachable bool       `json:"reachable"`
	LastSync  *time.Time `json:"lastSync"`
	Error     string     `json:"error,omitempty"`
}

// LocalInfo says how full the local disk is.
type LocalInfo struct {
	Bytes int64 `json:"bytes"`
	Limit int64 `json:"limit"`
	Free  int64 `json:"free"`
}

// Layers describes what the layers hold at this moment.
func (e *Engine) Layers() Layers {
	l := Layers{Generations: []GenerationInfo{}, Blocks: []BlockInfo{}, Jobs: []batch.JobStatus{}, Leases: []claim.Status{}, Problems: map[string]string{}}
	l.Tombstones.Newest = []TombstoneInfo{}
	l.HAClusters = e.receiver.HAClusters()
	e.mu.Lock()
	for name, err := range e.problems {
		l.Problems[name] = err.Error()
	}
	l.Phase = e.phase
	generations, local, unread, open := e.generations, e.local, e.unread, e.phase == Ready || e.phase == Replaying
	if e.phase == Replaying {
		l.Replay = &ReplayInfo{Logs: len(unread), Progress: e.progress}
	}
	e.mu.Unlock()
	if !open {
		return l
	}
	for _, u := range unread {
		if l.Replay != nil {
			l.Replay.Bytes, l.Replay.Read = l.Replay.Bytes+u.size, l.Replay.Read+min(u.read.Load(), u.size)
		}
		l.Generations = append(l.Generations, u.describe())
	}
	for _, g := range generations {
		l.Generations = append(l.Generations, e.describe(g))
	}
	for _, b := range local {
		l.Blocks = append(l.Blocks, describeBlock(b.meta, "local", b.size))
	}
	inBucket := e.data.synced.metas()
	for _, m := range inBucket {
		l.Blocks = append(l.Blocks, describeBlock(m, "bucket", m.Size()))
	}
	sources := e.localSources()
	for i := range inBucket {
		sources = append(sources, inBucket[i].Stored())
	}
	l.Tombstones = e.data.deletions.describe(sources)
	l.Jobs = append(append(l.Jobs, e.calls.status()...), e.data.runner.Status()...)
	l.Watermarks = watermarks(l.Generations, inBucket)
	l.Watermarks.setNewest(newestSpeed(l.Generations, local), newestBatch(inBucket, time.Now()))
	if h := e.horizon(); h != minTime {
		l.Watermarks.Horizon = &h
	}
	for _, r := range e.cfg.Storage.RetentionRules {
		l.Watermarks.Rules = append(l.Watermarks.Rules, RuleInfo{Match: r.Series, Horizon: r.Horizon(e.now().UnixMilli())})
	}
	l.Bucket, l.Writer, l.Leases = e.data.synced.info(), e.data.claim.Status(), e.data.runner.Leases()
	if u := e.disk.Load(); u != nil {
		l.Local = LocalInfo{Bytes: u.used, Limit: u.limit, Free: u.free}
	}
	return l
}

func (e *Engine) describe(g *generation) GenerationInfo {
	info := describeGeneration(g.Number, "active", g.mem.Stats())
	info.Created = g.Created
	e.mu.Lock()
	if g.sealed {
		info.State = "sealed"
	}
	e.mu.Unlock()
	return info
}

func (l *unreadLog) describe() GenerationInfo {
	stats := speed.Stats{}
	if mem := l.mem.Load(); mem != nil {
		stats = mem.Stats()
	}
	return describeGeneration(l.number, "replaying", stats)
}

func describeGeneration(number uint64, state string, s speed.Stats) GenerationInfo {
	info := GenerationInfo{Number: number, State: state, Series: s.Series, Samples: s.Samples, Late: s.Late, Bytes: s.Bytes}
	if s.Samples > 0 {
		info.MinTime, info.MaxTime = &s.MinTime, &s.MaxTime
	}
	return info
}

func describeBlock(m block.Meta, location string, size int64) BlockInfo {
	from, to := m.Generations()
	return BlockInfo{
		ULID: m.ULID, Level: m.Level(), Location: location, MinTime: m.MinTime, MaxTime: m.MaxTime,
		Series: m.Stats.NumSeries, Samples: m.Stats.NumSamples, Bytes: size, Generations: block.Generations{Min: from, Max: to},
	}
}

func watermarks(generations []GenerationInfo, inBucket []block.Meta) Watermarks {
	var w Watermarks
	for _, g := range generations {
		w.Accepting = max(w.Accepting, g.Number)
	}
	lowestRaw := uint64(0)
	for _, m := range inBucket {
		from, to := m.Generations()
		w.Uploaded = max(w.Uploaded, to)
		if m.Level() == 0 && (lowestRaw == 0 || from < lowestRaw) {
			lowestRaw = from
		}
	}
	for _, m := range inBucket {
		if _, to := m.Generations(); m.Level() > 0 && (lowestRaw == 0 || to < lowestRaw) {
			w.Compacted = max(w.Compacted, to)
		}
	}
	return w
}

func (w *Watermarks) setNewest(speed, batch int64) {
	w.NewestSample, w.NewestSpeedSample, w.NewestBatchSample = orNull(max(speed, batch)), orNull(speed), orNull(batch)
}

func orNull(t int64) *int64 {
	if t == minTime {
		return nil
	}
	return &t
}

// newestSpeed is the time of the newest sample that no block in the bucket holds; minTime if there is none.
func newestSpeed(generations []GenerationInfo, local []*localBlock) int64 {
	newest := int64(minTime)
	for _, g := range generations {
		if g.MaxTime != nil {
			newest = max(newest, *g.MaxTime)
		}
	}
	for _, b := range local {
		newest = max(newest, b.meta.MaxTime-1)
	}
	return newest
}

// newestBatch is the time of the newest sample in the bucket; minTime if it is empty.
func newestBatch(metas []block.Meta, now time.Time) int64 {
	newest := int64(minTime)
	for _, m := range metas {
		newest = max(newest, newestIn(m, now))
	}
	return newest
}

// newestIn is the time of a block's newest sample, from its meta.json alone. A block of level 0 ends with its newest sample; a compacted one ends
// with its window, and lists the blocks that it was made of. Where all of those are compacted too, the end of their windows is the best that is
// known, or the present, if that comes first: it is at most one such window late.
func newestIn(m block.Meta, now time.Time) int64 {
	end := m.MaxTime
	if parents := m.Compaction.Parents; m.Level() > 0 && len(parents) > 0 {
		end = minTime
		for _, p := range parents {
			end = max(end, min(p.MaxTime, m.MaxTime))
		}
	}
	if end%windowMillis == 0 {
		return min(end-1, max(now.UnixMilli(), m.MinTime))
	}
	return end - 1
}

func (s *bucketState) info() BucketInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := BucketInfo{Reachable: s.err == nil && !s.listed.IsZero()}
	if !s.listed.IsZero() {
		at := s.listed
		i.LastSync = &at
	}
	if s.err != nil {
		i.Error = s.err.Error()
	}
	return i
}
