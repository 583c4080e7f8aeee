package block

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/thanos-io/objstore"
)

// Finding is something wrong with a block.
type Finding struct {
	Block   ulid.ULID
	Series  string // labels, where it is about a series
	File    string // relative to the block's folder
	Offset  int64  // in the file, -1 where it is about all of it
	Problem string
}

func (f Finding) String() string {
	s := fmt.Sprintf("block %s: %s", f.Block, f.File)
	if f.Offset >= 0 {
		s += fmt.Sprintf(" at byte %d", f.Offset)
	}
	if f.Series != "" {
		s += ", series " + f.Series
	}
	return s + ": " + f.Problem
}

// maxFindings is where a verification ends: a block with so many is not worth looking at further.
const maxFindings = 100

// Verify reads a whole block and checks everything that can be: checksums, the order of symbols, series, postings and chunks,
// that postings are exactly those of the series, that every chunk decodes to samples in order and within the times that the
// index and the meta tell, and the meta's statistics and file sizes. It streams; what it keeps is 4 bytes a series and
// 32 a label pair. The error is one of the bucket's, ErrGone for a block that is not there; what is wrong with the block is
// in the findings, at most maxFindings.
func Verify(ctx context.Context, bkt objstore.BucketReader, id ulid.ULID) ([]Finding, error) {
	v := &verifier{ctx: ctx, bkt: bkt, id: id}
	err := v.run()
	if errors.Is(err, errEnough) {
		err = nil
	}
	if err != nil {
		return v.findings, fmt.Errorf("verify block %s: %w", id, err)
	}
	return v.findings, nil
}

var errEnough = errors.New("enough findings")

// verifier is one Verify.
type verifier struct {
	ctx      context.Context
	bkt      objstore.BucketReader
	id       ulid.ULID
	meta     Meta
	r        *bucketReader
	h        *header
	findings []Finding

	refs  []uint32              // of all series
	pairs map[symbolPair]tally  // of all series
	segs  map[int64]*fileStream // where the checks of chunks are
	stats tsdb.BlockStats

	series string // the one that is being looked at
	last   labels.Labels
	chunk  chunks.ChunkRef // the last one seen
}

// symbolPair is a label as symbol numbers.
type symbolPair struct{ name, value uint32 }

// tally is the number and a hash of a label's series.
type tally struct {
	count uint64
	hash  uint64
}

func (t tally) add(ref uint32) tally {
	// Any mixing that makes different sets sum up differently will do.
	x := (uint64(ref) + 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9
	return tally{count: t.count + 1, hash: t.hash + (x ^ x>>29)}
}

// find notes a finding; it fails when there are enough.
func (v *verifier) find(file string, off int64, format string, args ...any) error {
	v.findings = append(v.findings, Finding{
		Block: v.id, Series: v.series, File: file, Offset: off, Problem: fmt.Sprintf(format, args...),
	})
	if len(v.findings) >= maxFindings {
		return errEnough
	}
	return nil
}

// judge turns an error that is about the block's content into a finding.
func (v *verifier) judge(file string, off int64, err error) error {
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnusable) {
		return v.find(file, off, "%v", err)
	}
	return err
}

func (v *verifier) run() error {
	var err error
	if v.meta, err = fetchMeta(v.ctx, v.bkt, v.id); err == nil {
		err = readable(&v.meta)
	}
	if err != nil {
		return v.judge(MetaFilename, -1, err)
	}
	return v.content()
}

// checkFiles checks what can be checked before the series are read. Without a finding, there are a reader and a header then.
func (v *verifier) checkFiles() error {
	ok, err := v.checkSizes()
	if err != nil || !ok {
		return err
	}
	if v.r, err = newBucketReader(v.ctx, v.bkt, &v.meta, NewCache(0, nil)); err != nil {
		return err
	}
	if _, err := newBlock(v.meta, v.r).Families(v.ctx); err != nil {
		if err := v.judge(MetadataFilename, -1, err); err != nil {
			return err
		}
	}
	if v.h, err = loadHeader(v.ctx, v.r, &v.meta); err != nil {
		return v.judge(IndexFilename, -1, err)
	}
	return v.checkSegments()
}

// content checks everything that the meta tells of.
func (v *verifier) content() error {
	if err := v.checkFiles(); err != nil || v.h == nil {
		return err
	}
	v.segs, v.pairs = map[int64]*fileStream{}, map[symbolPair]tally{}
	defer v.closeStreams()
	if err := v.checkSeries(); err != nil {
		return err
	}
	v.series = ""
	if err := v.checkPostings(); err != nil {
		return err
	}
	return v.checkStats()
}

// checkSizes compares files with what the meta says of them; ok is false if one is missing or of another size.
func (v *verifier) checkSizes() (ok bool, err error) {
	ok = true
	for _, f := range v.meta.Thanos.Files {
		if f.SizeBytes == 0 {
			continue
		}
		a, err := v.bkt.Attributes(v.ctx, path.Join(v.id.String(), f.RelPath))
		switch {
		case err != nil && v.bkt.IsObjNotFoundErr(err):
			ok, err = false, v.find(f.RelPath, -1, "file is missing")
		case err == nil && a.Size != f.SizeBytes:
			ok, err = false, v.find(f.RelPath, -1, "file has %d bytes, %s says %d", a.Size, MetaFilename, f.SizeBytes)
		}
		if err != nil {
			return false, err
		}
	}
	return ok, nil
}

// checkStats compares what was seen with the meta. Blocks of older Prometheus versions do not tell kinds of samples.
func (v *verifier) checkStats() error {
	want := v.meta.Stats
	if want.NumFloatSamples+want.NumHistogramSamples == 0 {
		v.stats.NumFloatSamples, v.stats.NumHistogramSamples = 0, 0
	}
	want.NumTombstones = 0
	if want != v.stats {
		return v.find(MetaFilename, -1, "statistics are %+v, but the block has %+v", want, v.stats)
	}
	return nil
}

func (v *verifier) closeStreams() {
	for _, s := range v.segs {
		s.close()
	}
}
