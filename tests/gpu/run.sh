#!/bin/bash
# What needs a GPU, from a release binary, on a machine without Rust.
#
#   tests/gpu/run.sh PXVM IMAGE_DIR RISCV_TESTS_DIR [COUNT...]
#
# IMAGE_DIR holds Image, rootfs.cramfs and initramfs.cpio (buildroot/build makes them),
# RISCV_TESTS_DIR the built isa tests. Fleets have 1, 256, 8448 and 32768 machines unless COUNT says
# otherwise.
# Prints a table and `N passed, N failed`; without a GPU it says so and ends with 0.
set -uo pipefail
[ $# -ge 3 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
pxvm=$(realpath "$1") images=$(realpath "$2") isa=$(realpath "$3")
shift 3
counts=("$@")
[ ${#counts[@]} -gt 0 ] || counts=(1 256 8448 32768)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export XDG_STATE_HOME=$work/state
passed=0 failed=0

if ! "$pxvm" doctor | grep -q '^ok  CUDA'; then
    echo "skipped: $("$pxvm" doctor | sed -n '/CUDA/{N;s/\n */: /;p}')"
    exit 0
fi
"$pxvm" doctor | grep CUDA

guest=(--kernel "$images/Image" --rom "$images/rootfs.cramfs")
verdict() { # NAME RESULT(0 is good) DETAIL
    if [ "$2" = 0 ]; then passed=$((passed + 1)) mark=ok; else failed=$((failed + 1)) mark=FAILED; fi
    printf '%-7s %-34s %s\n' "$mark" "$1" "$3"
    if [ "$2" != 0 ]; then sed 's/^/        /' "$work/err" | tail -n 5; fi
}
boot() { timeout 120 "$pxvm" boot "${guest[@]}" --timeout 100 --json "$@" > "$work/out" 2> "$work/err" < /dev/null; }

for count in "${counts[@]}"; do
    boot --backend cuda --clock instret --until ready --count "$count"
    rc=$?
    [ "$(head -c 4096 "$work/out" | sed -n 's/.*"ready":\([0-9]*\),"halted.*/\1/p')" = "$count" ] || rc=1
    verdict "boot --count $count" $rc "$(head -c 400 "$work/out" |
        sed -n 's/.*"wall_seconds":\([0-9.]*\).*"mips_per_vm":\([0-9.]*\),"total_gips":\([0-9.]*\).*"private_frames":\([0-9]*\).*/\1 s  \2 MIPS a VM  \3 GIPS  \4 frames/p')"
done

guest=(--kernel "$images/Image" --initrd "$images/initramfs.cpio")
boot --backend cuda --clock instret --until ready --count 256
verdict "boot --count 256, initramfs" $? "$(head -c 400 "$work/out" |
    sed -n 's/.*"wall_seconds":\([0-9.]*\).*"private_frames":\([0-9]*\).*/\1 s  \2 frames/p')"
guest=(--kernel "$images/Image" --rom "$images/rootfs.cramfs")

# The same machines, seed and clock on the CPU are ready after the same number of instructions.
ready() { grep -o '"ready_instret":[0-9]*' "$work/out"; }
boot --backend cuda --clock instret --until ready --count 16
ready > "$work/cuda"
boot --backend cpu --clock instret --until ready --count 16
ready > "$work/cpu"
[ -s "$work/cpu" ] && cmp -s "$work/cpu" "$work/cuda"
verdict "ready_instret as on the CPU" $? "$(sort -u "$work/cuda" | tr '\n' ' ')"

boot --backend lockstep --clock instret --until ready --count 4
verdict "lockstep, 4 machines to READY" $? "$(head -c 400 "$work/out" | sed -n 's/.*"wall_seconds":\([0-9.]*\).*/\1 s/p')"

said=$(printf 'echo $((6*7))of$((6*7)); poweroff\n' |
    timeout 60 "$pxvm" boot "${guest[@]}" --backend cuda --timeout 50 2> "$work/err")
rc=$?
grep -q 42of42 <<< "$said" || rc=1
verdict "console input, host clock" $rc ""

timeout 200 "$pxvm" conform "$isa" --backend cuda > "$work/out" 2> "$work/err"
verdict "conform" $? "$(tail -n 1 "$work/out")"

"$pxvm" boot "${guest[@]}" --backend cuda --count 1000000 > "$work/out" 2> "$work/err" < /dev/null
[ $? = 2 ] && grep -q "more than the GPU has memory for" "$work/err"
verdict "a fleet that does not fit" $? "$(head -n 1 "$work/err")"

"$pxvm" boot "${guest[@]}" --backend cuda --device 99 > "$work/out" 2> "$work/err" < /dev/null
[ $? = 2 ] && grep -q "no CUDA device 99" "$work/err"
verdict "a device that is not there" $? "$(head -n 1 "$work/err")"

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
