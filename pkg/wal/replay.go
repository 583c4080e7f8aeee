package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Stats says what Replay found.
type Stats struct {
	Segments int
	Records  int64
	Bytes    int64 // of records
	// Lost is what was written once and cannot be read.
	Lost Lost
	// TornTail is true if the log ends in an interrupted write, of TornBytes bytes. Without SyncEvery a power cut may have taken
	// acknowledged records with it; after the death of the process alone none is missing.
	TornTail  bool
	TornBytes int64
	// HeaderDamaged is true if the log's header was ignored because it is damaged.
	HeaderDamaged bool
}

// Lost counts what is damaged or missing.
type Lost struct {
	Regions int64
	// Records is how many records are missing by the sequence numbers around them; those at the damaged end of a log are
	// counted as far as their frames can still be recognised.
	Records int64
	Bytes   int64 // frames included
}

// Replay reads a log that is not open: first its header, then every record that is whole, in order. The functions may be nil; what they are
// given is valid until they return; their errors end the replay and are returned wrapped. Damage is no error but counted in Stats, except for a
// damaged header, which is a CorruptHeaderError (see Options.IgnoreHeader).
func Replay(dir string, o Options, header, record func([]byte) error) (Stats, error) {
	o = o.withDefaults()
	r := replayer{dir: dir, o: o, record: record}
	err := r.replay(header)
	m := o.Metrics
	m.replayed.Add(float64(r.stats.Records))
	m.lostRegions.Add(float64(r.stats.Lost.Regions))
	m.lostRecords.Add(float64(r.stats.Lost.Records))
	m.lostBytes.Add(float64(r.stats.Lost.Bytes))
	if err != nil {
		return r.stats, fmt.Errorf("replay write-ahead log %s: %w", dir, err)
	}
	r.report()
	return r.stats, nil
}

// replayer is the state of a walk over the segments of a log.
type replayer struct {
	dir    string
	o      Options
	id     uint64
	record func([]byte) error
	stats  Stats

	void []string // segments that an interrupted write left without anything in them
	at   mark     // where the walk is in the log, and which record should come next
	lost bool     // the walk has just come out of a lost region: what is missing here belongs to it
}

func (r *replayer) replay(header func([]byte) error) error {
	id, owner, err := readHeader(r.o.FS, r.dir)
	var corrupt *CorruptHeaderError
	if io, ok := errors.AsType[*fs.PathError](err); ok && io.Op == "read" && r.o.SkipUnreadable {
		err = &CorruptHeaderError{Dir: r.dir, Reason: err.Error()}
	}
	switch {
	case err == nil && header != nil:
		if err := header(owner); err != nil {
			return err
		}
	case errors.As(err, &corrupt) && r.o.IgnoreHeader:
		r.stats.HeaderDamaged = true
	case err != nil:
		return err
	}
	r.o.id = id
	list, err := listSegments(r.dir, r.o)
	if err != nil {
		return err
	}
	r.id = list.id(r.o)
	return r.run(list.segments)
}

func (r *replayer) report() {
	s := r.stats
	if s.Lost != (Lost{}) {
		r.o.Logger.Error("records of the write-ahead log are damaged or missing", "dir", r.dir, "records", s.Records,
			"lost_regions", s.Lost.Regions, "lost_records", s.Lost.Records, "lost_bytes", s.Lost.Bytes)
	}
	if s.TornTail {
		r.o.Logger.Info("write-ahead log ends in an interrupted write", "dir", r.dir, "bytes", s.TornBytes)
	}
}

func (r *replayer) run(segments []diskSegment) error {
	lastOK := -1
	for i, s := range segments {
		if s.ok {
			lastOK = i
		}
	}
	for i, s := range segments {
		end := s.size
		if s.ok && i+1 < len(segments) && segments[i+1].ok {
			// What is behind the point where the next segment takes over failed to be written and was answered so.
			if n := segments[i+1].header.start - s.header.start; n >= 0 {
				end = min(end, segmentHeaderSize+n)
			}
		}
		if err := r.segment(s, end, i >= lastOK); err != nil {
			return fmt.Errorf("segment %s: %w", s.name, err)
		}
	}
	return nil
}

// segment walks over a segment up to end; last is true if no segment behind it knows where it begins.
func (r *replayer) segment(s diskSegment, end int64, last bool) error {
	f, err := r.o.FS.OpenFile(filepath.Join(r.dir, s.name), os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	r.stats.Segments++
	sc := scanner{r: f, id: r.id, end: end, max: r.o.MaxRecordSize, skip: r.o.SkipUnreadable}
	if s.ok {
		sc.pos = segmentHeaderSize
		r.skipTo(mark{s.header.start, s.header.seq})
	}
	base := r.at.pos
	for {
		f, ok, err := sc.next()
		if err != nil {
			return err
		}
		if !ok {
			r.at.pos = base + end - segmentHeaderSize
			return nil
		}
		if f.bad.size() > 0 {
			torn := false
			if last && f.bad.to == end {
				if torn, err = sc.torn(f); err != nil {
					return err
				}
			}
			if torn {
				if f.bad.size() == s.size {
					r.void = append(r.void, s.name)
				}
				r.stats.TornTail = true
				r.stats.TornBytes += f.bad.size()
				r.at.pos = base + max(0, f.bad.from-segmentHeaderSize)
				return nil
			}
			r.lose(f)
		}
		if err := r.deliver(f); err != nil {
			return err
		}
	}
}

// torn tells whether a damaged region at the end of the log is an interrupted write, rather than something that was whole once.
func (s *scanner) torn(f found) (bool, error) {
	if f.partial || f.stale || (f.known == 0 && f.bad.size() < frameHeaderSize) {
		return true, nil
	}
	return s.unwritten(f.bad)
}

// skipTo goes on at a place that a segment's header names, and counts what should have been before it.
func (r *replayer) skipTo(to mark) {
	if to.pos > r.at.pos || to.seq > r.at.seq {
		if !r.lost {
			r.stats.Lost.Regions++
		}
		r.stats.Lost.Bytes += max(0, to.pos-r.at.pos)
		r.missing(to.seq)
	}
	r.at = to
	r.lost = false
}

func (r *replayer) lose(f found) {
	r.stats.Lost.Regions++
	r.stats.Lost.Bytes += f.bad.size()
	r.missing(f.known)
	r.lost = true
}

// missing counts the records between what should come next and seq.
func (r *replayer) missing(seq uint64) {
	if seq > r.at.seq {
		r.stats.Lost.Records += int64(seq - r.at.seq)
		r.at.seq = seq
	}
}

func (r *replayer) deliver(f found) error {
	if f.record == nil {
		return nil
	}
	r.missing(f.seq)
	// Not only ever forwards: where a segment's header is damaged, it may repeat what is in the one before it.
	r.at.seq = f.seq + 1
	r.lost = false
	r.stats.Records++
	r.stats.Bytes += int64(len(f.record))
	if r.record == nil {
		return nil
	}
	return r.record(f.record)
}
