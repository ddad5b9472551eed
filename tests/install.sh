#!/bin/bash
# Installs on Debian 12 what the tests run: qemu 10 (system and user) from backports, riscv
# compilers, dtc, tools of the network, a browser. As root. The machine's apt sources are not
# touched.
#
#   tests/install.sh [--packages]
#
# --packages only prints their names.
set -euo pipefail
BR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../buildroot" && pwd)
. "$BR/scripts/lib.sh"
. "$BR/scripts/apt.sh"

# command that must exist, package that has it, suite if it is not Debian 12 itself
needs='
python3                  python3
riscv64-linux-gnu-gcc    gcc-riscv64-linux-gnu
riscv64-unknown-elf-gcc  gcc-riscv64-unknown-elf
dtc                      device-tree-compiler
unshare                  util-linux
losetup                  mount
qemu-img                 qemu-utils
ip                       iproute2
ping                     iputils-ping
curl                     curl
tshark                   tshark
node                     nodejs
npm                      npm
chromium                 chromium
qemu-system-riscv32      qemu-system-misc    bookworm-backports
qemu-system-riscv32      qemu-system-riscv   bookworm-backports
qemu-riscv32             qemu-user           bookworm-backports
'
case ${1:-} in
'') ;;
--packages) awk '{ print $2 }' <<< "$needs"; exit ;;
*) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
packages=() backports=()
while read -r command package suite; do
    [ -n "$command" ] && ! command -v "$command" > /dev/null || continue
    if [ -n "$suite" ]; then backports+=("$package"); else packages+=("$package"); fi
done <<< "$needs"
if [ $((${#packages[@]} + ${#backports[@]})) = 0 ]; then
    echo "nothing to install"
    exit
fi
command -v apt-get > /dev/null || die "this needs apt (Debian 12); missing: ${packages[*]} ${backports[*]}"
[ "$(id -u)" = 0 ] || die "packages are missing and this is not root; run: sudo tests/install.sh"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
apt_setup "$folder"
if [ ${#packages[@]} -gt 0 ]; then
    apt-get install "${packages[@]}" || die "apt could not install: ${packages[*]}"
fi
if [ ${#backports[@]} -gt 0 ]; then
    apt-get install -t bookworm-backports "${backports[@]}" || die "apt could not install: ${backports[*]}"
fi
