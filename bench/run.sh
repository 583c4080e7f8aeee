#!/usr/bin/env bash
# Loads Millrace and, if PROMETHEUS names one, a Prometheus, one after the other, and prints what it cost the server.
#
# Settings by environment: TSLOAD=tsload PROMETHEUS= SERIES=100000 SCRAPES=60 PROTO=1 FRESH=1000
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
: "${TSLOAD:=tsload}" "${PROMETHEUS:=}" "${SERIES:=100000}" "${SCRAPES:=60}" "${PROTO:=1}" "${FRESH:=1000}"
work=$(mktemp -d)
trap 'kill -9 $pid 2>/dev/null || true; rm -rf "$work"' EXIT
end=$(($(date +%s) / 60 * 60)) start=$(($(date +%s) / 60 * 60 - (SCRAPES - 1) * 15))

cpu() { awk -v hz="$(getconf CLK_TCK)" '{print ($14 + $15) / hz}' "/proc/$pid/stat"; }
rss() { awk '$1 == "VmRSS:" {print $2 * 1024}' "/proc/$pid/status"; }
launch() {
  "$@" >>"$work/log" 2>&1 &
  pid=$!
}
# The number of series at the end of the load, once the server answers.
full() {
  for _ in $(seq 1200); do
    n=$(curl -sf --max-time 60 "$base/api/v1/query?query=count(%7B__name__%21%3D%22%22%7D)&time=$end" | sed -n 's/.*,"\([0-9]*\)"\].*/\1/p') || n=
    [ "${n:-0}" -ge "$SERIES" ] && return
    sleep 0.05
  done
  echo "$name: the series are not there" >&2
  exit 1
}

measure() {
  name=$1 base=$2
  shift 2
  launch "$@"
  until curl -sf -o /dev/null "$base/-/ready"; do sleep 0.1; done
  before=$(cpu)
  n=$("$TSLOAD" write --url "$base/api/v1/write" --shape node --series "$SERIES" --scrapes "$SCRAPES" --start "$start" --proto "$PROTO" | sed -n 's/.*samples=\([0-9]*\).*/\1/p')
  echo "$name samples=$n samples_per_cpu_s=$(awk -v n="$n" -v a="$before" -v b="$(cpu)" 'BEGIN {printf "%d", n / (b - a)}') rss_per_series=$(($(rss) / SERIES))"
  "$TSLOAD" freshness --write-url "$base/api/v1/write" --url "$base" --runs "$FRESH" 2>&1 | sed "s/^/$name /"
  full
  t=$(date +%s.%N)
  full
  warm=$(awk -v a="$t" -v b="$(date +%s.%N)" 'BEGIN {print b - a}')
  kill -9 "$pid" && wait "$pid" 2>/dev/null || true
  t=$(date +%s.%N)
  launch "$@"
  full
  echo "$name restart_s=$(awk -v a="$t" -v b="$(date +%s.%N)" -v w="$warm" 'BEGIN {printf "%.2f", b - a - w}') warm_query_s=$warm"
  if [ "$name" = millrace ]; then
    curl -sf -o /dev/null -X POST "$base/api/v1/batch/run"
    curl -s "$base/api/v1/layers" | sed 's/},{/}\n{/g' | awk -F'[:,]' '/"level":[1-9]/ {for (i = 1; i < NF; i++) {if ($i ~ /"samples"/) s += $(i + 1); if ($i ~ /"bytes"/) b += $(i + 1)}} END {printf "millrace bucket_bytes_per_sample=%.2f\n", b / s}'
  fi
  kill "$pid" && wait "$pid" 2>/dev/null || true
}

measure millrace http://127.0.0.1:9491 "$root/bin/millrace" serve --storage.path="$work/millrace" --web.listen-address=127.0.0.1:9491 --self.scrape-interval=0s
if [ -n "$PROMETHEUS" ]; then
  printf 'storage: {tsdb: {out_of_order_time_window: 2h}}\n' >"$work/prometheus.yml"
  measure prometheus http://127.0.0.1:9490 "$PROMETHEUS" --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/prometheus" \
    --web.listen-address=127.0.0.1:9490 --web.enable-remote-write-receiver
fi
