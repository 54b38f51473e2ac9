"""The demo: a node with upstreams, guests and agents, all on this machine, for somebody who has nothing yet.

Modules: `place` (the temporary directory, and the removal of what a killed demo left), `content` (repositories and
sessions, read from `content/*.toml`), `history` (their commits, for `git fast-import`), `upstreams` (an HTTP server
for them that can fail), `roads` (how a guest reaches the mirror: from an address of its own, perhaps slowly), `guests`
(the guest kit in real processes), `agents` (sessions, turn by turn), `program` (how the node is started), `stage` (all
of them beside one `serve`), `supervision` (the stage as a process that ends with the one that wanted it).

A commit: `stage` takes the next change of a repository, `upstreams` commits it and tells `serve` by webhook, `serve`
fetches it as from any host, and the guests that hydrate next get it.

Always true: nothing here is known to the rest of the program, and the node is the one that users run: it is started by
its command, and everybody talks to it by git, HTTP and the API. All files are below one directory, every process is
recorded there, and a lock says whether the demo lives; so whoever finds the directory without its owner can end and
remove everything.
"""
