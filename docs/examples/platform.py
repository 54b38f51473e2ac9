#!/usr/bin/env python3
"""A small agent platform: mirrors a repository, lets an agent work on it, and takes the agent's work home.

    GITMIRROR_API=http://127.0.0.1:9420 GITMIRROR_API_TOKEN=gma_… python3 platform.py https://github.com/acme/widgets
    GITMIRROR_API=/run/gitmirror/control.sock python3 platform.py https://github.com/acme/widgets

The first line uses the admin port and an API token with scope `operate`. The second uses the control socket, where an
operator of the node needs no token. Guests get neither: their GITMIRROR_TOKEN is the read token of one repository.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from urllib.parse import urlsplit

API = os.environ["GITMIRROR_API"]
TOKEN = os.environ.get("GITMIRROR_API_TOKEN")


def call(method, path, body=None, **headers):
    """Sends one request and returns the response, to be read or iterated over. Ends the program on a problem."""
    host = "localhost" if API.startswith("/") else urlsplit(API).netloc
    connection = http.client.HTTPConnection(host)
    if API.startswith("/"):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(API)
    if TOKEN:
        headers["Authorization"] = f"Bearer {TOKEN}"
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    if response.status >= 400:
        problem = json.load(response)
        sys.exit(f"{method} {path}: {problem['detail']} ({problem['hint']})")
    return response


class Events:
    """The event stream. When its connection ends, it goes on after the last event that it got."""

    def __init__(self):
        self.last_id = None
        self.lines = call("GET", "/v1/events")

    def wait_for(self, repo, name):
        """Returns the next event of `repo` with this name."""
        while True:
            try:
                for line in self.lines:
                    field, _, value = line.decode().rstrip("\n").partition(": ")
                    if field == "id":
                        self.last_id = value
                    elif field == "data":
                        event = json.loads(value)
                        if event["event"] == name and event["repo"] == repo:
                            return event
            except (OSError, http.client.HTTPException):
                time.sleep(1)
            self.lines = call("GET", "/v1/events", **{"Last-Event-ID": self.last_id})


def git(*arguments):
    """Runs git in the scratch directory and returns what it prints."""
    return subprocess.run(["git", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


upstream, session = sys.argv[1], "fix-dns"
os.chdir(tempfile.mkdtemp(prefix="platform-"))

# The stream is opened first, so that no event can come before somebody listens.
events = Events()
repo = json.load(call("POST", "/v1/repos", {"url": upstream, "wait": False}))
name = repo["name"]
if repo["state"] != "fresh":
    refreshed = events.wait_for(name, "refreshed")
    if refreshed["error"]:
        sys.exit(f"{name} cannot be cloned yet: {refreshed['error']}")
print(f"{name} is mirrored")

# What happens in a guest. It needs plain git, the address of the mirror, and no credential.
git("clone", "--quiet", f"{json.load(call('GET', '/v1/pulse'))['git']}/{name}", "guest")
with open("guest/AGENT.md", "a") as file:
    file.write("An agent was here.\n")
git("-C", "guest", "add", "AGENT.md")
git("-C", "guest", "-c", "user.name=agent", "-c", "user.email=agent@example.com", "commit", "--quiet", "-m", "Fix DNS")
git("-C", "guest", "push", "--quiet", "origin", f"HEAD:refs/agents/{session}")

# The platform learns of it, shows the diff to a person, and takes the commits into a clone of the upstream.
recorded = events.wait_for(name, "recorded")
print(f"{recorded['session']} is recorded at {recorded['new']}")
path = f"/v1/repos/{name}/sessions/{recorded['session']}"
print(call("GET", f"{path}/diff").read().decode(errors="replace"))
with open("session.bundle", "wb") as file:
    file.write(call("GET", f"{path}/bundle").read())
git("clone", "--quiet", upstream, "clone")
git("-C", "clone", "fetch", "--quiet", "../session.bundle", f"{recorded['ref']}:refs/heads/{session}")
print(git("-C", "clone", "log", "-1", "--format=%H %s", session).strip())

print(json.load(call("DELETE", path))["session"], "is dropped")
