#!/usr/bin/env bash
# Builds gitmirror.pyz, all of gitmirror in one file. The build is reproducible: the same commit gives the same bytes.
#
#     scripts/build_pyz.sh [OUTPUT]        # default: dist/gitmirror.pyz in the checkout
#
# Needs CPython 3.11 or newer ($PYTHON can name it) and, the first time, a package index. It downloads build tools and
# dependencies into build/ and checks their hashes. Does nothing when OUTPUT is up to date with the checkout.
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
