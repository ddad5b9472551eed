#!/bin/bash
# Tells whether two builds have the same program for the GPU.
#
#   tests/gpu/same-ptx.sh OLD.ptx NEW.ptx
#
# A build leaves it in target/PROFILE/build/pxvm-*/out/pxvm.ptx. Names of functions have hashes of
# the crates in them, which do not count. Prints the difference and ends with 1 if there is one.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
plain() { sed -E 's/17h[0-9a-f]{16}E/17hE/g' "$1"; }
diff <(plain "$1") <(plain "$2")
