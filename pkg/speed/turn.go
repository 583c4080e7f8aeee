package speed

import "sync"

// turn lets the holders of consecutive indexes pass one at a time, in order.
type turn struct {
	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan struct{}
	skipped map[uint64]struct{}
}

// passage is what one holder of an index waits on; it can be used again once wait has returned.
type passage chan struct{}

func newPassage() passage { return make(passage, 1) }

// wait returns when it is the turn of index.
func (t *turn) wait(index uint64, p passage) {
	t.mu.Lock()
	if t.next == index {
		t.mu.Unlock()
		return
	}
	if t.waiting == nil {
		t.waiting = map[uint64]chan struct{}{}
	}
	t.waiting[index] = p
	t.mu.Unlock()
	<-p
}

// pass ends the turn of the n indexes from that on whose turn it is.
func (t *turn) pass(n uint64) {
	t.mu.Lock()
	t.next += n - 1
	t.advance()
	t.mu.Unlock()
}

// skip gives up an index, now or when its turn comes. It does not wait.
func (t *turn) skip(index uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next == index {
		t.advance()
		return
	}
	if t.skipped == nil {
		t.skipped = map[uint64]struct{}{}
	}
	t.skipped[index] = struct{}{}
}

func (t *turn) advance() {
	t.next++
	for len(t.skipped) > 0 {
		if _, ok := t.skipped[t.next]; !ok {
			break
		}
		delete(t.skipped, t.next)
		t.next++
	}
	if p, ok := t.waiting[t.next]; ok {
		delete(t.waiting, t.next)
		p <- struct{}{} // Has room for one.
	}
}
