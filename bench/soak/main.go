// Command soak writes to a server as a fleet whose series come and go, and watches what memory the server takes.
//
// Every --interval each of --series series gets a sample; of these, --churn of all are replaced by new ones within --churn-interval, evenly. What the
// server says of itself is written to standard output as CSV, and drawn into --graph.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
)

func main() {
	var s soak
	flag.StringVar(&s.url, "url", "http://127.0.0.1:9393", "server")
	flag.IntVar(&s.series, "series", 20_000, "series that are alive at a time")
	flag.DurationVar(&s.interval, "interval", 15*time.Second, "time between two samples of a series")
	flag.Float64Var(&s.churn, "churn", 0.5, "share of the series that is replaced within --churn-interval")
	flag.DurationVar(&s.churnInterval, "churn-interval", time.Hour, "see --churn")
	flag.DurationVar(&s.watch, "watch", 5*time.Second, "time between two looks at the server's metrics")
	duration := flag.Duration("duration", time.Hour, "when to stop")
	graph := flag.String("graph", "", "SVG file to draw")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *duration)
	defer cancel()
	err := s.run(ctx)
	if *graph != "" {
		err = errors.Join(err, os.WriteFile(*graph, s.draw(), 0o644))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type soak struct {
	url                            string
	series                         int
	churn                          float64
	interval, churnInterval, watch time.Duration

	began  time.Time
	born   float64 // series that were replaced so far
	points []point
}

// point is what the server said at a time.
type point struct {
	at                              time.Duration
	resident, heap, samples, series float64 // the last two since its start
}

func (s *soak) run(ctx context.Context) error {
	s.began = time.Now()
	write, watch := time.NewTicker(s.interval), time.NewTicker(s.watch)
	defer write.Stop()
	defer watch.Stop()
	fmt.Println("seconds,resident_bytes,heap_bytes,samples_total,series_total")
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-write.C:
			if err := s.scrape(); err != nil && ctx.Err() == nil {
				return err
			}
		case <-watch.C:
			p, err := s.look()
			if err != nil {
				return err
			}
			s.points = append(s.points, p)
			fmt.Printf("%.0f,%.0f,%.0f,%.0f,%.0f\n", p.at.Seconds(), p.resident, p.heap, p.samples, p.series)
		}
	}
}

// client gives up on a server that hangs.
var client = &http.Client{Timeout: 30 * time.Second}

// perRequest is how many series a request has.
const perRequest = 2000

// scrape writes a sample of each series that is alive, numbers s.born to s.born + s.series.
func (s *soak) scrape() error {
	s.born += s.churn * float64(s.series) * float64(s.interval) / float64(s.churnInterval)
	now := time.Now().UnixMilli()
	first := int(s.born)
	for from := first; from < first+s.series; from += perRequest {
		var req prompb.WriteRequest
		for i := from; i < min(from+perRequest, first+s.series); i++ {
			req.Timeseries = append(req.Timeseries, prompb.TimeSeries{
				Labels: []prompb.Label{
					{Name: "__name__", Value: fmt.Sprintf("soak_metric_%d_total", i%100)},
					{Name: "instance", Value: fmt.Sprintf("10.0.%d.%d:9100", i/100/250%250, i/100%250)},
					{Name: "job", Value: "soak"},
					{Name: "pod", Value: fmt.Sprintf("deployment-%d-%08x", i/1000, uint32(i)*2654435761)},
				},
				Samples: []prompb.Sample{{Timestamp: now, Value: float64(now/1000) * float64(i%7)}},
			})
		}
		if err := s.post(&req); err != nil {
			return err
		}
	}
	return nil
}

func (s *soak) post(req *prompb.WriteRequest) error {
	raw, err := req.Marshal()
	if err != nil {
		return err
	}
	resp, err := client.Post(s.url+"/api/v1/write", "application/x-protobuf", bytes.NewReader(snappy.Encode(nil, raw)))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("write: status %d: %s", resp.StatusCode, text)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// look reads the server's own metrics.
func (s *soak) look() (point, error) {
	p := point{at: time.Since(s.began)}
	resp, err := client.Get(s.url + "/metrics")
	if err != nil {
		return p, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return p, fmt.Errorf("metrics: status %d", resp.StatusCode)
	}
	into := map[string]*float64{
		"process_resident_memory_bytes": &p.resident, "go_memstats_heap_inuse_bytes": &p.heap,
		"millrace_speed_samples_total": &p.samples, "millrace_speed_series_created_total": &p.series,
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if v := into[name]; v != nil {
			if *v, err = strconv.ParseFloat(value, 64); err != nil {
				return p, fmt.Errorf("metric %s: %w", name, err)
			}
		}
	}
	return p, lines.Err()
}

// draw returns the memory over time as SVG.
func (s *soak) draw() []byte {
	const width, height, left, bottom = 900, 320, 60, 30
	end, top := s.interval.Seconds(), 1.0
	for _, p := range s.points {
		end, top = max(end, p.at.Seconds()), max(top, p.resident/1e6*1.1)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11"><rect width="100%%" height="100%%" fill="white"/>`+"\n",
		width, height)
	x := func(t float64) float64 { return left + t/end*(width-left-20) }
	y := func(mb float64) float64 { return height - bottom - mb/top*(height-bottom-20) }
	for k := range 6 {
		mb, t := top*float64(k)/5, end*float64(k)/5
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.0f MB</text><text x="%.1f" y="%d" text-anchor="middle">%.0f min</text>`+"\n",
			left, y(mb), width-20, left-5, y(mb)+4, mb, x(t), height-10, t/60)
	}
	for _, line := range []struct {
		name, color string
		of          func(point) float64
	}{
		{"resident memory", "#1f77b4", func(p point) float64 { return p.resident }},
		{"heap in use", "#ff7f0e", func(p point) float64 { return p.heap }},
	} {
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" points="`, line.color)
		for _, p := range s.points {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(p.at.Seconds()), y(line.of(p)/1e6))
		}
		fmt.Fprintf(&b, `"><title>%s</title></polyline>`+"\n", line.name)
	}
	fmt.Fprintf(&b, `<text x="%d" y="14"><tspan fill="#1f77b4">resident memory</tspan>, <tspan fill="#ff7f0e">heap in use</tspan>; %d series at a time, %.0f%% replaced every %s</text></svg>`+"\n",
		left, s.series, 100*s.churn, s.churnInterval)
	return b.Bytes()
}
