package ingest

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"time"
	"unsafe"
)

// replicaLabels are the names of the two labels by which replicas are known; empty if no series is a replica's.
type replicaLabels struct{ replica, cluster string }

func (l *replicaLabels) on() bool { return l.replica != "" }

// pairing is the part of a decoder that decides between replicas.
//
// A series is of a replica if it has both labels, each once and with a value. Its fate is decided before anything else about it:
// series of replicas that are not elected are decoded, as the request must make sense, and dropped without being judged. They
// take ordinals and are noted as rejected, so a replay, for which every replica is elected, leaves out the same ones. Series of the
// elected one are judged without the replica label, which is what they are stored as.
type pairing struct {
	labels  replicaLabels
	table   *replicas // nil on replay
	now     time.Time // when the request came
	uses    []replicaUse
	current int     // 1 + use of the open series, if it is kept or dropped; else 0
	dropped Written // of all uses
	kept    bool    // some series was stored without its replica label
	waiting bool    // some use waits
}

// replicaUse is a replica that a request holds series of.
type replicaUse struct {
	cluster, replica []byte // in the body
	election         *election
	held             uint64 // what it was when the verdict was given
	verdict          verdict
	waits            bool    // the verdict was verdictWait
	stored           bool    // some series is
	dropped          Written // all series are
}

const replicaUseSize = int(unsafe.Sizeof(replicaUse{}))

// begin makes the decoder ask t, which may be nil, about replicas.
func (p *pairing) begin(t *replicas) {
	if t != nil {
		p.labels, p.table, p.now = t.labels, t, t.now()
	}
}

// refusal is the error for a request with series that must wait for those of the elected replica; nil if there are none, or if it brings these itself.
func (p *pairing) refusal() error {
	if !p.waiting {
		return nil
	}
	elected := map[*election]bool{}
	for i := range p.uses {
		if u := &p.uses[i]; u.verdict == verdictKeep {
			elected[u.election] = true
		}
	}
	at := slices.IndexFunc(p.uses, func(u replicaUse) bool { return u.waits && !elected[u.election] })
	if at < 0 {
		return nil
	}
	return &Unavailable{
		Status: http.StatusServiceUnavailable, RetryAfter: 5 * time.Second,
		Reason: fmt.Sprintf("samples of the elected replica of cluster %s cannot be stored at the moment; until they are, those of the others are not dropped", quote(p.uses[at].cluster)),
	}
}

// postpone notes that the request could not be stored.
func (p *pairing) postpone() {
	if p.table != nil {
		p.table.postpone(p.uses, p.now)
	}
}

// release forgets everything, and keeps memory for the next request.
func (p *pairing) release() {
	uses := p.uses
	if cap(uses) > 1<<10 {
		uses = nil
	}
	clear(uses)
	*p = pairing{uses: uses[:0]}
}

// recentUses is how many replicas of a request are found again without asking the table.
const recentUses = 8

// elect decides about the open series, given the values of its labels.
func (d *decoder) elect(cluster, replica []byte) verdict {
	p := &d.pairing
	if p.table == nil {
		return verdictKeep
	}
	for i := len(p.uses) - 1; i >= max(0, len(p.uses)-recentUses); i-- {
		if u := &p.uses[i]; bytes.Equal(u.replica, replica) && bytes.Equal(u.cluster, cluster) {
			p.current = i + 1
			return u.verdict
		}
	}
	if v := electable(cluster, replica, d.judge.limits); v != verdictKeep {
		return v
	}
	e, held, v := p.table.elect(cluster, replica, p.now)
	waits := v == verdictWait
	if waits {
		p.waiting, v = true, verdictDrop // See refusal.
	}
	if v == verdictKeep || v == verdictDrop {
		d.spend(replicaUseSize) // If that was too much, the end of the series says so.
		p.uses = append(p.uses, replicaUse{cluster: cluster, replica: replica, election: e, held: held, verdict: v, waits: waits})
		p.current = len(p.uses)
	}
	return v
}

// closeDropped is closeSeries for a series of a replica that is not elected.
func (d *decoder) closeDropped(base uint32) error {
	b := d.b
	n := Written{
		Samples:    len(b.floats) - d.floats,
		Histograms: len(b.histograms) - d.histograms,
		Exemplars:  len(b.exemplars) - d.exemplars,
	}
	d.pairing.uses[d.pairing.current-1].dropped.add(n)
	d.pairing.dropped.add(n)
	d.rejected = append(d.rejected, base)
	d.truncate()
	if !d.spend(0) {
		return errTooLarge
	}
	return nil
}

// pairUp decides about the open series by d.pairs, which are sorted, and takes the replica label out of them if it is kept. at is the
// label that is to blame for a verdict of verdictLong or verdictFull.
func (d *decoder) pairUp() (v verdict, at int) {
	l := &d.pairing.labels
	cluster, ok := only(d.pairs, l.cluster)
	if !ok {
		return verdictJudge, 0
	}
	replica, ok := only(d.pairs, l.replica)
	if !ok {
		return verdictJudge, 0
	}
	switch v = d.elect(d.pairs[cluster].value, d.pairs[replica].value); v {
	case verdictKeep:
		d.pairs = append(d.pairs[:replica], d.pairs[replica+1:]...)
	case verdictLong:
		if len(d.pairs[replica].value) > maxReplicaValue {
			return v, replica
		}
	}
	return v, cluster
}

// only finds a label by its name; false if there is none, or more than one.
func only(pairs []pair, name string) (at int, ok bool) {
	for i := range pairs {
		if string(pairs[i].name) == name {
			return i, i+1 == len(pairs) || string(pairs[i+1].name) != name
		}
	}
	return 0, false
}

// replicaSpan says where in a series' labels the replica label stands, and what the values of the two labels are.
type replicaSpan struct {
	start, end       int
	cluster, replica []byte
}

// ofReplica says whether both labels were found.
func (s *replicaSpan) ofReplica() bool { return len(s.cluster) > 0 && len(s.replica) > 0 }

// find looks for the two labels among those in key, which are one behind the other, each with its length in one byte. ok is false
// if only closer inspection can tell: some label is not in its short form, or one of the two appears twice.
func (l *replicaLabels) find(key []byte) (at replicaSpan, ok bool) {
	for start := 0; start < len(key); {
		end := start + 2 + int(key[start+1])
		p := key[start+2 : end : end]
		if len(p) < 4 || p[0] != tagName || p[1] >= 0x80 {
			return at, false
		}
		v := 2 + int(p[1])
		if v+2 > len(p) || p[v] != tagValue || v+2+int(p[v+1]) != len(p) {
			return at, false
		}
		switch name, value := p[2:v], p[v+2:]; {
		case string(name) == l.replica:
			if at.replica != nil {
				return at, false
			}
			at.start, at.end, at.replica = start, end, value
		case string(name) == l.cluster:
			if at.cluster != nil {
				return at, false
			}
			at.cluster = value
		}
		start = end
	}
	return at, true
}

// pairUpV1 is pairUp for a series whose labels' bytes are s.Key, which then is a key in the batch's arena. ok is false if only closer
// inspection can tell.
func (d *decoder) pairUpV1(s *Series) (v verdict, ok bool) {
	at, ok := d.pairing.labels.find(s.Key)
	if !ok || !at.ofReplica() {
		return verdictJudge, ok
	}
	v = d.elect(at.cluster, at.replica)
	if v == verdictKeep {
		b := d.b
		start := len(b.keys)
		b.keys = append(append(b.keys, s.Key[:at.start]...), s.Key[at.end:]...)
		s.Key = b.keys[start:len(b.keys):len(b.keys)]
	}
	return v, v == verdictKeep || v == verdictDrop
}

// pairUpV2 is pairUp for a series whose labels d.refs name, all of which are in the table of symbols. leave is where among d.refs
// the label stands that does not belong to the key, or -1.
func (d *decoder) pairUpV2() (v verdict, leave int, ok bool) {
	l := &d.pairing.labels
	cluster, replica := -1, -1
	for i := 0; i < len(d.refs); i += 2 {
		switch name := d.bytes(d.symbols[d.refs[i]]); {
		case string(name) == l.replica:
			if replica >= 0 {
				return verdictJudge, -1, false
			}
			replica = i
		case string(name) == l.cluster:
			if cluster >= 0 {
				return verdictJudge, -1, false
			}
			cluster = i
		}
	}
	if cluster < 0 || replica < 0 {
		return verdictJudge, -1, true
	}
	c, r := d.bytes(d.symbols[d.refs[cluster+1]]), d.bytes(d.symbols[d.refs[replica+1]])
	if len(c) == 0 || len(r) == 0 {
		return verdictJudge, -1, false
	}
	v = d.elect(c, r)
	return v, replica, v == verdictKeep || v == verdictDrop
}
