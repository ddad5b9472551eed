#!/bin/bash
# The control API under schemathesis: requests made from its own description, right ones and wrong
# ones, each response compared with the description.
#
#   tests/api/fuzz.sh PXVM [SECONDS]
#
# Boots four machines on the CPU from the image in the cache and sends requests for SECONDS
# (default 60). Says so and ends where schemathesis is missing (pip install schemathesis, or
# SCHEMATHESIS=PATH). It fails when a response is wrong, or when the fleet has suffered.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
pxvm=$(realpath "$1") seconds=${2:-60} schemathesis=${SCHEMATHESIS:-schemathesis}
. "$(dirname "$(realpath "$0")")/../needs.sh"
command -v "$schemathesis" > /dev/null || skip_script schemathesis "pip install schemathesis"
work=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2> /dev/null || true; rm -rf "$work"' EXIT
export XDG_STATE_HOME=$work/state XDG_RUNTIME_DIR=$work

"$pxvm" boot --backend cpu --count 4 --capacity 8 --listen 127.0.0.1:0 --json \
    > "$work/out" 2> "$work/err" < /dev/null &
pid=$!
url=
for _ in $(seq 150); do
    kill -0 "$pid" 2> /dev/null || { cat "$work/err" >&2; exit 1; }
    url=$(sed -n 's/^dashboard: //p' "$work/err")
    [ -n "$url" ] && curl -sf "${url}healthz" > /dev/null && break
    sleep 0.2
done

cd "$work"
# Left out: streams, which have no end, and pages of guests, whose responses are their own. A
# refusal because of the VM's state is a valid response. On loopback no token is required.
"$schemathesis" run "${url}openapi.json" --max-time "$seconds" --request-timeout 20 \
    --checks all --exclude-checks positive_data_acceptance,ignored_auth \
    --exclude-path-regex '/events$|/console/(ws|stream)$|^/(t|vms)/.*/$|\{path\}$' \
    --suppress-health-check all --no-color

curl -sf "${url}healthz" > /dev/null || { echo "the fleet has gone" >&2; exit 1; }
"$pxvm" reset all > /dev/null
for _ in $(seq 150); do
    ready=$("$pxvm" ps --state ready | tail -n +3 | wc -l)
    [ "$ready" -ge 4 ] && break
    sleep 0.2
done
"$pxvm" exec 0 -- uname -a
echo "$ready machines are ready again"
