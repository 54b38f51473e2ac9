#!/bin/sh
# The gitmirror guest kit. `. ./guest.sh` defines gitmirror_hydrate, gitmirror_record, gitmirror_backfill and
# gitmirror_redirect.
# As a program, it takes one of these names without the gitmirror_ prefix as its first argument.
#
#     . ./guest.sh
#     gitmirror_hydrate jomcgi/homelab /workspace
#     gitmirror_record my-session /workspace
#
# It needs POSIX sh and git, and uses curl or wget, tar, timeout and touch if they are installed. Each function runs in a
# subshell, so it changes no option, variable or directory of the caller. Messages go to stderr.
# shellcheck disable=SC2030,SC2031

# The mirror fills these in. The environment takes precedence: GITMIRROR_GIT, GITMIRROR_HTTP, GITMIRROR_UPSTREAM,
# GITMIRROR_MAX_LAG and GITMIRROR_DEADLINE. Durations are in seconds, or like 30s or 5m. The deadline covers the whole
# call and is 120 by default. GITMIRROR_TOKEN is the read token of a private repository: it is sent to the mirror over
# HTTP only, and never appears in an argument, a file or a message.
#
# A machine may bring the workspace as read-only drives. GITMIRROR_DRIVES names their block devices, with commas between
# them, and is empty if none should be used; without it, the kit finds them by their text. Changes go to memory (a tmpfs),
# or to the ext4 on the block device GITMIRROR_UPPER. DIR is then a mount point, and `umount DIR` takes it down.
gitmirror__git='@GIT@'
gitmirror__http='@HTTP@'
# One line for each mirrored repository: OWNER/REPO and its upstream's URL.
gitmirror__repositories='@REPOSITORIES@'
# One line for each repository whose workspaces have a known shape: OWNER/REPO and full, trees or tip.
gitmirror__histories='@HISTORIES@'
# Whether workspaces have submodules by default (yes or no), and what they have in the place of LFS files: content or pointers.
gitmirror__submodules='@SUBMODULES@'
gitmirror__lfs='@LFS@'

# gitmirror_hydrate [--history | --tip] [--submodules] [--only DIR]... OWNER/REPO DIR
#     [BRANCH | TAG | COMMIT | session:SESSION]
# Creates a workspace in DIR, which may exist if it is empty. It comes from the machine's drives, otherwise from the
# snapshot, otherwise by git from the mirror, otherwise from the upstream itself. The last line on stdout is
# `hydrated via=disk|snapshot|mirror|upstream commit=OID ms=N history=full|trees|tip`: it has all objects of the history,
# all but the old contents of files, which git fetches when it needs them, or only the commit. --history demands all
# commits and trees at least, --tip only the commit.
#
# With --submodules, or by default where the node's config says so, submodules that the mirror has are checked out at the
# commits that the workspace records; stderr names the others, which are left empty. --no-submodules leaves out all. With
# --only, these directories alone are checked out, as by `git sparse-checkout`, which can add others later.
gitmirror_hydrate() (gitmirror__hydrate "$@")
gitmirror__hydrate() {
    gitmirror__begin
    asked='' only='' modules=$gitmirror__submodules
    while :; do
        case ${1-} in
        --history | --tip)
            [ -z "$asked" ] || gitmirror__hydrate_usage
            asked=${1#--}
            ;;
        --submodules) modules=yes ;;
        --no-submodules) modules=no ;;
        --only)
            [ $# -gt 1 ] || gitmirror__hydrate_usage
            gitmirror__take_only "$2"
            shift
            ;;
        --only=*) gitmirror__take_only "${1#*=}" ;;
        *) break ;;
        esac
        shift
    done
    if [ $# -lt 2 ] || [ $# -gt 3 ] || [ -z "$2" ]; then gitmirror__hydrate_usage; fi
    repo=${1%.git} want=${3-} commit=''
    gitmirror__is_repo "$repo" || gitmirror__usage "$1 is not OWNER/REPO"
    case $want in
    '') kind=default ;;
    session:*) kind=session && gitmirror__check_session "${want#session:}" ;;
    -* | *..* | *[[:cntrl:]\ ~^:?*[\\]*) gitmirror__usage "'$want' is not a branch, tag, commit or session" ;;
    *) if gitmirror__is_oid "$want"; then kind=commit; else kind=name; fi ;;
    esac
    gitmirror__set_upstream
    gitmirror__set_usual
    gitmirror__set_patience
    # LFS pointers stay pointers when git checks files out; where contents are wanted, they are fetched after that, all at once.
    GIT_LFS_SKIP_SMUDGE=1
    export GIT_LFS_SKIP_SMUDGE
    # Everything written before the end is removed with the claim, so processes need no time to clean up.
    signal=KILL
    trap 'late=yes' HUP INT TERM
    gitmirror__choose_hold
    gitmirror__claim "$2"
    trap gitmirror__interrupted HUP INT TERM
    [ -z "$late" ] || gitmirror__interrupted
    gitmirror__await gitmirror__obtain || { gitmirror__release; exit 1; }
    # The workspace is complete, so ignore signals from here on.
    trap '' HUP INT TERM
    { read -r via && read -r commit && read -r history; } <"$claim/$turn/result"
    gitmirror__settle || { gitmirror__release; gitmirror__die "the workspace cannot be moved to $2"; }
    gitmirror__release
    gitmirror__now
    echo "hydrated via=$via commit=$commit ms=$(((now - began) * 10)) history=$history"
}

# Creates a workspace in `tmp`, or with drives in `hold`, and writes its source, commit and shape to `result` beside it.
gitmirror__obtain() {
    exec >&2
    usable=yes dated=yes
    ! gitmirror__open_disk || disk=yes
    if [ "$disk" = yes ] && [ "$asked" = history ] && [ "$history" = tip ]; then
        disk=no
        gitmirror__say "not using the drive $tree: it has no history"
    fi
    if { [ -n "$max_lag" ] || [ "$kind" = commit ]; } && ! gitmirror__disk_has_commit; then gitmirror__ask_freshness; fi
    if [ "$usable" = yes ] && [ "$disk" = yes ] && gitmirror__from_disk; then
        via=disk
    elif gitmirror__forget_disk && [ "$usable" = yes ] && gitmirror__from_snapshot; then
        via=snapshot
    elif [ "$usable" = yes ] && gitmirror__from_mirror; then
        via=mirror
    elif [ "$kind" != session ] && gitmirror__from_upstream; then
        via=upstream
    else
        gitmirror__die "no workspace of $repo${want:+ at $want} could be fetched from the mirror or from $upstream"
    fi
    # The workspace stands; what is missing in it from here on is named, and does not cost it.
    for part in $only; do
        [ -d "$tmp/$part" ] || gitmirror__say "--only: $commit has no directory $part"
    done
    [ "$via" = upstream ] || gitmirror__note_lfs "$tmp/.git" "$tmp"
    if [ "$modules" = yes ] || [ "$moved" = yes ]; then gitmirror__get_submodules; fi
    [ "$gitmirror__lfs" != content ] || [ "$via$moved" = snapshotno ] || [ "$via$moved" = diskno ] || gitmirror__get_contents "$tmp"
    echo "$via$newline$commit$newline$history" >"$claim/$turn/result" || { gitmirror__check_room; exit 1; }
}

# gitmirror_record SESSION [DIR] [--message TEXT] [--note KEY=VALUE]... [--attach FILE]...
# Commits all changes in DIR (default: the current directory) and force-pushes HEAD to refs/agents/SESSION on the mirror,
# which keeps every turn. The last line on stdout is `recorded ref=REF commit=OID` or `recorded nothing`. The exit code is
# 3 if something could not be recorded; stderr says what.
#
# TEXT is the message of the turn's commit. Notes (at most 64, each a line of at most 4 KiB) and attachments (at most
# 16 MiB each, 64 MiB together) are kept with the turn. If one of these is given and nothing has changed, the turn gets an
# empty commit. FILE is relative to the current directory, not to DIR.
gitmirror_record() (gitmirror__record "$@")
gitmirror__record() {
    gitmirror__begin
    session='' dir=. places=0 message='' notes='' note_count=0 options='' attached=''
    while [ $# -gt 0 ]; do
        case $1 in
        --message | --note | --attach)
            [ $# -gt 1 ] || gitmirror__record_usage
            "gitmirror__take_${1#--}" "$2"
            shift
            ;;
        --message=* | --note=* | --attach=*)
            option=${1%%=*}
            "gitmirror__take_${option#--}" "${1#*=}"
            ;;
        --)
            shift
            for word in "$@"; do gitmirror__take_place "$word"; done
            break
            ;;
        --*) gitmirror__record_usage ;;
        *) gitmirror__take_place "$1" ;;
        esac
        shift
    done
    [ "$places" -ge 1 ] || gitmirror__record_usage
    gitmirror__check_session "$session"
    trap gitmirror__interrupted HUP INT TERM
    gitmirror__await gitmirror__record_turn
}

gitmirror__record_turn() {
    case $dir in -*) dir=./$dir ;; esac
    cd "$dir" || gitmirror__die "there is no directory $dir"
    gitmirror__enter 2>/dev/null || gitmirror__refuse_directory "$dir"
    gitmirror__is_repo "$repo" || gitmirror__die \
        'this workspace names no repository: hydrate it, or run git config gitmirror.repository OWNER/REPO'
    # Commit in the submodules first, because the workspace's commit links to theirs; but push the workspace first.
    submodules=''
    gitmirror__find_base
    gitmirror__commit_submodules '' "$from"
    gitmirror__commit
    gitmirror__name_links
    case $recorded in
    "$session "*) known=${recorded#* } ;;
    *) known=$base ;;
    esac
    gitmirror__commit_words
    commit=$(git rev-parse --verify --quiet HEAD) || commit=''
    result='recorded nothing'
    if [ "$commit" != "$known" ]; then
        gitmirror__push_turn ||
            gitmirror__die "$commit could not be pushed to the mirror; it remains the HEAD of this workspace"
        result="recorded ref=refs/agents/$session commit=$pushed"
        for file in $attached; do gitmirror__attach "$file"; done
        # The repositories of submodules have turns of their own.
        options=''
    fi
    for path in $submodules; do
        (cd "$path" && gitmirror__enter && gitmirror__set_submodule && gitmirror__push_submodule && [ "$lost" = no ]) ||
            gitmirror__lose "submodule $path: some of it could not be pushed; its commit remains in the submodule"
    done
    echo "$result"
    [ "$lost" = no ] || exit 3
}

# gitmirror_backfill [PATH]...
# Fetches all the old contents of these paths (default: of everything) that this workspace lacks, in one request. git
# itself would make a connection for each version that `git blame` or `git log -p` reads. The last line on stdout is
# `backfilled objects=N via=mirror|upstream ms=N` or `backfilled nothing`.
gitmirror_backfill() (gitmirror__backfill "$@")
gitmirror__backfill() {
    gitmirror__begin
    case ${1-} in
    --) shift ;;
    -*) gitmirror__usage 'gitmirror_backfill [PATH]...' ;;
    esac
    trap gitmirror__interrupted HUP INT TERM
    gitmirror__await gitmirror__fill "$@"
}

gitmirror__fill() {
    places=$(git rev-parse --is-inside-work-tree --absolute-git-dir 2>/dev/null && echo .)
    case $places in "true$newline"*) ;; *) gitmirror__refuse_directory "$PWD" ;; esac
    git_dir=${places#*"$newline"} git_dir=${git_dir%"$newline".}
    gitmirror__read_notes
    gitmirror__is_repo "$repo" || repo=''
    given=$#
    for path; do
        shift
        if gitmirror__is_known_path "$path"; then
            set -- "$@" "$path"
        else
            gitmirror__say "no commit in this workspace has '$path'"
        fi
    done
    [ $# -gt 0 ] || [ "$given" -eq 0 ] || exit 1
    gitmirror__find_missing "$@"
    [ "$objects" -gt 0 ] || gitmirror__end_without_missing
    # The mirror reads no longer requests.
    [ "$objects" -le 500000 ] || gitmirror__die \
        "$objects old objects are missing, but one request may name 500000 at most: name the paths that you need"
    if gitmirror__fill_from_mirror; then
        via=mirror
    else
        gitmirror__set_upstream
        [ -n "${GITMIRROR_UPSTREAM-}" ] || upstream=${origin:-$upstream}
        gitmirror__from_upstream gitmirror__fetch_missing || gitmirror__die \
            "$objects old objects could not be fetched from the mirror or from $upstream; nothing was changed"
        via=upstream
    fi
    gitmirror__now
    echo "backfilled objects=$objects via=$via ms=$(((now - began) * 10))"
}

# gitmirror_redirect
# Redirects the exact URLs of mirrored repositories to the mirror if it responds; `git push` still goes to the upstream.
# If the mirror does not respond, removes the redirect.
gitmirror_redirect() (gitmirror__redirect "$@")
gitmirror__redirect() {
    gitmirror__begin
    [ $# -eq 0 ] || gitmirror__usage 'gitmirror_redirect'
    [ -n "${XDG_CONFIG_HOME-}${HOME-}" ] || gitmirror__die 'HOME is not set: there is no git config to write to'
    # git replaces its config file by rename, so as root it would turn /dev/null into a regular file.
    [ ! -e "${GIT_CONFIG_GLOBAL-}" ] || [ -f "$GIT_CONFIG_GLOBAL" ] || gitmirror__die \
        "GIT_CONFIG_GLOBAL is $GIT_CONFIG_GLOBAL, which is not a regular file: there is no git config to write to"
    place=${XDG_CONFIG_HOME:-${HOME-}/.config}/git
    rules=$place/gitmirror.redirect
    if gitmirror__answers; then
        [ -d "$place" ] || mkdir -p "$place" || gitmirror__die "$place cannot be created"
        { gitmirror__rules >"$rules.$$" && mv -f "$rules.$$" "$rules"; } || gitmirror__die "$rules cannot be written"
        git config --global --fixed-value --get-all include.path "$rules" >/dev/null ||
            git config --global --add include.path "$rules" || gitmirror__die 'the global git config cannot be written'
    else
        gitmirror__say 'the mirror does not respond: git will use upstreams directly'
        [ -e "$rules" ] || exit 0
        git config --global --fixed-value --unset-all include.path "$rules"
        rm -rf "$rules" "$rules.lfs" || gitmirror__die "$rules cannot be removed"
    fi
}

# ---------------------------------------------------------------------------------------------------------------------

gitmirror__say() { echo "gitmirror: $1" >&2; }
gitmirror__die() { gitmirror__say "$1"; exit 1; }
# Reports something that cannot be recorded; the rest still is.
gitmirror__lose() { gitmirror__say "$1"; lost=yes; }
gitmirror__usage() { gitmirror__say "usage: $1"; exit 2; }
gitmirror__has() { command -v "$1" >/dev/null 2>&1; }

# Sets up everything that the functions need, independent of the caller's settings, and starts the clock.
gitmirror__begin() {
    # Patterns are expanded only where `set +f` allows it. Lists are split at newlines.
    set +euC -f
    # Do not trace, because a trace would show the token to anybody who stores the output.
    [ -z "${GITMIRROR_TOKEN:+set}" ] || set +x
    newline='
' tab='	'
    IFS=$newline
    # Use the C locale, because git's messages are parsed and bytes counted. No prompts, because nobody can answer them.
    LC_ALL=C GIT_TERMINAL_PROMPT=0
    export LC_ALL GIT_TERMINAL_PROMPT
    unset CDPATH TAR_OPTIONS GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES \
        GIT_COMMON_DIR GIT_NAMESPACE GIT_CONFIG GIT_LITERAL_PATHSPECS GIT_GLOB_PATHSPECS GIT_NOGLOB_PATHSPECS \
        GIT_ICASE_PATHSPECS
    coding='' child='' born='' watch='' more='' claim='' hold='' disk=no history=tip by_list='' signal=TERM lost=no full=no
    late='' moved=no partial=no only='' idle=10
    gitmirror__has git || gitmirror__die 'git is not installed'
    # Disable this guest's fsmonitor and hooks, because even commands that only read the index run the fsmonitor, and
    # others run the hooks.
    gitmirror__configure core.fsmonitor false
    gitmirror__configure core.hooksPath /dev/null
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
    # This is not always `$$`, because `$$` is the caller if the kit was sourced.
    kit=$$ kit_born=''
    # An emulator (qemu-user) invents what a process reads of itself, so another one looks up the start time.
    ! gitmirror__look self || { kit=$pid && kit_born=$(gitmirror__look "$kit" && echo "$start") || kit_born=''; }
}

# git:// cannot carry a token, so only HTTP is used for the mirror. git gets the token through its environment, for this
# mirror's URLs only, and follows no redirect.
gitmirror__use_token() {
    case $token in *[!A-Za-z0-9._~-]*) gitmirror__usage 'GITMIRROR_TOKEN is not a valid read token' ;; esac
    if [ -z "$mirror_http" ]; then
        gitmirror__say 'GITMIRROR_TOKEN works only over HTTP, and the mirror has no HTTP address: set GITMIRROR_HTTP'
        return
    fi
    mirror_git=''
    gitmirror__configure "http.$mirror_http/.extraHeader" "Authorization: Bearer $token"
    gitmirror__configure "http.$mirror_http/.followRedirects" false
}

# Sets a git setting for all git commands of the kit through the environment. Settings that the caller put there stay.
gitmirror__configure() {
    count=${GIT_CONFIG_COUNT:-0}
    export "GIT_CONFIG_KEY_$count=$1" "GIT_CONFIG_VALUE_$count=$2" "GIT_CONFIG_COUNT=$((count + 1))"
}

# Sets `seconds` to the duration $2; $1 is the name of its variable.
gitmirror__set_seconds() {
    seconds=${2%[smhd]}
    case $seconds in '' | *[!0-9]* | ?????????*) gitmirror__usage "$1 takes seconds, or 30s, 5m, 2h, 7d, not '$2'" ;; esac
    # Remove leading zeros, because arithmetic would read the number as octal.
    while :; do case $seconds in 0?*) seconds=${seconds#0} ;; *) break ;; esac; done
    case $2 in *m) seconds=$((seconds * 60)) ;; *h) seconds=$((seconds * 3600)) ;; *d) seconds=$((seconds * 86400)) ;; esac
}

# Sets `now` to hundredths of a second since boot, without starting a process.
gitmirror__now() {
    if read -r now 2>/dev/null </proc/uptime; then
        now=${now%% *}
        # Put 1 in front of the fraction and subtract 100, because 08 would be read as octal.
        now=$((${now%.*} * 100 + 1${now#*.} - 100))
    else
        now=$(date +%s)00
    fi
}

# Sets `left` to the whole seconds that a step may take: `1/$1` of the remaining time, but at least one.
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
    '' | .* | -* | *..* | *. | *.lock | *[!A-Za-z0-9._-]*) gitmirror__usage "'$1' is not a valid session name" ;;
    esac
    [ ${#1} -le 128 ] || gitmirror__usage 'a session name has at most 128 characters'
}

gitmirror__is_oid() {
    case $1 in *[!0-9a-f]* | '') return 1 ;; esac
    [ ${#1} -eq 40 ] || [ ${#1} -eq 64 ]
}

# Sets `upstream` to the upstream URL of `repo`.
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

# Sets the seconds after which a mirror is given up: `patience` if it has not answered git, `idle` if a download stands still.
# A repository that it did not list when it made this kit it may have to clone, for which guests wait ten seconds.
gitmirror__set_patience() {
    case $newline$gitmirror__repositories in
    *"$newline$repo "*) patience=5 idle=10 ;;
    *) patience=15 idle=20 ;;
    esac
}

# Sets `usual` to the shape that workspaces of `repo` have by default, or to "" if that is not known.
gitmirror__set_usual() {
    usual=''
    for line in $gitmirror__histories; do
        case $line in "$repo "*) usual=${line#* } ;; esac
    done
}

# Sets `address` to the URL of `repo` on the mirror, or to "" if no mirror is configured.
gitmirror__set_address() {
    address=${mirror_git:-$mirror_http}
    [ -z "$address" ] || address=$address/$repo
    exact=$address
}

# Runs a command for at most $1 seconds, and no longer than the kit lives. With /proc, all its descendants are ended too,
# which not every `timeout` does: a git helper that hangs would keep the harness's pipe open.
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

# Runs a function in the background and waits for it, because a shell that waits for a foreground command handles no
# signal until that command has ended. The limit is a day, because the function has deadlines of its own.
gitmirror__await() {
    gitmirror__start 86400 "$@"
    wait "$child"
    code=$?
    kill "$watch" 2>/dev/null
    [ "$code" -le 128 ] || gitmirror__say "killed by a signal: exit code $code"
    return "$code"
}

# Starts a command as `child`, and as `watch` a process that ends the command after $1 seconds or when the kit is killed.
# `watch` checks once a second, so its `sleep` outlives the kit by at most a second.
gitmirror__start() {
    limit=$1
    shift
    "$@" &
    child=$! born=''
    ! gitmirror__look "$child" || born=$start
    {
        # Not behind the braces, because there mksh keeps the old descriptors open, and a caller that reads from a pipe would
        # wait for this.
        exec </dev/null >/dev/null 2>&1 3>&- 4>&-
        nap=''
        # `exit` too, because the signal may arrive before there is a `sleep` to end.
        trap 'kill $nap; exit' TERM
        # Leave the current directory, so that its file system can be unmounted.
        cd /
        while [ "$limit" -gt 0 ] && gitmirror__lives "$kit" "$kit_born"; do
            sleep 1 &
            nap=$!
            wait "$nap"
            limit=$((limit - 1))
        done
        # When `child` ends, the kit sends TERM, which must not stop this before the child's descendants are ended too.
        trap '' TERM
        gitmirror__end "$child" "$born"
    } &
    watch=$!
}

# Handles a signal from the harness: ends everything that the kit started, and leaves DIR as it was.
gitmirror__interrupted() {
    trap '' HUP INT TERM
    late=yes
    if [ -n "$kit_born" ]; then
        gitmirror__end "$kit" "$kit_born"
    else
        for line in $child $watch; do kill "$line" 2>/dev/null; done
    fi
    gitmirror__release
    gitmirror__die 'ended by a signal'
}

# Sets `pid`, `parent`, `state` and `start` (its start time since boot) of a process. A process id may be reused soon, but
# together with the start time it is unique.
gitmirror__look() { gitmirror__first_line "/proc/$1/stat" && gitmirror__parse "$line"; }

# Does the same from $1, what the kernel says of a process.
gitmirror__parse() {
    pid=${1%% *}
    # Skip the name in parentheses, which may contain any character.
    IFS=' '
    # shellcheck disable=SC2086
    set -- ${1##*) }
    IFS=$newline
    state=${1-} parent=${2-} start=${20-}
}

# Sets `line` to the first line of a file. Returns 1 if there is none.
gitmirror__first_line() {
    if [ -z "$late" ]; then
        read -r line 2>/dev/null <"$1"
    else
        # Once a shell has handled a signal, `read` never returns there in busybox 1.38.0, nor in what the shell forks.
        line=$(cat "$1" 2>/dev/null) && line=${line%%"$newline"*}
    fi
}

# Whether process $1 with start time $2 is still alive. A zombie counts as dead.
gitmirror__lives() {
    [ -n "$2" ] || { kill -0 "$1" 2>/dev/null; return; }
    gitmirror__look "$1" && [ "$start" = "$2" ] && [ "$state" != Z ] && [ "$state" != X ]
}

# Ends a process and all its descendants; for the kit itself, only the descendants. Each is stopped when it is found,
# because a stopped process starts no further children.
gitmirror__end() {
    gitmirror__lives "$1" "$2" || return 0
    family=$newline$1$newline grown=yes
    [ "$1" = "$kit" ] || kill -STOP "$1" 2>/dev/null
    while [ "$grown" = yes ] && [ -n "$2" ]; do
        grown=no
        set +f
        listed=$(cat /proc/[0-9]*/stat 2>/dev/null)
        set -f
        for entry in $listed; do
            gitmirror__parse "$entry"
            case $family in
            *"$newline$pid$newline"*) ;;
            *"$newline$parent$newline"*)
                # Look again, because a process may have a name that looks like another process's line.
                gitmirror__look "$pid" || continue
                case $family in
                *"$newline$parent$newline"*) family=$family$pid$newline grown=yes && kill -STOP "$pid" 2>/dev/null ;;
                esac
                ;;
            esac
        done
    done
    for pid in $family; do
        [ "$pid" = "$kit" ] || { kill -s "$signal" "$pid" && kill -s CONT "$pid"; } 2>/dev/null
    done
}

# Runs a command, passes on what it prints to stderr, and sets `full` if that says that the disk is full. Without /proc,
# nothing is read, because a helper of git that outlives git would keep the pipe open.
gitmirror__heed() {
    [ -n "$kit_born" ] || { "$@" >&2; return; }
    reason=$("$@" 2>&1)
    code=$?
    [ -z "$reason" ] || printf '%s\n' "$reason" >&2
    gitmirror__read_reason
    return "$code"
}

# Sets `full` if `reason`, what a command printed, is that.
gitmirror__read_reason() {
    # git says of a ref's lock file only that it "couldn't write" it.
    case $reason in *'No space left on device'* | *'Disk quota exceeded'* | *"couldn't write '"*".lock'"*) full=yes ;; esac
}

# Whether a command failed because the disk of directory $1 is full: it said so, or 64 KiB cannot be written there.
gitmirror__is_full() {
    if [ "$full" = no ]; then
        block=0123456789abcdef
        while [ ${#block} -lt 65536 ]; do block=$block$block; done
        # `cat` names the reason, which not every shell does.
        reason=$({ echo "$block" | cat >"$1/.gitmirror.probe.$kit"; } 2>&1)
        rm -f "$1/.gitmirror.probe.$kit"
        gitmirror__read_reason
    fi
    [ "$full" = yes ]
}

# Ends a hydration that failed because the disk of DIR is full, as all other sources need the same room. What is changed in a
# workspace of drives is elsewhere: another source may have room.
gitmirror__check_room() {
    if [ -d "$tmp" ]; then at=$tmp; else at=$claim/$turn; fi
    gitmirror__is_full "$at" || return 0
    [ "$tmp" = "$hold/merged" ] || gitmirror__die \
        "the disk of $target is full: make room on it, or choose another place; nothing was changed"
    gitmirror__refuse_drive "${GITMIRROR_UPPER:-the tmpfs on $hold}, which takes what is changed, is full"
    full=no
}

# Runs git without hooks, without guest settings that change its behaviour, and without a redirect of `exact`: the longest
# matching rule wins, and no rule is longer than the whole URL.
gitmirror__git() {
    gitmirror__bounded "$left" git -c "url.$exact.insteadOf=$exact" -c "url.$exact.pushInsteadOf=$exact" \
        -c core.hooksPath=/dev/null -c core.fsmonitor=false -c gc.auto=0 -c maintenance.auto=false \
        -c submodule.recurse=false -c fetch.recurseSubmodules=false -c protocol.version=2 \
        -c advice.detachedHead=false "$@"
}

# Runs git as gitmirror__git does, for a command that asks a server. If the connection was dropped at once, it tries again
# after a second: some tunnels drop a connection that comes within a second of another one, or before that one has ended.
gitmirror__ask_git() {
    for try in 1 2; do
        gitmirror__now
        asked_at=$now code=0
        { said=$(gitmirror__git "$@" 2>&1 >&4 4>&-) || code=$?; } 4>&1
        if [ "$code" = 0 ] || [ "$try" = 2 ]; then break; fi
        case "$code $said" in
        '141 '* | *'hung up'* | *'reset by peer'* | *'Broken pipe'* | *'Empty reply'* | *'Recv failure'* | *'Send failure'* | \
            *'early EOF'* | *'unexpected disconnect'*) ;;
        *) break ;;
        esac
        gitmirror__now
        if [ $((now - asked_at)) -gt 300 ] || ! gitmirror__pause; then break; fi
    done
    [ -z "$said" ] || echo "$said" >&2
    return "$code"
}

# Waits for a second if the deadline leaves time for it.
gitmirror__pause() {
    gitmirror__now
    [ $(((now - began) / 100 + 2)) -lt "$deadline" ] && sleep 1
}

# Whether a program that can download from the mirror is installed. With a token, it must accept the token other than as
# an argument.
gitmirror__can_get() {
    [ -n "$mirror_http" ] || return 1
    ! gitmirror__has curl || return 0
    gitmirror__has wget || return 1
    gitmirror__know_wget
    [ -z "$token" ] || [ "$by_list" = yes ]
}

# Sets what this wget supports: `stall` is its option to give up a stalled transfer, `once` that to end the connection, and `by_list` is yes if it can read
# URLs with a password from a descriptor. Not every busybox supports -T, and one without it may crash.
gitmirror__know_wget() {
    [ -z "$by_list" ] || return 0
    stall=none by_list=no once=''
    help=$(wget --help 2>&1)
    # busybox does so by itself.
    case $help in *--no-http-keep-alive*) once=--no-http-keep-alive ;; esac
    case $help in *-T\ SEC* | *-T,*) stall=-T$idle ;; esac
    case $help in *--auth-no-challenge*) [ ! -e /proc/self/fd/0 ] || by_list=yes ;; esac
}

# Downloads a URL of the mirror to stdout, and its headers to descriptor 3. Gives up when the transfer stalls for
# `idle` seconds. Asks the mirror to end the connection: some tunnels let nobody else through until it does.
gitmirror__get() {
    if gitmirror__has curl; then
        # This is a path, because curl writes headers only to files. Without /proc there are no headers.
        headers=/dev/null
        [ ! -e /proc/self/fd/3 ] || headers=/proc/self/fd/3
        set -- --fail --silent --show-error --connect-timeout 3 --speed-limit 100 --speed-time "$idle" --max-time "$left" \
            --header 'Connection: close' --dump-header "$headers" "$1"
        [ -z "$coding" ] || set -- "$@" --compressed --header "$coding"
        if [ -z "$token" ]; then
            curl "$@"
        else
            echo "header = \"Authorization: Bearer $token\"" | curl --config - "$@"
        fi
    else
        gitmirror__know_wget
        url=$1
        # No second try, because it would continue where the first one ended, perhaps in another tar.
        set -- -q -S -t 1 -O -
        [ "$stall" = none ] || set -- "$@" "$stall"
        [ -z "$once" ] || set -- "$@" "$once"
        if [ -z "$token" ]; then
            gitmirror__bounded "$left" wget "$@" "$url" 2>&3 3>&-
        else
            echo "${url%%://*}://token:$token@${url#*://}" |
                gitmirror__bounded "$left" wget "$@" --auth-no-challenge --max-redirect=0 -i /proc/self/fd/4 \
                    4<&0 2>&3 3>&-
        fi
    fi
}

# Sets `answer` to what a URL of the mirror answers, headers included.
gitmirror__read() {
    code=0
    answer=$(gitmirror__get "$1" 2>/dev/null 3>&1) || code=$?
    ! gitmirror__was_dropped "$code" "$answer" || { code=0 && answer=$(gitmirror__get "$1" 2>/dev/null 3>&1) || code=$?; }
    return "$code"
}

# Whether a download that ended with code $1, and with $2 for headers, was dropped before it was answered. If so, waits for a
# second, so that it can be tried again: see gitmirror__ask_git. The codes are those of curl, and 1 and 4 those of wget.
gitmirror__was_dropped() {
    case $1 in 1 | 4 | 52 | 55 | 56) ;; *) return 1 ;; esac
    case $2 in *HTTP/* | *refused*) return 1 ;; esac
    gitmirror__pause
}

# Whether the mirror responds within five seconds.
gitmirror__answers() {
    gitmirror__share 4
    [ "$left" -le 5 ] || left=5
    if gitmirror__can_get; then
        gitmirror__read "$mirror_http/healthz"
        return
    fi
    repo=${gitmirror__repositories%%"$newline"*} repo=${repo%% *}
    gitmirror__set_address
    [ -n "$address" ] && gitmirror__ask_git ls-remote "$address" HEAD >/dev/null 2>&1
}

# Checks how far behind the mirror is, and whether it has the wanted commit; the mirror refreshes if it lacks the commit.
gitmirror__ask_freshness() {
    gitmirror__share 4
    query=''
    [ "$kind" != commit ] || query="?want=$want"
    answer=''
    ! gitmirror__can_get || gitmirror__read "$mirror_http/$repo/freshness$query" || answer=''
    case $answer in
    *'"has": false'*)
        usable=no
        gitmirror__say "the mirror of $repo does not have $want: fetching from the upstream"
        ;;
    esac
    [ -n "$max_lag" ] || return 0
    lag=${answer#*'"lag": '} lag=${lag%%[.,\}]*}
    case $lag in
    '' | *[!0-9]*) lag='an unknown number of' ;;
    *) [ "$lag" -ge "$max_lag" ] || return 0 ;;
    esac
    usable=no
    gitmirror__say "the mirror of $repo is $lag seconds behind (limit $max_lag): fetching from the upstream"
}

# Claims DIR for this process, and sets `tmp`, the directory in which the workspace is built. The claim is a directory
# beside DIR, so that one rename completes the workspace, or inside DIR if that exists (a mount point, a read-only
# parent).  A claim holds turns numbered 1, 2, and so on. `mkdir` gives each turn to one process only, and a process
# that finds that the owner of the last turn is dead takes the next one. Numbers are not reused while the claim exists,
# so no turn is taken twice.
gitmirror__claim() {
    target=$1 inside=no
    case $target in -*) target=./$target ;; esac
    while :; do case $target in ?*/) target=${target%/} ;; *) break ;; esac; done
    if [ ! -e "$target" ] && [ ! -L "$target" ]; then
        case $target in */*) parent=${target%/*}/ ;; *) parent=./ ;; esac
        [ -d "$parent" ] || mkdir -p "$parent" || gitmirror__die "$parent cannot be created, so $1 cannot either"
        place=$parent.gitmirror.${target##*/}
    else
        [ -d "$target" ] || gitmirror__die "$1 exists and is not a directory"
        inside=yes place=$target/.gitmirror
        [ -e "$place" ] || gitmirror__is_free || gitmirror__die "$1 is not empty; nothing was changed"
    fi
    me=$kit
    if gitmirror__first_line /proc/sys/kernel/random/boot_id; then me="$kit $kit_born $line"; fi
    [ "$inside" = no ] || gitmirror__look_beside
    until gitmirror__take_turn; do
        # Another process was faster, or the turn's owner has not signed it yet.
        sleep 0.1 2>/dev/null || sleep 1
    done
    claim=$place tmp=$place/$turn/.gitmirror.$kit
    # If the claim is left behind in DIR, git ignores it.
    echo '*' >"$place/$turn/.gitignore"
    gitmirror__take_back
    gitmirror__is_free || { gitmirror__release; gitmirror__die "$1 is not empty; nothing was changed"; }
}

# Checks for a claim beside DIR, because DIR may have been created after another hydration claimed it there. If that
# hydration is alive, this one is refused as usual. If it was killed, its leftovers are removed, as nobody else would.
gitmirror__look_beside() {
    case $target in */*) beside=${target%/*}/.gitmirror.${target##*/} ;; *) beside=.gitmirror.$target ;; esac
    [ -d "$beside" ] || return 0
    place=$beside
    gitmirror__find_turn
    gitmirror__refuse_if_owned
    # Without an owner, that hydration has only just begun and will notice DIR itself.
    [ -z "$owner" ] || gitmirror__remove "$beside"
    place=$target/.gitmirror
}

# Sets `owner`, and ends the kit if the owner of `turn` is alive.
gitmirror__refuse_if_owned() {
    gitmirror__read_owner
    [ -z "$owner" ] || ! gitmirror__owner_lives || gitmirror__die \
        "another hydration, process ${owner%% *}, is at work in $target; wait for it, or end it with SIGTERM"
}

# Takes the first turn, or the one after a dead owner's. Returns 1 if the caller must try again.
gitmirror__take_turn() {
    mkdir -p "$place" || gitmirror__die "$place cannot be created"
    gitmirror__find_turn
    gitmirror__refuse_if_owned
    if [ -z "$owner" ] && [ "$turn" -gt 0 ]; then
        # An owner signs at once, unless it is killed before that.
        unsigned=$((${unsigned-0} + 1))
        [ "$unsigned" -gt 20 ] || return 1
    fi
    before=$owner turn=$((turn + 1))
    mkdir "$place/$turn" 2>/dev/null || {
        # Another process took the turn or removed the whole claim. Only an unwritable directory keeps failing.
        failed=$((${failed-0} + 1))
        [ "$failed" -le 20 ] || gitmirror__die "$place/$turn cannot be created"
        return 1
    }
    echo "$me" >"$place/$turn/owner"
    # Check again, because meanwhile the claim may have been replaced by that of a living owner, or signed late.
    turn=$((turn - 1))
    gitmirror__read_owner
    turn=$((turn + 1))
    [ "$owner" != "$before" ] || return 0
    rm -rf "${place:?}/$turn"
    return 1
}

# Sets `turn` to the last turn that was taken, or to 0.
gitmirror__find_turn() {
    turn=0
    set +f
    for entry in "$place"/[1-9]*; do
        entry=${entry##*/}
        case $entry in *[!0-9]*) ;; *) [ "$entry" -le "$turn" ] || turn=$entry ;; esac
    done
    set -f
}

# Sets `owner` to the signature in `turn`.
gitmirror__read_owner() { if gitmirror__first_line "$place/$turn/owner"; then owner=$line; else owner=''; fi; }

gitmirror__owner_lives() {
    IFS=' '
    # shellcheck disable=SC2086
    set -- $owner
    IFS=$newline
    # A signature from another boot is that of a dead process.
    [ "${3-}" = "${me##* }" ] || [ $# -eq 1 ] || return 1
    gitmirror__lives "$1" "${2-}"
}

# Removes what dead owners left, including files they had already moved into DIR. A finished workspace stays.
gitmirror__take_back() {
    set +f
    for old in "$place"/[1-9]*; do
        [ "$old" != "$place/$turn" ] || continue
        if [ "$inside" = yes ] && [ ! -e "$target/.git" ]; then gitmirror__unmove "$old"; fi
        gitmirror__remove "$old"
    done
    set -f
}

# Removes from DIR what a turn moved into it.
gitmirror__unmove() {
    for entry in "$1"/moved/* "$1"/moved/.[!.]* "$1"/moved/..?*; do
        [ -e "$entry" ] || continue
        entry=${entry##*/}
        for left in "$1"/.gitmirror.*; do
            # An entry that is still in the turn was not moved.
            [ -e "$left/$entry" ] || [ -L "$left/$entry" ] || rm -rf "${target:?}/$entry"
        done
    done
}

# Whether DIR may be filled: it does not exist, or it contains only a claim and lost+found.
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

# Releases the claim, and removes everything in this process's turn.
gitmirror__release() {
    [ -n "$claim" ] || return 0
    gitmirror__close_disk
    gitmirror__remove "$claim/$turn"
    # This fails if another process already has a turn in the claim.
    rmdir "$claim" 2>/dev/null
    claim=''
}

# Removes a directory to which a killed process may still be writing for a moment.
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
    mkdir "$tmp" || gitmirror__die "$tmp cannot be created"
}

# Unpacks the snapshot, one tar, straight into `tmp`, and then fetches what is missing for the wanted commit.
gitmirror__from_snapshot() {
    gitmirror__can_get && gitmirror__has tar || return 1
    query=''
    case $asked$usual in
    tip*) query=history=tip ;;
    historyfull | historytrees) ;;
    history*) query=history=trees ;;
    esac
    if [ "$kind" = name ]; then
        gitmirror__encode "$want"
        query=${query:+"$query&"}ref=$encoded
    fi
    case $modules$gitmirror__submodules in
    yes*) query=${query:+"$query&"}submodules=1 ;;
    noyes) query=${query:+"$query&"}submodules=0 ;;
    esac
    for part in $only; do
        gitmirror__encode "$part"
        query=${query:+"$query&"}only=$encoded
    done
    query=${query:+"?$query"}
    # The tar has the modes of the usual umask, and root's tar applies them unchanged.
    masked='' loose=no mask=$(umask)
    case $mask in 22 | 022 | 0022) ;; *) masked=--no-same-permissions ;; esac
    # Both digits have the bit that takes the right to write away, or files need more rights than they have in the tar.
    case $mask in *[2367][2367]) ;; *) loose=yes ;; esac
    if [ "$loose" = yes ] && ! gitmirror__has chmod; then
        gitmirror__say "not using the snapshot: there is no chmod to apply the umask $mask"
        return 1
    fi
    if [ -n "$masked" ]; then
        case $(tar --help 2>&1) in
        *"$masked"*) ;;
        *) gitmirror__say 'not using the snapshot: this tar cannot apply the umask' && return 1 ;;
        esac
    fi
    # Take it plain or gzipped, whichever the mirror finds faster on this road.
    coding='Accept-Encoding: identity, gzip;q=0.5'
    gitmirror__unpack_snapshot
    if gitmirror__has curl; then
        # With these codes, this curl cannot decompress.
        case $got in 2 | 4) coding='' && gitmirror__unpack_snapshot ;; esac
    fi
    ! gitmirror__was_dropped "$got" "$ends" || gitmirror__unpack_snapshot
    coding=''
    if [ "$got" != 0 ] || [ "$unpacked" != 0 ]; then
        gitmirror__say "the snapshot failed: the download ended with code ${got:-?}, tar with code ${unpacked:-?}"
        gitmirror__check_room
        return 1
    fi
    [ "$loose" = no ] || gitmirror__loosen || return 1
    [ "$dated" = yes ] || gitmirror__date_links "$tmp" || return 1
    gitmirror__read_snapshot || return 1
    [ -z "${GITMIRROR_UPSTREAM-}" ] || gitmirror__write_config || return 1
    # A node of an older version sends the whole tree.
    [ -z "$only" ] || [ -e "$tmp/.git/info/sparse-checkout" ] || gitmirror__cut || return 1
    case $kind in
    commit) [ "$commit" = "$want" ] || gitmirror__advance || return 1 ;;
    session) gitmirror__advance || return 1 ;;
    *)
        [ -n "$tip" ] || gitmirror__ask_tip
        [ "$tip" = "$commit" ] || gitmirror__advance || return 1
        ;;
    esac
    gitmirror__note "$tmp/.git"
}

# Makes `tmp` writable for all whom the umask does not exclude, except the objects, which git makes read-only.
gitmirror__loosen() {
    # Without naming users, `+w` goes by the umask.
    chmod -R +w "$tmp" || return 1
    set --
    set +f
    for entry in "$tmp"/.git/objects/*/* "$tmp"/.git/objects/*/*/*; do
        [ ! -f "$entry" ] || set -- "$@" "$entry"
    done
    set -f
    [ $# -eq 0 ] || chmod a-w "$@"
}

# Gives the links of the repository at $1, which a tar such as busybox's leaves with the time of unpacking, times that come
# from their object ids. Of a file, git compares only the time and size here, so without this it could miss that one link
# has taken the place of another. Where that cannot be done, git is told to compare more, for which it reads every file once.
gitmirror__date_links() {
    for line in $(git -C "$1" -c core.quotePath=false diff-files --raw --no-renames --ignore-submodules); do
        case $line in ':120000 120000 '*) ;; *) continue ;; esac
        oid=${line#:120000 120000 } path=${line#*"$tab"} age=${oid#???????}
        # Like those of the tar, these times are long past.
        case $path in \"*) false ;; *) touch -h -d "@$((315619200 + 0x${oid%"$age"}))" "$1/$path" 2>/dev/null ;; esac || {
            git -C "$1" config core.checkStat default && git -C "$1" config core.trustctime true
            return
        }
    done
}

# Downloads the snapshot and unpacks it into a new `tmp`. Sets `ends` to the headers, `tip` to the branch's tip in them,
# `got` and `unpacked` to the exit codes of both, and `dated` to whether links have the times that they have in the tar.
gitmirror__unpack_snapshot() {
    gitmirror__share 2
    gitmirror__fresh_tmp
    # Both ends of the pipe must succeed, because to some tar programs an archive cut off between two files looks complete.
    # Their exit codes come back with the headers, which needs no file and no further process.
    ends=$({
        { gitmirror__get "$mirror_http/$repo/workspace.tar$query" 2>/dev/null; echo "get: $?" >&3; } |
            {
                # Of these it is known that they date links as well. It is asked while the mirror is.
                case $(tar --version 2>/dev/null </dev/null) in *'GNU tar'* | bsdtar*) echo 'links: dated' >&3 ;; esac
                tar -xf - ${masked:+"$masked"} -C "$tmp" 2>/dev/null 3>&-
                echo "tar: $?" >&3
            }
    } 3>&1)
    got='' unpacked='' tip='' dated=no
    for line in $ends; do
        # wget indents headers with spaces.
        line=${line#"${line%%[! ]*}"}
        case $line in
        'get: '*) got=${line#* } ;;
        'tar: '*) unpacked=${line#* } ;;
        'links: dated') dated=yes ;;
        [Xx]-[Gg]itmirror-[Tt]ip:*) tip=${line#*: } tip=${tip%%[!0-9a-f]*} ;;
        esac
    done
}

# Sets `branch`, `commit` and `history` to those of the snapshot in `tmp`. Returns 1 if that is not what was asked for.
gitmirror__read_snapshot() {
    commit=''
    read -r branch 2>/dev/null <"$tmp/.git/HEAD" || return 1
    branch=${branch#ref: refs/heads/}
    # Branches come first in this file, so only a few of its lines are read.
    while read -r line; do
        case $line in *" refs/heads/$branch") commit=${line%% *} && break ;; esac
    done 2>/dev/null <"$tmp/.git/packed-refs"
    gitmirror__is_oid "$commit" || return 1
    history=full partial=no
    while IFS= read -r line; do
        case $line in
        "$tab"'partialClone = '*) history=trees partial=yes ;;
        '['*) section=$line ;;
        "$tab"'url = "'*) gitmirror__take_origin ;;
        esac
    done <"$tmp/.git/config"
    [ ! -e "$tmp/.git/shallow" ] || history=tip
    case $asked$history in
    historytip) gitmirror__say 'not using the snapshot: it has no history' && return 1 ;;
    esac
}

# Asks the mirror for the branch's tip if the headers did not have it. Without an answer, takes the snapshot's commit.
gitmirror__ask_tip() {
    gitmirror__share 4
    gitmirror__read "$mirror_http/$repo/freshness"
    tip=${answer#*'"tip": "'} tip=${tip%%'"'*}
    if [ "$kind" = name ] || ! gitmirror__is_oid "$tip"; then tip=$commit; fi
}

# Fetches from the mirror what `tmp` still lacks, and checks it out: HEAD detached at a commit, or the branch moved.
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

# Fetches $2, $1 commits deep. A workspace with history fetches all that is new, because it must not become shallow, and
# with it the new tags, as a clone would.
gitmirror__fetch() {
    if [ "$history" != tip ]; then
        gitmirror__in_tmp gitmirror__make_asking fetch --quiet "$address" "$2"
    else
        gitmirror__in_tmp gitmirror__make_asking fetch --quiet --depth "$1" --no-tags "$address" "$2"
    fi
}

# Runs $1 with a git command in `tmp`. What a partial clone lacks comes from the mirror, which its config does not name yet.
gitmirror__in_tmp() {
    how=$1
    shift
    if [ "$partial" = yes ] && [ "$address" = "$exact" ]; then
        set -- -c "remote.gitmirror.url=$address" -c remote.gitmirror.promisor=true "$@"
    fi
    "$how" -C "$tmp" "$@"
}

# The same for a command that changes which files `tmp` has.
gitmirror__work() {
    moved=yes
    gitmirror__in_tmp gitmirror__make "$@"
}

# Restricts the files in `tmp`, which has the whole tree, to those of `only`.
gitmirror__cut() {
    gitmirror__set_address
    gitmirror__share 2
    gitmirror__make_sparse
}

# Restricts the files in `tmp`, also those still to come, to those of `only`. Set by hand, because `git sparse-checkout` would put these settings into
# a file of their own, for which it declares an extension of the repository's format.
gitmirror__make_sparse() {
    printf '[core]\n\tsparseCheckout = true\n\tsparseCheckoutCone = true\n' >>"$tmp/.git/config" || return 1
    [ -d "$tmp/.git/info" ] || mkdir "$tmp/.git/info" || return 1
    # Newer versions of git take some characters for those of a pattern, unless told not to look; older ones never look.
    set --
    case $only in *[]*?[\\!#]*) case $(git -C "$tmp" sparse-checkout set -h 2>&1) in *skip-checks*) set -- --skip-checks ;; esac ;; esac
    # shellcheck disable=SC2086
    gitmirror__work sparse-checkout set "$@" $only
}

# Runs a git command that writes a workspace.
gitmirror__make() {
    gitmirror__heed gitmirror__git "$@" || { gitmirror__check_room; return 1; }
}

# The same for one that asks a server.
gitmirror__make_asking() {
    gitmirror__heed gitmirror__ask_git "$@" || { gitmirror__check_room; return 1; }
}

# Finds the drives of `repo`, checks and mounts them, and sets `branch` and `commit` to those of the drives. Without drives,
# it returns 1 and prints nothing; it names a drive that cannot be used.
gitmirror__open_disk() {
    [ -n "$hold" ] && gitmirror__find_drives || return 1
    # A process with this directory as its current one would not see what is mounted on it.
    if [ "$inside" = yes ] && [ "$(cd -P "$target" && pwd)" = "$(pwd -P)" ]; then
        gitmirror__refuse_drive 'a workspace of drives cannot be mounted on the current directory'
        return 1
    fi
    for tree in $trees; do
        # Only the text of the first one is still there.
        [ -n "$tree_text" ] || { gitmirror__read_text "$tree" && tree_text=$text; }
        gitmirror__check_tree && gitmirror__check_data && gitmirror__mount_drives && gitmirror__read_head && return
        gitmirror__close_disk
        tree_text=''
    done
    return 1
}

# Reports why the tree drive is not used; returns 1.
gitmirror__refuse_drive() { gitmirror__say "not using the drive $tree: $1"; return 1; }

# Sets `tree` to the tree drive of `repo`, the fields of its text, and `data_drives` to all data drives. `trees` are all
# tree drives of `repo`, of which `tree` is the first.
gitmirror__find_drives() {
    tree='' trees='' data_drives=$newline foreign=''
    [ -z "${GITMIRROR_DRIVES+set}" ] || [ -n "$GITMIRROR_DRIVES" ] || return 1
    for tool in mount umount dd; do
        gitmirror__has "$tool" && continue
        [ -z "${GITMIRROR_DRIVES-}" ] || gitmirror__say "not using the drives: $tool is not installed"
        return 1
    done
    if [ -n "${GITMIRROR_DRIVES-}" ]; then
        IFS=,
        for drive in $GITMIRROR_DRIVES; do
            IFS=$newline
            if [ ! -b "$drive" ] || [ ! -r "$drive" ]; then
                gitmirror__say "the drive $drive cannot be read, or is not a block device"
            elif ! gitmirror__look_at_drive "$drive"; then
                gitmirror__say "the drive $drive is not a gitmirror drive"
            fi
        done
        IFS=$newline
    else
        set +f
        set -- /sys/class/block/*
        set -f
        for entry; do
            # Reading from a removable or composed device may take seconds.
            case ${entry##*/} in
            zram* | ram* | sr* | fd* | nbd* | dm-* | md* | mtdblock*) continue ;;
            loop*) [ -e "$entry/loop/backing_file" ] || continue ;;
            esac
            drive=/dev/${entry##*/}
            [ -e "$entry/partition" ] || [ ! -b "$drive" ] || [ ! -r "$drive" ] || gitmirror__look_at_drive "$drive"
        done
    fi
    [ -z "$tree" ] || return 0
    if [ -n "$foreign" ]; then
        gitmirror__say "not using the drives: they hold $foreign, not $repo"
    elif [ "$data_drives" != "$newline" ]; then
        gitmirror__say 'not using the drives: a data drive is attached, but no tree drive'
    fi
    return 1
}

# Reads the text in the first 1024 bytes of a drive. Returns 1 if the drive has none.
gitmirror__look_at_drive() {
    gitmirror__read_text "$1"
    case $text in 'gitmirror disk '[0-9]*) ;; *) return 1 ;; esac
    role='' id='' of=''
    for line in $text; do
        case $line in
        'role '*) role=${line#* } ;;
        'id '*) id=${line#* } ;;
        'repository '*) of=${line#* } ;;
        esac
    done
    case $role in
    data) data_drives=$data_drives$id\ $1$newline ;;
    tree)
        if [ "$of" != "$repo" ]; then
            gitmirror__is_repo "$of" || of='something else'
            foreign=${foreign:+"$foreign and "}$of
        else
            trees=$trees$1$newline
            [ -n "$tree" ] || tree=$1 tree_text=$text
        fi
        ;;
    esac
}

gitmirror__read_text() {
    # bash complains about the NULs after the text.
    { text=$(dd if="$1" bs=1024 count=1 2>/dev/null); } 2>/dev/null
}

# Checks the tree drive against its text.
gitmirror__check_tree() {
    format='' held='' size='' sum='' summed='' git_sum='' data_id='' data_size=0
    for line in $tree_text; do
        value=${line#* }
        case $line in
        'format '*) format=$value ;;
        'commit '*) held=$value ;;
        'size '*) size=$value ;;
        'git '*) git_sum=$value ;;
        'check '*) sum=${value% *} summed=${value#* } ;;
        'data '*) data_id=${value% *} data_size=${value#* } ;;
        esac
    done
    case $tree_text in
    "gitmirror disk 1$newline"*) ;;
    *) gitmirror__refuse_drive 'this kit does not know its version' || return 1 ;;
    esac
    case $format in erofs | ext4) ;; *) gitmirror__refuse_drive 'this kit does not know its format' || return 1 ;; esac
    case $size$summed$data_size in *[!0-9]*) size='' ;; esac
    if [ -z "$size" ] || ! gitmirror__is_oid "$held"; then
        gitmirror__refuse_drive 'its text is incomplete'
        return 1
    fi
    gitmirror__compare_size "$tree" "$size"
    [ "$than" = same ] || gitmirror__refuse_drive "it is not $size bytes long" || return 1
    [ -n "$sum$git_sum" ] || return 0
    gitmirror__has cksum || gitmirror__refuse_drive 'cksum, which would check it, is not installed' || return 1
    # The files of an ext4 are checked when it is mounted.
    [ -n "$sum" ] || return 0
    # The file system checks the first block itself. `dd` reads exactly that, so that the next program continues after it.
    # `cksum` alone reads fastest; busybox's `head` is slow.
    found=$({
        dd bs=4096 count=1 of=/dev/null
        if [ $((size - 4096)) = "$summed" ]; then cksum; else head -c "$summed" | cksum; fi
    } <"$tree" 2>/dev/null)
    found=${found%"${found##*[0-9]}"}
    [ "$found" = "$sum $summed" ] || gitmirror__refuse_drive 'it is damaged: its checksum does not match'
}

# Sets `data` to the data drive that the tree drive refers to, or to "" if it refers to none.
gitmirror__check_data() {
    data=''
    [ -n "$data_id" ] || return 0
    for line in $data_drives; do
        case $line in "$data_id "*) data=${line#"$data_id "} ;; *) continue ;; esac
        gitmirror__compare_size "$data" "$data_size"
        # A shorter one, an older copy, could be mounted, but reading files would fail later.
        [ "$than" = less ] || return 0
    done
    [ -n "$data" ] || gitmirror__refuse_drive "its data drive, $data_id, is missing" || return 1
    gitmirror__refuse_drive "its data drive, $data, has less than $data_size bytes"
}

# Sets `than` to less, same or more, which is how the size of drive $1 compares with $2 bytes.
gitmirror__compare_size() {
    unit=512
    if ! read -r bytes 2>/dev/null <"/sys/class/block/${1##*/}/size"; then
        unit=1
        bytes=$(blockdev --getsize64 "$1" 2>/dev/null) || bytes=$(wc -c <"$1")
    fi
    # In two parts, because a shell may have arithmetic of only 32 bits.
    gitmirror__split "${bytes#"${bytes%%[0-9]*}"}"
    this=$((low * unit)) these=$((high * unit))
    these=$((these + this / 1000000)) this=$((this % 1000000))
    gitmirror__split "$2"
    than=same
    if [ "$these" -ne "$high" ]; then this=$these low=$high; fi
    if [ "$this" -lt "$low" ]; then than='less'; elif [ "$this" -gt "$low" ]; then than='more'; fi
}

# Sets `low` to the last six digits of a number, and `high` to those before.
gitmirror__split() {
    low=$1 high=0
    case $1 in ???????*) high=${1%??????} low=${1#"$high"} ;; esac
    # Remove leading zeros, because arithmetic would read the number as octal.
    while :; do case $low in 0?*) low=${low#0} ;; *) break ;; esac; done
}

# Sets `hold` to the directory that the drives are mounted in. It is neither in DIR nor in the claim, because what removes
# these must never descend into a mount. Takes down what dead processes left there.
gitmirror__choose_hold() {
    for hold in /run /dev/shm /tmp ''; do
        [ ! -d "$hold" ] || [ ! -w "$hold" ] || break
    done
    [ -n "$hold" ] || return 0
    held_in=$hold
    set +f
    for hold in "$held_in"/gitmirror.disk.[0-9]*.*; do
        { [ -d "$hold" ] && [ -w "$hold" ] && [ ! -L "$hold" ]; } || continue
        line=${hold##*/gitmirror.disk.}
        gitmirror__lives "${line%.*}" "${line#*.}" || gitmirror__close_disk
    done
    set -f
    hold=$held_in/gitmirror.disk.$kit.$kit_born
}

# Unmounts everything in `hold`. The mount on DIR stays, because an overlay keeps its layers by itself.
gitmirror__close_disk() {
    [ -n "$hold" ] && [ -d "$hold" ] || return 0
    if gitmirror__first_line "$hold/suffix" && [ ! -e "$hold/placed" ]; then
        suffix=$line
        # Nothing is mounted in the directory for changes itself, and no workspace will have these changes.
        umount -l "$hold/merged" 2>/dev/null
        case $suffix in */*) ;; *) rm -rf "${hold:?}/disk/${hold##*/}$suffix" ;; esac
    fi
    tries=0
    # A mount that a killed process had begun may be completed a moment later. Another hydration may be faster.
    until umount -l "$hold" 2>/dev/null; rmdir "$hold" 2>/dev/null || [ ! -d "$hold" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 30 ] || { gitmirror__say "$hold cannot be removed"; return 0; }
        sleep 0.1 2>/dev/null || sleep 1
    done
}

# Unmounts the drives so that another source can be used.
gitmirror__forget_disk() {
    gitmirror__close_disk
    tmp=$claim/$turn/.gitmirror.$kit history=tip moved=no
}

# Mounts the drives on `hold/lower`, and on `hold/merged` the overlay of them and of what is changed.
gitmirror__mount_drives() {
    said='' layers=$hold/memory
    # All of `hold` is in one tmpfs, so that one umount takes down all that is mounted in it.
    { mkdir "$hold" && gitmirror__mount -t tmpfs -o mode=700 gitmirror "$hold" &&
        mkdir -p "$hold/lower" "$hold/merged" "$hold/disk" "$hold/memory/upper/.git" "$hold/memory/work"; } || {
        gitmirror__refuse_drive "$hold cannot be prepared${said:+: $said}"
        return 1
    }
    case $format in
    erofs) gitmirror__mount -t erofs -o "ro${data:+,device=$data}" "$tree" "$hold/lower" ;;
    ext4) gitmirror__mount -t ext4 -o ro,noload "$tree" "$hold/lower" ;;
    esac || gitmirror__refuse_drive "$said" || return 1
    if [ -n "${GITMIRROR_UPPER-}" ]; then
        { [ -b "$GITMIRROR_UPPER" ] && gitmirror__mount_upper && gitmirror__make_layers; } || {
            ! gitmirror__is_full "$hold/disk" || said='it is full' full=no
            gitmirror__refuse_drive "GITMIRROR_UPPER, $GITMIRROR_UPPER, cannot be mounted and written${said:+: $said}"
            return 1
        }
    fi
    set -- -t overlay -o "lowerdir=$hold/lower,upperdir=$layers/upper,workdir=$layers/work" gitmirror "$hold/merged"
    # With redirect_dir, directories of the drive can be renamed, which `git mv` needs. Old kernels do not have it.
    gitmirror__mount -o redirect_dir=on "$@" || gitmirror__mount "$@" || gitmirror__refuse_drive "$said"
}

# Mounts GITMIRROR_UPPER on `hold/disk`. If nobody had it mounted, removes what earlier workspaces left there.
gitmirror__mount_upper() {
    # This fails if it is mounted for writing anywhere, in another namespace or by a detached workspace too: the kernel mounts
    # a device only once, and for writing or not. Repeated, because another kit may do the same at this moment.
    for try in 1 2 3; do
        if gitmirror__mount -t ext4 -o ro "$GITMIRROR_UPPER" "$hold/disk"; then
            set +f
            set -- "$hold"/disk/gitmirror.disk.*
            set -f
            # Judge after listing them, because others may use what is made once it can be written.
            { [ -e "$1" ] && gitmirror__is_unused; } || set --
            gitmirror__mount -o remount,rw "$GITMIRROR_UPPER" "$hold/disk" || return 1
            [ $# -eq 0 ] || rm -rf "$@" 2>/dev/null
            return 0
        fi
        # Without `-w`, and with `-o rw` too, some programs mount it read-only if it cannot be written.
        ! gitmirror__mount -w -t ext4 "$GITMIRROR_UPPER" "$hold/disk" || return 0
    done
    return 1
}

# Whether `hold/disk`, which was mounted read-only, has not become writable through another mount of it, and no other kit
# is about to write to such a device.
gitmirror__is_unused() {
    unused=no
    while read -r line; do
        case $line in
        *" $hold/disk "*' - ext4 '*' ro' | *" $hold/disk "*' - ext4 '*' ro,'*) unused=yes ;;
        */gitmirror.disk.*'/disk '*) return 1 ;;
        esac
    done 2>/dev/null </proc/self/mountinfo
    [ "$unused" = yes ]
}

# Sets `layers` to a new directory on GITMIRROR_UPPER, and writes how its name ends to `hold/suffix`. One that is there has
# the changes of another workspace: after a reboot, process ids and start times may be the same.
gitmirror__make_layers() {
    suffix='' number=0 layers=$hold/disk/${hold##*/}
    until mkdir "$layers" 2>/dev/null; do
        [ -e "$layers" ] || return 1
        number=$((number + 1))
        suffix=.$number layers=$hold/disk/${hold##*/}.$number
    done
    echo "$suffix" >"$hold/suffix" && mkdir -p "$layers/upper/.git" "$layers/work"
}

# Runs mount, and sets `said` to the first line of its output.
gitmirror__mount() {
    said=$(mount "$@" 2>&1) && return
    said=${said%%"$newline"*} said=${said:-mount failed}
    return 1
}

# Sets `branch` and `commit` to HEAD of the drive, and `history` to its shape.
gitmirror__read_head() {
    branch='' commit=''
    if [ -n "$git_sum" ]; then
        found=$({ cd "$hold/lower/.git" && cat HEAD config packed-refs index | cksum; } 2>/dev/null)
        found=${found%"${found##*[0-9]}"}
        [ "$found" = "$git_sum" ] || gitmirror__refuse_drive 'it is damaged: the checksum of its .git does not match' ||
            return 1
    fi
    read -r line 2>/dev/null <"$hold/lower/.git/HEAD"
    case $line in
    'ref: refs/heads/'*)
        branch=${line#ref: refs/heads/}
        if ! read -r commit 2>/dev/null <"$hold/lower/.git/refs/heads/$branch"; then
            # Branches come first in this file, so only a few of its lines are read.
            while read -r line; do
                case $line in *" refs/heads/$branch") commit=${line%% *} && break ;; esac
            done 2>/dev/null <"$hold/lower/.git/packed-refs"
        fi
        ;;
    *) commit=$line ;;
    esac
    [ "$commit" = "$held" ] || gitmirror__refuse_drive "its HEAD is ${commit:-unknown}, not $held" || return 1
    [ -e "$hold/lower/.git/shallow" ] || history=full
}

# Whether the drives have the wanted commit, so that it need not be fetched.
gitmirror__disk_has_commit() {
    [ "$disk" = yes ] && [ "$kind" = commit ] || return 1
    [ "$commit" = "$want" ] || git --git-dir="$hold/lower/.git" cat-file -e "$want^{commit}" 2>/dev/null
}

# Makes the drives the wanted workspace: writes its config, and fetches and checks out what is missing.
gitmirror__from_disk() {
    tmp=$hold/merged
    gitmirror__copy_config || return 1
    [ -z "${GITMIRROR_UPSTREAM-}" ] || gitmirror__write_config || return 1
    case $kind in
    commit) [ "$commit" = "$want" ] || gitmirror__go_to_commit || return 1 ;;
    session) gitmirror__advance || return 1 ;;
    name) if [ "$branch" = "$want" ]; then gitmirror__catch_up || return 1; else gitmirror__switch || return 1; fi ;;
    # A drive of a commit that is on no branch stays there.
    default) [ -z "$branch" ] || gitmirror__catch_up || return 1 ;;
    esac
    [ -z "$only" ] || gitmirror__cut || return 1
    gitmirror__note "$tmp/.git"
}

# Replaces the config by a copy that can be appended to, and sets `upstream` to the one in it.
gitmirror__copy_config() {
    text='' section=''
    while IFS= read -r line; do
        text=$text$line$newline
        case $line in
        '['*) section=$line ;;
        "$tab"'url = "'*) gitmirror__take_origin ;;
        esac
    done <"$hold/lower/.git/config" && printf %s "$text" >"$tmp/.git/config"
}

# Sets `upstream` to the URL in `line` of a git config, if `section` is that of `origin`. The kit may not list the repository.
gitmirror__take_origin() {
    [ -z "${GITMIRROR_UPSTREAM-}" ] && [ "$section" = '[remote "origin"]' ] || return 0
    case $line in *'"'*[\"\\]*'"') ;; *'"') line=${line#*\"} upstream=${line%\"} ;; esac
}

# Checks out a commit that is on the drives, or else on the mirror.
gitmirror__go_to_commit() {
    gitmirror__disk_has_commit || { gitmirror__advance; return; }
    gitmirror__share 2
    exact=gitmirror:none
    gitmirror__work checkout --quiet --detach "$want" && commit=$want
}

# Moves the branch of the drives to its tip on the mirror. If the mirror does not answer, the branch stays where it is.
gitmirror__catch_up() {
    gitmirror__ask_branch
    [ "$tip" != "$commit" ] || return 0
    if ! gitmirror__fetch_from_any "+refs/heads/$branch:refs/remotes/origin/$branch"; then
        [ -z "$max_lag" ] || return 1
        gitmirror__say "$tip cannot be fetched from the mirror: the workspace is at $commit, as on the drives"
        return 0
    fi
    gitmirror__work reset --quiet --hard "refs/remotes/origin/$branch" && read -r commit <"$tmp/.git/refs/heads/$branch"
}

# Sets `tip` to the tip of `branch` on the mirror, or to `commit` if the mirror does not answer. Over git:// that takes half
# the time of loading curl; over HTTP, git takes longer.
gitmirror__ask_branch() {
    tip=$commit
    if [ -n "$mirror_git" ] && gitmirror__list "refs/heads/$branch" "$mirror_git/$repo"; then
        gitmirror__pick_tip
        return
    fi
    [ -n "$mirror_http" ] || return 0
    if gitmirror__can_get; then
        gitmirror__share 4
        [ "$left" -le 5 ] || left=5
        gitmirror__read "$mirror_http/$repo/freshness" || return 0
        case $answer in
        *"\"branch\": \"$branch\""*)
            answer=${answer#*'"tip": "'} answer=${answer%%'"'*}
            ! gitmirror__is_oid "$answer" || tip=$answer
            return
            ;;
        esac
    fi
    ! gitmirror__list "refs/heads/$branch" "$mirror_http/$repo" || gitmirror__pick_tip
}

# Sets `tip` to what `listed` has for `branch`, if anything.
gitmirror__pick_tip() {
    for line in $listed; do
        case $line in *"${tab}refs/heads/$branch") tip=${line%%"$tab"*} ;; esac
    done
}

# Sets `listed` to what `ls-remote` prints for $1 at the first of the other arguments, addresses, that answers.
gitmirror__list() {
    refs=$1
    shift
    for exact; do
        gitmirror__share 4
        [ "$left" -le 5 ] || left=5
        # shellcheck disable=SC2086
        listed=$(gitmirror__ask_git ls-remote --quiet "$exact" $refs 2>/dev/null) && return
    done
    listed=''
    return 1
}

gitmirror__fetch_from_any() {
    for address in ${mirror_git:+"$mirror_git/$repo"} ${mirror_http:+"$mirror_http/$repo"}; do
        exact=$address
        gitmirror__share 4
        ! gitmirror__fetch 1 "$1" || return 0
    done
    return 1
}

# Checks out a branch that the drives are not of, or a tag. Without the mirror, only the tags on the drives are known.
gitmirror__switch() {
    gitmirror__list "refs/heads/$want${newline}refs/tags/$want" \
        ${mirror_git:+"$mirror_git/$repo"} ${mirror_http:+"$mirror_http/$repo"}
    case $newline$listed$newline in
    *"${tab}refs/heads/$want$newline"*)
        gitmirror__fetch_from_any "+refs/heads/$want:refs/remotes/origin/$want" &&
            gitmirror__work checkout --quiet --no-track -B "$want" "refs/remotes/origin/$want" &&
            read -r commit <"$tmp/.git/refs/heads/$want" || return 1
        branch=$want
        gitmirror__write_config
        return
        ;;
    *"${tab}refs/tags/$want$newline"*) gitmirror__fetch_from_any "+refs/tags/$want:refs/tags/$want" || return 1 ;;
    esac
    gitmirror__share 2
    exact=gitmirror:none
    commit=$(git -C "$tmp" rev-parse --verify --quiet "refs/tags/$want^{commit}") &&
        gitmirror__work checkout --quiet --detach "$commit"
}

# Mounts the workspace of drives on DIR. It takes one step, so DIR is empty before it and whole afterwards.
gitmirror__mount_on_target() {
    if [ "$inside" = no ]; then
        mkdir "$target" || return 1
    else
        # The mount hides the claim in DIR, which can still be reached from here.
        cd -P "$target" || return 1
        target=$PWD claim=./.gitmirror
    fi
    # From here on, the changes on GITMIRROR_UPPER belong to a workspace.
    : >"$hold/placed"
    # Not a move, because mounts below a shared one cannot be moved.
    if gitmirror__mount -o bind "$hold/merged" "$target"; then return 0; fi
    gitmirror__say "$said"
    rm -f "$hold/placed"
    [ "$inside" = yes ] || rmdir "$target"
    return 1
}

# Clones from the mirror over git://, otherwise over HTTP. A short ls-remote comes first, because a hanging clone would
# take longer to give up.
gitmirror__from_mirror() {
    for address in ${mirror_git:+"$mirror_git/$repo"} ${mirror_http:+"$mirror_http/$repo"}; do
        exact=$address
        gitmirror__share 4
        [ "$left" -le "$patience" ] || left=$patience
        gitmirror__ask_git ls-remote --quiet "$address" HEAD >/dev/null || continue
        gitmirror__share 2
        ! gitmirror__from_git || return 0
    done
    return 1
}

# Clones from the upstream itself, or runs $1 for its address, with this guest's own redirects, except one that leads back
# to the mirror.
gitmirror__from_upstream() {
    step=${1-gitmirror__from_git}
    gitmirror__say "fetching from $upstream"
    [ -z "$token" ] || gitmirror__say 'the mirror did not serve this repository with GITMIRROR_TOKEN, which may be expired, revoked
gitmirror: or for another repository; the upstream of a private repository needs a credential of its own'
    rewritten=$(git ls-remote --get-url "$upstream")
    case $rewritten in
    "${mirror_git:-none:}"/* | "${mirror_http:-none:}"/*) ;;
    "$upstream")
        address=$upstream exact=gitmirror:none
        gitmirror__share 1
        "$step"
        return
        ;;
    *)
        # The rewritten URL may add this guest's credential, or be the mirror under another name.
        address=$upstream exact=gitmirror:none
        gitmirror__share 2
        ! "$step" || return 0
        ;;
    esac
    address=$upstream/ exact=$upstream/
    gitmirror__share 1
    "$step"
}

# Clones one branch of `address` with as few processes as possible, in the shape that was asked for or is usual.
gitmirror__from_git() {
    gitmirror__fresh_tmp
    partial=no
    set -- clone --quiet --template= --origin origin --single-branch
    case $asked$usual in
    tip*) history=tip && set -- "$@" --depth 1 --no-tags ;;
    full | historyfull) history=full ;;
    # Without the contents of old files, because of a history of unknown size these may be most.
    *) history=trees ;;
    esac
    # Of a part, nor the contents of the other directories.
    if [ -n "$only" ] && [ "$history" = full ]; then history=trees; fi
    if [ -n "$only" ] || [ "$history" = trees ]; then
        partial=yes
        set -- "$@" --filter=blob:none
    fi
    case $kind in
    default) gitmirror__make_asking "$@" ${only:+--no-checkout} "$address" "$tmp" || return 1 ;;
    name) gitmirror__make_asking "$@" ${only:+--no-checkout} --branch "$want" "$address" "$tmp" || return 1 ;;
    session) gitmirror__make_asking "$@" --no-checkout "$address" "$tmp" || return 1 ;;
    commit) git init --quiet --template= "$tmp" >&2 || return 1 ;;
    esac
    [ -z "$only" ] || gitmirror__make_sparse || return 1
    read -r branch <"$tmp/.git/HEAD"
    case $branch in 'ref: refs/heads/'*) branch=${branch#ref: refs/heads/} ;; *) branch='' ;; esac
    case $kind in
    session)
        gitmirror__fetch 20 "refs/agents/${want#session:}" && gitmirror__work reset --quiet --hard FETCH_HEAD || return 1
        ;;
    commit)
        gitmirror__fetch_commit && gitmirror__work checkout --quiet --detach FETCH_HEAD || return 1
        branch=''
        ;;
    *) [ -z "$only" ] || gitmirror__work reset --quiet --hard || return 1 ;;
    esac
    commit=$(git -C "$tmp" rev-parse --verify --quiet HEAD) || return 1
    if [ "$partial" = yes ]; then
        # A server may ignore the filter, and git ignores it for a path.
        set +f
        set -- "$tmp"/.git/objects/pack/*.promisor
        set -f
        if [ ! -e "$1" ]; then
            partial=no
            [ "$history" = tip ] || history=full
        fi
    fi
    gitmirror__write_config && gitmirror__note "$tmp/.git"
}

# Fetches the wanted commit into the empty repository `tmp`. git stores a filter for a remote that has a name.
gitmirror__fetch_commit() {
    [ "$history$partial" != tipno ] || { gitmirror__fetch 1 "$want"; return; }
    gitmirror__quote "$address"
    printf '[remote "origin"]\n\turl = "%s"\n' "$quoted" >>"$tmp/.git/config"
    set -- --quiet --no-tags
    [ "$history" = full ] || set -- "$@" --filter=blob:none
    [ "$history" != tip ] || set -- "$@" --depth 1
    gitmirror__work fetch "$@" origin "$want"
}

# Writes the workspace's config as a whole, because each edit by git would be a process. It keeps what git detected about
# this file system and repository, and makes `origin` the upstream.
gitmirror__write_config() {
    kept='' section=''
    while IFS= read -r line; do
        case $line in '['*) section=$line ;; esac
        case $section in '[core]'* | '[extensions]'* | '[submodule '*) kept=$kept$line$newline ;; esac
    done <"$tmp/.git/config"
    gitmirror__quote "$upstream"
    url=$quoted
    gitmirror__quote "${branch:-*}"
    {
        printf '%s[remote "origin"]\n\turl = "%s"\n' "$kept" "$url"
        printf '\tfetch = "+refs/heads/%s:refs/remotes/origin/%s"\n' "$quoted" "$quoted"
        [ "$partial" = no ] || printf '\tpromisor = true\n\tpartialclonefilter = blob:none\n'
        [ -z "$branch" ] || printf '[branch "%s"]\n\tremote = origin\n\tmerge = "refs/heads/%s"\n' "$quoted" "$quoted"
        # git asks the remote that this names after all others, so after the mirror; it does not write this itself.
        case $partial$kept in
        yes*'[extensions]'*'partialClone'*) ;;
        yes*) printf '[extensions]\n\tpartialClone = origin\n' ;;
        esac
        printf '[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n'
    } >"$tmp/.git/config"
}

# Sets `quoted` to $1 escaped for use in double quotes in a git config; a branch name may contain a double quote.
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

# Adds to the config in git directory $1 what `record` needs, and the mirror as the first source of missing objects. A
# workspace with the whole history lacks none: a promisor remote would make git treat it as a partial clone.
gitmirror__note() {
    [ -d "$1/hooks" ] || mkdir "$1/hooks" || return 1
    gitmirror__set_address
    {
        [ -z "$address" ] || printf '[remote "gitmirror"]\n\turl = "%s"\n' "$address"
        [ -z "$address" ] || [ "$history$partial" = fullno ] || printf '\tpromisor = true\n\tpartialclonefilter = blob:none\n'
        [ -z "$address" ] || printf '\ttagOpt = --no-tags\n\tskipFetchAll = true\n[url "%s"]\n\tinsteadOf = "%s"\n' \
            "$address" "$address"
        printf '[gitmirror]\n\trepository = %s\n\tbase = %s\n' "$repo" "$commit"
    } >>"$1/config"
}

# Adds to the config in git directory $1 where git-lfs finds the contents of files of the work tree $2: at the mirror, which
# speaks its protocol over HTTP only. Uploads and locks go where they went without the mirror.
gitmirror__note_lfs() {
    [ -n "$mirror_http" ] || return 0
    there=''
    [ ! -f "$2/.lfsconfig" ] || there=$(git config --file "$2/.lfsconfig" lfs.url)
    # A line break would end the setting, and begin others.
    case $there in *[[:cntrl:]]*) there='' ;; esac
    if [ -z "$there" ]; then
        there=${upstream%.git}.git
        case $there in
        http://* | https://*) there=$there/info/lfs ;;
        ssh://* | *@*:*) ;;
        *) there='' ;;
        esac
    fi
    gitmirror__quote "$there"
    {
        printf '[lfs]\n\turl = "%s"\n' "$mirror_http/$repo/info/lfs"
        [ -z "$there" ] || printf '\tpushurl = "%s"\n' "$quoted"
    } >>"$1/config"
}

# Puts the contents of the LFS files in work tree $1 in the place of the pointers that git brought. What is missing is named.
gitmirror__get_contents() {
    work=$1 wanted=''
    set -- -C "$work" -c core.quotePath=false
    files=$(git "$@" ls-files -- ':(attr:filter=lfs)')
    [ -n "$files" ] || return 0
    gitmirror__count_pointers
    [ "$pointers" -gt 0 ] || return 0
    if git lfs version >/dev/null 2>&1; then
        # Without its filters, git-lfs writes no contents.
        [ -n "$(git "$@" config filter.lfs.process)" ] || git "$@" lfs install --local --skip-repo >&2
        if [ -n "$only" ] && [ "$work" = "$tmp" ]; then gitmirror__pull_part "$@"; else gitmirror__pull_contents "$@"; fi
        gitmirror__count_pointers
        why='the mirror did not send their contents; git lfs pull asks it again'
    else
        why='git-lfs, which would fetch their contents, is not installed'
    fi
    [ "$pointers" -eq 0 ] || gitmirror__say "files of $target${work#"$tmp"} that are LFS pointers: $pointers; $why"
}

# Runs `git lfs pull`. $@ are options of git, and `wanted` the patterns of the files, or "" for all.
gitmirror__pull_contents() (
    unset GIT_LFS_SKIP_SMUDGE
    exact=gitmirror:none
    gitmirror__share 1
    gitmirror__git "$@" lfs pull ${wanted:+"--include=$wanted"} >&2
)

# The same in a part of a tree: git-lfs would put the files outside of it there, too. $@ are options of git.
gitmirror__pull_part() {
    wanted=''
    for line in $(git "$@" ls-files -t -- ':(attr:filter=lfs)'); do
        case $line in 'H '*) path=${line#??} ;; *) continue ;; esac
        pattern=''
        case $path in
        '"'*)
            # git quotes some characters.
            path=${path#\"} path=${path%\"}
            while :; do
                case $path in *\\*) ;; *) break ;; esac
                pattern=$pattern${path%%\\*}\? path=${path#*\\}
                case $path in [0-7][0-7][0-7]*) path=${path#???} ;; *) path=${path#?} ;; esac
            done
            path=$pattern$path pattern=''
            ;;
        esac
        # A list of patterns has commas between them, and no way to write one.
        while :; do
            case $path in *[],*[]*) ;; *) break ;; esac
            pattern=$pattern${path%%[],*[]*}\? path=${path#*[],*[]}
        done
        wanted=${wanted:+"$wanted,"}/$pattern$path
        # An argument may have 128 KiB.
        [ ${#wanted} -lt 60000 ] || { gitmirror__pull_contents "$@" && wanted=''; } || return 1
    done
    [ -z "$wanted" ] || gitmirror__pull_contents "$@"
    wanted=''
}

# Sets `pointers` to the number of those in `files`.
gitmirror__count_pointers() {
    pointers=0
    for path in $files; do
        ! gitmirror__is_pointer || pointers=$((pointers + 1))
    done
}

# Whether the file `path` of `work` is there and is a pointer.
gitmirror__is_pointer() {
    # A shell reads a line byte by byte, and a large file may have no line break. bash complains about NULs.
    if gitmirror__has head; then
        { line=$(head -c 64 <"$work/$path"); } 2>/dev/null || return 1
    else
        { read -r line <"$work/$path"; } 2>/dev/null || return 1
    fi
    case $line in 'version https://git-lfs.github.com/spec/'*) return 0 ;; esac
    return 1
}

# Checks out the submodules of `tmp`, and theirs, or only those that are there already where none are wanted. In a subshell,
# because each is a repository of its own.
gitmirror__get_submodules() (
    # `ext::` and the like would run what a repository says; a file is not the mirror's.
    GIT_ALLOW_PROTOCOL=git:http:https
    [ "$via" != upstream ] || GIT_ALLOW_PROTOCOL=$GIT_ALLOW_PROTOCOL:ssh
    GIT_TEMPLATE_DIR=''
    export GIT_ALLOW_PROTOCOL GIT_TEMPLATE_DIR
    number=0 super=$history
    gitmirror__visit_submodules '' 0
)

# Visits the submodules of the repository at path $1 of `tmp`, "" or ending in a slash, which is $2 levels deep. Those in
# place take no process beyond the two that list them.
gitmirror__visit_submodules() {
    [ "$moved" = no ] || gitmirror__remove_strays "$1"
    { [ -f "$tmp/$1.gitmodules" ] && [ ! -L "$tmp/$1.gitmodules" ]; } || return 0
    # What a recursive call must not change is kept in the arguments.
    set -- "$1" "$2" "$(git -C "$tmp/$1" config --file .gitmodules --get-regexp '^submodule\..*\.path$')"
    paths=''
    for line in $3; do
        line=${line#*.path }
        # git would refuse all of them because of one that leads out of the repository.
        case /$line/ in //* | */../*) ;; *) paths=$paths$line$newline ;; esac
    done
    [ -n "$paths" ] || return 0
    # Those outside a part of the tree have another letter than H, unless they are there already: then git keeps them.
    # shellcheck disable=SC2086
    for line in $(git -C "$tmp/$1" --literal-pathspecs -c core.quotePath=false ls-files -t --stage -- $paths); do
        case $line in 'H 160000 '*' 0'"$tab"*) ;; *) continue ;; esac
        oid=${line#H 160000 } oid=${oid%% *} path=${line#*"$tab"}
        set -- "$1" "$2" "$3" "$path" "$oid"
        [ "$modules" = yes ] || [ -e "$tmp/$1$4/.git" ] || continue
        fetched=no
        if ! gitmirror__is_in_place "$1$4" "$5"; then
            fetched=yes number=$((number + 1)) why='it could not be fetched'
            gitmirror__obtain_submodule "$@" || {
                gitmirror__say "submodule $1$4 is left empty: $why"
                gitmirror__empty_submodule "$1" "$4"
                continue
            }
        fi
        [ -e "$tmp/$1$4/.git" ] || continue
        [ "$fetched$dated" != nono ] || gitmirror__date_links "$tmp/$1$4"
        gitmirror__note_submodule "$1$4" "$5"
        [ "$fetched$gitmirror__lfs" != yescontent ] || gitmirror__get_contents "$tmp/$1$4"
        gitmirror__visit_submodules "$1$4/" $(($2 + 1))
    done
}

# Removes from the repository at $1 the submodules of the commit before, which git leaves behind as files of nobody.
gitmirror__remove_strays() {
    gitmirror__find_git_dir "$1."
    [ -d "$git_dir/modules" ] || return 0
    for line in $(git -C "$tmp/$1" -c core.quotePath=false ls-files --others); do
        case $line in \"* | *[!/]) ;; *) [ ! -f "$tmp/$1$line.git" ] || gitmirror__remove_submodule "$1${line%/}" ;; esac
    done
}

# Removes the files of the submodule at path $1 of `tmp`, and the directories above it that are then empty.
gitmirror__remove_submodule() {
    rm -rf "${tmp:?}/$1"
    rest=$1
    while :; do
        case $rest in */*) rest=${rest%/*} ;; *) break ;; esac
        rmdir "$tmp/$rest" 2>/dev/null || break
    done
}

# Sets `git_dir` to the git directory of the repository at path $1 of `tmp`. Returns 1 if it has none.
gitmirror__find_git_dir() {
    git_dir=$tmp/$1/.git
    [ ! -d "$git_dir" ] || return 0
    read -r line 2>/dev/null <"$git_dir" || return 1
    line=${line#gitdir: }
    case $line in /*) git_dir=$line ;; *) git_dir=$tmp/$1/$line ;; esac
}

# Whether the submodule at path $1 of `tmp` is checked out at commit $2.
gitmirror__is_in_place() {
    gitmirror__find_git_dir "$1" && read -r line 2>/dev/null <"$git_dir/HEAD" && [ "$line" = "$2" ] && [ -e "$git_dir/index" ]
}

# Checks out commit $5 in the submodule at path $4 of the repository at path $1, which is $2 levels deep and has the paths $3
# in its .gitmodules. Sets `why` if that cannot be done. git itself does it, which knows what not to believe .gitmodules.
gitmirror__obtain_submodule() {
    name=''
    for line in $3; do
        [ "${line#*.path }" = "$4" ] || continue
        # git might take the other one, which nobody has looked at.
        [ -z "$name" ] || { why='.gitmodules has two submodules at this path' && return 1; }
        name=${line#submodule.} name=${name%%.path *}
    done
    case $name in '' | *=*) why='git has no name for it that can be used' && return 1 ;; esac
    if [ "$2" -ge 8 ] || [ "$number" -gt 512 ]; then
        why='there are too many submodules, or they are too deep'
        return 1
    fi
    gitmirror__now
    [ $(((now - began) / 100)) -lt "$deadline" ] || { why='GITMIRROR_DEADLINE is over' && return 1; }
    gitmirror__share 2
    exact=gitmirror:none above=$tmp/$1 inner=$4
    # This resolves a relative URL against that of `origin`, the upstream.
    gitmirror__git -C "$above" --literal-pathspecs submodule --quiet init -- "$inner" >&2 || return 1
    origin=$(git -C "$above" config "submodule.$name.url") || return 1
    real=$origin
    if [ "$via" = upstream ]; then
        upstream=$origin
        gitmirror__from_upstream gitmirror__update_submodule || { why="$real could not be fetched" && return 1; }
    else
        why="the mirror does not have $real"
        { gitmirror__set_submodule && gitmirror__is_mirror_path "$repo" && gitmirror__is_mirrored; } || return 1
        address=$exact why='it could not be fetched'
        gitmirror__share 2
        gitmirror__update_submodule || return 1
    fi
    # With `update = none` in .gitmodules, git leaves it alone.
    [ ! -e "$above$inner/.git" ] || {
        gitmirror__is_in_place "$1$4" "$5" && git -C "$above$inner" config remote.origin.url "$real"
    }
}

# Lets git check out the submodule `inner` of `above` from `address`. The shape is that of the workspace, but where a
# submodule usually has everything, it does.
gitmirror__update_submodule() {
    set -- -c "submodule.$name.url=$address"
    [ "$via" = upstream ] || set -- "$@" -c http.followRedirects=false
    set -- "$@" --literal-pathspecs -C "$above" submodule --quiet update --init
    gitmirror__set_usual
    if [ -e "$above$inner/.git" ]; then
        # git fetches what it lacks from the URL in its own config.
        git -C "$above$inner" config remote.origin.url "$address" || return 1
        set -- "$@" --checkout
    else
        case $super$usual in
        tip*) set -- "$@" --depth 1 ;;
        *full) ;;
        *) case $(git submodule -h 2>&1) in *--filter*) set -- "$@" --filter=blob:none ;; esac ;;
        esac
    fi
    reason=$(gitmirror__ask_git "$@" -- "$inner" 2>&1) || { echo "$reason" >&2 && return 1; }
}

# Whether $1 can be the path of a repository on the mirror: OWNER/REPO, or HOST/PATH.
gitmirror__is_mirror_path() {
    case /$1/ in *[!A-Za-z0-9._:/~+-]* | *//* | */../* | */./* | /-*) return 1 ;; esac
}

# Leaves the submodule at path $2 of the repository at path $1 as a clone without submodules has it.
gitmirror__empty_submodule() {
    gitmirror__find_git_dir "$1." || return 0
    [ "$name" = '' ] || git -C "$tmp/$1" --literal-pathspecs submodule --quiet deinit --force -- "$2" >/dev/null 2>&1
    # git itself refuses a name that leads out of this directory.
    case /$name/ in *//* | */../* | */./*) ;; *) [ ! -e "$git_dir/modules/$name" ] || gitmirror__remove "$git_dir/modules/$name" ;; esac
}

# Notes in the submodule at path $1, which is at commit $2, where the mirror has its repository, once.
gitmirror__note_submodule() (
    gitmirror__find_git_dir "$1" || return 0
    commit=$2 origin='' section='' history=full partial=no
    while read -r line; do
        case $line in
        '['*) section=$line ;;
        "$tab"'promisor = true' | "$tab"'partialClone = '*) history=trees partial=yes ;;
        "$tab"'url = '*)
            line=${line#*= } line=${line#\"}
            [ "$section" != '[remote "origin"]' ] || origin=${line%\"}
            ;;
        esac
        [ "$section" != '[remote "gitmirror"]' ] || return 0
    done 2>/dev/null <"$git_dir/config"
    [ ! -e "$git_dir/shallow" ] || history=tip
    gitmirror__set_submodule && gitmirror__is_mirror_path "$repo" || return 0
    # The upstream's submodules need not be on the mirror.
    case $via$newline$gitmirror__repositories in
    upstream*"$newline$repo "*) gitmirror__note "$git_dir" ;;
    upstream*) ;;
    *)
        upstream=$origin
        gitmirror__note "$git_dir" && gitmirror__note_lfs "$git_dir" "$tmp/$1"
        ;;
    esac
)

# Moves `tmp` to DIR: by one rename, or entry by entry with `.git` last, so that half a workspace is never a repository.
gitmirror__settle() {
    gitmirror__is_free || { gitmirror__say "another process put files into $target meanwhile"; return 1; }
    [ "$via" != disk ] || { gitmirror__mount_on_target; return; }
    if [ "$inside" = no ]; then
        mv "$tmp" "$target" || return 1
        # If DIR was created at this very moment, mv put the workspace inside it.
        [ -e "$target/${tmp##*/}" ] || return 0
        rm -rf "${target:?}/${tmp##*/}"
        return 1
    fi
    set +f --
    # Record the entries before moving them, for the next process if this one dies.
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

# Sets `encoded` to a ref name escaped for a URL query.
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

# Goes to the top of the git workspace that contains this directory, reads its config, and sets `git_dir` and `store`, the
# directory of its LFS files. Of git's output lines, only the last may contain a newline.
gitmirror__enter() {
    places=$(git rev-parse --is-inside-work-tree --show-cdup --absolute-git-dir && echo .) || return 1
    case $places in "true$newline"*) places=${places#*"$newline"} ;; *) return 1 ;; esac
    git_dir=${places#*"$newline"} git_dir=${git_dir%"$newline".} places=${places%%"$newline"*}
    [ -z "$places" ] || cd "$places" || return 1
    gitmirror__read_notes
    store=$git_dir
    # A worktree shares the LFS files of its main repository.
    if read -r line 2>/dev/null <"$git_dir/commondir"; then
        case $line in /*) store=$line ;; *) store=$git_dir/$line ;; esac
    fi
    case $storage in /*) store=$storage ;; *) store=$store/${storage:-lfs} ;; esac
    gitmirror__drop_locks
}

# Sets `repo`, `base` and `recorded` from the workspace's config, and an identity if the guest has none, with only one
# process.
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

# Removes the locks that a killed agent left. Its turn is over, so nobody else uses them.
gitmirror__drop_locks() {
    read -r head <"$git_dir/HEAD"
    set +f
    for lock in "$git_dir"/*.lock "$git_dir/${head#ref: }.lock"; do
        [ ! -e "$lock" ] || rm -f "$lock"
    done
    set -f
}

# Commits all changes. A merge, rebase or cherry-pick in progress is committed as it is, including conflicts.
gitmirror__commit() {
    set -- -c core.hooksPath=/dev/null -c core.fsmonitor=false -c gc.auto=0 -c maintenance.auto=false \
        -c advice.addEmbeddedRepo=false
    # Files beside the part of the tree that is checked out are work, too. Older versions of git add them by themselves.
    wide=''
    [ ! -e "$git_dir/info/sparse-checkout" ] || case $(git add -h 2>&1) in *sparse*) wide=--sparse ;; esac
    gitmirror__heed git "$@" add -A --ignore-errors ${wide:+"$wide"}
    code=$?
    [ "$code" -eq 0 ] || gitmirror__end_if_full
    if [ "$code" -gt 1 ]; then
        gitmirror__say 'git add failed, perhaps because of git-lfs: adding files without it'
        set -- "$@" -c filter.lfs.required=false -c filter.lfs.process= -c filter.lfs.clean=
        git "$@" add -A --ignore-errors ${wide:+"$wide"} >&2
        code=$?
    fi
    case $code in
    0) ;;
    1) gitmirror__lose 'some files could not be added; the others are recorded' ;;
    *) gitmirror__die 'the files cannot be added; nothing was recorded' ;;
    esac
    if ! git "$@" diff --cached --quiet 2>/dev/null || [ -e "$git_dir/MERGE_HEAD" ]; then
        # It does not count as a change if git-lfs merely replaces contents that came with a session by pointers.
        gitmirror__add_contents
        [ -e "$git_dir/MERGE_HEAD" ] || ! gitmirror__is_tree_of_head || return 0
        gitmirror__commit_index "$@"
    fi
}

# Commits the index with the message of the turn. $@ are options of git; `more` is one of `git commit`.
gitmirror__commit_index() {
    gitmirror__print_message | git "$@" -c commit.gpgSign=false -c core.editor=true \
        commit --quiet --no-verify ${more:+"$more"} --cleanup=whitespace --file=- >&2 || {
        gitmirror__end_if_full
        gitmirror__die 'the commit failed; nothing was recorded'
    }
}

# A here-document, because `echo` would take a message apart, and `printf` is a program in some shells, which takes 128 KiB.
gitmirror__print_message() {
    cat <<EOF
${message:-Turn of $session}
EOF
}

# Makes an empty commit for a message, note or attachment that no other commit of this turn carries.
gitmirror__commit_words() {
    [ -n "$message$notes$attached" ] || return 0
    if [ "$(git rev-parse --verify --quiet HEAD)" != "$known" ]; then
        [ -n "$message" ] || return 0
        # This turn's commit has it already, perhaps since a try that could not push.
        [ "$(git log --max-count=1 --no-show-signature --format=%B)" != "$(gitmirror__print_message | git stripspace)" ] ||
            return 0
    fi
    more=--allow-empty
    gitmirror__commit_index -c core.hooksPath=/dev/null -c core.fsmonitor=false -c gc.auto=0 -c maintenance.auto=false
    more=''
}

# Ends a recording that failed because no more objects can be stored.
gitmirror__end_if_full() {
    ! gitmirror__is_full "$git_dir" ||
        gitmirror__die "the disk of $git_dir is full; nothing was recorded: make room on it, and record again"
    [ -w "$git_dir/objects" ] || gitmirror__die \
        "$git_dir cannot be written by this user; nothing was recorded: record as the user who owns the workspace"
}

gitmirror__is_tree_of_head() { [ -n "$tree" ] && [ "$tree" = "$(git rev-parse --verify --quiet 'HEAD^{tree}')" ]; }

# Sets `from` to the tree that the agent's work started from and the upstream has; the empty tree if that is unknown.
gitmirror__find_base() {
    from=$base
    [ -n "$from" ] || from=$(git merge-base HEAD refs/remotes/origin/HEAD 2>/dev/null)
    from=$(git rev-parse --verify --quiet "$from^{tree}") || from=$(git hash-object -t tree /dev/null)
}

# Sets `tree` to the index with contents in place of the LFS pointers added since `from`, or to "" if there are none.
# The contents of these pointers exist only in this guest. For pointers from elsewhere, this guest has no contents.
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
        # By the definition of git-lfs, a pointer is smaller than this.
        case $line in *' missing') ;; *) [ "${line#* }" -ge 1024 ] || small=$small${line% *}$newline ;; esac
    done
    gitmirror__find_contents
    [ -n "$pointers" ] || return 0
    contents=$(cd "$store/objects" && echo "$stored" | git --git-dir="$git_dir" hash-object -w --no-filters --stdin-paths) ||
        return 0
    # Pair the nth pointer with the nth contents.
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

# Sets `pointers` to the blobs of `small` that are LFS pointers with contents in this guest, and `stored` to their files.
gitmirror__find_contents() {
    pointers='' stored='' blob='' pointer=no
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
                pointers=$pointers$blob$newline stored=$stored$object$newline
            fi
            pointer=no
            ;;
        esac
    done
    stored=${stored%"$newline"}
}

# Pushes HEAD, and on top of it, for the mirror only, a commit with the contents of LFS files. The agent continues at its
# own HEAD, where these files are pointers. Sets `pushed`.
gitmirror__push_turn() {
    commit=$(git rev-parse --verify --quiet HEAD) pushed=$commit
    gitmirror__add_contents
    if [ -n "$tree" ] && ! gitmirror__is_tree_of_head; then
        [ -n "$message" ] || message="LFS files of the turn of $session"
        pushed=$(gitmirror__print_message | git commit-tree -p HEAD "$tree") || pushed=$commit
    fi
    if ! gitmirror__push "refs/agents/$session"; then
        [ "$pushed" != "$commit" ] || return 1
        pushed=$commit
        gitmirror__push "refs/agents/$session" || return 1
        gitmirror__lose 'the contents of new LFS files could not be pushed; the turn has their pointers'
    fi
    git config gitmirror.recorded "$session $commit"
}

# Commits all changes in the submodules of a repository, innermost first, if the submodule's repository is mirrored here,
# and adds the paths of those with something to push to `submodules`. $1 is the path of the repository, "" or ending in a
# slash, and $2 the tree or commit to compare it with.
gitmirror__commit_submodules() {
    [ -e "$1.gitmodules" ] || return 0
    for line in $(git -C "./$1" -c core.quotePath=false diff-index --raw --no-renames --ignore-submodules=none "$2"); do
        case $line in :*\ 160000\ *\ *\ *) ;; *) continue ;; esac
        old=${line#* * } old=${old%% *}
        # Keep these in the arguments, because a recursive call does not change them.
        set -- "$1" "$2" "$1${line#*"$tab"}" "$old"
        # Skip a submodule that is not checked out, or whose name git has to quote.
        [ -e "$3/.git" ] || continue
        gitmirror__is_submodule_changed "$3" "$4" || continue
        (cd "$3" && gitmirror__enter && gitmirror__set_submodule && gitmirror__is_mirrored) || {
            gitmirror__lose "submodule $3: its repository is not mirrored here; the changes in it are not recorded"
            continue
        }
        old=$4
        git -C "$3" cat-file -e "$old" 2>/dev/null || old=HEAD
        gitmirror__commit_submodules "$3/" "$old"
        (cd "$3" && gitmirror__enter && gitmirror__commit && [ "$lost" = no ]) ||
            gitmirror__lose "submodule $3: some changes in it could not be committed"
        submodules=$submodules$3$newline
    done
}

# Whether submodule $1 has uncommitted files, or a HEAD that is neither its earlier commit $2 nor on its upstream.
gitmirror__is_submodule_changed() {
    [ -z "$(git -C "$1" status --porcelain --ignore-submodules=none)" ] || return 0
    [ "$(git -C "$1" rev-parse --verify --quiet HEAD)" != "$2" ] &&
        [ -n "$(git -C "$1" rev-list --max-count=1 HEAD --not --remotes)" ]
}

# Sets `repo` to the mirror's name for the upstream of a submodule: its registered name, or HOST/PATH.
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
    # Remove the user name.
    case ${repo%%/*} in *@*) repo=${repo#*@} ;; esac
    [ -n "$repo" ]
}

# Whether the mirror itself has `repo`; for an unmirrored one on a known host it redirects to the upstream.
gitmirror__is_mirrored() {
    gitmirror__set_patience
    for exact in ${mirror_git:+"$mirror_git/$repo"} ${mirror_http:+"$mirror_http/$repo"}; do
        gitmirror__share 4
        [ "$left" -le "$patience" ] || left=$patience
        ! gitmirror__ask_git -c http.followRedirects=false ls-remote --quiet "$exact" HEAD >/dev/null 2>&1 || return 0
    done
    return 1
}

gitmirror__push_submodule() {
    commit=$(git rev-parse --verify --quiet HEAD)
    [ "$recorded" != "$session $commit" ] || return 0
    gitmirror__push_turn
}

# Reports the git repositories in this workspace that are not submodules: only a link to their commit is recorded.
gitmirror__name_links() {
    gitmirror__find_base
    for line in $(git -c core.quotePath=false diff-tree -r --raw --no-renames "$from" HEAD 2>/dev/null); do
        case $line in :*\ 160000\ *\ *\ *) path=${line#*"$tab"} ;; *) continue ;; esac
        modules=$newline
        [ ! -e .gitmodules ] || modules=$(git config --file .gitmodules --get-regexp '^submodule\..*\.path$')$newline
        case $modules in *".path $path$newline"*) continue ;; esac
        case $path in '"'*) ;; *) [ -e "$path/.git" ] || continue ;; esac
        gitmirror__lose "$path is a git repository of its own: only a link to its commit is recorded, not its files"
    done
}

# Pushes `pushed` to a ref of the mirror, with five tries that alternate between git:// and HTTP, and further tries
# while the mirror still lacks the commit that this workspace started from.
gitmirror__push() {
    pause=1 try=0 output='no mirror is configured: set GITMIRROR_GIT or GITMIRROR_HTTP'
    set -- "$1" ${mirror_git:+"$mirror_git/$repo"} ${mirror_http:+"$mirror_http/$repo"}
    while [ $# -gt 1 ]; do
        address=$2 exact=$2
        [ $# -eq 2 ] || set -- "$1" "$3" "$2"
        gitmirror__share $(($# - 1))
        # shellcheck disable=SC2086
        output=$(gitmirror__git -c push.gpgSign=false -c push.pushOption= -c push.negotiate=false \
            push --porcelain --no-verify --no-follow-tags --no-recurse-submodules --force $options \
            "$address" "$pushed:$1" 2>&1) &&
            return 0
        try=$((try + 1))
        if [ -n "$options" ]; then
            case $output in
            *'does not support push options'* | *'unknown option'* | *'notes of this push are refused'*)
                options=''
                gitmirror__say "$output"
                gitmirror__lose 'the notes are not kept: this mirror or this git does not take them'
                continue
                ;;
            esac
        fi
        case $output in
        *'shallow update not allowed'* | *'missing necessary objects'*)
            # Asking for the commit makes the mirror refresh.
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
    gitmirror__say "$output"
    return 1
}

# Whether $1 exists or ever did.
gitmirror__is_known_path() {
    [ -e "$1" ] || [ -L "$1" ] || [ -n "$(git --literal-pathspecs rev-list --all --full-history --max-count=1 -- "$1")" ]
}

# Sets `missing` to the ids of the objects that are in the history of the given paths but not in this workspace, and
# `objects` to their number. Without --full-history, git would leave out what only merged branches had.
gitmirror__find_missing() {
    gitmirror__share 1
    # Paths are no patterns, because with these git lists the objects of the top directory only.
    missing=$(gitmirror__bounded "$left" git --literal-pathspecs \
        rev-list --quiet --objects --missing=print --all --full-history -- "$@") ||
        gitmirror__die 'the history of this workspace cannot be read, or not within GITMIRROR_DEADLINE'
    # Each line is an id behind a question mark. Both are split off at once, because a loop takes long for 100,000 lines.
    IFS="$newline?"
    # shellcheck disable=SC2086
    set -- $missing
    IFS=$newline
    # The first of the fields is the empty one before the first question mark.
    [ $# -eq 0 ] || shift
    objects=$# missing=$*
}

# Ends the kit, because nothing is missing; but old contents are not there either if the history is not.
gitmirror__end_without_missing() {
    if [ "$(git rev-parse --is-shallow-repository)" = true ]; then
        from=origin
        [ -z "$(git config remote.gitmirror.url)" ] || from=gitmirror
        gitmirror__die "this workspace is shallow: its history ends before the old contents. Fetch the history first, with
gitmirror: git fetch --unshallow $from"
    fi
    gitmirror__say 'nothing is missing'
    echo 'backfilled nothing'
    exit
}

gitmirror__fill_from_mirror() {
    [ -n "$repo" ] || { gitmirror__say 'this workspace names no repository of the mirror'; return 1; }
    for address in ${mirror_git:+"$mirror_git/$repo"} ${mirror_http:+"$mirror_http/$repo"}; do
        exact=$address
        # Most of the time, because a mirror that can be reached is never slower than the upstream. No look at it first, because
        # there are tunnels that drop a second connection.
        gitmirror__share 1
        left=$(((left * 3 + 3) / 4))
        ! gitmirror__fetch_missing || return 0
        [ "$code" -le 128 ] || gitmirror__say \
            "given up after $left seconds: GITMIRROR_DEADLINE is $deadline, and $objects objects may need more"
    done
    gitmirror__say "the mirror did not send the old contents of $repo"
    return 1
}

# Fetches `missing` from `address`, in one request without negotiation, as git fetches what a checkout lacks.
gitmirror__fetch_missing() {
    gitmirror__heed gitmirror__send_in_time
    code=$?
    [ "$code" -gt 0 ] || return 0
    ! gitmirror__is_full "$git_dir" || gitmirror__die \
        "the disk of $git_dir is full, so the old contents cannot be stored: make room on it, and run this again"
    return "$code"
}

gitmirror__send_in_time() {
    gitmirror__start "$left" gitmirror__send_wants
    wait "$child"
    code=$?
    kill "$watch" 2>/dev/null
    return "$code"
}

# A function, because a shell gives a command in the background no input.
gitmirror__send_wants() {
    echo "$missing" | git -c "url.$exact.insteadOf=$exact" -c protocol.version=2 -c fetch.negotiationAlgorithm=noop \
        -c fetch.unpackLimit=1 -c gc.auto=0 -c maintenance.auto=false \
        fetch --quiet --no-tags --no-write-fetch-head --recurse-submodules=no --stdin "$address" >&2
}

# Ends the kit because git does not work in directory $1: either it is no workspace, or it is somebody else's.
gitmirror__refuse_directory() {
    said=$(git rev-parse --git-dir 2>&1)
    case $said in
    *'dubious ownership'* | *'unsafe repository'*)
        path=${said#*\'} path=${path%%\'*}
        gitmirror__die "$1 belongs to another user, so git refuses to work in it. Run this as that user, or trust them with
gitmirror: git config --global --add safe.directory '$path'"
        ;;
    esac
    gitmirror__die "$1 is not a git workspace"
}

gitmirror__hydrate_usage() {
    gitmirror__usage 'gitmirror_hydrate [--history | --tip] [--[no-]submodules] [--only DIR]... OWNER/REPO DIR [BRANCH | TAG | COMMIT | session:SESSION]'
}

# Adds a directory of the repository to `only`.
gitmirror__take_only() {
    part=$1
    while :; do case $part in ?*/) part=${part%/} ;; *) break ;; esac; done
    case /$part/ in
    // | /-* | *//* | */./* | */../* | *[[:cntrl:]]*) gitmirror__usage "--only takes a directory of the repository, not '$1'" ;;
    esac
    only=$only$part$newline
}

gitmirror__record_usage() {
    gitmirror__usage 'gitmirror_record SESSION [DIR] [--message TEXT] [--note KEY=VALUE]... [--attach FILE]...'
}

# The next of the words that are no options: the session, then the directory.
gitmirror__take_place() {
    places=$((places + 1))
    case $places in
    1) session=$1 ;;
    2) dir=$1 ;;
    *) gitmirror__record_usage ;;
    esac
    [ "$places" -ne 2 ] || [ -n "$dir" ] || gitmirror__record_usage
}

# A message of blanks alone is none.
gitmirror__take_message() { case $1 in *[![:space:]]*) message=$1 ;; *) message='' ;; esac; }

# Adds a note to `notes`, and to `options` as git sends it. A note that cannot be kept must not cost the turn.
gitmirror__take_note() {
    key=${1%%=*} value=${1#*=}
    case $1 in *=*) ;; *) key='' ;; esac
    case $key in '' | [.-]* | *[!A-Za-z0-9._-]*)
        gitmirror__lose "the note '$1' is not kept: it is not KEY=VALUE with a key of A-Z a-z 0-9 . _ -"
        return
        ;;
    esac
    note_count=$((note_count + 1))
    case $value in *"$newline"*)
        gitmirror__lose "the note $key is not kept: it has a line break; attach such a text as a file"
        return
        ;;
    esac
    if [ ${#key} -gt 64 ] || [ ${#value} -gt 4096 ] || [ "$note_count" -gt 64 ]; then
        gitmirror__lose "the note $key is not kept: at most 64 notes are, of at most 4 KiB, with keys of at most 64"
        return
    fi
    notes=$notes$key$newline options=${options}--push-option${newline}gitmirror.note=$1$newline
}

# Adds the absolute path of a file to `attached`.
gitmirror__take_attach() {
    file=$1
    case $file in
    /*) ;;
    *) file=$(pwd && echo .) && file=${file%"$newline".}/$1 ;;
    esac
    case $file in
    *"$newline"*) gitmirror__lose "$1 is not attached: its path has a line break" ;;
    *)
        # Now, because for what can be attached a turn is made even if nothing else changed.
        if [ -f "$file" ] && [ -r "$file" ]; then
            attached=$attached$file$newline
        else
            gitmirror__lose "$file is not attached: it is not a file that can be read"
        fi
        ;;
    esac
}

# Attaches a file to the turn with the commit `pushed`.
gitmirror__attach() {
    name=${1##*/} why=''
    case $name in '' | .* | *[!A-Za-z0-9._-]*) why='its name must be of A-Z a-z 0-9 . _ -, not starting with a dot' ;; esac
    [ ${#name} -le 128 ] || why='its name has more than 128 characters'
    if [ ! -f "$1" ] || [ ! -r "$1" ]; then why='it is not a file that can be read'; fi
    [ -n "$mirror_http" ] || why='the mirror has no HTTP address: set GITMIRROR_HTTP'
    if [ -z "$why" ] && ! gitmirror__can_get; then why='it takes curl, or a wget that can send files'; fi
    if [ -z "$why" ]; then
        for pause in 1 2 4 0; do
            gitmirror__share 2
            code=0
            why=$(gitmirror__send "$1" "$mirror_http/$repo/agents/$session/$pushed/attachments/$name" 2>&1) || code=$?
            [ "$code" != 0 ] || return 0
            why=${why##*"$newline"}
            # The mirror was busy, or the connection was dropped or refused: codes of curl, and 4 and 8 of wget.
            case "$code $why" in 4\ * | 7\ * | 52\ * | 55\ * | 56\ * | 75\ * | '8 '*' 503'*) ;; *) break ;; esac
            gitmirror__now
            if [ "$pause" = 0 ] || [ $(((now - began) / 100 + pause)) -ge "$deadline" ]; then break; fi
            sleep "$pause"
        done
    fi
    gitmirror__lose "$1 is not attached: ${why:-the mirror did not take it}"
}

# Sends file $1 to URL $2. Prints why that failed; returns 75 if the mirror was busy. Asks the mirror to end the connection,
# as gitmirror__get does.
gitmirror__send() {
    if gitmirror__has curl; then
        set -- --globoff --silent --show-error --connect-timeout 3 --speed-limit 100 --speed-time 10 \
            --max-time "$left" --header 'Connection: close' --write-out '%{http_code}' --upload-file "$1" "$2"
        sent=0
        if [ -z "$token" ]; then
            answer=$(curl "$@") || sent=$?
        else
            answer=$(echo "header = \"Authorization: Bearer $token\"" | curl --config - "$@") || sent=$?
        fi
        case $answer in
        *"$newline"20[01]) return 0 ;;
        *"$newline"[1-5]??)
            echo "${answer%"$newline"*}"
            case $answer in *"$newline"503) return 75 ;; esac
            return 1
            ;;
        esac
        [ "$sent" != 0 ] || sent=1
        return "$sent"
    fi
    gitmirror__know_wget
    # That of busybox has --post-file, but sends a file only up to its first NUL.
    case $help in *--body-file*) ;; *) echo 'this wget cannot send files: it takes curl or GNU wget'; return 1 ;; esac
    url=$2
    set -- --no-verbose -t 1 -O /dev/null --method=PUT --body-file="$1"
    [ "$stall" = none ] || set -- "$@" "$stall"
    [ -z "$once" ] || set -- "$@" "$once"
    if [ -z "$token" ]; then
        gitmirror__bounded "$left" wget "$@" "$url"
    else
        echo "${url%%://*}://token:$token@${url#*://}" | gitmirror__bounded "$left" wget "$@" --auth-no-challenge \
            --max-redirect=0 -i /proc/self/fd/4 4<&0
    fi
}

# Prints the redirect rules of each mirrored repository. git applies the rule with the longest matching prefix, so a rule
# for U would also catch U2 and U-infra. Identity rules for U followed by each possible character exempt those.
#
# git-lfs makes https://MIRROR:9418/… of a remote that is redirected to git://MIRROR, also of lfs.url below U. So a
# repository whose remote is U gets its LFS settings from a file of its own (git 2.36 and newer), in `$rules.lfs`.
gitmirror__rules() {
    mkdir -p "$rules.lfs" || return 1
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
        gitmirror__lfs_rules || return 1
    done
}

# Prints what sends git-lfs to the mirror, or to the upstream if the mirror has no HTTP, and uploads to the upstream.
gitmirror__lfs_rules() {
    case $url in
    https://* | http://*) server=$url.git/info/lfs ;;
    git://*) server=https://${url#git://}.git/info/lfs ;;
    *) server=$url ;;
    esac
    lfs=$server
    [ -z "$mirror_http" ] || lfs=$mirror_http/$repo/info/lfs
    case $lfs in http://* | https://*) ;; *) return 0 ;; esac
    file=$rules.lfs/${repo%%/*}+${repo#*/}
    printf '[lfs]\n\turl = "%s"\n\tpushurl = "%s"\n' "$lfs" "$server" >"$file" || return 1
    printf '[url "%s"]\n\tinsteadOf = "%s"\n' "$server" "$server"
    for suffix in '' .git; do
        printf '[includeIf "hasconfig:remote.*.url:%s%s"]\n\tpath = "%s"\n' "$url" "$suffix" "$file"
    done
}

# Was this file sourced or run? `$0` names this file only if it was run. If `$0` is a shell, it is not read.
gitmirror__line=''
case ${0##*/} in
sh | ash | dash | bash | busybox | ksh | mksh | zsh | -*) ;;
*) [ ! -f "$0" ] || [ ! -r "$0" ] || { read -r _ && read -r gitmirror__line; } <"$0" || : ;;
esac
case $gitmirror__line in
'# The gitmirror guest kit.'*)
    case ${1-} in
    hydrate | record | backfill | redirect)
        gitmirror__line=$1
        shift
        # No subshell, so that a signal reaches the process that cleans up.
        "gitmirror__$gitmirror__line" "$@"
        exit
        ;;
    *) gitmirror__usage "${0##*/} hydrate | record | backfill | redirect ..." ;;
    esac
    ;;
esac
