#!/bin/bash
# Installs what the tests run on Debian 12: qemu 10 (system and user) from
# backports, riscv compilers, dtc. As root. The machine's apt sources are not
# touched.
set -euo pipefail
BR=$(cd "$(dirname "$0")/.." && pwd)
. "$BR/scripts/lib.sh"
. "$BR/scripts/apt.sh"

command -v apt-get > /dev/null || die "this needs apt (Debian 12)."
have_all() {
    local c
    for c in qemu-system-riscv32 qemu-riscv32 riscv64-linux-gnu-gcc riscv64-unknown-elf-gcc dtc curl; do
        command -v "$c" > /dev/null || return 1
    done
}
if have_all; then
    echo "nothing to install: $(qemu-system-riscv32 --version | head -n 1)"
    exit
fi
packages=(gcc-riscv64-linux-gnu gcc-riscv64-unknown-elf device-tree-compiler curl)
backports=(qemu-system-misc qemu-system-riscv qemu-user)
[ "$(id -u)" = 0 ] || die "packages are missing and this is not root; run: sudo buildroot/scripts/install-qemu.sh"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
apt_setup "$folder"
apt-get install "${packages[@]}" || die "apt could not install: ${packages[*]}"
apt-get install -t bookworm-backports "${backports[@]}" || die "apt could not install: ${backports[*]}"
qemu-system-riscv32 --version | head -n 1
