# The root file system twice, from one list: as an initramfs, packed by the kernel's gen_init_cpio,
# and as a cramfs that is executed in place. Neither needs root or depends on the clock.
set -euo pipefail

# gen_init_cpio takes a file's time from the file: give all the same one.
mkdir "$WORK/files"
cp "$DIR_pxinit/pxinit" "$DIR_busybox/busybox" "$DIR_nginx/nginx" "$WORK/files/"
cp -r "$BR/board/pxvm/rootfs-overlay" "$WORK/files/overlay"
find "$WORK/files" -type f -exec touch -d @0 {} +
{
    sed "s|@\([a-z]*\)@|$WORK/files/\1|" "$BR/board/pxvm/rootfs.list"
    cd "$WORK/files/overlay"
    find . -mindepth 1 -type d | LC_ALL=C sort | sed 's|^\.\(.*\)|dir \1 0755 0 0|'
    find . -type f | LC_ALL=C sort | sed "s|^\.\(.*\)|file \1 $PWD\1 0644 0 0|"
} > "$WORK/list"
# Folders first: a file needs its folder.
{
    grep '^dir ' "$WORK/list"
    grep -v '^dir \|^#' "$WORK/list"
} > "$WORK/sorted"
"$DIR_headers/gen_init_cpio" -t 0 "$WORK/sorted" > "$OUT/initramfs.cpio"
python3 "$BR/scripts/cramfs.py" "$WORK/sorted" "$OUT/rootfs.cramfs"
