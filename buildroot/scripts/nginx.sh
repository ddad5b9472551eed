# nginx with the arguments of board/pxvm/nginx.configure.
set -euo pipefail
. "$BR/scripts/lib.sh"

archive=$(lock_lines nginx | awk '{ print $4 }')
mkdir "$WORK/src"
tar -xf "$DOWNLOADS/$archive" -C "$WORK/src" --strip-components=1
cd "$WORK/src"
export PATH=$DIR_musl/bin:$PATH LC_ALL=C
# configure runs its probes: let qemu-user run them.
sed -i 's|/bin/sh -c \$NGX_AUTOTEST|/bin/sh -c "qemu-riscv32 $NGX_AUTOTEST"|; s|`\$NGX_AUTOTEST`|`qemu-riscv32 $NGX_AUTOTEST`|' \
    auto/feature auto/types/sizeof
sed -i 's|if \$NGX_AUTOTEST >|if qemu-riscv32 $NGX_AUTOTEST >|' auto/endianness
# shellcheck disable=SC2046
./configure --crossbuild=Linux:6.1:riscv32 --with-cc=rv32-gcc \
    --with-cc-opt="-Os -fno-asynchronous-unwind-tables -ffunction-sections -fdata-sections" \
    --with-ld-opt="-static -Wl,--gc-sections" \
    $(grep '^--' "$BR/board/pxvm/nginx.configure")
make -j"$JOBS" -f objs/Makefile objs/nginx
rv32-strip --strip-all --remove-section=.comment -o "$OUT/nginx" objs/nginx
cp objs/ngx_auto_config.h "$OUT/"
