# The initramfs, packed by the kernel's gen_init_cpio: no root, no clock.
set -euo pipefail

sed -e "s|@pxinit@|$DIR_pxinit/pxinit|" -e "s|@busybox@|$DIR_busybox/busybox|" \
    -e "s|@nginx@|$DIR_nginx/nginx|" "$BR/board/pxvm/initramfs.list" > "$WORK/list"
overlay=$BR/board/pxvm/rootfs-overlay
{
    cd "$overlay"
    find . -mindepth 1 -type d | LC_ALL=C sort | sed 's|^\.\(.*\)|dir \1 0755 0 0|'
    find . -type f | LC_ALL=C sort | sed "s|^\.\(.*\)|file \1 $overlay\1 0644 0 0|"
} > "$WORK/overlay"
# Folders first: a file needs its folder.
cat "$WORK/overlay" >> "$WORK/list"
{
    grep '^dir ' "$WORK/list"
    grep -v '^dir ' "$WORK/list"
} > "$WORK/sorted"
"$DIR_headers/gen_init_cpio" -t 0 "$WORK/sorted" > "$OUT/initramfs.cpio"
