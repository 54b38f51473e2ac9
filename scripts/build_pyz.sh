#!/usr/bin/env bash
# Builds gitmirror.pyz, the whole appliance in one file, reproducibly: one commit gives one sequence of bytes.
#
#     scripts/build_pyz.sh [OUTPUT]        # default: dist/gitmirror.pyz in the checkout
#
# Needs a CPython 3.11 or newer (PYTHON names one) and, the first time, a package index. What it needs besides
# is fetched into build/, by hash. Does nothing when OUTPUT is already made of what is in the checkout.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

if [ $# -gt 1 ] || [[ ${1:-} == -* ]]; then
    echo "usage: scripts/build_pyz.sh [OUTPUT]" >&2
    exit 2
fi
output=${1:-$PWD/dist/gitmirror.pyz}
case $output in
    /*) ;;
    *) output=$caller/$output ;;
esac

hold_lock build/lock
make_venv build/venv requirements/build.txt
exec build/venv/bin/python -I scripts/pyz/pack.py "$output"
