# Sourced by other scripts. usage: install_packages PROGRAM WHAT_SKIPS PACKAGE...
# Installs packages if PROGRAM is missing, on Debian and as root; otherwise prints which tests are skipped.
install_packages() {
    local program="$1" skipped="$2" policy=/usr/sbin/policy-rc.d made=""
    shift 2
    if command -v "$program" >/dev/null || ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
        return 0
    fi
    # Debian would start services immediately, open to the network; the tests start their own
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made=yes
    fi
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; } >/dev/null 2>&1 ||
        echo "not installed: $*; $skipped are skipped" >&2
    if [ -n "$made" ]; then
        rm -f "$policy"
    fi
}
