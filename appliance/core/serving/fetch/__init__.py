"""Answers to fetches.

- `engine`: answers one command of protocol v2, the same for both ports; hands v0 and v1 to git.
- `response_cache`: whole answers as files, each made once and sent to many while it is still being written.
- `ref_snapshots`: the refs that guests are shown, remembered while no file shows that one changed.
- `upload_pack`: runs `git upload-pack` for one request.
- `warmer`: makes the answers that guests will ask for, at low priority, as soon as a tip moves.

A fetch without `have` lines: the engine reduces it to a key; the cache has the answer, or joins one that is being
made, or has upload-pack write one into a new file; each guest is sent that file as far as it has grown. A fetch with
haves goes from upload-pack to the guest directly.

What always holds: only an answer that ended whole, with exit code 0 and a flush, is kept. The key holds everything
that the answer depends on. A guest that leaves stops nobody's answer; a failed answer is an error for all who joined
it.
"""
