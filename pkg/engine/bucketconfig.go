package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/go-kit/log"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/client"
	"gopkg.in/yaml.v3"

	"github.com/millrace/millrace/pkg/block"
)

// Flags registers the flags that say where the bucket is, wherever one is used.
func (c *BucketConfig) Flags(cmd flagger) {
	cmd.Flag("objstore.config-file", "File with the bucket's configuration, in the format of Thanos; without it the bucket is a folder below the data path.").StringVar(&c.File)
	cmd.Flag("objstore.config", "The bucket's configuration itself, in place of objstore.config-file.").StringVar(&c.Content)
}

// Validate checks what the flags say together.
func (c *BucketConfig) Validate() error {
	if c.File != "" && c.Content != "" {
		return errors.New("--objstore.config-file and --objstore.config exclude each other")
	}
	return nil
}

// Default says that the user gives no configuration.
func (c *BucketConfig) Default() bool { return c.File == "" && c.Content == "" }

// Read returns the user's configuration, or makes that of the default below a data path, and says where it is from.
func (c *BucketConfig) Read(path string) (config []byte, from string, err error) {
	switch {
	case c.Content != "":
		return []byte(c.Content), "--objstore.config", nil
	case c.File != "":
		config, err = os.ReadFile(c.File)
		return config, "--objstore.config-file=" + c.File, err
	}
	config, err = yaml.Marshal(map[string]any{
		"type": "FILESYSTEM", "config": map[string]any{"directory": filepath.Join(path, bucketDir)},
	})
	return config, "default bucket", err
}

// OpenBucket makes the bucket that a configuration in Thanos's format describes, for the use without an engine: a folder must be
// there. Secrets in the configuration do not appear in errors.
func OpenBucket(config []byte) (objstore.Bucket, error) {
	b, err := newBucket(config)
	if err != nil {
		return nil, err
	}
	if dir, ok := b.(*block.DirBucket); ok {
		if err := dir.Available(); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// makeBucket makes the engine's bucket; tests put another one in its place.
var makeBucket = newBucket

func newBucket(config []byte) (objstore.Bucket, error) {
	var c bucketSettings
	// A folder is served by our own bucket, which syncs what is uploaded and maps what is read.
	readable := yaml.Unmarshal(config, &c)
	if readable == nil && strings.EqualFold(c.Type, "FILESYSTEM") && c.Config.Directory != "" {
		return block.NewDirBucket(filepath.Join(c.Config.Directory, filepath.FromSlash(c.Prefix)))
	}
	if readable == nil && c.Type == "" {
		return nil, errors.New("configure bucket: the setting \"type\" is missing: it is the kind of the bucket, such as S3")
	}
	b, err := client.NewBucket(log.NewNopLogger(), config, "millrace", nil)
	if err == nil || outage(err) {
		if unnamed := c.checkName(config); unnamed != nil {
			if b != nil {
				_ = b.Close()
			}
			return nil, fmt.Errorf("configure bucket: %w", unnamed)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("configure bucket: %w", linedError{err, config})
	}
	return b, nil
}

// bucketSettings is what is looked at here of a bucket's configuration.
type bucketSettings struct {
	Type   string
	Config struct{ Directory, Bucket, Endpoint string }
	Prefix string
}

// minNameLength is that of all stores that name buckets.
const minNameLength = 3

// checkName refuses names that no bucket has: most clients take them, and then fail at every request.
func (c *bucketSettings) checkName(config []byte) error {
	switch strings.ToUpper(c.Type) {
	case "S3", "GCS", "ALIYUNOSS", "BOS", "OBS", "OCI":
	case "COS":
		if c.Config.Endpoint != "" {
			return nil // it names the bucket
		}
	default:
		return nil
	}
	name := c.Config.Bucket
	if name == "" {
		return errors.New("the setting \"bucket\" is missing: it is the bucket's name")
	}
	if len(name) >= minNameLength {
		return nil
	}
	err := fmt.Errorf("bucket: %q is no name of a bucket, which has at least %d characters", name, minNameLength)
	var doc struct{ Config yaml.Node }
	if yaml.Unmarshal(config, &doc) == nil {
		if line := lineOfKey(&doc.Config, "bucket"); line > 0 {
			return fmt.Errorf("line %d: %w", line, err)
		}
	}
	return err
}

// linedError is an error of the bucket's client with lines as they are in the configuration. The client counts those of the section
// 'config' in a sorted copy of its own, where nobody can look.
type linedError struct {
	error
	config []byte
}

var linePattern = regexp.MustCompile(`line \d+: (?:field (\S+) not found)?`)

// Unwrap returns the client's error.
func (e linedError) Unwrap() error { return e.error }

// Error implements error.
func (e linedError) Error() string {
	text := e.error.Error()
	var doc struct{ Config yaml.Node }
	if !strings.HasPrefix(text, "create ") || yaml.Unmarshal(e.config, &doc) != nil {
		return text
	}
	return linePattern.ReplaceAllStringFunc(text, func(found string) string {
		_, what, _ := strings.Cut(found, ": ")
		if line := lineOfKey(&doc.Config, linePattern.FindStringSubmatch(found)[1]); line > 0 {
			return fmt.Sprintf("line %d: %s", line, what)
		}
		return what
	})
}

// lineOfKey is the line of the first key of that name, 0 if there is none.
func lineOfKey(n *yaml.Node, key string) int {
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 && child.Value == key && key != "" {
			return child.Line
		}
		if line := lineOfKey(child, key); line > 0 {
			return line
		}
	}
	return 0
}
