package serving

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/block"
)

func TestSetReleasesARemovedSourceWithItsLastPin(t *testing.T) {
	set := NewSet()
	a, b := memory(Speed, 1), memory(Batch, 1)
	var released []string
	set.Replace(nil, []Entry{{Source: a, Release: func() { released = append(released, "a") }}})
	first, second := set.Pin(), set.Pin()
	set.Replace([]Source{a}, []Entry{{Source: b, Release: func() { released = append(released, "b") }}})
	third := set.Pin()
	require.Empty(t, released)
	first.Release()
	first.Release()
	require.Empty(t, released, "released twice is once")
	second.Release()
	require.Equal(t, []string{"a"}, released)
	third.Release()
	require.Equal(t, []string{"a"}, released, "b is still in the set")
	require.Equal(t, []Source{b}, set.Sources())
	set.Replace([]Source{a, b}, nil)
	require.Equal(t, []string{"a", "b"}, released)
}

func TestSetOrdersByPrecedence(t *testing.T) {
	s := func(from, to uint64) *fakeSource { return &fakeSource{gens: [2]uint64{from, to}} }
	a, b, c, d := s(1, 5), s(3, 5), s(6, 6), s(1, 2)
	set := NewSet()
	set.Replace(nil, []Entry{{Source: c}, {Source: b}, {Source: a}, {Source: a}, {Source: d}})
	require.Equal(t, []Source{d, a, b, c}, set.Sources())
}

// blockSource is a source that is a block.
type blockSource struct {
	*fakeSource
	meta block.Meta
}

func (s *blockSource) Meta() block.Meta { return s.meta }

// Blocks of one generation are in one order, however they came: that in which compactions merge them.
func TestSetOrdersBlocksOfAGenerationAsCompactionsDo(t *testing.T) {
	source := func(level int, id byte) *blockSource {
		s := &blockSource{fakeSource: &fakeSource{}}
		s.meta.ULID[15] = id
		s.meta.SetExtension(level, 0, 0)
		return s
	}
	a, b, c := source(1, 2), source(1, 3), source(2, 1)
	own := &fakeSource{gens: [2]uint64{1, 1}}
	for _, order := range [][]Entry{
		{{Source: a}, {Source: b}, {Source: c}, {Source: own}},
		{{Source: own}, {Source: c}, {Source: b}, {Source: a}},
		{{Source: b}, {Source: own}, {Source: a}, {Source: c}},
	} {
		set := NewSet()
		for _, e := range order {
			set.Replace(nil, []Entry{e})
		}
		require.Equal(t, []Source{a, b, c, own}, set.Sources())
	}
}

// A reader must never see a source whose release func was called, nor two sources that never were there together.
func TestSetUnderConcurrency(t *testing.T) {
	type life struct {
		*fakeSource
		dead atomic.Bool
	}
	set := NewSet()
	var wg sync.WaitGroup
	var live atomic.Int64
	add := func() Entry {
		l := &life{fakeSource: memory(Speed, rand.Uint64N(100))}
		live.Add(1)
		return Entry{Source: l, Release: func() {
			require.False(t, l.dead.Swap(true))
			live.Add(-1)
		}}
	}
	stop := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				p := set.Pin()
				if n := len(p.v.members); n != 0 && n != 4 {
					t.Errorf("%d sources, but they come and go by four", n)
				}
				for _, m := range p.v.members {
					if m.Source.(*life).dead.Load() {
						t.Error("a pinned source was released")
					}
				}
				p.Release()
			}
		})
	}
	for range 2000 {
		set.Replace(set.Sources(), []Entry{add(), add(), add(), add()})
	}
	set.Replace(set.Sources(), nil)
	close(stop)
	wg.Wait()
	require.Zero(t, live.Load())
}
