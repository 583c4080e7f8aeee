package engine

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/exporter-toolkit/web"
	"gopkg.in/yaml.v3"

	"github.com/millrace/millrace/pkg/block"
	"github.com/millrace/millrace/pkg/claim"
	"github.com/millrace/millrace/pkg/ingest"
	"github.com/millrace/millrace/pkg/retention"
	"github.com/millrace/millrace/pkg/wal"
)

// Config is everything a user can set. Each field belongs to one flag; Flags is the only place that names flags, defaults
// and help texts, so that the command line, the configuration file and grafana.ini cannot drift apart.
type Config struct {
	ConfigFile string

	Storage StorageConfig
	Speed   SpeedConfig
	Bucket  BucketConfig
	Web     WebConfig
	Ingest  IngestConfig
	Query   QueryConfig
	Batch   BatchConfig

	// SelfScrape is how often the engine writes its own metrics through its own receiver; 0 is never.
	SelfScrape time.Duration
	// MemoryLimit is the soft limit handed to the Go runtime, in bytes; 0 is nine tenths of what the machine or container has.
	MemoryLimit int64
	LogLevel    string
	LogFormat   string

	// For tests: the times of the writer's claim and of leases, and the clock of the former; the clock of retention and of batch jobs.
	claims claim.Times
	leases claim.Times
	clock  func() time.Time
	now    func() time.Time
	// For tests: the file system of logs, and when the newest one goes on.
	logFS     wal.FS
	newestLog newestLog
}

// StorageConfig is about the data path: the log, local blocks, and how long data is kept.
type StorageConfig struct {
	Path            string
	WALSync         string // "every" or "interval:DURATION"
	LocalLimit      int64  // bytes below Path, the bucket's default folder not counted
	Retention       time.Duration
	RetentionSize   int64 // bytes
	RetentionRules  retention.Rules
	StartTimestamps bool
	ExternalLabels  map[string]string
	MaxTombstones   int
}

// SpeedConfig is about generations.
type SpeedConfig struct {
	SealInterval time.Duration // generations are sealed at multiples of it
	MemoryLimit  int64         // bytes that all generations together may hold; one that holds a quarter is sealed early; 0 is half of the memory limit
	Exemplars    int64         // size of the ring
}

// BucketConfig says where the master dataset lives, in the format of Thanos.
type BucketConfig struct {
	File         string
	Content      string
	SyncInterval time.Duration
	CacheBytes   int64 // of memory, for pages
	IndexBytes   int64 // of disk, for copies of indexes
	MaxRequests  int   // at the same time, for queries
}

// WebConfig is about the engine's own listener.
type WebConfig struct {
	ListenAddress        string
	ConfigFile           string
	AllowUnauthenticated bool
	EnableAdminAPI       bool
}

// IngestConfig limits what one remote write request may hold.
type IngestConfig = ingest.Limits

// QueryConfig limits what queries may spend.
type QueryConfig struct {
	Timeout        time.Duration
	MaxSamples     int
	MaxConcurrency int
	LookbackDelta  time.Duration
	MemoryLimit    int64
	MaxBucketBytes int64 // that one query may fetch; 0 is no limit
	Features       []string
}

// Flags registers every flag on cmd.
func (c *Config) Flags(cmd flagger) {
	d := ingest.DefaultLimits()
	cmd.Flag("config.file", "File with the same settings as the flags, one 'name: value' a line in YAML; flags on the command line win.").StringVar(&c.ConfigFile)
	c.storageFlags(cmd)
	c.bucketFlags(cmd)

	cmd.Flag("web.listen-address", "Address of the listener for remote write and queries.").Default("127.0.0.1:9393").StringVar(&c.Web.ListenAddress)
	cmd.Flag("web.config.file", "File that enables TLS and authentication, in the format of the Prometheus exporter toolkit.").StringVar(&c.Web.ConfigFile)
	cmd.Flag("web.enable-admin-api", "Allow series to be deleted over the HTTP API.").BoolVar(&c.Web.EnableAdminAPI)
	cmd.Flag("web.allow-unauthenticated", "Allow a listener that others can reach and that asks for no authentication.").BoolVar(&c.Web.AllowUnauthenticated)

	bytesVar(cmd.Flag("ingest.max-body-size", "Largest body of a write request, compressed."), d.MaxBody, &c.Ingest.MaxBody)
	bytesVar(cmd.Flag("ingest.max-decompressed-size", "Largest body of a write request, decompressed."), d.MaxDecompressed, &c.Ingest.MaxDecompressed)
	LabelLimitFlags(cmd, &c.Ingest)
	bytesVar(cmd.Flag("ingest.max-inflight-size", "Most memory for all write requests being handled; 0 is no limit."), d.MaxInflight, &c.Ingest.MaxInflight)
	Named(cmd.Flag("ingest.max-histogram-buckets", "Most buckets a native histogram may have.").Default(fmt.Sprint(d.MaxBuckets)), (*intValue)(&c.Ingest.MaxBuckets))
	durationVar(cmd.Flag("ingest.max-future", "How far ahead of the clock a sample may be; 0 is no limit."), d.MaxFuture, &c.Ingest.MaxFuture)
	durationVar(cmd.Flag("ingest.max-past", "How far behind the clock a sample may be; 0 is no limit."), d.MaxPast, &c.Ingest.MaxPast)
	cmd.Flag("ingest.ha-replica-label", "Label that tells the replicas of a pair of Prometheus servers apart; one of them is stored, without it.").StringVar(&c.Ingest.HA.ReplicaLabel)
	cmd.Flag("ingest.ha-cluster-label", "Label that the replicas of a pair have in common.").StringVar(&c.Ingest.HA.ClusterLabel)
	durationVar(cmd.Flag("ingest.ha-failover", "How long nothing has come from a pair's elected replica that could be stored when another takes its place."), d.HA.Failover, &c.Ingest.HA.Failover)

	durationVar(cmd.Flag("query.timeout", "Longest time a query may take."), 2*time.Minute, &c.Query.Timeout)
	Named(cmd.Flag("query.max-samples", "Most samples one query may hold in memory.").Default("50000000"), (*intValue)(&c.Query.MaxSamples))
	Named(cmd.Flag("query.max-concurrency", "Most queries that run at once.").Default("20"), (*intValue)(&c.Query.MaxConcurrency))
	durationVar(cmd.Flag("query.lookback-delta", "How long a sample stays current; 0 is 5m, as in Prometheus."), 5*time.Minute, &c.Query.LookbackDelta)
	bytesVar(cmd.Flag("query.memory-limit", "Most memory that all running queries together may need; 0 is a quarter of the memory limit."), 0, &c.Query.MemoryLimit)
	bytesVar(cmd.Flag("query.max-bucket-size", "Most bytes that one query may fetch from the bucket, which does not count what is cached; 0 is no limit."), 0, &c.Query.MaxBucketBytes)
	Named(cmd.Flag("enable-feature", "Comma-separated names of PromQL features, as in Prometheus."), (*listValue)(&c.Query.Features))

	c.Batch.flags(cmd)

	durationVar(cmd.Flag("self.scrape-interval", "How often the engine stores its own metrics; 0 is never."), 15*time.Second, &c.SelfScrape)
	bytesVar(cmd.Flag("memory.limit", "Soft limit of the process's memory, at least 64MB; 0 is nine tenths of what the machine or container has."), 0, &c.MemoryLimit)
	Named(cmd.Flag("log.level", "Least severity of messages that are logged: debug, info, warn or error.").Default("info"), &choice{&c.LogLevel, []string{"debug", "info", "warn", "error"}})
	Named(cmd.Flag("log.format", "Format of log messages: logfmt or json.").Default("logfmt"), &choice{&c.LogFormat, []string{"logfmt", "json"}})
}

// RetentionRuleHelp is the help text of the flag wherever jobs run.
const RetentionRuleHelp = "Series of which samples are kept for a shorter time, as in {job=\"debug\"}: 3d; repeatable, or separated by commas."

// LabelLimitFlags registers the flags for what labels may be, wherever series come in.
func LabelLimitFlags(cmd flagger, l *ingest.Limits) {
	d := ingest.DefaultLimits()
	Named(cmd.Flag("ingest.max-labels", "Most labels a series may have.").Default(fmt.Sprint(d.MaxLabels)), (*intValue)(&l.MaxLabels))
	Named(cmd.Flag("ingest.max-label-name-length", "Longest name of a label, in bytes.").Default(fmt.Sprint(d.MaxLabelName)), (*intValue)(&l.MaxLabelName))
	Named(cmd.Flag("ingest.max-label-value-length", "Longest value of a label, in bytes.").Default(fmt.Sprint(d.MaxLabelValue)), (*intValue)(&l.MaxLabelValue))
}

func (c *Config) storageFlags(cmd flagger) {
	cmd.Flag("storage.path", "Folder for the log, local blocks and, by default, the bucket.").Default("data").StringVar(&c.Storage.Path)
	cmd.Flag("storage.wal-sync", "When the log is synced to the disk: 'every' before each answer, or 'interval:100ms'.").Default("interval:100ms").StringVar(&c.Storage.WALSync)
	bytesVar(cmd.Flag("storage.local-limit", "Most bytes of log and local blocks that wait for the bucket; beyond it writes get 503."), 20<<30, &c.Storage.LocalLimit)
	durationVar(cmd.Flag("storage.retention.time", "How long samples are kept; 0 is for ever."), 0, &c.Storage.Retention)
	bytesVar(cmd.Flag("storage.retention.size", "Most bytes of blocks in the bucket that are kept, oldest removed first; 0 is any number."), 0, &c.Storage.RetentionSize)
	Named(cmd.Flag("storage.retention.rule", RetentionRuleHelp), &c.Storage.RetentionRules)
	cmd.Flag("storage.start-timestamps", "Keep start timestamps, in chunk encodings that Prometheus before 3.10, Thanos and Mimir cannot read.").BoolVar(&c.Storage.StartTimestamps)
	Named(cmd.Flag("external-label", "Label that names this writer in the bucket and is added to answers, as name=value; repeatable."), (*Labels)(&c.Storage.ExternalLabels))
	Named(cmd.Flag("storage.max-tombstones", "Most deletions of series whose samples are not erased from the bucket yet; beyond it there are no further ones.").Default("10000"), (*intValue)(&c.Storage.MaxTombstones))
	durationVar(cmd.Flag("speed.seal-interval", "A generation is sealed at multiples of this time."), 30*time.Minute, &c.Speed.SealInterval)
	bytesVar(cmd.Flag("speed.memory-limit", "Most memory for samples that are not in blocks yet; writes beyond it have to wait. A generation is sealed when it holds a quarter. At least 16MB; 0 is half of the memory limit."), 0, &c.Speed.MemoryLimit)
	Named(cmd.Flag("speed.max-exemplars", "Number of exemplars that are kept, across restarts; 0 keeps none.").Default("100000"), (*int64Value)(&c.Speed.Exemplars))
}

func (c *Config) bucketFlags(cmd flagger) {
	c.Bucket.Flags(cmd)
	durationVar(cmd.Flag("objstore.sync-interval", "How often the bucket is listed for blocks that others wrote."), time.Minute, &c.Bucket.SyncInterval)
	bytesVar(cmd.Flag("objstore.cache-size", "Memory for pages of the bucket's objects."), 256<<20, &c.Bucket.CacheBytes)
	bytesVar(cmd.Flag("objstore.index-cache-size", "Disk space below the data path for copies of the indexes of the bucket's blocks; 0 keeps none."), 4<<30, &c.Bucket.IndexBytes)
	Named(cmd.Flag("objstore.max-requests", "Most requests that queries make to the bucket at the same time.").Default(fmt.Sprint(block.DefaultRequests)), (*intValue)(&c.Bucket.MaxRequests))
}

// The least memory with which the engine gets anywhere: below, the collector would never rest, and every request would seal a generation.
const (
	leastMemory      = 64 << 20
	leastSpeedMemory = 16 << 20
)

// validateMemory refuses limits that only a slip of the finger asks for, as 1 in place of 1GB.
func (c *Config) validateMemory() error {
	if n := c.MemoryLimit; n != 0 && n < leastMemory {
		return fmt.Errorf("--memory.limit=%s: must be 0 or at least %s", sizeText(n), sizeText(leastMemory))
	}
	if n := c.Speed.MemoryLimit; n != 0 && n < leastSpeedMemory {
		return fmt.Errorf("--speed.memory-limit=%s: must be 0 or at least %s", sizeText(n), sizeText(leastSpeedMemory))
	}
	return nil
}

// Validate checks what flags alone cannot express.
func (c *Config) Validate() error {
	if c.Storage.Path == "" {
		return errors.New("--storage.path=: must name a folder")
	}
	if err := c.validateMemory(); err != nil {
		return err
	}
	if _, _, err := c.Storage.walSync(); err != nil {
		return err
	}
	if c.Speed.SealInterval <= 0 || c.Speed.SealInterval > 2*time.Hour {
		return fmt.Errorf("--speed.seal-interval=%s: must be above 0 and at most 2h", c.Speed.SealInterval)
	}
	if c.Storage.LocalLimit < 64<<20 {
		return fmt.Errorf("--storage.local-limit=%s: must be at least 64MB", sizeText(c.Storage.LocalLimit))
	}
	if err := c.Bucket.Validate(); err != nil {
		return err
	}
	if c.Bucket.SyncInterval <= 0 {
		return fmt.Errorf("--objstore.sync-interval=%s: must be above 0", c.Bucket.SyncInterval)
	}
	if least := 2*c.Bucket.SyncInterval + c.Query.Timeout; c.Batch.DeletionDelay < least {
		return fmt.Errorf("--batch.deletion-delay=%s: must be at least %s, two times --objstore.sync-interval plus --query.timeout, or queries may lose blocks that they read",
			c.Batch.DeletionDelay, least)
	}
	if err := c.Batch.Validate(); err != nil {
		return err
	}
	if r := c.Storage.Retention; r != 0 && r < 2*time.Hour {
		return fmt.Errorf("--storage.retention.time=%s: must be 0 or at least 2h", r)
	}
	if err := c.Storage.RetentionRules.Validate(c.Storage.Retention, c.Storage.ExternalLabels); err != nil {
		return fmt.Errorf("--storage.retention.rule=%w", err)
	}
	for name, n := range map[string]int64{
		"query.max-samples": int64(c.Query.MaxSamples), "query.max-concurrency": int64(c.Query.MaxConcurrency), "query.timeout": int64(c.Query.Timeout),
		"objstore.max-requests":  int64(c.Bucket.MaxRequests),
		"storage.max-tombstones": int64(c.Storage.MaxTombstones),
	} {
		if n <= 0 {
			return fmt.Errorf("--%s: must be above 0", name)
		}
	}
	if err := c.Ingest.HA.Validate(); err != nil {
		return err
	}
	return c.Web.validate()
}

// walSync parses "every" and "interval:100ms".
func (s StorageConfig) walSync() (every bool, interval time.Duration, err error) {
	if s.WALSync == "every" {
		return true, 0, nil
	}
	rest, ok := strings.CutPrefix(s.WALSync, "interval:")
	if ok {
		d, err := model.ParseDuration(rest)
		if err == nil && d > 0 {
			return false, time.Duration(d), nil
		}
	}
	return false, 0, fmt.Errorf("--storage.wal-sync=%q: must be 'every' or 'interval:DURATION', for example 'interval:100ms'", s.WALSync)
}

// externalLabels are the labels that blocks carry.
func (s StorageConfig) externalLabels() map[string]string { return WriterLabels(s.ExternalLabels) }

// WriterLabels are the external labels of the blocks of a server with those that its user has set: these, or one constant, as Thanos
// wants them not to be empty.
func WriterLabels(set map[string]string) map[string]string {
	if len(set) > 0 {
		return set
	}
	return map[string]string{defaultLabel: defaultLabelValue}
}

// foreign tells whether blocks with these external labels are of another writer. Those without labels of a user's are not: they were this one's, before it
// was given its labels.
func (s StorageConfig) foreign(external map[string]string) bool {
	return !maps.Equal(external, s.externalLabels()) && (len(external) != 1 || external[defaultLabel] != defaultLabelValue)
}

// The external label of who was given none.
const (
	defaultLabel      = "millrace"
	defaultLabelValue = "main"
)

// validate checks what the flags tell without the configuration file, which can be mended while the process runs.
func (w WebConfig) validate() error {
	if w.ListenAddress == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(w.ListenAddress); err != nil {
		return fmt.Errorf("--web.listen-address=%q: %w", w.ListenAddress, err)
	}
	if w.needsAuthentication() && w.ConfigFile == "" {
		return w.unauthenticated()
	}
	return nil
}

// check is validate and a look into the configuration file. That comes first: who misspelt basic_auth_users is not helped by hearing that there are none.
func (w WebConfig) check() error {
	if err := w.validate(); err != nil || w.ConfigFile == "" {
		return err
	}
	if err := web.Validate(w.ConfigFile); err != nil {
		return fmt.Errorf("--web.config.file=%s: %w", w.ConfigFile, settingsError{err})
	}
	if !w.needsAuthentication() {
		return nil
	}
	authenticates, err := w.authenticates()
	if err != nil {
		return fmt.Errorf("--web.config.file=%s: %w", w.ConfigFile, err)
	}
	if !authenticates {
		return w.unauthenticated()
	}
	return nil
}

// needsAuthentication tells whether others can reach the listener and the user does not insist.
func (w WebConfig) needsAuthentication() bool { return w.exposed() && !w.AllowUnauthenticated }

// exposed tells whether others than this machine can reach the listener.
func (w WebConfig) exposed() bool {
	host, _, err := net.SplitHostPort(w.ListenAddress)
	return err != nil || !isLoopback(host)
}

func (w WebConfig) unauthenticated() error {
	return fmt.Errorf("--web.listen-address=%s: others can reach this address and no authentication is configured; name a --web.config.file with basic_auth_users or client certificates, listen on 127.0.0.1, or insist with --web.allow-unauthenticated", w.ListenAddress)
}

// webFile is what the web configuration file says of who is let in, and how.
type webFile struct {
	Users map[string]any `yaml:"basic_auth_users"`
	TLS   struct {
		Cert       string `yaml:"cert"`
		CertFile   string `yaml:"cert_file"`
		ClientAuth string `yaml:"client_auth_type"`
	} `yaml:"tls_server_config"`
}

func (w WebConfig) read() (f webFile, err error) {
	if w.ConfigFile == "" {
		return f, nil
	}
	raw, err := os.ReadFile(w.ConfigFile)
	if err != nil {
		return f, err
	}
	return f, yaml.Unmarshal(raw, &f)
}

// authenticates tells whether the web configuration file asks clients who they are.
func (w WebConfig) authenticates() (bool, error) {
	f, err := w.read()
	return err == nil && (len(f.Users) > 0 || f.TLS.ClientAuth == "RequireAndVerifyClientCert"), err
}

// open tells whether everyone who reaches the listener from elsewhere may read and write.
func (w WebConfig) open() bool {
	authenticates, err := w.authenticates()
	return w.exposed() && err == nil && !authenticates
}

// encrypts tells whether the listener speaks TLS.
func (w WebConfig) encrypts() bool {
	f, err := w.read()
	return err == nil && (f.TLS.Cert != "" || f.TLS.CertFile != "")
}

// settingsError says in one line, and without names of Go's types, what a YAML parser finds wrong with a configuration.
type settingsError struct{ error }

var unknownField = regexp.MustCompile(`field (\S+) not found in type \S+`)

// Error implements error.
func (e settingsError) Error() string {
	text := unknownField.ReplaceAllString(e.error.Error(), `there is no setting "$1"`)
	return oneLine(text)
}

// oneLine brings what a YAML parser says into one line.
func oneLine(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(text, "yaml: unmarshal errors:\n  ", ""), "\n  ", "; ")
}

// Unwrap returns what the parser said.
func (e settingsError) Unwrap() error { return e.error }

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// flagger is what a kingpin application and a kingpin command have in common.
type flagger interface {
	Flag(name, help string) *kingpin.FlagClause
}

// ParseEnv reads settings for the engine from environment variables GF_PLUGIN_<KEY>, which is how grafana.ini's section
// [plugin.millrace-metrics-datasource] reaches a plugin. unknown lists the variables that belong to no setting.
func (c *Config) ParseEnv(environ []string) (unknown []string, err error) {
	app := kingpin.New("millrace", "").Terminate(nil)
	c.Flags(app)
	known := map[string]string{}
	for _, f := range app.Model().Flags {
		known[envKey(f.Name)] = f.Name
	}
	var args []string
	for _, kv := range environ {
		key, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(key, envPrefix) || value == "" {
			continue
		}
		name, ok := known[key]
		if !ok && (key == envPrefix+"VERSION" || strings.HasPrefix(key, envPrefix+"APP_")) {
			continue // Grafana's own
		}
		if !ok {
			unknown = append(unknown, key)
			continue
		}
		args = append(args, fileArgs(name, value)...)
	}
	sort.Strings(args) // the environment has no order
	if _, err := app.Parse(args); err != nil {
		return unknown, fmt.Errorf("settings of grafana.ini's section [plugin.millrace-metrics-datasource]: %w", err)
	}
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--storage.path=") }) {
		c.Storage.Path = dataPathBesideLicense(environ)
	}
	return unknown, c.validateEmbedded()
}

const envPrefix = "GF_PLUGIN_"

func envKey(flag string) string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(flag))
}

// dataPathBesideLicense finds Grafana's data folder, which no variable names directly.
func dataPathBesideLicense(environ []string) string {
	for _, kv := range environ {
		if license, ok := strings.CutPrefix(kv, "GF_ENTERPRISE_LICENSE_PATH="); ok && filepath.Base(license) == "license.jwt" {
			return filepath.Join(filepath.Dir(license), "millrace")
		}
	}
	return ""
}

func (c *Config) validateEmbedded() error {
	if c.Storage.Path == "" {
		return errors.New("the data path is not known: set storage_path in grafana.ini's section [plugin.millrace-metrics-datasource]")
	}
	if !filepath.IsAbs(c.Storage.Path) {
		return fmt.Errorf("storage_path = %s: must be absolute, as the working directory is Grafana's", c.Storage.Path)
	}
	self, err := os.Executable()
	if err == nil && within(c.Storage.Path, filepath.Dir(self)) {
		return fmt.Errorf("storage_path = %s: must not be below the plugin's own folder, which an upgrade replaces", c.Storage.Path)
	}
	return c.Validate()
}

func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// ParseArgs expands the configuration file named in args, if any, into arguments that stand before those of the command line.
func ParseArgs(args []string) ([]string, error) {
	file := ""
	given := map[string]bool{}
	for i, a := range args {
		name, value, eq := strings.Cut(strings.TrimPrefix(a, "--"), "=")
		if !strings.HasPrefix(a, "--") {
			continue
		}
		given[strings.TrimPrefix(name, "no-")] = true
		if name != "config.file" {
			continue
		}
		if file = value; !eq && i+1 < len(args) {
			file = args[i+1]
		}
	}
	if file == "" {
		return args, nil
	}
	fromFile, err := configFileArgs(file, given)
	if err != nil {
		return nil, fmt.Errorf("--config.file=%s: %w", file, err)
	}
	return append(slices.Clone(args), fromFile...), nil
}

func configFileArgs(file string, given map[string]bool) ([]string, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var settings map[string]yaml.Node
	if err := yaml.Unmarshal(raw, &settings); err != nil {
		return nil, settingsError{err}
	}
	var args []string
	known := knownFlags()
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		node := settings[name]
		flag, ok := known[name]
		if !ok || name == "config.file" {
			return nil, fmt.Errorf("line %d: there is no setting %q", node.Line, name)
		}
		if given[name] {
			continue
		}
		values, err := fileValues(name, &node, takesPairs(flag))
		if err != nil {
			return nil, err
		}
		for _, v := range values {
			if err := setAlone(flag, v.text); err != nil {
				return nil, fmt.Errorf("line %d: %s: %q: %w", v.line, name, v.text, err)
			}
			args = append(args, fileArgs(name, v.text)...)
		}
	}
	sort.Strings(args)
	return args, nil
}

// setAlone tries a value from a file on a flag that nobody reads, so that an error can say where the value stands and not how a flag spells it.
func setAlone(flag kingpin.Value, v string) error {
	if b, ok := flag.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
		if v = strings.ToLower(v); v != "true" && v != "false" {
			return errors.New("must be true or false")
		}
	}
	if n, ok := flag.(interface{ unnamed() kingpin.Value }); ok {
		flag = n.unnamed()
	}
	return flag.Set(v)
}

// knownFlags are the values of all flags by name, of a configuration of their own.
func knownFlags() map[string]kingpin.Value {
	var c Config
	app := kingpin.New("", "")
	c.Flags(app)
	flags := map[string]kingpin.Value{}
	for _, f := range app.Model().Flags {
		flags[f.Name] = f.Value
	}
	return flags
}

// fileArgs turns a setting into an argument; booleans of kingpin take none.
func fileArgs(name, value string) []string {
	switch strings.ToLower(value) {
	case "true":
		return []string{"--" + name}
	case "false":
		return []string{"--no-" + name}
	}
	return []string{"--" + name + "=" + value}
}
