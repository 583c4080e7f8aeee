package engine

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/ingest"
)

// fromArgs reads a command line as 'millrace serve' does.
func fromArgs(args ...string) (Config, error) {
	var cfg Config
	app := kingpin.New("test", "").Terminate(nil)
	cfg.Flags(app)
	args, err := ParseArgs(args)
	if err != nil {
		return cfg, err
	}
	if _, err := app.Parse(args); err != nil {
		return cfg, err
	}
	return cfg, cfg.Validate()
}

func TestDefaultsAreValid(t *testing.T) {
	cfg, err := fromArgs()
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:9393", cfg.Web.ListenAddress)
	require.Equal(t, 30*time.Minute, cfg.Speed.SealInterval)
	require.Zero(t, cfg.Storage.Retention)
}

func TestTheCommandLineAndTheFile(t *testing.T) {
	for _, row := range []struct {
		name  string
		file  string
		args  []string
		check func(t *testing.T, c Config)
		err   string
	}{
		{name: "a setting", file: "storage.path: /x\n", check: func(t *testing.T, c Config) { require.Equal(t, "/x", c.Storage.Path) }},
		{name: "the command line wins", file: "storage.path: /x\n", args: []string{"--storage.path=/y"}, check: func(t *testing.T, c Config) {
			require.Equal(t, "/y", c.Storage.Path)
		}},
		{name: "the command line wins, value apart", file: "storage.path: /x\n", args: []string{"--storage.path", "/y"}, check: func(t *testing.T, c Config) {
			require.Equal(t, "/y", c.Storage.Path)
		}},
		{name: "the command line's no wins", file: "web.allow-unauthenticated: true\n", args: []string{"--no-web.allow-unauthenticated"}, check: func(t *testing.T, c Config) {
			require.False(t, c.Web.AllowUnauthenticated)
		}},
		{name: "true", file: "storage.start-timestamps: true\n", check: func(t *testing.T, c Config) { require.True(t, c.Storage.StartTimestamps) }},
		{name: "false", file: "storage.start-timestamps: false\n", check: func(t *testing.T, c Config) { require.False(t, c.Storage.StartTimestamps) }},
		{name: "a duration in days", file: "storage.retention.time: 30d\n", check: func(t *testing.T, c Config) { require.Equal(t, 720*time.Hour, c.Storage.Retention) }},
		{name: "a size", file: "memory.limit: 512MB\n", check: func(t *testing.T, c Config) { require.Equal(t, int64(512<<20), c.MemoryLimit) }},
		{name: "a list", file: "external-label: [a=b, c=d]\n", check: func(t *testing.T, c Config) {
			require.Equal(t, map[string]string{"a": "b", "c": "d"}, c.Storage.ExternalLabels)
		}},
		{name: "a list in one", file: "enable-feature: promql-experimental-functions, promql-per-step-stats\n", check: func(t *testing.T, c Config) {
			require.Equal(t, []string{"promql-experimental-functions", "promql-per-step-stats"}, c.Query.Features)
		}},
		{name: "an empty file", file: "", check: func(t *testing.T, c Config) { require.Equal(t, "data", c.Storage.Path) }},
		{name: "an unknown setting", file: "storage.pth: /x\n", err: "storage.pth"},
		{name: "another file", file: "config.file: /x\n", err: `line 1: there is no setting "config.file"`},
		{name: "no settings", file: "foo\n: bar\n", err: "millrace.yml: line 1: cannot unmarshal !!str `foo` into"},
		{name: "not a value", file: "storage.path: {a: b}\n", err: "storage.path must be a value or a list of values"},
		{name: "not YAML", file: "storage.path: [\n", err: "--config.file"},
		{name: "a duration without a unit", file: "query.timeout: 7\n", err: "not a valid duration"},
		{name: "a negative size", args: []string{"--memory.limit=-1MB"}, err: "size"},
		{name: "an unknown flag", args: []string{"--nonsense"}, err: "nonsense"},
		{name: "sync: every", args: []string{"--storage.wal-sync=every"}},
		{name: "sync: an interval", args: []string{"--storage.wal-sync=interval:1s"}},
		{name: "sync: no interval", args: []string{"--storage.wal-sync=interval"}, err: "--storage.wal-sync"},
		{name: "sync: zero", args: []string{"--storage.wal-sync=interval:0s"}, err: "--storage.wal-sync"},
		{name: "sync: never", args: []string{"--storage.wal-sync=never"}, err: "--storage.wal-sync"},
		{name: "seals too rare", args: []string{"--speed.seal-interval=3h"}, err: "--speed.seal-interval"},
		{name: "too little disk", args: []string{"--storage.local-limit=63MB"}, err: "--storage.local-limit"},
		{name: "two buckets", args: []string{"--objstore.config=a", "--objstore.config-file=b"}, err: "exclude each other"},
		{name: "blocks of nothing", args: []string{"--batch.max-block-size=1B"}, err: "--batch.max-block-size=1B: must be at least 1MB"},
		{name: "no share", args: []string{"--batch.late-merge-share=0"}, err: "--batch.late-merge-share=0: must be above 0"},
		{name: "more than all", args: []string{"--batch.late-merge-share=1.5"}, err: "--batch.late-merge-share=1.5: must be above 0 and at most 1"},
		{name: "share that is none", args: []string{"--batch.late-merge-share=NaN"}, err: "--batch.late-merge-share=NaN: must be a number"},
		{name: "late samples for ever", args: []string{"--batch.late-merge-age=0s"}, err: "--batch.late-merge-age=0s: must be above 0"},
		{name: "deletion at once", args: []string{"--batch.deletion-delay=0s"}, err: "--batch.deletion-delay"},
		{name: "deletion before queries end", args: []string{"--batch.deletion-delay=1m"}, err: "--batch.deletion-delay"},
		{name: "too little retention", args: []string{"--storage.retention.time=1h"}, err: "--storage.retention.time"},
		{name: "rules on the command line", args: []string{`--storage.retention.rule={job="debug"}: 3d`, `--storage.retention.rule=up: 1d, {a="b"}: 1w`}, check: func(t *testing.T, c Config) {
			require.Equal(t, `{__name__="up"}: 1d, {job="debug"}: 3d, {a="b"}: 1w`, c.Storage.RetentionRules.String())
		}},
		{name: "rules as a map", file: "storage.retention.rule:\n  '{job=\"debug\"}': 3d\n  up: 1d\n", check: func(t *testing.T, c Config) {
			require.Equal(t, `{__name__="up"}: 1d, {job="debug"}: 3d`, c.Storage.RetentionRules.String())
		}},
		{name: "rules as a list", file: "storage.retention.rule:\n- '{job=\"debug\"}: 3d'\n- '{a=\"b\"}': 1d\n", check: func(t *testing.T, c Config) {
			require.Equal(t, `{a="b"}: 1d, {job="debug"}: 3d`, c.Storage.RetentionRules.String())
		}},
		{name: "a rule without quotes", file: "storage.retention.rule:\n- {job=\"debug\"}: 3d\n", err: "line 2: storage.retention.rule must have its selectors in single quotes"},
		{name: "a rule that is none", file: "storage.retention.rule:\n  '{job=debug}': 3d\n", err: `line 2: storage.retention.rule: "{job=debug}: 3d": selector {job=debug}`},
		{name: "a rule without an age", args: []string{`--storage.retention.rule={job="debug"}`}, err: `--storage.retention.rule={job="debug"}: `},
		{name: "too short a rule", args: []string{`--storage.retention.rule={job="debug"}: 1h`}, err: `--storage.retention.rule={job="debug"}: 1h: the age must be at least 2h`},
		{name: "too long a rule", args: []string{`--storage.retention.time=1d`, `--storage.retention.rule={job="debug"}: 3d`}, err: `--storage.retention.rule={job="debug"}: 3d: nothing is kept for longer`},
		{name: "a rule about external labels", args: []string{`--external-label=dc=x`, `--storage.retention.rule={dc="x"}: 3d`}, err: `dc is an external label`},
		{name: "no queries", args: []string{"--query.max-concurrency=0"}, err: "--query.max-concurrency"},
		{name: "pairs of replicas", args: []string{"--ingest.ha-replica-label=__replica__", "--ingest.ha-cluster-label=cluster"}, check: func(t *testing.T, c Config) {
			require.Equal(t, ingest.HA{ReplicaLabel: "__replica__", ClusterLabel: "cluster", Failover: 30 * time.Second}, c.Ingest.HA)
		}},
		{name: "replicas without a cluster", args: []string{"--ingest.ha-replica-label=r"}, err: `--ingest.ha-replica-label="r", --ingest.ha-cluster-label=""`},
		{name: "a cluster without replicas", args: []string{"--ingest.ha-cluster-label=c"}, err: `--ingest.ha-replica-label="", --ingest.ha-cluster-label="c"`},
		{name: "one label for both", args: []string{"--ingest.ha-replica-label=c", "--ingest.ha-cluster-label=c"}, err: "must differ"},
		{name: "replicas by metric", args: []string{"--ingest.ha-replica-label=__name__", "--ingest.ha-cluster-label=c"}, err: "--ingest.ha-replica-label"},
		{name: "clusters by metric", args: []string{"--ingest.ha-replica-label=r", "--ingest.ha-cluster-label=__name__"}, err: "--ingest.ha-cluster-label"},
		{name: "no time to fail", args: []string{"--ingest.ha-replica-label=r", "--ingest.ha-cluster-label=c", "--ingest.ha-failover=0s"}, err: "--ingest.ha-failover=0s"},
		{name: "a value in the file", file: "# ours\nquery.timeout: abc\n", err: `millrace.yml: line 2: query.timeout: "abc": not a valid duration`},
		{name: "a value in a list in the file", file: "external-label:\n- a=b\n- a=c\n", err: `line 3: external-label: "a=c": label "a" has the value "b" already`},
		{name: "a word in the file", file: "log.level: loud\n", err: `line 1: log.level: "loud": must be one of`},
		{name: "neither true nor false", file: "web.allow-unauthenticated: maybe\n", err: `line 1: web.allow-unauthenticated: "maybe": must be true or false`},
		{name: "a bad value that the command line replaces", file: "query.timeout: abc\n", args: []string{"--query.timeout=1m"}, check: func(t *testing.T, c Config) {
			require.Equal(t, time.Minute, c.Query.Timeout)
		}},
		{name: "no folder", args: []string{"--storage.path="}, err: "--storage.path="},
		{name: "no folder in the file", file: "storage.path:\n", err: "--storage.path="},
		{name: "a level that is none", args: []string{"--log.level=loud"}, err: "--log.level=loud: must be one of debug, info, warn, error"},
		{name: "a format that is none", args: []string{"--log.format=xml"}, err: "--log.format=xml: must be one of logfmt, json"},
		{name: "exemplars without a number", args: []string{"--speed.max-exemplars=x"}, err: "--speed.max-exemplars=x"},
		{name: "too little memory", args: []string{"--memory.limit=1MB"}, err: "--memory.limit=1MB: must be 0 or at least 64MB"},
		{name: "just enough memory", args: []string{"--memory.limit=64MB", "--speed.memory-limit=16MB"}},
		{name: "memory by default", args: []string{"--memory.limit=0", "--speed.memory-limit=0"}},
		{name: "too little memory for samples", args: []string{"--speed.memory-limit=15MB"}, err: "--speed.memory-limit=15MB: must be 0 or at least 16MB"},
		{name: "a label with two values", args: []string{"--external-label=a=b", "--external-label=a=c"}, err: `--external-label=a=c: label "a" has the value "b" already`},
		{name: "a reserved label", args: []string{"--external-label=__name__=x"}, err: "__name__"},
		{name: "a label without a value", args: []string{"--external-label=x"}, err: "name=value"},
	} {
		t.Run(row.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "millrace.yml")
			require.NoError(t, os.WriteFile(name, []byte(row.file), 0o600))
			for _, arg := range [][]string{{"--config.file=" + name}, {"--config.file", name}} {
				cfg, err := fromArgs(append(arg, row.args...)...)
				if row.err != "" {
					require.ErrorContains(t, err, row.err)
					continue
				}
				require.NoError(t, err)
				if row.check != nil {
					row.check(t, cfg)
				}
			}
		})
	}
	_, err := fromArgs("--config.file=" + filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// What --help shows as a default can be given as a value, and is spelt as errors spell sizes.
func TestSizesAreSpeltInOneWay(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1 << 10: "1KB", 32 << 20: "32MB", 1 << 30: "1GB", 3 << 29: "1GB512MB", 20 << 30: "20GB"} {
		var b bytesValue
		require.NoError(t, b.Set(want))
		require.Equal(t, n, int64(b))
		require.Equal(t, want, b.String())
	}
	app := kingpin.New("test", "")
	new(Config).Flags(app)
	for _, f := range app.Model().Flags {
		for _, text := range append(f.Default, f.Help) {
			require.NotRegexp(t, `[KMG]iB`, text, f.Name)
		}
	}
	_, err := fromArgs("--storage.local-limit=63MB")
	require.ErrorContains(t, err, "--storage.local-limit=63MB")
}

func TestGrafanasSettings(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	const license = "GF_ENTERPRISE_LICENSE_PATH=/var/lib/grafana/license.jwt"
	for _, row := range []struct {
		name    string
		env     []string
		path    string
		check   func(t *testing.T, c Config)
		unknown []string
		err     string
	}{
		{name: "the data path beside the license", env: []string{license}, path: "/var/lib/grafana/millrace", check: func(t *testing.T, c Config) {
			want, err := fromArgs()
			require.NoError(t, err)
			want.Storage.Path = c.Storage.Path
			require.Equal(t, want, c, "the same defaults")
		}},
		{name: "another data path", env: []string{license, "GF_PLUGIN_STORAGE_PATH=/d"}, path: "/d"},
		{name: "no data path", err: "storage_path"},
		{name: "a license elsewhere", env: []string{"GF_ENTERPRISE_LICENSE_PATH=/etc/license"}, err: "storage_path"},
		{name: "a relative path", env: []string{"GF_PLUGIN_STORAGE_PATH=d"}, err: "must be absolute"},
		{name: "below the plugin", env: []string{"GF_PLUGIN_STORAGE_PATH=" + filepath.Join(filepath.Dir(self), "x")}, err: "below the plugin's own folder"},
		{name: "settings", path: "/d", env: []string{
			"GF_PLUGIN_STORAGE_PATH=/d", "GF_PLUGIN_STORAGE_RETENTION_TIME=1w", "GF_PLUGIN_SPEED_MEMORY_LIMIT=1GB", "GF_PLUGIN_WEB_ALLOW_UNAUTHENTICATED=true",
			`GF_PLUGIN_STORAGE_RETENTION_RULE={job="debug"}: 3d, {env="dev",zone=~"a|b"}: 2d`,
			"GF_PLUGIN_WEB_LISTEN_ADDRESS=:9393", "GF_PLUGIN_STORAGE_WAL_SYNC=every", "GF_PLUGIN_STORAGE_START_TIMESTAMPS=false", "GF_PLUGIN_QUERY_TIMEOUT=",
		}, check: func(t *testing.T, c Config) {
			require.Equal(t, 168*time.Hour, c.Storage.Retention)
			require.Equal(t, int64(1<<30), c.Speed.MemoryLimit)
			require.True(t, c.Web.AllowUnauthenticated)
			require.Equal(t, `{env="dev",zone=~"a|b"}: 2d, {job="debug"}: 3d`, c.Storage.RetentionRules.String())
			require.False(t, c.Storage.StartTimestamps)
			require.Equal(t, "every", c.Storage.WALSync)
			require.Equal(t, 2*time.Minute, c.Query.Timeout, "an empty setting is none")
		}},
		{name: "a listener for others", env: []string{license, "GF_PLUGIN_WEB_LISTEN_ADDRESS=:9393"}, err: "--web.allow-unauthenticated"},
		{name: "unknown settings are told, Grafana's own are not", env: []string{
			license, "GF_PLUGIN_NONSENSE=1", "GF_PLUGIN_VERSION=1", "GF_PLUGIN_APP_URL=x", "GF_VERSION=12", "PATH=/bin",
		}, path: "/var/lib/grafana/millrace", unknown: []string{"GF_PLUGIN_NONSENSE"}},
		{name: "too little memory", env: []string{license, "GF_PLUGIN_SPEED_MEMORY_LIMIT=1MB"}, err: "--speed.memory-limit=1MB"},
		{name: "a mistake", env: []string{license, "GF_PLUGIN_QUERY_TIMEOUT=soon"}, err: "grafana.ini"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var cfg Config
			unknown, err := cfg.ParseEnv(row.env)
			require.Equal(t, row.unknown, unknown)
			if row.err != "" {
				require.ErrorContains(t, err, row.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, row.path, cfg.Storage.Path)
			if row.check != nil {
				row.check(t, cfg)
			}
		})
	}
}

// As in Prometheus, no lookback delta is the default one.
func TestALookbackDeltaOfZeroIsTheDefault(t *testing.T) {
	e := startEngine(t, testConfig(t, t.TempDir(), "--query.lookback-delta=0s"))
	now := time.Now().UnixMilli()
	write(t, e, "a", point{now - 5*time.Minute.Milliseconds() - 1, 1})
	require.Empty(t, answered(t, e, "m", now))
	write(t, e, "a", point{now - 5*time.Minute.Milliseconds() + 1, 1})
	require.Len(t, answered(t, e, "m", now), 1)
}
