#!/bin/sh
# The gitmirror guest kit. `. ./guest.sh` defines gitmirror_hydrate, gitmirror_record and gitmirror_redirect;
# run as a program it takes one of these names, without gitmirror_, as its first argument:
#
#     . ./guest.sh
#     gitmirror_hydrate jomcgi/homelab /workspace
#     gitmirror_record my-session /workspace
#
# POSIX sh and git are needed; curl or wget, tar and timeout are used when there are any. Each function runs in a
# subshell: no option, variable or directory of the caller is touched. Messages go to stderr.
# shellcheck disable=SC2030,SC2031

# Rendered by the mirror; the environment wins: GITMIRROR_GIT, GITMIRROR_HTTP, GITMIRROR_UPSTREAM,
# GITMIRROR_MAX_LAG (seconds), GITMIRROR_DEADLINE (seconds in all, 120), GITMIRROR_TOKEN.
gitmirror__git='@GIT@'
gitmirror__http='@HTTP@'
# One line for each mirrored repository: OWNER/REPO and the URL of its upstream.
gitmirror__repositories='@REPOSITORIES@'

# gitmirror_hydrate OWNER/REPO DIR [BRANCH | TAG | COMMIT | session:SESSION]
# A workspace in DIR, which may exist when it is empty: from the snapshot, else by git from the mirror, else from the
# upstream itself. The last line on stdout is `hydrated via=snapshot|mirror|upstream commit=OID ms=N`.
gitmirror_hydrate() (
    set +eu
    gitmirror__begin
    if [ $# -lt 2 ] || [ $# -gt 3 ]; then
        gitmirror__usage 'gitmirror_hydrate OWNER/REPO DIR [BRANCH | TAG | COMMIT | session:SESSION]'
    fi
    repo=$1 dir=$2 want=${3-} via='' commit=''
    gitmirror__check_repo "$repo"
    upstream=${GITMIRROR_UPSTREAM:-$(gitmirror__upstream_of "$repo")}
    case $want in
    session:*) gitmirror__check_session "${want#session:}" ;;
    -* | *' '* | *'..'*) gitmirror__usage "$want is no branch, tag, commit or session" ;;
    esac
    if gitmirror__is_oid "$want"; then kind=commit; else kind=name; fi
    case $want in session:*) kind=session ;; '') kind=default ;; esac

    gitmirror__choose_place "$dir"
    trap 'rm -rf "$tmp"' EXIT
    trap 'exit 1' HUP INT TERM

    usable=yes
    if [ -n "${GITMIRROR_MAX_LAG-}" ] || [ "$kind" = commit ]; then
        gitmirror__ask_freshness
    fi
    if [ "$usable" = yes ] && gitmirror__from_snapshot; then
        via=snapshot
    elif [ "$usable" = yes ] && gitmirror__from_git "$(gitmirror__mirror_url "$repo")" mirror; then
        via=mirror
    elif [ "$kind" != session ] && gitmirror__from_git "$upstream/" upstream; then
        via=upstream
    else
        gitmirror__die "no workspace of $repo${want:+ at $want} could be had, not from the mirror and not from $upstream"
    fi
    gitmirror__settle || gitmirror__die "the workspace cannot be moved to $dir"
    trap - EXIT
    gitmirror__elapsed
    echo "hydrated via=$via commit=$commit ms=$elapsed"
)

# gitmirror_record SESSION [DIR]
# Commits what changed in DIR (default: here) and pushes HEAD to refs/agents/SESSION on the mirror, forced: the mirror
# keeps every turn. The last line on stdout is `recorded ref=REF commit=OID` or `recorded nothing`.
gitmirror_record() (
    set +eu
    gitmirror__begin
    if [ $# -lt 1 ] || [ $# -gt 2 ]; then gitmirror__usage 'gitmirror_record SESSION [DIR]'; fi
    session=$1
    gitmirror__check_session "$session"
    cd "${2:-.}" || gitmirror__die "there is no directory ${2:-.}"
    git_dir=$(git rev-parse --absolute-git-dir 2>/dev/null) || gitmirror__die "${2:-.} is no git workspace"
    cd "$(git rev-parse --show-toplevel)" || exit 1
    repo=$(git config gitmirror.repository) || repo=$(gitmirror__repo_of_origin) ||
        gitmirror__die 'this workspace names no repository: hydrate it, or git config gitmirror.repository OWNER/REPO'
    base=$(git config gitmirror.base)

    # An agent that was killed leaves its lock; its turn is over.
    rm -f "$git_dir/index.lock" "$git_dir/HEAD.lock"
    if [ -z "${GIT_COMMITTER_EMAIL-}${EMAIL-}$(git config user.email)" ]; then
        GIT_AUTHOR_NAME=agent GIT_AUTHOR_EMAIL=agent@gitmirror.invalid
        GIT_COMMITTER_NAME=agent GIT_COMMITTER_EMAIL=agent@gitmirror.invalid
        export GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL GIT_COMMITTER_NAME GIT_COMMITTER_EMAIL
    fi
    git -c core.hooksPath=/dev/null add -A --ignore-errors >&2 ||
        gitmirror__say 'some files could not be added; the others are recorded'
    if ! git diff --cached --quiet 2>/dev/null || [ -e "$git_dir/MERGE_HEAD" ]; then
        git -c core.hooksPath=/dev/null -c commit.gpgSign=false -c gc.auto=0 -c core.editor=true \
            commit --quiet --no-verify -m "Turn of $session" >&2 || gitmirror__die 'the commit failed; nothing was recorded'
    fi
    commit=$(git rev-parse --verify --quiet HEAD) || { echo 'recorded nothing'; exit 0; }
    if [ "$commit" = "$base" ]; then
        echo 'recorded nothing'
        exit 0
    fi
    gitmirror__push "$(gitmirror__mirror_url "$repo")" "refs/agents/$session" ||
        gitmirror__die "$commit could not be pushed to the mirror; it stays as HEAD of this workspace"
    git config gitmirror.base "$commit"
    echo "recorded ref=refs/agents/$session commit=$commit"
)

# gitmirror_redirect
# Sends the URLs of mirrored repositories to the mirror when it answers, each exactly, and `git push` still to the upstream.
# When the mirror is gone the redirect is taken out again.
gitmirror_redirect() (
    set +eu
    gitmirror__begin
    place=${XDG_CONFIG_HOME:-$HOME/.config}/git
    rules=$place/gitmirror.redirect
    mkdir -p "$place" || gitmirror__die "$place cannot be made"
    if gitmirror__answers; then
        { gitmirror__rules >"$rules.$$" && mv -f "$rules.$$" "$rules"; } || gitmirror__die "$rules cannot be written"
        git config --global --fixed-value --get-all include.path "$rules" >/dev/null ||
            git config --global --add include.path "$rules" || gitmirror__die 'the global git config cannot be written'
    else
        gitmirror__say 'the mirror does not answer: upstreams are used directly'
        [ ! -e "$rules" ] || : >"$rules"
    fi
)

# ---------------------------------------------------------------------------------------------------------------------

gitmirror__say() { echo "gitmirror: $*" >&2; }
gitmirror__die() { gitmirror__say "$@"; exit 1; }
gitmirror__usage() { gitmirror__say "usage: $*"; exit 2; }
gitmirror__has() { command -v "$1" >/dev/null 2>&1; }

# Sets `git` and `http`, and starts the clock: hundredths of a second since boot, read without a process.
gitmirror__begin() {
    IFS=' 	
'
    gitmirror__has git || gitmirror__die 'git is not installed'
    mirror_git=${GITMIRROR_GIT-$gitmirror__git} mirror_http=${GITMIRROR_HTTP-$gitmirror__http}
    mirror_git=${mirror_git%/} mirror_http=${mirror_http%/}
    case ${GITMIRROR_DEADLINE:-120} in *[!0-9]*) gitmirror__usage 'GITMIRROR_DEADLINE takes whole seconds' ;; esac
    case ${GITMIRROR_MAX_LAG-} in *[!0-9]*) gitmirror__usage 'GITMIRROR_MAX_LAG takes whole seconds' ;; esac
    deadline=${GITMIRROR_DEADLINE:-120}
    gitmirror__now
    began=$now
    # No prompt, whatever is asked: nobody is there to answer.
    GIT_TERMINAL_PROMPT=0
    export GIT_TERMINAL_PROMPT
    unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES
}

gitmirror__now() {
    if read -r now _ 2>/dev/null </proc/uptime; then
        now=${now%.*}${now#*.}
    else
        now=$(date +%s)00
    fi
}

gitmirror__elapsed() { gitmirror__now; elapsed=$(((now - began) * 10)); }

# Sets `left` to the whole seconds that a step may take: at most `1/$1` of what is left, at least one.
gitmirror__share() {
    gitmirror__now
    left=$(((deadline - (now - began) / 100) / $1))
    [ "$left" -ge 1 ] || left=1
}

gitmirror__check_repo() {
    case $1 in
    */*/* | /* | */ | *[!A-Za-z0-9._/-]* | ./* | ../* | */. | */..) gitmirror__usage "$1 is not OWNER/REPO" ;;
    */*) ;;
    *) gitmirror__usage "$1 is not OWNER/REPO" ;;
    esac
}

gitmirror__check_session() {
    case $1 in
    '' | .* | -* | *..* | *. | *.lock | *[!A-Za-z0-9._-]*) gitmirror__usage "'$1' is no session name" ;;
    esac
    [ ${#1} -le 128 ] || gitmirror__usage 'a session name has 128 characters at most'
}

gitmirror__is_oid() {
    case $1 in *[!0-9a-f]* | '') return 1 ;; esac
    [ ${#1} -eq 40 ] || [ ${#1} -eq 64 ]
}

gitmirror__upstream_of() {
    while read -r name url; do
        if [ "$name" = "$1" ]; then
            echo "$url"
            return
        fi
    done <<END
$gitmirror__repositories
END
    echo "https://github.com/$1"
}

gitmirror__mirror_url() { echo "${mirror_git:-$mirror_http}/$1"; }

gitmirror__repo_of_origin() {
    url=$(git config remote.origin.url) || return 1
    url=${url%/} url=${url%.git}
    name=${url##*/} rest=${url%/*}
    echo "${rest##*[/:]}/$name"
}

# Runs a command for at most so many seconds, with `timeout` or without.
gitmirror__bounded() {
    seconds=$1
    shift
    if gitmirror__has timeout; then
        timeout "$seconds" "$@"
        return
    fi
    "$@" &
    child=$!
    (sleep "$seconds" && kill "$child" 2>/dev/null) >/dev/null 2>&1 &
    watch=$!
    wait "$child"
    code=$?
    kill "$watch" 2>/dev/null
    return "$code"
}

# Gets a URL of the mirror to stdout. A transfer that stalls for ten seconds is given up.
gitmirror__get() {
    [ -n "$mirror_http" ] || return 1
    if gitmirror__has curl; then
        curl --fail --silent --show-error --connect-timeout 3 --speed-limit 100 --speed-time 10 --max-time "$left" "$@"
    elif gitmirror__has wget; then
        gitmirror__bounded "$left" wget -q -T 10 -O - "$1"
    else
        return 1
    fi
}

gitmirror__answers() {
    left=5
    if [ -n "$mirror_http" ] && { gitmirror__has curl || gitmirror__has wget; }; then
        gitmirror__get "$mirror_http/healthz" >/dev/null 2>&1
    else
        read -r name _ <<END
$gitmirror__repositories
END
        gitmirror__bounded 5 git ls-remote "$(gitmirror__mirror_url "$name")" HEAD >/dev/null 2>&1
    fi
}

# How far behind the mirror is, and whether it has the commit that is wanted: it looks upstream when it has not.
gitmirror__ask_freshness() {
    gitmirror__share 4
    query=''
    [ "$kind" != commit ] || query="?want=$want"
    answer=$(gitmirror__get "$mirror_http/$repo/freshness$query" 2>/dev/null) || return 0
    if [ -n "${GITMIRROR_MAX_LAG-}" ]; then
        lag=${answer#*'"lag": '} lag=${lag%%[.,\}]*}
        case $lag in
        '' | *[!0-9]*) usable=no ;;
        *) [ "$lag" -le "$GITMIRROR_MAX_LAG" ] || usable=no ;;
        esac
        [ "$usable" = yes ] || gitmirror__say "the mirror of $repo is ${lag}s behind: going to the upstream"
    fi
    case $answer in *'"has": false'*) usable=no ;; esac
}

# Sets `tmp`: beside DIR, so that one rename ends it; inside DIR where it exists (a mount point, a read-only parent).
gitmirror__choose_place() {
    inside=no
    target=${1%/}
    if [ -e "$1" ] || [ -L "$1" ]; then
        [ -d "$1" ] || gitmirror__die "$1 is there and is no directory"
        for entry in "$1"/* "$1"/.[!.]* "$1"/..?*; do
            if [ -e "$entry" ] || [ -L "$entry" ]; then gitmirror__die "$1 is not empty; nothing was touched"; fi
        done
        inside=yes
        tmp=$target/.gitmirror.$$
    else
        case $target in */*) parent=${target%/*} ;; *) parent=. ;; esac
        [ -d "${parent:-/}" ] || gitmirror__die "there is no directory ${parent:-/} to put $1 into"
        tmp=${parent:-}/.gitmirror.${target##*/}.$$
    fi
}

gitmirror__fresh_tmp() {
    [ ! -e "$tmp" ] || rm -rf "$tmp"
    mkdir "$tmp" || gitmirror__die "$tmp cannot be made"
}

# The snapshot as one tar, straight into `tmp`; then what is missing to the commit that is wanted.
gitmirror__from_snapshot() {
    [ -n "$mirror_http" ] && gitmirror__has tar && { gitmirror__has curl || gitmirror__has wget; } || return 1
    query=''
    [ "$kind" != name ] || query="?ref=$(gitmirror__encoded "$want")"
    gitmirror__share 2
    gitmirror__fresh_tmp
    set -- "$mirror_http/$repo/workspace.tar$query"
    # The headers come back beside the two exit codes: no file, no further process.
    if gitmirror__has curl && [ -e /proc/self/fd ]; then set -- --dump-header /proc/self/fd/3 "$@"; fi
    # Both ends of the pipe must have ended well: a tar that is cut off between two files looks whole to some.
    ends=$({ { gitmirror__get "$@" 2>/dev/null; echo "get: $?" >&3; } |
        { tar -xf - -C "$tmp" 2>/dev/null; echo "tar: $?" >&3; }; } 3>&1)
    tip=unknown
    while read -r key value; do
        case $key in
        get: | tar:) [ "$value" -eq 0 ] || return 1 ;;
        [Xx]-[Gg]itmirror-[Tt]ip:) tip=${value%%[!0-9a-f]*} ;;
        esac
    done <<END
$ends
END
    read -r commit 2>/dev/null <"$tmp/.git/shallow" || return 1
    read -r _ branch <"$tmp/.git/HEAD"
    branch=${branch#refs/heads/}
    case $kind in
    commit) [ "$commit" = "$want" ] || gitmirror__advance "$want" detached 1 || return 1 ;;
    session) gitmirror__advance "refs/agents/${want#session:}" branch 20 || return 1 ;;
    *)
        [ "$tip" != unknown ] || gitmirror__ask_tip
        [ "$tip" = "$commit" ] || gitmirror__advance "refs/heads/$branch" tip 1 || return 1
        ;;
    esac
    gitmirror__note
}

# wget does not give the headers: the mirror is asked for the tip of the branch. When it does not say, the snapshot's is it.
gitmirror__ask_tip() {
    gitmirror__share 4
    answer=$(gitmirror__get "$mirror_http/$repo/freshness" 2>/dev/null)
    tip=${answer#*'"tip": "'} tip=${tip%%'"'*}
    if [ -n "$query" ] || ! gitmirror__is_oid "$tip"; then tip=$commit; fi
}

# Fetches a little more from the mirror into `tmp` and checks it out.
gitmirror__advance() {
    gitmirror__share 2
    gitmirror__bounded "$left" git -C "$tmp" -c gc.auto=0 fetch --quiet --depth "$3" --no-tags --no-write-fetch-head \
        "$(gitmirror__mirror_url "$repo")" "+$1:refs/gitmirror/wanted" >&2 || return 1
    new=$(git -C "$tmp" rev-parse 'refs/gitmirror/wanted^{commit}') || return 1
    gitmirror__switch "$new" "$2" && git -C "$tmp" update-ref -d refs/gitmirror/wanted && commit=$new
}

# Puts the workspace at a commit: HEAD detached, the branch moved, or the branch and what `origin` had moved.
gitmirror__switch() {
    case $2 in
    detached) git -C "$tmp" -c core.hooksPath=/dev/null checkout --quiet --detach "$1" >&2 ;;
    branch) git -C "$tmp" -c core.hooksPath=/dev/null reset --quiet --hard "$1" >&2 ;;
    tip) git -C "$tmp" -c core.hooksPath=/dev/null reset --quiet --hard "$1" >&2 &&
        git -C "$tmp" update-ref "refs/remotes/origin/$branch" "$1" ;;
    esac
}

# A shallow clone by git, from the mirror or from the upstream, in as few processes as can be.
gitmirror__from_git() {
    address=$1
    case $address in /*) [ "$2" = upstream ] || return 1 ;; esac
    if [ "$2" = upstream ]; then gitmirror__share 1; else gitmirror__share 2; fi
    gitmirror__fresh_tmp
    case $kind in
    default) gitmirror__git clone --quiet --depth 1 --no-tags "$address" "$tmp" || return 1 ;;
    name) gitmirror__git clone --quiet --depth 1 --no-tags --branch "$want" "$address" "$tmp" || return 1 ;;
    *)
        ref=$want
        [ "$kind" = commit ] || ref=refs/agents/${want#session:}
        git init --quiet "$tmp" >&2 || return 1
        gitmirror__git -C "$tmp" fetch --quiet --depth 20 --no-tags --no-write-fetch-head \
            "$address" "+$ref:refs/gitmirror/wanted" || return 1
        gitmirror__git -C "$tmp" checkout --quiet --detach refs/gitmirror/wanted || return 1
        gitmirror__git -C "$tmp" update-ref -d refs/gitmirror/wanted
        ;;
    esac
    commit=$(git -C "$tmp" rev-parse --verify --quiet HEAD) || return 1
    read -r _ branch <"$tmp/.git/HEAD"
    case $branch in refs/heads/*) branch=${branch#refs/heads/} ;; *) branch='' ;; esac
    gitmirror__write_config
    gitmirror__note
}

# git with nothing of a hostile repository run, and no redirect of this guest on `address`: the longest match wins.
gitmirror__git() {
    gitmirror__bounded "$left" git -c "url.$address.insteadOf=$address" -c gc.auto=0 -c core.hooksPath=/dev/null \
        -c advice.detachedHead=false "$@" >&2
}

# The whole config of a workspace that git made, written rather than edited: each edit is a process.
gitmirror__write_config() {
    {
        echo '[core]'
        echo '	repositoryformatversion = 0'
        echo '	filemode = true'
        echo '	bare = false'
        echo '	logallrefupdates = true'
        echo '[remote "origin"]'
        echo "	url = \"$upstream\""
        echo "	fetch = \"+refs/heads/${branch:-*}:refs/remotes/origin/${branch:-*}\""
        [ -z "$branch" ] || printf '[branch "%s"]\n\tremote = origin\n\tmerge = refs/heads/%s\n' "$branch" "$branch"
    } >"$tmp/.git/config"
}

# What `record` needs to know, and where objects that are still missing come from first.
gitmirror__note() {
    {
        printf '[remote "gitmirror"]\n\turl = "%s"\n' "$(gitmirror__mirror_url "$repo")"
        printf '\tpromisor = true\n\tpartialclonefilter = blob:none\n\ttagOpt = --no-tags\n'
        printf '[gitmirror]\n\trepository = %s\n\tbase = %s\n' "$repo" "$commit"
    } >>"$tmp/.git/config"
}

# From `tmp` to its place: one rename, or all entries moved up with `.git` last, so that half a workspace is never one.
gitmirror__settle() {
    if [ "$inside" = no ]; then
        mv "$tmp" "$target"
        return
    fi
    set --
    for entry in "$tmp"/* "$tmp"/.[!.]* "$tmp"/..?*; do
        [ "$entry" = "$tmp/.git" ] || { [ ! -e "$entry" ] && [ ! -L "$entry" ]; } || set -- "$@" "$entry"
    done
    { [ $# -eq 0 ] || mv "$@" "$target/"; } && mv "$tmp/.git" "$target/.git"
}

gitmirror__encoded() {
    # A ref name has no character that a query cannot hold but these.
    rest=$1 out=''
    while [ -n "$rest" ]; do
        char=${rest%"${rest#?}"} rest=${rest#?}
        case $char in
        '%') out=$out%25 ;; '&') out=$out%26 ;; '#') out=$out%23 ;; '+') out=$out%2B ;;
        *) out=$out$char ;;
        esac
    done
    echo "$out"
}

# Pushes HEAD, three times and more while the mirror has to catch up with the commit that this workspace began at.
gitmirror__push() {
    pause=1
    while :; do
        gitmirror__share 1
        said=$(gitmirror__bounded "$left" git -c core.hooksPath=/dev/null -c push.gpgSign=false -c protocol.version=2 \
            push --porcelain --no-verify --force "$1" "HEAD:$2" 2>&1) && return 0
        gitmirror__elapsed
        case $said in
        *'remote rejected'*'shallow update'* | *'missing necessary objects'*)
            [ -z "$base" ] || gitmirror__get "$mirror_http/$repo/freshness?want=$base" >/dev/null 2>&1
            ;;
        *'remote rejected'*)
            gitmirror__say "$said"
            return 1
            ;;
        esac
        if [ $((elapsed / 1000 + pause)) -ge "$deadline" ]; then
            gitmirror__say "$said"
            return 1
        fi
        sleep "$pause"
        [ "$pause" -ge 8 ] || pause=$((pause * 2))
    done
}

# The redirect of each mirrored repository. git takes the longest prefix that matches, so a rule for U would catch U2 and
# U-infra too: identity rules for U and every character that can follow keep those where they are.
gitmirror__rules() {
    while read -r name url; do
        [ -n "$name" ] || continue
        url=${url%.git}
        for suffix in '' .git; do
            printf '[url "%s/%s%s"]\n\tinsteadOf = %s%s\n' "${mirror_git:-$mirror_http}" "$name" "$suffix" "$url" "$suffix"
            for char in A B C D E F G H I J K L M N O P Q R S T U V W X Y Z a b c d e f g h i j k l m n o p q r s t u v w x y z \
                0 1 2 3 4 5 6 7 8 9 . _ -; do
                printf '[url "%s%s%s"]\n\tinsteadOf = %s%s%s\n' "$url" "$suffix" "$char" "$url" "$suffix" "$char"
            done
        done
        printf '[url "%s"]\n\tpushInsteadOf = %s\n' "$url" "$url"
    done <<END
$gitmirror__repositories
END
}

# Sourced or run? The file that `$0` names is this one only when it was run.
gitmirror__line=''
if [ -f "$0" ]; then
    { read -r _ && read -r gitmirror__line; } <"$0" || :
fi
case $gitmirror__line in
'# The gitmirror guest kit.'*)
    case ${1-} in
    hydrate | record | redirect)
        gitmirror__line=$1
        shift
        "gitmirror_$gitmirror__line" "$@"
        exit
        ;;
    *) gitmirror__usage "${0##*/} hydrate | record | redirect ..." ;;
    esac
    ;;
esac
