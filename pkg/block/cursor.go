package block

import "encoding/binary"

// cursor decodes what an index has in an entry. What it returns is right only if it is not bad at the end.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uvarint() uint64 {
	if len(c.b) > 0 && c.b[0] < 0x80 {
		n := uint64(c.b[0])
		c.b = c.b[1:]
		return n
	}
	return c.longUvarint()
}

func (c *cursor) longUvarint() uint64 {
	n, k := binary.Uvarint(c.b)
	if k <= 0 {
		c.b, c.bad = nil, true
		return 0
	}
	c.b = c.b[k:]
	return n
}

func (c *cursor) varint() int64 {
	n := c.uvarint()
	return int64(n>>1) ^ -int64(n&1)
}
