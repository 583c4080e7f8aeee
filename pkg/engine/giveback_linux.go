package engine

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// dropExecutable unmaps the pages of the executable. Most of what a start reads of it, the setup of each package, is never looked at again, but counts as
// resident until the system runs short of memory: more than all that 50,000 series take. What is needed comes back from the page cache, where it stays, 16
// pages at a time.
func dropExecutable() {
	if self, err := os.Readlink("/proc/self/exe"); err == nil {
		_ = dropMapped(self) // It stays as it is.
	}
}

// dropMapped unmaps the pages of a file that are mapped to be read or executed. A mapping that is not in all as the file is left alone, since its changes would
// be lost: those of a linker that relocates, or of a debugger.
func dropMapped(path string) error {
	smaps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer smaps.Close()
	return unchanged(smaps, path, func(from, to uintptr) error {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
			return errno
		}
		return nil
	})
}

// unchanged calls do for each mapping of a file that is to be read or executed and has no page of its own, neither in memory nor in swap space.
func unchanged(smaps io.Reader, path string, do func(from, to uintptr) error) error {
	var mapping struct{ from, to uintptr } // That the lines are about; empty if it is none of these.
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		line := lines.Text()
		var from, to uintptr
		var perms string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); n == 3 {
			mapping.from, mapping.to = 0, 0
			if (perms == "r-xp" || perms == "r--p") && strings.HasSuffix(line, " "+path) {
				mapping.from, mapping.to = from, to
			}
			continue
		}
		name, size, _ := strings.Cut(line, ":")
		if mapping.to == 0 || name != "Anonymous" && name != "Swap" {
			continue
		}
		switch {
		case strings.TrimSpace(size) != "0 kB":
			mapping.from, mapping.to = 0, 0
		case name == "Swap": // It comes after the other.
			if err := do(mapping.from, mapping.to); err != nil {
				return err
			}
		}
	}
	return lines.Err()
}
