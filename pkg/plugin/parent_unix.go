//go:build !windows

package plugin

import (
	"os"
	"time"
)

// parentPoll is how often the parent is looked at. The system tells nobody that a parent has died.
const parentPoll = 200 * time.Millisecond

// parentAtStart is read as early as a process can.
var parentAtStart = os.Getppid()

// watchParent returns a channel that is closed when this process has got another parent: Grafana has died, and could tell nobody. It
// looks until done is closed.
func watchParent(done <-chan struct{}) <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		t := time.NewTicker(parentPoll)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
			}
			if os.Getppid() != parentAtStart {
				close(gone)
				return
			}
		}
	}()
	return gone
}
