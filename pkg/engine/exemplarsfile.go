package engine

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace/millrace/pkg/ingest"
)

// The file of exemplars is, with numbers and byte strings as protobuf has them:
//
//	magic, version (1 byte)
//	for each exemplar, oldest first:
//	    number of its series in the file, from 0 (varint); where that is a new one, the series' key (bytes)
//	    time, as the difference to the exemplar before (zigzag varint); value (fixed64); key of its own labels (bytes)
//	CRC-32C of all that (4 bytes, big-endian)
const (
	exemplarsMagic   = "mrexemplars"
	exemplarsVersion = 1
	exemplarsHead    = len(exemplarsMagic) + 1
	// maxLabelsKey is above every key of labels that the receiver accepts, and below what package labels can hold.
	maxLabelsKey = 1 << 24
)

var (
	castagnoli           = crc32.MakeTable(crc32.Castagnoli)
	errExemplarsMangled  = errors.New("an exemplar is malformed")
	errExemplarsChecksum = errors.New("it is not what was written: wrong checksum")
)

func encodeExemplars(w io.Writer, all []seriesExemplar) error {
	sum := crc32.New(castagnoli)
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	var (
		buf    = append([]byte(exemplarsMagic), exemplarsVersion)
		key    []byte
		known  = map[string]uint64{}
		before int64
	)
	for i := range all {
		e := &all[i]
		key = ingest.LabelsKey(key[:0], e.series)
		number, old := known[string(key)]
		if !old {
			number = uint64(len(known))
			known[string(key)] = number
		}
		buf = protowire.AppendVarint(buf, number)
		if !old {
			buf = protowire.AppendBytes(buf, key)
		}
		buf = protowire.AppendVarint(buf, protowire.EncodeZigZag(e.Ts-before))
		buf = protowire.AppendFixed64(buf, math.Float64bits(e.Value))
		buf = protowire.AppendBytes(buf, ingest.LabelsKey(key[:0], e.Labels))
		if _, err := out.Write(buf); err != nil {
			return err
		}
		before, buf = e.Ts, buf[:0]
	}
	_, err := out.Write(buf) // the head, where there is no exemplar
	if err = errors.Join(err, out.Flush()); err != nil {
		return err
	}
	_, err = w.Write(binary.BigEndian.AppendUint32(nil, sum.Sum32()))
	return err
}

// decodeExemplars calls add with each exemplar of a file, oldest first. Nothing that is added aliases raw.
func decodeExemplars(raw []byte, add func(seriesExemplar)) error {
	if len(raw) < exemplarsHead+crc32.Size || !strings.HasPrefix(string(raw[:exemplarsHead]), exemplarsMagic) {
		return errors.New("it is no file of exemplars, or cut off")
	}
	if v := raw[exemplarsHead-1]; v != exemplarsVersion {
		return fmt.Errorf("it has format version %d, this version of Millrace reads %d", v, exemplarsVersion)
	}
	end := len(raw) - crc32.Size
	if crc32.Checksum(raw[:end], castagnoli) != binary.BigEndian.Uint32(raw[end:]) {
		return errExemplarsChecksum
	}
	d := exemplarsDecoder{raw: raw[exemplarsHead:end]}
	for len(d.raw) > 0 && !d.bad {
		if e := d.next(); !d.bad {
			add(e)
		}
	}
	if d.bad {
		return errExemplarsMangled
	}
	return nil
}

// exemplarsDecoder takes exemplars off the front of raw. Once something is malformed, all that follows is zero.
type exemplarsDecoder struct {
	raw    []byte
	known  []labels.Labels
	before int64
	bad    bool
}

func (d *exemplarsDecoder) next() seriesExemplar {
	e := seriesExemplar{series: d.series()}
	e.Ts = d.before + protowire.DecodeZigZag(take(d, protowire.ConsumeVarint))
	e.Value = math.Float64frombits(take(d, protowire.ConsumeFixed64))
	e.Labels = d.labels()
	e.HasTs, d.before = e.Ts != 0, e.Ts
	return e
}

func (d *exemplarsDecoder) series() labels.Labels {
	number := take(d, protowire.ConsumeVarint)
	if number == uint64(len(d.known)) && !d.bad {
		d.known = append(d.known, d.labels())
	}
	if d.bad || number >= uint64(len(d.known)) {
		d.bad = true
		return labels.EmptyLabels()
	}
	return d.known[number]
}

func (d *exemplarsDecoder) labels() labels.Labels {
	key := take(d, protowire.ConsumeBytes)
	if d.bad || len(key) > maxLabelsKey || !ingest.IsKey(key) {
		d.bad = true
		return labels.EmptyLabels()
	}
	return ingest.KeyLabels(key)
}

func take[T any](d *exemplarsDecoder, consume func([]byte) (T, int)) (v T) {
	if d.bad {
		return v
	}
	v, n := consume(d.raw)
	if d.bad = n < 0; !d.bad {
		d.raw = d.raw[n:]
	}
	return v
}
