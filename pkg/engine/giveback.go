package engine

import "runtime/debug"

// GiveBack returns to the system what the process holds and is not likely to need again soon: garbage, and pages of the executable. It is for the end of work
// that is done once or seldom, as the memory of what is done all the time would only be taken again. It waits for a collection.
func GiveBack() {
	debug.FreeOSMemory()
	dropExecutable()
}
