#!/usr/bin/env bash
# Tests gitmirror.pyz on a real node: boots a fresh system with systemd, python3 and git in a container, installs the
# file there, and then uses, kills, stops, upgrades and breaks it. Prints one line for each check.
#
#     scripts/try_on_node.sh [--suite SUITE] [--base DIR] [PYZ]        # default: dist/gitmirror.pyz, built first
#
# Needs root, debootstrap and systemd-nspawn (on Debian: apt-get install debootstrap systemd-container), and the
# package mirror that apt on this machine uses. --suite names another release, for example trixie. --base keeps the
# fresh system in DIR for the next run; without it the system is created each time, which takes most of the time. The
# container has its own loopback, so no port of this machine is used. Exits with 1 when a check fails.
set -euo pipefail

# ---------------------------------------------------------------------------------------------------------------
# Outside: creates the node, boots it, shows its output.

packages=systemd,systemd-sysv,dbus,python3,git,curl,iproute2,procps

fail() {
    echo "${0##*/}: $*" >&2
    exit 2
}

outside() {
    local base="" pyz="" suite="" here
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    while [ $# -gt 0 ]; do
        case $1 in
            --base) base=${2:?--base needs a directory}; shift 2 ;;
            --suite) suite=${2:?--suite needs a release}; shift 2 ;;
            -*) fail "unknown option $1; usage: ${0##*/} [--suite SUITE] [--base DIR] [PYZ]" ;;
            *) pyz=$1; shift ;;
        esac
    done
    [ "$(id -u)" = 0 ] || fail "booting a node needs root"
    for tool in debootstrap systemd-nspawn; do
        command -v "$tool" >/dev/null || fail "$tool is missing: apt-get install debootstrap systemd-container"
    done
    if [ -z "$pyz" ]; then
        pyz=$here/dist/gitmirror.pyz
        "$here/scripts/build_pyz.sh" # Does nothing when the file is up to date.
    fi

    # Not local, because the trap needs it after this function.
    work=$(mktemp -d "${TMPDIR:-/tmp}/gitmirror-node.XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT TERM
    if [ -z "$base" ]; then
        make_system "$work/node" "$suite"
    else
        if [ ! -e "$base/usr/bin/git" ]; then
            make_system "$base.new" "$suite"
            rm -rf "$base"
            mv "$base.new" "$base"
        fi
        cp -a --reflink=auto "$base" "$work/node"
    fi

    mkdir "$work/trial"
    cp "$pyz" "$work/trial/gitmirror.pyz"
    chmod 755 "$work/trial/gitmirror.pyz"
    cp "${BASH_SOURCE[0]}" "$work/trial/try_on_node.sh"
    : >"$work/trial/output"
    cat >"$work/node/etc/systemd/system/trial.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash /trial/try_on_node.sh --inside
StandardOutput=append:/trial/output
StandardError=inherit
ExecStopPost=/bin/systemctl poweroff --no-block
UNIT
    echo "nameserver 127.0.0.1" >"$work/node/etc/resolv.conf"

    echo "booting the node"
    local keep=()
    # Without systemd on this machine, nothing can create a scope for the container.
    [ -d /run/systemd/system ] || keep=(--keep-unit)
    timeout --kill-after=30 900 systemd-nspawn --directory="$work/node" --boot --register=no "${keep[@]}" --quiet \
        --private-network --resolv-conf=off --bind="$work/trial:/trial" --console=pipe \
        systemd.unit=multi-user.target systemd.wants=trial.service >"$work/console" 2>&1 </dev/null &
    node=$!
    tail --follow --lines=+1 --pid="$node" --sleep-interval=0.2 "$work/trial/output" || true
    wait "$node" || true
    node=""
    if [ ! -e "$work/trial/verdict" ]; then
        cat "$work/console" >&2
        fail "the node ended without a verdict"
    fi
    [ "$(cat "$work/trial/verdict")" = passed ]
}

# Creates a minimal system from the package mirror of apt on this machine, and of its release unless another is named.
# Usage: make_system DIR [SUITE]
make_system() {
    local found mirror release
    # shellcheck disable=SC2016  # these are apt's placeholders
    found=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Component: main' |
        awk '$1 == "Debian" || $1 == "Ubuntu" { if ($3 !~ /-/) { print $2, $3; exit } }')
    [ -n "$found" ] || fail "apt has no package lists of a Debian or Ubuntu release: run apt-get update"
    read -r mirror release <<<"$found"
    release=${2:-$release}
    echo "creating a $release node"
    if ! debootstrap --variant=minbase --include="$packages" "$release" "$1" "$mirror" >"$work/debootstrap" 2>&1; then
        tail -n 20 "$work/debootstrap" >&2
        fail "debootstrap failed"
    fi
}

clean_up() {
    # On TERM, nspawn powers the node off.
    if [ -n "${node:-}" ]; then
        kill "$node" 2>/dev/null || true
        wait "$node" 2>/dev/null || true
    fi
    # nspawn leaves this directory behind where /run is not a tmpfs.
    rmdir "/run/systemd/nspawn/propagate/node" 2>/dev/null || true
    rm -rf "$work"
}

# ---------------------------------------------------------------------------------------------------------------
# Inside: runs as root on the node, started by trial.service.

upstream=git://upstream.test:19418/acme/project
mirror=git://127.0.0.1:9418/acme/project
failures=0
checks=0

# Usage: check WHAT COMMAND...  Runs COMMAND (for example a function) and prints whether it succeeded.
check() {
    local what=$1 output code began=$EPOCHREALTIME
    shift
    checks=$((checks + 1))
    # Not `|| code=$?`, because bash would then ignore the set -e inside.
    output=$(set -e; "$@" 2>&1)
    code=$?
    local took=$(( (${EPOCHREALTIME/./} - ${began/./}) / 1000 ))
    if [ "$code" = 0 ]; then
        echo "ok    $what (${took} ms)${output:+: ${output##*$'\n'}}"
    else
        failures=$((failures + 1))
        echo "FAIL  $what (exit $code)"
        # shellcheck disable=SC2001  # it indents every line, not only the first
        sed 's/^/      | /' <<<"$output"
    fi
}

appliance() {
    gitmirror.pyz "$@"
}

# Prints the pid of serve. Fails when serve does not run, because `kill` with the pid 0 would hit this script.
main_pid() {
    systemctl show --property=MainPID --value gitmirror.service | grep -vx 0
}

# Usage: until_ok SECONDS COMMAND...
until_ok() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

start_upstream() {
    systemctl reset-failed upstream.service 2>/dev/null || true
    systemd-run --quiet --unit=upstream git daemon --reuseaddr --export-all --base-path=/srv/upstream \
        --listen=127.0.0.1 --port=19418
}

# The upstream is a git daemon. A DNS server resolves its name, so that the lookup is real.
make_upstream() {
    git init -q --bare -b main /srv/upstream/acme/project.git
    git init -q -b main /srv/work
    cd /srv/work
    echo hello >README
    git add README
    git commit -qm first
    head -c 24000000 /dev/urandom >large
    git add large
    git commit -qm second
    git push -q /srv/upstream/acme/project.git main
    start_upstream
    cat >/run/dns.py <<'PY'
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
while True:
    query, guest = server.recvfrom(512)
    end = query.index(0, 12) + 5
    is_a = query[end - 4 : end - 2] == b"\0\1"
    answer = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + b"\0\0\0\0" + query[12:end]
    server.sendto(answer + (b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\x7f\0\0\1" if is_a else b""), guest)
PY
    systemd-run --quiet --unit=dns python3 /run/dns.py
    until_ok 20 git ls-remote -q "$upstream" main
}

# Runs guests one after another for SECONDS, four at a time; prints how many were answered, cut off and refused.
# Usage: guests SECONDS CUT_OFF_AT_MOST
write_guests() {
    cat >/run/guests.py <<'PY'
import subprocess, sys, threading, time
seconds, allowed, url = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
end, answered, wrong = time.monotonic() + seconds, [], []
def run_guests():
    while time.monotonic() < end:
        began = time.monotonic()
        done = subprocess.run(["git", "ls-remote", url], capture_output=True, text=True, timeout=60)
        (wrong if done.returncode else answered).append((time.monotonic() - began, done.stderr.strip()))
threads = [threading.Thread(target=run_guests) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
refused = [text for _, text in wrong if "refused" in text]
for _, text in wrong:
    print(text)
print(f"{len(answered)} answered, {len(wrong)} cut off, {len(refused)} refused, longest {max(answered)[0]:.1f} s")
sys.exit(1 if refused or len(wrong) > allowed or len(answered) < 8 else 0)
PY
}

guests() {
    python3 /run/guests.py "$1" "$2" "$mirror"
}

installs() {
    /trial/gitmirror.pyz install --now
    echo "state directory $(stat -c '%a %U:%G' /var/lib/gitmirror), $(getent passwd gitmirror)"
    [ "$(stat -c '%a %U:%G' /var/lib/gitmirror)" = "750 gitmirror:gitmirror" ]
    getent passwd gitmirror | grep -q nologin
}

installs_again() {
    local before after
    before=$(main_pid)
    /trial/gitmirror.pyz install
    after=$(main_pid)
    echo "the service still runs as process $after"
    [ "$before" = "$after" ]
}

is_up() {
    [ "$(systemctl is-active gitmirror.service gitmirror-{git,http,admin}.socket | sort -u)" = active ]
    systemctl show --property=StatusText --value gitmirror.service
}

units_are_silent() {
    local output
    output=$(systemd-analyze verify gitmirror.service gitmirror-{git,http,admin}.socket 2>&1)
    [ -z "$output" ] || { echo "$output"; return 1; }
}

is_confined() {
    local line score
    line=$(systemd-analyze security --no-pager gitmirror.service | grep 'Overall exposure')
    score=$(grep -oE '[0-9]+\.[0-9]+' <<<"$line")
    echo "${line#* }"
    awk -v score="$score" 'BEGIN { exit !(score <= 2.0) }'
}

follows_upstream() {
    appliance add-repo "$upstream" --interval 1s
    appliance repos
}

clones() {
    rm -rf "$1"
    git clone -q "${@:2}" "$mirror" "$1"
    [ "$(git -C "$1" rev-parse HEAD)" = "$(git -C /srv/work rev-parse HEAD)" ]
}

new_commit_arrives() {
    cd /srv/work
    echo "$EPOCHREALTIME" >README
    git commit -qam later
    git push -q /srv/upstream/acme/project.git main
    until_ok 15 has_tip
}

has_tip() {
    git ls-remote "$mirror" refs/heads/main | grep -q "$(git -C /srv/work rev-parse HEAD)"
}

serves_without_upstream() {
    systemctl stop upstream.service
    clones /srv/offline
    start_upstream
    new_commit_arrives
}

records() {
    clones /srv/guest --depth=1 --filter=blob:none
    cd /srv/guest
    echo "an agent's work" >work
    git add work
    git commit -qm turn
    git push -q origin HEAD:refs/agents/s1
    [ "$(git ls-remote origin refs/agents/s1 | cut -f1)" = "$(git rev-parse HEAD)" ]
}

refuses() {
    cd /srv/guest
    if git push origin "$@"; then
        echo "it was accepted"
        return 1
    fi
    git ls-remote origin refs/heads/main | grep -q "$(git -C /srv/work rev-parse HEAD)"
    git ls-remote origin refs/agents/s1 | grep -q "$(git rev-parse HEAD)"
}

audit_shows() {
    appliance audit --json >/run/audit.json
    python3 - <<'PY'
import json
rows = [(row["ref"], row["verdict"], row["outcome"]) for row in json.load(open("/run/audit.json"))]
print(rows)
assert ("refs/agents/s1", "accepted", "applied") in rows
assert any(ref == "refs/heads/main" and verdict == "rejected" for ref, verdict, _ in rows)
PY
    appliance audit verify
}

is_owned() {
    local others
    others=$(find /var/lib/gitmirror /var/cache/gitmirror /run/gitmirror ! -user gitmirror)
    [ -z "$others" ] || { echo "not owned by the service's user:"; echo "$others"; return 1; }
}

control_socket() {
    stat -c '%a %U:%G' /run/gitmirror/control.sock
    [ "$(stat -c '%a %U:%G' /run/gitmirror/control.sock)" = "660 gitmirror:gitmirror" ]
}

operator_may() {
    useradd --create-home --groups gitmirror oper
    runuser -u oper -- /usr/local/bin/gitmirror.pyz status --json | python3 -c '
import json, sys
status = json.load(sys.stdin)
assert status["serving"] and status["repos"][0]["state"] == "fresh", status
print("serving", status["version"], status["git"])'
}

view_opens() {
    # `script` gives it a terminal, and what it draws goes into a file; `q` leaves it.
    local tui='stty rows 32 cols 120; TERM=xterm /usr/local/bin/gitmirror.pyz tui'
    (sleep 10 && printf q) | timeout 60 runuser -u oper -- script --quiet --return --command "$tui" /tmp/view >/dev/null
    grep --text --only-matching acme/project /tmp/view | head -n 1
    if ! grep --text --quiet acme/project /tmp/view || grep --text Traceback /tmp/view; then
        return 1
    fi
}

stranger_may_not() {
    local connect='import socket; socket.socket(socket.AF_UNIX).connect("/run/gitmirror/control.sock")'
    useradd --create-home stranger
    python3 -c "$connect"
    if runuser -u stranger -- python3 -c "$connect" 2>/run/stranger; then
        return 1
    fi
    grep PermissionError /run/stranger
}

admin_answers() {
    local path
    for path in healthz readyz; do
        curl -fsS --max-time 20 -o /dev/null -w "$path %{http_code} " "http://127.0.0.1:9420/$path"
    done
}

reloads() {
    local before
    before=$(main_pid)
    systemctl reload gitmirror.service
    [ "$(main_pid)" = "$before" ]
    is_up
}

backlog_fits() {
    # Send-Q of a listening socket is its backlog, which the kernel caps.
    ss -Hltn 'sport = :9418 or sport = :9419' | awk -v cap="$(cat /proc/sys/net/core/somaxconn)" '
        { print $4, "backlog", $3; if ($3 < cap && $3 < 4096) bad = 1 } END { exit bad || NR < 2 }'
}

survives_kill() {
    local before
    before=$(main_pid)
    # Guests in the middle of a response, at most four, are cut off; no guest may be refused.
    guests 6 4 &
    sleep 1.5
    kill -9 "$before"
    wait $!
    [ "$(main_pid)" != "$before" ]
    is_up >/dev/null
}

keeps_serving_after() {
    clones /srv/again
    appliance audit verify
    git -C /var/lib/gitmirror/mirrors/acme/project.git -c safe.directory='*' fsck --no-dangling --no-progress
}

watchdog_bites() {
    local before
    mkdir -p /run/systemd/system/gitmirror.service.d
    printf '[Service]\nWatchdogSec=4s\n' >/run/systemd/system/gitmirror.service.d/trial.conf
    systemctl daemon-reload
    systemctl restart gitmirror.service
    before=$(main_pid)
    sleep 9
    # A healthy serve pings the watchdog in time.
    [ "$(main_pid)" = "$before" ]
    kill -STOP "$before"
    until_ok 20 sh -c "journalctl -q -u gitmirror.service | grep -q 'Watchdog timeout'"
    clones /srv/watchdog
    [ "$(main_pid)" != "$before" ]
    rm -r /run/systemd/system/gitmirror.service.d
    systemctl daemon-reload
}

upgrades() {
    # For install this is another file; a zip file may have trailing bytes.
    cp /trial/gitmirror.pyz /run/newer.pyz
    printf 'trailing' >>/run/newer.pyz
    guests 10 0 &
    sleep 1
    python3 /run/newer.pyz install --now >/run/upgrade
    wait $!
    grep '^replace /usr/local/bin' /run/upgrade
    is_up >/dev/null
}

goes_back() {
    guests 6 0 &
    sleep 1
    /trial/gitmirror.pyz install --now >/run/rollback
    wait $!
    grep '^replace /usr/local/bin' /run/rollback
    cmp /trial/gitmirror.pyz /usr/local/bin/gitmirror.pyz
    is_up >/dev/null
}

restarts() {
    guests 14 0 &
    for _ in 1 2 3 4 5 6 7 8; do
        sleep 1
        systemctl restart gitmirror.service
    done
    wait $!
}

turns_off() {
    systemctl stop gitmirror-{git,http,admin}.socket gitmirror.service
    mkdir -p /etc/systemd/system/gitmirror-http.socket.d
    printf '[Unit]\nConditionPathExists=!/\n' >/etc/systemd/system/gitmirror-http.socket.d/off.conf
    cp /etc/gitmirror/gitmirror.toml /run/saved.toml
    sed -i 's/^# http = .*/http = ""/' /etc/gitmirror/gitmirror.toml
    systemctl daemon-reload
    systemctl start gitmirror-{git,http,admin}.socket gitmirror.service
    if ss -Hltn 'sport = :9419' | grep .; then
        return 1
    fi
    clones /srv/without_http
    systemctl stop gitmirror-{git,http,admin}.socket gitmirror.service
    rm -r /etc/systemd/system/gitmirror-http.socket.d
    cp /run/saved.toml /etc/gitmirror/gitmirror.toml
    systemctl daemon-reload
}

mends_itself() {
    cp /etc/gitmirror/gitmirror.toml /run/saved.toml
    echo "nonsense = true" >>/etc/gitmirror/gitmirror.toml
    if systemctl restart gitmirror.service 2>/dev/null; then
        echo "it started with a broken config"
        return 1
    fi
    # Broken for long enough to exceed systemd's default limit, five starts within ten seconds. A guest waits meanwhile.
    git ls-remote "$mirror" refs/heads/main >/run/waited &
    sleep 12
    cp /run/saved.toml /etc/gitmirror/gitmirror.toml
    wait $!
    grep -q refs/heads/main /run/waited
    journalctl -q -o cat -u gitmirror.service | grep nonsense | tail -n 1
    is_up >/dev/null
}

drains() {
    cat >/run/slowly.py <<'PY'
# Simulates a guest on a slow line of about 4 MB/s; git runs it as its proxy command.
import os, socket, sys, threading, time
line = socket.socket()
line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
line.connect((sys.argv[1], int(sys.argv[2])))
def send():
    while data := os.read(0, 65536):
        line.sendall(data)
    line.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while data := line.recv(65536):
    os.write(1, data)
    time.sleep(len(data) / 4e6)
PY
    printf '#!/bin/sh\nexec python3 /run/slowly.py "$@"\n' >/srv/slowly
    chmod +x /srv/slowly
    rm -rf /srv/slow
    GIT_PROXY_COMMAND=/srv/slowly git clone -q "$mirror" /srv/slow &
    local guest=$! began=$EPOCHREALTIME
    until_ok 20 test -d /srv/slow/.git/objects/pack
    sleep 1
    systemctl stop gitmirror-{git,http,admin}.socket gitmirror.service
    local took=$(( (${EPOCHREALTIME/./} - ${began/./}) / 1000 ))
    wait "$guest"
    git -C /srv/slow rev-parse HEAD
    systemctl show --property=Result,ExecMainStatus gitmirror.service | paste -sd' '
    echo "the guest got its clone, and stop returned ${took} ms after the clone began"
    [ "$(systemctl show --property=Result,ExecMainStatus,ActiveState --value gitmirror.service | sort | paste -sd' ')" = \
        "0 inactive success" ]
    # stop waited for the guest, but not for the full 30 s that draining may take.
    [ "$took" -gt 2500 ] && [ "$took" -lt 25000 ]
}

leaves_nothing() {
    id -u gitmirror >/dev/null
    if pgrep -u gitmirror -a; then
        return 1
    fi
    [ ! -e /run/gitmirror ]
}

starts_by_a_guest() {
    systemctl start gitmirror-{git,http,admin}.socket
    [ "$(systemctl is-active gitmirror.service)" = inactive ]
    clones /srv/activated
    is_up
}

moves_to_a_bridge() {
    # The bridge is created after the sockets listen on its address.
    systemctl stop gitmirror-{git,http,admin}.socket gitmirror.service
    mkdir -p /etc/systemd/system/gitmirror-git.socket.d
    printf '[Socket]\nListenStream=\nListenStream=172.16.0.1:9418\nListenStream=127.0.0.1:9418\n' \
        >/etc/systemd/system/gitmirror-git.socket.d/address.conf
    systemctl daemon-reload
    systemctl start gitmirror-{git,http,admin}.socket gitmirror.service
    ip link add br0 type bridge
    ip address add 172.16.0.1/24 dev br0
    ip link set br0 up
    git ls-remote git://172.16.0.1:9418/acme/project refs/heads/main
    clones /srv/loopback
}

listens_where_told() {
    rm -r /etc/systemd/system/gitmirror-git.socket.d
    /trial/gitmirror.pyz install --now --listen 172.16.0.1
    git ls-remote http://172.16.0.1:9419/acme/project refs/heads/main
    git ls-remote git://172.16.0.1:9418/acme/project refs/heads/main
    clones /srv/listening
    # An install that names no address keeps this one.
    /trial/gitmirror.pyz install --now
    git ls-remote git://172.16.0.1:9418/acme/project refs/heads/main
    /trial/gitmirror.pyz install --now --listen 127.0.0.1
    clones /srv/loopback_alone
    if git ls-remote git://172.16.0.1:9418/acme/project; then
        echo "it still listens there"
        return 1
    fi
}

journal_is_clean() {
    # The serve that the watchdog killed left a stack too, but under another heading.
    if journalctl -q --no-pager -o cat -u gitmirror.service | grep --after-context=12 '^Traceback'; then
        return 1
    fi
}

removes() {
    userdel oper
    gitmirror.pyz uninstall --purge --yes
    if systemctl list-unit-files --no-legend 'gitmirror*' | grep . ||
        find /etc /usr /var /run /tmp -name '*gitmirror*' -not -path '/var/log/*' | grep .; then
        return 1
    fi
}

inside() {
    cd /
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONDONTWRITEBYTECODE=1
    export GIT_AUTHOR_NAME=guest GIT_AUTHOR_EMAIL=guest@example.org GIT_COMMITTER_NAME=guest GIT_COMMITTER_EMAIL=guest@example.org
    set +e
    # shellcheck source=/dev/null
    . /etc/os-release
    echo "node: $PRETTY_NAME, $(systemctl --version | head -n 1 | cut -d' ' -f1-2), $(python3 --version), $(git --version)"
    echo "file: $(/trial/gitmirror.pyz --version)"
    write_guests
    check "an upstream is found by DNS" make_upstream
    check "install --now" installs
    check "install again changes nothing" installs_again
    check "service and sockets are up, and READY was sent" is_up
    check "systemd-analyze verify is silent" units_are_silent
    check "systemd-analyze security is 2.0 or better" is_confined
    check "add-repo follows the upstream by its name" follows_upstream
    check "a full clone" clones /srv/full
    check "a commit upstream arrives" new_commit_arrives
    check "a clone while the upstream is down, and its next commit once it is back" serves_without_upstream
    check "a shallow blob:none guest records a turn" records
    check "a push to refs/heads/main is refused" refuses HEAD:refs/heads/main
    check "a push to refs/tags/x is refused" refuses HEAD:refs/tags/x
    check "a delete of refs/agents/s1 is refused" refuses :refs/agents/s1
    check "the audit log has these pushes and verifies" audit_shows
    check "everything belongs to the service's user" is_owned
    check "the control socket has mode 0660 and the service's group" control_socket
    check "a member of the group may read the status" operator_may
    check "the live view opens for a member of the group" view_opens
    check "another user may not connect" stranger_may_not
    check "the admin port answers" admin_answers
    check "reload keeps the process" reloads
    check "a burst of guests fits the backlog" backlog_fits
    check "kill -9: restarted, no guest refused" survives_kill
    check "after kill -9: clone, audit, fsck" keeps_serving_after
    check "the watchdog replaces a hung serve" watchdog_bites
    check "upgrade: no guest refused or cut off" upgrades
    check "downgrade: no guest refused or cut off" goes_back
    check "eight restarts: no guest refused or cut off" restarts
    check "a broken config, fixed: the service recovers by itself" mends_itself
    check "stop drains" drains
    check "stop leaves no process" leaves_nothing
    check "a guest starts the service through its sockets" starts_by_a_guest
    check "a listener can be turned off" turns_off
    check "another address, on a bridge created later" moves_to_a_bridge
    check "install --listen adds an address, keeps it, and takes it back" listens_where_told
    check "no traceback in the journal" journal_is_clean
    check "uninstall leaves nothing" removes
    if [ "$failures" = 0 ]; then
        echo "all $checks checks passed"
        echo passed >/trial/verdict
    else
        echo "$failures of $checks checks FAILED; the service's journal:"
        journalctl -q --no-pager -o short-precise -u gitmirror.service | tail -n 400
        echo failed >/trial/verdict
    fi
}

if [ "${1:-}" = --inside ]; then
    inside
else
    outside "$@"
fi
