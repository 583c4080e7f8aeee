package wal

import (
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// diskSegment is a segment file as it is found.
type diskSegment struct {
	number uint64
	name   string
	size   int64
	header segmentHeader
	ok     bool // the header is whole and belongs here
}

// segmentList is what is found in the folder of a log.
type segmentList struct {
	segments  []diskSegment // by number, without those that hold nothing and have no header
	leftovers []string      // of interrupted rewrites, and segments whose beginning was interrupted
	highest   uint64        // number of all segments, also of those that are not usable
}

// listSegments reads the folder and the segments' headers. Other files are ignored, and segments of another log than o.id; with o.id 0
// the first segment says which log it is.
func listSegments(dir string, o Options) (*segmentList, error) {
	entries, err := o.FS.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	list := &segmentList{}
	for _, e := range entries {
		name, temporary := strings.CutSuffix(e.Name(), tmpSuffix)
		number, ok := parseSegmentName(name)
		if !ok {
			continue
		}
		list.highest = max(list.highest, number)
		switch {
		case e.IsDir():
		case temporary:
			list.leftovers = append(list.leftovers, e.Name())
		default:
			s, err := statSegment(dir, number, o)
			if err != nil {
				return nil, err
			}
			// One that was not begun properly holds nothing, and must not keep its neighbours from knowing each other.
			if s.ok || s.size > segmentHeaderSize {
				list.segments = append(list.segments, s)
			}
		}
	}
	slices.SortFunc(list.segments, func(a, b diskSegment) int { return cmp.Compare(a.number, b.number) })
	list.dropForeign(dir, o)
	return list, nil
}

func statSegment(dir string, number uint64, o Options) (s diskSegment, err error) {
	s = diskSegment{number: number, name: segmentName(number)}
	f, err := o.FS.OpenFile(filepath.Join(dir, s.name), os.O_RDONLY)
	if err != nil {
		return s, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return s, err
	}
	s.size = info.Size()
	if s.size < segmentHeaderSize {
		return s, nil
	}
	b, err := readRange(f, 0, segmentHeaderSize)
	if err != nil && !o.SkipUnreadable && !errors.Is(err, io.ErrUnexpectedEOF) {
		return s, err
	}
	s.header, s.ok = parseSegmentHeader(b)
	// A file with another's number is not where its header says it is; its frames may be good.
	s.ok = s.ok && s.header.number == number
	return s, nil
}

func (list *segmentList) dropForeign(dir string, o Options) {
	id := list.id(o)
	list.segments = slices.DeleteFunc(list.segments, func(s diskSegment) bool {
		foreign := s.ok && s.header.id != id
		if foreign {
			o.Logger.Warn("ignoring a segment of another write-ahead log", "dir", dir, "segment", s.name)
		}
		return foreign
	})
}

// id is the log's id: o.id if the header was readable, else what the segments say.
func (list *segmentList) id(o Options) uint64 {
	if o.id != 0 {
		return o.id
	}
	for _, s := range list.segments {
		if s.ok {
			return s.header.id
		}
	}
	return 0
}

// end finds where a log ends, from its last segment that knows where it begins, and takes segments without anything in them off the list.
func (list *segmentList) end(dir string, o Options) (mark, error) {
	r := replayer{dir: dir, o: o, id: o.id}
	rest := list.segments
	for i, s := range list.segments {
		if s.ok {
			rest = list.segments[i:]
			r.at = mark{s.header.start, s.header.seq}
		}
	}
	err := r.run(rest)
	list.leftovers = append(list.leftovers, r.void...)
	list.segments = slices.DeleteFunc(list.segments, func(s diskSegment) bool { return slices.Contains(r.void, s.name) })
	return r.at, err
}
