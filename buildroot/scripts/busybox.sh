# busybox: allnoconfig plus board/pxvm/busybox.fragment.
set -euo pipefail
. "$BR/scripts/lib.sh"

fragment=$BR/board/pxvm/busybox.fragment
dsc=$(lock_lines busybox | awk '$4 ~ /\.dsc$/ { print $4 }')
dpkg-source --no-check -x "$DOWNLOADS/$dsc" "$WORK/src"
cd "$WORK/src"
export PATH=$DIR_musl/bin:$PATH KCONFIG_NOTIMESTAMP=1 SOURCE_DATE_EPOCH=1735689600 LC_ALL=C TZ=UTC
make allnoconfig
# allnoconfig names every symbol: replace those of the fragment.
sed -n 's/^\(CONFIG_[A-Z0-9_]*\)=.*/\1/p' "$fragment" > names
grep -vwFf names .config > rest
cat rest "$fragment" > .config
yes '' | make oldconfig > oldconfig.log || [ "${PIPESTATUS[1]}" = 0 ]
check_fragment "$fragment" .config
make -j"$JOBS" SKIP_STRIP=y busybox
rv32-strip --strip-all --remove-section=.comment -o "$OUT/busybox" busybox_unstripped
cp .config "$OUT/busybox.config"
