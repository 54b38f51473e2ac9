#!/usr/bin/env bash
# Tries a gitmirror.pyz with the python3 and the git of this machine: serves a small repository, clones, hydrates and
# records, and prints one line for each step. A failed step ends it with 1:
#
#     scripts/try_file.sh dist/gitmirror.pyz
#
# Everything is in a temporary directory, and the ports are free ones on loopback. `scripts/try_on.sh --arch` runs this
# on another processor.
set -euo pipefail

pyz=$(realpath "${1:?which file? usage: ${0##*/} FILE}")
work=$(mktemp -d "${TMPDIR:-/tmp}/gitmirror-try-file.XXXXXX")
serve="" doing=""
# The end of a step that failed is told here, where its own output does not go.
exec 3>&2

clean_up() {
    local status=$?
    if [ "$status" -ne 0 ] && [ -n "$doing" ]; then
        echo "failed   $doing" >&3
        cat "$work/output" "$work/log" >&3
    fi
    if [ -n "$serve" ]; then
        kill "$serve" 2>/dev/null || true
        wait "$serve" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Usage: step WORDS COMMAND...  Runs the command, whose output is shown only when it fails. Not to be called in a
# condition, where bash would go on after a command that failed.
step() {
    local began=$SECONDS
    doing=$1
    shift
    "$@" >"$work/output" 2>&1
    echo "ok       $doing ($((SECONDS - began)) s)"
    doing=""
}

gitmirror() {
    python3 "$pyz" --state "$work/state" --config "$work/gitmirror.toml" "$@"
}

make_upstream() {
    git init -q -b main "$work/upstream"
    mkdir "$work/upstream/src"
    seq 1 2000 >"$work/upstream/src/numbers"
    git -C "$work/upstream" add .
    git -C "$work/upstream" commit -q -m "Begin"
}

start() {
    # The one file unpacks itself at its first start, which takes long on an emulated processor.
    (exec python3 "$pyz" --state "$work/state" --config "$work/gitmirror.toml" serve) >"$work/ready" 2>"$work/log" &
    serve=$!
    for _ in $(seq 1 1200); do
        read -r _ git http _ <"$work/ready" && return
        kill -0 "$serve" || return 1
        sleep 0.1
    done
    return 1
}

clone_all_ways() {
    for url in "$git/acme/widgets" "$http/acme/widgets"; do
        rm -rf "$work/clone"
        git clone -q --depth 1 --filter=blob:none "$url" "$work/clone"
        cmp "$work/clone/src/numbers" "$work/upstream/src/numbers"
    done
}

hydrate() {
    gitmirror guest-kit >"$work/guest.sh"
    sh "$work/guest.sh" hydrate acme/widgets "$work/workspace" | tee "$work/hydrated"
    grep -q '^hydrated via=snapshot ' "$work/hydrated"
    git -C "$work/workspace" fsck --strict
    [ -z "$(git -C "$work/workspace" status --porcelain)" ]
}

record() {
    echo changed >>"$work/workspace/src/numbers"
    sh "$work/guest.sh" record try-1 "$work/workspace" | grep '^recorded ref=refs/agents/try-1 '
    gitmirror session diff acme/widgets try-1 | grep '^+changed'
}

refused() {
    if git -C "$work/workspace" push -q "$git/acme/widgets" HEAD:refs/heads/main; then
        return 1
    fi
    gitmirror audit verify
}

end() {
    kill -TERM "$serve"
    wait "$serve"
    serve=""
}

# The kit would also take a drive that is attached to this machine.
export HOME=$work GIT_CONFIG_NOSYSTEM=1 GITMIRROR_DRIVES=""
export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@example.org
cat >"$work/gitmirror.toml" <<'END'
[serve]
git = "127.0.0.1:0"
http = "127.0.0.1:0"
admin = "127.0.0.1:0"
[refresh]
allow_local = true
END
: >"$work/log"

echo "$(uname -m), $(python3 --version), $(git --version)"
step "--version" gitmirror --version
step "an upstream to mirror" make_upstream
step "serve starts" start
read -r _ git http _ <"$work/ready"
step "add-repo" gitmirror add-repo "$work/upstream" --name acme/widgets
step "a partial clone over git:// and over HTTP" clone_all_ways
step "the guest kit hydrates from the snapshot" hydrate
step "the guest kit records, and the session has a diff" record
step "a push to a branch is refused, and the log verifies" refused
step "status" gitmirror status
step "serve ends at once" end
