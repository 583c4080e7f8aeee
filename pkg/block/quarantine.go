package block

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
)

// QuarantineMarkFilename is the file in a block's folder that takes the block out of answers and jobs. Other readers pass it over.
const QuarantineMarkFilename = "quarantine-mark.json"

// QuarantineMark says that a block is damaged and that queries shall go without it, with a warning, instead of failing.
type QuarantineMark struct {
	ID      ulid.ULID `json:"id"`
	Version int       `json:"version"`
	// Details say what is wrong with the block.
	Details string `json:"details"`
	// Time is when the block was marked, in seconds since 1970.
	Time int64 `json:"time"`
}

// Quarantine writes a block's quarantine-mark.json. One that is there already is replaced. Release takes it back.
func Quarantine(ctx context.Context, bkt objstore.Bucket, id ulid.ULID, reason string) error {
	b, err := json.Marshal(QuarantineMark{ID: id, Version: 1, Details: reason, Time: time.Now().Unix()})
	if err == nil {
		err = bkt.Upload(ctx, path.Join(id.String(), QuarantineMarkFilename), bytes.NewReader(b))
	}
	if err != nil {
		return fmt.Errorf("quarantine block %s: %w", id, err)
	}
	return nil
}

// Release takes a block out of quarantine.
func Release(ctx context.Context, bkt objstore.Bucket, id ulid.ULID) error {
	if err := deleteObject(ctx, bkt, path.Join(id.String(), QuarantineMarkFilename)); err != nil {
		return fmt.Errorf("release block %s: %w", id, err)
	}
	return nil
}

// readQuarantine returns a block's quarantine mark, nil if it was taken away just now. A mark that cannot be read is one, too: somebody wanted the
// block out of answers.
func readQuarantine(ctx context.Context, bkt objstore.BucketReader, id ulid.ULID) (*QuarantineMark, error) {
	body, err := bkt.Get(ctx, path.Join(id.String(), QuarantineMarkFilename))
	if err != nil {
		if bkt.IsObjNotFoundErr(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("get quarantine mark of block %s: %w", id, err)
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, maxMarkSize))
	if err != nil {
		return nil, fmt.Errorf("read quarantine mark of block %s: %w", id, err)
	}
	mark := QuarantineMark{}
	if json.Unmarshal(b, &mark) != nil || mark.ID != id {
		mark = QuarantineMark{ID: id, Version: 1, Details: "for a reason that cannot be read"}
	}
	return &mark, nil
}

// Answering is Visible without the blocks that out takes out of answers. In the place of one that would be visible, what it replaced, and what it was
// merged from, answers again as far as it is there: damage to a block must not hide what is whole. Such blocks are left. One that another block
// replaced still hides what it replaced.
func Answering(metas []Meta, out func(ulid.ULID) bool) (answering, left []Meta) {
	needed := map[ulid.ULID]bool{}
	for {
		rest := metas
		visible := make(map[ulid.ULID]bool, len(rest))
		for _, m := range Visible(rest) {
			visible[m.ULID] = true
		}
		answering, metas = nil, nil
		found := false
		for _, m := range rest {
			answers := visible[m.ULID] || needed[m.ULID]
			if answers && out(m.ULID) {
				found, left = true, append(left, m)
				for _, p := range m.Compaction.Parents {
					needed[p.ULID] = true
				}
				continue
			}
			metas = append(metas, m)
			if answers {
				answering = append(answering, m)
			}
		}
		if !found {
			return answering, left
		}
	}
}
