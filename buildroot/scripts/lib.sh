# Shared by the driver and the steps: messages and hashes. Sourced, not run.

# One clear sentence, then out. The driver shows this line of a step's log.
die() {
    echo "error: $*" >&2
    exit 1
}

# sha256 of each file's name (relative to buildroot/) and content.
hash_files() {
    (cd "$BR" && find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum)
}

# The pins of one package or tool.
lock_lines() {
    awk -v want="$1" '$1 != "#" && $2 == want' "$BR/packages.lock"
}

need_space() { # FOLDER MIB
    local free
    free=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$2" ] ||
        die "not enough disk space in $1: $2 MiB are needed, $free MiB are free."
}

# Every line of a configuration fragment must be in the finished configuration:
# one that Kconfig dropped is a mistake, not a detail.
check_fragment() { # FRAGMENT CONFIG
    local line name lost=()
    while read -r line; do
        case $line in
        CONFIG_*) grep -qxF -- "$line" "$2" || lost+=("$line") ;;
        '# CONFIG_'*' is not set')
            name=${line#\# }
            ! grep -q "^${name%% *}=" "$2" || lost+=("$line")
            ;;
        esac
    done < "$1"
    [ ${#lost[@]} = 0 ] || die "${1##*/}: Kconfig did not take: ${lost[*]}"
}
