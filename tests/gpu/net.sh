#!/bin/bash
# A fleet on the GPU serves pages to clients on this host: needs a GPU, python3, a release binary and
# beside it the load generator (cargo build --release --bin pxvm --bin load), no Rust.
#
#   tests/gpu/net.sh PXVM IMAGE_DIR [COUNT [SECONDS]]
#
# IMAGE_DIR holds Image and rootfs.cramfs (buildroot/build makes them). Boots COUNT machines
# (default 256) with `--publish`, then measures: all pages asked for at once, one request at a
# time, and as many as come through for SECONDS (default 10) with 2, 4 and 8 connections a machine.
# Prints its lines, what the program counted, and `N passed, N failed`: passed means that
# every request was answered with the right machine's page; times are for reading.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
pxvm=$(realpath "$1") images=$(realpath "$2") count=${3:-256} seconds=${4:-10}
backend=${PXVM_BACKEND:-cuda} # for a look at this script without a GPU
load=$(dirname "$pxvm")/load
[ -x "$load" ] || {
    echo "error: no $load; cargo build --release -p pxvm-tests --bin load makes it" >&2
    exit 2
}
port=20000
work=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2> /dev/null; rm -rf "$work"' EXIT
export XDG_STATE_HOME=$work/state
passed=0 failed=0

. "$(dirname "$(realpath "$0")")/../needs.sh"
if [ "$backend" = cuda ] && ! "$pxvm" doctor | grep -q '^ok  CUDA'; then
    skip_script gpu "$("$pxvm" doctor | sed -n '/CUDA/{N;s/\n */: /;p}')"
fi
ulimit -n "$(ulimit -Hn)"
: > "$work/err"
PXVM_LOG=${PXVM_LOG:-pxvm=info} "$pxvm" boot --backend "$backend" --count "$count" --until never --json \
    --publish $port:80 --publish-http $((port + count)) \
    --kernel "$images/Image" --rom "$images/rootfs.cramfs" \
    > "$work/out" 2> "$work/err" < /dev/null &
pid=$!
begun=$SECONDS
until grep -q " $count ready" <(tr '\r' '\n' < "$work/err"); do
    if ! kill -0 "$pid" 2> /dev/null || [ $((SECONDS - begun)) -gt 120 ]; then
        echo "error: the machines did not get ready" >&2
        tail -n 5 "$work/err" >&2
        exit 1
    fi
    sleep 0.2
done
echo "ready: $count machines on $backend, $((SECONDS - begun)) s with the loading of the program"

measure() { # NAME MODE ARGS...
    local name=$1 rc=0
    shift
    "$load" "$1" $port "$count" "${@:2}" > "$work/line" 2>&1 || rc=1
    if [ $rc = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    printf '%-7s %-22s %s\n' "$([ $rc = 0 ] && echo ok || echo FAILED)" "$name" "$(tail -n 3 "$work/line")"
}
sleep 2
measure "all at once, first" all
measure "all at once" all
measure "all at once" all
measure "one at a time" single 500
workers=$(nproc)
[ "$workers" -le 8 ] || workers=8
for each in 2 4 8; do
    measure "$each connections each" many "$seconds" "$each" "$workers"
done
sleep 1
measure "one at a time, after" single 200

kill -INT "$pid"
wait "$pid"
pid=
python3 - "$work/out" << 'END' || failed=$((failed + 1))
import json, sys
r = json.load(open(sys.argv[1]))
n = r["network"]
packets = n["tx_frames"] + n["rx_frames"]
print(f"{n['tx_frames']} packets from guests, {n['rx_frames']} to them, dropped: {n['drops']}; "
      f"network thread: {n['cpu_seconds']:.2f} s, {n['cpu_seconds'] / max(packets, 1) * 1e6:.1f} us a packet")
print(f"{r['ready']} ready, {r['faulted']} faulted, {r['private_frames']} private frames")
sys.exit(r["faulted"] != 0)
END
echo "$passed passed, $failed failed"
[ $failed = 0 ]
