"""`git http-backend` behind nginx and fcgiwrap, one of the compared servers."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchlib.processes import Places, Running, find_program, free_port, listens, run_git, wait_until
from benchlib.servers import START, Server, serving_environment

WORKERS = 32
"""CGI processes at once, as many as git daemon has."""

_CONFIG = """\
{user}daemon off;
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {folder}/client_body;
    fastcgi_temp_path {folder}/fastcgi;
    proxy_temp_path {folder}/proxy;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    fastcgi_buffering off;
    fastcgi_read_timeout 600;
{parameters}
{servers}
}}
"""
_SERVER = """\
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        set $program "{program}";
        location / {{ fastcgi_pass unix:cgi; }}
    }}
"""


def http_backend_reason() -> str | None:
    """Returns the reason why http-backend cannot run here, or None when it can."""
    missing = [name for name in ("nginx", "fcgiwrap") if find_program(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else None


@contextlib.contextmanager
def http_backend(places: Places, env: Mapping[str, str], mirrors: Path, name: str) -> Iterator[Server]:
    """Runs nginx, fcgiwrap and http-backend. Call it only when `http_backend_reason` returns None.

    fcgiwrap lets the kernel reap its children, so their CPU time is lost. On a second port, counted_cgi.py therefore
    runs each http-backend and records its CPU time; clones on that port are not timed.
    """
    nginx, fcgiwrap = find_program("nginx"), find_program("fcgiwrap")
    assert nginx and fcgiwrap
    folder = places.scratch / "nginx"
    folder.mkdir()
    inner = serving_environment(places, env)
    backend = Path(run_git("--exec-path", cwd=places.scratch, env=env)) / "git-http-backend"
    notes, counted = folder / "cpu", folder / "counted.sh"
    notes.touch()
    words = [sys.executable, "-IS", str(Path(__file__).with_name("counted_cgi.py")), str(backend), str(notes)]
    counted.write_text(f"#!/bin/sh\nexec {shlex.join(words)}\n")
    counted.chmod(0o755)
    parameters = {
        "SCRIPT_FILENAME": "$program",
        "GIT_PROJECT_ROOT": str(mirrors),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_CONFIG_GLOBAL": inner["GIT_CONFIG_GLOBAL"],
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_PROTOCOL": "$http_git_protocol",
        "PATH": inner["PATH"],
        "HOME": inner["HOME"],
        "PATH_INFO": "$uri",
        "QUERY_STRING": "$query_string",
        "REQUEST_METHOD": "$request_method",
        "CONTENT_TYPE": "$content_type",
        "CONTENT_LENGTH": "$content_length",
        "REMOTE_ADDR": "$remote_addr",
    }
    programs = {free_port(): backend, free_port(): counted}
    config = folder / "nginx.conf"
    config.write_text(
        _CONFIG.format(
            user="user root;\n" if os.geteuid() == 0 else "",
            folder=folder,
            parameters="\n".join(f'    fastcgi_param {key} "{value}";' for key, value in parameters.items()),
            servers="".join(_SERVER.format(port=port, program=program) for port, program in programs.items()),
        )
    )
    # The path is relative, because a socket's path is limited to 107 bytes and a temporary directory's may be long.
    cgi = [fcgiwrap, "-c", str(WORKERS), "-s", "unix:cgi"]
    http = [nginx, "-p", str(folder), "-c", str(config), "-e", str(folder / "start.log")]
    with (
        Running(cgi, env=inner, log=folder / "fcgiwrap.log", cwd=folder) as wrapper,
        Running(http, env=inner, log=folder / "start.log", cwd=folder) as front,
    ):
        for port in programs:
            wait_until(lambda port=port: _up(front, wrapper, port), "nginx listens", START)  # type: ignore[misc]
        timed, aside = ({"http": f"http://127.0.0.1:{port}/{name}.git"} for port in programs)
        yield Server("http-backend", timed, (front, wrapper), aside, notes)


def _up(front: Running, wrapper: Running, port: int) -> bool:
    front.check()
    wrapper.check()
    return listens(port)
