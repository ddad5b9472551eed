# Kernel headers for user space, and gen_init_cpio.
set -euo pipefail

make -C "$DIR_linux_src" ARCH=riscv O="$WORK" INSTALL_HDR_PATH="$OUT" -j"$JOBS" headers_install
gcc -O1 -o "$OUT/gen_init_cpio" "$DIR_linux_src/usr/gen_init_cpio.c"
