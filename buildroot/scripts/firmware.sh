# OpenSBI for rv32ima. Debian's own build uses C, F and D.
set -euo pipefail
. "$BR/scripts/lib.sh"

tar -xf "$DOWNLOADS/$(lock_lines opensbi | awk '{ print $4 }')" -C "$WORK" --strip-components=1
export LC_ALL=C SOURCE_DATE_EPOCH=1735689600
make -C "$WORK" -j"$JOBS" PLATFORM=generic CROSS_COMPILE=riscv64-linux-gnu- PLATFORM_RISCV_XLEN=32 \
    PLATFORM_RISCV_ISA=rv32ima_zicsr_zifencei PLATFORM_RISCV_ABI=ilp32 REPRODUCIBLE=y
cp "$WORK"/build/platform/generic/firmware/fw_{dynamic,jump}.bin "$OUT/"
