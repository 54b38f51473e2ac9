#!/usr/bin/env bash
# Builds gitmirror.pyz if needed and runs `serve`, with its state in .gitmirror in the checkout:
#
#     scripts/run.sh [URL...]
#
# Registers and mirrors each URL (or path). Without arguments it mirrors this checkout, which needs no network.
# Prints lines to try: `git clone`, `status` and `tui`. Ctrl-C stops it; the next run continues with the same state.
#
# Listens on 127.0.0.1, on ports 9418 (git://), 9419 (HTTP) and 9420 (admin), or on free ports where these are taken.
# GITMIRROR_RUN_GIT, GITMIRROR_RUN_HTTP and GITMIRROR_RUN_ADMIN set other addresses, such as 127.0.0.1:7000; "" turns a
# listener off.
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
# In a git hook, these variables would point at another repository.
# shellcheck disable=SC2046
unset $(git rev-parse --local-env-vars)

gitmirror() {
    "$python" "$root/dist/gitmirror.pyz" --state "$state" --config "$config" "$@"
}

# Usage: address SETTING DEFAULT_PORT. Prints the address to listen on.
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

# Runs git on this checkout, for reading only, whoever owns it and without its hooks.
here() {
    git -C "$root" -c safe.directory='*' -c core.hooksPath=/dev/null "$@"
}

# Creates or updates a full bare repository with the commits of this checkout. A mirror is always full, but this
# checkout may be shallow or partial. In that case the repository gets the tree of HEAD as one commit without parents,
# with the date and the message of HEAD, so that it has the same id at each run.
feed_local_upstream() {
    local branch tree date refspecs
    here rev-parse --quiet --verify 'HEAD^{commit}' >/dev/null ||
        fail "there is no commit to mirror in $root; give a URL: $0 URL"
    # A detached HEAD gets a branch, because a clone of a mirror without a default branch has no files.
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
        # Where foo has become foo/bar, the old ref blocks the new one, so all refs are deleted and pushed again.
        here push --quiet --prune "$local_upstream" "${refspecs[@]}" 2>/dev/null || {
            git -C "$local_upstream" for-each-ref --format='delete %(refname)' |
                git -C "$local_upstream" update-ref --stdin
            here push --quiet "$local_upstream" "${refspecs[@]}"
        }
    fi
}

# Usage: file_url PATH. Prints the path as a URL, because a URL can represent spaces.
file_url() {
    "$python" -c 'import pathlib, sys; print(pathlib.Path(sys.argv[1]).as_uri())' "$1"
}

# Usage: register URL [OPTION...]. Registers an upstream, which need not be reachable yet, and notes its URL and name.
urls=()
names=()
register() {
    local added
    # `|| return` is needed, because errexit is off in a function whose call is followed by ||.
    added=$(gitmirror add-repo "$@" --allow-local --no-wait --json) || return
    urls+=("$1")
    names+=("$("$python" -c 'import json, sys; print(json.loads(sys.argv[1])["name"])' "$added")")
}

# Reads what serve prints. Once it is ready, waits for the first clones and prints the lines to try.
announce() {
    local ready i program
    program=$(printf '%q --state %q --config %q' "$root/dist/gitmirror.pyz" "$state" "$config")
    if read -r ready; then
        # "ready git://HOST:PORT ...", without git:// if that is off.
        ready=${ready#ready }
        printf '\nIn another terminal, its health and the live view:\n\n'
        printf '    %s %s\n' "$program" status "$program" tui
        for i in "${!names[@]}"; do
            # Adding again changes nothing, and waits for the first clone.
            if gitmirror add-repo "${urls[i]}" --name "${names[i]}" --allow-local; then
                if [ "${names[i]}" = "$local_name" ]; then
                    # A clone from an earlier run is not due for a refresh yet, but its upstream has just been updated.
                    gitmirror refresh "$local_name" >/dev/null || true
                fi
                printf '\nIn another terminal:\n\n    git clone %s/%s\n\n' "${ready%% *}" "${names[i]}"
            fi
        done
    fi
    # serve keeps its standard output open for as long as it runs.
    cat >/dev/null
}

python=$(find_python)
"$root/scripts/build_pyz.sh"
mkdir -p "$state"
export SHIV_ROOT=$state/shiv
if ! [ -e "$config" ]; then
    cat >"$config" <<'EOF'
# The configuration of scripts/run.sh, which created this file and does not change it again. You may edit it.
[refresh]
allow_local = true
EOF
fi

if [ $# -eq 0 ]; then
    feed_local_upstream
    register "$(file_url "$local_upstream")" --name "$local_name" ||
        fail "if this checkout has been moved, its old state cannot be used; remove it: rm -r $state"
fi
for url in "$@"; do
    register "$url"
done

git_address=$(address GITMIRROR_RUN_GIT 9418)
http_address=$(address GITMIRROR_RUN_HTTP 9419)
admin_address=$(address GITMIRROR_RUN_ADMIN 9420)
# exec replaces this shell, so that serve gets every signal sent to it.
exec "$python" "$root/dist/gitmirror.pyz" --state "$state" --config "$config" serve \
    --git "$git_address" --http "$http_address" --admin "$admin_address" > >(announce)
