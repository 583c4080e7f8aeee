package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testID  = 0x1122334455667788
	testDir = "/log"
)

// testOptions are those of a log in a memory file system, with a fixed id.
func testOptions(fsys FS) Options {
	return Options{FS: fsys, SyncEvery: true, id: testID}
}

func mustCreate(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := Create(testDir, []byte("header"), o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func mustOpen(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := Open(testDir, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func mustAppend(t testing.TB, l *Log, records ...string) {
	t.Helper()
	for _, r := range records {
		_, err := l.Append([]byte(r))
		require.NoError(t, err)
	}
}

func replayAll(t testing.TB, o Options) ([]string, Stats) {
	t.Helper()
	var records []string
	stats, err := Replay(testDir, o, func(h []byte) error {
		if string(h) != "header" {
			return fmt.Errorf("header is %q", h)
		}
		return nil
	}, func(r []byte) error {
		records = append(records, string(r))
		return nil
	})
	require.NoError(t, err)
	return records, stats
}

// edit changes a file as a failing disk does, durably.
func (m *memFS) edit(t testing.TB, name string, f func([]byte) []byte) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	node, _, _, err := m.existing(filepath.Join(testDir, name))
	require.NoError(t, err)
	node.data = f(append([]byte(nil), node.data...))
	node.disk = append([]byte(nil), node.data...)
	node.writes = nil
}

func (m *memFS) put(t testing.TB, name string, data []byte) {
	t.Helper()
	f, err := m.OpenFile(filepath.Join(testDir, name), createFlags)
	require.NoError(t, err)
	_, err = f.WriteAt(data, 0)
	require.NoError(t, err)
	require.NoError(t, errors.Join(f.Sync(), f.Close()))
}

func (m *memFS) setFault(f func(op, name string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = f
}

func (m *memFS) setCapacity(c int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacity = c
}

func (m *memFS) used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.root.size()
}

func (m *memFS) names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := m.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// resum makes the checksum of a header file right again.
func resum(b []byte) []byte {
	sum := len(b) - headerTrailer
	return binary.BigEndian.AppendUint32(b[:sum], checksum(0, b[:sum]))
}

// dieAfter lets the machine die after so many operations.
func (m *memFS) dieAfter(ops int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life = ops + 1
}

func (m *memFS) gone() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}
