#!/bin/bash
# The dashboard in a real browser over real fleets.
#
#   tests/browser/run.sh PXVM [NAME...]
#
# PXVM is a release build; the guest image is in the cache (buildroot/build makes it).
# NAMEs run only these parts: live (eight VMs), token (two fleets that want one), map
# (2,000 small guests). Needs node 18 or later, npm and Chromium (PXVM_CHROMIUM, else the one in PATH); says so and ends
# where they are missing. Prints one line a check, then "N passed, N failed". Checks that
# fail leave a picture in the folder PXVM_BROWSER_SHOTS, where that is set.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
pxvm=$(realpath "$1")
shift
here=$(dirname "$(realpath "$0")")

. "$here/prepare.sh"
exec node "$here/run.mjs" "$pxvm" "$@"
