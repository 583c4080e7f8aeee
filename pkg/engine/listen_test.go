package engine

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// webConfig writes a web configuration file with the user u, whose password is p.
func webConfig(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "web.yml")
	require.NoError(t, os.WriteFile(name, []byte("basic_auth_users:\n  u: $2a$04$epHjmQkPrwj.0fQ/VOS0vOKNNaNfTsEaIk51Nrs1DY25MPHeWMolq\n"), 0o600))
	return name
}

func TestAListenerThatOthersReachWantsAuthentication(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.yml")
	require.NoError(t, os.WriteFile(empty, []byte("http_server_config:\n  http2: false\n"), 0o600))
	users := webConfig(t)
	misspelt, broken := filepath.Join(t.TempDir(), "misspelt.yml"), filepath.Join(t.TempDir(), "broken.yml")
	require.NoError(t, os.WriteFile(misspelt, []byte("basic_auth_user:\n  a: b\ntls: {}\n"), 0o600))
	require.NoError(t, os.WriteFile(broken, []byte("basic_auth_users: [\n"), 0o600))
	for _, row := range []struct {
		name    string
		web     WebConfig
		refused string
	}{
		{name: "no listener"},
		{name: "loopback", web: WebConfig{ListenAddress: "127.0.0.1:0"}},
		{name: "loopback, another address", web: WebConfig{ListenAddress: "127.1.2.3:0"}},
		{name: "loopback, IPv6", web: WebConfig{ListenAddress: "[::1]:0"}},
		{name: "localhost", web: WebConfig{ListenAddress: "localhost:0"}},
		{name: "all addresses", web: WebConfig{ListenAddress: ":0"}, refused: "--web.allow-unauthenticated"},
		{name: "all addresses, IPv4", web: WebConfig{ListenAddress: "0.0.0.0:0"}, refused: "--web.allow-unauthenticated"},
		{name: "all addresses, IPv6", web: WebConfig{ListenAddress: "[::]:0"}, refused: "--web.allow-unauthenticated"},
		{name: "a name", web: WebConfig{ListenAddress: "localhost.example.com:0"}, refused: "--web.allow-unauthenticated"},
		{name: "with users", web: WebConfig{ListenAddress: ":0", ConfigFile: users}},
		{name: "a file without users", web: WebConfig{ListenAddress: ":0", ConfigFile: empty}, refused: "--web.allow-unauthenticated"},
		{name: "a file that is not there", web: WebConfig{ListenAddress: ":0", ConfigFile: empty + "x"}, refused: "--web.config.file"},
		{name: "the user insists", web: WebConfig{ListenAddress: ":0", AllowUnauthenticated: true}},
		{name: "a misspelt key", web: WebConfig{ListenAddress: ":0", ConfigFile: misspelt}, refused: `line 1: there is no setting "basic_auth_user"`},
		{name: "a misspelt key on loopback", web: WebConfig{ListenAddress: "127.0.0.1:0", ConfigFile: misspelt}, refused: `--web.config.file=` + misspelt + `: line 1: there is no setting "basic_auth_user"; line 3: there is no setting "tls"`},
		{name: "a file that is not YAML", web: WebConfig{ListenAddress: "127.0.0.1:0", ConfigFile: broken}, refused: "--web.config.file=" + broken + ": yaml: line 1"},
		{name: "no port", web: WebConfig{ListenAddress: "127.0.0.1"}, refused: "--web.listen-address"},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg := testConfig(t, t.TempDir())
			cfg.Web = row.web
			err := errors.Join(cfg.Validate(), cfg.Web.check())
			if row.refused == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, row.refused)
		})
	}
}

func hello() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
}

func status(t *testing.T, addr, user, password string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/", nil)
	require.NoError(t, err)
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Do(req)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	return res.StatusCode
}

// listening starts an engine and returns the port that it listens on.
func listening(t *testing.T, cfg Config) (*Engine, string) {
	t.Helper()
	e := newEngine(t, cfg)
	e.Start(hello())
	t.Cleanup(func() { stopEngine(t, e) })
	eventually(t, "it listens", func() bool { return e.Addr() != nil })
	_, port, err := net.SplitHostPort(e.Addr().String())
	require.NoError(t, err)
	return e, net.JoinHostPort("127.0.0.1", port)
}

func TestARefusedListenerIsAProblemOfHealthOnly(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.Web.ListenAddress = "0.0.0.0:0" // as if the check at the start had been left out
	e := newEngine(t, cfg)
	e.Start(hello())
	t.Cleanup(func() { stopEngine(t, e) })
	<-e.Opened()
	eventually(t, "health says it", func() bool { return problem(e, "listener") != "" })
	require.Contains(t, problem(e, "listener"), "--web.allow-unauthenticated")
	require.Nil(t, e.Addr())
	write(t, e, "a", point{time.Now().UnixMilli(), 1})
}

func TestTheListenerAsksWhoItIs(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.Web = WebConfig{ListenAddress: "0.0.0.0:0", ConfigFile: webConfig(t)}
	_, addr := listening(t, cfg)
	require.Equal(t, http.StatusUnauthorized, status(t, addr, "", ""))
	require.Equal(t, http.StatusUnauthorized, status(t, addr, "u", "wrong"))
	require.Equal(t, http.StatusTeapot, status(t, addr, "u", "p"))
}

func TestTheListenerOfAUserWhoInsists(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.Web = WebConfig{ListenAddress: "0.0.0.0:0", AllowUnauthenticated: true}
	_, addr := listening(t, cfg)
	require.Equal(t, http.StatusTeapot, status(t, addr, "", ""))
}

// certificate returns the files of a new key and of its certificate.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	public, err := x509.CreateCertificate(rand.Reader, &template, &template, private.Public(), private)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	cert, key = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: public}), 0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600))
	return cert, key
}

// The URL can be used as it is, and the log warns once of a listener that everyone may use.
func TestTheURLAndTheWarningOfAListener(t *testing.T) {
	cert, key := certificate(t)
	tls := filepath.Join(t.TempDir(), "tls.yml")
	require.NoError(t, os.WriteFile(tls, []byte("tls_server_config:\n  cert_file: "+cert+"\n  key_file: "+key+"\n"), 0o600))
	for _, row := range []struct {
		name string
		web  WebConfig
		url  string
		here bool
		warn int
	}{
		{name: "loopback", web: WebConfig{ListenAddress: "127.0.0.1:0"}, url: "http://127.0.0.1:"},
		{name: "loopback, insisting", web: WebConfig{ListenAddress: "127.0.0.1:0", AllowUnauthenticated: true}, url: "http://127.0.0.1:"},
		{name: "loopback, users", web: WebConfig{ListenAddress: "127.0.0.1:0", ConfigFile: webConfig(t)}, url: "http://127.0.0.1:"},
		{name: "loopback, TLS", web: WebConfig{ListenAddress: "127.0.0.1:0", ConfigFile: tls}, url: "https://127.0.0.1:"},
		{name: "all addresses", web: WebConfig{ListenAddress: "0.0.0.0:0", AllowUnauthenticated: true}, url: "http://127.0.0.1:", here: true, warn: 1},
		{name: "all addresses, users", web: WebConfig{ListenAddress: ":0", ConfigFile: webConfig(t), AllowUnauthenticated: true}, url: "http://127.0.0.1:", here: true},
		{name: "all addresses, TLS", web: WebConfig{ListenAddress: ":0", ConfigFile: tls, AllowUnauthenticated: true}, url: "https://127.0.0.1:", here: true, warn: 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg := testConfig(t, t.TempDir())
			cfg.Web = row.web
			reg := prometheus.NewRegistry()
			var log bytes.Buffer // of one logger, which locks; read when that is done
			e, err := New(cfg, reg, reg, slog.New(slog.NewTextHandler(&log, nil)))
			require.NoError(t, err)
			root, _ := e.URL()
			require.Empty(t, root)
			e.Start(hello())
			eventually(t, "it listens", func() bool { return e.Addr() != nil })
			root, here := e.URL()
			stopEngine(t, e)
			require.Regexp(t, "^"+row.url+"[0-9]+$", root)
			require.Equal(t, row.here, here)
			require.Equal(t, row.warn, strings.Count(log.String(), "open to everyone"), log.String())
		})
	}
}

func TestAPortInUseIsTakenWhenItIsFree(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	cfg := testConfig(t, t.TempDir())
	cfg.Web.ListenAddress = l.Addr().String()
	e := newEngine(t, cfg)
	e.Start(hello())
	t.Cleanup(func() { stopEngine(t, e) })
	eventually(t, "health says it", func() bool { return problem(e, "listener") != "" })
	require.Contains(t, problem(e, "listener"), l.Addr().String())
	require.NoError(t, l.Close())
	eventually(t, "it listens", func() bool { return problem(e, "listener") == "" && e.Addr() != nil })
	require.Equal(t, http.StatusTeapot, status(t, cfg.Web.ListenAddress, "", ""))
}

// A mistake in the web configuration does not keep a plugin's engine from opening. It is told once for as long as it stays the same, and is mended
// without a restart.
func TestAMistakeInTheWebConfigurationIsToldOnce(t *testing.T) {
	name := filepath.Join(t.TempDir(), "web.yml")
	require.NoError(t, os.WriteFile(name, []byte("basic_auth_user:\n  a: b\n"), 0o600))
	cfg := testConfig(t, t.TempDir())
	cfg.Web = WebConfig{ListenAddress: "127.0.0.1:0", ConfigFile: name}
	require.NoError(t, cfg.Validate(), "or the plugin would not try again")
	reg := prometheus.NewRegistry()
	var log bytes.Buffer // of one logger, which locks; read when that is done
	e, err := New(cfg, reg, reg, slog.New(slog.NewTextHandler(&log, nil)))
	require.NoError(t, err)
	e.Start(hello())
	eventually(t, "health says it", func() bool { return problem(e, "listener") != "" })
	require.Equal(t, "--web.config.file="+name+`: line 1: there is no setting "basic_auth_user"`, problem(e, "listener"))
	time.Sleep(1500 * time.Millisecond) // another attempt
	require.NotEmpty(t, problem(e, "listener"))
	require.Nil(t, e.Addr())

	require.NoError(t, os.WriteFile(name, nil, 0o600))
	eventually(t, "it listens", func() bool { return problem(e, "listener") == "" && e.Addr() != nil })
	stopEngine(t, e)
	require.Equal(t, 1, strings.Count(log.String(), "component=listener err="), log.String())
	require.Equal(t, 1, strings.Count(log.String(), "a component has recovered"), log.String())
}

func TestPrepareTakesWhatStartUses(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.Web.ListenAddress = "127.0.0.1:0"
	e := newEngine(t, cfg)
	require.NoError(t, e.Prepare())
	address := e.prepared.listener.Addr()
	other := newEngine(t, testConfig(t, cfg.Storage.Path))
	require.ErrorContains(t, other.Prepare(), "in use by another process", "the data path is taken")

	e.Start(hello())
	t.Cleanup(func() { stopEngine(t, e) })
	<-e.Opened()
	eventually(t, "it listens", func() bool { return e.Addr() != nil })
	require.Equal(t, address, e.Addr())
}

// What Prepare took before it failed, others can have.
func TestPrepareThatFailsHoldsNothing(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address, path := l.Addr().String(), t.TempDir()
	cfg := testConfig(t, path, "--objstore.config={type: NONE}")
	cfg.Web.ListenAddress = address
	require.ErrorContains(t, newEngine(t, cfg).Prepare(), "--web.listen-address="+address)
	require.NoError(t, l.Close())
	require.ErrorContains(t, newEngine(t, cfg).Prepare(), "--objstore.config: configure bucket: bucket with type NONE is not supported")

	cfg = testConfig(t, path)
	cfg.Web.ListenAddress = address
	e := newEngine(t, cfg)
	require.NoError(t, e.Prepare())
	e.Start(hello())
	stopEngine(t, e)
}

// An engine that is stopped before its background work began gives back what was prepared for it.
func TestStopRightAfterPrepare(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	cfg.Web.ListenAddress = "127.0.0.1:0"
	e := newEngine(t, cfg)
	require.NoError(t, e.Prepare())
	l := e.prepared.listener
	e.cancel()
	e.Start(hello())
	stopEngine(t, e)
	_, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.WithoutCancel(t.Context()), "tcp", l.Addr().String())
	require.Error(t, err, "the listener is closed")
	again := newEngine(t, testConfig(t, cfg.Storage.Path))
	require.NoError(t, again.Prepare(), "the lock is free")
	again.Start(hello())
	stopEngine(t, again)
}
