# Sourced by test.sh: programs of others, with which some tests compare results or open pages. Installed where that needs
# no password; elsewhere those tests skip and name the program.
install_other_programs() {
    local missing=()
    command -v dcm2niix >/dev/null || missing+=(dcm2niix)
    command -v dciodvfy >/dev/null || missing+=(dicom3tools)
    # opens the report; another name of the same program will do
    command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
        missing+=(chromium)
    if [ "${#missing[@]}" -eq 0 ] || ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
        return 0
    fi
    apt-get update -qq >/dev/null 2>&1 || true
    local program
    for program in "${missing[@]}"; do # one by one, so that one that this system lacks does not keep the others away
        apt-get install -y -qq --no-install-recommends "$program" >/dev/null 2>&1 ||
            echo "not installed: $program; the tests that need it skip" >&2
    done
}
install_other_programs
