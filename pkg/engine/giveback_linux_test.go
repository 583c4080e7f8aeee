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

func TestTheProcessGoesOnWithoutPagesOfItsExecutable(t *testing.T) {
	for range 3 {
		GiveBack()
		self, err := os.Readlink("/proc/self/exe")
		require.NoError(t, err)
		require.Positive(t, residentOf(t, self))
	}
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
