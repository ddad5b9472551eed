# The C library and rv32-gcc: a sysroot for static rv32ima programs.
# rv32-gcc finds the sysroot beside itself, so no path is compiled in.
set -euo pipefail
. "$BR/scripts/lib.sh"

dsc=$(lock_lines musl | awk '$4 ~ /\.dsc$/ { print $4 }')
dpkg-source --no-check -x "$DOWNLOADS/$dsc" "$WORK/src"

mkdir -p "$OUT/bin" "$OUT/lib" "$OUT/include"
cp -r "$DIR_headers/include/." "$OUT/include/"
# rv32ia/ilp32 is what gcc itself would choose for rv32ima: no multiplication.
libgcc=$(dirname "$(riscv64-unknown-elf-gcc -print-libgcc-file-name)")/rv32im/ilp32/libgcc.a
cp "$libgcc" "$OUT/lib/libgcc.a"

cd "$WORK/src"
CC="riscv64-linux-gnu-gcc -march=rv32ima -mabi=ilp32" CROSS_COMPILE=riscv64-linux-gnu- \
    LIBCC="$OUT/lib/libgcc.a" CFLAGS="-fno-pie -ffile-prefix-map=$WORK/src=musl" \
    ./configure --target=riscv32-linux-musl --prefix=/ --disable-shared --disable-wrapper
make -j"$JOBS"
make DESTDIR="$OUT" install

cat > "$OUT/bin/rv32-gcc" <<'END'
#!/bin/sh
# gcc for static rv32ima/ilp32 programs with musl.
sysroot=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
PXVM_SYSROOT=$sysroot exec riscv64-linux-gnu-gcc -march=rv32ima -mabi=ilp32 -fno-pie -no-pie -static \
    -specs="$sysroot/lib/musl.specs" "$@"
END
chmod +x "$OUT/bin/rv32-gcc"
for tool in ar as ld nm objcopy objdump ranlib readelf size strip; do
    ln -s "$(command -v riscv64-linux-gnu-$tool)" "$OUT/bin/rv32-$tool"
done
cat > "$OUT/lib/musl.specs" <<'END'
%rename cpp_options old_cpp_options

*cpp_options:
-nostdinc -isystem %:getenv(PXVM_SYSROOT /include) -isystem include%s %(old_cpp_options)

*cc1:
%(cc1_cpu) -nostdinc -isystem %:getenv(PXVM_SYSROOT /include) -isystem include%s

*link_libgcc:
-L%:getenv(PXVM_SYSROOT /lib)

*libgcc:
%:getenv(PXVM_SYSROOT /lib/libgcc.a)

*startfile:
%:getenv(PXVM_SYSROOT /lib/crt1.o) %:getenv(PXVM_SYSROOT /lib/crti.o)

*endfile:
%:getenv(PXVM_SYSROOT /lib/crtn.o)

*lib:
-lc

*link:
-melf32lriscv -nostdlib -static

END
echo 'int main(void) { return 0; }' > "$WORK/t.c"
"$OUT/bin/rv32-gcc" -o "$WORK/t" "$WORK/t.c"
qemu-riscv32 "$WORK/t"
