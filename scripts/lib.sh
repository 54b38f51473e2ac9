# shellcheck shell=bash
# Functions that the scripts share. Source it from the top of the checkout.

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Prints the path of a CPython 3.11 or newer that can create virtual environments: $PYTHON when it is set, else the
# first suitable one of python3, python3.14 ... python3.11, python.
find_python() {
    local candidate path without_venv=""
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        # It must run: a name on PATH may be a shim for a version that is not installed.
        path=$("$candidate" -c '
import sys
if sys.version_info < (3, 11) or sys.implementation.name != "cpython":
    raise SystemExit("too old, or not CPython")
print(sys.executable)' 2>/dev/null) || continue
        if "$path" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$path"
            return
        fi
        without_venv=${without_venv:-$path}
    done
    if [ -n "$without_venv" ]; then
        fail "$without_venv has no venv module (on Debian and Ubuntu: apt install python3-venv)"
    fi
    if [ -n "${PYTHON:-}" ]; then
        fail "PYTHON=$PYTHON is not a CPython 3.11 or newer that runs"
    fi
    fail "no CPython 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3 $0"
}

# Usage: make_venv DIR LOCK_FILE [LABEL]
# Creates a virtual environment in DIR with exactly the packages in LOCK_FILE. Creates it again when the lock file, the
# interpreter or LABEL has changed, or when the last attempt was cut short; otherwise returns at once.
make_venv() {
    local folder=$1 lock_file=$2 label=${3:-} python stamp
    python=$(find_python)
    stamp=$("$python" - "$lock_file" "$label" <<'EOF'
import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest(), sys.version.split()[0], sys.executable, sys.argv[2])
EOF
    )
    if [ "$(cat "$folder/stamp" 2>/dev/null)" = "$stamp" ] && [ -x "$folder/bin/python" ]; then
        return
    fi
    echo "making $folder from $lock_file ($python)" >&2
    rm -rf "$folder"
    mkdir -p "$(dirname "$folder")"
    "$python" -m venv "$folder"
    # --no-deps, because the lock file is complete except for pip: a package depends on it, and every venv has it.
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps \
        --only-binary :all: --require-hashes --requirement "$lock_file"
    echo "$stamp" >"$folder/stamp"
}

# Makes .venv with everything that tests need. The checkout is installed as a link to itself, so the environment works for
# this directory only. Installs the checkout again when pyproject.toml changes.
make_test_venv() {
    hold_lock build/venv.lock
    make_venv .venv requirements/dev.txt "$PWD"
    if ! [ .venv/installed -nt pyproject.toml ]; then
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
            --no-deps --no-index --no-build-isolation --editable .
        touch .venv/installed
    fi
    release_lock
}

# Usage: hold_lock LOCK_FILE
# Lets only one script at a time continue: waits while another holds LOCK_FILE. Does not wait without flock(1).
hold_lock() {
    mkdir -p "$(dirname "$1")"
    exec 9>"$1"
    if command -v flock >/dev/null; then
        flock 9
    fi
}

# Lets the next script continue before this one ends.
release_lock() {
    exec 9>&-
}
