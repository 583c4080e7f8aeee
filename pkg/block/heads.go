package block

// heads is a heap of inputs, by number, in the order of what they stand at.
type heads struct {
	order  []int
	before func(a, b int) bool
}

func (h *heads) push(input int) {
	h.order = append(h.order, input)
	for i := len(h.order) - 1; i > 0; {
		parent := (i - 1) / 2
		if !h.before(h.order[i], h.order[parent]) {
			return
		}
		h.order[i], h.order[parent] = h.order[parent], h.order[i]
		i = parent
	}
}

// pop takes the first input out.
func (h *heads) pop() int {
	first, last := h.order[0], len(h.order)-1
	h.order[0] = h.order[last]
	h.order = h.order[:last]
	for i := 0; ; {
		least := 2*i + 1
		if least >= last {
			return first
		}
		if right := least + 1; right < last && h.before(h.order[right], h.order[least]) {
			least = right
		}
		if !h.before(h.order[least], h.order[i]) {
			return first
		}
		h.order[i], h.order[least] = h.order[least], h.order[i]
		i = least
	}
}
