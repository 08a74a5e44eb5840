# Sourced by test.sh: programs of others that some tests compare results with or look at pages with. Installed where that needs no password;
# elsewhere those tests skip and name the program.
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
    if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1; then
        echo "not installed: ${missing[*]}; the tests that need them skip" >&2
    fi
}
install_other_programs
