package wal

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	testRecord = 10                           // bytes of a record r0… of corruptibleLog
	testFrame  = frameHeaderSize + testRecord // bytes of its frame
	seg1       = "00000001.wal"
	seg2       = "00000002.wal"
	seg3       = "00000003.wal"
)

// corruptibleLog has records r0 to r8 in three segments of three.
func corruptibleLog(t testing.TB) (*memFS, Options) {
	fsys := newMemFS()
	o := testOptions(fsys)
	o.SegmentSize = segmentHeaderSize + 3*testFrame
	l := mustCreate(t, o)
	for i := range 9 {
		mustAppend(t, l, testRecordNamed(i))
	}
	require.NoError(t, l.Close())
	return fsys, o
}

func testRecordNamed(i int) string { return fmt.Sprintf("r%d%s", i, strings.Repeat(".", testRecord-2)) }

// frameAt is the offset of the n-th frame in a segment.
func frameAt(n int) int { return segmentHeaderSize + n*testFrame }

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 0x40; return b }
}

func cut(to int) func([]byte) []byte { return func(b []byte) []byte { return b[:to] } }

func zero(from, to int) func([]byte) []byte {
	return func(b []byte) []byte { clear(b[from:to]); return b }
}

func with(tail []byte) func([]byte) []byte {
	return func(b []byte) []byte { return append(b, tail...) }
}

func survivors(lost ...int) []string {
	var names []string
	for i := range 9 {
		if !slices.Contains(lost, i) {
			names = append(names, testRecordNamed(i))
		}
	}
	return names
}

func TestCorruption(t *testing.T) {
	// A whole frame of another log, as a client may have put it into its request.
	foreign := make([]byte, testFrame)
	sealFrame(testID+1, 0, 7, foreign)

	edit := func(name string, f func([]byte) []byte) func(*testing.T, *memFS) {
		return func(t *testing.T, fsys *memFS) { fsys.edit(t, name, f) }
	}
	for _, row := range []struct {
		name     string
		damage   func(*testing.T, *memFS)
		gone     []int
		lost     Lost
		torn     int64
		segments int // 3 if 0
	}{
		{name: "nothing", damage: func(*testing.T, *memFS) {}},
		{name: "a record's first byte", damage: edit(seg1, flip(frameAt(0)+frameHeaderSize)), gone: []int{0}, lost: Lost{1, 1, testFrame}},
		{name: "a record's last byte", damage: edit(seg1, flip(frameAt(1)-1)), gone: []int{0}, lost: Lost{1, 1, testFrame}},
		{name: "a record in the middle of a segment", damage: edit(seg2, flip(frameAt(1)+frameHeaderSize+3)), gone: []int{4}, lost: Lost{1, 1, testFrame}},
		{name: "a marker", damage: edit(seg2, flip(frameAt(1))), gone: []int{4}, lost: Lost{1, 1, testFrame}},
		{name: "a length, made large", damage: edit(seg2, flip(frameAt(1)+4)), gone: []int{4}, lost: Lost{1, 1, testFrame}},
		{name: "a length, made small", damage: edit(seg2, func(b []byte) []byte { b[frameAt(1)+7] ^= 8; return b }), gone: []int{4}, lost: Lost{1, 1, testFrame}},
		{name: "a sequence number", damage: edit(seg2, flip(frameAt(1)+15)), gone: []int{4}, lost: Lost{1, 1, testFrame}},
		{name: "a record's checksum", damage: edit(seg2, flip(frameAt(1)+16)), gone: []int{4}, lost: Lost{1, 1, testFrame}},
		{name: "a frame header's checksum", damage: edit(seg2, flip(frameAt(1)+23)), gone: []int{4}, lost: Lost{1, 1, testFrame}},
		{name: "the last record of a segment in the middle", damage: edit(seg2, flip(frameAt(3)-1)), gone: []int{5}, lost: Lost{1, 1, testFrame}},
		{name: "the last record of the log", damage: edit(seg3, flip(frameAt(3)-1)), gone: []int{8}, lost: Lost{1, 1, testFrame}},
		{name: "the header of the last frame of the log", damage: edit(seg3, flip(frameAt(2)+5)), gone: []int{8}, lost: Lost{1, 0, testFrame}},
		{name: "two records that are neighbours", damage: edit(seg2, func(b []byte) []byte { return flip(frameAt(1) - 1)(flip(frameAt(1))(b)) }), gone: []int{3, 4}, lost: Lost{1, 2, 2 * testFrame}},
		{name: "two records that are not", damage: edit(seg2, func(b []byte) []byte { return flip(frameAt(0))(flip(frameAt(3) - 1)(b)) }), gone: []int{3, 5}, lost: Lost{2, 2, 2 * testFrame}},
		{name: "a hole of zeros", damage: edit(seg2, zero(frameAt(0)+5, frameAt(2)+1)), gone: []int{3, 4, 5}, lost: Lost{1, 3, 3 * testFrame}},
		{name: "the magic number of a segment", damage: edit(seg2, flip(0)), lost: Lost{1, 0, segmentHeaderSize}},
		{name: "the position in a segment's header", damage: edit(seg2, flip(24)), lost: Lost{1, 0, segmentHeaderSize}},
		{name: "the header of the last segment", damage: edit(seg3, flip(47)), lost: Lost{1, 0, segmentHeaderSize}},
		{name: "a segment's header and first frame", damage: edit(seg1, zero(0, frameAt(0)+1)), gone: []int{0}, lost: Lost{1, 1, segmentHeaderSize + testFrame}},
		{name: "zeros instead of a segment in the middle", damage: edit(seg2, zero(0, frameAt(3))), gone: []int{3, 4, 5}, lost: Lost{1, 3, segmentHeaderSize + 3*testFrame}},
		{name: "zeros instead of the last segment", damage: edit(seg3, zero(0, frameAt(3))), gone: []int{6, 7, 8}, torn: segmentHeaderSize + 3*testFrame},
		{name: "a segment in the middle is gone", damage: func(t *testing.T, fsys *memFS) { require.NoError(t, fsys.Remove(testDir+"/"+seg2)) }, gone: []int{3, 4, 5}, lost: Lost{1, 3, 3 * testFrame}, segments: 2},
		{name: "the first segment is gone", damage: func(t *testing.T, fsys *memFS) { require.NoError(t, fsys.Remove(testDir+"/"+seg1)) }, gone: []int{0, 1, 2}, lost: Lost{1, 3, 3 * testFrame}, segments: 2},
		{name: "a segment in the middle is empty", damage: edit(seg2, cut(0)), gone: []int{3, 4, 5}, lost: Lost{1, 3, 3 * testFrame}, segments: 2},
		{name: "a segment in the middle is shorter", damage: edit(seg2, cut(frameAt(2)-1)), gone: []int{4, 5}, lost: Lost{1, 2, 2 * testFrame}},
		{name: "the last segment is empty", damage: edit(seg3, cut(0)), gone: []int{6, 7, 8}, segments: 2},
		{name: "the last segment's header is cut", damage: edit(seg3, cut(20)), gone: []int{6, 7, 8}, segments: 2},
		{name: "the tail is cut in a record", damage: edit(seg3, cut(frameAt(3)-1)), gone: []int{8}, torn: testFrame - 1},
		{name: "the tail is cut in a frame header", damage: edit(seg3, cut(frameAt(2)+7)), gone: []int{8}, torn: 7},
		{name: "the tail is cut between frames", damage: edit(seg3, cut(frameAt(2))), gone: []int{8}},
		{name: "zeros behind the tail", damage: edit(seg3, with(make([]byte, 5000))), torn: 5000},
		{name: "zeros instead of the tail", damage: edit(seg3, func(b []byte) []byte { return with(make([]byte, 2000))(zero(frameAt(2)+30, frameAt(3))(b)) }), gone: []int{8}, torn: testFrame + 2000},
		{name: "a damaged record before a torn tail", damage: edit(seg3, func(b []byte) []byte { return cut(frameAt(3) - 1)(flip(frameAt(1) + frameHeaderSize)(b)) }), gone: []int{7, 8}, lost: Lost{1, 1, testFrame}, torn: testFrame - 1},
		{name: "garbage behind the tail", damage: edit(seg3, with([]byte(strings.Repeat("garbage", 10)))), lost: Lost{1, 0, 70}},
		{name: "garbage behind a segment in the middle: a failed write that could not be cut", damage: edit(seg2, with([]byte("garbage")))},
		{name: "a frame of another log", damage: edit(seg3, with(foreign)), lost: Lost{1, 0, testFrame}},
		{name: "a frame of another log in a record whose header is damaged", damage: edit(seg2, func(b []byte) []byte {
			copy(b[frameAt(0)+5:], foreign)
			return b
		}), gone: []int{3, 4}, lost: Lost{1, 2, 2 * testFrame}},
		{name: "files that are not the log's", damage: func(t *testing.T, fsys *memFS) {
			fsys.put(t, "lost+found", []byte("x"))
			fsys.put(t, "1.wal", []byte("not a name of ours"))
			fsys.put(t, "00000002.wal.bak", []byte("x"))
			fsys.put(t, "00000004.wal.tmp", []byte("a rewrite that was interrupted"))
			fsys.put(t, "00000009.wal", segmentHeader{number: 9, id: testID + 1}.encode())
			require.NoError(t, fsys.Mkdir(testDir+"/00000008.wal"))
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			fsys, o := corruptibleLog(t)
			row.damage(t, fsys)
			records, stats := replayAll(t, o)
			require.Equal(t, survivors(row.gone...), records)
			require.Equal(t, row.lost, stats.Lost)
			require.Equal(t, row.torn, stats.TornBytes)
			require.Equal(t, row.torn > 0, stats.TornTail)
			want := 3
			if row.segments > 0 {
				want = row.segments
			}
			require.Equal(t, want, stats.Segments)

			// The log can be used all the same, and what it had is still there.
			l := mustOpen(t, o)
			mustAppend(t, l, "new")
			require.NoError(t, l.Close())
			again, stats := replayAll(t, o)
			require.Equal(t, append(records, "new"), again)
			require.Equal(t, row.lost.Bytes, stats.Lost.Bytes)
			require.False(t, stats.TornTail)
		})
	}
}

// Any one byte of a segment costs at most the record that it belongs to.
func TestEveryByte(t *testing.T) {
	fsys, o := corruptibleLog(t)
	for s, name := range []string{seg1, seg2, seg3} {
		for at := range frameAt(3) {
			for _, mask := range []byte{0x01, 0x80, 0xff} {
				fsys.edit(t, name, func(b []byte) []byte { b[at] ^= mask; return b })
				records, stats := replayAll(t, o)
				want := survivors()
				if at >= segmentHeaderSize {
					want = survivors(3*s + (at-segmentHeaderSize)/testFrame)
				}
				require.Equal(t, want, records, "byte %d of %s", at, name)
				require.Equal(t, int64(1), stats.Lost.Regions, "byte %d of %s", at, name)
				require.False(t, stats.TornTail)
				fsys.edit(t, name, func(b []byte) []byte { b[at] ^= mask; return b })
			}
		}
	}
}

// A log that is cut anywhere keeps what is whole, and Open goes on behind it.
func TestEveryLength(t *testing.T) {
	fsys, o := corruptibleLog(t)
	for n := range frameAt(3) {
		fsys.edit(t, seg3, cut(frameAt(3)-n))
		records, stats := replayAll(t, o)
		require.Equal(t, survivors()[:9-min(3, (n+testFrame-1)/testFrame)], records, "cut by %d", n)
		require.Zero(t, stats.Lost)
		fsys, o = corruptibleLog(t)
	}
}

func TestADamagedHeader(t *testing.T) {
	for name, damage := range map[string]func(*testing.T, *memFS){
		"magic number": func(t *testing.T, fsys *memFS) { fsys.edit(t, headerName, flip(0)) },
		"id":           func(t *testing.T, fsys *memFS) { fsys.edit(t, headerName, flip(17)) },
		"length":       func(t *testing.T, fsys *memFS) { fsys.edit(t, headerName, flip(15)) },
		"owner":        func(t *testing.T, fsys *memFS) { fsys.edit(t, headerName, flip(headerPrefix)) },
		"checksum":     func(t *testing.T, fsys *memFS) { fsys.edit(t, headerName, flip(headerPrefix+8)) },
		"cut":          func(t *testing.T, fsys *memFS) { fsys.edit(t, headerName, cut(12)) },
		"empty":        func(t *testing.T, fsys *memFS) { fsys.edit(t, headerName, cut(0)) },
		"too long":     func(t *testing.T, fsys *memFS) { fsys.edit(t, headerName, with(make([]byte, 2<<20))) },
		"missing":      func(t *testing.T, fsys *memFS) { require.NoError(t, fsys.Remove(testDir+"/"+headerName)) },
	} {
		t.Run(name, func(t *testing.T) {
			fsys, o := corruptibleLog(t)
			damage(t, fsys)
			var corrupt *CorruptHeaderError
			_, err := Replay(testDir, o, nil, func([]byte) error { return errors.New("no records without a header") })
			require.ErrorAs(t, err, &corrupt)
			require.Equal(t, testDir, corrupt.Dir)
			_, err = Open(testDir, o)
			require.ErrorAs(t, err, &corrupt)

			o.IgnoreHeader = true
			fsys.edit(t, seg1, flip(0)) // the id is in every segment
			var records []string
			stats, err := Replay(testDir, o, func([]byte) error { return errors.New("there is no header") },
				func(r []byte) error { records = append(records, string(r)); return nil })
			require.NoError(t, err)
			require.Equal(t, survivors(), records)
			require.True(t, stats.HeaderDamaged)
		})
	}
}

func TestAHeaderFromTheFuture(t *testing.T) {
	fsys, o := corruptibleLog(t)
	fsys.edit(t, headerName, func(b []byte) []byte {
		b[11] = headerVersion + 1
		return resum(b)
	})
	var version *UnsupportedVersionError
	_, err := Replay(testDir, o, nil, nil)
	require.ErrorAs(t, err, &version)
	require.Equal(t, UnsupportedVersionError{Dir: testDir, Version: 2, Max: 1}, *version)
}

// Two damages at once: a segment's header and the one before it, or what it would have said.
func TestASegmentHeaderIsDamagedAndMore(t *testing.T) {
	fsys, o := corruptibleLog(t)
	fsys.edit(t, seg2, flip(3))
	fsys.edit(t, seg3, flip(3))
	records, stats := replayAll(t, o)
	require.Equal(t, survivors(), records)
	require.Equal(t, Lost{Regions: 2, Bytes: 2 * segmentHeaderSize}, stats.Lost)

	require.NoError(t, fsys.Remove(testDir+"/"+seg2))
	records, stats = replayAll(t, o)
	require.Equal(t, survivors(3, 4, 5), records)
	require.Equal(t, int64(3), stats.Lost.Records, "the frames behind the damaged header know their numbers")
}

// A power cut while a segment was begun leaves a file without anything in it. Its neighbours know each other all the same, so that what failed
// to be written to the first stays out.
func TestAnEmptySegmentBetweenTwo(t *testing.T) {
	for _, size := range []int{0, 20, segmentHeaderSize} {
		fsys := newMemFS()
		o := testOptions(fsys)
		l := mustCreate(t, o)
		mustAppend(t, l, "acknowledged")
		end := l.end
		mustAppend(t, l, "refused")
		require.NoError(t, l.Close())
		fsys.put(t, seg2, make([]byte, size))
		frame := append(make([]byte, frameHeaderSize), "behind"...)
		sealFrame(testID, 0, end.seq, frame)
		fsys.put(t, seg3, append(segmentHeader{number: 3, id: testID, start: end.pos, seq: end.seq}.encode(), frame...))
		records, stats := replayAll(t, o)
		require.Equal(t, []string{"acknowledged", "behind"}, records, "%d bytes", size)
		require.Zero(t, stats.Lost)
	}
}

func TestARecordThatIsLargerThanAllowedIsSkippedByItsLength(t *testing.T) {
	fsys := newMemFS()
	o := testOptions(fsys)
	l := mustCreate(t, o)
	mustAppend(t, l, "a", strings.Repeat("x", 1<<20), "b")
	require.NoError(t, l.Close())
	o.MaxRecordSize = 1000
	records, stats := replayAll(t, o)
	require.Equal(t, []string{"a", "b"}, records)
	require.Equal(t, Lost{1, 1, frameHeaderSize + 1<<20}, stats.Lost)
}

func TestFramesAcrossTheEdgesOfTheReadBuffer(t *testing.T) {
	fsys := newMemFS()
	o := testOptions(fsys)
	l := mustCreate(t, o)
	var want []string
	for i := range 40 {
		r := strings.Repeat(string(rune('a'+i%26)), readAhead/10+i*977)
		want = append(want, r)
		mustAppend(t, l, r)
	}
	large := strings.Repeat("L", 3*readAhead)
	want = append(want, large, "end")
	mustAppend(t, l, large, "end")
	require.NoError(t, l.Close())
	records, _ := replayAll(t, o)
	require.Equal(t, want, records)

	// The search for the next frame crosses the edges, too.
	fsys.edit(t, seg1, func(b []byte) []byte {
		at := len(b) - frameHeaderSize - 3 - frameHeaderSize - len(large)
		b[at] ^= 1
		for i := range 1000 { // places that look like a frame
			copy(b[at+100+i*700:], marker[:])
		}
		return b
	})
	records, stats := replayAll(t, o)
	require.Equal(t, append(want[:40:40], "end"), records)
	require.Equal(t, Lost{1, 1, int64(frameHeaderSize + len(large))}, stats.Lost)
}

func TestADiskThatCannotRead(t *testing.T) {
	fsys := newMemFS()
	o := testOptions(fsys)
	l := mustCreate(t, o)
	for i := range 10 {
		mustAppend(t, l, fmt.Sprintf("%d%s", i, strings.Repeat("x", 3000)))
	}
	require.NoError(t, l.Close())
	o.FS = badPage{FS: fsys, page: 2}
	_, err := Replay(testDir, o, nil, nil)
	require.ErrorIs(t, err, syscall.EIO)

	o.SkipUnreadable = true
	records, stats := replayAll(t, o)
	require.Len(t, records, 7)
	require.Equal(t, Lost{1, 3, 3 * (frameHeaderSize + 3001)}, stats.Lost)
}

// badPage fails reads that touch one page of a segment.
type badPage struct {
	FS
	page int64
}

type badPageFile struct {
	File
	page int64
}

func (b badPage) OpenFile(name string, flag int) (File, error) {
	f, err := b.FS.OpenFile(name, flag)
	if strings.HasSuffix(name, segmentSuffix) && err == nil {
		f = badPageFile{f, b.page}
	}
	return f, err
}

func (b badPageFile) ReadAt(p []byte, off int64) (int, error) {
	if off < (b.page+1)*pageSize && off+int64(len(p)) > b.page*pageSize {
		return 0, syscall.EIO
	}
	return b.File.ReadAt(p, off)
}
