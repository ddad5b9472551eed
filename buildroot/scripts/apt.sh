# apt with a private configuration: the machine's sources and package lists
# stay as they are. Sourced, not run.

SUITE=bookworm
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# The mirror from which this machine takes a suite, or nothing.
machine_mirror() { # SUITE
    local files=()
    for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -f "$f" ] && files+=("$f")
    done
    if [ ${#files[@]} -gt 0 ]; then
        sed 's/\[[^]]*\]//' "${files[@]}" |
            awk -v suite="$1" '$1 == "deb" && $3 == suite { print $2; exit }'
    fi
    files=()
    for f in /etc/apt/sources.list.d/*.sources; do
        [ -f "$f" ] && files+=("$f")
    done
    if [ ${#files[@]} -gt 0 ]; then
        awk -v suite="$1" '
            function stanza_ends() {
                if (uri != "" && (" " suites " ") ~ (" " suite " ")) { print uri; exit }
                uri = suites = ""
            }
            FNR == 1 || NF == 0 { stanza_ends() }
            tolower($1) == "uris:" { uri = $2 }
            tolower($1) == "suites:" { suites = $0; sub(/^[^:]*:/, "", suites) }
            END { stanza_ends() }' "${files[@]}"
    fi
}

# Makes a private apt configuration in FOLDER and selects it.
apt_setup() { # FOLDER
    local folder=$1 mirror security
    mirror=${PXVM_DEBIAN_MIRROR:-$(machine_mirror $SUITE | head -n 1)}
    security=${PXVM_DEBIAN_SECURITY_MIRROR:-$(machine_mirror $SUITE-security | head -n 1)}
    mirror=${mirror:-http://deb.debian.org/debian}
    security=${security:-http://deb.debian.org/debian-security}
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
    # musl has had riscv32 since 1.2.5, OpenSBI's 1.6 is wanted too: sources of
    # the next release. Backports count only when asked for with -t.
    cat > "$folder/sources.list" <<END
deb [signed-by=$KEYRING] $mirror $SUITE main
deb [signed-by=$KEYRING] $mirror $SUITE-updates main
deb [signed-by=$KEYRING] $mirror $SUITE-backports main
deb [signed-by=$KEYRING] $security $SUITE-security main
deb-src [signed-by=$KEYRING] $mirror $SUITE main
deb-src [signed-by=$KEYRING] $security $SUITE-security main
deb-src [signed-by=$KEYRING] $mirror trixie main
END
    cat > "$folder/apt.conf" <<END
Dir::Etc::sourcelist "$folder/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists "$folder/lists";
Dir::Cache "$folder/cache";
APT::Sandbox::User "";
APT::Get::Assume-Yes "true";
APT::Install-Recommends "false";
Acquire::Retries "2";
Acquire::http::Timeout "20";
DPkg::Lock::Timeout "300";
END
    export APT_CONFIG=$folder/apt.conf DEBIAN_FRONTEND=noninteractive
    echo "mirrors: $mirror $security"
    apt-get update --error-on=any ||
        die "the Debian mirror $mirror does not answer; is there a network? (PXVM_DEBIAN_MIRROR names another one)"
}
