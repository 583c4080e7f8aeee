// Command cold measures what queries of a bucket cost that nothing has been cached of: the requests they make, the bytes these bring, and the time
// spent waiting for them, for Millrace and, where it is named, for Thanos beside it.
//
// It makes a bucket of one-day blocks, serves it with an S3 gateway over a folder, and puts a proxy before that which adds a delay to every
// request and counts. Each server keeps its folder (Millrace its copies of indexes, Thanos its index headers), and is started anew before each
// query.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	var c config
	flag.StringVar(&c.dir, "dir", "", "folder for everything; what a run before made of the bucket is used again")
	flag.IntVar(&c.days, "days", 30, "number of blocks")
	flag.IntVar(&c.metrics, "metrics", 500, "number of metrics, each of which every instance has")
	flag.IntVar(&c.instances, "instances", 200, "number of instances")
	flag.DurationVar(&c.delay, "delay", 30*time.Millisecond, "added to every request")
	flag.IntVar(&c.port, "port", 27070, "first of seven ports to use")
	flag.StringVar(&c.only, "only", "", "measure only queries whose name has this in it")
	flag.StringVar(&c.gateway, "versitygw", "versitygw", "the S3 gateway's program")
	flag.StringVar(&c.millrace, "millrace", "bin/millrace", "Millrace's program")
	flag.StringVar(&c.thanos, "thanos", "", "Thanos's program; without it only Millrace is measured")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := c.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type config struct {
	dir                       string
	days, metrics, instances  int
	delay                     time.Duration
	port                      int
	only                      string
	gateway, millrace, thanos string
}

// bucketName is the bucket's, a folder below that of the gateway.
const bucketName = "metrics"

const (
	accessKey = "root"
	secretKey = "rootsecret"
)

// address is that of the n-th listener.
func (c *config) address(n int) string { return fmt.Sprintf("127.0.0.1:%d", c.port+n) }

func (c *config) run(ctx context.Context) (err error) {
	if c.dir == "" {
		return errors.New("--dir must name a folder")
	}
	bucket := filepath.Join(c.dir, "s3", bucketName)
	end := time.Now().UTC().Truncate(24 * time.Hour)
	if end, err = c.makeBucket(ctx, bucket, end); err != nil {
		return fmt.Errorf("make bucket: %w", err)
	}
	store := filepath.Join(c.dir, "objstore.yaml")
	err = os.WriteFile(store, fmt.Appendf(nil, "type: S3\nconfig:\n  bucket: %s\n  endpoint: %s\n  insecure: true\n  access_key: %s\n  secret_key: %s\n",
		bucketName, c.address(1), accessKey, secretKey), 0o600)
	if err != nil {
		return err
	}
	gateway, err := start(c.dir, c.gateway, "--access", accessKey, "--secret", secretKey, "--port", c.address(0), "posix", filepath.Dir(bucket))
	if err != nil {
		return err
	}
	defer gateway.stop()
	proxy := newProxy("http://"+c.address(0), c.delay)
	if err := proxy.listen(c.address(1)); err != nil {
		return err
	}
	defer proxy.close()
	peers := []peer{c.millracePeer(store)}
	if c.thanos != "" {
		peers = append(peers, c.thanosPeer(store))
	}
	return measure(ctx, c.dir, proxy, peers, c.queries(end))
}
