# What run.sh and screenshots.sh need: installs the pinned packages beside this file,
# where git ignores them. Ends the script when something is missing. Sourced, not run.

prepare() {
    local here tool major
    here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
    . "$here/../needs.sh"
    for tool in node npm; do
        command -v $tool > /dev/null || skip_script $tool "on Debian: apt-get install nodejs npm"
    done
    major=$(node -p 'process.versions.node.split(".")[0]')
    [ "$major" -ge 18 ] || skip_script node "$(node --version) is too old, 18 or later is needed"
    command -v "${PXVM_CHROMIUM:-chromium}" > /dev/null ||
        skip_script chromium "on Debian: apt-get install chromium, or PXVM_CHROMIUM names another one"
    if ! cmp -s "$here/package-lock.json" "$here/node_modules/.installed"; then
        (cd "$here" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
        cp "$here/package-lock.json" "$here/node_modules/.installed"
    fi
}
prepare
