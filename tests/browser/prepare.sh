#!/bin/bash
# What run.sh and screenshots.sh need: installs the pinned packages beside this file,
# where git ignores them. Exit code 77: something is missing, and what.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
skip() { echo "skipped: $*"; exit 77; }

for tool in node npm; do
    command -v $tool > /dev/null || skip "no $tool; on Debian: apt-get install nodejs npm"
done
major=$(node -p 'process.versions.node.split(".")[0]')
[ "$major" -ge 18 ] || skip "node $(node --version) is too old; 18 or later is needed"
command -v "${PXVM_CHROMIUM:-chromium}" > /dev/null ||
    skip "no Chromium; on Debian: apt-get install chromium, or PXVM_CHROMIUM names one"

cd "$here"
if ! cmp -s package-lock.json node_modules/.installed; then
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
    cp package-lock.json node_modules/.installed
fi
