#!/bin/bash
# What needs a GPU, from a release binary, on a machine without Rust.
#
#   tests/gpu/run.sh PXVM IMAGES RISCV_TESTS GUESTS [SECTION...]
#
# IMAGES is a folder with Image, rootfs.cramfs and initramfs.cpio (buildroot/build makes them),
# RISCV_TESTS one with the built isa tests, GUESTS one that the binary `guests` of tests/ filled.
# All sections run unless some are named; each takes less than two minutes:
#
#   fleets      1, 256, 8448 and 32768 machines until READY (COUNTS="1 256" for others)
#   same        the GPU comes to what the CPU comes to; console input, semihosting
#   lockstep    Linux on both, compared at every slice
#   conform     riscv-tests
#   disks       a disk of 20 GB, mounted, read on demand (needs mke2fs)
#   refusals    what cannot work is refused with a reason
#   cache       the program compiled for the card: made once, kept, good when damaged
#   auto        --backend auto chooses by a calibration, as both backends then turn out
#   neighbours  hostile guests beside good ones
#   cards       two processes on one card
#   lost        the context is lost, and the card hangs, while a fleet runs (needs cc)
#   bench       pxvm bench: boots, a loop, idle guests
#   busy        pxvm bench: guests that do different things, with checked results
#   apart       pxvm bench: programs whose branches differ, with checked results
#   sanitizer   compute-sanitizer's memcheck over all kinds of guests (needs CUDA's toolkit)
#
# Prints a table and `N passed, N failed`; without a GPU it says so and ends with 0.
set -uo pipefail
all=(fleets same lockstep conform disks refusals cache auto neighbours cards lost bench busy apart sanitizer)
usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 4 ] || usage
for path in "${@:1:4}"; do
    [ -e "$path" ] || { echo "run.sh: there is no $path" >&2; exit 2; }
done
here=$(dirname "$(realpath "$0")")
pxvm=$(realpath "$1") images=$(realpath "$2") isa=$(realpath "$3") guests=$(realpath "$4")
shift 4
for section in "$@"; do
    [[ " ${all[*]} " = *" $section "* ]] || { echo "run.sh: no section $section" >&2; usage; }
done
[ $# -gt 0 ] || set -- "${all[@]}"

. "$here/../needs.sh"
card=$("$pxvm" doctor | grep -A 1 ' CUDA ')
if ! grep -q '^ok' <<< "$card"; then
    skip_script gpu "$(tr -s ' \n' ' ' <<< "$card")"
fi
head -n 1 <<< "$card"
"$pxvm" --version

work=$(mktemp -d)
started=()
cleanup() {
    local pid
    for pid in "${started[@]}"; do kill -KILL "$pid" 2> /dev/null; done
    rm -rf "$work"
}
trap cleanup EXIT
export XDG_STATE_HOME=$work/state
passed=0 failed=0 skipped=0
rom=(--kernel "$images/Image" --rom "$images/rootfs.cramfs")
initramfs=(--kernel "$images/Image" --initrd "$images/initramfs.cpio")

verdict() { # NAME RESULT(0 is good) DETAIL
    if [ "$2" = 0 ]; then passed=$((passed + 1)) mark=ok; else failed=$((failed + 1)) mark=FAILED; fi
    printf '%-7s %-38s %s\n' "$mark" "$1" "$3"
    if [ "$2" != 0 ]; then tail -n 5 "$work/err" | cut -c 1-300 | sed 's/^/        /'; fi
}
skip() { # NAME WHY
    skipped=$((skipped + 1))
    printf '%-7s %-38s %s\n' skipped "$1" "$2"
}
# Runs pxvm, its output in $work/out and $work/err; 124 and 137 mean that it did not end.
run() { # SECONDS ARGUMENT...
    timeout --kill-after 10 "$1" "$pxvm" "${@:2}" > "$work/out" 2> "$work/err" < /dev/null
}
boot() { run 110 boot --timeout 100 --json "$@"; }
# A number of the report of the last boot.
of_report() { head -c 4096 "$work/out" | grep -oE "\"$1\":[0-9]+(\.[0-9]{1,3})?" | head -n 1 | cut -d: -f2; }
says() { grep -qE "$1" "$work/err"; }
first_line() { head -n 1 "$work/err" | cut -c 1-200; }

fleets() {
    local count rc
    for count in ${COUNTS:-1 256 8448 32768}; do
        boot "${rom[@]}" --backend cuda --clock instret --until ready --count "$count"
        rc=$?
        [ "$(of_report ready)" = "$count" ] || rc=1
        verdict "boot --count $count" $rc "$(of_report wall_seconds) s, $(of_report mips_per_vm) MIPS a VM, \
$(of_report total_gips) GIPS, $(of_report private_frames) frames"
    done
    boot "${initramfs[@]}" --backend cuda --clock instret --until ready --count 256
    verdict "boot --count 256, initramfs" $? "$(of_report wall_seconds) s, $(of_report private_frames) frames"
}

same() {
    # The same machines, seed and clock on the CPU are ready after the same number of instructions.
    local backend said rc
    for backend in cuda cpu; do
        boot "${rom[@]}" --backend $backend --clock instret --until ready --count 16
        grep -o '"ready_instret":[0-9]*' "$work/out" > "$work/$backend"
    done
    [ -s "$work/cpu" ] && cmp -s "$work/cpu" "$work/cuda"
    verdict "ready_instret as on the CPU" $? "$(sort -u "$work/cuda" | tr '\n' ' ')"
    printf '%1024s' x > "$work/disk.img"
    for backend in cuda cpu; do
        boot --kernel "$guests/disk/legacy-disk.elf" --disk "$work/disk.img" --backend $backend \
            --clock instret --until halt --count 16
        grep -o '"state":"[a-z]*","instret":[0-9]*' "$work/out" > "$work/$backend"
    done
    [ "$(grep -c halted "$work/cpu")" = 16 ] && cmp -s "$work/cpu" "$work/cuda"
    verdict "a legacy disk as on the CPU" $? "$(sort -u "$work/cuda" | tr '\n' ' ')"
    # shellcheck disable=SC2016 # the guest expands it
    said=$(printf 'echo $((6*7))of$((6*7)); poweroff\n' |
        timeout 60 "$pxvm" boot "${rom[@]}" --backend cuda --timeout 50 2> "$work/err")
    rc=$?
    grep -q 42of42 <<< "$said" || rc=1
    verdict "console input, host clock" $rc ""
    # A program that asks for its console by semihosting, and ends with a status.
    printf 'one\ntwo!' > "$work/typed"
    for backend in cuda cpu; do
        timeout 60 "$pxvm" run "$guests/semihosting/semihosting.elf" --semihosting --memory 8M --digest \
            --backend $backend < "$work/typed" > "$work/$backend" 2> "$work/err"
    done
    grep -q 'two!vm0: .* failed with 7, ' "$work/cpu" && cmp -s "$work/cpu" "$work/cuda"
    verdict "semihosting as on the CPU" $? "$(tail -n 1 "$work/cuda" | grep -o 'failed.*')"
}

disks() {
    # A small file system at the start of a sparse file, as an image that grew is.
    local disk=$work/root.ext2 backend
    if ! command -v mke2fs > /dev/null; then skip "disks" "needs mke2fs"; return; fi
    mkdir -p "$work/root"/{bin,dev,etc,mnt,proc,root,run,sys,tmp,usr}
    mke2fs -q -t ext2 -d "$work/root" "$disk" 4M && truncate -s 20G "$disk"
    for backend in cuda cpu; do
        boot "${rom[@]}" --backend $backend --clock instret --until ready --count 16 \
            --disk "$disk" --append pxvm.mount=/dev/vda:/mnt
        grep -o '"ready_instret":[0-9]*' "$work/out" > "$work/$backend"
    done
    [ "$(wc -l < "$work/cpu")" = 16 ] && cmp -s "$work/cpu" "$work/cuda" && ! says warns
    verdict "20 GB disk, mounted, as on the CPU" $? "$(sort -u "$work/cuda" | tr '\n' ' ')"
    boot "${rom[@]}" --backend cuda --until ready --count 8448 --disk "$disk" --append pxvm.mount=/dev/vda:/mnt &&
        ! says warns
    verdict "20 GB disk, mounted by 8,448" $? "$(of_report wall_seconds) s"
}

lockstep() {
    boot "${rom[@]}" --backend lockstep --clock instret --until ready --count 4
    verdict "lockstep, 4 machines to READY" $? "$(of_report wall_seconds) s"
}

has_isa() { [ -f "$isa/rv32ui-p-add" ] || { skip "$1" "no riscv-tests in $isa"; return 1; }; }

conform() {
    has_isa conform || return
    run 110 conform "$isa" --backend cuda
    verdict "conform" $? "$(tail -n 1 "$work/out")"
}

refusals() {
    run 60 boot "${rom[@]}" --backend cuda --count 1000000
    [ $? = 2 ] && says "more than the GPU has memory for.* about [0-9]+ machines"
    verdict "a fleet that does not fit" $? "$(first_line)"
    run 60 boot "${rom[@]}" --backend cuda --device 99
    [ $? = 2 ] && says "no CUDA device 99"
    verdict "a device that is not there" $? "$(first_line)"
    CUDA_VISIBLE_DEVICES='' run 60 boot "${rom[@]}" --backend cuda
    [ $? = 2 ] && [ "$(wc -l < "$work/err")" = 1 ]
    verdict "a card that is hidden" $? "$(first_line)"
}

# The program compiled for the card, in a cache of its own, as on a new machine.
cache() {
    local -x PXVM_CACHE=$work/cache
    local kept=$PXVM_CACHE/gpu one=(boot "${rom[@]}" --backend cuda --clock instret --until ready --timeout 100 --json)
    local start first rc pids where how expected
    timed() { # SECONDS ARGUMENT...: as `run`; its time is in `took`
        start=$EPOCHREALTIME
        run "$@"
        rc=$?
        took=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    }
    # As a fleet does whose program is right.
    good() { [ $rc = 0 ] && [ "$(of_report ready_instret)" = "$expected" ]; }
    largest() { find "$kept" -type f -printf '%s %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-; }
    files() { find "$kept" -type f -printf '%s ' 2> /dev/null; }

    run 110 boot "${rom[@]}" --backend cpu --clock instret --until ready --json
    expected=$(of_report ready_instret)
    timed 110 "${one[@]}"
    first=$took
    good && says '^pxvm: compiling for ' && [ -n "$(files)" ] && [ "$(stat -c %a "$kept")" = 700 ]
    verdict "the first start compiles, says so, and keeps it" $? "$first s, $(files)bytes"
    timed 110 "${one[@]}"
    good && ! says compiling && awk -v a="$first" -v b="$took" 'BEGIN { exit !(b < a) }'
    verdict "the second finds it" $? "$took s"

    cp -a "$kept" "$work/whole"
    for how in flipped cut empty "no index"; do
        rm -rf "$kept"
        cp -a "$work/whole" "$kept"
        where=$(largest)
        case $how in
        flipped) # A hundred bytes in its middle
            start=$(($(stat -c %s "$where") / 2))
            tail -c +$((start + 1)) "$where" | head -c 100 | LC_ALL=C tr '\000-\377' '\001-\377\000' > "$work/flipped"
            dd if="$work/flipped" of="$where" bs=1 seek=$start conv=notrunc status=none
            ;;
        cut) truncate -s $(($(stat -c %s "$where") / 2)) "$where" ;;
        empty) truncate -s 0 "$where" ;;
        "no index") rm -f "$kept/index" ;;
        esac
        ! diff -r "$work/whole" "$kept" > /dev/null || rc=1
        timed 110 "${one[@]}"
        good
        verdict "damaged ($how)" $? "$took s$(says compiling && echo ', compiled')"
        timed 110 "${one[@]}"
        good && ! says compiling
        verdict "and the one after" $? "$took s"
    done

    # As two users' first fleets would.
    rm -rf "$kept"
    pids=()
    for i in 1 2; do
        timeout --kill-after 10 110 "$pxvm" "${one[@]}" > "$work/out.$i" 2> "$work/err.$i" < /dev/null &
        pids+=($!)
        started+=($!)
    done
    rc=0
    for pid in "${pids[@]}"; do wait "$pid" || rc=1; done
    cat "$work"/err.[12] > "$work/err"
    [ $rc = 0 ] && timed 110 "${one[@]}" && good && ! says compiling
    verdict "two at once, and the one after" $? "$took s"

    # Root writes everywhere, but makes no folder below a file.
    rm -rf "$kept"
    echo 'in the way' > "$kept"
    CUDA_CACHE_PATH=$kept timed 110 "${one[@]}"
    good
    verdict "where none can be kept" $? "$took s"
    rm -f "$kept"
    timed 110 doctor
    [ $rc = 0 ] && grep -q '^ok  GPU program .* kept in ' "$work/out" && says '^pxvm: compiling for '
    verdict "doctor makes it" $? "$took s: $(grep 'GPU program' "$work/out" | tr -s ' ')"
    timed 110 "${one[@]}"
    good && ! says compiling
    verdict "and the first fleet finds it" $? "$took s"

    # What is kept is what the driver compiles without a cache.
    for how in kept "not kept" kept "not kept"; do
        case $how in
        kept) boot "${rom[@]}" --backend cuda --clock instret --until ready --count 8448 ;;
        *) CUDA_CACHE_DISABLE=1 boot "${rom[@]}" --backend cuda --clock instret --until ready --count 8448 ;;
        esac
        verdict "8448 machines, program $how" $? "$(of_report wall_seconds) s, $(of_report mips_per_vm) MIPS a VM"
    done
}

# The calibration in a cache of its own, as on a new machine; what was compiled stays where it is.
auto() {
    local -x PXVM_CACHE=$work/auto
    [ -n "${CUDA_CACHE_PATH:-}" ] || local -x CUDA_CACHE_PATH=${XDG_CACHE_HOME:-$HOME/.cache}/pxvm/gpu
    local folder=$PXVM_CACHE/calibration boots=(boot "${rom[@]}" --clock instret --until ready --timeout 100 --json)
    local count backend chosen rc file start cpu cuda how i
    choice() { grep -oE '"choice":\{"backend":"[a-z]+"' "$work/out" | cut -d'"' -f6; }
    estimate() { head -c 4096 "$work/out" | grep -oE "\"$1_gips\":[0-9.]+" | cut -d: -f2; }
    files() { find "$folder" -name '*.json' 2> /dev/null | wc -l; }
    line() { grep -E '^(cpu|gpu): ' "$work/err"; }

    run 110 "${boots[@]}" --backend auto --count 1
    [ $? = 0 ] && [ "$(choice)" = cpu ] && [ "$(files)" = 0 ]
    verdict "one machine needs no calibration" $? "$(line)"
    start=$EPOCHREALTIME
    run 110 doctor --calibrate
    rc=$?
    [ $rc = 0 ] && grep -q '^ok  calibration ' "$work/out" && [ "$(files)" = 1 ]
    verdict "doctor --calibrate" $? "$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }') s in all"
    grep '  calibration' "$work/out"
    file=$(find "$folder" -name '*.json')
    run 60 doctor --json
    grep -oE '"calibration":.*' "$work/out"

    # Both backends, and what was expected of them: the choice is wrong when the other one is twice as fast.
    for count in ${COUNTS:-1 64 256 1024 8448}; do
        for backend in cpu cuda; do
            boot "${rom[@]}" --backend $backend --clock instret --until ready --count "$count"
            declare $backend="$(of_report wall_seconds) $(of_report total_gips)"
        done
        run 110 "${boots[@]}" --backend auto --count "$count"
        rc=$?
        chosen=$(choice)
        [ "$(of_report ready)" = "$count" ] || rc=1
        awk -v chosen="$chosen" -v cpu="${cpu% *}" -v cuda="${cuda% *}" \
            'BEGIN { exit !(cpu > 0 && cuda > 0 && (chosen == "cpu" ? cpu < 2 * cuda : chosen == "cuda" && cuda < 2 * cpu)) }' || rc=1
        verdict "auto, $count machines" $rc "$(line)"
        awk -v cpu="$cpu" -v cuda="$cuda" -v e="$(estimate cpu)" -v f="$(estimate cuda)" 'BEGIN {
            split(cpu, c); split(cuda, g)
            printf "        cpu %s s, %s GIPS (estimate %.2f); cuda %s s, %s GIPS (estimate %.2f); ratio %.2f, estimate %.2f\n",
                c[1], c[2], e, g[1], g[2], f, c[1] / g[1], (e > 0 ? f / e : 0) }'
    done

    # What is damaged, cut short, or of another version is measured again.
    for how in flipped cut empty old; do
        cp "$file" "$work/whole"
        case $how in
        flipped) sed -i 's/"alone": /"alone": 1/' "$file" ;;
        cut) truncate -s 300 "$file" ;;
        empty) truncate -s 0 "$file" ;;
        old) sed -i 's/"format": 1/"format": 0/' "$file" ;;
        esac
        cmp -s "$file" "$work/whole" && rc=1 || rc=0
        run 110 "${boots[@]}" --backend auto --count 256
        [ $? = 0 ] && [ $rc = 0 ] && says '^pxvm: calibrating ' && [ "$(files)" = 1 ]
        verdict "a calibration that is damaged ($how)" $? "$(line)"
    done
    rm -f "$file"
    "$pxvm" "${boots[@]}" --backend auto --count 8448 > "$work/out" 2> "$work/err" < /dev/null &
    holder=$!
    started+=("$holder")
    for ((i = 0; i < 300; i++)); do says '^pxvm: calibrating ' && break; sleep 0.1; done
    leave && says 'interrupted while this host was calibrated; nothing was kept' && [ "$(files)" = 0 ]
    verdict "a calibration that is interrupted" $? "$(tail -n 1 "$work/err")"
    run 110 "${boots[@]}" --backend auto --count 1000000
    [ $? = 2 ] && says "more than (the GPU|this host) has memory for"
    verdict "a fleet that fits nowhere" $? "$(tail -n 1 "$work/err")"
}

# Good guests at odd places, and the others between them, so that they share warps.
interleave() { # OTHER...
    local good=("$guests"/good/*.elf) i=0 other
    mixed=()
    for other in "$@"; do
        mixed+=("$other" "${good[i++ % ${#good[@]}]}")
    done
}

neighbours() {
    local hostile=("$guests"/hostile/*.elf) quiet=() lanes backend
    local limits=(--digest --memory 8M --max-instructions 4194304)
    for _ in "${hostile[@]}"; do quiet+=("$guests/quiet/quiet.elf"); done
    # The exit code tells that some did not end, which is what these are for.
    interleave "${quiet[@]}"
    run 60 run "${mixed[@]}" --backend cpu "${limits[@]}"
    grep -E '^vm[0-9]*[13579]: ' "$work/out" > "$work/expected"
    interleave "${hostile[@]}"
    run 60 run "${mixed[@]}" --backend cpu "${limits[@]}"
    grep -E '^vm[0-9]+: ' "$work/out" > "$work/hostile"
    for lanes in 1 8 32; do
        run 110 run "${mixed[@]}" --backend cuda --lanes $lanes "${limits[@]}"
        grep -E '^vm[0-9]*[13579]: ' "$work/out" > "$work/found"
        [ "$(grep -c ' passed, ' "$work/expected")" = ${#hostile[@]} ] && cmp -s "$work/expected" "$work/found"
        verdict "good beside hostile, $lanes a warp" $? "$(wc -l < "$work/found") good ones as beside quiet ones on the CPU"
        grep -E '^vm[0-9]+: ' "$work/out" > "$work/found"
        [ -s "$work/found" ] && cmp -s "$work/hostile" "$work/found"
        verdict "hostile as on the CPU, $lanes a warp" $? "$(diff "$work/hostile" "$work/found" | grep -c '^>') of ${#mixed[@]} differ"
    done
    interleave "${quiet[@]}"
    run 110 run "${mixed[@]}" --backend cuda "${limits[@]}"
    grep -E '^vm[0-9]*[13579]: ' "$work/out" > "$work/found"
    [ -s "$work/found" ] && cmp -s "$work/expected" "$work/found"
    verdict "good beside quiet" $? ""
}

# Starts a fleet that stays, and waits until machine 0 is ready.
occupy() { # FOLDER ARGUMENT...
    local folder=$work/$1 i
    "$pxvm" boot "${rom[@]}" --backend cuda --until never --timeout 110 --console-dir "$folder" \
        "${@:2}" > /dev/null 2> "$folder.err" < /dev/null &
    holder=$!
    started+=("$holder")
    for ((i = 0; i < 300; i++)); do
        if grep -qs READY "$folder/vm0.log"; then return 0; fi
        kill -0 $holder 2> /dev/null || break
        sleep 0.2
    done
    cp "$folder.err" "$work/err"
    return 1
}
# Ends it as a user would: a shell has its background programs ignore Ctrl-C, so by SIGTERM.
leave() {
    kill -TERM "$holder" 2> /dev/null
    local i
    for ((i = 0; i < 150; i++)); do
        kill -0 "$holder" 2> /dev/null || break
        sleep 0.2
    done
    wait "$holder" 2> /dev/null
    [ $? = 130 ]
}

cards() {
    local rc
    if occupy small --count 16; then
        boot "${rom[@]}" --backend cuda --until ready --count 256
        rc=$?
        verdict "a second fleet where there is room" $rc "$(of_report ready) ready in $(of_report wall_seconds) s"
        leave
        verdict "the first one goes on, and ends well" $? ""
    else
        verdict "a second fleet where there is room" 1 "the first one does not start"
    fi
    # So many take all of the card's memory, to share it among them.
    if occupy large --count "${LARGE:-8448}"; then
        boot "${rom[@]}" --backend cuda --until ready --count 8448
        [ $? = 2 ] && says "about [0-9]+ machines|0 machines fit"
        verdict "a second fleet where there is none" $? "$(first_line)"
        leave
        verdict "the first one goes on, and ends well" $? ""
    else
        verdict "a second fleet where there is none" 1 "the first one does not start"
    fi
    boot "${rom[@]}" --backend cuda --until ready --count 256
    verdict "the card is free again" $? "$(of_report ready) ready"
}

lost() {
    local how name limit rc start
    # Where there is no compiler, somebody may have brought it along.
    local lose=${LOSE_SO:-$work/lose.so}
    if [ -z "${LOSE_SO:-}" ] && ! cc -O1 -shared -fPIC -o "$lose" "$here/lose.c" -ldl -lpthread 2> "$work/err"; then
        skip "a lost context" "lose.c was not compiled: $(first_line)"
        return
    fi
    for how in store spin; do
        # What is lost shows at once; whether a card hangs is known after a minute.
        case $how in
        store) name="a lost context" limit=30 ;;
        spin) name="a card that hangs" limit=85 ;;
        esac
        start=$SECONDS
        CUDA_INJECTION64_PATH=$lose LOSE=$how LOSE_AFTER=15 run $((limit + 10)) boot "${rom[@]}" --backend cuda \
            --count 64 --until never --timeout $limit --console-dir "$work/$how"
        rc=$?
        if ! says '^lose: launched'; then
            skip "$name" "it was not provoked: $(grep -m 1 '^lose:' "$work/err" || echo 'the driver did not load lose.so')"
            continue
        fi
        # Code 1, the call's name, and all that was printed before: the guests were ready by then.
        [ $rc = 1 ] && says '^pxvm: cu[A-Za-z0-9_]+ failed: '
        verdict "$name: code 1 and the call" $? "rc $rc, $((SECONDS - start)) s: $(grep -m 1 '^pxvm:' "$work/err" | cut -c 1-160)"
        [ "$(grep -l READY "$work/$how"/*.log | wc -l)" = 64 ]
        verdict "$name: the consoles are there" $? ""
        boot "${rom[@]}" --backend cuda --until ready
        verdict "$name: the card works again" $? ""
    done
}

bench() {
    run 110 bench "${rom[@]}" --backend cuda --workload boot,compute,idle --count 1,256,8448 --timeout 30
    verdict "bench" $? ""
    sed 's/^/        /' "$work/out"
    run 110 bench --backend cuda --workload compute --count 8448 --packing 1,8,32 --timeout 30
    verdict "bench, packings" $? ""
    sed 's/^/        /' "$work/out"
}

busy() {
    local name
    for name in mix shell awk gzip; do
        run 110 bench "${rom[@]}" --backend cuda --workload busy --busy $name --count 256,8448 --timeout 50
        verdict "busy: $name" $? ""
        sed 's/^/        /' "$work/out"
    done
}

apart() {
    run 110 bench --backend cuda --workload apart --count 256,8448,32768 --timeout 50
    verdict "apart" $? ""
    sed 's/^/        /' "$work/out"
}

# memcheck is slow: little of each kind.
sanitizer() {
    local tool
    tool=$(command -v compute-sanitizer) || tool=/usr/local/cuda/bin/compute-sanitizer
    if [ ! -x "$tool" ]; then
        skip "memcheck" "there is no compute-sanitizer: it is part of CUDA's toolkit"
        return
    fi
    local hostile=("$guests"/hostile/*.elf)
    interleave "${hostile[@]}"
    memcheck "memcheck: hostile and good guests" run "${mixed[@]}" --backend cuda --lanes 32 --digest \
        --memory 8M --max-instructions 65536
    has_isa "memcheck: riscv-tests" && memcheck "memcheck: riscv-tests" conform "$isa"/rv32{ua,mi,si}-p-* "$isa"/rv32ui-p-{add,lw,sb,beq,jalr,fence_i} \
        --backend cuda
    memcheck "memcheck: Linux, from its reset" boot "${rom[@]}" --backend cuda --count 2 --clock instret \
        --until ready --timeout "${SANITIZER_SECONDS:-40}" --json
}
memcheck() { # NAME ARGUMENT...
    timeout --kill-after 10 110 "$tool" --tool memcheck --report-api-errors no --log-file "$work/memcheck" \
        "$pxvm" "${@:2}" > "$work/out" 2> "$work/err" < /dev/null
    local rc=$? summary
    summary=$(grep -o 'ERROR SUMMARY: .*' "$work/memcheck" | tail -n 1)
    if grep -qiE 'device (is )?not supported|unable to initialize|failed to initialize' "$work/memcheck" "$work/err"; then
        skip "$1" "the tool refuses this device: $(grep -iE -m 1 'not supported|initialize' "$work/memcheck" "$work/err" | cut -c 1-160)"
        return
    fi
    cp "$work/memcheck" "$work/err"
    # What the guests did is another section's; time may be up for them.
    [ "$summary" = "ERROR SUMMARY: 0 errors" ] && [[ $rc = [034] ]]
    verdict "$1" $? "rc $rc, ${summary:-no summary}"
}

for section in "$@"; do
    since=$SECONDS
    echo "--- $section"
    $section
    echo "    $((SECONDS - since)) s"
done
echo "$passed passed, $failed failed$([ $skipped = 0 ] || echo ", $skipped skipped")"
[ "$failed" = 0 ]
