# The Linux kernel: board/pxvm/linux.base (tinyconfig) plus linux.fragment.
set -euo pipefail
. "$BR/scripts/lib.sh"

fragment=$BR/board/pxvm/linux.fragment
export KBUILD_BUILD_TIMESTAMP='2025-01-01' KBUILD_BUILD_USER=pxvm KBUILD_BUILD_HOST=pxvm
export KBUILD_BUILD_VERSION=1 LC_ALL=C
kmake() {
    make -C "$DIR_linux_src" ARCH=riscv CROSS_COMPILE=riscv64-linux-gnu- O="$WORK" "$@"
}

"$DIR_linux_src/scripts/kconfig/merge_config.sh" -m -O "$WORK" "$BR/board/pxvm/linux.base" "$fragment"
kmake olddefconfig

check_fragment "$fragment" "$WORK/.config"

kmake -j"$JOBS" Image
cp "$WORK/arch/riscv/boot/Image" "$WORK/System.map" "$OUT/"
cp "$WORK/.config" "$OUT/linux.config"
riscv64-linux-gnu-strip --strip-debug -o "$OUT/vmlinux" "$WORK/vmlinux"
