//go:build mage

// What is built, run and checked here. `go tool mage -l` lists the targets.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/build"
	"github.com/magefile/mage/mg"
	"github.com/magefile/mage/sh"
	"golang.org/x/tools/go/packages"
)

// Default is what plain `go tool mage` does.
var Default = BuildAll

// goPackages leaves out what npm brings: some of its packages hold Go files.
var goPackages = []string{"./bench/...", "./cmd/...", "./pkg/..."}

type platform struct{ os, arch string }

func (p platform) String() string { return p.os + "/" + p.arch }

// pluginPlatforms are those that Grafana itself is built for.
var pluginPlatforms = []platform{
	{"linux", "amd64"},
	{"linux", "arm64"},
	{"darwin", "amd64"},
	{"darwin", "arm64"},
	{"windows", "amd64"},
	{"windows", "arm64"},
}

// serverPlatforms are where `millrace` runs: small machines too.
var serverPlatforms = append(slices.Clone(pluginPlatforms), platform{"linux", "arm"})

func init() {
	must(build.SetBeforeBuildCallback(func(cfg build.Config) (build.Config, error) {
		cfg.RootPackagePath = "./cmd/gpx_millrace"
		cfg.EnableCGo = false
		cfg.CustomVars = versionVars()
		return cfg, nil
	}))
}

// BuildAll builds the plugin for every platform into dist/, and the server for every platform into bin/.
func BuildAll() {
	// The front end's build clears dist/; it keeps executables, but not half-written ones.
	mg.SerialDeps(Frontend, Backend, Servers)
}

// Plugin builds the plugin into dist/, for this platform only.
func Plugin() error {
	mg.Deps(Frontend)
	return buildPlugin(platform{runtime.GOOS, runtime.GOARCH})
}

// Frontend builds the plugin's front end into dist/.
func Frontend() error {
	mg.Deps(nodeModules)
	return sh.RunV("npm", "run", "build")
}

// Backend builds the plugin's executables for every platform into dist/.
func Backend() error {
	for _, p := range pluginPlatforms {
		if err := buildPlugin(p); err != nil {
			return err
		}
	}
	return nil
}

// Servers builds `millrace` for every platform into bin/.
func Servers() error {
	for _, p := range serverPlatforms {
		name := fmt.Sprintf("millrace_%s_%s", p.os, p.arch)
		if p.os == "windows" {
			name += ".exe"
		}
		if err := buildServer(filepath.Join("bin", name), p); err != nil {
			return err
		}
	}
	return nil
}

// Server builds `millrace` for this platform into bin/.
func Server() error {
	return buildServer(server(), platform{runtime.GOOS, runtime.GOARCH})
}

// Run builds the server, if it is not up to date, and runs it with its data in ./data.
func Run(ctx context.Context) error {
	if _, err := os.Stat(server()); err != nil {
		fmt.Println("building the server; the first time takes a minute")
	}
	mg.CtxDeps(ctx, Server)
	return runUntilStopped(ctx, server(), "serve", "--storage.path=./data")
}

// Dev builds the front end again at every change, with what a debugger needs.
func Dev() error {
	mg.Deps(nodeModules)
	return sh.RunV("npm", "run", "dev")
}

// Test checks everything that CI checks. It builds for this platform; that the others would build it tells from their types, which takes seconds,
// not minutes.
func Test() {
	mg.SerialDeps(Lint, TypeCheck)
	mg.Deps(TestGo, TestModules) // the latter mostly wait, for minutes of samples
	mg.SerialDeps(TestFrontend, Plugin, Server)
}

// Lint checks form and usual mistakes, in Go and in the front end.
func Lint() error {
	mg.SerialDeps(lintGo, nodeModules)
	if err := sh.RunV("npm", "run", "typecheck"); err != nil {
		return err
	}
	return sh.RunV("npm", "run", "lint")
}

// Format brings all sources into form.
func Format() error {
	if err := eachModule(linter, "fmt"); err != nil {
		return err
	}
	mg.Deps(nodeModules)
	return sh.RunV("npm", "run", "lint:fix")
}

// TypeCheck checks, for one platform of each system and word size, that the packages would compile.
func TypeCheck() error {
	for _, p := range []platform{{"windows", "amd64"}, {"darwin", "arm64"}, {"linux", "arm"}} {
		fmt.Println("types for", p)
		cfg := &packages.Config{
			Mode: packages.NeedName | packages.NeedImports | packages.NeedDeps | packages.NeedSyntax | packages.NeedTypes, // From source: nothing is compiled.
			Env:  append(os.Environ(), "GOOS="+p.os, "GOARCH="+p.arch, "CGO_ENABLED=0"),
		}
		found, err := packages.Load(cfg, goPackages...)
		if err != nil {
			return fmt.Errorf("load packages for %s: %w", p, err)
		}
		if n := packages.PrintErrors(found); n > 0 {
			return fmt.Errorf("%d errors for %s", n, p)
		}
	}
	return nil
}

// TestGo runs the packages' own tests with the race detector, and those that have more to do without it.
func TestGo() error {
	args := []string{"test", "-race", "-timeout=30m"}
	if os.Getenv("CGO_ENABLED") == "0" || !hasCompiler() {
		fmt.Fprintln(os.Stderr, "no C compiler: the tests run without the race detector")
		args = slices.DeleteFunc(args, func(a string) bool { return a == "-race" })
	}
	if err := sh.RunV("go", append(args, goPackages...)...); err != nil {
		return err
	}
	if err := sh.RunV("go", "test", "-timeout=20m", "-run=TestPrometheusScripts", "./pkg/engine"); err != nil {
		return err
	}
	return sh.RunV("go", "test", "-timeout=20m", "-run=DiesAtEveryCall|AnyInterleaving", "./pkg/batch")
}

// TestFrontend runs the front end's tests.
func TestFrontend() error {
	mg.Deps(nodeModules)
	return sh.RunV("npm", "run", "test:ci")
}

// TestModules runs the tests that need what Millrace itself does not: those of the modules below test/.
func TestModules() error {
	dirs, err := testModules()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := runIn(dir, "go", "test", "-timeout=60m", "./..."); err != nil {
			return err
		}
	}
	return nil
}

// Interop tests that Thanos reads the bucket. Thanos is built for it, which takes minutes the first time: it is no part of Test.
func Interop() error {
	return runIn("test", "go", "test", "-tags=interop", "-timeout=30m", "-count=1", "-run=Thanos", "./e2e")
}

// Clean removes what was built.
func Clean() error {
	for _, dir := range []string{"bin", "coverage", "dist"} {
		if err := sh.Rm(dir); err != nil {
			return err
		}
	}
	return nil
}

func lintGo() error {
	// It holds go vet's checks, too.
	return eachModule(linter, "run")
}

// linter stands for golangci-lint in the version of tools/go.mod.
const linter = "golangci-lint"

// eachModule runs a check over the packages of this module and of those below test/.
func eachModule(cmd string, args ...string) error {
	dirs, err := testModules()
	if err != nil {
		return err
	}
	tools, err := filepath.Abs(filepath.Join("tools", "go.mod"))
	if err != nil {
		return err
	}
	if cmd == linter {
		cmd, args = "go", append([]string{"tool", "-modfile=" + tools, linter}, args...)
	}
	if err := runIn(".", cmd, append(args, goPackages...)...); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := runIn(dir, cmd, append(args, "./...")...); err != nil {
			return err
		}
	}
	return nil
}

// testModules returns the folders of the modules below test/.
func testModules() ([]string, error) {
	var dirs []string
	for _, pattern := range []string{"test/go.mod", "test/*/go.mod"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			dirs = append(dirs, filepath.Dir(f))
		}
	}
	return dirs, nil
}

// nodeModules installs the front end's packages unless they are there, and those of the present lock file.
func nodeModules() error {
	installed, err := os.Stat(filepath.Join("node_modules", ".package-lock.json"))
	if err == nil {
		lock, err := os.Stat("package-lock.json")
		if err != nil {
			return err
		}
		if !lock.ModTime().After(installed.ModTime()) {
			return nil
		}
	}
	if _, err := exec.LookPath("npm"); err != nil {
		return errors.New("the front end needs Node.js 20 or newer with npm")
	}
	return sh.RunV("npm", "ci", "--no-audit", "--no-fund")
}

func buildPlugin(p platform) error {
	fmt.Println("plugin", p)
	if err := (build.Build{}).Custom(p.os, p.arch); err != nil {
		return fmt.Errorf("build the plugin for %s: %w", p, err)
	}
	return nil
}

func buildServer(out string, p platform) error {
	fmt.Println(out)
	env := map[string]string{"GOOS": p.os, "GOARCH": p.arch, "CGO_ENABLED": "0"}
	if p.arch == "arm" {
		env["GOARM"] = "7"
	}
	flags := []string{"-s", "-w"}
	for name, value := range versionVars() {
		flags = append(flags, fmt.Sprintf("-X '%s=%s'", name, value))
	}
	slices.Sort(flags) // The same flags in the same order, or the linker runs again.
	return sh.RunWithV(env, "go", "build", "-ldflags", strings.Join(flags, " "), "-o", out, "./cmd/millrace")
}

// server is where this platform's server is built.
func server() string {
	if runtime.GOOS == "windows" {
		return filepath.Join("bin", "millrace.exe")
	}
	return filepath.Join("bin", "millrace")
}

// versionVars are what both commands say about themselves. The number stands in package.json, where Grafana's tools look for it.
func versionVars() map[string]string {
	raw, err := os.ReadFile("package.json")
	must(err)
	var pkg struct{ Version string }
	must(json.Unmarshal(raw, &pkg))
	vars := map[string]string{"github.com/prometheus/common/version.Version": pkg.Version}
	// What Go itself would write down is missing where GOFLAGS says -buildvcs=false.
	if rev, err := sh.Output("git", "describe", "--always", "--abbrev=40", "--dirty=-modified", "--exclude=*"); err == nil {
		vars["github.com/prometheus/common/version.Revision"] = rev
	}
	return vars
}

// runUntilStopped runs a command in the foreground until it ends by itself or is asked to. It hands signals on, and leaves no process
// behind: a terminal's Ctrl-C reaches the whole process group, a SIGTERM only the outermost `go`, which takes mage with it but not what
// mage had started.
func runUntilStopped(ctx context.Context, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	parent := os.Getppid()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	interrupted := ctx.Done()
	var overdue <-chan time.Time
	for {
		select {
		case err := <-ended:
			return err
		case <-interrupted: // Ctrl-C: the command has had it too, as a rule.
			interrupted, overdue = nil, time.After(2*time.Second)
		case <-overdue:
			stop(cmd)
		case <-signals:
			stop(cmd)
		case <-tick.C:
			if os.Getppid() != parent {
				stop(cmd)
				parent = os.Getppid()
			}
		}
	}
}

func stop(cmd *exec.Cmd) {
	if runtime.GOOS == "windows" {
		_ = cmd.Process.Kill()
		return
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
}

func runIn(dir, name string, args ...string) error {
	fmt.Println(strings.Join(append([]string{name}, args...), " "), "in", dir)
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, os.Stdout, os.Stderr
	return cmd.Run()
}

func hasCompiler() bool {
	for _, name := range []string{os.Getenv("CC"), "cc", "gcc", "clang"} {
		if name == "" {
			continue
		}
		if _, err := exec.LookPath(name); err == nil {
			return true
		}
	}
	return false
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
