#!/bin/sh
# Rewrites constraints.txt: the newest versions that pyproject.toml allows, as installed here.
# PyTorch keeps its pinned version, because the CPU build to use depends on the machine.
set -eu
unset PYTHONPATH PYTHONHOME
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)

"${PYTHON:-python3.11}" -m venv "$scratch/venv"
pip() { "$scratch/venv/bin/python" -m pip --quiet "$@"; }
pip install --upgrade pip setuptools
pip install "$torch" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
pip install -e ".[service,training,test,browser,bench,dev,docs]"
if pip freeze --all | grep '^nvidia-'; then
    echo "constraints: this is a CUDA build of PyTorch; set TORCH_INDEX to an index with its CPU build" >&2
    exit 1
fi
{
    sed -n '/^#/p' constraints.txt
    # The part after + names a build, and which builds exist depends on the index.
    pip freeze --all --exclude-editable | sed 's/+.*//'
} >"$scratch/new"
cp "$scratch/new" constraints.txt
