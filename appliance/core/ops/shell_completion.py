"""The scripts by which bash, zsh and fish complete what is typed for gitmirror.pyz, and where each shell finds its own.

A script asks the very program that is being typed, whatever its path, with the words so far in `$GITMIRROR_WORDS`. Each
line of the answer is a kind (`plain`, `file`, `dir`), a word and its help, with tabs between. Names that a guest chose
may be among the words, so no script evaluates what it gets.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from appliance.core.errors import UsageError

ANSWER = "_GITMIRROR_COMPLETE"
"""Its presence makes the program answer a shell, whose name is the value."""
WORDS = "GITMIRROR_WORDS"
END = "\x1f"
"""Put behind the last word, so that an empty one is seen."""
NAMES = ("gitmirror.pyz", "gitmirror")
PLACES = {
    "bash": Path("/usr/local/share/bash-completion/completions/gitmirror.pyz"),
    "zsh": Path("/usr/local/share/zsh/site-functions/_gitmirror"),
    "fish": Path("/usr/share/fish/vendor_completions.d/gitmirror.pyz.fish"),
}
"""Where each shell looks for scripts of programs that are installed in /usr/local."""
SHELLS = tuple(PLACES)

_BASH = r"""
_gitmirror() {
    local program kind word help line=${COMP_LINE:0:COMP_POINT} before=
    program=$(type -P -- "${1/#\~/$HOME}") || program=@program@
    COMPREPLY=()
    while IFS=$'\t' read -r kind word help; do
        case $kind in
            plain) COMPREPLY+=("$word") ;;
            dir) compopt -o dirnames 2>/dev/null ;;
            file) compopt -o default 2>/dev/null ;;
        esac
    done < <(_GITMIRROR_COMPLETE=bash GITMIRROR_WORDS=$line "$program" 2>/dev/null </dev/null)
    # bash takes a word to begin after each = : or @ in it, and replaces only the rest.
    line=${line##*[[:space:]]}
    [[ $line == *[=:@]* ]] && before=${line%"${line##*[=:@]}"}
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
    return 0
}
complete -F _gitmirror @names@
"""

_ZSH = r"""#compdef @names@
_gitmirror() {
    local program=${(Q)words[1]} line="${(F)${(@Q)words[1,CURRENT-1]}}"$'\n'"${(Q)PREFIX}" kind word help
    local -a described plain
    program=${program/#\~/$HOME}
    (( $+commands[$program] )) || [[ -x $program ]] || program=@program@
    while IFS=$'\t' read -r kind word help; do
        case $kind in
            plain) if [[ -n $help ]]; then described+=("${word//:/\\:}:$help"); else plain+=("$word"); fi ;;
            dir) _path_files -/ ;;
            file) _files ;;
        esac
    done < <(_GITMIRROR_COMPLETE=zsh GITMIRROR_WORDS=$line "$program" 2>/dev/null </dev/null)
    (( $#described )) && _describe -V gitmirror described
    (( $#plain )) && compadd -V names -a plain
    return 0
}
if [[ ${zsh_eval_context[-1]} == loadautofunc ]]; then
    _gitmirror "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef _gitmirror @names@
fi
"""

_FISH = r"""
function __gitmirror_complete
    # An empty word is one too: it is quoted, and has an end that `string collect` does not take for an empty line.
    set -l last (commandline -ct | string unescape)
    set -l words (commandline -opc) "$last"\x1f
    set -l program (string replace -r '^~' -- $HOME $words[1])
    command -q -- $program; or set program @program@
    set -lx _GITMIRROR_COMPLETE fish
    set -lx GITMIRROR_WORDS (string join \n -- $words | string collect)
    $program 2>/dev/null </dev/null |
        while read -l -d \t kind word help
            switch $kind
                case plain
                    test -n "$help"; and printf '%s\t%s\n' $word $help; or printf '%s\n' $word
                case dir
                    __fish_complete_directories (commandline -ct) ''
                case file
                    __fish_complete_path (commandline -ct) ''
            end
        end
end
for name in @names@
    complete --command $name --no-files --keep-order --arguments '(__gitmirror_complete)'
end
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion_script(shell: str, program: str, more: Sequence[str] = ()) -> str:
    """Returns the script for `shell`, one of SHELLS.

    It completes for the usual names of the file, for the name of `program` and for those in `more`. `program`, the
    path or name of the file, answers where a name is an alias. Raises UsageError for a name that is no word.
    """
    for name in more:
        if not re.fullmatch(r"[\w.+-]+", name):
            raise UsageError(f"{name!r} is not the name of a program or an alias", hint="leave its directory out")
    names = dict.fromkeys((*NAMES, *more))
    own = os.path.basename(program)
    if re.fullmatch(r"[\w.+-]+", own):
        names[own] = None
    where = os.path.abspath(program) if os.path.dirname(program) else program
    text = _SCRIPTS[shell].replace("@names@", " ".join(names)).replace("@program@", shlex.quote(where))
    return text.lstrip("\n")


def program_of(argv0: str) -> str:
    """Returns what a shell can run as this program, given its `sys.argv[0]`."""
    return argv0 if not argv0.endswith(".py") and shutil.which(argv0) else NAMES[0]


def installed_scripts(program: Path) -> dict[Path, bytes]:
    """The scripts that `install` puts into place for the installed file `program`, by path."""
    return {place: completion_script(shell, str(program)).encode() for shell, place in PLACES.items()}
