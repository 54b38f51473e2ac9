#!/usr/bin/env bash
# Runs the tests of the live view with another release of Textual than the locked one: the newest that the package
# index has, pre-releases too, or VERSION. Says so and ends when there is none newer. Arguments after VERSION go to
# pytest:
#
#     scripts/try_textual.sh
#     scripts/try_textual.sh 8.2.7 -k marking
#
# The pictures are not compared, because another release may draw a border differently. The environment is
# .venv-textual; nothing else is changed. `.ci/run` runs this, and does not fail when it does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

make_test_venv
locked=$(.venv/bin/python -c 'import importlib.metadata; print(importlib.metadata.version("textual"))')
wanted=${1:-}
if [ $# -gt 0 ]; then
    shift
else
    wanted=$(.venv/bin/python -m pip index versions --pre --disable-pip-version-check textual 2>/dev/null |
        sed -n 's/^Available versions: \([^,]*\).*/\1/p')
    [ -n "$wanted" ] || fail "the package index does not say which releases of textual there are"
    if [ "$wanted" = "$locked" ]; then
        echo "== textual $locked is the newest there is" >&2
        exit 0
    fi
fi

make_venv .venv-textual requirements/dev.txt "textual $wanted"
python=$PWD/.venv-textual/bin/python
"$python" -m pip install --quiet --disable-pip-version-check --no-input --pre "textual==$wanted"
echo "== the live view with textual $wanted in place of $locked" >&2
# The checkout is not installed there, because pytest puts the current directory on its path.
PYTHONPATH=$PWD "$python" -m pytest -n auto -m "not slow" --deselect tests/tui/test_pictures.py tests/tui "$@"
