"""One running `serve`: its state, how its rooms (the packages of `core`) are built, and its life from start to stop.

- `state`: the config in use, the repositories, the addresses and the problems. Built first and passed down.
- `compose`: builds the rooms bottom up, each from rooms that exist already. Nothing is attached later.
- `wiring`: which room subscribes to which event of `core/events`.
- `service`: starts, reloads and stops. `systemd`: inherited sockets, readiness and the watchdog.
- `registry_follower`: applies the registry to the scheduler and the access gate. `status`: what `status` reports.
- `on_demand`: brings what guests ask for and `[[allow]]` allows. `allowed_repos`: registers and ends it.
- `registering`: builds all that adds and removes repositories, here, in a fleet and on demand.
- `budget`: what goes when the disk is short, `allowed_mirrors` among it. `storage`: what fills it, for `status`.
- `mirror_files`: deletes what belongs to a repository. `reshaping`: builds workspaces anew after a reload.
- `operations`: what the API asks `serve` to do. `api_socket`: the control socket, which carries the API for operators.

An `add-repo`: the API checks the request, and `operations` registers the repository in a thread. Then the follower
reads the registry, replaces the repositories in the state, updates the scheduler and the gate's catalog, and publishes
`RegistryChanged`, so that caches drop removed repositories. The scheduler clones. The events of the clone reach the
rooms that `wiring` names, and subscribers of the event stream once they are stored.

What always holds: config and repositories are replaced as a whole, in one place each, and rooms read them when they
need them. The event loop never waits for the database, for git, or for a file system that hangs. A repository that
became private is hidden by the first step of a reload. If a part dies, `serve` ends and systemd starts a new one.
"""
