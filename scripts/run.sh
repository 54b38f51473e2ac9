#!/usr/bin/env bash
# Builds gitmirror.pyz when needed and serves here, with its state in .gitmirror of the checkout:
#
#     scripts/run.sh [URL...]
#
# Each URL (or path) is registered and mirrored. Without any, this very checkout is, so that no network is needed.
# Prints the `git clone` lines to try. Ctrl-C stops it; the next run goes on from the same state.
#
# Listens on 127.0.0.1, ports 9418 (git://), 9419 (HTTP) and 9420 (admin), or on free ones where these are taken.
# GITMIRROR_RUN_GIT, GITMIRROR_RUN_HTTP and GITMIRROR_RUN_ADMIN name others, as in 127.0.0.1:7000; "" is none.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib.sh
. "$root/scripts/lib.sh"

state=$root/.gitmirror
config=$state/run.toml
local_name=local/gitmirror
local_upstream=$state/upstream/gitmirror.git

case ${1:-} in
    -*)
        echo "usage: scripts/run.sh [URL...]" >&2
        exit 2
        ;;
esac
# Run from a git hook, these would be about another repository.
# shellcheck disable=SC2046
unset $(git rev-parse --local-env-vars)

gitmirror() {
    "$python" "$root/dist/gitmirror.pyz" --state "$state" --config "$config" "$@"
}

# Usage: address SETTING DEFAULT_PORT. The address to listen on.
address() {
    if [ -n "${!1+set}" ]; then
        echo "${!1}"
    elif "$python" -c '
import socket, sys
with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", int(sys.argv[1])))' "$2" 2>/dev/null; then
        echo "127.0.0.1:$2"
    else
        echo "${0##*/}: port $2 is taken, a free one is used" >&2
        echo "127.0.0.1:0"
    fi
}

# git on this checkout, for reading, whoever owns it and whatever hooks it has.
here() {
    git -C "$root" -c safe.directory='*' -c core.hooksPath=/dev/null "$@"
}

# Makes, or brings up to date, a full bare repository with what is committed in this checkout. A mirror is always
# full, and this checkout may be shallow or partial: then it gets the tree of HEAD as one commit without parents,
# dated like HEAD and with its message, and so of the same id at each run.
feed_local_upstream() {
    local branch tree date refspecs
    here rev-parse --quiet --verify 'HEAD^{commit}' >/dev/null ||
        fail "there is no commit to mirror in $root; name a URL: $0 URL"
    # A detached HEAD gets a branch: of a mirror without a default branch, clones have no files.
    branch=$(here symbolic-ref --quiet --short HEAD) || branch=detached
    if ! [ -f "$local_upstream/HEAD" ]; then
        rm -rf "$local_upstream"
        git init --quiet --bare "$local_upstream"
        git -C "$local_upstream" config receive.denyDeleteCurrent ignore
    fi
    git -C "$local_upstream" symbolic-ref HEAD "refs/heads/$branch"
    if [ "$(here rev-parse --is-shallow-repository)" = true ] ||
        here config --get-regexp '^remote\..*\.promisor$' >/dev/null; then
        tree=$(here rev-parse 'HEAD^{tree}')
        date=$(here log -1 --format=%cd --date=raw)
        here pack-objects --quiet --revs --stdout <<<"$tree" |
            git -C "$local_upstream" index-pack --stdin >/dev/null
        here log -1 --format=%B |
            GIT_AUTHOR_DATE=$date GIT_COMMITTER_DATE=$date git -C "$local_upstream" \
                -c user.name=gitmirror -c user.email=gitmirror@localhost commit-tree "$tree" |
            xargs git -C "$local_upstream" update-ref "refs/heads/$branch"
    else
        refspecs=('+refs/heads/*:refs/heads/*' '+refs/tags/*:refs/tags/*')
        here symbolic-ref --quiet HEAD >/dev/null || refspecs+=("+HEAD:refs/heads/$branch")
        # Where foo has become foo/bar, the old one is in the way of the new one: then from nothing.
        here push --quiet --prune "$local_upstream" "${refspecs[@]}" 2>/dev/null || {
            git -C "$local_upstream" for-each-ref --format='delete %(refname)' |
                git -C "$local_upstream" update-ref --stdin
            here push --quiet "$local_upstream" "${refspecs[@]}"
        }
    fi
}

# Usage: file_url PATH. As a URL, a path may have spaces in it.
file_url() {
    "$python" -c 'import pathlib, sys; print(pathlib.Path(sys.argv[1]).as_uri())' "$1"
}

# Usage: register URL [OPTION...]. Registers what need not be reachable yet, and remembers it.
urls=()
names=()
register() {
    local added
    # Said in full: errexit is off in a function that is followed by ||.
    added=$(gitmirror add-repo "$@" --allow-local --no-wait --json) || return
    urls+=("$1")
    names+=("$("$python" -c 'import json, sys; print(json.loads(sys.argv[1])["name"])' "$added")")
}

# Reads what serve prints: when it is ready, waits for the first clones and prints the lines to try.
announce() {
    local ready i
    if read -r ready; then
        # "ready git://HOST:PORT ...", without git:// if that is off.
        ready=${ready#ready }
        for i in "${!names[@]}"; do
            # Adding again changes nothing, and waits for the first clone.
            if gitmirror add-repo "${urls[i]}" --name "${names[i]}" --allow-local; then
                if [ "${names[i]}" = "$local_name" ]; then
                    # An older clone is not due for a refresh yet, and what it follows has just been fed.
                    gitmirror refresh "$local_name" >/dev/null || true
                fi
                printf '\nIn another terminal:\n\n    git clone %s/%s\n\n' "${ready%% *}" "${names[i]}"
            fi
        done
    fi
    # serve keeps its standard output for as long as it runs.
    cat >/dev/null
}

python=$(find_python)
"$root/scripts/build_pyz.sh"
mkdir -p "$state"
export SHIV_ROOT=$state/shiv
if ! [ -e "$config" ]; then
    cat >"$config" <<'EOF'
# For scripts/run.sh, which wrote it once and leaves it alone: yours to change.
[refresh]
allow_local = true
EOF
fi

if [ $# -eq 0 ]; then
    feed_local_upstream
    register "$(file_url "$local_upstream")" --name "$local_name" ||
        fail "if this checkout has been moved, its state is of no use here: rm -r $state"
fi
for url in "$@"; do
    register "$url"
done

git_address=$(address GITMIRROR_RUN_GIT 9418)
http_address=$(address GITMIRROR_RUN_HTTP 9419)
admin_address=$(address GITMIRROR_RUN_ADMIN 9420)
# In the place of this shell, so that any signal sent to it is serve's.
exec "$python" "$root/dist/gitmirror.pyz" --state "$state" --config "$config" serve \
    --git "$git_address" --http "$http_address" --admin "$admin_address" > >(announce)
