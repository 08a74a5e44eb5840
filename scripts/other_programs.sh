# Sourced by test.sh: third-party programs with which some tests compare results or open pages. Installed if that needs no
# password; otherwise those tests are skipped and name the program.
install_other_programs() {
    local missing=()
    command -v dcm2niix >/dev/null || missing+=(dcm2niix)
    command -v dciodvfy >/dev/null || missing+=(dicom3tools)
    # opens the report; the program has several names
    command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
        missing+=(chromium)
    if [ "${#missing[@]}" -eq 0 ] || ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
        return 0
    fi
    apt-get update -qq >/dev/null 2>&1 || true
    local program
    for program in "${missing[@]}"; do # one by one: this system may lack one of them
        apt-get install -y -qq --no-install-recommends "$program" >/dev/null 2>&1 ||
            echo "not installed: $program; the tests that need it are skipped" >&2
    done
}
install_other_programs
