package ingest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Rejected lists the ordinals of the items of a request that were refused, in
// increasing order.
type Rejected []uint32

// A record of the log is a header and the request's body as it was received:
//
//	kind      byte    1: a remote write request, refusals by ordinal
//	protocol  byte    1 or 2
//	rejected  uvarint number of refused items
//	          uvarint each: difference to the one before (the first: to 0, plus 0)
//	body      the snappy block
//
// Where labels of replicas were taken out of series (see HA), a record says which
// they were, so that reading it does not depend on flags either:
//
//	kind      byte    3: as 1, but series that have both labels lose that of the replica
//	protocol  byte    1 or 2
//	replica   uvarint length of the label's name, name
//	cluster   uvarint length of the label's name, name
//	rejected  as above; series of replicas that were not elected are among them
//	body      the snappy block
//
// The first byte decides how the rest is read. A new layout, or another kind of
// record, takes a number of its own. 2 is that of floats by reference, which
// package speed writes.
const (
	recordRequest  = 1
	recordReplicas = 3
)

var (
	// ErrUnknownRecord means that the record was written by a later version.
	ErrUnknownRecord = errors.New("record of an unknown kind")
	// ErrCorruptRecord means that the record's bytes are damaged.
	ErrCorruptRecord = errors.New("corrupt record")
)

// replayBudget is what the decoded form of a record may take, in bytes. It is
// more than any request gets, whatever the limits were when it came.
const replayBudget = maxExpansion * maxSize

// AppendRecordHeader appends to dst what stands before the body in the log.
func AppendRecordHeader(dst []byte, p Protocol, rejected Rejected) []byte {
	return appendRejected(append(dst, recordRequest, byte(p)), rejected)
}

// appendReplicasHeader is AppendRecordHeader for a request some series of which
// lost the label of their replica.
func appendReplicasHeader(dst []byte, p Protocol, l replicaLabels, rejected Rejected) []byte {
	dst = append(dst, recordReplicas, byte(p))
	for _, name := range []string{l.replica, l.cluster} {
		dst = binary.AppendUvarint(dst, uint64(len(name)))
		dst = append(dst, name...)
	}
	return appendRejected(dst, rejected)
}

func appendRejected(dst []byte, rejected Rejected) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(rejected)))
	last := uint32(0)
	for _, r := range rejected {
		dst = binary.AppendUvarint(dst, uint64(r-last))
		last = r
	}
	return dst
}

// DecodeRecord decodes a record of the log: header and body, one behind the
// other. The batch holds what was accepted when the request came and must be
// released; it does not alias rec. Known may be nil; otherwise it is what has
// been replayed so far. Errors are ErrUnknownRecord or ErrCorruptRecord, with
// what was found.
func DecodeRecord(rec []byte, known Known) (*Batch, error) {
	if len(rec) < 3 {
		return nil, fmt.Errorf("%w: %d bytes", ErrCorruptRecord, len(rec))
	}
	p := Protocol(rec[1])
	if rec[0] != recordRequest && rec[0] != recordReplicas || (p != V1 && p != V2) {
		return nil, fmt.Errorf("%w: kind %d, protocol %d", ErrUnknownRecord, rec[0], rec[1])
	}
	d, _ := decoderPool.Get().(*decoder)
	b := newBatch()
	b.Known = known
	d.b, d.judge, d.budget = b, nil, replayBudget
	var err error
	rec, replicas := rec[2:], rec[0] == recordReplicas
	if replicas {
		rec, err = d.readReplicaLabels(rec)
	}
	if err == nil {
		err = d.replay(p, rec)
	}
	d.release()
	if err != nil {
		b.Release()
		return nil, fmt.Errorf("%w: %w", ErrCorruptRecord, err)
	}
	return b, nil
}

// replay decodes what stands behind a record's protocol.
func (d *decoder) replay(p Protocol, rec []byte) error {
	body, err := d.readRejected(rec)
	if err != nil {
		return err
	}
	if err := d.b.decompress(body, maxSize); err != nil {
		return err
	}
	if err := d.run(p); err != nil {
		return err
	}
	if d.cursor != len(d.rejected) {
		return errors.New("it refuses items that the request does not have")
	}
	return nil
}

// readReplicaLabels reads the names of the two labels and returns what stands
// behind them. They are valid as long as b.
func (d *decoder) readReplicaLabels(b []byte) ([]byte, error) {
	l := &d.pairing.labels
	i := 0
	for _, name := range []*string{&l.replica, &l.cluster} {
		start, end := readBytes(b, i)
		if end <= start {
			return nil, errors.New("names of the labels of replicas")
		}
		*name, i = text(b[start:end]), end
	}
	if l.replica == l.cluster {
		return nil, errors.New("names of the labels of replicas")
	}
	return b[i:], nil
}

// readRejected reads the list of ordinals and returns the body behind it.
func (d *decoder) readRejected(b []byte) ([]byte, error) {
	d.rejected = d.rejected[:0]
	n, i := readVarint(b, 0)
	if i < 0 || n > uint64(len(b)-i) {
		return nil, errors.New("number of refused items")
	}
	last := uint64(0)
	for k := range n {
		var delta uint64
		if delta, i = readVarint(b, i); i < 0 || (k > 0 && delta == 0) || delta > math.MaxUint32 {
			return nil, errors.New("list of refused items")
		}
		if last += delta; last > math.MaxUint32 {
			return nil, errors.New("list of refused items")
		}
		d.rejected = append(d.rejected, uint32(last))
	}
	return b[i:], nil
}
