#!/bin/bash
# Connections that come and go for a long time: polite clients, rude ones and silent ones, and at
# the end nothing is left over.
#
#   tests/net/soak.sh PXVM IMAGE_DIR SECONDS [COUNT [BACKEND]]
#
# IMAGE_DIR holds Image and initramfs.cpio (buildroot/build makes them). Boots COUNT machines
# (default 8) on BACKEND (default cpu) and prints a line every ten seconds. It fails when a page
# does not come, or when files or memory of the process have grown at the end.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
pxvm=$(realpath "$1") images=$(realpath "$2") seconds=$3 count=${4:-8} backend=${5:-cpu}
here=$(dirname "$(realpath "$0")")
port=26000
work=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2> /dev/null || true; rm -rf "$work"' EXIT
export XDG_STATE_HOME=$work/state

"$pxvm" boot --backend "$backend" --count "$count" --until never --json --publish $port:80 \
    --publish-http $((port + count)) \
    --kernel "$images/Image" --initrd "$images/initramfs.cpio" \
    > "$work/out" 2> "$work/err" < /dev/null &
pid=$!
until grep -q " $count ready" <(tr '\r' '\n' < "$work/err"); do
    if ! kill -0 "$pid" 2> /dev/null || [ $SECONDS -gt 60 ]; then
        cat "$work/err" >&2
        exit 1
    fi
    sleep 0.2
done
sleep 1
python3 "$here/churn.py" "$port" "$count" "$seconds" "$pid"
kill -INT "$pid"
wait "$pid" || true
pid=
python3 - "$work/out" << 'END'
import json, sys
n = json.load(open(sys.argv[1]))["network"]
packets = n["tx_frames"] + n["rx_frames"]
print(f"{packets} packets, {n['cpu_seconds'] / max(packets, 1) * 1e6:.1f} us of processor time each, dropped: {n['drops']}")
END
