#!/usr/bin/env bash
# Runs the tests on another release of Debian, with its python3 and its git: scripts/test.sh in a minimal system of
# that release, on a copy of this checkout as it is. Arguments after SUITE go to scripts/test.sh, and so to pytest:
#
#     scripts/try_on.sh sid
#     scripts/try_on.sh bookworm -n 1 tests/recording tests/serving
#     scripts/try_on.sh --base DIR trixie --all
#
# With --arch it is a release for another processor, emulated by qemu. The tests would take hours there, so without
# arguments after SUITE it builds gitmirror.pyz here and runs scripts/try_file.sh in there: --version, serve, a clone,
# a hydration, a push:
#
#     scripts/try_on.sh --arch arm64 trixie
#
# Needs root, debootstrap (on Debian: apt-get install debootstrap) and the package mirror that apt on this machine
# uses; --arch needs qemu-user-static, too. pip inside is configured as it is outside. The system stays in DIR/SUITE for
# the next time (default: /var/tmp/gitmirror-try-on), with --arch in DIR/SUITE-ARCH; remove that directory to have it
# made anew, from newer packages. Nothing else on the machine is changed: mounts and processes live in namespaces of
# their own and end with the script, and so does the emulation.
set -euo pipefail

packages=python3,python3-venv,git,ca-certificates,curl,iproute2,procps,openssl,openssh-client,openssh-server,busybox,e2fsprogs

fail() {
    echo "${0##*/}: $*" >&2
    exit 2
}

outside() {
    local base=/var/tmp/gitmirror-try-on arch="" usage="usage: ${0##*/} [--base DIR] [--arch ARCH] SUITE [ARGUMENT...]"
    while [ $# -gt 0 ]; do
        case $1 in
            --base) base=${2:?--base needs a directory}; shift 2 ;;
            --arch) arch=${2:?--arch needs a name such as arm64}; shift 2 ;;
            -*) fail "unknown option $1; $usage" ;;
            *) break ;;
        esac
    done
    [ $# -gt 0 ] || fail "which release? $usage"
    local suite=$1 here system
    shift
    [[ $suite =~ ^[a-z][a-z0-9-]*$ ]] || fail "$suite is no name of a release"
    [ "$(id -u)" = 0 ] || fail "a system of its own needs root"
    command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

    mkdir -p "$base"
    system=$(cd "$base" && pwd)/$suite${arch:+-$arch}
    exec 9>"$system.lock"
    flock --nonblock 9 || fail "another run uses $system; name another directory: --base DIR"
    local command=(scripts/test.sh "$@")
    if [ -n "$arch" ]; then
        emulate "$arch"
        trap stop_emulating EXIT
        trap 'exit 130' INT TERM
    fi
    [ "$(cat "$system/packages" 2>/dev/null)" = "$packages" ] || make_system "$suite" "$system" "$arch"
    copy_checkout "$here" "$system/checkout"
    if [ -n "$arch" ] && [ $# -eq 0 ]; then
        "$here/scripts/build_pyz.sh"
        mkdir -p "$system/checkout/dist"
        cp "$here/dist/gitmirror.pyz" "$system/checkout/dist/"
        command=(scripts/try_file.sh dist/gitmirror.pyz)
    fi

    # The kernel unmounts and ends what is inside when the first process in there ends, however that comes.
    unshare --mount --pid --fork --kill-child -- bash "$here/scripts/try_on.sh" --inside "$system" "${command[@]}" 9>&-
}

emulator=""

# Usage: emulate ARCH  Has the kernel start programs for that processor by qemu, unless it does so already.
emulate() {
    local binfmt=/proc/sys/fs/binfmt_misc name rule
    case $1 in
        arm64) name=aarch64 ;;
        armhf) name=arm ;;
        *) name=$1 ;;
    esac
    [ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt
    [ ! -e "$binfmt/qemu-$name" ] || return 0
    rule=/usr/lib/binfmt.d/qemu-$name.conf
    [ -e "$rule" ] || fail "qemu cannot emulate $1 here: apt-get install qemu-user-static"
    # "F" opens qemu now, so that it need not be in the new system.
    sed 's/[A-Z]*$/F/' "$rule" >$binfmt/register
    emulator=$binfmt/qemu-$name
}

stop_emulating() {
    [ -z "$emulator" ] || echo -1 >"$emulator"
}

# Usage: make_system SUITE DIR [ARCH]
make_system() {
    local mirror options=(--variant=minbase --include="$packages" ${3:+--arch="$3"})
    # shellcheck disable=SC2016  # apt's own placeholders
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Component: main' |
        awk '$1 == "Debian" && $3 !~ /-/ { print $2; exit }')
    [ -n "$mirror" ] || fail "apt has no package lists of a Debian release: run apt-get update"
    echo "making a $1 system in $2${3:+, for $3}" >&2
    rm -rf "$2" "$2.new"
    # All releases of today are made the way sid is, also one that this debootstrap has not heard of. It mounts things,
    # too, and leaves them when it is killed.
    if ! unshare --mount debootstrap "${options[@]}" "$1" "$2.new" "$mirror" sid >"$2.log" 2>&1; then
        tail -n 20 "$2.log" >&2
        fail "debootstrap failed, see $2.log"
    fi
    echo "$packages" >"$2.new/packages"
    mv "$2.new" "$2"
}

# What git tracks or would, so that no build and no environment of this machine comes along; the one made in there
# the last time stays.
copy_checkout() {
    mkdir -p "$2"
    find "$2" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
    git -C "$1" ls-files --cached --others --exclude-standard -z | while IFS= read -r -d '' file; do
        # Removed, but not yet from the index.
        if [ -e "$1/$file" ] || [ -L "$1/$file" ]; then
            printf '%s\0' "$file"
        fi
    done | tar --create --directory="$1" --null --files-from=- | tar --extract --directory="$2" --no-same-owner
}

# In the namespaces, still with the machine's files. Usage: inside SYSTEM COMMAND...
inside() {
    local system=$1 name path
    shift
    mount --bind "$system" "$system"
    mount -t proc proc "$system/proc"
    mount --rbind /sys "$system/sys"
    mount --rbind /dev "$system/dev"
    rm -rf "$system/tmp"
    mkdir -m 1777 "$system/tmp"
    show /etc/resolv.conf /etc/hosts /etc/pip.conf "$HOME/.config/pip" "$HOME/.pip"
    mkdir -p "$system$HOME"
    local environment=("HOME=$HOME" LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
    for name in $(compgen -e PIP_); do
        environment+=("$name=${!name}")
    done
    # What pip is told to read, wherever it is told: certificates, directories of wheels.
    for path in $(python3 -m pip config list 2>/dev/null | grep -o "/[^'\" ]*" || true); do
        show "$path"
    done
    # Not by chroot, because whoever enters a mount namespace, as tests of drives do, begins at the namespace's root.
    mkdir -p "$system/outside"
    cd "$system"
    pivot_root . outside
    cd /
    umount --lazy /outside
    # shellcheck disable=SC2016  # for the shell in there
    exec /usr/bin/env -i "${environment[@]}" bash -c '
        . /etc/os-release
        echo "$PRETTY_NAME on $(uname -m), $(python3 --version), $(git --version)" >&2
        cd /checkout
        exec "$@"' bash "$@"
}

# Usage: show PATH...  Lets the system see what is there on this machine, in the same place.
show() {
    local path
    for path in "$@"; do
        if mountpoint --quiet "$system$path"; then
            continue
        elif [ -d "$path" ]; then
            mkdir -p "$system$path"
        elif [ -e "$path" ]; then
            mkdir -p "$system$(dirname "$path")"
            rm -f "$system$path"
            : >"$system$path"
        else
            continue
        fi
        mount --bind --read-only "$path" "$system$path"
    done
}

if [ "${1:-}" = --inside ]; then
    shift
    inside "$@"
else
    outside "$@"
fi
