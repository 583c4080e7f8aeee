package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// peer is a server of queries.
type peer struct {
	name     string
	url      string
	ready    []string      // URLs that answer 200 when it is
	settle   time.Duration // what it needs then to know of its own parts
	commands [][]string
}

func (c *config) millracePeer(store string) peer {
	url := "http://" + c.address(2)
	return peer{
		name: "millrace", url: url, ready: []string{url + "/-/ready"},
		commands: [][]string{{
			c.millrace, "serve", "--storage.path=" + filepath.Join(c.dir, "millrace"), "--objstore.config-file=" + store,
			"--web.listen-address=" + c.address(2), "--objstore.sync-interval=1h", "--batch.deletion-delay=3h", "--batch.interval=0s",
			"--self.scrape-interval=0s", "--log.level=warn",
		}},
	}
}

func (c *config) thanosPeer(store string) peer {
	return peer{
		name: "thanos", url: "http://" + c.address(3), ready: []string{"http://" + c.address(3) + "/-/ready", "http://" + c.address(4) + "/-/ready"},
		settle: 6 * time.Second, // the querier looks at its stores every five
		commands: [][]string{
			{
				c.thanos, "store", "--data-dir=" + filepath.Join(c.dir, "thanos"), "--objstore.config-file=" + store, "--http-address=" + c.address(4),
				"--grpc-address=" + c.address(5), "--sync-block-duration=1h", "--log.level=warn",
			},
			{c.thanos, "query", "--http-address=" + c.address(3), "--grpc-address=" + c.address(6), "--endpoint=" + c.address(5), "--log.level=warn"},
		},
	}
}

// process is a program that runs.
type process struct {
	cmd *exec.Cmd
	log *os.File
}

func start(dir, program string, args ...string) (*process, error) {
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", program, err), log.Close())
	}
	return &process{cmd: cmd, log: log}, nil
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait() // how it ends does not matter
	p.log.Close()
}

// run starts the peer, calls f when it is ready, and stops it.
func (p *peer) run(ctx context.Context, dir string, proxy *proxy, f func() error) error {
	for _, c := range p.commands {
		proc, err := start(dir, c[0], c[1:]...)
		if err != nil {
			return err
		}
		defer proc.stop()
	}
	deadline := time.Now().Add(5 * time.Minute)
	for _, url := range p.ready {
		for !isReady(ctx, url) {
			if ctx.Err() != nil || time.Now().After(deadline) {
				return fmt.Errorf("%s is not ready; see %s: %w", p.name, filepath.Join(dir, "log"), ctx.Err())
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	time.Sleep(p.settle)
	// What a process makes of itself when it is first asked is not what is measured.
	if !isReady(ctx, p.url+"/api/v1/query?query=1") {
		return fmt.Errorf("%s does not answer", p.name)
	}
	proxy.quiet(3 * time.Second)
	return f()
}

func isReady(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// asked is what a query cost.
type asked struct {
	counts
	took time.Duration
}

// ask sends a query and returns its answer's data.
func (p *peer) ask(ctx context.Context, proxy *proxy, q query) (a asked, data string, err error) {
	v := url.Values{}
	v.Set("query", q.expr)
	v.Set("start", strconv.FormatInt(q.end.Add(-q.length).Unix(), 10))
	v.Set("end", strconv.FormatInt(q.end.Unix()-1, 10))
	v.Set("step", strconv.Itoa(int(q.length.Seconds()/200)))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/api/v1/query_range?"+v.Encode(), nil)
	if err != nil {
		return a, "", err
	}
	proxy.reset()
	began := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, "", err
	}
	a = asked{counts: proxy.reset(), took: time.Since(began)}
	var answer struct {
		Status string
		Error  string
		Data   struct {
			Result []struct {
				Metric map[string]string
				Values [][2]any
			}
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Status != "success" || len(answer.Data.Result) == 0 {
		return a, "", fmt.Errorf("%s answers %s: %.300s", p.name, resp.Status, body)
	}
	var b strings.Builder
	for _, s := range answer.Data.Result {
		fmt.Fprintln(&b, s.Metric)
		for _, v := range s.Values {
			text, _ := v[1].(string)
			f, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return a, "", err
			}
			fmt.Fprintf(&b, "%v %.9g\n", v[0], f) // sums may be added up in another order
		}
	}
	return a, b.String(), nil
}

// measure prints a table.
func measure(ctx context.Context, dir string, proxy *proxy, peers []peer, queries []query) error {
	fmt.Println("| | server | requests | kB | waiting, ms | answered after, ms | requests, warm |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |")
	for _, p := range peers {
		proxy.reset()
		if err := p.run(ctx, dir, proxy, func() error { return nil }); err != nil {
			return err
		}
		c := proxy.reset()
		fmt.Printf("| first start | %s | %d | %d | | | |\n", p.name, c.requests, c.bytes/1000)
	}
	for _, q := range queries {
		answers := map[string]string{}
		var wrong error
		for _, p := range peers {
			err := p.run(ctx, dir, proxy, func() error {
				cold, answer, err := p.ask(ctx, proxy, q)
				if err != nil {
					return err
				}
				warm, _, err := p.ask(ctx, proxy, q)
				if err != nil {
					return err
				}
				answers[p.name] = answer
				fmt.Printf("| %s | %s | %d | %d | %d | %d | %d |\n", q.name, p.name, cold.requests, cold.bytes/1000, cold.waiting.Milliseconds(),
					cold.took.Milliseconds(), warm.requests)
				return nil
			})
			if err != nil {
				return fmt.Errorf("%s: %w", q.name, err)
			}
		}
		for _, p := range peers {
			if answers[p.name] != answers[peers[0].name] {
				wrong = fmt.Errorf("%s: the answers of %s and %s differ", q.name, peers[0].name, p.name)
			}
		}
		if wrong != nil {
			for name, answer := range answers {
				wrong = errors.Join(wrong, os.WriteFile(filepath.Join(dir, "answer."+name), []byte(answer), 0o644))
			}
			return wrong
		}
	}
	return nil
}
