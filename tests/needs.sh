# What scripts of tests do without what they need; the same as tests/src/needs.rs. Sourced, not run.

# Ends the script: with 0, or with 1 where nothing may be skipped but what is expected.
skip_script() { # NEED ADVICE
    if [ -n "${PXVM_NO_SKIP:-}" ] &&
        ! grep -qxF -- "$1" "$(dirname "${BASH_SOURCE[0]}")/expected-skips.txt"; then
        echo "failed: ${0##*/} needs $1: $2" >&2
        exit 1
    fi
    echo "skipped: ${0##*/} needs $1: $2"
    exit 0
}
