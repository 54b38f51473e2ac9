#!/usr/bin/env bash
# Remakes the lock files in requirements/ from pyproject.toml: the newest versions that fit it, each with the
# hashes of all its files, so that they hold for CPython 3.11 and newer on any platform. Needs the network.
#
#     scripts/lock.sh             # keeps the versions that are locked where they still fit
#     scripts/lock.sh --upgrade   # takes the newest
#
# pip is left out: sqlite-utils names it for a command of its own that gitmirror does not use, and what is
# installed from these files is installed with --no-deps.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

python=$(find_python)
if ! [ -x build/uv/bin/uv ]; then
    "$python" -m venv build/uv
    build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
fi

# Usage: lock OUTPUT SOURCE [OPTION...]
lock() {
    local output=$1
    shift
    build/uv/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
        --no-emit-package pip --no-header --no-annotate --output-file "$output" "$@"
    {
        echo "# Made by scripts/lock.sh from pyproject.toml. Do not edit."
        # uv closes with a note on what it left out.
        sed -e '/^# The following packages/,$d' -e '/^$/d' "$output"
    } >"$output.new"
    mv "$output.new" "$output"
}
lock requirements/runtime.txt pyproject.toml "$@"
lock requirements/dev.txt pyproject.toml --extra dev --constraint requirements/runtime.txt "$@"
printf '%s\n' hatchling shiv | lock requirements/build.txt - --constraint requirements/dev.txt "$@"
