"""The built file from the first start to the last removal, as its users type it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ServeFactory
from tests.pyz.transcript import play
from tests.support.serve import Serve
from tests.support.upstream import HttpUpstream

MIRRORED = """
# An operator registers a repository, and waits for its first clone.
$ gitmirror add-repo $UPSTREAM/acme/widgets
2> acme/widgets is registered \\(fresh\\)

$ gitmirror status
> ^gitmirror \\S+ serving
> ^acme/widgets +fresh +\\S+ +main

# A guest needs plain git and one address, and no credential.
$ git clone --quiet --depth 1 --filter=blob:none $GIT/acme/widgets guest
$ git -C guest status --short --branch
= ## main...origin/main

# A whole host's URLs may be sent to the mirror; the path then has the host in front.
$ git -c url.$GIT/127.0.0.1/.insteadOf=$UPSTREAM/ ls-remote --exit-code --heads $UPSTREAM/acme/widgets main
> refs/heads/main$

# Somebody pushes a commit to the upstream; at the next refresh the mirror has it.
$ git clone --quiet $UPSTREAM/acme/widgets author
$ echo news > author/NEWS.md && git -C author add NEWS.md && git -C author commit --quiet -m News
$ git -C author push --quiet origin HEAD:main
$ gitmirror refresh acme/widgets
> ^acme/widgets: moved in \\S+: 1 ref moved
> refs/heads/main$
$ git -C guest pull --quiet --ff-only
$ cat guest/NEWS.md
= news
$ gitmirror refreshes acme/widgets --limit 1
> moved .* 1 ref moved
"""

RECORDED = """
# At the end of its turn the agent records what it did.
$ echo idea > guest/notes.txt && git -C guest add notes.txt && git -C guest commit --quiet -m "A turn"
$ git -C guest push $GIT/acme/widgets HEAD:refs/agents/s1
2> \\[new reference\\] +HEAD -> refs/agents/s1

# It may overwrite its own session, and nothing else.
$ git -C guest commit --quiet --amend -m "A better turn"
$ git -C guest push --quiet --force $GIT/acme/widgets HEAD:refs/agents/s1
[1] $ git -C guest push $GIT/acme/widgets HEAD:refs/heads/main
2> remote: gitmirror: refused refs/heads/main: branches and tags are the upstream's
2> remote: gitmirror: allowed here: git push MIRROR HEAD:refs/agents/SESSION
2> remote: gitmirror: real branches and tags go to the upstream
[1] $ git -C guest push $GIT/acme/widgets :refs/agents/s1
2> recorded sessions cannot be deleted

# Every attempt is in the log, and the log can be checked.
$ gitmirror audit
> ^ *6 .* refs/agents/s1 .* rejected
> ^ *5 .* refs/heads/main .* rejected .* branches and tags are the upstream's
> ^ *3 .* refs/agents/s1 .* accepted +applied
> ^ *1 .* refs/agents/s1 .* accepted +applied
$ gitmirror audit verify
> ^6 events, the chain holds; head [0-9a-f]{64}$
$ gitmirror audit export | wc -l
= 6
$ gitmirror sessions
> ^s1 +acme/widgets +2
"""

ASKED = """
# What scripts ask for is one JSON document on stdout.
$ gitmirror status --json > status.json
$ python3 -c "import json; s = json.load(open('status.json')); print(s['serving'], s['repos'][0]['sessions'])"
= True 1
$ gitmirror repos --json | python3 -c "import json, sys; print(*(r['name'] for r in json.load(sys.stdin)))"
= acme/widgets
$ gitmirror egress
> ^127.0.0.1:\\d+\\n127.0.0.1:\\d+$
$ gitmirror doctor
> ^ok +git: git version
[2] $ gitmirror add-repo ssh://git@example.com/acme/widgets
2> ^error: ssh://example.com/acme/widgets is an ssh upstream, and no .* entry has a key
"""

STOPPED = """
# While it is stopped, commands tell what the database knows, and say so.
[4] $ gitmirror status
> serve is not running
> ^acme/widgets +fresh
[4] $ gitmirror refresh
2> ^error: serve is not running
[128] $ git ls-remote $GIT/acme/widgets
"""

STARTED_AGAIN = """
# After a restart everything is there.
$ git clone --quiet $GIT/acme/widgets again
$ git -C again ls-remote --exit-code origin refs/agents/s1
> refs/agents/s1$
$ gitmirror audit verify
> ^6 events, the chain holds

# With the upstream's mirror disabled, nobody is served, and nothing is lost.
$ gitmirror disable acme/widgets
[128] $ git ls-remote $GIT/acme/widgets
2> remote error: gitmirror: /acme/widgets is not mirrored here
$ gitmirror enable acme/widgets
$ git -C guest fetch --quiet $GIT/acme/widgets refs/agents/s1

# Removing it keeps the mirror on disk, unless that is to go too.
$ gitmirror remove-repo acme/widgets
$ ls state/mirrors/acme
= widgets.git
[128] $ git ls-remote $GIT/acme/widgets
2> is not mirrored here
$ gitmirror remove-repo acme/widgets --purge --yes
$ ls state/mirrors/acme
$ gitmirror audit --json | python3 -c "import json, sys; print(len(json.load(sys.stdin)))"
= 4
"""


def interpreters() -> Iterator[str]:
    """Names of the interpreters that the file runs on, the one of the tests first."""
    yield sys.executable
    for minor in range(11, 15):
        if minor != sys.version_info.minor:
            yield f"python3.{minor}"


def usable(python: str) -> str:
    """The interpreter of that name on PATH. Skips when there is none, or one that does not run."""
    path = shutil.which(python)
    if path is None:
        pytest.skip(f"there is no {python} on PATH")
    tried = subprocess.run([path, "-c", "import sqlite3, ssl, zlib"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"{python} on PATH does not run: {tried.stderr.strip().partition(chr(10))[0]}")
    return path


def users_environment(serve: Serve, upstream: HttpUpstream, directory: Path) -> dict[str, str]:
    """The environment of a shell in which `gitmirror` is the built file."""
    command = directory / "bin" / "gitmirror"
    command.parent.mkdir()
    words = [*serve.command, "--state", str(serve.state), "--config", str(serve.config)]
    command.write_text(f'#!/bin/sh\nexec {" ".join(words)} "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{serve.env['PATH']}"
    return {**serve.env, "PATH": path, "GIT": serve.git_url, "UPSTREAM": f"http://127.0.0.1:{upstream.port}"}


@pytest.mark.parametrize("python", [*interpreters()], ids=lambda python: Path(python).name)
def test_the_life_of_a_mirror(
    serve_factory: ServeFactory, upstream: HttpUpstream, pyz: Path, tmp_path: Path, python: str
) -> None:
    """Mirrored, cloned, refreshed, recorded, audited, stopped, started again, removed: with every interpreter."""
    serve = serve_factory(pyz=pyz, python=usable(python)).start()
    serve.keep_ports()
    env = users_environment(serve, upstream, tmp_path)
    for chapter in (MIRRORED, RECORDED, ASKED):
        play(chapter, tmp_path, env)
    assert serve.terminate() == 0
    play(STOPPED, tmp_path, env)
    serve.start()
    play(STARTED_AGAIN, tmp_path, env)
    assert serve.terminate() == 0
    assert serve.processes() == []
    assert "Traceback" not in serve.log()
