"""git's wire protocol as bytes: pure parsers and writers, no sockets.

- `pktline`: framing: four hex digits of length, then the payload (gitprotocol-common).
- `requests`: the first packet of git://, the ref commands of a push, and the report that receive-pack gives
  (gitprotocol-pack).
- `v2`: requests of protocol v2, and what of a fetch decides its answer (gitprotocol-v2).

A request: bytes are fed as they come; what is complete comes out as a frozen dataclass; what cannot be one raises
PacketError or RequestError with words for the guest.

What always holds: a parser keeps at most a bounded number of bytes and lines, and does work in proportion to what
came in. What git's own server accepts is accepted here; what is not understood is refused, or passed to git itself,
but never guessed. A fetch whose answer may depend on anything but its words is never given a key for the cache.
"""
