#!/usr/bin/env bash
# Runs all checks: ruff, mypy --strict, import contracts, shellcheck and pytest. Passes its arguments to pytest, which
# runs at the top of the checkout. Skips tests marked slow unless the first argument is --all. With --lint as the first
# argument it runs everything but pytest, and with --tests nothing else:
#
#     scripts/test.sh
#     scripts/test.sh --all
#     scripts/test.sh tests/config -k credentials
#     scripts/test.sh --tests --all tests/clients
#
# Needs CPython 3.11 or newer ($PYTHON can name it), git and, the first time, a package index: it creates .venv from
# requirements/dev.txt, and again when that file changes. It installs the checkout again when pyproject.toml changes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

command -v git >/dev/null || fail "git is missing; the tests run real git"

make_test_venv
# The scripts that are tested find a Python by themselves.
unset PYTHON

step() {
    echo "== $1" >&2
    shift
    "$@"
}
# Prints something only when a contract is broken.
lint_imports() {
    local output
    output=$(.venv/bin/lint-imports --no-cache) || {
        echo "$output" >&2
        return 1
    }
}
# Compiles the tests, once for all workers: in a fresh checkout each of them would otherwise compile them all.
collect() {
    local output
    output=$("$python" -m pytest --collect-only -q 2>&1) || {
        echo "$output" >&2
        return 1
    }
}
python=$PWD/.venv/bin/python
# What is compiled is kept.
unset PYTHONDONTWRITEBYTECODE

lint() {
    local shell_scripts=(.ci/run) shellcheck=.venv/bin/shellcheck file types
    # It takes as long as everything else here, and one processor.
    step "mypy" "$python" -m mypy --strict &
    types=$!
    step "pytest --collect-only" collect
    step "ruff check" .venv/bin/ruff check .
    step "ruff format" .venv/bin/ruff format --check .
    step "lint-imports" lint_imports
    while IFS= read -r file; do
        shell_scripts+=("$file")
    done < <(find scripts appliance systemd -name '*.sh' | sort)
    if ! [ -x $shellcheck ]; then
        # There is no wheel for this platform.
        shellcheck=$(command -v shellcheck) || shellcheck=""
    fi
    if [ -n "$shellcheck" ]; then
        step "shellcheck" "$shellcheck" --external-sources "${shell_scripts[@]}"
    else
        echo "== shellcheck: skipped, because it has no wheel for this platform and is not on PATH" >&2
    fi
    wait $types
}

case ${1-} in
    --lint)
        lint
        exit
        ;;
    --tests) shift ;;
    *) lint ;;
esac

selection=(-m "not slow")
if [ "${1-}" = --all ]; then
    selection=()
    shift
fi
# The tests create many thousands of small files, and on a disk that is a fifth of their time. Where there is room and
# programs may run, they are in memory, and only those of tests that failed stay. PYTEST_DEBUG_TEMPROOT names another
# place.
memory=/dev/shm
if [ -z "${PYTEST_DEBUG_TEMPROOT-}" ] && [ -w $memory ] && [ "$(stat -f -c %T $memory 2>/dev/null)" = tmpfs ] &&
    ! grep -q "^[^ ]* $memory [^ ]* [^ ]*noexec" /proc/mounts &&
    [ "$(df -Pk $memory | awk 'NR == 2 { print $4 }')" -ge 8000000 ] &&
    [ "$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)" -ge 12000000 ]; then
    export PYTEST_DEBUG_TEMPROOT=$memory
    selection+=(-o tmp_path_retention_policy=failed -o tmp_path_retention_count=1)
fi
# Tests wait as much as they work, so there are two workers for a processor. Each has neighbours in a row, which share
# what is built for their module, until one has nothing left to do.
step "pytest" "$python" -m pytest -n "$((2 * $(nproc)))" --dist worksteal "${selection[@]}" "$@"
