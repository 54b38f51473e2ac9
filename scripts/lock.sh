#!/usr/bin/env bash
# Updates the lock files in requirements/ from pyproject.toml. They have the hashes of all files of each package, so
# that they are valid for CPython 3.11 and newer on any platform. Needs the network.
#
#     scripts/lock.sh             # keeps locked versions where they still satisfy pyproject.toml
#     scripts/lock.sh --upgrade   # takes the newest versions
#
# pip is left out: sqlite-utils depends on it for a command that gitmirror does not use, and the scripts install from
# these files with --no-deps.
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
        # uv ends its output with a note about the packages it left out.
        sed -e '/^# The following packages/,$d' -e '/^$/d' "$output"
    } >"$output.new"
    mv "$output.new" "$output"
}
lock requirements/runtime.txt pyproject.toml "$@"
lock requirements/dev.txt pyproject.toml --extra dev --constraint requirements/runtime.txt "$@"
printf '%s\n' hatchling shiv | lock requirements/build.txt - --constraint requirements/dev.txt "$@"
