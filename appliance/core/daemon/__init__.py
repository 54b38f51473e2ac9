"""One running `serve`: what it goes by, how its rooms are built, and its life from start to stop.

- `state`: the config in use, the repositories, the addresses, the problems. Built first and handed down.
- `compose`: builds the rooms from the ground up, each from rooms that are there already. Nothing is attached later.
- `wiring`: which room listens for which event of `core/events`.
- `service`: start, reload, stop. `systemd`: its sockets, readiness and watchdog.
- `registry_follower`: makes what is in the registry what is refreshed and served. `status`: what serve tells of itself.
- `control_server`, `handlers`: the other commands, over the unix socket.

An `add-repo`: the control server reads the command; its handler registers in a thread, then the follower reads the
registry, replaces the repositories in the state, has the scheduler and the gate's catalog follow, and publishes
`RegistryChanged`, by which caches forget what is gone. The scheduler clones; the events of that reach the rooms that
`wiring` names, and once they are stored, whoever watches.

What always holds: config and repositories are replaced as a whole, in one place each, and rooms read them when they
need to. The loop never waits for the database, a file system that hangs, or git. What became private is served no
more from the first step of a reload on. A part that dies ends serve: systemd starts a whole one.
"""
