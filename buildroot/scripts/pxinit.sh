# pxinit, PID 1 of the guest.
set -euo pipefail

cp "$BR"/package/pxinit/src/* "$WORK/"
cd "$WORK"
export PATH=$DIR_musl/bin:$PATH
make CC=rv32-gcc CFLAGS="-Os -Werror" LDFLAGS=-s pxinit
rv32-strip --strip-all --remove-section=.comment -o "$OUT/pxinit" pxinit
