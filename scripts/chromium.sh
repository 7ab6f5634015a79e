#!/bin/sh
# Says where the browser is that `make test-browser` drives; installs Debian's where that may be.
#
# Root on Debian or Ubuntu gets the package chromium, unless there is a browser already. Everybody
# else is told what to do: status 0 all the same, and the tests skip and say so. With
# BROWSER_REQUIRED=1, as in .ci/run, the tests fail instead.
set -u

for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
    if [ -n "$name" ] && command -v "$name" >/dev/null 2>&1; then
        echo "chromium: $(command -v "$name")"
        exit 0
    fi
done
how="install Chromium (on Debian: apt install chromium), or set CHROMIUM to a browser's path"
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "chromium: none here, and only root on Debian may install it; the tests will be skipped: $how" >&2
    exit 0
fi
echo "chromium: installing Debian's (about 100 MB)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if apt-get update -qq >"$log" 2>&1 &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >>"$log" 2>&1; then
    exit 0
fi
cat "$log" >&2
echo "chromium: apt could not install it, see above; the tests will be skipped: $how" >&2
