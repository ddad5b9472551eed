# Linux source, patched: what a kernel for riscv is made from, with every Kconfig and Makefile.
# 0.5 GB: the driver removes it when the build is done.
set -euo pipefail
. "$BR/scripts/lib.sh"

need_space "$OUT" 1000
# Half of all files, which nothing here compiles or includes.
unused=('arch/[!r]*/*.[chS]' 'arch/[!r]*/*.dts*' 'Documentation/*/*' 'tools/testing' 'tools/perf')
for folder in drivers/{gpu,iio,infiniband,media,net/ethernet,net/wireless,scsi,staging} sound; do
    unused+=("$folder/*.[ch]")
done
deb=$(lock_lines linux-source-6.1 | awk '{ print $4 }')
dpkg-deb --fsys-tarfile "$DOWNLOADS/$deb" |
    tar -xO ./usr/src/linux-source-6.1.tar.xz |
    tar -xJ -C "$OUT" --strip-components=1 "${unused[@]/#/--exclude=linux-source-6.1/}"
for p in "$BR"/board/pxvm/patches/linux/*.patch; do
    echo "applying $p"
    patch -d "$OUT" -p1 --forward < "$p"
done
