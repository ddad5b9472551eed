# Host packages: what the build runs on this machine. Installs what is missing.
# usage: host.sh [--check | --packages]
#   --check     exit 0 when nothing is missing
#   --packages  print their names
set -euo pipefail
BR=${BR:-$(cd "$(dirname "$0")/.." && pwd)}
. "$BR/scripts/lib.sh"
. "$BR/scripts/apt.sh"

# command that must exist, package that has it
needs='
riscv64-linux-gnu-gcc    gcc-riscv64-linux-gnu
riscv64-linux-gnu-ld     binutils-riscv64-linux-gnu
riscv64-unknown-elf-gcc  gcc-riscv64-unknown-elf
qemu-riscv32             qemu-user
gcc                      gcc
make                     make
patch                    patch
flex                     flex
bison                    bison
bc                       bc
rsync                    rsync
xz                       xz-utils
bzip2                    bzip2
dpkg-source              dpkg-dev
python3                  python3
'
if [ "${1:-}" = --packages ]; then
    awk '{ print $2 }' <<< "$needs"
    echo libc6-dev
    exit
fi
missing=()
while read -r command package; do
    [ -z "$command" ] || command -v "$command" > /dev/null || missing+=("$package")
done <<< "$needs"
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
if [ ${#missing[@]} -gt 0 ]; then
    [ "${1:-}" != --check ] || exit 1
    echo "missing: ${missing[*]}"
    if [ "$(id -u)" = 0 ]; then
        folder=$(mktemp -d)
        trap 'rm -rf "$folder"' EXIT
        apt_setup "$folder"
        apt-get install "${missing[@]}" || die "apt could not install: ${missing[*]}"
    elif command -v sudo > /dev/null && sudo -n true 2> /dev/null; then
        sudo -n env BR="$BR" bash "$BR/scripts/host.sh"
    else
        die "packages are missing and this is not root; run: sudo apt-get install --no-install-recommends ${missing[*]}"
    fi
fi
[ "${1:-}" != --check ] || exit 0

while read -r _ tool version; do
    have=$("$tool" -dumpfullversion)
    [ "$have" = "$version" ] ||
        echo "warning: $tool is $have, pinned is $version: the bytes may differ"
done < <(grep '^tool ' "$BR/packages.lock")
