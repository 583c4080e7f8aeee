//go:build !windows

package plugin

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/stretchr/testify/require"

	"github.com/millrace/millrace/pkg/plugin/plugintest"
)

// startSelf runs this test's own executable as the plugin, over Grafana's protocol, and returns the folder with its engine's notes.
func startSelf(t *testing.T, o plugintest.Options) (*plugintest.Plugin, string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	dir := t.TempDir()
	o.Path, o.Env = self, append(o.Env, actAsPlugin+"="+dir)
	return plugintest.Start(t, o), dir
}

func pluginContext(role string) backend.PluginContext {
	return plugintest.Context(ID, 1, role, backend.DataSourceInstanceSettings{ID: 1, UID: "millrace", Name: "Millrace"})
}

// The handshake does not wait for the engine, and everything is answered meanwhile.
func TestProtocolWhileStarting(t *testing.T) {
	p, dir := startSelf(t, plugintest.Options{Env: []string{readyAfter + "=1h"}})
	require.FileExists(t, filepath.Join(dir, "started"))

	health, err := p.Health(t.Context(), pluginContext("Viewer"))
	require.NoError(t, err)
	require.Equal(t, backend.HealthStatusError, health.Status)
	require.Contains(t, health.Message, "starting: waiting")

	data, err := p.Query(t.Context(), &backend.QueryDataRequest{PluginContext: pluginContext("Viewer"), Queries: []backend.DataQuery{
		{RefID: "A", JSON: []byte(`{"refId":"A","expr":"up","range":true,"instant":true}`), TimeRange: backend.TimeRange{From: time.Unix(0, 0), To: time.Unix(60, 0)}},
	}})
	require.NoError(t, err)
	require.Len(t, data.Responses, 2)
	require.Equal(t, 503, int(data.Responses["A"].Status))
	require.ErrorContains(t, data.Responses["A-Instant"].Error, "starting")

	metrics, err := p.Metrics(t.Context())
	require.NoError(t, err)
	require.Contains(t, metrics, "millrace_test_total")

	require.Eventually(t, func() bool { return len(p.Log()) > 0 }, 5*time.Second, 10*time.Millisecond)
	require.Contains(t, p.Log(), `"@level":"warn","@message":"engine started"`)
}

func TestProtocolResources(t *testing.T) {
	p, _ := startSelf(t, plugintest.Options{})
	write := func(role string, size int) *backend.CallResourceResponse {
		resp, err := p.Resource(t.Context(), &backend.CallResourceRequest{
			PluginContext: pluginContext(role), Method: http.MethodPost, Path: "api/v1/write", URL: "api/v1/write", Body: make([]byte, size),
		})
		require.NoError(t, err)
		return resp
	}
	require.Equal(t, 403, write("Viewer", 1).Status)
	ok := write("Editor", 20<<20) // above the limit that the SDK sets by itself
	require.Equal(t, 200, ok.Status)
	require.Equal(t, []string{"7"}, ok.Headers["Retry-After"])
	require.Equal(t, 413, write("Editor", 33<<20).Status)
}

func TestProtocolShutdown(t *testing.T) {
	p, dir := startSelf(t, plugintest.Options{})
	require.Less(t, p.Shutdown(), 2*time.Second, "the plugin was killed")
	require.FileExists(t, filepath.Join(dir, "stopped"))
}

func TestProtocolSIGTERM(t *testing.T) {
	p, dir := startSelf(t, plugintest.Options{})
	p.Signal(syscall.SIGTERM)
	p.WaitGone(10 * time.Second)
	require.FileExists(t, filepath.Join(dir, "stopped"))
}

// An engine that hangs keeps nobody.
func TestProtocolHangingEngine(t *testing.T) {
	p, _ := startSelf(t, plugintest.Options{Env: []string{hangInStop + "=1"}})
	p.Signal(syscall.SIGTERM)
	p.WaitGone(10 * time.Second)
}

func TestProtocolDeathOfParent(t *testing.T) {
	p, dir := startSelf(t, plugintest.Options{UnderShell: true})
	p.KillParent()
	p.WaitGone(10 * time.Second)
	require.FileExists(t, filepath.Join(dir, "stopped"))
}

// Started by hand the process ends, and touches nothing.
func TestStartedByHand(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	dir := t.TempDir()
	cmd := exec.Command(self)
	cmd.Env = []string{actAsPlugin + "=" + dir}
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "This binary is a plugin")
	require.NoFileExists(t, filepath.Join(dir, "started"))
}
