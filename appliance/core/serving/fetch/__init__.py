"""Answers fetches.

- `engine`: answers one command of protocol v2, the same way for both ports, and hands v0 and v1 to git. `relayed`:
  records a v0 or v1 fetch that git answers.
- `negotiation`: finds out whether an answer has the pack, which is the last of its connection.
- `request_reader`: reads v2 requests strictly and within bounds. `request_memo`: large requests that were read before.
- `response_cache`: complete responses as files. Each is made once and sent to many guests, even while it is being
  written. `cached_response`: what one guest has of a response.
- `kept_responses`: the complete responses. A response whose file has changed since it was written is thrown away.
  `cold_responses`: what goes of them when the disk is short.
- `ref_snapshots`: the refs that guests are shown, reused until a file shows that one has changed.
- `upload_pack`: runs `git upload-pack` for one request.
- `warmer`: makes the responses that guests will ask for, at low priority, as soon as a tip moves.

A fetch without `have` lines: the engine reduces it to a key. The cache has the response, or joins the guest to one that
is being made, or starts upload-pack, which writes one into a new file. Each guest is sent that file as far as it has
grown. A fetch with haves goes from upload-pack directly to the guest.

What always holds: the cache keeps only a response that ended with exit code 0 and a flush, and sends none whose file
was touched since it was known to be right. Its key holds everything that the response depends on. A guest that
disconnects does not stop the response for others, and few are written for nobody. If a response fails, every guest
that joined it gets an error.
"""
