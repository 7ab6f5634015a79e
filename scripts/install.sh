#!/bin/sh
# Makes the project's virtual environment hold at least EXTRAS, at the versions in constraints.txt.
#
#   scripts/install.sh EXTRAS              install what is missing (e.g. service,training)
#   scripts/install.sh --installed EXTRAS  only say, by the exit status, whether nothing is missing
#
# PYTHON       interpreter for a new environment; default: the first that fits on PATH
# VENV         the environment's folder; default .venv
# TORCH_INDEX  index to install PyTorch from; default: pip's own configuration if that has a build
#              without CUDA, else PyTorch's CPU index. An address with /cu and a number in it,
#              as PyTorch's own CUDA indexes have, is also the consent to install CUDA.
#
# Extras add up: what an earlier call installed stays. A run that was killed leaves
# VENV/.unfinished, and the next one starts over (from pip's cache, so downloads are not repeated).
set -eu
unset PYTHONPATH PYTHONHOME
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
venv=${VENV:-.venv}
stamp=$venv/.installed
unfinished=$venv/.unfinished
cpu_index=https://download.pytorch.org/whl/cpu

say() { echo "install: $1"; }
fail() {
    echo "install: $1" >&2
    exit 1
}

ask_only=
if [ "${1:-}" = --installed ]; then
    ask_only=yes
    shift
fi
[ $# -eq 1 ] || fail "usage: scripts/install.sh [--installed] EXTRAS"
wanted=$1

# The stamp: the two files' hash, the checkout it was made for (an environment that is copied
# elsewhere still imports the old checkout), and the extras.
fingerprint=$(cat pyproject.toml constraints.txt | sha256sum | cut -d ' ' -f 1)
stamp_line() { sed -n "$1p" "$stamp" 2>/dev/null || true; }
union() { printf '%s' "$1" | tr ',' '\n' | sed '/^$/d' | sort -u | paste -s -d , -; }

runs() { [ -x "$venv/bin/python" ] && "$venv/bin/python" -c "$1" >/dev/null 2>&1; }
usable() {
    [ ! -e "$unfinished" ] && runs 'import pip' || return 1
    [ ! -e "$stamp" ] || [ "$(stamp_line 3)" = "$root" ] || return 1
    [ -z "${PYTHON:-}" ] || [ "$(minor "$PYTHON")" = "$(minor "$venv/bin/python")" ]
}
minor() { "$1" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null || true; }
installed() {
    [ "$(stamp_line 1)" = "$fingerprint" ] && usable &&
        [ "$(union "$(stamp_line 2),$wanted")" = "$(stamp_line 2)" ]
}

if [ -n "$ask_only" ]; then
    installed
    exit
fi
if installed; then
    say "nothing to do ($(stamp_line 2) in $venv)"
    exit 0
fi

# One installation at a time: two `make` side by side would write into each other's files.
if command -v flock >/dev/null 2>&1; then
    mkdir -p .cache
    exec 9>.cache/install.lock
    if ! flock -n 9; then
        say "waiting for another installation in this checkout"
        flock 9
        if installed; then
            say "nothing to do ($(stamp_line 2) in $venv)"
            exit 0
        fi
    fi
fi

scratch=$(mktemp -d)
log=$scratch/pip.log
report=$scratch/report.json
trap 'rm -rf "$scratch"' EXIT
trap 'echo "install: stopped; run it again to finish" >&2; exit 130' INT TERM

# --- the environment -----------------------------------------------------------------------
if ! usable; then
    if [ -d "$venv" ] && [ -n "$(ls -A "$venv")" ]; then
        # A wrong VENV must not cost anybody a folder.
        [ -e "$venv/pyvenv.cfg" ] || [ -e "$unfinished" ] ||
            fail "$venv is not a virtual environment; set VENV to another folder, or remove it."
        say "replacing $venv, which is incomplete, from another Python or from another checkout"
        rm -rf "$venv"
    fi
    python=
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if "$candidate" -c 'import ensurepip, sys, venv
raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "no Python >=3.11,<3.13 with venv; scripts/preflight.sh says how to get one."
    say "$venv with $("$python" -V)"
    mkdir -p "$venv"
    touch "$unfinished"
    "$python" -m venv "$venv" >"$log" 2>&1 || {
        cat "$log" >&2
        fail "'$python -m venv $venv' failed, see above."
    }
fi
# Before the first change: from here to the stamp, a kill leaves the environment half-made.
touch "$unfinished"

# pip's output is a page per run, so it is shown only when it failed.
pip() {
    "$venv/bin/python" -m pip "$@" >"$log" 2>&1 || {
        cat "$log" >&2
        return 1
    }
}
pinned() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" constraints.txt; }
# What the last report would install whose name begins with nvidia-, or that depends on such.
cuda_packages() {
    "$venv/bin/python" - "$report" <<'PY'
import json
import re
import sys

with open(sys.argv[1]) as file:
    installs = [entry["metadata"] for entry in json.load(file)["install"]]
named = [metadata["name"] for metadata in installs]
needed = [
    re.split(r"[^A-Za-z0-9._-]", requirement)[0]
    for metadata in installs
    for requirement in metadata.get("requires_dist", ())
    if "extra ==" not in requirement
]
print(" ".join(sorted({name for name in named + needed if name.startswith("nvidia-")})))
PY
}

pip_version=$(pinned pip)
if ! runs "import pip; raise SystemExit(pip.__version__ != '$pip_version')"; then
    say "pip $pip_version"
    pip install "pip==$pip_version" || fail "pip $pip_version could not be installed, see above."
fi

# --- PyTorch, first and alone: PyPI's own build brings gigabytes of CUDA --------------------
torch_version=$(pinned torch)
if ! runs "import importlib.metadata as m
raise SystemExit(m.version('torch').split('+')[0] != '$torch_version')"; then
    if [ -n "${TORCH_INDEX:-}" ]; then
        index=$TORCH_INDEX
        source="the index in TORCH_INDEX" # not its address, which may hold a password
    elif "$venv/bin/python" -m pip install --quiet --dry-run --no-deps --ignore-installed \
        --report "$report" "torch==$torch_version" >"$log" 2>&1 && [ -z "$(cuda_packages)" ]; then
        index=
        source="where pip's configuration points"
    else
        index=$cpu_index
        source=$index
    fi
    say "PyTorch $torch_version from $source (about 200 MB)"
    # --no-deps: the rest comes from the ordinary index, which has the pinned versions.
    pip install --no-deps -c constraints.txt "torch==$torch_version" ${index:+--index-url "$index"} ||
        fail "PyTorch $torch_version could not be installed, see above; set TORCH_INDEX to an index with its CPU build that this machine can reach, or PIP_FIND_LINKS to a folder with that wheel."
fi

# --- the project ---------------------------------------------------------------------------
extras=$(union "$wanted,$(stamp_line 2)")
set -- -c constraints.txt --build-constraint constraints.txt -e ".[$extras]"
say "resolving $extras"
pip install --quiet --dry-run --report "$report" "$@" ||
    fail "pip cannot resolve the versions in constraints.txt, see above."
cuda=$(cuda_packages)
case ${TORCH_INDEX:-} in */cu[0-9]*) cuda= ;; esac
[ -z "$cuda" ] ||
    fail "these versions would bring CUDA ($cuda); set TORCH_INDEX=$cpu_index, or another index with PyTorch's CPU build, and run this again."
say "installing $extras"
pip install "$@" || fail "the packages could not be installed, see above."

printf '%s\n%s\n%s\n' "$fingerprint" "$extras" "$root" >"$scratch/stamp"
mv "$scratch/stamp" "$stamp"
rm "$unfinished"
say "done ($extras in $venv)"
