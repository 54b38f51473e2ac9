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
# GITMIRROR_MAX_LAG and GITMIRROR_DEADLINE (seconds, or 30s, 5m; the deadline is of the whole, 120). GITMIRROR_TOKEN is the
# read token of a private repository: it goes to the mirror over HTTP, and is in no argument, no file and no message.
gitmirror__git='@GIT@'
gitmirror__http='@HTTP@'
# One line for each mirrored repository: OWNER/REPO and the URL of its upstream.
gitmirror__repositories='@REPOSITORIES@'

# gitmirror_hydrate OWNER/REPO DIR [BRANCH | TAG | COMMIT | session:SESSION]
# A workspace in DIR, which may exist when it is empty: from the snapshot, else by git from the mirror, else from the
# upstream itself. The last line on stdout is `hydrated via=snapshot|mirror|upstream commit=OID ms=N`.
gitmirror_hydrate() (gitmirror__hydrate "$@")
gitmirror__hydrate() {
    gitmirror__begin
    if [ $# -lt 2 ] || [ $# -gt 3 ] || [ -z "$2" ]; then
        gitmirror__usage 'gitmirror_hydrate OWNER/REPO DIR [BRANCH | TAG | COMMIT | session:SESSION]'
    fi
    repo=${1%.git} want=${3-} commit=''
    gitmirror__is_repo "$repo" || gitmirror__usage "$1 is not OWNER/REPO"
    case $want in
    '') kind=default ;;
    session:*) kind=session && gitmirror__check_session "${want#session:}" ;;
    -* | *..* | *[[:cntrl:]\ ~^:?*[\\]*) gitmirror__usage "'$want' is no branch, tag, commit or session" ;;
    *) if gitmirror__is_oid "$want"; then kind=commit; else kind=name; fi ;;
    esac
    gitmirror__set_upstream
    # LFS pointers stay pointers, as in the snapshot: their contents are not the mirror's to give.
    GIT_LFS_SKIP_SMUDGE=1
    export GIT_LFS_SKIP_SMUDGE
    # All that is written until the end is removed with the claim, so nothing needs the time to tidy up.
    signal=KILL
    late=''
    trap 'late=yes' HUP INT TERM
    gitmirror__claim "$2"
    trap gitmirror__interrupted HUP INT TERM
    [ -z "$late" ] || gitmirror__interrupted
    gitmirror__await gitmirror__obtain || { gitmirror__release; exit 1; }
    # The workspace is whole: a signal that comes now comes after it.
    trap '' HUP INT TERM
    gitmirror__settle || { gitmirror__release; gitmirror__die "the workspace cannot be moved to $2"; }
    { read -r via && read -r commit; } <"$claim/$turn/result"
    gitmirror__release
    gitmirror__now
    echo "hydrated via=$via commit=$commit ms=$(((now - began) * 10))"
}

# Puts a workspace into `tmp`, and how it came and which commit it is beside that.
gitmirror__obtain() {
    exec >&2
    usable=yes
    if [ -n "$max_lag" ] || [ "$kind" = commit ]; then gitmirror__ask_freshness; fi
    if [ "$usable" = yes ] && gitmirror__from_snapshot; then
        via=snapshot
    elif [ "$usable" = yes ] && gitmirror__from_mirror; then
        via=mirror
    elif [ "$kind" != session ] && gitmirror__from_upstream; then
        via=upstream
    else
        gitmirror__die "no workspace of $repo${want:+ at $want} could be had, not from the mirror and not from $upstream"
    fi
    echo "$via$newline$commit" >"$claim/$turn/result"
}

# gitmirror_record SESSION [DIR]
# Commits what changed in DIR (default: here) and pushes HEAD to refs/agents/SESSION on the mirror, forced: the mirror
# keeps every turn. The last line on stdout is `recorded ref=REF commit=OID` or `recorded nothing`; exit code 3 when
# something could not be kept, which stderr names.
gitmirror_record() (gitmirror__record "$@")
gitmirror__record() {
    gitmirror__begin
    if [ $# -lt 1 ] || [ $# -gt 2 ] || [ "${2-.}" = '' ]; then gitmirror__usage 'gitmirror_record SESSION [DIR]'; fi
    session=$1 dir=${2-.}
    gitmirror__check_session "$session"
    trap gitmirror__interrupted HUP INT TERM
    gitmirror__await gitmirror__record_turn
}

gitmirror__record_turn() {
    case $dir in -*) dir=./$dir ;; esac
    cd "$dir" || gitmirror__die "there is no directory $dir"
    gitmirror__enter || gitmirror__die "$dir is no git workspace"
    gitmirror__is_repo "$repo" ||
        gitmirror__die 'this workspace names no repository: hydrate it, or git config gitmirror.repository OWNER/REPO'
    # First the submodules, for the workspace's commit has links to theirs; but its own push comes before theirs.
    submodules=''
    gitmirror__find_base
    gitmirror__commit_submodules '' "$from"
    gitmirror__commit
    gitmirror__name_links
    commit=$(git rev-parse --verify --quiet HEAD) || commit=''
    case $recorded in
    "$session "*) known=${recorded#* } ;;
    *) known=$base ;;
    esac
    result='recorded nothing'
    if [ "$commit" != "$known" ]; then
        gitmirror__push_turn ||
            gitmirror__die "$commit could not be pushed to the mirror; it stays as HEAD of this workspace"
        result="recorded ref=refs/agents/$session commit=$pushed"
    fi
    for path in $submodules; do
        (cd "$path" && gitmirror__enter && gitmirror__set_submodule && gitmirror__push_submodule && [ "$lost" = no ]) ||
            gitmirror__lose "submodule $path: not all of it could be pushed; its commit stays there"
    done
    echo "$result"
    [ "$lost" = no ] || exit 3
}

# gitmirror_redirect
# Sends the URLs of mirrored repositories to the mirror when it answers, each exactly, and `git push` still to the upstream.
# When the mirror is gone the redirect is taken out again.
gitmirror_redirect() (gitmirror__redirect "$@")
gitmirror__redirect() {
    gitmirror__begin
    [ $# -eq 0 ] || gitmirror__usage 'gitmirror_redirect'
    [ -n "${XDG_CONFIG_HOME-}${HOME-}" ] || gitmirror__die 'HOME is not set: there is no git config to write to'
    # git writes a file beside it and renames that: as root, a /dev/null would be no device any more.
    [ ! -e "${GIT_CONFIG_GLOBAL-}" ] || [ -f "$GIT_CONFIG_GLOBAL" ] ||
        gitmirror__die "GIT_CONFIG_GLOBAL is $GIT_CONFIG_GLOBAL, which is no file: there is no git config to write to"
    place=${XDG_CONFIG_HOME:-${HOME-}/.config}/git
    rules=$place/gitmirror.redirect
    if gitmirror__answers; then
        [ -d "$place" ] || mkdir -p "$place" || gitmirror__die "$place cannot be made"
        { gitmirror__rules >"$rules.$$" && mv -f "$rules.$$" "$rules"; } || gitmirror__die "$rules cannot be written"
        git config --global --fixed-value --get-all include.path "$rules" >/dev/null ||
            git config --global --add include.path "$rules" || gitmirror__die 'the global git config cannot be written'
    else
        gitmirror__say 'the mirror does not answer: upstreams are used directly'
        [ -e "$rules" ] || exit 0
        git config --global --fixed-value --unset-all include.path "$rules"
        rm -f "$rules" || gitmirror__die "$rules cannot be removed"
    fi
}

# ---------------------------------------------------------------------------------------------------------------------

gitmirror__say() { echo "gitmirror: $1" >&2; }
gitmirror__die() { gitmirror__say "$1"; exit 1; }
# What is not kept lets the rest be recorded.
gitmirror__lose() { gitmirror__say "$1"; lost=yes; }
gitmirror__usage() { gitmirror__say "usage: $1"; exit 2; }
gitmirror__has() { command -v "$1" >/dev/null 2>&1; }

# Sets what every function needs, whatever the caller has set, and starts the clock.
gitmirror__begin() {
    # No pattern is expanded but where it is said so: lists are split at newlines.
    set +euC -f
    # What a caller traces, it may keep.
    [ -z "${GITMIRROR_TOKEN:+set}" ] || set +x
    newline='
' tab='	'
    IFS=$newline
    # Messages of git are read, and bytes are counted. No prompt, whatever is asked: nobody is there to answer.
    LC_ALL=C GIT_TERMINAL_PROMPT=0
    export LC_ALL GIT_TERMINAL_PROMPT
    unset CDPATH TAR_OPTIONS GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES \
        GIT_COMMON_DIR GIT_NAMESPACE GIT_CONFIG GIT_LITERAL_PATHSPECS
    child='' born='' watch='' claim='' by_list='' signal=TERM lost=no
    gitmirror__has git || gitmirror__die 'git is not installed'
    mirror_git=${GITMIRROR_GIT-$gitmirror__git} mirror_http=${GITMIRROR_HTTP-$gitmirror__http}
    mirror_git=${mirror_git%/} mirror_http=${mirror_http%/}
    token=${GITMIRROR_TOKEN-}
    [ -z "$token" ] || gitmirror__use_token
    gitmirror__set_seconds GITMIRROR_DEADLINE "${GITMIRROR_DEADLINE:-120}"
    deadline=$seconds max_lag=''
    if [ -n "${GITMIRROR_MAX_LAG-}" ]; then
        gitmirror__set_seconds GITMIRROR_MAX_LAG "$GITMIRROR_MAX_LAG"
        max_lag=$seconds
    fi
    gitmirror__now
    began=$now
    # Not `$$`: that is the caller, when the kit was sourced.
    kit=$$ kit_born=''
    ! gitmirror__look self || kit=$pid kit_born=$start
}

# git:// carries no token, so the mirror is asked over HTTP alone. git gets it by its environment, for this mirror's URLs
# only and following no redirect; the settings that the caller has put there stay.
gitmirror__use_token() {
    case $token in *[!A-Za-z0-9._~-]*) gitmirror__usage 'GITMIRROR_TOKEN is not a token as the mirror issues it' ;; esac
    if [ -z "$mirror_http" ]; then
        gitmirror__say 'a token is for the mirror over HTTP, and none is named: set GITMIRROR_HTTP'
        return
    fi
    mirror_git='' count=${GIT_CONFIG_COUNT:-0}
    export "GIT_CONFIG_KEY_$count=http.$mirror_http/.extraHeader"
    export "GIT_CONFIG_VALUE_$count=Authorization: Bearer $token"
    count=$((count + 1))
    export "GIT_CONFIG_KEY_$count=http.$mirror_http/.followRedirects" "GIT_CONFIG_VALUE_$count=false"
    export "GIT_CONFIG_COUNT=$((count + 1))"
}

# Sets `seconds` from a duration.
gitmirror__set_seconds() {
    seconds=${2%[smhd]}
    case $seconds in '' | *[!0-9]* | ?????????*) gitmirror__usage "$1 takes seconds, or 30s, 5m, 2h, 7d, not '$2'" ;; esac
    # A leading zero would make it octal.
    while :; do case $seconds in 0?*) seconds=${seconds#0} ;; *) break ;; esac; done
    case $2 in *m) seconds=$((seconds * 60)) ;; *h) seconds=$((seconds * 3600)) ;; *d) seconds=$((seconds * 86400)) ;; esac
}

# Sets `now` to hundredths of a second since boot, read without a process.
gitmirror__now() {
    if read -r now 2>/dev/null </proc/uptime; then
        now=${now%% *}
        # 1 in front of the fraction: 08 would be octal.
        now=$((${now%.*} * 100 + 1${now#*.} - 100))
    else
        now=$(date +%s)00
    fi
}

# Sets `left` to the whole seconds that a step may take: at most `1/$1` of what is left, at least one.
gitmirror__share() {
    gitmirror__now
    left=$(((deadline - (now - began) / 100) / $1))
    [ "$left" -ge 1 ] || left=1
}

gitmirror__is_repo() {
    case $1 in
    */*/* | /* | */ | *[!A-Za-z0-9._/-]* | ./* | ../* | */. | */..) return 1 ;;
    */*) ;;
    *) return 1 ;;
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

# Sets `upstream` for `repo`.
gitmirror__set_upstream() {
    upstream=${GITMIRROR_UPSTREAM-}
    if [ -z "$upstream" ]; then
        upstream=https://github.com/$repo
        for line in $gitmirror__repositories; do
            case $line in "$repo "*) upstream=${line#* } ;; esac
        done
    fi
    upstream=${upstream%/}
}

# Sets `address`: where git finds `repo` on the mirror, "" when no mirror is named.
gitmirror__set_address() {
    address=${mirror_git:-$mirror_http}
    [ -z "$address" ] || address=$address/$repo
    exact=$address
}

# Runs a command for at most so many seconds, and no longer than the kit lives. Where /proc tells who belongs to whom, all
# of it is ended, which not every `timeout` does: a helper of git that hangs on would keep the harness's pipe open.
gitmirror__bounded() {
    if [ -z "$kit_born" ] && gitmirror__has timeout; then
        timeout "$@"
        return
    fi
    gitmirror__start "$@"
    wait "$child"
    code=$?
    kill "$watch" 2>/dev/null
    return "$code"
}

# Runs a function in the background and waits for it: a shell that waits for a foreground command heeds no signal until
# that has ended. A day is as good as forever: what the function does has deadlines of its own.
gitmirror__await() {
    gitmirror__start 86400 "$@"
    wait "$child"
    code=$?
    kill "$watch" 2>/dev/null
    [ "$code" -le 128 ] || gitmirror__say "something has killed it: code $code"
    return "$code"
}

# Starts a command, as `child`, and beside it what ends it when its seconds are over or the kit was killed, as `watch`.
# A look each second suffices, and no `sleep` outlives the kit for longer.
gitmirror__start() {
    limit=$1
    shift
    "$@" &
    child=$! born=''
    ! gitmirror__look "$child" || born=$start
    {
        nap=''
        # `exit`, since a signal may come before there is a nap to end.
        trap 'kill $nap; exit' TERM
        # Not to keep a file system busy that somebody wants to unmount.
        cd /
        while [ "$limit" -gt 0 ] && gitmirror__lives "$kit" "$kit_born"; do
            sleep 1 &
            nap=$!
            wait "$nap"
            limit=$((limit - 1))
        done
        gitmirror__end "$child" "$born"
    } </dev/null >/dev/null 2>&1 3>&- 4>&- &
    watch=$!
}

# A harness has lost patience: everything that the kit has started ends, DIR is as it was.
gitmirror__interrupted() {
    trap '' HUP INT TERM
    if [ -n "$kit_born" ]; then
        gitmirror__end "$kit" "$kit_born"
    else
        for line in $child $watch; do kill "$line" 2>/dev/null; done
    fi
    gitmirror__release
    gitmirror__die 'ended by a signal'
}

# Sets `pid`, `parent`, `state` and `start`, its time since boot, of a process. A process id may soon be another's;
# together with its start it is nobody else's.
gitmirror__look() {
    read -r line 2>/dev/null <"/proc/$1/stat" || return 1
    pid=${line%% *}
    # The name, in parentheses, may have anything in it.
    IFS=' '
    # shellcheck disable=SC2086
    set -- ${line##*) }
    IFS=$newline
    state=${1-} parent=${2-} start=${20-}
}

# Whether a process is still the one that started then. One that waits to be reaped is gone.
gitmirror__lives() {
    [ -n "$2" ] || { kill -0 "$1" 2>/dev/null; return; }
    gitmirror__look "$1" && [ "$start" = "$2" ] && [ "$state" != Z ] && [ "$state" != X ]
}

# Ends a process and all below it; of the kit itself, only what is below. Each is stopped when it is found: what is stopped
# has no further children.
gitmirror__end() {
    gitmirror__lives "$1" "$2" || return 0
    family=$newline$1$newline grown=yes
    [ "$1" = "$kit" ] || kill -STOP "$1" 2>/dev/null
    set +f
    while [ "$grown" = yes ] && [ -n "$2" ]; do
        grown=no
        for entry in /proc/[0-9]*; do
            gitmirror__look "${entry#/proc/}" || continue
            case $family in
            *"$newline$pid$newline"*) ;;
            *"$newline$parent$newline"*) family=$family$pid$newline grown=yes && kill -STOP "$pid" 2>/dev/null ;;
            esac
        done
    done
    set -f
    for pid in $family; do
        [ "$pid" = "$kit" ] || { kill -s "$signal" "$pid" && kill -s CONT "$pid"; } 2>/dev/null
    done
}

# git with no hook, no setting of this guest that changes what is done, and no redirect of `exact`: the longest match wins,
# and nothing matches longer than all of it.
gitmirror__git() {
    gitmirror__bounded "$left" git -c "url.$exact.insteadOf=$exact" -c "url.$exact.pushInsteadOf=$exact" \
        -c core.hooksPath=/dev/null -c core.fsmonitor=false -c gc.auto=0 -c maintenance.auto=false \
        -c submodule.recurse=false -c protocol.version=2 -c advice.detachedHead=false "$@"
}

# Whether there is what gets a URL of the mirror: with a token, something that need not be told it as an argument.
gitmirror__can_get() {
    [ -n "$mirror_http" ] || return 1
    ! gitmirror__has curl || return 0
    gitmirror__has wget || return 1
    gitmirror__know_wget
    [ -z "$token" ] || [ "$by_list" = yes ]
}

# Sets what this wget can: `stall`, its option for a transfer that stalls; `by_list`, to read URLs with a password in them
# from a descriptor. Not every busybox takes -T, and one that does not may crash of it.
gitmirror__know_wget() {
    [ -z "$by_list" ] || return 0
    stall=none by_list=no
    help=$(wget --help 2>&1)
    case $help in *-T\ SEC* | *-T,*) stall=-T10 ;; esac
    case $help in *--auth-no-challenge*) [ ! -e /proc/self/fd/0 ] || by_list=yes ;; esac
}

# Gets a URL of the mirror to stdout, its headers to descriptor 3. A transfer that stalls for ten seconds is given up.
gitmirror__get() {
    if gitmirror__has curl; then
        # By name, since curl writes headers to files only: without /proc they are not had.
        headers=/dev/null
        [ ! -e /proc/self/fd/3 ] || headers=/proc/self/fd/3
        set -- --fail --silent --show-error --connect-timeout 3 --speed-limit 100 --speed-time 10 --max-time "$left" \
            --dump-header "$headers" "$1"
        if [ -z "$token" ]; then
            curl "$@"
        else
            echo "header = \"Authorization: Bearer $token\"" | curl --config - "$@"
        fi
    else
        gitmirror__know_wget
        asked=$1
        # No second try: it would go on where the first one ended, perhaps in another tar.
        set -- -q -S -t 1 -O -
        [ "$stall" = none ] || set -- "$@" "$stall"
        if [ -z "$token" ]; then
            gitmirror__bounded "$left" wget "$@" "$asked" 2>&3 3>&-
        else
            echo "${asked%%://*}://token:$token@${asked#*://}" |
                gitmirror__bounded "$left" wget "$@" --auth-no-challenge --max-redirect=0 -i /proc/self/fd/4 \
                    4<&0 2>&3 3>&-
        fi
    fi
}

# Whether the mirror answers, within five seconds.
gitmirror__answers() {
    gitmirror__share 4
    [ "$left" -le 5 ] || left=5
    if gitmirror__can_get; then
        gitmirror__get "$mirror_http/healthz" >/dev/null 2>&1 3>&1
        return
    fi
    repo=${gitmirror__repositories%%"$newline"*} repo=${repo%% *}
    gitmirror__set_address
    [ -n "$address" ] && gitmirror__git ls-remote "$address" HEAD >/dev/null 2>&1
}

# How far behind the mirror is, and whether it has the commit that is wanted: it looks upstream when it has not.
gitmirror__ask_freshness() {
    gitmirror__share 4
    query=''
    [ "$kind" != commit ] || query="?want=$want"
    answer=''
    ! gitmirror__can_get || answer=$(gitmirror__get "$mirror_http/$repo/freshness$query" 2>/dev/null 3>/dev/null) || answer=''
    case $answer in
    *'"has": false'*)
        usable=no
        gitmirror__say "the mirror of $repo has no $want: going to the upstream"
        ;;
    esac
    [ -n "$max_lag" ] || return 0
    lag=${answer#*'"lag": '} lag=${lag%%[.,\}]*}
    case $lag in
    '' | *[!0-9]*) lag='an unknown number of' ;;
    *) [ "$lag" -ge "$max_lag" ] || return 0 ;;
    esac
    usable=no
    gitmirror__say "the mirror of $repo is $lag seconds behind, which is over $max_lag: going to the upstream"
}

# Claims DIR for this process, and sets `tmp`, where the workspace grows: in the claim, which is beside DIR, so that one
# rename ends it, or inside DIR where that exists (a mount point, a read-only parent).
#
# A claim is a directory of turns, 1, 2, and so on: `mkdir` gives each to one process only, and who finds that the owner
# of the last one is dead takes the next. Turns are never reused while the claim is there, so nobody can take one twice.
gitmirror__claim() {
    target=$1 inside=no
    case $target in -*) target=./$target ;; esac
    while :; do case $target in ?*/) target=${target%/} ;; *) break ;; esac; done
    if [ ! -e "$target" ] && [ ! -L "$target" ]; then
        case $target in */*) parent=${target%/*}/ ;; *) parent=./ ;; esac
        [ -d "$parent" ] || mkdir -p "$parent" || gitmirror__die "$parent cannot be made, so neither can $1"
        place=$parent.gitmirror.${target##*/}
    else
        [ -d "$target" ] || gitmirror__die "$1 is there and is no directory"
        inside=yes place=$target/.gitmirror
        [ -e "$place" ] || gitmirror__is_free || gitmirror__die "$1 is not empty; nothing was touched"
    fi
    me=$kit
    if read -r line 2>/dev/null </proc/sys/kernel/random/boot_id; then me="$kit $kit_born $line"; fi
    [ "$inside" = no ] || gitmirror__look_beside
    until gitmirror__take_turn; do
        # Somebody was quicker, or its owner has not signed yet.
        sleep 0.1 2>/dev/null || sleep 1
    done
    claim=$place tmp=$place/$turn/.gitmirror.$kit
    # Should the claim be left behind in DIR, git does not see it.
    echo '*' >"$place/$turn/.gitignore"
    gitmirror__take_back
    gitmirror__is_free || { gitmirror__release; gitmirror__die "$1 is not empty; nothing was touched"; }
}

# DIR may have been made after a hydration had claimed it beside: one that lives is refused as ever, one that was killed
# has left a workspace there that nobody would find.
gitmirror__look_beside() {
    case $target in */*) beside=${target%/*}/.gitmirror.${target##*/} ;; *) beside=.gitmirror.$target ;; esac
    [ -d "$beside" ] || return 0
    place=$beside
    gitmirror__find_turn
    gitmirror__refuse_if_owned
    # Not signed: it has only just begun, and will find DIR there.
    [ -z "$owner" ] || gitmirror__remove "$beside"
    place=$target/.gitmirror
}

# Ends the kit when the owner of `turn` lives; sets `owner`.
gitmirror__refuse_if_owned() {
    gitmirror__read_owner
    [ -z "$owner" ] || ! gitmirror__owner_lives || gitmirror__die \
        "another hydration, process ${owner%% *}, is at work in $target; wait for it, or end it with TERM"
}

# Takes the turn after that of a dead owner, or the first. Returns 1 when that has to be tried again.
gitmirror__take_turn() {
    mkdir -p "$place" || gitmirror__die "$place cannot be made"
    gitmirror__find_turn
    gitmirror__refuse_if_owned
    if [ -z "$owner" ] && [ "$turn" -gt 0 ]; then
        # An owner signs at once, unless it was killed before.
        unsigned=$((${unsigned-0} + 1))
        [ "$unsigned" -gt 20 ] || return 1
    fi
    before=$owner turn=$((turn + 1))
    mkdir "$place/$turn" 2>/dev/null || {
        # Somebody has it, or has removed the whole claim; only what cannot be written stays that way.
        failed=$((${failed-0} + 1))
        [ "$failed" -le 20 ] || gitmirror__die "$place/$turn cannot be made"
        return 1
    }
    echo "$me" >"$place/$turn/owner"
    # Meanwhile it may have become another claim, whose owner lives, or an owner may have signed late.
    turn=$((turn - 1))
    gitmirror__read_owner
    turn=$((turn + 1))
    [ "$owner" != "$before" ] || return 0
    rm -rf "${place:?}/$turn"
    return 1
}

# Sets `turn` to the last one that was taken, 0 when there is none.
gitmirror__find_turn() {
    turn=0
    set +f
    for entry in "$place"/[1-9]*; do
        entry=${entry##*/}
        case $entry in *[!0-9]*) ;; *) [ "$entry" -le "$turn" ] || turn=$entry ;; esac
    done
    set -f
}

# Sets `owner` to who has signed `turn`.
gitmirror__read_owner() { read -r owner 2>/dev/null <"$place/$turn/owner" || owner=''; }

gitmirror__owner_lives() {
    IFS=' '
    # shellcheck disable=SC2086
    set -- $owner
    IFS=$newline
    # Of another boot.
    [ "${3-}" = "${me##* }" ] || [ $# -eq 1 ] || return 1
    gitmirror__lives "$1" "${2-}"
}

# Removes what dead owners have left, also what they had already moved up into DIR. A workspace that was finished stays.
gitmirror__take_back() {
    set +f
    for old in "$place"/[1-9]*; do
        [ "$old" != "$place/$turn" ] || continue
        if [ "$inside" = yes ] && [ ! -e "$target/.git" ]; then gitmirror__unmove "$old"; fi
        gitmirror__remove "$old"
    done
    set -f
}

# Takes out of DIR what a turn has moved into it.
gitmirror__unmove() {
    for entry in "$1"/moved/* "$1"/moved/.[!.]* "$1"/moved/..?*; do
        [ -e "$entry" ] || continue
        entry=${entry##*/}
        for left in "$1"/.gitmirror.*; do
            # What is still there was not moved.
            [ -e "$left/$entry" ] || [ -L "$left/$entry" ] || rm -rf "${target:?}/$entry"
        done
    done
}

# Whether DIR may be filled: it is not there, or has nothing but a claim and what a new file system has.
gitmirror__is_free() {
    [ "$inside" = yes ] || { [ ! -e "$target" ] && [ ! -L "$target" ]; return; }
    free=yes
    set +f
    for entry in "$target"/* "$target"/.[!.]* "$target"/..?*; do
        case $entry in
        */lost+found | */.gitmirror) ;;
        *) if [ -e "$entry" ] || [ -L "$entry" ]; then free=no; fi ;;
        esac
    done
    set -f
    [ "$free" = yes ]
}

# Gives the claim back, with all that is in this process's turn.
gitmirror__release() {
    [ -n "$claim" ] || return 0
    gitmirror__remove "$claim/$turn"
    # Another one may have its turn in it already.
    rmdir "$claim" 2>/dev/null
    claim=''
}

# Removes a directory into which something that was killed may still write for a moment.
gitmirror__remove() {
    tries=0
    until rm -rf "$1" 2>/dev/null; do
        tries=$((tries + 1))
        [ "$tries" -lt 30 ] || { gitmirror__say "$1 cannot be removed"; return 1; }
        sleep 0.1 2>/dev/null || sleep 1
    done
}

gitmirror__fresh_tmp() {
    [ ! -e "$tmp" ] || rm -rf "$tmp"
    mkdir "$tmp" || gitmirror__die "$tmp cannot be made"
}

# The snapshot as one tar, straight into `tmp`; then what is missing to the commit that is wanted.
gitmirror__from_snapshot() {
    gitmirror__can_get && gitmirror__has tar || return 1
    query=''
    if [ "$kind" = name ]; then
        gitmirror__encode "$want"
        query="?ref=$encoded"
    fi
    # The modes in the tar are those of the usual umask, and root's tar sets them as they are.
    masked=''
    case $(umask) in 22 | 022 | 0022) ;; *) masked=--no-same-permissions ;; esac
    if [ -n "$masked" ]; then
        case $(tar --help 2>&1) in
        *"$masked"*) ;;
        *) gitmirror__say 'no snapshot: this tar does not heed the umask' && return 1 ;;
        esac
    fi
    gitmirror__share 2
    gitmirror__fresh_tmp
    # Both ends of the pipe must have ended well: a tar that is cut off between two files looks whole to some. Their exit
    # codes come back with the headers: no file, no further process.
    ends=$({
        { gitmirror__get "$mirror_http/$repo/workspace.tar$query" 2>/dev/null; echo "get: $?" >&3; } |
            { tar -xf - ${masked:+"$masked"} -C "$tmp" 2>/dev/null 3>&-; echo "tar: $?" >&3; }
    } 3>&1)
    got='' unpacked='' tip=''
    for line in $ends; do
        # wget puts spaces in front of a header.
        line=${line#"${line%%[! ]*}"}
        case $line in
        'get: '*) got=${line#* } ;;
        'tar: '*) unpacked=${line#* } ;;
        [Xx]-[Gg]itmirror-[Tt]ip:*) tip=${line#*: } tip=${tip%%[!0-9a-f]*} ;;
        esac
    done
    if [ "$got" != 0 ] || [ "$unpacked" != 0 ]; then
        gitmirror__say "no snapshot: its transfer ended with code ${got:-?}, tar with ${unpacked:-?}"
        return 1
    fi
    read -r commit 2>/dev/null <"$tmp/.git/shallow" || return 1
    read -r branch <"$tmp/.git/HEAD"
    branch=${branch#ref: refs/heads/}
    [ -z "${GITMIRROR_UPSTREAM-}" ] || gitmirror__write_config || return 1
    case $kind in
    commit) [ "$commit" = "$want" ] || gitmirror__advance || return 1 ;;
    session) gitmirror__advance || return 1 ;;
    *)
        [ -n "$tip" ] || gitmirror__ask_tip
        [ "$tip" = "$commit" ] || gitmirror__advance || return 1
        ;;
    esac
    gitmirror__note
}

# Without the headers the mirror is asked where the branch is. When it does not say, the snapshot's commit is it.
gitmirror__ask_tip() {
    gitmirror__share 4
    answer=$(gitmirror__get "$mirror_http/$repo/freshness" 2>/dev/null 3>/dev/null)
    tip=${answer#*'"tip": "'} tip=${tip%%'"'*}
    if [ -n "$query" ] || ! gitmirror__is_oid "$tip"; then tip=$commit; fi
}

# Fetches from the mirror what `tmp` still lacks and puts it there: HEAD detached at a commit, or the branch moved.
gitmirror__advance() {
    gitmirror__set_address
    [ -n "$address" ] || return 1
    gitmirror__share 4
    case $kind in
    commit) gitmirror__fetch 1 "$want" && gitmirror__work checkout --quiet --detach FETCH_HEAD && commit=$want ;;
    session)
        gitmirror__fetch 20 "refs/agents/${want#session:}" && gitmirror__work reset --quiet --hard FETCH_HEAD &&
            read -r commit <"$tmp/.git/refs/heads/$branch"
        ;;
    *)
        gitmirror__fetch 1 "+refs/heads/$branch:refs/remotes/origin/$branch" &&
            gitmirror__work reset --quiet --hard "refs/remotes/origin/$branch" &&
            read -r commit <"$tmp/.git/refs/heads/$branch"
        ;;
    esac
}

gitmirror__fetch() { gitmirror__work fetch --quiet --depth "$1" --no-tags "$address" "$2"; }
gitmirror__work() { gitmirror__git -C "$tmp" "$@" >&2; }

# By git from the mirror: over git://, else over HTTP. Each is asked first, for a clone that hangs is waited for longer.
gitmirror__from_mirror() {
    for address in ${mirror_git:+"$mirror_git/$repo"} ${mirror_http:+"$mirror_http/$repo"}; do
        exact=$address
        gitmirror__share 4
        [ "$left" -le 5 ] || left=5
        gitmirror__git ls-remote --quiet "$address" HEAD >/dev/null || continue
        gitmirror__share 2
        ! gitmirror__from_git || return 0
    done
    return 1
}

# By git from the upstream itself: as this guest reaches it, but past a redirect that leads to the mirror.
gitmirror__from_upstream() {
    gitmirror__say "going to $upstream"
    [ -z "$token" ] || gitmirror__say 'the mirror gave nothing for GITMIRROR_TOKEN, which may be expired, revoked or of another
gitmirror: repository; the upstream of a private repository wants a credential of its own'
    rewritten=$(git ls-remote --get-url "$upstream")
    case $rewritten in
    "${mirror_git:-none:}"/* | "${mirror_http:-none:}"/*) ;;
    "$upstream")
        address=$upstream exact=gitmirror:none
        gitmirror__share 1
        gitmirror__from_git
        return
        ;;
    *)
        # It may add what lets this guest in, or be the mirror by another name.
        address=$upstream exact=gitmirror:none
        gitmirror__share 2
        ! gitmirror__from_git || return 0
        ;;
    esac
    address=$upstream/ exact=$upstream/
    gitmirror__share 1
    gitmirror__from_git
}

# A shallow clone of `address`, in as few processes as can be.
gitmirror__from_git() {
    gitmirror__fresh_tmp
    set -- clone --quiet --template= --origin origin --depth 1 --no-tags
    case $kind in
    default) gitmirror__git "$@" "$address" "$tmp" >&2 || return 1 ;;
    name) gitmirror__git "$@" --branch "$want" "$address" "$tmp" >&2 || return 1 ;;
    session) gitmirror__git "$@" --no-checkout "$address" "$tmp" >&2 || return 1 ;;
    commit) git init --quiet --template= "$tmp" >&2 || return 1 ;;
    esac
    read -r branch <"$tmp/.git/HEAD"
    case $branch in 'ref: refs/heads/'*) branch=${branch#ref: refs/heads/} ;; *) branch='' ;; esac
    case $kind in
    session)
        gitmirror__fetch 20 "refs/agents/${want#session:}" && gitmirror__work reset --quiet --hard FETCH_HEAD || return 1
        ;;
    commit)
        gitmirror__fetch 1 "$want" && gitmirror__work checkout --quiet --detach FETCH_HEAD || return 1
        branch=''
        ;;
    esac
    commit=$(git -C "$tmp" rev-parse --verify --quiet HEAD) || return 1
    gitmirror__write_config && gitmirror__note
}

# The config of a workspace, written rather than edited, since each edit is a process: what git found out about this file
# system and repository is kept, `origin` is the upstream.
gitmirror__write_config() {
    kept='' section=''
    while IFS= read -r line; do
        case $line in '['*) section=$line ;; esac
        case $section in '[core]'* | '[extensions]'*) kept=$kept$line$newline ;; esac
    done <"$tmp/.git/config"
    gitmirror__quote "$upstream"
    url=$quoted
    gitmirror__quote "${branch:-*}"
    {
        printf '%s[remote "origin"]\n\turl = "%s"\n' "$kept" "$url"
        printf '\tfetch = "+refs/heads/%s:refs/remotes/origin/%s"\n' "$quoted" "$quoted"
        [ -z "$branch" ] || printf '[branch "%s"]\n\tremote = origin\n\tmerge = "refs/heads/%s"\n' "$quoted" "$quoted"
    } >"$tmp/.git/config"
}

# Sets `quoted` for use between double quotes in a git config; a branch name may have such a quote.
gitmirror__quote() {
    quoted='' rest=$1
    while :; do
        case $rest in
        *[\"\\]*)
            head=${rest%%[\"\\]*}
            rest=${rest#"$head"}
            quoted=$quoted$head\\${rest%"${rest#?}"}
            rest=${rest#?}
            ;;
        *)
            quoted=$quoted$rest
            return
            ;;
        esac
    done
}

# What `record` needs to know, and where objects that are still missing come from first.
gitmirror__note() {
    gitmirror__set_address
    {
        [ -z "$address" ] || printf '[remote "gitmirror"]\n\turl = "%s"\n\tpromisor = true\n\tpartialclonefilter = blob:none\n' \
            "$address"
        [ -z "$address" ] || printf '\ttagOpt = --no-tags\n\tskipFetchAll = true\n[url "%s"]\n\tinsteadOf = "%s"\n' \
            "$address" "$address"
        printf '[gitmirror]\n\trepository = %s\n\tbase = %s\n' "$repo" "$commit"
    } >>"$tmp/.git/config"
}

# From `tmp` to its place: one rename, or all entries moved up with `.git` last, so that half a workspace is never one.
gitmirror__settle() {
    gitmirror__is_free || { gitmirror__say "$target was filled by somebody else meanwhile"; return 1; }
    if [ "$inside" = no ]; then
        mv "$tmp" "$target" || return 1
        # Had it been made in this moment, it would have been moved into it.
        [ -e "$target/${tmp##*/}" ] || return 0
        rm -rf "${target:?}/${tmp##*/}"
        return 1
    fi
    set +f --
    # What is moved is written down first, for whoever finds this process dead.
    mkdir "$claim/$turn/moved" || return 1
    for entry in "$tmp"/* "$tmp"/.[!.]* "$tmp"/..?*; do
        [ "$entry" = "$tmp/.git" ] || { [ ! -e "$entry" ] && [ ! -L "$entry" ]; } || {
            set -- "$@" "$entry"
            : >"$claim/$turn/moved/${entry##*/}" || return 1
        }
    done
    if { [ $# -eq 0 ] || mv "$@" "$target/"; } && mv "$tmp/.git" "$target/.git"; then return 0; fi
    gitmirror__unmove "$claim/$turn"
    return 1
}

# Sets `encoded` to a ref name as it is in a query.
gitmirror__encode() {
    encoded=''
    case $1 in
    *[!A-Za-z0-9._/-]*) rest=$1 ;;
    *) encoded=$1 rest='' ;;
    esac
    while [ -n "$rest" ]; do
        char=${rest%"${rest#?}"} rest=${rest#?}
        case $char in
        [A-Za-z0-9._/-]) encoded=$encoded$char ;;
        *) encoded=$encoded$(printf '%%%02X' "'$char") ;;
        esac
    done
}

# Goes to the top of the git workspace that this directory is in, and sets what its config says and where `git_dir` and
# `store`, its LFS files, are. Only the last of several lines may have a newline in it.
gitmirror__enter() {
    places=$(git rev-parse --is-inside-work-tree --show-cdup --absolute-git-dir && echo .) || return 1
    case $places in "true$newline"*) places=${places#*"$newline"} ;; *) return 1 ;; esac
    git_dir=${places#*"$newline"} git_dir=${git_dir%"$newline".} places=${places%%"$newline"*}
    [ -z "$places" ] || cd "$places" || return 1
    gitmirror__read_notes
    store=$git_dir
    # A worktree shares the LFS files of its repository.
    if read -r line 2>/dev/null <"$git_dir/commondir"; then
        case $line in /*) store=$line ;; *) store=$git_dir/$line ;; esac
    fi
    case $storage in /*) store=$storage ;; *) store=$store/${storage:-lfs} ;; esac
    gitmirror__drop_locks
}

# Sets `repo`, `base` and `recorded` from the workspace's config, and an identity where the guest has none: all of it in
# one process.
gitmirror__read_notes() {
    repo='' base='' recorded='' origin='' name='' email='' storage=''
    author_name='' author_email='' committer_name='' committer_email=''
    for line in $(git config --get-regexp '^(gitmirror\.|user\.|author\.|committer\.|lfs\.storage$|remote\.origin\.url$)'); do
        value=${line#* }
        case $line in
        'gitmirror.repository '*) repo=$value ;;
        'gitmirror.base '*) base=$value ;;
        'gitmirror.recorded '*) recorded=$value ;;
        'remote.origin.url '*) origin=$value ;;
        'lfs.storage '*) storage=$value ;;
        'user.name '*) name=$value ;;
        'user.email '*) email=$value ;;
        'author.name '*) author_name=$value ;;
        'author.email '*) author_email=$value ;;
        'committer.name '*) committer_name=$value ;;
        'committer.email '*) committer_email=$value ;;
        esac
    done
    if [ -z "$repo" ]; then
        origin=${origin%/} origin=${origin%.git}
        repo=${origin%/*}
        repo=${repo##*[/:]}/${origin##*/}
    fi
    email=$email${EMAIL-}
    [ -n "${GIT_AUTHOR_NAME-}$author_name$name" ] || export GIT_AUTHOR_NAME=agent
    [ -n "${GIT_AUTHOR_EMAIL-}$author_email$email" ] || export GIT_AUTHOR_EMAIL=agent@gitmirror.invalid
    [ -n "${GIT_COMMITTER_NAME-}$committer_name$name" ] || export GIT_COMMITTER_NAME=agent
    [ -n "${GIT_COMMITTER_EMAIL-}$committer_email$email" ] || export GIT_COMMITTER_EMAIL=agent@gitmirror.invalid
}

# An agent that was killed leaves its locks; its turn is over.
gitmirror__drop_locks() {
    read -r head <"$git_dir/HEAD"
    set +f
    for lock in "$git_dir"/*.lock "$git_dir/${head#ref: }.lock"; do
        [ ! -e "$lock" ] || rm -f "$lock"
    done
    set -f
}

# Commits all that changed. A merge, rebase or cherry-pick in progress is committed as it stands, conflicts and all.
gitmirror__commit() {
    set -- -c core.hooksPath=/dev/null -c core.fsmonitor=false -c gc.auto=0 -c maintenance.auto=false \
        -c advice.addEmbeddedRepo=false
    git "$@" add -A --ignore-errors >&2
    code=$?
    if [ "$code" -gt 1 ]; then
        gitmirror__say 'git-lfs may be what failed: files go as they are'
        set -- "$@" -c filter.lfs.required=false -c filter.lfs.process= -c filter.lfs.clean=
        git "$@" add -A --ignore-errors >&2
        code=$?
    fi
    case $code in
    0) ;;
    1) gitmirror__lose 'some files could not be added; the others are recorded' ;;
    *) gitmirror__die 'the files cannot be added; nothing was recorded' ;;
    esac
    if ! git "$@" diff --cached --quiet 2>/dev/null || [ -e "$git_dir/MERGE_HEAD" ]; then
        # That git-lfs makes pointers of contents which a session has brought is no change.
        gitmirror__add_contents
        [ -e "$git_dir/MERGE_HEAD" ] || ! gitmirror__is_tree_of_head || return 0
        git "$@" -c commit.gpgSign=false -c core.editor=true \
            commit --quiet --no-verify -m "Turn of $session" >&2 || gitmirror__die 'the commit failed; nothing was recorded'
    fi
}

gitmirror__is_tree_of_head() { [ -n "$tree" ] && [ "$tree" = "$(git rev-parse --verify --quiet 'HEAD^{tree}')" ]; }

# Sets `from`: what the agent's work began at, which upstream has; the empty tree when that is not known.
gitmirror__find_base() {
    from=$base
    [ -n "$from" ] || from=$(git merge-base HEAD refs/remotes/origin/HEAD 2>/dev/null)
    from=$(git rev-parse --verify --quiet "$from^{tree}") || from=$(git hash-object -t tree /dev/null)
}

# Sets `tree` to the index with contents in place of the LFS pointers that came since `from`, "" when there are none. The
# contents of such a pointer are nowhere but in this guest. A pointer that has come from elsewhere has none here.
gitmirror__add_contents() {
    tree=''
    [ -d "$store/objects" ] || return 0
    gitmirror__find_base
    changed=$(git -c core.quotePath=false diff-index --cached --raw --no-renames --diff-filter=AMT "$from")
    blobs=''
    for line in $changed; do
        case $line in :*\ 100644\ * | :*\ 100755\ *) line=${line#* * * } blobs=$blobs${line%% *}$newline ;; esac
    done
    small=$newline
    for line in $(echo "$blobs" | git cat-file --batch-check='%(objectname) %(objectsize)'); do
        # As git-lfs has it, a pointer is smaller than this.
        case $line in *' missing') ;; *) [ "${line#* }" -ge 1024 ] || small=$small${line% *}$newline ;; esac
    done
    gitmirror__find_contents
    [ -n "$pointers" ] || return 0
    contents=$(cd "$store/objects" && echo "$files" | git --git-dir="$git_dir" hash-object -w --no-filters --stdin-paths) ||
        return 0
    # The nth pointer has the nth contents.
    pairs=$newline
    # shellcheck disable=SC2086
    set -- $contents
    for blob in $pointers; do
        pairs=$pairs$blob\ $1$newline
        shift
    done
    entries=''
    for line in $changed; do
        mode=${line#* } blob=${line#* * * } path=${line#*"$tab"}
        mode=${mode%% *} blob=${blob%% *}
        case $pairs in
        *"$newline$blob "*)
            blob=${pairs#*"$newline$blob "}
            entries=$entries$mode\ ${blob%%"$newline"*}$tab$path$newline
            ;;
        esac
    done
    tree=$(
        export GIT_INDEX_FILE="$git_dir/gitmirror.index"
        whole=$(unset GIT_INDEX_FILE; git write-tree --missing-ok) && git read-tree "$whole" &&
            echo "${entries%"$newline"}" | git update-index --index-info && git write-tree --missing-ok
        rm -f "$GIT_INDEX_FILE"
    )
}

# Sets `pointers`, those blobs of `small` that are LFS pointers whose contents are here, and `files`, where those are.
gitmirror__find_contents() {
    pointers='' files='' blob='' pointer=no
    for line in $({ echo "$small" | git cat-file --batch; } 2>/dev/null); do
        case $line in
        *' blob '*)
            case $small in *"$newline${line%% *}$newline"*) blob=${line%% *} pointer=no ;; esac
            ;;
        'version https://git-lfs.github.com/spec/'*) pointer=yes ;;
        'oid sha256:'*)
            object=${line#oid sha256:}
            rest=${object#??}
            object=${object%"$rest"}/${rest%"${rest#??}"}/$object
            if [ "$pointer" = yes ] && [ -f "$store/objects/$object" ]; then
                pointers=$pointers$blob$newline files=$files$object$newline
            fi
            pointer=no
            ;;
        esac
    done
    files=${files%"$newline"}
}

# Pushes what is committed here: HEAD, and on top of it, for the mirror alone, a commit with the contents of LFS files.
# The agent goes on at its own HEAD, where they are pointers. Sets `pushed`.
gitmirror__push_turn() {
    commit=$(git rev-parse --verify --quiet HEAD) pushed=$commit
    gitmirror__add_contents
    if [ -n "$tree" ] && ! gitmirror__is_tree_of_head; then
        pushed=$(git commit-tree -p HEAD -m "LFS files of the turn of $session" "$tree") || pushed=$commit
    fi
    if ! gitmirror__push "refs/agents/$session"; then
        [ "$pushed" != "$commit" ] || return 1
        pushed=$commit
        gitmirror__push "refs/agents/$session" || return 1
        gitmirror__lose 'the contents of new LFS files could not be pushed; the turn has their pointers'
    fi
    git config gitmirror.recorded "$session $commit"
}

# Commits what changed in the submodules of a repository, the innermost first, when their own repository is mirrored here,
# and adds the paths of those that have something to push to `submodules`. Takes the path of the repository, "" or with a
# slash behind, and what to compare it with.
gitmirror__commit_submodules() {
    [ -e "$1.gitmodules" ] || return 0
    for line in $(git -C "./$1" -c core.quotePath=false diff-index --raw --no-renames --ignore-submodules=none "$2"); do
        case $line in :*\ 160000\ *\ *\ *) ;; *) continue ;; esac
        old=${line#* * } old=${old%% *}
        # Kept in the arguments, which a call of this function by itself does not change.
        set -- "$1" "$2" "$1${line#*"$tab"}" "$old"
        # Not checked out, or a name that git has to quote.
        [ -e "$3/.git" ] || continue
        gitmirror__is_submodule_changed "$3" "$4" || continue
        (cd "$3" && gitmirror__enter && gitmirror__set_submodule && gitmirror__is_mirrored) || {
            gitmirror__lose "submodule $3: its repository is not mirrored here; what was done in it is not recorded"
            continue
        }
        old=$4
        git -C "$3" cat-file -e "$old" 2>/dev/null || old=HEAD
        gitmirror__commit_submodules "$3/" "$old"
        (cd "$3" && gitmirror__enter && gitmirror__commit && [ "$lost" = no ]) ||
            gitmirror__lose "submodule $3: not all that changed in it could be committed"
        submodules=$submodules$3$newline
    done
}

# Whether a submodule has files that are not committed, or a commit that neither it was at nor its upstream has.
gitmirror__is_submodule_changed() {
    [ -z "$(git -C "$1" status --porcelain --ignore-submodules=none)" ] || return 0
    [ "$(git -C "$1" rev-parse --verify --quiet HEAD)" != "$2" ] &&
        [ -n "$(git -C "$1" rev-list --max-count=1 HEAD --not --remotes)" ]
}

# Sets `repo` to the name by which the mirror knows the upstream of a submodule: its own, or with the host in front.
gitmirror__set_submodule() {
    origin=${origin%/} origin=${origin%.git} repo=''
    for line in $gitmirror__repositories; do
        url=${line#* } url=${url%/}
        [ "${url%.git}" != "$origin" ] || repo=${line%% *}
    done
    [ -z "$repo" ] || return 0
    case $origin in
    *://*) repo=${origin#*://} ;;
    /* | .*) return 1 ;;
    *:*) repo=${origin%%:*}/${origin#*:} ;;
    esac
    # Without a user.
    case ${repo%%/*} in *@*) repo=${repo#*@} ;; esac
    [ -n "$repo" ]
}

# Whether the mirror has `repo` itself: a fetch of another one of a host that it knows is sent on to the upstream.
gitmirror__is_mirrored() {
    for exact in ${mirror_git:+"$mirror_git/$repo"} ${mirror_http:+"$mirror_http/$repo"}; do
        gitmirror__share 4
        ! gitmirror__git -c http.followRedirects=false ls-remote --quiet "$exact" HEAD >/dev/null 2>&1 || return 0
    done
    return 1
}

gitmirror__push_submodule() {
    commit=$(git rev-parse --verify --quiet HEAD)
    [ "$recorded" != "$session $commit" ] || return 0
    gitmirror__push_turn
}

# Names the git repositories inside of this workspace that are no submodules: only a link to their commit is recorded.
gitmirror__name_links() {
    gitmirror__find_base
    for line in $(git -c core.quotePath=false diff-tree -r --raw --no-renames "$from" HEAD 2>/dev/null); do
        case $line in :*\ 160000\ *\ *\ *) path=${line#*"$tab"} ;; *) continue ;; esac
        modules=$newline
        [ ! -e .gitmodules ] || modules=$(git config --file .gitmodules --get-regexp '^submodule\..*\.path$')$newline
        case $modules in *".path $path$newline"*) continue ;; esac
        case $path in '"'*) ;; *) [ -e "$path/.git" ] || continue ;; esac
        gitmirror__lose "$path is a git repository of its own: a link to its commit is recorded, its files are not"
    done
}

# Pushes `pushed` to a ref of the mirror: five tries, over git:// and HTTP by turns, and more while the mirror has to catch up
# with the commit that this workspace began at.
gitmirror__push() {
    pause=1 try=0 said='no mirror is named: set GITMIRROR_GIT or GITMIRROR_HTTP'
    set -- "$1" ${mirror_git:+"$mirror_git/$repo"} ${mirror_http:+"$mirror_http/$repo"}
    while [ $# -gt 1 ]; do
        address=$2 exact=$2
        [ $# -eq 2 ] || set -- "$1" "$3" "$2"
        gitmirror__share $(($# - 1))
        said=$(gitmirror__git -c push.gpgSign=false -c push.pushOption= -c push.negotiate=false \
            push --porcelain --no-verify --no-follow-tags --no-recurse-submodules --force "$address" "$pushed:$1" 2>&1) &&
            return 0
        try=$((try + 1))
        case $said in
        *'shallow update not allowed'* | *'missing necessary objects'*)
            # Asked for, it looks upstream.
            gitmirror__share 2
            [ -z "$base" ] || ! gitmirror__can_get ||
                gitmirror__get "$mirror_http/$repo/freshness?want=$base" >/dev/null 2>&1 3>&1
            ;;
        *'remote rejected'*) break ;;
        *) [ "$try" -lt 5 ] || break ;;
        esac
        gitmirror__now
        [ $(((now - began) / 100 + pause)) -lt "$deadline" ] || break
        sleep "$pause"
        [ "$pause" -ge 8 ] || pause=$((pause * 2))
    done
    gitmirror__say "$said"
    return 1
}

# The redirect of each mirrored repository. git takes the longest prefix that matches, so a rule for U would catch U2 and
# U-infra too: identity rules for U and every character that can follow keep those where they are.
gitmirror__rules() {
    for line in $gitmirror__repositories; do
        repo=${line%% *} url=${line#* }
        url=${url%/} url=${url%.git}
        gitmirror__set_address
        for suffix in '' .git; do
            printf '[url "%s%s"]\n\tinsteadOf = "%s%s"\n' "$address" "$suffix" "$url" "$suffix"
            rest=ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-
            while [ -n "$rest" ]; do
                char=${rest%"${rest#?}"} rest=${rest#?}
                printf '[url "%s%s%s"]\n\tinsteadOf = "%s%s%s"\n' "$url" "$suffix" "$char" "$url" "$suffix" "$char"
            done
        done
        printf '[url "%s"]\n\tpushInsteadOf = "%s"\n' "$url" "$url"
    done
}

# Sourced or run? The file that `$0` names is this one only when it was run. A shell itself is not looked into.
gitmirror__line=''
case ${0##*/} in
sh | ash | dash | bash | busybox | ksh | mksh | zsh | -*) ;;
*) [ ! -f "$0" ] || [ ! -r "$0" ] || { read -r _ && read -r gitmirror__line; } <"$0" || : ;;
esac
case $gitmirror__line in
'# The gitmirror guest kit.'*)
    case ${1-} in
    hydrate | record | redirect)
        gitmirror__line=$1
        shift
        # No subshell: a signal then reaches the one that cleans up.
        "gitmirror__$gitmirror__line" "$@"
        exit
        ;;
    *) gitmirror__usage "${0##*/} hydrate | record | redirect ..." ;;
    esac
    ;;
esac
