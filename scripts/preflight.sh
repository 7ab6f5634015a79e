#!/bin/sh
# Says, in one sentence per problem, what this machine lacks to run the project.
#
#   scripts/preflight.sh [EXTRAS]
#
# Nothing is changed. The package index is asked only when EXTRAS still have to be installed.
# PYTHON names one interpreter to use; without it the usual names are tried. VENV as in install.sh.
set -u
unset PYTHONPATH PYTHONHOME

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 1
extras=${1:-service,training}
venv=${VENV:-.venv}

# Measured: 1.6 GB environment, 0.6 GB pip cache, 1 GB models, data and runs; the rest is margin.
first_install_gb=6
later_gb=2

problems=0
problem() {
    echo "preflight: $1" >&2
    problems=$((problems + 1))
}

supported='import sys; raise SystemExit(not (
    sys.implementation.name == "cpython" and (3, 11) <= sys.version_info[:2] < (3, 13)))'

# --- the interpreter -----------------------------------------------------------------------
python=
without_venv=
for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
    # pyenv leaves commands on PATH that exist and do not run.
    "$candidate" -c "$supported" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import ensurepip, ssl, venv' >/dev/null 2>&1; then
        python=$("$candidate" -c 'import sys; print(sys.executable)')
        break
    fi
    without_venv=${without_venv:-$candidate}
done

if [ -z "$python" ]; then
    if [ -n "$without_venv" ]; then
        problem "$without_venv cannot make virtual environments; install its venv, ensurepip and ssl modules (on Debian and Ubuntu: apt install python3-venv)."
    elif [ -n "${PYTHON:-}" ]; then
        problem "PYTHON=$PYTHON is not a CPython >=3.11,<3.13 that runs; unset PYTHON or point it at one."
    else
        problem "no CPython >=3.11,<3.13 on PATH; install python3.11 or python3.12, or set PYTHON to one."
    fi
fi

# --- the machine ---------------------------------------------------------------------------
if [ "$(uname -s) $(uname -m)" != "Linux x86_64" ]; then
    problem "this is $(uname -s) $(uname -m); the pinned wheels need Linux on x86-64, so use such a machine or container."
else
    glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc //p')
    if [ "$(printf '%s\n' 2.28 "${glibc:-0}" | sort -V | head -n 1)" != 2.28 ]; then
        problem "the C library is ${glibc:+glibc $glibc, }not glibc >= 2.28, which the pinned wheels need; use a newer system, such as Debian 10, Ubuntu 20.04 or RHEL 8."
    fi
fi

if [ ! -w . ]; then
    problem "$root is not writable by $(id -un); clone the project into a folder of your own."
fi

if [ -x "$venv/bin/python" ]; then needed_gb=$later_gb; else needed_gb=$first_install_gb; fi
free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
if [ "${free_kb:-0}" -lt $((needed_gb * 1000 * 1000)) ]; then
    problem "$((${free_kb:-0} / 1000)) MB are free in $root and ${needed_gb} GB are needed; free some space or clone to a larger disk."
fi

[ "$problems" -eq 0 ] || exit 1
if sh scripts/install.sh --installed "$extras"; then
    echo "preflight: ok (already installed)"
    exit 0
fi

# --- what only an installation needs -------------------------------------------------------
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

if ! "$python" -m venv "$scratch/venv" >"$scratch/log" 2>&1; then
    problem "'$python -m venv' fails; reinstall that Python with its venv and ensurepip modules (on Debian and Ubuntu: apt install python3-venv)."
    exit 1
fi
# A package that must be installed anyway, so a mirror or folder that has the project's needs has it.
probe=$(grep -i '^typing[-_]extensions==' constraints.txt)
if ! PIP_USER=0 "$scratch/venv/bin/python" -m pip --retries 1 --timeout 30 --disable-pip-version-check \
    --no-input install --quiet --dry-run --no-deps "$probe" >"$scratch/log" 2>&1; then
    problem "pip finds no $probe; check the network, or set PIP_INDEX_URL (or pip.conf) to an index this machine can reach."
    exit 1
fi
echo "preflight: ok ($python)"
