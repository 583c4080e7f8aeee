package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"

	"github.com/alecthomas/kingpin/v2"
	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"

	"github.com/millrace/millrace/pkg/block"
)

func (b *bucketCommand) verifyFlags(c *kingpin.CmdClause) {
	c.Flag("quarantine", "Take blocks that are bad out of answers, which then warn instead of failing, and let those back in that are not.").BoolVar(&b.quarantine)
}

// verify reads every block whole, kept level-0 blocks too. A finding is an error, unless nobody needs the block any more.
func (b *bucketCommand) verify(ctx context.Context, stdout io.Writer) (err error) {
	bkt, err := b.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bkt.Close()) }()
	v := verification{stdout: stdout, quarantine: b.quarantine}
	if err := v.blocks(ctx, bkt, ""); err != nil {
		return err
	}
	if err := v.blocks(ctx, block.Masters(bkt), block.MastersPrefix+"/"); err != nil {
		return err
	}
	fmt.Fprintln(stdout, v.sum())
	if v.bad > 0 {
		return fmt.Errorf("%d of %d blocks are bad", v.bad, v.seen)
	}
	return nil
}

// verification is one 'millrace bucket verify'.
type verification struct {
	stdout     io.Writer
	quarantine bool
	seen, bad  int
	// unneeded are bad, but will be deleted or have been replaced; gone were deleted before they had been read.
	unneeded, gone int
}

func (v *verification) sum() string {
	text := fmt.Sprintf("%d blocks, %d bad", v.seen, v.bad)
	if v.unneeded > 0 {
		text += fmt.Sprintf(", %d bad that nobody needs any more", v.unneeded)
	}
	if v.gone > 0 {
		text += fmt.Sprintf(", %d deleted meanwhile", v.gone)
	}
	return text
}

// blocks verifies those of a bucket, which the user knows under a prefix.
func (v *verification) blocks(ctx context.Context, bkt objstore.Bucket, prefix string) error {
	lister := block.NewLister(bkt)
	listed, err := lister.List(ctx)
	if err != nil {
		return err
	}
	unusable, unneeded := lister.Bad(), unneeded(listed)
	ids := slices.AppendSeq(slices.Collect(maps.Keys(listed)), maps.Keys(unusable))
	slices.SortFunc(ids, ulid.ULID.Compare)
	for _, id := range ids {
		v.seen++
		if errors.Is(unusable[id], block.ErrDownsampled) {
			fmt.Fprintf(v.stdout, "%s%s  not checked  %v\n", prefix, id, unusable[id])
			continue
		}
		findings, gone, err := check(ctx, bkt, id)
		switch {
		case err != nil:
			return err // names the block
		case gone:
			v.gone++
			fmt.Fprintf(v.stdout, "%s%s  was deleted meanwhile\n", prefix, id)
		case len(findings) == 0:
			err = v.good(ctx, bkt, prefix, id, listed[id])
		case unneeded[id] && prefix == "":
			v.unneeded++
			v.print(prefix, "bad, but replaced or marked for deletion", findings)
		default:
			err = v.damaged(ctx, bkt, prefix, findings)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// check reads a block. One that a job deletes or moves at the same time is no bad one.
func check(ctx context.Context, bkt objstore.Bucket, id ulid.ULID) (findings []block.Finding, gone bool, err error) {
	findings, err = block.Verify(ctx, bkt, id)
	if err != nil && !errors.Is(err, block.ErrGone) {
		return nil, false, err
	}
	if err == nil && len(findings) == 0 {
		return nil, false, nil
	}
	there, existsErr := bkt.Exists(ctx, path.Join(id.String(), block.MetaFilename))
	if existsErr != nil {
		return nil, false, fmt.Errorf("look for block %s: %w", id, existsErr)
	}
	if there && err != nil {
		findings = append(findings, block.Finding{Block: id, File: block.MetaFilename, Offset: -1, Problem: err.Error()})
	}
	return findings, !there, nil
}

// unneeded returns the blocks that have been replaced, whether they are marked for deletion already or not, and those that are marked for another reason. What
// answers in the place of a block in quarantine is needed.
func unneeded(listed map[ulid.ULID]block.Listed) map[ulid.ULID]bool {
	metas := make([]block.Meta, 0, len(listed))
	out := map[ulid.ULID]bool{}
	for id, l := range listed {
		metas = append(metas, l.Meta)
		out[id] = true
	}
	answer, left := block.Answering(metas, func(id ulid.ULID) bool { return listed[id].QuarantineMark != nil })
	for _, m := range slices.Concat(answer, left) {
		out[m.ULID] = false
	}
	for _, m := range block.Visible(metas) {
		out[m.ULID] = listed[m.ULID].DeletionMark != nil
		for _, id := range m.Replaces() {
			if _, ok := listed[id]; !ok {
				out[id] = true // whatever its meta.json, which cannot be read, may say
			}
		}
	}
	return out
}

func (v *verification) print(prefix, verdict string, findings []block.Finding) {
	for _, f := range findings {
		fmt.Fprintf(v.stdout, "%s%s  %s  %s\n", prefix, f.Block, verdict, f)
	}
}

// good ends the quarantine of a block, where asked to.
func (v *verification) good(ctx context.Context, bkt objstore.Bucket, prefix string, id ulid.ULID, l block.Listed) error {
	fmt.Fprintf(v.stdout, "%s%s  ok  %d series, %d samples\n", prefix, id, l.Meta.Stats.NumSeries, l.Meta.Stats.NumSamples)
	if !v.quarantine || l.QuarantineMark == nil {
		return nil
	}
	fmt.Fprintf(v.stdout, "%s%s  released from quarantine\n", prefix, id)
	return block.Release(ctx, bkt, id)
}

// damaged puts a block in quarantine, where asked to: not one that is kept below a prefix, as no query looks at it.
func (v *verification) damaged(ctx context.Context, bkt objstore.Bucket, prefix string, findings []block.Finding) error {
	v.bad++
	v.print(prefix, "BAD", findings)
	if !v.quarantine || prefix != "" {
		return nil
	}
	id := findings[0].Block
	fmt.Fprintf(v.stdout, "%s%s  put in quarantine: queries go without it, and warn\n", prefix, id)
	return block.Quarantine(ctx, bkt, id, findings[0].String())
}
