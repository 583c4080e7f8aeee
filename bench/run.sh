#!/usr/bin/env bash
# Loads Millrace, and those of its peers that are named, one after the other, and prints what it cost each as a Markdown table.
#
#   TSLOAD=tsload PROMETHEUS=path VICTORIAMETRICS=path bench/run.sh [CASE…]
#
# A case is SHAPE,SERIES,SCRAPES,PROTOCOL,LATE; without any, those of README.md. FRESH=1000 is the number of writes that are waited for.
# With QUERIES=DIR, which holds queries-SHAPE.txt, the queries in there are timed instead, after the load, and a table says how long they take.
# With SETTLE=1 the table says what the work behind a load costs, until the batch jobs have run (peers: 15 s), and what is left on the disk.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
: "${TSLOAD:=tsload}" "${PROMETHEUS:=}" "${VICTORIAMETRICS:=}" "${FRESH:=1000}" "${SETTLE:=}" "${QUERIES:=}"
[ $# -gt 0 ] || set -- node,100000,60,1,0 iot,200000,30,1,0 node,100000,60,2,0 node,1000000,12,1,0 node,100000,60,1,0.2 iot,200000,30,1,0.2
work=$(mktemp -d)
pid=
trap 'kill -9 $pid 2>/dev/null || true; rm -rf "$work"' EXIT
printf 'storage: {tsdb: {out_of_order_time_window: 2h}}\n' >"$work/prometheus.yml"

cpu() { awk -v hz="$(getconf CLK_TCK)" '{print ($14 + $15) / hz}' "/proc/$pid/stat"; }
rss() { awk '$1 == "VmRSS:" {print $2 * 1024}' "/proc/$pid/status"; }
calc() { awk "BEGIN {printf \"$1\", $2}"; }
now() { date +%s.%N; }

# launch starts a server of the given name on an address of its own, with its data below $work.
launch() {
  local data=$work/$1
  case $1 in
  millrace) set -- "$root/bin/millrace" serve --storage.path="$data" --web.listen-address=127.0.0.1:9491 --self.scrape-interval=0s ;;
  prometheus) set -- "$PROMETHEUS" --config.file="$work/prometheus.yml" --storage.tsdb.path="$data" --web.listen-address=127.0.0.1:9491 --web.enable-remote-write-receiver ;;
  victoriametrics) set -- "$VICTORIAMETRICS" -storageDataPath="$data" -httpListenAddr=127.0.0.1:9491 -search.latencyOffset=0s ;;
  esac
  "$@" >>"$work/log" 2>&1 &
  pid=$!
}
base=http://127.0.0.1:9491

# up waits until a server that was just launched answers.
up() {
  until answers; do
    kill -0 "$pid" || { tail -5 "$work/log" >&2; exit 1; }
    sleep 0.05
  done
}

answers() { curl -sf -o /dev/null --max-time 20 "$base/api/v1/query?query=1"; }

# full waits until every series of the last scrape is there.
full() {
  for _ in $(seq 2400); do
    local n
    n=$(curl -sf --max-time 120 "$base/api/v1/query?query=count(%7B__name__%21%3D%22%22%7D)&time=$end" | sed -n 's/.*,"\([0-9]*\)"\].*/\1/p') || n=
    [ "${n:-0}" -ge "$series" ] && return
    sleep 0.02
  done
  echo "the series are not there" >&2
  tail -5 "$work/log" >&2
  exit 1
}

# settle waits until a server has done its work behind the load.
settle() {
  if [ "$1" = millrace ]; then
    curl -sf -o /dev/null -X POST --max-time 600 "$base/api/v1/batch/run"
  else
    sleep 15
  fi
}

# measure loads one server and prints its row.
measure() {
  local name=$1 before loaded samples seen t warm restart
  rm -rf "${work:?}/$name"
  launch "$name"
  up
  before=$(cpu)
  samples=$("$TSLOAD" write --url "$base/api/v1/write" --shape "$shape" --series "$series" --scrapes "$scrapes" --start "$start" --proto "$proto" --late "$late" | sed -n 's/.*samples=\([0-9]*\).*/\1/p')
  loaded=$(calc %d "$samples / ($(cpu) - $before)")
  local memory
  memory=$(calc %.2f "$(rss) / $series / 1000")
  local row
  row="| $shape $series × $scrapes, v$proto$([ "$late" = 0 ] || echo ", late $late") | $name | $loaded | $memory"
  if [ -n "$SETTLE" ]; then
    settle "$name"
    echo "$row | $(calc %d "$samples / ($(cpu) - $before)") | $(calc %.2f "$(du -sb "$work/$name" | cut -f1) / $samples") |"
    kill "$pid" && wait "$pid" 2>/dev/null || true
    return
  fi
  full
  if [ -n "$QUERIES" ]; then
    [ "$name" != victoriametrics ] || sleep 10 # it shows the last samples late
    "$TSLOAD" query --url "$base" --file "$QUERIES/queries-$shape.txt" --end "$end" --runs 9 >"$work/queries-$name"
    kill "$pid" && wait "$pid" 2>/dev/null || true
    return
  fi
  seen=-
  if [ "$name" != victoriametrics ]; then
    seen=$("$TSLOAD" freshness --write-url "$base/api/v1/write" --url "$base" --runs "$FRESH" 2>&1 | sed -n 's/.*p50_ms=\([0-9.]*\) p99_ms=\([0-9.]*\).*/\1 \/ \2/p')
  fi
  t=$(now)
  full
  warm=$(calc %f "$(now) - $t")
  [ "$name" != victoriametrics ] || sleep 10 # it has no log: what came in its last seconds would be gone
  { kill -9 "$pid"; wait "$pid"; } 2>/dev/null || true
  t=$(now)
  launch "$name"
  full
  restart=$(calc %.2f "$(now) - $t - $warm")
  echo "$row | $seen | $restart | $(calc %.0f "1000 * $warm") |"
  kill "$pid" && wait "$pid" 2>/dev/null || true
}

# compare prints what the queries of a load took on each server, and how that relates to the first peer that was measured.
compare() {
  printf '\n%s %s × %s, v%s, p50 in ms:\n\n| query | ' "$shape" "$series" "$scrapes" "$proto"
  printf '%s | ' "$@"
  printf 'ratio |\n| --- |%s ---: |\n' "$(printf ' ---: |%.0s' "$@")"
  local files=()
  for name in "$@"; do files+=("$work/queries-$name"); done
  awk -F'\t' -v servers=$# '
    FNR == 1 { file++; next }
    { ms[file, $6] = $1; sum[file, $6] = $3 "/" $4 "/" $5; if (file == 1) order[++n] = $6 }
    END {
      for (i = 1; i <= n; i++) {
        q = order[i]; row = q; gsub(/\|/, "\\|", row); row = "| `" row "` |"
        for (f = 1; f <= servers; f++) row = row " " ms[f, q] (sum[f, q] == sum[1, q] ? "" : " (differs)") " |"
        if (servers > 1 && ms[2, q] > 0) { r = ms[1, q] / ms[2, q]; logs += log(r); m++; worst = r > worst ? r : worst; row = row sprintf(" %.2f |", r) } else row = row " - |"
        print row
      }
      if (m) printf "\nGeometric mean of the ratios to the second column %.2f, the worst %.2f.\n", exp(logs / m), worst
    }' "${files[@]}"
}

if [ -n "$QUERIES" ]; then
  :
elif [ -n "$SETTLE" ]; then
  echo "| load | server | samples per CPU second | RSS per series, kB | samples per CPU second, settled | disk, bytes per sample |"
  echo "| --- | --- | ---: | ---: | ---: | ---: |"
else
  echo "| load | server | samples per CPU second | RSS per series, kB | write to visible p50 / p99, ms | kill -9 to full answer, s | that query warm, ms |"
  echo "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
fi
for case in "$@"; do
  IFS=, read -r shape series scrapes proto late <<<"$case"
  end=$(($(date +%s) / 60 * 60)) start=$(($(date +%s) / 60 * 60 - (scrapes - 1) * 15))
  servers=(millrace)
  [ -z "$PROMETHEUS" ] || servers+=(prometheus)
  [ -z "$VICTORIAMETRICS" ] || [ "$proto" = 2 ] || servers+=(victoriametrics)
  for name in "${servers[@]}"; do measure "$name"; done
  [ -z "$QUERIES" ] || compare "${servers[@]}"
done
