#!/bin/bash
# Serving pages on the CPU: one machine of pxvm and one of QEMU with user networking, the same
# guest, one after the other, several times in turns so that both see the same host.
#
#   tests/net/compare.sh PXVM IMAGE_DIR [ROUNDS]
#
# IMAGE_DIR holds Image and initramfs.cpio, PXVM_FIRMWARE names a folder with fw_dynamic.bin for QEMU
# (default: the one in the cache; buildroot/build makes both). Needs the load generator beside PXVM:
# cargo build --release -p pxvm-tests --bin load. Prints its results, then the medians side by side.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
pxvm=$(realpath "$1") images=$(realpath "$2") rounds=${3:-3}
load=$(dirname "$pxvm")/load
[ -x "$load" ] || {
    echo "error: no $load; cargo build --release -p pxvm-tests --bin load makes it" >&2
    exit 2
}
firmware=${PXVM_FIRMWARE:-${XDG_CACHE_HOME:-$HOME/.cache}/pxvm/firmware/default}
port=24080
work=$(mktemp -d)
pid=
stop() { # the machine that runs
    [ -n "$pid" ] || return 0
    kill "$pid" 2> /dev/null || true
    wait "$pid" 2> /dev/null || true
    pid=
}
trap 'stop; rm -rf "$work"' EXIT
export XDG_STATE_HOME=$work/state

. "$(dirname "$(realpath "$0")")/../needs.sh"
command -v qemu-system-riscv32 > /dev/null ||
    skip_script qemu-system-riscv32 "on Debian 12 tests/install.sh installs it"
bios=()
[ ! -f "$firmware/fw_dynamic.bin" ] || bios=(-bios "$firmware/fw_dynamic.bin")

boot_pxvm() {
    "$pxvm" boot --backend cpu --count 1 --json --until never --publish $port:80 \
        --kernel "$images/Image" --initrd "$images/initramfs.cpio" \
        > "$work/out" 2> "$work/err" < /dev/null &
    pid=$!
}
boot_qemu() {
    qemu-system-riscv32 -M virt -cpu rv32,c=off,f=off,d=off,zfa=off,h=off -m 32M -nographic \
        -no-user-config "${bios[@]}" -kernel "$images/Image" -initrd "$images/initramfs.cpio" \
        -append "console=ttyS0 quiet retain_initrd ip=10.0.2.15::10.0.2.2:255.255.255.0:vm0:eth0:off pxvm.host=vm0" \
        -netdev "user,id=n0,hostfwd=tcp:127.0.0.1:$port-:80" \
        -device virtio-net-device,netdev=n0 -device virtio-rng-device \
        > "$work/out" 2> "$work/err" < /dev/null &
    pid=$!
}
ready() {
    local i
    for i in $(seq 100); do
        kill -0 "$pid" 2> /dev/null || break
        if timeout 3 "$load" all $port 1 > /dev/null 2>&1; then return; fi
        sleep 0.2
    done
    echo "error: the machine does not serve:" >&2
    tail -n 5 "$work/err" "$work/out" >&2
    exit 1
}
measure() { # NAME
    ready
    "$load" single $port 1 50 > /dev/null # warm
    for what in "single $port 1 500" "many $port 1 5 8"; do
        # shellcheck disable=SC2086
        "$load" $what --json > "$work/json" || { echo "error: $(cat "$work/json")" >&2; exit 1; }
        printf '%s %s\n' "$1" "$(cat "$work/json")" >> "$work/all"
        # shellcheck disable=SC2086
        printf '%-5s %s\n' "$1" "$(python3 -c '
import json, sys
r = json.load(open(sys.argv[1]))
print("%-6s %5.0f/s  ms: median %.2f  p99 %.2f" % (r["mode"], r["per_second"], r["ms"]["median"], r["ms"]["p99"]))' "$work/json")"
    done
    stop
}
for _ in $(seq "$rounds"); do
    boot_pxvm; measure pxvm
    boot_qemu; measure qemu
done
python3 - "$work/all" << 'END'
import json, statistics, sys
found = {}
for line in open(sys.argv[1]):
    name, text = line.split(" ", 1)
    r = json.loads(text)
    value = r["ms"]["median"] if r["mode"] == "single" else r["per_second"]
    found.setdefault((r["mode"], name), []).append(value)
for mode, unit in ("single", "ms a request, one at a time"), ("many", "requests a second, 8 at a time"):
    a, b = (statistics.median(found[mode, n]) for n in ("pxvm", "qemu"))
    ratio = b / a if mode == "single" else a / b
    print(f"{unit}: pxvm {a:.2f}, qemu {b:.2f}: {ratio:.2f} times as fast")
END
