# Linux source, patched. 1.5 GB: the driver removes it when the build is done.
set -euo pipefail
. "$BR/scripts/lib.sh"

need_space "$OUT" 2500
deb=$(lock_lines linux-source-6.1 | awk '{ print $4 }')
dpkg-deb --fsys-tarfile "$DOWNLOADS/$deb" |
    tar -xO ./usr/src/linux-source-6.1.tar.xz |
    tar -xJ -C "$OUT" --strip-components=1 --exclude='*/Documentation/*/*' --exclude='*/tools/testing'
for p in "$BR"/board/pxvm/patches/linux/*.patch; do
    echo "applying $p"
    patch -d "$OUT" -p1 --forward < "$p"
done
