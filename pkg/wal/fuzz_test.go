package wal

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzReplay gives replay two segments of anything. With honest set, the checksums of all headers in them are made right, so that
// lengths and numbers are believed.
func FuzzReplay(f *testing.F) {
	fsys, _ := corruptibleLog(f)
	var segments [2][]byte
	for i, name := range []string{seg1, seg2} {
		b, err := readSmall(fsys, testDir+"/"+name, 1<<20)
		require.NoError(f, err)
		segments[i] = b
	}
	f.Add(segments[0], segments[1], false)
	f.Add(segments[0], segments[1][:100], true)
	f.Add(segments[1], segments[0], true)
	f.Add([]byte{}, bytes.Repeat(marker[:], 100), true)
	f.Add(append(segments[0], make([]byte, 1000)...), []byte(segmentMagic), false)

	metrics := NewMetrics(nil)
	f.Fuzz(func(t *testing.T, a, b []byte, honest bool) {
		if honest {
			a, b = makeHonest(a), makeHonest(b)
		}
		fsys := newMemFS()
		o := testOptions(fsys)
		o.MaxRecordSize, o.Metrics = 1000, metrics
		require.NoError(t, mustCreate(t, o).Close())
		fsys.put(t, seg1, a)
		fsys.put(t, seg2, b)
		var read int64
		stats, err := Replay(testDir, o, nil, func(r []byte) error {
			read += int64(len(r) + frameHeaderSize)
			require.LessOrEqual(t, int64(len(r)), o.MaxRecordSize)
			return nil
		})
		require.NoError(t, err)
		require.LessOrEqual(t, read, int64(len(a)+len(b)))
		require.GreaterOrEqual(t, stats.Lost.Bytes, int64(0))
		require.GreaterOrEqual(t, stats.Lost.Records, int64(0))

		// Whatever was there, the log takes new records and gives them back last.
		l := mustOpen(t, o)
		mustAppend(t, l, "new")
		require.NoError(t, l.Close())
		records, again := replayAll(t, o)
		require.Equal(t, "new", records[len(records)-1])
		require.Equal(t, stats.Records+1, again.Records)
	})
}

// makeHonest makes the checksums of the segment header and of every frame header right.
func makeHonest(b []byte) []byte {
	b = bytes.Clone(b)
	if len(b) >= segmentHeaderSize {
		const sum = segmentHeaderSize - 4
		copy(b, segmentMagic)
		binary.BigEndian.PutUint64(b[16:], testID)
		binary.BigEndian.PutUint32(b[sum:], checksum(0, b[:sum]))
	}
	for at := 0; ; at++ {
		i := bytes.Index(b[at:], marker[:])
		if i < 0 || at+i+frameHeaderSize > len(b) {
			return b
		}
		at += i
		header := b[at : at+frameHeaderSize]
		binary.BigEndian.PutUint32(header[20:], checksum(testID, header[:20]))
	}
}

// FuzzDamage flips bits of a log: what they do not touch survives, and nothing else comes out.
func FuzzDamage(f *testing.F) {
	f.Add([]byte{0, 0, 1})
	f.Add([]byte{0, 60, 0xff, 0, 61, 0xff, 1, 5, 1})
	f.Add([]byte{0, 48, 0x40, 0, 82, 0x40, 0, 116, 0x40, 0, 150, 0x01})
	f.Fuzz(func(t *testing.T, damage []byte) {
		fsys, o := corruptibleLog(t)
		size := frameAt(3)
		names := []string{seg1, seg2, seg3}
		flipped := map[int]byte{} // by position in all three
		for ; len(damage) >= 3; damage = damage[3:] {
			at := int(binary.BigEndian.Uint16(damage)) % (3 * size)
			flipped[at] ^= damage[2]
			fsys.edit(t, names[at/size], func(b []byte) []byte { b[at%size] ^= damage[2]; return b })
		}
		var gone []int
		for at, mask := range flipped {
			if mask != 0 && at%size >= segmentHeaderSize {
				gone = append(gone, at/size*3+(at%size-segmentHeaderSize)/testFrame)
			}
		}
		records, _ := replayAll(t, o)
		require.Equal(t, survivors(gone...), append([]string(nil), records...))
	})
}

// FuzzHeader decodes anything as a header.
func FuzzHeader(f *testing.F) {
	f.Add(encodeHeader(testID, []byte("owner")))
	f.Add(encodeHeader(0, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, resum(append(bytes.Clone(b), make([]byte, headerTrailer)...))} {
			if id, owner, err := decodeHeader("dir", b); err == nil {
				require.Equal(t, b, encodeHeader(id, owner))
			}
		}
	})
}

func TestALengthIsNotBelievedBeforeItIsChecked(t *testing.T) {
	frame := make([]byte, frameHeaderSize)
	sealFrame(testID, 0, 0, frame)
	for _, length := range []uint32{1, 1000, math.MaxInt32, math.MaxUint32} {
		binary.BigEndian.PutUint32(frame[4:], length)
		binary.BigEndian.PutUint32(frame[20:], checksum(testID, frame[:20]))
		// A file that claims to be as large as the frame says, as one with a hole in it is.
		end := int64(frameHeaderSize) + int64(length)
		s := scanner{r: sparse{bytes.NewReader(frame)}, id: testID, end: end, max: 1000}
		f, ok, err := s.next()
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, span{0, end}, f.bad)
		require.LessOrEqual(t, cap(s.buf), readAhead)
	}
}

// sparse reads zeros behind the end.
type sparse struct{ r *bytes.Reader }

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	n, _ := s.r.ReadAt(p, off)
	clear(p[n:])
	return len(p), nil
}
