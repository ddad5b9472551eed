#!/bin/bash
# Makes the pictures of docs/guide/dashboard.md from real fleets on this machine.
#
#   tests/browser/screenshots.sh PXVM [FOLDER]
#
# PXVM is a release build, FOLDER docs/guide unless given. Needs what run.sh needs, and
# memory for a thousand guests (about 3 GiB). Takes a few minutes.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(dirname "$(realpath "$0")")
pxvm=$(realpath "$1") folder=$(realpath "${2:-$here/../../docs/guide}")

. "$here/prepare.sh"
mkdir -p "$folder"
node "$here/screenshots.mjs" "$pxvm" "$folder"
for picture in "$folder"/dashboard-*.png; do
    size=$(stat -c %s "$picture")
    echo "$(basename "$picture"): $size bytes"
    [ "$size" -le $((256 * 1024)) ] || { echo "larger than 256 KiB: $picture" >&2; exit 1; }
done
