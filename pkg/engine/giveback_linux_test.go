package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestPagesThatAreAsInTheFileAreGivenBack(t *testing.T) {
	pageSize := os.Getpagesize()
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, make([]byte, 8*pageSize), 0o600))
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	mapped := func(prot int) []byte {
		b, err := unix.Mmap(int(f.Fd()), 0, 8*pageSize, prot, unix.MAP_PRIVATE)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, unix.Munmap(b)) })
		return b
	}
	as, changed, writable := mapped(unix.PROT_READ), mapped(unix.PROT_READ|unix.PROT_WRITE), mapped(unix.PROT_READ|unix.PROT_WRITE)
	changed[0], writable[0] = 1, 2
	require.NoError(t, unix.Mprotect(changed, unix.PROT_READ))
	sum := 0
	for i := 0; i < len(as); i += pageSize {
		sum += int(as[i])
	}
	require.Zero(t, sum)
	before := residentOf(t, name)

	require.NoError(t, dropMapped(name))
	require.Equal(t, before-8*pageSize/1024, residentOf(t, name))
	require.Zero(t, as[0], "it comes back")
	require.EqualValues(t, 1, changed[0], "what differs from the file stays")
	require.EqualValues(t, 2, writable[0])
}

// What a mapping has of its own may all be in swap space.
func TestPagesThatDifferFromTheFileStay(t *testing.T) {
	mapping := func(at, perms, anonymous, swap string) string {
		return fmt.Sprintf("%s %s 00001000 fd:00 123   /bin/m\nSize: 4 kB\nRss: 4 kB\nAnonymous: %8s kB\nKSM: 0 kB\nSwap: %8s kB\nSwapPss: 0 kB\nVmFlags: rd\n",
			at, perms, anonymous, swap)
	}
	smaps := mapping("1000-2000", "r-xp", "0", "0") + mapping("2000-3000", "r--p", "0", "4") + mapping("3000-4000", "r--p", "4", "0") +
		mapping("4000-5000", "rw-p", "0", "0") + mapping("5000-6000", "r--p", "0", "0")
	var found [][2]uintptr
	require.NoError(t, unchanged(strings.NewReader(smaps), "/bin/m", func(from, to uintptr) error {
		found = append(found, [2]uintptr{from, to})
		return nil
	}))
	require.Equal(t, [][2]uintptr{{0x1000, 0x2000}, {0x5000, 0x6000}}, found)
}

func TestTheProcessGoesOnWithoutPagesOfItsExecutable(t *testing.T) {
	self, err := os.Readlink("/proc/self/exe")
	require.NoError(t, err)
	for range 20 { // what runs beside reads pages again
		before := residentOf(t, self)
		GiveBack()
		if residentOf(t, self) < before {
			return
		}
	}
	t.Fatal("the pages stay")
}

// residentOf returns how much of a file's mappings is resident, in kB.
func residentOf(t *testing.T, name string) (sum int) {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	ours := false
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, "-") && strings.Contains(line, "p ") {
			ours = strings.HasSuffix(line, " "+name+"\n")
		}
		var kB int
		if n, _ := fmt.Sscanf(line, "Rss: %d kB", &kB); n == 1 && ours {
			sum += kB
		}
	}
	return sum
}
