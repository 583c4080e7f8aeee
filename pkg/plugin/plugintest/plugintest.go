//go:build !windows

// Package plugintest runs a built plugin as Grafana does, for tests: over hashicorp/go-plugin, with the SDK's client stubs, without the
// host's environment, and with the same ends: Shutdown, signals, and the death of the parent.
package plugintest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/backend/grpcplugin"
	"github.com/grafana/grafana-plugin-sdk-go/config"
	"github.com/grafana/grafana-plugin-sdk-go/genproto/pluginv2"
	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
)

// Options say what is run, and how.
type Options struct {
	// Path is the executable. Build makes one.
	Path string
	// Args are its arguments; Grafana gives none.
	Args []string
	// Env are all its variables; those of the handshake are added.
	Env []string
	// UnderShell puts a shell between the test and the plugin, which then is the plugin's parent and can be killed with KillParent.
	UnderShell bool
}

// Plugin is a plugin's process. Its methods may be called concurrently.
type Plugin struct {
	// Handshake is how long the process took until it could be called.
	Handshake time.Duration

	tb          testing.TB
	client      *goplugin.Client
	parent      int // process id of the shell; 0 without one
	pid         int
	log         *buffer
	diagnostics grpcplugin.DiagnosticsClient
	resources   grpcplugin.ResourceClient
	data        grpcplugin.DataClient
}

// Build compiles a package of this module, such as "./cmd/gpx_millrace" seen from the module's root, and returns the executable's path.
func Build(tb testing.TB, pkg string) string {
	tb.Helper()
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		tb.Fatalf("find the module's root: %v", err)
	}
	path := filepath.Join(tb.TempDir(), filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-o", path, pkg)
	cmd.Dir = filepath.Dir(strings.TrimSpace(string(mod)))
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return path
}

// Start runs a plugin and waits for its handshake, as long as Grafana does. The test's cleanup ends it.
func Start(tb testing.TB, o Options) *Plugin {
	tb.Helper()
	pidFile := filepath.Join(tb.TempDir(), "pid")
	cmd := exec.Command(o.Path, o.Args...)
	if o.UnderShell {
		script := `"$@" & echo $! >"$PLUGIN_PID_FILE"; wait`
		cmd = exec.Command("/bin/sh", append([]string{"-c", script, "sh", o.Path}, o.Args...)...)
		o.Env = append([]string{"PLUGIN_PID_FILE=" + pidFile}, o.Env...)
	}
	cmd.Env = o.Env
	p := &Plugin{tb: tb, log: &buffer{}}
	p.client = goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig: goplugin.HandshakeConfig{
			ProtocolVersion: grpcplugin.ProtocolVersion, MagicCookieKey: grpcplugin.MagicCookieKey, MagicCookieValue: grpcplugin.MagicCookieValue,
		},
		VersionedPlugins: map[int]goplugin.PluginSet{grpcplugin.ProtocolVersion: {
			"diagnostics": &grpcplugin.DiagnosticsGRPCPlugin{},
			"resource":    &grpcplugin.ResourceGRPCPlugin{},
			"data":        &grpcplugin.DataGRPCPlugin{},
		}},
		Cmd:              cmd,
		SkipHostEnv:      true,
		Stderr:           p.log,
		Logger:           hclog.NewNullLogger(),
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
	})
	start := time.Now()
	tb.Cleanup(p.cleanup)
	if err := p.connect(); err != nil {
		tb.Fatalf("start the plugin: %v\n%s", err, p.Log())
	}
	p.Handshake = time.Since(start)
	p.pid = cmd.Process.Pid
	if o.UnderShell {
		p.parent = p.pid
		text, err := os.ReadFile(pidFile)
		if err == nil {
			p.pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		if err != nil {
			tb.Fatalf("find the plugin below its shell: %v", err)
		}
	}
	return p
}

func (p *Plugin) connect() error {
	rpc, err := p.client.Client()
	if err != nil {
		return err
	}
	diagnostics, err := rpc.Dispense("diagnostics")
	if err != nil {
		return err
	}
	resources, err := rpc.Dispense("resource")
	if err != nil {
		return err
	}
	data, err := rpc.Dispense("data")
	if err != nil {
		return err
	}
	var ok [3]bool
	p.diagnostics, ok[0] = diagnostics.(grpcplugin.DiagnosticsClient)
	p.resources, ok[1] = resources.(grpcplugin.ResourceClient)
	p.data, ok[2] = data.(grpcplugin.DataClient)
	if ok != [3]bool{true, true, true} {
		return errors.New("the plugin's services are not Grafana's")
	}
	return nil
}

func (p *Plugin) cleanup() {
	p.client.Kill()
	if p.pid != 0 && alive(p.pid) {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
}

// PID is the number of the plugin's process.
func (p *Plugin) PID() int { return p.pid }

// Log is what the plugin has written to stderr so far: JSON lines.
func (p *Plugin) Log() string { return p.log.String() }

// Health calls CheckHealth.
func (p *Plugin) Health(ctx context.Context, pc backend.PluginContext) (*backend.CheckHealthResult, error) {
	resp, err := p.diagnostics.CheckHealth(ctx, &pluginv2.CheckHealthRequest{PluginContext: backend.ToProto().PluginContext(pc)})
	if err != nil {
		return nil, err
	}
	return backend.FromProto().CheckHealthResponse(resp), nil
}

// Metrics calls CollectMetrics and returns metrics in Prometheus's text format.
func (p *Plugin) Metrics(ctx context.Context) (string, error) {
	resp, err := p.diagnostics.CollectMetrics(ctx, &pluginv2.CollectMetricsRequest{})
	if err != nil {
		return "", err
	}
	return string(resp.GetMetrics().GetPrometheus()), nil
}

// Query calls QueryData.
func (p *Plugin) Query(ctx context.Context, req *backend.QueryDataRequest) (*backend.QueryDataResponse, error) {
	resp, err := p.data.QueryData(ctx, backend.ToProto().QueryDataRequest(req))
	if err != nil {
		return nil, err
	}
	return backend.FromProto().QueryDataResponse(resp)
}

// Resource calls CallResource and joins the pieces of the answer.
func (p *Plugin) Resource(ctx context.Context, req *backend.CallResourceRequest) (*backend.CallResourceResponse, error) {
	stream, err := p.resources.CallResource(ctx, backend.ToProto().CallResourceRequest(req))
	if err != nil {
		return nil, err
	}
	var out *backend.CallResourceResponse
	for {
		piece, err := stream.Recv()
		if errors.Is(err, io.EOF) && out != nil {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		resp := backend.FromProto().CallResourceResponse(piece)
		if out == nil {
			out = resp
			continue
		}
		out.Body = append(out.Body, resp.Body...)
	}
}

// Shutdown ends the plugin as Grafana does: it asks, and kills after 2 s. It returns how long that took; more than 2 s means that the
// plugin was killed.
func (p *Plugin) Shutdown() time.Duration {
	start := time.Now()
	p.client.Kill()
	return time.Since(start)
}

// Signal sends a signal to the plugin's process.
func (p *Plugin) Signal(s syscall.Signal) {
	p.tb.Helper()
	if err := syscall.Kill(p.pid, s); err != nil {
		p.tb.Fatalf("send %s to the plugin: %v", s, err)
	}
}

// KillParent kills the shell that is the plugin's parent with SIGKILL.
func (p *Plugin) KillParent() {
	p.tb.Helper()
	if p.parent == 0 {
		p.tb.Fatal("the plugin was not started under a shell")
	}
	if err := syscall.Kill(p.parent, syscall.SIGKILL); err != nil {
		p.tb.Fatalf("kill the plugin's parent: %v", err)
	}
}

// WaitGone waits until the plugin's process has ended, and returns how long that took. It fails the test after the given time.
func (p *Plugin) WaitGone(atMost time.Duration) time.Duration {
	p.tb.Helper()
	start := time.Now()
	for alive(p.pid) {
		if time.Since(start) > atMost {
			p.tb.Fatalf("the plugin still runs after %s\n%s", atMost, p.Log())
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(start)
}

// alive tells whether a process runs. One that has ended and that its parent has not asked about yet does not: the process that inherits
// orphans may never ask.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) || !isDir("/proc/self")
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return len(rest) > 0 && rest[0] != 'Z'
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// Context is what Grafana says about a caller and a datasource of the plugin. A role of "" is nobody.
func Context(pluginID string, org int64, role string, settings backend.DataSourceInstanceSettings) backend.PluginContext {
	settings.Type = pluginID
	pc := backend.PluginContext{PluginID: pluginID, DataSourceInstanceSettings: &settings, GrafanaConfig: config.NewGrafanaCfg(nil)}
	pc.OrgID = org //nolint:staticcheck // it is what Grafana sends
	if role != "" {
		pc.User = &backend.User{Login: strings.ToLower(role), Role: role}
	}
	return pc
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
