#!/usr/bin/env bash
# Gets other git clients for tests/clients, which try each of them against a running gitmirror:
#
#     scripts/get_clients.sh              # all that are not there yet
#     scripts/get_clients.sh jgit pygit2  # these
#
# They go into $GITMIRROR_CLIENTS, by default ~/.cache/gitmirror/clients, each into a directory of its own, and nothing
# else on the machine is changed. A client that this machine has no means for is named on stderr, and makes the exit
# code 1; its tests are skipped. Remove a directory to have that client made anew. `git-newest` is the git of Debian sid on
# the day it was made.
#
# Needs apt-get and dpkg for git-oldest and git-newest, pip for pygit2, node and npm for isomorphic-git, a JDK and mvn for
# jgit, go for go-git.
# shellcheck disable=SC2329  # make_CLIENT is called by its name
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

clients=${GITMIRROR_CLIENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/gitmirror/clients}
all=(git-oldest git-newest pygit2 isomorphic-git jgit go-git)
pygit2=1.21.0
isomorphic_git=1.44.17
jgit=7.8.1.202611041320-r
go_git=v5.19.3

# Each of these makes one client in the current directory, which is empty, and leaves its version in the file `version`.

# The git of a Debian release, with all libraries down to its libc, run by its own loader: it needs no root and does not
# care about the machine's libc. Perl and what only perl scripts need is left out.
debian_git() {
    local suite=$1 mirror options
    # shellcheck disable=SC2016  # apt's own placeholders
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Component: main' |
        awk '$1 == "Debian" && $3 !~ /-/ { print $2; exit }')
    [ -n "$mirror" ] || fail "apt has no package lists of a Debian release: run apt-get update"
    mkdir -p apt/state/lists/partial apt/cache/archives/partial root exec bin
    echo "deb $mirror $suite main" >apt/sources.list
    : >apt/status
    options=(-q -o "Dir::Etc::sourcelist=$PWD/apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State=$PWD/apt/state"
        -o "Dir::State::status=$PWD/apt/status" -o "Dir::Cache=$PWD/apt/cache" -o APT::Sandbox::User=root
        -o Acquire::Retries=1)
    apt-get "${options[@]}" update
    apt-get "${options[@]}" install --simulate --no-install-recommends git >apt/plan
    awk '$1 == "Inst" { print $2 }' apt/plan | grep -Ev 'perl|^git-man$|^gcc-.*-base$|^(debconf|dpkg|tar|libgdbm.*|libdb5.*)$' >apt/names
    (cd apt/cache && xargs apt-get "${options[@]}" download <../names)
    local package
    for package in apt/cache/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar --extract --directory root --no-same-owner
    done
    rm -rf apt
    local loader libraries file
    loader=$(find "$PWD/root" -name 'ld-linux*.so.*' -print -quit)
    libraries=$(find "$PWD/root" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd :)
    for file in root/usr/bin/git root/usr/lib/git-core/git-*; do
        # Scripts run as they are. Programs are not found by the kernel's own loader.
        if [ "$(head -c 4 "$file" | tail -c 3)" = ELF ]; then
            cat >"exec/${file##*/}" <<EOF
#!/bin/sh
GIT_EXEC_PATH='$PWD/exec' GIT_TEMPLATE_DIR='$PWD/root/usr/share/git-core/templates' \\
    exec '$loader' --library-path '$libraries' '$PWD/$file' "\$@"
EOF
            chmod +x "exec/${file##*/}"
        else
            cp "$file" exec/
        fi
    done
    ln -s ../exec/git bin/git
    local version
    version=$(bin/git version)
    echo "${version#git version }" >version
}

make_git-oldest() { debian_git bullseye; }
make_git-newest() { debian_git sid; }

make_pygit2() {
    local python
    python=$(find_python)
    "$python" -m pip install --quiet --disable-pip-version-check --no-input --only-binary :all: --target lib "pygit2==$pygit2"
    PYTHONPATH=lib "$python" -c 'import pygit2; print(f"{pygit2.__version__} (libgit2 {pygit2.LIBGIT2_VERSION})")' >version
}

make_isomorphic-git() {
    echo '{"private": true}' >package.json
    npm install --silent --no-audit --no-fund "isomorphic-git@$isomorphic_git"
    node -p 'require("isomorphic-git").version()' >version
}

make_jgit() {
    cat >pom.xml <<EOF
<project>
  <modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>clients</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.eclipse.jgit</groupId><artifactId>org.eclipse.jgit</artifactId><version>$jgit</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-nop</artifactId><version>2.0.17</version></dependency>
  </dependencies>
</project>
EOF
    mvn --quiet --batch-mode dependency:copy-dependencies -DoutputDirectory=lib
    mkdir classes
    cp program JgitClient.java
    javac -cp 'lib/*' -d classes JgitClient.java
    echo "$jgit" >version
}

make_go-git() {
    cp program main.go
    go mod init clients
    go get "github.com/go-git/go-git/v5@$go_git"
    go mod tidy
    go build -o client .
    echo "$go_git" >version
}

# Usage: is_there CLIENT  Whether it is there, with the program of this checkout, for the Python of the tests.
is_there() {
    local folder=$clients/$1
    [ -e "$folder/version" ] || return 1
    case $1 in
        pygit2) PYTHONPATH=$folder/lib "$(find_python)" -c 'import pygit2' 2>/dev/null ;;
        jgit | go-git) cmp -s "$folder/program" "${program[$1]}" ;;
    esac
}

# Usage: get CLIENT  Makes it, unless it is there.
get() {
    local folder=$clients/$1
    if is_there "$1"; then
        echo "$1: $(cat "$folder/version"), as before"
    elif bash "$here/scripts/get_clients.sh" --make "$1" >"$folder.log" 2>&1; then
        echo "$1: $(cat "$folder/version")"
    else
        echo "${0##*/}: $1 cannot be had here, see $folder.log: $(tail -n 1 "$folder.log")" >&2
        return 1
    fi
}

here=$PWD
declare -A program=(
    [jgit]=$here/tests/clients/programs/JgitClient.java
    [go-git]=$here/tests/clients/programs/gogit.go
)
mkdir -p "$clients"
clients=$(cd "$clients" && pwd)

if [ "${1-}" = --make ]; then
    # A process of its own for each, which ends at the first command that fails. The file `version` comes last.
    hold_lock "$clients/$2.lock"
    rm -rf "${clients:?}/$2"
    mkdir "$clients/$2"
    cd "$clients/$2"
    if [ -n "${program[$2]-}" ]; then
        cp "${program[$2]}" program
    fi
    "make_$2" 9>&-
    exit
fi

[ $# -gt 0 ] || set -- "${all[@]}"
for client in "$@"; do
    case " ${all[*]} " in
        *" $client "*) ;;
        *) fail "no client is called $client; there are: ${all[*]}" ;;
    esac
done
made=()
for client in "$@"; do
    # All at once, because they mostly wait for downloads.
    get "$client" &
    made+=($!)
done
code=0
for process in "${made[@]}"; do
    wait "$process" || code=1
done
exit $code
