#!/bin/bash
# The control API over a fleet on the GPU: needs a GPU, python3, curl, a release binary and beside
# it the load generator (cargo build --release --bin pxvm --bin load), no Rust.
#
#   tests/gpu/api.sh PXVM IMAGE_DIR [COUNT [SECONDS]]
#
# IMAGE_DIR holds Image and rootfs.cramfs (buildroot/build makes them). Boots COUNT machines
# (default 256) and room for four more with `--listen`; prints the fleet's summary, fetches every
# machine's page through the proxy, commands machines, and measures the speed of the busy fleet, SECONDS
# (default 10) at a time, without and with somebody who watches as the dashboard does. Prints
# `N passed, N failed`; speeds are for reading.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
pxvm=$(realpath "$1") images=$(realpath "$2") count=${3:-256} seconds=${4:-10}
backend=${PXVM_BACKEND:-cuda} # for a look at this script without a GPU
load=$(dirname "$pxvm")/load
[ -x "$load" ] || {
    echo "error: no $load; cargo build --release -p pxvm-tests --bin load makes it" >&2
    exit 2
}
work=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2> /dev/null; rm -rf "$work"' EXIT
export XDG_STATE_HOME=$work/state XDG_RUNTIME_DIR=$work
passed=0 failed=0

. "$(dirname "$(realpath "$0")")/../needs.sh"
if [ "$backend" = cuda ] && ! "$pxvm" doctor | grep -q '^ok  CUDA'; then
    skip_script gpu "$("$pxvm" doctor | sed -n '/CUDA/{N;s/\n */: /;p}')"
fi
"$pxvm" boot --backend "$backend" --count "$count" --capacity $((count + 4)) --listen 127.0.0.1:0 \
    --name gpu --json --kernel "$images/Image" --rom "$images/rootfs.cramfs" \
    > "$work/out" 2> "$work/err" < /dev/null &
pid=$!
begun=$SECONDS url=
until [ -n "$url" ] && curl -sf "${url}api/v1/fleet" | grep -q "\"ready\":$count,"; do
    if ! kill -0 "$pid" 2> /dev/null || [ $((SECONDS - begun)) -gt 120 ]; then
        echo "error: the machines did not get ready" >&2
        tail -n 5 "$work/err" >&2
        exit 1
    fi
    sleep 0.2
    url=$(sed -n 's/^dashboard: //p' "$work/err")
done
echo "ready: $count machines on $backend, $((SECONDS - begun)) s with the loading of the program"
curl -s "${url}api/v1/fleet" | sed 's/"history":.*/.../'
echo

check() { # NAME COMMAND...
    local name=$1 rc=0
    shift
    "$@" > "$work/said" 2>&1 || rc=1
    if [ $rc = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    printf '%-7s %-32s %s\n' "$([ $rc = 0 ] && echo ok || echo FAILED)" "$name" "$(tail -n 1 "$work/said" | cut -c1-200)"
}
pages() { # all at once, but no more than the API lets ask VMs at a time
    local port=${url%/}
    "$load" all "${port##*:}" $((count < 256 ? count : 256)) --api
}
again() { # what the host's TCP has sent again, and whom it has let wait, since it was started
    awk '/^TcpExt:/ && !n { n = split($0, name); next }
        /^TcpExt:/ { for (i = 2; i <= n; i++) if (name[i] ~ /^(ListenOverflows|TCPTimeouts)$/) printf " %s %s", name[i], $i }' \
        /proc/net/netstat
}
says() { # PATTERN COMMAND...
    "${@:2}" > "$work/text"
    tail -n 1 "$work/text"
    grep -q "$1" "$work/text"
}
still() { # instret does not change while paused
    local a b
    a=$(curl -s "${url}api/v1/vms/1") b=$(sleep 0.5; curl -s "${url}api/v1/vms/1")
    [ "$(grep -o '"instret":[0-9]*' <<< "$a")" = "$(grep -o '"instret":[0-9]*' <<< "$b")" ] && echo "$b" | cut -c1-60
}
frames() { curl -s "${url}api/v1/fleet" | grep -o '"private_frames":[0-9]*' | cut -d: -f2; }
fewer() { local n; n=$(frames); "$pxvm" stop 2 && [ "$(frames)" -lt "$n" ] && echo "$n frames, then $(frames)"; }
ready() { # ID
    local i
    for i in $(seq 200); do curl -s "${url}api/v1/vms/$1" | grep -q '"state":"ready"' && echo "vm$1 is ready" && return; sleep 0.1; done
    return 1
}
echo "host:$(again)"
check "all pages" pages
check "all pages again" pages
echo "host:$(again)"
check "exec" says riscv32 "$pxvm" exec 3 -- uname -a
check "pause" "$pxvm" pause 1
check "it stands still" still
check "registers" says '"private_frames":[1-9]' curl -s "${url}api/v1/vms/1/snapshot"
check "resume" "$pxvm" resume 1
check "exec again" says riscv32 "$pxvm" exec 1 -- uname -a
check "stop gives frames back" fewer
check "reset starts it again" "$pxvm" reset 2
check "ready again" ready 2
check "add" "$pxvm" add 4
check "an added one is ready" ready $((count + 3))
check "one too many" says capacity bash -c "! '$pxvm' add 1 2>&1"
check "a line for all" says "\"sent\":$((count + 4))" curl -s -H 'content-type: application/json' \
    -d '{"line":"while :; do :; done"}' "${url}api/v1/input"
check "metrics" says pxvm_vm_instructions curl -s "${url}metrics?vms=0-3"

speed() { # NAME
    python3 - "$url" "$seconds" "$1" << 'END'
import json, sys, time, urllib.request
url, seconds, name = sys.argv[1], float(sys.argv[2]), sys.argv[3]
def look():
    with urllib.request.urlopen(f"{url}api/v1/fleet") as answer:
        return time.time(), json.load(answer)["instructions"]
(t0, n0), _ = look(), time.sleep(seconds)
t1, n1 = look()
print(f"{name}: {(n1 - n0) / (t1 - t0) / 1e9:.3f} GIPS")
END
}
sleep 2
for round in 1 2 3; do
    speed "nobody watches"
    curl -sN "${url}api/v1/events" > "$work/events" &
    watcher=$!
    speed "somebody watches"
    kill $watcher
    wait $watcher 2> /dev/null
    echo "    $(stat -c %s "$work/events") bytes of events in $seconds s"
done

kill -INT "$pid"
wait "$pid"
pid=
echo "$passed passed, $failed failed"
[ $failed = 0 ]
