# Downloads the pinned packages named as arguments into $DOWNLOADS, checked.
set -euo pipefail
. "$BR/scripts/lib.sh"
. "$BR/scripts/apt.sh"

mkdir -p "$DOWNLOADS"
is_here() { # FILE SHA256
    [ -f "$DOWNLOADS/$1" ] && echo "$2  $DOWNLOADS/$1" | sha256sum --quiet --check - > /dev/null 2>&1
}

# The archive that all of Debian's revisions of an upstream version share, from the newest one
# that the mirror really has.
upstream_archive() { # NAME UPSTREAM-VERSION
    local revision
    for revision in $(apt-cache showsrc --only-source "$1" |
        awk -v v="$2-" '$1 == "Version:" && index($2, v) == 1 { print $2 }' | sort -Vru); do
        apt-get source --tar-only --download-only "$1=$revision" && return
    done
    return 1
}

wanted=()
for package; do
    while read -r kind name version file sha256; do
        is_here "$file" "$sha256" || wanted+=("$kind $name $version")
    done < <(lock_lines "$package")
done
[ ${#wanted[@]} -gt 0 ] || exit 0

need_space "$DOWNLOADS" 500
apt_setup "$CACHE/apt"
mkdir -p "$WORK"
cd "$WORK"
printf '%s\n' "${wanted[@]}" | sort -u | while read -r kind name version; do
    case $kind in
    binary) apt-get download "$name=$version" ;;
    source)
        if lock_lines "$name" | grep -q '\.dsc '; then
            apt-get source --download-only "$name=$version"
        else
            upstream_archive "$name" "$version"
        fi
        ;;
    esac < /dev/null || die "the mirror could not give us $name $version (pinned in buildroot/packages.lock)."
done
for package; do
    while read -r kind name version file sha256; do
        is_here "$file" "$sha256" && continue
        echo "$sha256  $file" | sha256sum --check - ||
            die "$file is not the file pinned in buildroot/packages.lock."
        mv "$file" "$DOWNLOADS/"
    done < <(lock_lines "$package")
done
