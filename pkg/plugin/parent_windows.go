package plugin

import (
	"os"

	"golang.org/x/sys/windows"
)

// watchParent returns a channel that is closed when the parent process has ended. Windows keeps the number of a parent that is gone, so
// its handle is waited for; where it cannot be had, the channel stays open.
func watchParent(<-chan struct{}) <-chan struct{} {
	gone := make(chan struct{})
	h, err := windows.OpenProcess(windows.SYNCHRONIZE, false, uint32(os.Getppid()))
	if err != nil {
		return gone
	}
	go func() { // ends with the process: nothing interrupts the wait
		defer windows.CloseHandle(h)
		if e, err := windows.WaitForSingleObject(h, windows.INFINITE); err == nil && e == windows.WAIT_OBJECT_0 {
			close(gone)
		}
	}()
	return gone
}
